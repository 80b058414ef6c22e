"""Origin CA: certificates that Cloudflare alone believes, by an authority that lives as long as the stand-in."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

DAY = datetime.timedelta(days=1)


class OriginCa:
    """The authority, under the name that Cloudflare's own has."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "CloudFlare, Inc."),
                x509.NameAttribute(
                    x509.NameOID.ORGANIZATIONAL_UNIT_NAME,
                    "CloudFlare Origin SSL ECC Certificate Authority",
                ),
            ]
        )

    def sign(self, csr: str, hostnames: list[str], kind: str, days: int) -> tuple[str, str]:
        """A certificate (PEM) and its end. What the request says of names is not looked at; raises ValueError."""
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        fits = {"origin-ecc": ec.EllipticCurvePublicKey, "origin-rsa": rsa.RSAPublicKey}[kind]
        if not request.is_signature_valid or not isinstance(
            key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey
        ):
            raise ValueError("the request's signature")
        if not isinstance(key, fits):
            raise ValueError("the request's kind of key")
        begin = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        subject = x509.Name(
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, "CloudFlare Origin Certificate")]
        )
        certificate = (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(begin - DAY)
            .not_valid_after(begin + days * DAY)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(one) for one in hostnames]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return pem, f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} +0000 UTC"
