"""Memory of api, n8n and etl on the local droplet (2 GB): at rest, and while Seed ETL takes in 1,000 documents.

Usage: python -m bench.n8n.droplet [--documents 1000]      after `N8N=1 make up`

The documents come from a stand-in repository on this machine, through the etl, into the API and its database. At the
end Seed ETL has its declared sources again, and what it took in is removed by it. Figures are MB as the kernel counts
them:
`used` is what cannot be dropped (anonymous memory), `with cache` is all that counts against the container's limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from local.clouds import CLOUDS
from local.settings import load
from local.waiting import eventually, free_port
from testbed.droplet import call_webhook, make, on_droplet

PARAGRAPH = (
    "Documents of this size are usual for a help centre, and this sentence fills them. " * 40
)
LOOK = r"""
for app in api n8n etl; do
  id=$(docker ps -q --no-trunc --filter name=cimt_$app | head -1)
  at=/sys/fs/cgroup/system.slice/docker-$id.scope
  echo $app $(sed -n 's/^anon //p' $at/memory.stat) $(cat $at/memory.current) $(cat $at/memory.swap.current)
done
echo host $(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo)
"""


def look() -> dict[str, list[float]]:
    """MB by app (anonymous, all, in swap), and what the host has available."""
    rows = [line.split() for line in on_droplet(LOOK).splitlines()]
    return {
        name: [float(value) / (1e3 if name == "host" else 1e6) for value in values]
        for name, *values in rows
    }


def show(title: str, seen: list[dict[str, list[float]]]) -> None:
    """One line for each app: its highest figures."""
    for app in ("api", "n8n", "etl"):
        used, cached, swap = (max(one[app][place] for one in seen) for place in range(3))
        print(
            f"{title:<22} {app:<4} used {used:5.0f}  with cache {cached:5.0f}  in swap {swap:4.0f} MB"
        )
    least = min(one["host"][0] for one in seen)
    print(f"{title:<22} host has {least:.0f} MB available at the least", flush=True)


def watched(title: str) -> None:
    """Run Seed ETL and look every few seconds."""
    seen: list[dict[str, list[float]]] = []
    end = threading.Event()

    def watch() -> None:
        while not end.is_set():
            seen.append(look())
            end.wait(3)

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.monotonic()
    try:
        report = call_webhook("seed-etl")
    finally:
        end.set()
        thread.join()
    seconds = time.monotonic() - started
    counts = {name: report[name] for name in ("stored", "unchanged", "removed", "embedded")}
    print(f"{title:<22} {seconds:.0f} s, {counts}, failed: {report['failed'][:3]}")
    show(title, seen)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.n8n.droplet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--documents", type=int, default=1000)
    number = parser.parse_args().documents
    if not (load().state / "build" / "n8n.json").exists():
        print("bench: the droplet has no n8n. Next: N8N=1 make up", file=sys.stderr)
        return 1
    show("at rest", [look() for _ in range(3)])
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "docs")
        files.mkdir()
        for one in range(number):
            (files / f"{one}.md").write_text(f"# Page {one}\n\nNumber {one}. {PARAGRAPH}\n")
        port = free_port()
        command = [sys.executable, "-m", "local.github", "--port", str(port), "--folder", folder]
        with subprocess.Popen(command) as server:
            try:
                eventually(lambda: CLOUDS["github"].answers(port), "the documents", process=server)
                at = f"10.0.2.2:{port}"
                source = {
                    "name": "bench",
                    "kind": "git",
                    "repository": f"http://{at}/example/bench",
                }
                override = Path(folder, "override.json")
                override.write_text(json.dumps({"sources_given": [{**source, "allow": [at]}]}))
                if make("services", f"ARGS=-e @{override}").returncode:
                    return 1
                watched("first run")
                watched("unchanged")
            finally:
                server.terminate()
    if make("services").returncode:
        return 1
    watched("back, and removed")
    show("at rest", [look() for _ in range(3)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
