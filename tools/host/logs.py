"""`make logs`: what a service or a unit of an environment's host has written.

usage: python -m tools.host.logs     ENV, SERVICE, SINCE and FOLLOW are read from the environment

SERVICE is an app (api), a part of the panel (traefik, easypanel) or a unit of systemd (cimt-backup); without it, what
there is. SINCE is a span such as 30m, 2h or 1d (1h). FOLLOW=1 goes on until Ctrl-C.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from tools.host.way_in import NoWayIn, way_in

SPAN = re.compile(r"([1-9]\d{0,4})([smhd])")
NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,127}")
# Root's shell runs it there: $1 name, $2 span in seconds, $3 how else or nothing, $4 what names all that there is.
THERE = """
for service in "cimt_$1" "$1"; do
  if docker service inspect "$service" >/dev/null 2>&1; then
    exec docker service logs --timestamps --no-task-ids --since "$2s" $3 "$service" 2>&1
  fi
done
unit=$1; case $unit in *.*) ;; *) unit=$1.service ;; esac
if systemctl cat "$unit" >/dev/null 2>&1; then
  exec journalctl --no-pager --output short-iso --since "-$2s" $3 --unit "$unit"
fi
echo "logs: the host has no service and no unit '$1', but:" >&2
sh -c "$4" >&2
exit 2
"""
NAMES = (
    "docker service ls --format '{{.Name}} {{.Replicas}}' | sed 's/^cimt_//'; "
    "systemctl list-units --all --plain --no-legend 'cimt-*' docker.service ssh.service | "
    'awk \'{print "  " $1 " " $3}\''
)


class Refused(ValueError):
    """One line that says what to type instead."""


def command(name: str, since: str, follow: bool) -> str:
    """What the host's shell shall run. Raises Refused."""
    if not name:
        return f"sudo -n sh -c {shlex.quote(NAMES)}"
    if not NAME.fullmatch(name):
        raise Refused(f"SERVICE={name!r} is no name. Next: make logs ENV=production names all")
    match = SPAN.fullmatch(since or "1h")
    if not match:
        raise Refused(f"SINCE={since!r} is no span. Next: SINCE=30m, 2h or 1d")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    arguments = ["logs", name, str(seconds), "--follow" if follow else "", NAMES]
    return f"sudo -n sh -c {shlex.quote(THERE)} {shlex.join(arguments)}"


def main() -> int:
    """Command line; returns the exit code."""
    environment = os.environ.get("ENV", "local")
    follow = os.environ.get("FOLLOW", "") not in ("", "0")
    try:
        there = command(os.environ.get("SERVICE", ""), os.environ.get("SINCE", ""), follow)
        # A terminal over there too: else what follows goes on there when nobody reads any more.
        with way_in(environment, os.environ, tty=follow and sys.stdin.isatty()) as ssh:
            return subprocess.run([*ssh, there], check=False).returncode
    except (NoWayIn, Refused) as error:
        print(f"logs: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
