"""Ansible filter: the bcrypt hash by which n8n's environment names the owner's password."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import bcrypt
from ansible.errors import AnsibleFilterError

ROUNDS = 10  # as n8n's own hashes
STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
BCRYPT = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def n8n_password_hash(password: str, seed: str) -> str:
    """``$2b$10$…`` of the password. The same for the same ``seed``, so that a second run changes nothing.

    ``seed`` is another secret of this installation (its encryption key): the salt is unique to it.
    Raises AnsibleFilterError for a password that n8n would not take.
    """
    if not 8 <= len(password.encode()) <= 64:
        raise AnsibleFilterError(
            "N8N_OWNER_PASSWORD must have 8 to 64 bytes. Next: openssl rand -base64 24"
        )
    if not seed:
        raise AnsibleFilterError("N8N_ENCRYPTION_KEY is empty. Next: openssl rand -hex 32")
    salt = hashlib.sha256(b"n8n owner\0" + seed.encode()).digest()[:16]
    text = base64.b64encode(salt).rstrip(b"=").translate(bytes.maketrans(STANDARD, BCRYPT))
    return bcrypt.hashpw(password.encode(), b"$2b$%d$%s" % (ROUNDS, text)).decode()


class FilterModule:
    """Filters of the n8n_workflows role."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name in a template to function."""
        return {"n8n_password_hash": n8n_password_hash}
