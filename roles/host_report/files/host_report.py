#!/usr/bin/python3
"""Tell n8n's workflow Alerts what a container cannot see of this host. Run by cimt-host-report.timer.

Usage: cimt-host-report [--dry-run] [--settings FILE]

Prints the figures and posts them as {"host": {...}, "named": {...}}: the second says of some figures which disk, name
or units they are of. Percentages are of what may be used, as df counts it. Exit
code 1 and one line when they could not be posted: the next run of the timer tries again, and Alerts tells that the
reports stay away.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/cimt/host-report.json")
ITSELF = "cimt-host-report.service"
WAIT_SECONDS = 10.0
WRONG_KEY = "it has another key"
ANSWER_SECONDS = 60.0


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dry-run", action="store_true", help="print the figures, post nothing")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="default: %(default)s")
    given = parser.parse_args()
    settings = json.loads(given.settings.read_text())
    # The host's own proxy: the same certificates and the same way in as for everybody else, without a look at DNS.
    proxy = ("127.0.0.1", settings["port"])
    context = ssl.create_default_context()
    # It may be the proxy's own certificate, whose authority nobody here believes.
    if settings["ca_file"]:
        context.load_verify_locations(settings["ca_file"])
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    figures, named = look(settings, context, proxy)
    report = {"host": figures, "named": named}
    print(json.dumps(report), flush=True)
    if given.dry_run:
        return 0
    key = (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "key").read_text().strip()
    deadline = time.monotonic() + settings["patience_seconds"]
    while why := post(report, settings["n8n"], key, context, proxy):
        if WRONG_KEY in why or time.monotonic() > deadline:
            break
        time.sleep(WAIT_SECONDS)
    else:
        return 0
    print(f"host-report: not told to {settings['n8n']}: {why}", file=sys.stderr)
    return 1


def look(
    settings: dict[str, Any], context: ssl.SSLContext, proxy: tuple[str, int]
) -> tuple[dict[str, int | float], dict[str, str]]:
    """Every figure that can be had now, and whose it is where that is not the host's."""
    disks = {path: disk_used_percent(path) for path in filter(os.path.exists, settings["disks"])}
    fullest = max(disks, key=lambda path: disks[path])
    units = failed_units()
    figures: dict[str, int | float] = {
        "disk_used_percent": disks[fullest],
        "memory_used_percent": memory_used_percent(Path("/proc/meminfo").read_text()),
        "failed_units": len(units),
    }
    named = {"disk_used_percent": fullest, "failed_units": ", ".join(units)}
    if settings["nodes"] > 1:
        away, told = nodes_away(settings["nodes"], settings["docker"])
        figures["nodes_away"], named["nodes_away"] = away, told
    if settings["domains"]:
        left = {
            name: certificate_left_percent(name, context, proxy) for name in settings["domains"]
        }
        next_ = min(left, key=lambda name: left[name])
        figures["certificate_left_percent"] = left[next_]
        named["certificate_left_percent"] = next_
    ages = (("backup_age_hours", 24), ("drill_age_days", 1), ("reboot_waits_days", 1))
    for figure, in_days in ages:
        stamp = Path(settings["stamps"][figure])
        if stamp.exists():
            figures[figure] = round(days_since(stamp) * in_days, 1)
    return figures, named


def days_since(path: Path) -> float:
    """Days since a file was written."""
    return round((time.time() - path.stat().st_mtime) / 86400, 3)


def disk_used_percent(directory: str) -> int:
    """Of the blocks that anybody but root may use, or of the inodes: whichever is nearer to its end."""
    disk = os.statvfs(directory)
    used = disk.f_blocks - disk.f_bfree
    shares = [used / max(used + disk.f_bavail, 1)]
    if disk.f_files:
        shares.append(1 - disk.f_favail / disk.f_files)
    return round(100 * max(shares))


def memory_used_percent(meminfo: str) -> int:
    """What is not available, of all; `meminfo` is the text of /proc/meminfo."""
    sizes = {
        name: int(rest.split()[0])
        for name, rest in (line.split(":") for line in meminfo.splitlines())
    }
    return round(100 * (1 - sizes["MemAvailable"] / sizes["MemTotal"]))


def failed_units() -> list[str]:
    """Names of systemd's failed units; this program's own is told by its silence."""
    command = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    units = [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
    return [unit for unit in units if unit != ITSELF]


def nodes_away(declared: int, docker: str) -> tuple[int, str]:
    """How many of the declared nodes of the Swarm take no work, and what is known of them."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(ANSWER_SECONDS)
        raw.connect(docker)
        asked = http.client.HTTPConnection("docker")
        asked.sock = raw
        asked.request("GET", "/nodes", headers={"Connection": "close"})
        nodes = json.loads(asked.getresponse().read())
    away = {
        node["Description"][
            "Hostname"
        ]: f"{node['Status']['State']}, {node['Spec']['Availability']}"
        for node in nodes
        if (node["Status"]["State"], node["Spec"]["Availability"]) != ("ready", "active")
    }
    missing = max(declared - len(nodes), 0)
    told = [f"{name}: {what}" for name, what in sorted(away.items())]
    told += [f"{missing} never joined"] if missing else []
    return len(away) + missing, "; ".join(told)


def connect(domain: str, context: ssl.SSLContext, proxy: tuple[str, int]) -> ssl.SSLSocket:
    """A verified connection to the domain as the host's own proxy serves it."""
    return context.wrap_socket(
        socket.create_connection(proxy, ANSWER_SECONDS), server_hostname=domain
    )


def certificate_left_percent(domain: str, context: ssl.SSLContext, proxy: tuple[str, int]) -> int:
    """How much of the certificate's life is left; 0 when no browser would accept it now.

    A share, because lives differ from hours to a year: proxies renew with a third left.
    """
    try:
        with connect(domain, context, proxy) as connection:
            certificate = connection.getpeercert() or {}
    except OSError as error:
        print(f"host-report: certificate of {domain}: {error}", file=sys.stderr)
        return 0
    begins, ends = (
        ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter")
    )
    return max(0, round(100 * (ends - time.time()) / (ends - begins)))


def post(
    report: dict[str, Any],
    domain: str,
    key: str,
    context: ssl.SSLContext,
    proxy: tuple[str, int],
) -> str:
    """Give the report to Alerts; what went wrong, or nothing."""
    try:
        # The socket is ours, so that no name is looked up; the rest is HTTP as usual.
        client = http.client.HTTPConnection(domain)
        client.sock = connect(domain, context, proxy)
        client.request(
            "POST",
            "/webhook/alerts",
            json.dumps(report),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        answer = client.getresponse()
        answer.read()
        client.close()
    except (OSError, http.client.HTTPException) as error:
        return str(error) or repr(error)
    if answer.status in (401, 403):
        return f"HTTP {answer.status}: {WRONG_KEY}. Next: make n8n-workflows"
    return "" if answer.status == 200 else f"HTTP {answer.status}"


if __name__ == "__main__":
    sys.exit(main())
