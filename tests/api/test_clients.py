"""Clients as people have them: the snippets of docs/clients.md as they stand there, and the SDKs of JavaScript."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from testbed.api import ROOT, Api, Clouds, Model, events

PAGE = (ROOT / "docs/clients.md").read_text()
RUNNERS = {
    "sh": ["bash", "-euc"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


def test_every_snippet_runs(shared_api: Api, clouds: Clouds, model: Model, tmp_path: Path) -> None:
    token = clouds.sign_in.token("ann@clients.example")
    environment = os.environ | {"API": shared_api.url, "TOKEN": token}
    with shared_api.client(token) as ann:
        answer = ann.post("/chat", json={"message": "How long is the warranty?"}).json()
        wanted = answer["choices"][0]["message"]["content"]
        ran = []
        for language, snippet in re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S):
            if language == "json":
                body = json.loads(snippet)
                chunks = [event.data for event in events(ann, "POST", "/chat", json=body)]
                said = [json.loads(data)["choices"][0]["delta"].get("content") for data in chunks[:-1]]  # fmt: skip
                assert "".join(filter(None, said)) == wanted
            elif language in RUNNERS:
                done = subprocess.run(
                    [*RUNNERS[language], snippet],
                    env=environment,
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                assert (done.returncode, done.stderr) == (0, ""), snippet
                if '"key":' in done.stdout:
                    environment["KEY"] = json.loads(done.stdout)["key"]
                elif "data: [DONE]" in done.stdout:
                    assert done.stdout.count('"content":') > 1
                else:
                    assert wanted in done.stdout
            ran.append(language)
        assert sorted(ran) == ["js", "json", "python", "sh", "sh", "sh", "tsx", "yaml"]
        for each in ann.get("/keys").json()["items"]:
            ann.delete(f"/keys/{each['id']}")


def test_the_sdks_of_javascript_need_no_glue(shared_api: Api, clouds: Clouds, model: Model) -> None:
    token = clouds.sign_in.token("ann@sdks.example")
    done = subprocess.run(
        ["node", "tests/api/clients.mjs"],
        env=os.environ | {"API": shared_api.url, "TOKEN": token},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
