"""Seed ETL: 1,000 documents for the first time, again unchanged, and with one in a hundred changed.

Usage: python -m bench.etl [--documents 1000]

Once as the pages of a sitemap without times, which have to be asked each (304), and once as Markdown files of a git
repository, whose newest commit already tells. API and Postgres are real; the model is the stand-in, which embeds at
once, so the first run is shorter than in production and the ratio is a lower bound. The program has the packages of
its image alone, compiled ahead as there: half of an unchanged run is its start. Memory is that of all processes of the
run, what they share counted once (Pss), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from local.cache import key, made
from local.cache import run as step
from local.settings import ROOT, cache
from testbed import api as harness
from testbed.site import Site

PARAGRAPH = (
    "Documents of this size are usual for a help centre, and this sentence fills them up. " * 48
)


def megabytes(process: int) -> float:
    """Memory of a process and all that it started; 0 of what has just ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0.0
    own = int(text.partition("\nPss:")[2].split()[0]) / 1024
    return own + sum(megabytes(int(one)) for one in below)


def installed() -> Path:
    """A Python with what the image of the ETL has, compiled; made once, in ~/.cache/cimt."""
    lock = ROOT / "services/etl/requirements.txt"
    inputs = {"lock": lock.read_text(), "python": sys.version}

    def make(folder: Path) -> None:
        step("bench", ["uv", "venv", "-q", "--clear", "--python", sys.executable, str(folder)])
        sync = ["uv", "pip", "sync", "-q", "--require-hashes", "--compile-bytecode", str(lock)]
        step("bench", [*sync, "--python", str(folder / "bin/python")])

    return made("bench", cache() / "bench-etl" / key(inputs), inputs, make) / "bin/python"


def run(
    python: Path, source: dict[str, Any], api: str, folder: Path
) -> tuple[dict[str, Any], float, float]:
    """The report of one run, its seconds, and the most memory seen, in MB."""
    file = folder / f"{source['name']}.yaml"
    file.write_text(yaml.safe_dump([source]))
    command = [str(python), "-m", "cimt_etl", "run", str(file), "--json"]
    command += ["--api", api, "--state", str(folder / f"{source['name']}.sqlite")]
    keys = {"INGEST_KEY": harness.INGEST_KEY, "PYTHONPATH": str(folder / "program")}
    started, most = time.monotonic(), 0.0
    with (folder / "output").open("w+") as output:
        with subprocess.Popen(command, env=os.environ | keys, stdout=output) as process:
            while process.poll() is None:
                most = max(most, megabytes(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        seconds = time.monotonic() - started
        output.seek(0)
        return json.loads(output.readlines()[-1])["report"], seconds, most


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1000)
    number = parser.parse_args().documents
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # Postgres runs as somebody else
        clouds = stack.enter_context(harness.clouds(folder))
        environment = clouds.environment()
        api = stack.enter_context(harness.api(folder / "api", environment, until="/readyz"))
        files = folder / "files"
        files.mkdir()
        git = stack.enter_context(harness.stand_in(folder, "github", "--folder", str(files)))
        python = installed()
        shutil.copytree(ROOT / "services/etl/cimt_etl", folder / "program/cimt_etl")
        compileall.compile_dir(folder / "program", quiet=1)
        site = stack.enter_context(contextlib.closing(Site()))
        site.pages["/sitemap.xml"] = site.sitemap(*(f"/page/{one}" for one in range(number)))

        def page(one: int, text: str) -> None:
            title = f"<title>{one}</title>"
            site.pages[f"/page/{one}"] = f"<html>{title}<main><h1>{one}</h1><p>{text}</p></main>"

        def markdown(one: int, text: str) -> None:
            (files / f"{one}.md").write_text(f"# {one}\n\n{text}\n")

        sources: dict[str, tuple[dict[str, Any], Callable[[int, str], None]]] = {
            "sitemap": ({"url": f"{site.url}/sitemap.xml", "allow": [site.host]}, page),
            "git": ({"repository": f"{git}/a/b", "allow": [git.partition("//")[2]]}, markdown),
        }
        for kind, (source, write) in sources.items():
            first = 0.0
            for what, changed in (
                ("first", number),
                ("unchanged", 0),
                ("1 % changed", number // 100),
            ):
                for one in range(changed):
                    write(one, f"Changed for the run “{what}” of {one}. {PARAGRAPH}")
                site.seen.clear()
                clouds.model.reset()
                told, seconds, most = run(
                    python, {"name": kind, "kind": kind, **source}, api.url, folder
                )
                first = first or seconds
                print(
                    f"{kind:<8} {what:<12} {seconds:6.1f} s (first / this: {first / seconds:5.1f})  "
                    f"stored {told['stored']:5}  calls for embeddings "
                    f"{clouds.model.calls('/v1/embeddings'):5}  requests to the site "
                    f"{len(site.seen):5}  failed {told['not_read']}  memory {most:4.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
