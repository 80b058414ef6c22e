"""Seed ETL on the real n8n: 1,000 documents for the first time, again unchanged, and with one in a hundred changed.

Usage: python -m bench.n8n.etl [--documents 1000]

Once as the pages of a sitemap, which have to be asked each (304), and once as Markdown files of a git tree, whose
listing already tells what changed. The API and Postgres are real; the model is the stand-in, which embeds at once, so
the first run is shorter than in production and the ratio is a lower bound. Memory is that of n8n and its runner.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed import api as harness
from testbed.api import Model
from testbed.n8n.outside import INGEST_KEY, Outside
from testbed.n8n.world import World, running

PARAGRAPH = (
    "Documents of this size are usual for a help centre, and this sentence fills them up. " * 8
)


def pages(outside: Outside, number: int, version: Callable[[int], int]) -> dict[str, Any]:
    """A sitemap with so many pages."""
    for one in range(number):
        body = f"<html><title>{one}</title><main><h1>{one}</h1><p>{version(one)} {PARAGRAPH * 6}</p></main></html>"
        outside.pages[f"/page/{one}"] = ("text/html", body.encode())
    urls = "".join(f"<url><loc>{outside.url}/page/{one}</loc></url>" for one in range(number))
    outside.pages["/sitemap.xml"] = ("application/xml", f"<urlset>{urls}</urlset>".encode())
    return {"name": "site", "kind": "sitemap", "url": f"{outside.url}/sitemap.xml"}


def tree(outside: Outside, number: int, version: Callable[[int], int]) -> dict[str, Any]:
    """A git tree with so many Markdown files."""
    files = [
        {"path": f"{one}.md", "type": "blob", "sha": f"{one}-{version(one)}"}
        for one in range(number)
    ]
    for one in range(number):
        text = f"# {one}\n\n{version(one)} {PARAGRAPH * 6}"
        outside.pages[f"/raw/a/b/main/{one}.md"] = ("text/plain", text.encode())
    listing = json.dumps({"tree": files}).encode()
    outside.pages["/api/repos/a/b/git/trees/main"] = ("application/json", listing)
    url = outside.url
    return {
        "name": "git",
        "kind": "git",
        "repository": "a/b",
        "api": f"{url}/api",
        "files": f"{url}/raw",
    }


def megabytes(process: int) -> float:
    """Resident memory of a process and its children."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True
    )
    rows = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    return sum(rss for pid, parent, rss in rows if process in (pid, parent)) / 1024


def measure(
    world: World, model: Model, name: str, make: Callable[..., dict[str, Any]], number: int
) -> None:
    """Three runs of one kind of source, printed."""
    runs: dict[str, Callable[[int], int]] = {
        "first": lambda _: 1,
        "unchanged": lambda _: 1,
        "1 % changed": lambda one: 2 if one % 100 == 0 else 1,
    }
    first = 0.0
    for what, version in runs.items():
        source = make(world.outside, number, version)
        if world.settings["seed-etl"].get("sources") != [source]:
            world.configure("seed-etl", sources=[source], at_once=20)
        world.outside.forget()
        model.reset()
        started = time.monotonic()
        report = world.call("seed-etl")
        seconds = time.monotonic() - started
        first = first or seconds
        process = world.n8n.process.pid if world.n8n.process else 0
        print(
            f"{name:<8} {what:<12} {seconds:6.1f} s (first / this: {first / seconds:5.1f})  "
            f"stored {report['stored']:5}  calls for embeddings {model.calls('/v1/embeddings'):5}  "
            f"requests to the site {len(world.outside.seen):5}  failed {len(report['failed'])}  "
            f"memory {megabytes(process):5.0f} MB",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1000)
    number = parser.parse_args().documents
    with contextlib.ExitStack() as run:
        folder = Path(run.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # Postgres runs as somebody else
        clouds = run.enter_context(harness.clouds(folder))
        environment = clouds.environment() | {"INGEST_KEY": INGEST_KEY}
        api = run.enter_context(harness.api(folder / "api", environment, until="/readyz"))
        (folder / "n8n").mkdir()
        world = run.enter_context(running(folder / "n8n"))
        world.configure("seed-etl", api=api.url)
        measure(world, clouds.model, "sitemap", pages, number)
        measure(world, clouds.model, "git", tree, number)


if __name__ == "__main__":
    main()
