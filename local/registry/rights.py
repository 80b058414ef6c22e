"""Who may do what with a package, and why ghcr.io would refuse it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from local.settings import write_atomic

UNAUTHORIZED = "authentication required"
TOKENS, PACKAGES = "tokens.json", "packages.json"


@dataclass(frozen=True)
class Holder:
    """On whose behalf a request is made, in lower case as in images' names; without an owner: nobody's."""

    owner: str = ""
    repository: str = ""  # of a workflow's token; a person's has none
    reads: bool = False
    writes: bool = False


def read(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """What tokens.json (digest -> Holder) or packages.json (name -> owner, repository, public) holds now."""
    path = folder / name
    return dict(json.loads(path.read_text())) if path.exists() else {}


@contextlib.contextmanager
def change(folder: Path, name: str) -> Iterator[dict[str, dict[str, Any]]]:
    """The content of one of these files, which is written when the block ends; one block at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read(folder, name)
        yield content
        write_atomic(folder / name, json.dumps(content, indent=1), mode=0o600)


def grant(
    folder: Path,
    token: str,
    *,
    user: str = "",
    scopes: Sequence[str] = (),
    repository: str = "",
    packages: str = "",
) -> None:
    """Make known a person's classic token (user, scopes) or a workflow's (repository, its permission `packages`)."""
    reads = "read:packages" in scopes or packages in {"read", "write"}
    writes = "write:packages" in scopes or packages == "write"
    owner = user or repository.partition("/")[0]
    with change(folder, TOKENS) as tokens:
        tokens[_digest(token)] = asdict(Holder(owner.lower(), repository.lower(), reads, writes))


def revoke(folder: Path, token: str) -> None:
    """Forget a token, as GitHub does with a workflow's when its job ends."""
    with change(folder, TOKENS) as tokens:
        tokens.pop(_digest(token), None)


def holder(folder: Path, user: str, token: str) -> Holder | None:
    """Whose token it is, or None; with a workflow's, any user may be named."""
    known = read(folder, TOKENS).get(_digest(token))
    who = Holder(**known) if known else None
    return who if who and (who.repository or who.owner == user.lower()) else None


def refusal(folder: Path, who: Holder, name: str, action: str) -> str:
    """The message with which ghcr.io refuses "pull" or "push" of a package; empty: it does not."""
    package = read(folder, PACKAGES).get(name)
    owns = who.owner == name.partition("/")[0]
    linked = not who.repository or package is None or package["repository"] == who.repository
    if package and package["public"] and action == "pull":
        return ""
    if not who.owner:
        return UNAUTHORIZED
    if action == "pull":
        # The owner's reader learns that a package is missing; to others it is as one that they may not read.
        allowed = owns and linked and who.reads
        return "" if allowed else "requested access to the resource is denied"
    verb = "write" if package else "create"
    if not who.writes and who.repository:
        return f"installation not allowed to {verb.title()} organization package"
    if not who.writes:
        return "permission_denied: The token provided does not match expected scopes."
    return "" if owns and linked else f"permission_denied: {verb}_package"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()  # no secret of another's is kept
