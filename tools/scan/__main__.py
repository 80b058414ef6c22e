"""`make scan`: what Lynis, OpenSCAP, ssh-audit, SSLyze and a knock on every port say, held against waivers.yaml.

Minutes, beside `make audit`, which takes seconds and asks whether the droplet is as declared; this asks whether what
is declared is good. Nothing stays on the host. `.local/reports/scan-ENV.html` is for people and says what changed since
the last one; `.json` and `.xml` (JUnit) are for programs.
Exit codes: 0 every finding is explained, 1 one is not, or a figure is too low, 2 nothing could be scanned.
"""

from __future__ import annotations

import asyncio
import datetime
import fnmatch
import html
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from local.droplet import machine
from local.settings import LocalError, load
from tools.declared import Declared, NotDeclared

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REPORTS = ROOT / ".local/reports"
AT_ONCE = 512  # ports that are knocked at together
SILENCE = 3.0  # seconds without an answer: nobody is there

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#1b2733}
table{border-collapse:collapse;width:100%} h2{margin-top:2em} .big{font-size:3em;font-weight:600;color:COLOUR}
td,th{text-align:left;vertical-align:top;padding:.4em .8em .4em 0;border-bottom:1px solid #dde3ea}
"""


@dataclass(frozen=True)
class Finding:
    """One thing a tool says. `about` is the setting, file or port; `why` the reason of its waiver, or empty."""

    tool: str
    test: str
    about: str
    text: str
    why: str = ""

    @property
    def key(self) -> str:
        """What it is told apart by, from one scan to the next."""
        return f"{self.tool} {self.test} {self.about}".strip()


def main() -> int:
    """Returns the exit code."""
    environment = os.environ.get("ENV", "local")
    try:
        declared = Declared(environment)
        # From here first: what cannot be reached is known before minutes are spent on the host.
        spoken = [one for name in names(declared) for one in tls(name, declared, environment)]
        ports, scanned = knock(declared, environment)
        told = ask(declared)
    except (NotDeclared, OSError) as error:
        print(f"scan: {error}", file=sys.stderr)
        return 2
    facts = lynis_facts(told["lynis"])
    rules = yaml.safe_load((HERE / "waivers.yaml").read_text())
    broken, kept, profile = openscap(told["openscap"])
    found = [*lynis(told["lynis"]), *broken, *ssh_audit(told["ssh-audit"]), *ports, *spoken]
    findings = [waived(one, rules["waivers"]) for one in found]
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"scan-{environment}"
    before = (
        json.loads(path.with_suffix(".json").read_text())
        if path.with_suffix(".json").exists()
        else {}
    )
    result = {
        "env": environment,
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "index": int(facts["hardening_index"]),
        "least": rules["lynis_index"],
        "lynis": facts.get("lynis_version", ""),
        "kept": kept,
        "kept_least": rules["openscap_percent"],
        "openscap": profile,
        "ports": scanned,
        "findings": [{**asdict(one), "key": one.key} for one in findings],
    }
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".xml").write_bytes(junit(result))
    path.with_suffix(".html").write_text(page(result, before))
    return summary(result, before, path.with_suffix(".html"))


# -- what is asked ------------------------------------------------------------------------------------


def ask(declared: Declared) -> dict[str, str]:
    """What each tool says on the host, by name. Raises NotDeclared when they could not be run there."""
    where = declared.hostspec()
    command = f"ssh {declared.ssh_arguments()} {shlex.quote(where)} sudo -n sh -s -- {declared['firewall_ssh_port']}"
    print("scan: Lynis, OpenSCAP and ssh-audit on the host, some minutes …", flush=True)
    script = (HERE / "host.sh").read_text()
    done = subprocess.run(shlex.split(command), input=script, text=True, capture_output=True)
    parts = re.split(r"^== (\S+)\n", done.stdout, flags=re.MULTILINE)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    if done.returncode or "end" not in told:
        last = " ".join(done.stderr.split())[-400:] or f"exit code {done.returncode}"
        raise NotDeclared(f"the tools did not run on {where}: {last}")
    return told


def knock(declared: Declared, environment: str) -> tuple[list[Finding], str]:
    """Ports that answer and nobody declared, or the other way round, and which were tried. Raises NotDeclared.

    A local droplet is asked by a neighbour on a link of its own; one in the world from here, where this machine has
    no way by IPv6 by IPv4 alone.
    """
    tcp = {declared["firewall_ssh_port"], *declared["firewall_public_tcp_ports"]}
    udp = set(declared["firewall_public_udp_ports"])
    if environment == "local":
        print("scan: every TCP port and the usual UDP ports, as a neighbour …", flush=True)
        answered = from_next_door()
        tried = "all 65,535 and the usual of UDP, over IPv4 and IPv6, by a neighbour"
    else:
        print("scan: all TCP ports from here …", flush=True)
        host = str(declared["ansible_host"])
        answered = {"tcp 4": list(asyncio.run(answering(host, range(1, 65536))))}
        tried = "all 65,535 over IPv4, from here"
    return unexpected(answered, {"tcp": tcp, "udp": udp}), tried


def from_next_door() -> dict[str, list[int]]:
    """What answers a neighbour of the local droplet: ports by protocol and family. Raises NotDeclared."""
    program = [ROOT / ".venv/audit/bin/python", HERE / "neighbour.py"]
    try:
        with machine.neighbour(load(running=True)) as link:
            done = subprocess.run([*program, *link], capture_output=True, text=True)
    except (LocalError, OSError, TimeoutError) as error:
        raise NotDeclared(
            f"the droplet has no neighbour: {error}. Next: make down, make up"
        ) from None
    if done.returncode:
        raise NotDeclared(f"the neighbour ended: {' '.join(done.stderr.split())[-300:]}")
    answered: dict[str, list[int]] = json.loads(done.stdout)
    return answered


def unexpected(answered: dict[str, list[int]], wanted: dict[str, set[int]]) -> list[Finding]:
    """What answers and should not, by protocol and family (`tcp 4`); of TCP, also what should and does not."""
    found = []
    for way, ports in answered.items():
        kind = way.partition(" ")[0]
        told = [(port, "answers, and no role opened it") for port in set(ports) - wanted[kind]]
        if kind == "tcp":  # over UDP a good port may be silent
            told += [(port, "does not answer") for port in wanted[kind] - set(ports)]
        found += [Finding("ports", way, str(port), text) for port, text in sorted(told)]
    return found


def names(declared: Declared) -> list[str]:
    """The public names that are served by HTTPS."""
    domains = (domain for app in declared.apps() for domain in app["domains"])
    return sorted({str(domain["host"]) for domain in domains if domain["https"]})


def tls(name: str, declared: Declared, environment: str) -> list[Finding]:
    """What a name speaks that Mozilla's recommendation for servers ("intermediate") has not. Raises NotDeclared."""
    print(f"scan: TLS of {name} …", flush=True)
    door = (name, 443) if declared["proxied"] else declared.door(443)
    if door is None:
        raise NotDeclared(
            "its HTTPS cannot be reached from here. Next: CONNECT_TO in docs/setup.md"
        )
    command = [
        str(ROOT / ".venv/audit/bin/python"),
        "-m",
        "sslyze",
        "--mozilla_config=intermediate",
    ]
    authority = ROOT / ".local/ca.crt"  # the local proxy's, kept there by `make smoke`
    if environment == "local" and authority.exists():
        command.append(f"--certinfo_ca_file={authority}")
    done = subprocess.run(
        [*command, f"--sni={name}", f"{door[0]}:{door[1]}"], text=True, capture_output=True
    )
    _, compared, told = done.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")
    if not compared or not re.search(r": (OK|FAILED) - ", told):
        last = " ".join((done.stderr or done.stdout).split())[-300:]
        raise NotDeclared(f"SSLyze has no answer for {name}: {last}")
    return sslyze(name, told)


async def answering(host: str, ports: Iterable[int], silence: float = SILENCE) -> set[int]:
    """Those of the ports that accept a connection or refuse it themselves: silent is what nobody reaches."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(port: int) -> int | None:
        async with gate:
            try:
                async with asyncio.timeout(silence):
                    _, writer = await asyncio.open_connection(host, port)
            except ConnectionRefusedError:
                return port
            except OSError:
                return None
            writer.close()
            return port

    return {port for port in await asyncio.gather(*map(one, ports)) if port is not None}


# -- what it means --------------------------------------------------------------------------------------


def lynis_facts(report: str) -> dict[str, str]:
    """The single values of Lynis' report file."""
    lines = (line.partition("=") for line in report.splitlines())
    return {name: value for name, _, value in lines if name and not name.endswith("[]")}


def lynis(report: str) -> list[Finding]:
    """Warnings and suggestions of Lynis' report file; one that says "one or more settings" becomes one for each."""
    rows = [line.partition("=")[::2] for line in report.splitlines()]
    single: dict[str, list[tuple[str, str]]] = {}
    for name, value in rows:
        if name == "details[]":
            test, _, text, *_ = value.split("|")
            said = dict(part.partition(":")[::2] for part in text.split(";") if ":" in part)
            wants = f"is {said.get('value', '?')}, Lynis wants {said.get('prefval', '?')}"
            single.setdefault(test, []).append((said.get("field", ""), wants))
    found: list[Finding] = []
    detailed = frozenset(single)
    for name, value in rows:
        if name not in ("warning[]", "suggestion[]"):
            continue
        test, text, about, *_ = value.split("|")
        about = "" if about == "-" else about
        if test in single:
            found += [Finding("lynis", test, field, wants) for field, wants in single.pop(test)]
        elif test not in detailed:
            found.append(Finding("lynis", test, about, text))
    return list(dict.fromkeys(found))


def openscap(text: str) -> tuple[list[Finding], int, str]:
    """Rules that are not kept, the percentage of the applicable ones that are, and the name of content and profile."""
    profile, *lines = text.splitlines()
    rows = [line.split("|", 2) for line in lines]
    kept = sum(result == "pass" for _, result, _ in rows)
    broken = [
        Finding("openscap", result, rule, html.unescape(title))
        for rule, result, title in rows
        if result in ("fail", "error", "unknown")
    ]
    return broken, 100 * kept // max(kept + len(broken), 1), profile


def ssh_audit(text: str) -> list[Finding]:
    """Lines of ssh-audit that carry a warning or a failure."""
    found = []
    for line in text.splitlines():
        if level := re.search(r"\[(warn|fail)\] (.*)", line):
            name = re.match(r"\((\w+)\) (\S+)", line)
            found.append(Finding("ssh-audit", level[1], name[2] if name else "", level[2].strip()))
    return found


def sslyze(name: str, text: str) -> list[Finding]:
    """Lines of SSLyze's comparison with a recommendation: what a name has and should not, or lacks."""
    said = re.findall(r"^ +\* (\w+): (.*)", text, flags=re.MULTILINE)
    return [Finding("sslyze", what, name, problem.strip()) for what, problem in said]


def waived(finding: Finding, waivers: Sequence[dict[str, Any]]) -> Finding:
    """The finding with the reason of the first waiver that names its tool, its test and what it is about."""
    for one in waivers:
        same = (one["tool"], one["test"]) == (finding.tool, finding.test)
        about = one.get("about", ["*"])
        if same and any(fnmatch.fnmatchcase(finding.about, pattern) for pattern in about):
            return Finding(**{**asdict(finding), "why": " ".join(one["why"].split())})
    return finding


# -- what is told -----------------------------------------------------------------------------------------


def summary(result: dict[str, Any], before: dict[str, Any], shown: Path) -> int:
    """Print the outcome; its exit code."""
    open_ones = [one for one in result["findings"] if not one["why"]]
    for one in open_ones:
        print(f"✗ {one['key']}: {one['text']}")
    low = too_low(result)
    was = f" (was {before['index']})" if before else ""
    waived_ones = len(result["findings"]) - len(open_ones)
    print(
        f"scan: Lynis {result['index']} of 100{was}, {result['kept']} % of the rules of {result['openscap']}, "
        f"{waived_ones} findings waived, {len(open_ones)} not; {shown}"
    )
    for line in low:
        print(f"✗ {line} (tools/scan/waivers.yaml)")
    if open_ones or low:
        print("Next: mend it in the role, or give its reason in tools/scan/waivers.yaml")
    return int(bool(open_ones or low))


def too_low(result: dict[str, Any]) -> list[str]:
    """Which figures are below what they were."""
    figures = (("Lynis' index", "index", "least"), ("OpenSCAP's share", "kept", "kept_least"))
    return [
        f"{name} is below {result[least]}"
        for name, figure, least in figures
        if result[figure] < result[least]
    ]


def junit(result: dict[str, Any]) -> bytes:
    """A test case for each finding; one without a reason is a failure, one with it a skip."""
    cases = result["findings"]
    failures = sum(not one["why"] for one in cases)
    suite = ElementTree.Element(
        "testsuite", name="scan", tests=str(len(cases)), failures=str(failures)
    )
    for one in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=one["tool"], name=one["key"])
        kind, text = ("skipped", one["why"]) if one["why"] else ("failure", one["text"])
        ElementTree.SubElement(case, kind, message=text)
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def page(result: dict[str, Any], before: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else."""
    now = {one["key"]: one for one in result["findings"]}
    then = {one["key"]: one for one in before.get("findings", [])}
    came, went = sorted(now.keys() - then.keys()), sorted(then.keys() - now.keys())
    open_ones = [one for one in now.values() if not one["why"]]
    explained = [one for one in now.values() if one["why"]]

    def rows(items: Iterable[dict[str, Any]]) -> str:
        cells = (
            (one["tool"], f"{one['test']} {one['about']}", one["text"], one["why"]) for one in items
        )
        return "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in cells
        )

    def table(title: str, items: list[dict[str, Any]], last: str) -> str:
        head = f"<tr><th>tool<th>what<th>it says<th>{last}</tr>"
        return f"<h2>{title} ({len(items)})</h2>" + (
            f"<table>{head}{rows(items)}</table>" if items else "<p>None.</p>"
        )

    if not before:
        changed = "<p>This is the first scan.</p>"
    else:
        lines = [f"<li>new: {html.escape(key)}" for key in came]
        lines += [f"<li>gone: {html.escape(key)}" for key in went]
        nothing = "" if lines else "<p>No finding came or went.</p>"
        since = f"Since {before['when']}: index {before['index']} → {result['index']}."
        changed = f"<p>{since}</p>{nothing}<ul>{''.join(lines)}</ul>"
    good = not open_ones and not too_low(result)
    style = STYLE.replace("COLOUR", "#18794e" if good else "#b42318")
    tried = f"Lynis {html.escape(result['lynis'])} · ports: {html.escape(result['ports'])}"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Scan of {result["env"]}</title>
<style>{style}</style>
<h1>Scan of {result["env"]}</h1><p>{result["when"]} · {tried}</p>
<p><span class="big">{result["index"]}</span> of 100 by Lynis, at least {result["least"]} wanted ·
<span class="big">{result["kept"]} %</span> of the rules of {html.escape(result["openscap"])},
at least {result["kept_least"]} wanted ·
{len(open_ones)} findings without a reason, {len(explained)} with one</p>
<h2>What changed</h2>{changed}
{table("Not explained", open_ones, "")}
{table("Explained", explained, "why it stays")}
</html>
"""


if __name__ == "__main__":
    sys.exit(main())
