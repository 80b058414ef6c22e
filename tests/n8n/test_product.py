"""The whole product with the real n8n, etl and API: sources become documents, documents become answers."""

from __future__ import annotations

import contextlib
import datetime
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.settings import ROOT
from local.waiting import eventually, free_port
from testbed import api as harness
from testbed.n8n.outside import ETL_KEY, Outside
from testbed.n8n.server import N8n
from testbed.n8n.world import WEBHOOK_KEY, World
from tests.n8n.conftest import Role

PAGE = "<html><head><title>{0}</title></head><body><nav>menu</nav><main><h1>{0}</h1><p>{1}</p></main></body></html>"


def pdf(text: str) -> bytes:
    """A PDF of one page."""
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 612 792] >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return body + (
        b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (table, len(body))
    )


EMBEDDINGS = "/v1/embeddings"
LONG = "\n\n".join(
    f"## Chapter {number}\n\n"
    + f"Chapter {number} tells how a machine of series {number} is cleaned. " * 12
    for number in range(6)
)


@dataclass
class Product:
    """What a team has: n8n, etl and API, the sources, and a person who asks."""

    world: World
    clouds: harness.Clouds
    handbook: Path
    sources: Path
    ports: tuple[int, int]  # of the API, wherever it comes back
    api_folder: Path
    run: contextlib.ExitStack
    api: harness.Api = field(init=False)

    def start_api(self) -> None:
        """The API, always at the same address."""
        folder = self.api_folder / str(len(list(self.api_folder.iterdir())))
        self.api = self.run.enter_context(
            harness.api(folder, self.clouds.environment(), until="/readyz", ports=self.ports)
        )

    def etl(self) -> tuple[dict[str, Any], int]:
        """The report of a run, and how many calls for embeddings it cost."""
        before = self.clouds.model.calls(EMBEDDINGS)
        return self.world.call("seed-etl"), self.clouds.model.calls(EMBEDDINGS) - before

    def ask(self, question: str) -> tuple[str, list[str]]:
        """The answer to a signed-in person, and the documents that it names."""
        token = self.clouds.sign_in.token("ann@example.com")
        with self.api.client(token) as client:
            answer = client.post("/chat", json={"message": question})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found = [one["source"] for one in body["cimt"]["sources"]]
        return body["choices"][0]["message"]["content"], found


