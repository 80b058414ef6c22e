"""`python -m local.registry`: serve the stand-in by TLS on loopback until stopped, with its own `docker-registry`."""

from __future__ import annotations

import datetime
import ipaddress
import json
import subprocess
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from local.clouds import http_answers
from local.serving import arguments, serve
from local.settings import check_tools, write_atomic
from local.waiting import eventually, free_port

from .app import REALM, SERVICE, Registry

ADDRESSES = ("127.0.0.1", "10.0.2.2")  # of this machine, for itself and for the droplet
CONFIGURATION = f"""\
version: 0.1
log: {{{{level: error, accesslog: {{{{disabled: true}}}}}}}}
storage: {{{{filesystem: {{{{rootdirectory: {{data}}}}}}}}}}
http: {{{{addr: "127.0.0.1:{{port}}", relativeurls: true}}}}
auth: {{{{token: {{{{realm: {REALM}, service: {SERVICE}, issuer: {SERVICE}, rootcertbundle: {{bundle}}}}}}}}}}
"""


def make_certificate(folder: Path, host: str) -> None:
    """Write ca.crt, the server's certificate, which is its own authority, and server.key, unless they are there."""
    if (folder / "ca.crt").exists():
        return
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


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("registry", "ghcr.io")
    parser.add_argument("--state", type=Path, required=True, help="folder of all that is kept")
    parser.add_argument("--name", required=True, help="host name that the certificate is for")
    given = parser.parse_args()
    check_tools("docker-registry")
    make_certificate(given.state, given.name)
    certificate, key = given.state / "ca.crt", given.state / "server.key"
    port, configuration = free_port(), given.state / "registry.yml"
    data, bundle = (json.dumps(str(one)) for one in (given.state / "data", certificate))
    write_atomic(configuration, CONFIGURATION.format(data=data, bundle=bundle, port=port))
    # However we end, the kernel ends it too.
    program = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(configuration)]
    process = subprocess.Popen(program)
    eventually(lambda: http_answers(port, "/"), "docker-registry answers", process=process)
    application = Registry(given.state, f"http://127.0.0.1:{port}").application
    return serve(application, given, ssl_certfile=certificate, ssl_keyfile=key)


if __name__ == "__main__":
    sys.exit(main())
