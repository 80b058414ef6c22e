"""The whole product with the real n8n and the real API: sources become documents, documents become answers."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from local.waiting import eventually, free_port
from testbed import api as harness
from testbed.n8n.outside import Outside
from testbed.n8n.server import N8n
from testbed.n8n.world import WEBHOOK_KEY, World
from tests.n8n.conftest import Role
from tests.n8n.test_workflows import PAGE, pdf

EMBEDDINGS = "/v1/embeddings"
LONG = "\n\n".join(
    f"## Chapter {number}\n\n"
    + f"Chapter {number} tells how a machine of series {number} is cleaned. " * 12
    for number in range(6)
)


@dataclass
class Product:
    """What a team has: n8n and the API, the sources, and a person who asks."""

    world: World
    clouds: harness.Clouds
    handbook: Path
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
        made = Product(World(n8n, outside), clouds, handbook, ports, apis, run)
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
        outside.pages["/terms.pdf"] = ("application/pdf", pdf("Parcels cost four euros"))
        at = outside.url
        role.parameters["workflows"] = made.world.files()
        role.parameters["secrets"] = {
            "INGEST_KEY": harness.INGEST_KEY,
            "N8N_WEBHOOK_KEY": WEBHOOK_KEY,
            "NOTIFY_WEBHOOK_KEY": "key-of-the-webhook",
        }
        role.parameters["settings"] = {
            "seed-etl": {
                "api": made.api.url,
                "sources": [
                    {"name": "handbook", "kind": "git", "repository": "example/handbook",
                     "language": "en", "api": f"{git}/api", "files": f"{git}/raw"},
                    {"name": "site", "kind": "sitemap", "url": f"{at}/sitemap.xml", "select": "main"},
                    {"name": "news", "kind": "feed", "url": f"{at}/feed.xml", "language": "en"},
                    {"name": "terms", "kind": "page", "url": f"{at}/terms.pdf", "language": "en"},
                ],
            },
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
