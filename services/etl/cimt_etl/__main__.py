"""`python -m cimt_etl run SOURCES --api URL` fills the knowledge base once; `… serve …` does so when asked.

INGEST_KEY is the API's key for documents, ETL_KEY the one that callers of the server send; ETL_TOKENS are
`host=token` pairs for git.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from .fetch import TOTAL_SECONDS, own_names, tokens


def parser() -> argparse.ArgumentParser:
    """Both commands."""
    made = argparse.ArgumentParser(
        prog="python -m cimt_etl", description="Sources become documents of the API."
    )
    commands = made.add_subparsers(dest="command", required=True)
    for name in ("run", "serve"):
        command = commands.add_parser(name)
        command.add_argument("sources", type=Path, help="what is declared, as YAML")
        command.add_argument(
            "--api", default=os.environ.get("API_URL"), help="address of the API (API_URL)"
        )
        command.add_argument(
            "--state", type=Path, help="SQLite file of what need not be asked again"
        )
        if name == "serve":
            command.add_argument("--host", default="0.0.0.0")  # noqa: S104 - the container's own address
            command.add_argument("--port", type=int, default=8080)
            continue
        command.add_argument(
            "--accept",
            default="",
            help="sources (or `all`) whose removals are confirmed, with commas",
        )
        command.add_argument(
            "--due", action="store_true", help="only sources whose schedule has come round"
        )
        command.add_argument(
            "--patience", type=float, default=TOTAL_SECONDS, help="seconds for one request"
        )
        command.add_argument(
            "--wait", type=float, default=1800, help="seconds for another run, or a backup, to end"
        )
        command.add_argument(
            "--json", action="store_true", help="progress and report as lines of JSON"
        )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Run once: 0, or 1 when something was not read, 2 when there is nothing to run with."""
    from . import run as runs
    from .sources import load
    from .store import Api, State

    key = os.environ.get("INGEST_KEY", "")
    if not key:
        print("etl: INGEST_KEY is not set. Next: export INGEST_KEY=… (the api's)", file=sys.stderr)
        return 2
    try:
        sources = load(arguments.sources)
    except ValueError as error:
        print(f"{error}\netl: nothing was read. Next: mend {arguments.sources}", file=sys.stderr)
        return 2
    if arguments.state:
        arguments.state.parent.mkdir(parents=True, exist_ok=True)
        # A backup of the host holds it, too.
        lock = arguments.state.with_suffix(".lock").open("w")
        deadline = time.monotonic() + arguments.wait
        while not _locked(lock):
            if time.monotonic() > deadline:
                holder = f"etl: another run, or a backup, holds {arguments.state}"
                print(f"{holder}. Next: wait for its end", file=sys.stderr)
                return 2
            time.sleep(0.5)
    state = State(arguments.state)
    options = runs.Options(
        base=arguments.sources.resolve().parent,
        accept=frozenset(arguments.accept.replace(",", " ").split()),
        due=arguments.due,
        own=own_names(),
        tokens=tokens(os.environ.get("ETL_TOKENS", "")),
        patience=arguments.patience,
    )
    told = lines if arguments.json else talk
    report = asyncio.run(runs.run(sources, Api(arguments.api, key), state, options, told))
    if arguments.json:
        lines({"report": report})
    else:
        say(report)
    return 1 if report["not_read"] or report["error"] else 0


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lines(event: dict[str, Any]) -> None:
    """Say it as a line of JSON."""
    print(json.dumps(event, ensure_ascii=False), flush=True)


def talk(event: dict[str, Any]) -> None:
    """Say how far a source is; on a terminal in one line that is written over."""
    numbers = ("stored", "unchanged", "removed", "failed")
    done = sum(event[name] for name in (*numbers, "duplicates"))
    said = ", ".join(f"{event[name]} {name}" for name in numbers if event[name])
    text = f"etl: {event['source']} {event['outcome']}: {done} of {event['listed']}{': ' if said else ''}{said}"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if event["done"] else "", file=sys.stderr, flush=True)
    elif event["done"]:
        print(text, file=sys.stderr, flush=True)


def say(report: dict[str, Any]) -> None:
    """Say what came of a run."""
    for one in report["failed"]:
        print(f"etl: {one['document']}: {one['reason']}", file=sys.stderr)
    for note in report["notes"]:
        print(f"etl: {note}", file=sys.stderr)
    if report["error"]:
        print(f"etl: {report['error']}", file=sys.stderr)
    numbers = ("stored", "unchanged", "removed", "embedded", "waiting")
    said = ", ".join(f"{report[name]} {name}" for name in numbers)
    print(f"etl: {said}, {report['not_read']} failed, in {report['seconds']} s")


def main() -> int:
    """Do what the arguments say."""
    arguments = parser().parse_args()
    if not arguments.api:
        print("etl: no address of the API. Next: --api URL", file=sys.stderr)
        return 2
    if arguments.command == "run":
        return run(arguments)
    from .serve import serve

    return serve(arguments)


if __name__ == "__main__":
    sys.exit(main())
