"""The certificate of the registries on this machine, which the droplet trusts from its first boot on."""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from local.settings import write_atomic

ADDRESSES = ("127.0.0.1", "10.0.2.2")  # of this machine, for itself and for the droplet


def make_certificate(folder: Path, host: str) -> None:
    """Write ca.crt, the server's certificate, which is its own authority, and server.key, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(
        folder / ".certificate.lock", "w"
    ) as lock:  # droplet and registries are made side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ca.crt").exists():
            _write(folder, host)


def _write(folder: Path, host: str) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    addresses = [x509.IPAddress(ipaddress.ip_address(one)) for one in ADDRESSES]
    alternatives = x509.SubjectAlternativeName([x509.DNSName(host), *addresses])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a droplet's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=800))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    write_atomic(folder / "server.key", private.decode(), mode=0o600)
    write_atomic(folder / "ca.crt", certificate.public_bytes(pem).decode())
