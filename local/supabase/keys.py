"""The keys that sign access tokens (ES256), and the key set that everybody may read."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm


class Keys:
    """A current key, and former ones whose tokens are still good. They outlive a restart, in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "keys.json"
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}  # the current one is the last
        if self._path.exists():
            for kid, text in json.loads(self._path.read_text()).items():
                key = serialization.load_pem_private_key(text.encode(), None)
                assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - nothing else is written
                self._keys[kid] = key
        else:
            self.rotate()

    def rotate(self, *, revoke: bool = False) -> str:
        """Make a new current key and return its id. With `revoke` the former ones are void."""
        kid = str(uuid.uuid4())
        key = ec.generate_private_key(ec.SECP256R1())
        self._keys = {kid: key} if revoke else self._keys | {kid: key}
        texts = {
            kid: key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode()
            for kid, key in self._keys.items()
        }
        part = self._path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(texts, stream)
        part.replace(self._path)
        return kid

    def public(self) -> dict[str, Any]:
        """The key set of /.well-known/jwks.json."""
        keys = []
        for kid, key in self._keys.items():
            described = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
            keys.append(
                described
                | {"kid": kid, "alg": "ES256", "use": "sig", "key_ops": ["verify"], "ext": True}
            )
        return {"keys": keys}

    def sign(self, claims: dict[str, Any]) -> str:
        """An access token, by the current key."""
        kid = next(reversed(self._keys))
        return jwt.encode(claims, self._keys[kid], algorithm="ES256", headers={"kid": kid})

    def read(self, token: str, issuer: str) -> dict[str, Any]:
        """Claims of a token of ours. Raises jwt.InvalidTokenError."""
        kid = jwt.get_unverified_header(token).get("kid", "")
        if kid not in self._keys:
            raise jwt.InvalidTokenError(f"unrecognized JWT kid {kid} for algorithm ES256")
        claims: dict[str, Any] = jwt.decode(
            token,
            self._keys[kid].public_key(),
            algorithms=["ES256"],
            audience="authenticated",
            issuer=issuer,
        )
        return claims
