"""`make seed`: fill the knowledge base from services/etl/sources.yaml, through the product's public address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / ".local"


def local() -> tuple[str, dict[str, str]]:
    """Address of the local droplet's API, and what it needs in the environment. Raises OSError without a droplet."""
    port = json.loads((LOCAL / "ports.json").read_text())["https"]
    key = (LOCAL / "ingest-key").read_text().strip()
    authority = LOCAL / "ca.crt"  # kept there by `make smoke`, over SSH
    authority.stat()
    return f"https://api.cimt.localhost:{port}", {
        "INGEST_KEY": key,
        "SSL_CERT_FILE": str(authority),
    }


def main() -> int:
    """Exit code of the run; 1 when there is nothing to run against."""
    environment = os.environ.get("ENV", "local")
    api, values = (
        f"https://{os.environ.get('API_DOMAIN', '')}",
        {"OWN_NAMES": os.environ.get("API_DOMAIN", "")},
    )
    if environment == "local":
        try:
            api, values = local()
        except OSError as error:
            print(
                f"seed: {error.filename} is not there. Next: make up && make smoke", file=sys.stderr
            )
            return 1
    elif missing := [name for name in ("API_DOMAIN", "INGEST_KEY") if not os.environ.get(name)]:
        print(
            f"seed: not set: {', '.join(missing)}. Next: docs/setup.md says where each comes from",
            file=sys.stderr,
        )
        return 2
    LOCAL.mkdir(exist_ok=True)
    command = ["-m", "cimt_etl", "run", "services/etl/sources.yaml", "--api", api]
    command += [
        "--state",
        f".local/etl-{environment}.sqlite",
        "--accept",
        os.environ.get("ACCEPT", ""),
    ]
    environ = {**os.environ, **values, "PYTHONPATH": "services/etl"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