@pytest.fixture(scope="module")
def product(n8n: N8n, role: Role, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("product")
    folder.chmod(0o755)  # Postgres runs as somebody else
    handbook = folder / "handbook"
    handbook.mkdir()
    with contextlib.ExitStack() as run:
        clouds = run.enter_context(harness.clouds(folder))
        outside = run.enter_context(Outside())
        git = run.enter_context(harness.stand_in(folder, "github", "--folder", str(handbook)))
        ports = (free_port(), free_port())
        apis = folder / "apis"
        apis.mkdir()
        made = Product(
            World(n8n, outside), clouds, handbook, folder / "sources.yaml", ports, apis, run
        )
        made.start_api()
        (handbook / "warranty.md").write_text(
            "# Warranty\n\nEvery turbo kettle has a warranty of seven years.\n"
        )
        (handbook / "cleaning.md").write_text(LONG)
        page = PAGE.format("Opening hours", "The shop in Porto opens at nine on Saturdays.")
        outside.pages["/hours"] = ("text/html; charset=utf-8", page.encode())
        urls = f"<url><loc>{outside.url}/hours</loc></url>"
        outside.pages["/sitemap.xml"] = ("application/xml", f"<urlset>{urls}</urlset>".encode())
        page = PAGE.format("News", "In May a purple lamp joins the range.")
        outside.pages["/news/1"] = ("text/html; charset=utf-8", page.encode())
        feed = f"<item><title>News</title><link>{outside.url}/news/1</link></item>"
        feed = f'<rss version="2.0"><channel>{feed}</channel></rss>'
        outside.pages["/feed.xml"] = ("application/rss+xml", feed.encode())
        outside.pages["/terms.pdf"] = ("application/octet-stream", pdf("Parcels cost four euros"))
        at = outside.url
        known = {"allow": [at.removeprefix("http://"), git.removeprefix("http://")]}
        sources = [
            {"name": "handbook", "kind": "git", "repository": f"{git}/example/handbook", "language": "en", **known},
            {"name": "site", "kind": "sitemap", "url": f"{at}/sitemap.xml", "select": "main", **known},
            {"name": "news", "kind": "feed", "url": f"{at}/feed.xml", "language": "en", **known},
            {"name": "terms", "kind": "page", "url": f"{at}/terms.pdf", "language": "en", **known},
        ]  # fmt: skip
        made.sources.write_text(yaml.safe_dump(sources))
        etl = free_port()
        command = [sys.executable, "-m", "cimt_etl", "serve", str(made.sources)]
        command += ["--api", made.api.url, "--state", str(folder / "etl/state.sqlite")]
        keys = {"INGEST_KEY": harness.INGEST_KEY, "ETL_KEY": ETL_KEY}
        command += ["--host", "127.0.0.1", "--port", str(etl)]
        log, environment = folder / "etl.log", {**keys, "PYTHONPATH": str(ROOT / "services/etl")}
        started = run.enter_context(harness.process(command, log, env=environment))
        harness.answers(f"http://127.0.0.1:{etl}/healthz", started, log)
        role.parameters["workflows"] = made.world.files()
        role.parameters["secrets"] = {
            "ETL_KEY": ETL_KEY,
            "N8N_WEBHOOK_KEY": WEBHOOK_KEY,
            "NOTIFY_WEBHOOK_KEY": "key-of-the-webhook",
        }
        role.parameters["settings"] = {
            "seed-etl": {"etl": f"http://127.0.0.1:{etl}"},
            "alerts": {
                "probes": [
                    {"name": "api", "url": f"{made.api.url}/readyz"},
                    {"name": "figures", "url": f"{made.api.metrics_url}/metrics", "limits": {"cimt_save_queue": 100}},
                ],
                "confirm": 2, "host": {"max_age_minutes": 0},
            },
            "notify": {"channels": ["webhook"], "webhook_url": f"{at}/notify"},
        }  # fmt: skip
        answer = role()
        assert not answer.get("failed"), answer["output"]
        for hook in ("seed-etl", "alerts"):
            made.world.wait_for_webhook(hook)
        yield made


def test_sources_become_documents_and_documents_become_answers(product: Product) -> None:
    report, calls = product.etl()
    assert (report["stored"], report["failed"]) == (5, [])
    assert calls > 0
    stored = product.clouds.postgres.rows("select distinct source from public.vectors order by 1")
    host = product.world.outside.url.removeprefix("http://")
    assert [row[0] for row in stored] == [
        "handbook/cleaning.md",
        "handbook/warranty.md",
        f"news/{host}/news/1",
        f"site/{host}/hours",
        "terms",
    ]
    for question, document, words in (
        ("How long is the warranty of a turbo kettle?", "handbook/warranty.md", "seven years"),
        ("When does the shop in Porto open on Saturdays?", f"site/{host}/hours", "nine"),
        ("What joins the range in May?", f"news/{host}/news/1", "purple lamp"),
        ("What do parcels cost?", "terms", "four euros"),
    ):
        text, sources = product.ask(question)
        assert words in text
        assert document in sources


def test_an_unchanged_source_costs_no_embedding(product: Product) -> None:
    report, calls = product.etl()
    assert (report["stored"], report["unchanged"], report["failed"], calls) == (0, 5, [], 0)


def test_of_a_changed_document_only_the_changed_passages_are_embedded(product: Product) -> None:
    text = LONG.replace("series 3 is cleaned", "series 3 is never cleaned", 1)
    (product.handbook / "cleaning.md").write_text(text)
    report, calls = product.etl()
    assert (report["stored"], report["unchanged"], report["failed"]) == (1, 4, [])
    rows = product.clouds.postgres.rows(
        "select count(*) from public.vectors where source = 'handbook/cleaning.md'"
    )
    assert 1 <= report["embedded"] < rows[0][0]
    assert calls == 1


def test_what_vanishes_is_answered_no_more(product: Product) -> None:
    (product.handbook / "warranty.md").unlink()
    report, calls = product.etl()
    assert (report["removed"], report["failed"], calls) == (1, [], 0)
    text, sources = product.ask("How long is the warranty of a turbo kettle?")
    assert "seven years" not in text
    assert "handbook/warranty.md" not in sources


def test_alerts_answers_however_many_wait_for_a_source_that_hangs(product: Product) -> None:
    declared = product.sources.read_text()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(25) as callers:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        page = {"name": "silent", "kind": "page", "url": f"http://{host}/x", "allow": [host]}
        product.sources.write_text(declared + yaml.safe_dump([page]))
        runs = [callers.submit(product.world.call, "seed-etl") for _ in range(25)]
        eventually(lambda: sum(one.done() for one in runs) == 24, "all but one have an answer")
        assert product.world.call("alerts")["failing"] == []
        silent.close()
        answers = [one.result() for one in runs]
    product.sources.write_text(declared)
    (report,) = [one for one in answers if "running" not in one]
    assert [one["document"] for one in report["failed"]] == ["silent"]


def test_a_stopped_api_is_told_once_and_its_return_once(product: Product) -> None:
    product.world.outside.forget()
    assert product.world.call("alerts")["failing"] == []
    product.api.process.terminate()
    product.api.process.wait(harness.WAIT_SECONDS)
    for _ in range(4):
        answer = product.world.call("alerts")
    assert sorted(answer["failing"]) == ["api", "figures"]
    product.start_api()
    for _ in range(4):
        answer = product.world.call("alerts")
    assert answer["failing"] == []
    assert [one["title"] for one in product.world.outside.messages] == [
        "down: api, figures",
        "up: api, figures",
    ]
    assert "DOWN api: no answer" in product.world.outside.messages[0]["text"]


def test_the_end_of_the_model_reaches_who_is_on_call(product: Product) -> None:
    day = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=59)
    product.clouds.model.shut_down({harness.CHAT_MODEL: f"{day}"})
    product.api.process.terminate()
    product.api.process.wait(harness.WAIT_SECONDS)
    product.start_api()
    eventually(lambda: "cimt_model_days_left{" in product.api.metrics(), "the look")
    product.world.outside.forget()
    name = f"model {harness.CHAT_MODEL} (CHAT_MODEL) ends"
    for _ in range(4):
        answer = product.world.call("alerts")
    assert answer["failing"] == [name]
    assert [one["title"] for one in product.world.outside.messages] == [f"notice: {name}"]
    assert f"{day}" in product.world.outside.messages[0]["text"]
