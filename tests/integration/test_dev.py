"""`make dev`: ready, seeded, answering; and nothing of it stays behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local import dev
from local.clouds import CLOUDS
from local.settings import LocalError, Settings
from local.sign_in import sign_in
from local.waiting import eventually, free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60
# What the page suggests to ask, by the first source of its answer.
SUGGESTED = {
    "en": ["en/warranty.md", "en/warranty.md", "en/delivery.md", "en/accounts.md"],
    "pt-BR": ["pt/garantia.md", "pt/garantia.md", "pt/entregas.md", "pt/faturas.md"],
}


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A checkout of its own, so that a `make dev` that runs here is left alone."""
    root = Path(tempfile.mkdtemp(prefix="cimt-dev-"))  # pytest's own are closed to Postgres' user
    root.chmod(0o755)
    for name in ("local", "tools", "services", "migrations", "node_modules"):
        (root / name).symlink_to(ROOT / name)
    # The Supabase CLI reads no file that lies outside the project.
    shutil.copytree(ROOT / "supabase", root / "supabase", symlinks=True)
    yield Settings(root=root, cache=root, ports={})
    shutil.rmtree(root)


def free_ports() -> dict[str, int]:
    return {name: free_port() for name in dev.PORTS}


def ask(url: str, token: str, question: str) -> tuple[str, list[str]]:
    """Answer and sources of a streamed answer."""
    answer, sources = "", []
    with httpx.stream(
        "POST",
        f"{url}/chat",
        headers={"Authorization": f"Bearer {token}", "Origin": "http://localhost:5173"},
        json={"message": question, "stream": True},
        timeout=PATIENCE,
    ) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["access-control-allow-origin"] == "http://localhost:5173"  # Vite's
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                for choice in event["choices"]:
                    answer += choice["delta"].get("content") or ""
                sources += [source["source"] for source in event.get("cimt", {}).get("sources", [])]
    return answer, sources


def test_one_signs_in_and_asks_and_a_second_run_finds_its_data(settings: Settings) -> None:
    ports = free_ports()
    with dev.running(settings, ports) as one:
        assert dev.seed(one) >= 5
        token = sign_in(one.url("supabase"), "ann@example.com")
        answer, sources = ask(one.url("api"), token, "How long is the warranty?")
        assert "two years" in answer
        assert sources[0] == "en/warranty.md"
        answer, sources = ask(one.url("api"), token, "Qual é o prazo de entrega no Brasil?")
        assert "cinco dias úteis no Brasil" in answer
        assert sources[0] == "pt/entregas.md"
        for language, found in SUGGESTED.items():
            page = (ROOT / f"services/web/src/messages/{language}.ts").read_text()
            suggestions = re.findall(r"'(.+)'", page.split("suggestions: [")[1].split("]")[0])
            sources = [ask(one.url("api"), token, words)[1][0] for words in suggestions]
            assert sources == found, suggestions
        answer, sources = ask(one.url("api"), token, "Who won the world cup?")
        assert (answer, sources) == ("No document that I was given supports an answer to this.", [])
        with pytest.raises(LocalError, match=rf"{ports['api']}.*DEV_API_PORT=\d+ make dev"):
            dev.running(settings, ports).__enter__()
    assert [one for one in one.processes.values() if one.poll() is None] == []
    with dev.running(settings, ports) as two:
        embedded = httpx.get(f"{two.url('openai')}/stand-in/calls").json()["embedded_texts"]
        dev.seed(two)  # nothing has changed, so nothing is embedded again
        after = httpx.get(f"{two.url('openai')}/stand-in/calls").json()["embedded_texts"]
        assert (embedded, after) == (0, 0)
        assert ask(two.url("api"), token, "How long is the warranty?")[1] == ["en/warranty.md"]


def test_a_part_that_does_not_start_is_named(settings: Settings) -> None:
    one = dev.Dev(settings, free_ports())
    one.folder.mkdir(parents=True)
    one.start("openai", [sys.executable, "-c", "raise SystemExit('no memory')"])
    with pytest.raises(LocalError, match=r"openai does not start\. no memory Next: cat "):
        one.wait("openai")


def test_parts_end_even_when_make_dev_is_killed(settings: Settings) -> None:
    port, openai = free_port(), CLOUDS["openai"]
    script = (
        "import sys, time; from pathlib import Path; from local import dev; "
        "from local.settings import Settings; "
        f"one = dev.Dev(Settings(root=Path({str(settings.root)!r}), cache=Path(), ports={{}}), {{'openai': {port}}}); "
        "one.folder.mkdir(parents=True); "
        f"one.start_cloud('openai'); time.sleep(600)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        eventually(lambda: openai.answers(port), "the stand-in answers")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    eventually(lambda: not openai.answers(port), "the stand-in has ended")
