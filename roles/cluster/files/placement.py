"""Keep apps on the nodes that services/compose.yaml declares for them.

The panel has no field for that, and each deploy of its own writes a service without it. So whoever deploys, the
service gets its constraints back within a moment: Swarm then moves only tasks that are where they may not be. An app
with a volume that is placed wrongly meanwhile starts nothing: its folder is on the manager alone, and Docker refuses
to mount what is not there.

What is wanted stands in /var/lib/cimt/placement.json (or the file that is named): {service: [constraint]}, written by
each converge of the apps. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

WANTED = "/var/lib/cimt/placement.json"
SOCKET = "/var/run/docker.sock"
LOOK_AGAIN = 60  # seconds: a converge may have written another file
PAUSE = 5  # seconds after Docker did not answer
TRIES = 5  # a panel's deploy and Swarm itself write the same service


class Engine(http.client.HTTPConnection):
    """One connection to Docker."""

    def __init__(self, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)

    def connect(self) -> None:
        """To its Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded answer. Raises OSError, http.client.HTTPException."""
        text = None if body is None else json.dumps(body)
        self.request(method, path, text, {"Content-Type": "application/json"})
        answer = self.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def settle(wanted: dict[str, list[str]]) -> None:
    """Write the constraints of every service that has others. Raises OSError, http.client.HTTPException, ValueError."""
    for name, constraints in wanted.items():
        for _ in range(TRIES):
            engine = Engine(30)
            try:
                status, service = engine.ask("GET", f"/services/{urllib.parse.quote(name)}")
                if status == 404:
                    break
                template = service["Spec"]["TaskTemplate"]
                placement = template.get("Placement") or {}
                if sorted(placement.get("Constraints") or []) == sorted(constraints):
                    break
                template["Placement"] = {**placement, "Constraints": constraints}
                # Docker keeps the registry's password of the specification before.
                place = f"/services/{service['ID']}/update?version={service['Version']['Index']}"
                status, said = engine.ask("POST", place, service["Spec"])
            finally:
                engine.close()
            told = "kept" if status == 200 else f"refused ({status}): {said}"
            print(f"{name}: {', '.join(constraints) or 'any node'}: {told}", flush=True)
            if status == 200:
                break
            time.sleep(0.2)


def main() -> None:
    """Look at every change of a service, for ever."""
    path = Path((*sys.argv[1:], WANTED)[0])
    about = urllib.parse.urlencode({"filters": json.dumps({"type": ["service"]})})
    while True:
        events = Engine(LOOK_AGAIN)
        try:
            # Listening before looking: nothing happens between the two.
            events.request("GET", f"/events?{about}")
            lines = events.getresponse()
            while True:
                settle(json.loads(path.read_text()) if path.exists() else {})
                if not lines.readline():
                    break
        except TimeoutError:
            pass  # nothing happened
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            print(f"again in {PAUSE} s: {type(error).__name__}: {error}", flush=True)
            time.sleep(PAUSE)
        finally:
            events.close()


if __name__ == "__main__":
    main()
