"""`make checklist`: the product's fifteen promises, each with its proof by a command, in Portuguese.

usage: python -m tools.checklist [--strict]     ENV names the environment; --strict: exit code 1 when a row is ❌

The rows are tools/checklist.yaml. Nothing is assumed and nothing is changed: a proof that cannot be run here is ❌,
with the reason. All are run at the same time; the droplet is asked over one connection.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import yaml

from tools.database.address import Refused, database_url
from tools.host import door
from tools.host.way_in import NoWayIn, way_in
from tools.receipt import cases
from tools.step import ROOT, hidden, note, secret_values

ENV = os.environ.get("ENV", "local")
DOOR = os.environ.get("DROPLET_DOOR", "")
SECONDS = 240  # for the slowest proof, on an emulated droplet
MARK = "--- proof "
Proven = tuple[bool, str]  # whether it holds, and what was seen


def run(command: list[str], text: str = "", **environment: str) -> tuple[int, str]:
    """Exit code and output, both streams together, of a command that gets ``text``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        done = subprocess.run(
            command,
            input=text,
            cwd=ROOT,
            env=os.environ | {"PATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, f"{command[0]}: {type(error).__name__}"
    return done.returncode, done.stdout.strip()


def judged(code: int, seen: str, expect: str = "") -> Proven:
    """A command's result: as expected, or without a failure; and the line of its output that says it."""
    lines = seen.splitlines() or [f"código de saída {code}"]
    return code == 0 and re.search(expect, seen) is not None, lines[-1 if code else 0]


def droplet(commands: list[str]) -> list[tuple[int, str]]:
    """What each command says on the droplet, as root."""
    if DOOR:  # the host has them, packed by `make provision`: a pipeline's key runs no others
        try:
            with way_in(ENV, {**os.environ, "DROPLET_USER": DOOR}) as ssh:
                code, told = run([*ssh, "cimt-door"], door.request("checklist"))
            return [(int(one), str(seen)) for one, seen in json.loads(told)]
        except NoWayIn as error:
            return [(2, f"sem acesso ao droplet: {error}")] * len(commands)
        except (ValueError, TypeError):
            return [(code or 1, (told.splitlines() or ["ssh"])[-1])] * len(commands)
    script = "".join(
        f"echo; echo '{MARK}'; (\n{command}\n) 2>&1 </dev/null; code=$?; echo; echo $code\n"
        for command in commands
    )
    try:
        with way_in(ENV, os.environ) as ssh:
            code, told = run([*ssh, "sudo -n bash -s"], script)
    except NoWayIn as error:
        return [(2, f"sem acesso ao droplet: {error}")] * len(commands)
    answers = told.split(MARK)[1:]
    if code or len(answers) != len(commands):
        return [(code or 1, (told.splitlines() or ["ssh"])[-1])] * len(commands)
    parts = [answer.strip().rpartition("\n") for answer in answers]
    return [(int(last), seen.strip()) for seen, _, last in parts]


def smoke() -> Path | str:
    """The report of a smoke test of now, which wants the revision that main has; or why there is none."""
    revision = os.environ.get("REVISION", "")
    if not revision:
        # What only changes words is not released (paths-ignore of deploy.yml).
        words = [":(exclude)docs", ":(exclude,glob)**/*.md", ":(exclude)LICENSE"]
        main = (
            "origin/main"
            if run(["git", "rev-parse", "-q", "--verify", "origin/main"])[0] == 0
            else "HEAD"
        )
        log = ["git", "log", "-1", "--first-parent", "--format=%H", main, "--", ".", *words]
        revision = run(log)[1]
    report = ROOT / f".local/reports/smoke-{ENV}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/smoke"]
    told = run([*command, f"--junitxml={report}"], REVISION=revision)[1]
    return report if report.exists() else (told.splitlines() or ["smoke não começou"])[-1]


def reported(report: Path | str, pattern: str, fresh: bool) -> Proven:
    """Whether every test of this pattern is in the report and passed."""
    if isinstance(report, str):
        return False, report
    if not report.exists():
        return False, f"sem relatório: make audit ENV={ENV}"
    when, found = cases(report)
    tests = {name: bad for name, bad in found.items() if re.search(pattern, name)}
    if not tests:
        return False, f"nenhum teste {pattern} neste ambiente"
    if bad := [f"{name.rpartition('.')[2]}: {told}" for name, told in tests.items() if told]:
        return False, f"{len(bad)} de {len(tests)} testes falham: {bad[0]}"
    age = datetime.datetime.now().astimezone() - datetime.datetime.fromisoformat(when).astimezone()
    if fresh and age > datetime.timedelta(days=1):
        return False, f"relatório de {when[:16]}, velho demais: make audit ENV={ENV}"
    return True, f"{len(tests)} testes passam ({when[:16]})"


def database(query: str) -> Proven:
    """A query's answer: whether it holds, and what was seen."""
    try:
        url = database_url()
        with psycopg.connect(
            url, connect_timeout=20, options="-c statement_timeout=20s"
        ) as connection:
            connection.read_only = True
            row = connection.execute(query.encode()).fetchone() or (False, "sem resposta")
        return row[0] is True, str(row[1])
    except (Refused, psycopg.Error) as error:
        return False, (str(error).splitlines() or [type(error).__name__])[0]


def table(rows: list[dict[str, Any]]) -> tuple[str, int]:
    """The table, and how many rows are ❌."""
    on_droplet = [proof for row in rows for proof in row["proofs"] if "droplet" in proof]
    with ThreadPoolExecutor(8) as pool:
        asked = pool.submit(droplet, [proof["droplet"] for proof in on_droplet])
        smoked = pool.submit(smoke)
        audited = ROOT / f".local/reports/audit-{ENV}.xml"

        def prove(proof: dict[str, str]) -> Proven:
            match proof:
                case {"audit": pattern}:
                    return reported(audited, pattern, fresh=True)
                case {"smoke": pattern}:
                    return reported(smoked.result(), pattern, fresh=False)
                case {"database": query}:
                    return database(query)
                case {"here": command}:
                    return judged(*run(["bash", "-c", command]))
                case {"droplet": _}:
                    found = asked.result()[[one is proof for one in on_droplet].index(True)]
                    return judged(*found, proof.get("expect", ""))
            raise ValueError(f"no such proof: {proof}")

        proven: list[list[Future[Proven]]] = [
            [pool.submit(prove, proof) for proof in row["proofs"]] for row in rows
        ]
        results = [[one.result() for one in futures] for futures in proven]
    lines, bad = ["| | critério | prova |", "|---|---|---|"], 0
    for row, proofs in zip(rows, results, strict=True):
        holds = all(good for good, _ in proofs)
        bad += not holds
        seen = "; ".join(dict.fromkeys(told for good, told in proofs if good == holds))
        seen = " ".join(str(hidden(seen, secret_values())).replace("|", "/").split())
        lines.append(f"| {'✅' if holds else '❌'} | {row['row']} | {seen[:240]} |")
    return "\n".join(lines), bad


def main() -> int:
    """Command line; returns the exit code."""
    rows = yaml.safe_load((ROOT / "tools/checklist.yaml").read_text())
    text, bad = table(rows)
    note(table=text)
    print(f"Checklist de {ENV}: {len(rows) - bad} de {len(rows)}\n\n{text}")
    return int(bool(bad) and "--strict" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
