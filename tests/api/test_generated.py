"""Clients that are generated from the OpenAPI document: they compile, and what they ask is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from testbed.api import INGEST_KEY, ROOT, Api, Clouds, Model

# How a careful project compiles.
STRICT = {
    "strict": True,
    "noUncheckedIndexedAccess": True,
    "exactOptionalPropertyTypes": True,
    "module": "nodenext",
    "target": "es2022",
    "lib": ["es2022", "dom", "dom.iterable"],
    "types": [],
}
# made.client is the same for every API: what the generator's makers wrote there is not ours to judge.
JUDGE = "[mypy]\nstrict = True\n[mypy-made.client]\nignore_errors = True\n"
# What a program of its own does with the generated package; run, and judged by mypy.
PROGRAM = """
import os
from made import AuthenticatedClient
from made.api.chat import ask, read_answer
from made.api.documents import delete_document, put_document
from made.api.mine import list_conversations
from made.api.open_ai import create_completion
from made.models import ChatRequest, Completion, CompletionRequest, DocumentBody
from made.models import Message, MessageRole, OpenAIError

SOURCE = "generated/warranty and more.md"
etl = AuthenticatedClient(base_url=os.environ["API"], token=os.environ["INGEST_KEY"])
document = DocumentBody(content="Batteries have a warranty of six months.", title="Batteries")
assert put_document.sync_detailed(SOURCE, client=etl, body=document).status_code == 200
client = AuthenticatedClient(base_url=os.environ["API"], token=os.environ["TOKEN"])
asked = ask.sync(client=client, body=ChatRequest(message="What warranty do batteries have?"))
assert isinstance(asked, Completion), asked
read = read_answer.sync(asked.cimt.answer_id, client=client)
assert isinstance(read, Completion) and read.choices[0].message == asked.choices[0].message
assert list_conversations.sync_detailed(client=client, q="warranty").status_code == 200
body = CompletionRequest(model="gpt-2", messages=[Message(role=MessageRole.USER, content="Hi")])
refused = create_completion.sync(client=client, body=body)
assert isinstance(refused, OpenAIError), refused
source = asked.cimt.sources[0]
assert (source.source, source.title, source.url) == (SOURCE, "Batteries", None), source
assert delete_document.sync_detailed(SOURCE, client=etl).status_code == 200
print(refused.error.code)
"""


def run(command: list[str], folder: Path, **more: str) -> str:
    """What it prints; fails with all of it when the command does."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_in_typescript(shared_api: Api, clouds: Clouds, model: Model, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "client.ts").write_text((ROOT / "tests/api/generated.ts").read_text())
    (tmp_path / "globals.d.ts").write_text(
        "declare const process: { env: Record<string, string | undefined> }"
    )
    programs = ROOT / "node_modules/.bin"
    document = f"{shared_api.url}/openapi.json"
    run([f"{programs}/openapi-typescript", document, "-o", "document.d.ts"], tmp_path)
    config = {"compilerOptions": STRICT, "files": ["client.ts", "document.d.ts", "globals.d.ts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    run([f"{programs}/tsc"], tmp_path)
    token = clouds.sign_in.token("ann@generated.example")
    said = json.loads(run(["node", "client.js"], tmp_path, API=shared_api.url, TOKEN=token))
    assert said["answer"]
    assert said["text"]
    assert said["refused"] == "model_not_found"


def test_in_python(shared_api: Api, clouds: Clouds, model: Model, tmp_path: Path) -> None:
    document = f"{shared_api.url}/openapi.json"
    options = ["--url", document, "--meta", "none", "--output-path", "made"]
    made = run([sys.executable, "-m", "openapi_python_client", "generate", *options], tmp_path)
    assert "Warning" not in made, made
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(JUDGE)
    run([sys.executable, "-m", "mypy", "program.py", "made"], tmp_path)
    token = clouds.sign_in.token("ann@generated.example")
    keys = {"TOKEN": token, "INGEST_KEY": INGEST_KEY}
    said = run([sys.executable, "program.py"], tmp_path, API=shared_api.url, **keys)
    assert said == "model_not_found\n"
