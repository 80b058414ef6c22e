"""Writes, as Markdown, the receipt of a release, or what the nightly look at an environment found.

usage: python -m tools.receipt release [STATUS]   STATUS is GitHub's job.status; a failed release has a receipt too
       python -m tools.receipt findings           exit code 0: all of LOOKS ran and found nothing

It is put together from what the steps left in .local/receipt/ (tools/step.py), the audit's report and one question
to each app: which revision serves now. Only fields that are named here get in, so no secret does.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from local.settings import domain
from plugins.filter.compose import declared_services, panel_domains
from plugins.filter.settings import doors, values
from tools.step import ROOT, read

ENV = os.environ.get("ENV", "local")
STEPS = ("migrate", "services", "deploy", "smoke", "audit")  # in their order
LOOKS = ("plan", "audit", "auth", "doctor")  # of a night
LONGEST = 3000  # signs of a message


def cases(report: Path) -> tuple[str, dict[str, str]]:
    """When a run of pytest began, and of each of its tests (module.test) how it failed, or nothing."""
    (suite,) = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - our own pytest wrote it
    found = {}
    for case in suite.iter("testcase"):
        bad = [*case.iter("failure"), *case.iter("error")]
        told = [one.get("message", "").strip().splitlines() or ["failed"] for one in bad]
        found[f"{case.get('classname')}.{case.get('name')}"] = told[0][0][:300] if told else ""
    return suite.get("timestamp", ""), found


def audit() -> tuple[str, list[str]]:
    """How the last audit went, on one line, and its findings."""
    path = ROOT / f".local/reports/audit-{ENV}.xml"
    if not path.exists():
        return "no report", []
    when, found = cases(path)
    bad = [f"{name.rpartition('.')[2]}: {told}" for name, told in found.items() if told]
    return f"{len(found) - len(bad)} passed, {len(bad)} findings ({when})", bad


def built() -> dict[str, dict[str, str]]:
    """Image and revision of each app that was built for this release."""
    if given := os.environ.get("BUILDS"):
        return dict(json.loads(given))
    found = sorted((ROOT / ".local/build").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in found}


def serving() -> Iterator[str]:
    """Of each released app, which revision answers now under its name, or that none does."""
    compose = (ROOT / "services/compose.yaml").read_text()
    declared = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
    given = values(declared)
    domains, places = panel_domains(compose, given), doors(given["CONNECT_TO"])
    for name, app in declared_services(compose).items():
        if not (app["released"] and app["domain"]):
            continue
        authority = None
        place = "{}:{}".format(*places[443]) if 443 in places else domains[name]
        try:
            if ENV == "local":
                domains[name], authority = domain(name), ROOT / ".local/ca.crt"
                ports = json.loads((ROOT / ".local/ports.json").read_text())
                place = f"127.0.0.1:{ports['https']}"
            tls = ssl.create_default_context(cafile=authority)
            with httpx.Client(verify=tls, headers={"Host": domains[name]}, timeout=20) as client:
                known = {"sni_hostname": domains[name]}
                answer = client.get(f"https://{place}{app['health']}", extensions=known)
            yield f"**Serves now**, {name}: revision `{answer.json()['revision']}`"
        except (
            OSError,
            httpx.HTTPError,
            httpx.InvalidURL,
            LookupError,
            TypeError,
            ValueError,
        ) as bad:
            told = f"**no answer** ({type(bad).__name__}). Next: `make history ENV={ENV}`"
            yield f"**Serves now**, {name}: {told}"


def fenced(text: str) -> str:
    """A message as it was, cut to a length that can be read."""
    return f"```text\n{text[-LONGEST:].replace('```', 'ʼʼʼ').strip()}\n```"


def listed(entries: list[str]) -> str:
    """A list, also of nothing."""
    return "\n".join(f"- {entry}" for entry in entries or ["nothing"])


def why(step: dict[str, Any], name: str) -> str:
    """What a failed step says about itself."""
    failed = [f"{task}: {message}" for task, message in step.get("failed", [])]
    return (
        fenced(failed[-1])
        if failed
        else f"`make {name}` ended with {step['code']}; its log says why."
    )


def release(status: str) -> str:
    """The receipt."""
    steps = {name: read(name) for name in STEPS}
    bad = next((name for name, one in steps.items() if one.get("code")), "")
    bad = bad or ("" if steps["deploy"] else "deploy, which did not run")
    bad = bad or ("" if status in ("", "success") else f"the job ({status})")
    builds, run = built(), [os.environ.get(f"GITHUB_RUN_{one}", "0") for one in ("ID", "ATTEMPT")]
    revision = os.environ.get("REVISION") or next((one["revision"] for one in builds.values()), "")
    title = f"❌ Release to {ENV} failed: {bad}" if bad else f"✅ Released to {ENV}"
    parts = [f"<!-- cimt-receipt {'/'.join(run)} -->", f"## {title} `{revision[:12]}`"]
    now = list(serving())
    if bad:
        parts += [why(steps[bad], bad) if bad in steps else "The log of the run says why."]
        now += ["**Next**: mend it and merge that; when it was the surroundings, run the job again"]
    rows = ["| step | result | seconds |", "|---|---|---|"]
    for name, one in steps.items():
        code, seconds = one.get("code", "not run"), one.get("seconds", "")
        rows += [f"| {name} | {'done' if code == 0 else code} | {seconds} |"]
        rows += [f"| … {task} | | {seconds} |" for task, seconds in one.get("slow", [])]
    images = [
        f"{app}: `{one['image']}`, revision `{one['revision']}`" for app, one in builds.items()
    ]
    changed = steps["services"].get("changed", []) + steps["deploy"].get("changed", [])
    migrations = [f"`{name}` ({kind})" for name, kind in steps["migrate"].get("migrations", [])]
    verb = "to apply, when it failed" if steps["migrate"].get("code") else "applied"
    line, found = audit()
    ways = [f"`make rollback ENV={ENV} SERVICE={app}`" for app in builds]
    parts += [listed(now), "\n".join(rows), "### Images", listed(images)]
    parts += ["### Plan: what changed of apps and workflows", listed(changed)]
    parts += [f"### Migrations {verb}", listed(migrations)]
    parts += ["### Timeline", fenced("\n".join(steps["deploy"].get("timeline", [])))]
    parts += ["### Audit", f"{line}\n\n{listed(found)}"]
    parts += ["### Checklist", read("checklist").get("table", "not run")]
    parts += ["### The way back", listed([*ways, "or Actions → Operate → rollback"])]
    return "\n\n".join(parts) + "\n"


def findings() -> tuple[str, bool]:
    """What a night's looks found; the same text for the same findings. Whether that is nothing."""
    steps = {name: read(name) for name in LOOKS}
    verbs = ", ".join(f"`make {name}`" for name in LOOKS)
    parts = [f"Of {verbs} against {ENV}, one or more found what is not as `main` declares it."]
    for name, step in steps.items():
        parts += [f"### make {name}"]
        found = audit()[1] if name == "audit" else step.get("changed", [])
        if not step:
            parts += ["It did not run; the log of the run says why."]
        elif step["code"] and not found:
            parts += [why(step, name)]
        else:
            parts += [listed([*found, *step.get("notes", [])])]
    following = (
        "Actions → Operate → `plan` or `auth`, read it, then `provision`, or `auth` confirmed"
    )
    other = "or bring the change into a pull request; what `make doctor` found says what to type"
    parts += [f"**Next**: {following}; {other}."]
    ran = all(step.get("code") == 0 for step in steps.values())
    clean = ran and not steps["plan"].get("changed")
    return "\n\n".join(parts) + "\n", clean


def main() -> int:
    """Command line; returns the exit code."""
    what, *status = sys.argv[1:] or [""]
    if what not in ("release", "findings"):
        print("usage: python -m tools.receipt release [STATUS] | findings", file=sys.stderr)
        return 2
    text, clean = findings() if what == "findings" else (release("".join(status)), True)
    print(text, end="")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
