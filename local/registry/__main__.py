"""`python -m local.registry`: serve the stand-in by TLS on loopback until stopped, with its own `docker-registry`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from local.certificate import make_certificate
from local.clouds import http_answers
from local.serving import arguments, serve
from local.settings import check_tools, write_atomic
from local.waiting import eventually, free_port

from .app import REALM, SERVICE, Registry

CONFIGURATION = f"""\
version: 0.1
log: {{{{level: error, accesslog: {{{{disabled: true}}}}}}}}
storage: {{{{filesystem: {{{{rootdirectory: {{data}}}}}}}}}}
http: {{{{addr: "127.0.0.1:{{port}}", relativeurls: true}}}}
auth: {{{{token: {{{{realm: {REALM}, service: {SERVICE}, issuer: {SERVICE}, rootcertbundle: {{bundle}}}}}}}}}}
"""


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
