"""Seed ETL on sources as teams have them, and as they break: the real command, the real API, a site that misbehaves."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import wsgiref.simple_server
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from local.settings import ROOT
from local.waiting import WAIT_SECONDS, eventually, free_port
from testbed.api import INGEST_KEY, Api, Clouds, Model, answers, process
from testbed.processes import children, running
from testbed.site import Site

EMBEDDINGS = "/v1/embeddings"
XML = {"Content-Type": "application/xml"}


def html(title: str, text: str, more: str = "") -> str:
    return (
        f"<!doctype html><html lang=en><head><title>{title}</title>{more}</head><body><nav><a href=/>Menu</a></nav>"
        f"<main><h1>{title}</h1><p>{text}</p></main><footer>Imprint</footer></body></html>"
    )


@dataclass
class Etl:
    """The command, with a file of sources and a state of its own."""

    folder: Path
    api: Api
    clouds: Clouds
    site: Site
    sources: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """What is declared."""
        path = self.folder / "sources.yaml"
        path.write_text(yaml.safe_dump(self.sources))
        return path

    @property
    def state(self) -> Path:
        """What the runs remember."""
        return self.folder / "state.sqlite"

    def declare(self, name: str, kind: str, path: str = "", **options: Any) -> None:
        """One more source of the site."""
        where = {"url": f"{self.site.url}{path}"} if path else {}
        self.sources.append(
            {"name": name, "kind": kind, "allow": [self.site.host], **where, **options}
        )

    def run(self, *options: str, patience: int = 3) -> dict[str, Any]:
        """The report of one run; what the site was asked before is forgotten."""
        self.site.seen.clear()
        command = [sys.executable, "-m", "cimt_etl", "run", str(self.file), "--api", self.api.url]
        done = subprocess.run(
            [*command, "--state", str(self.state), "--patience", f"{patience}", "--json", *options],
            env=os.environ
            | {"INGEST_KEY": INGEST_KEY, "PYTHONPATH": str(ROOT / "services/etl")}
            | self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, 1), done.stderr
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["report"]
        return report

    def stored(self) -> dict[str, str]:
        """What the API has: name to text."""
        rows = self.clouds.postgres.rows(
            "select source, string_agg(content, E'\\n' order by chunk) from public.vectors group by source"
        )
        return dict(rows)

    def written(self) -> list[tuple[Any, ...]]:
        """The version of every stored passage, which any write changes."""
        return self.clouds.postgres.rows(
            "select source, chunk, xmin::text from public.vectors order by 1, 2"
        )


@pytest.fixture
def etl(shared_api: Api, clouds: Clouds, model: Model, tmp_path: Path) -> Iterator[Etl]:
    site = Site()
    clouds.postgres.rows("delete from public.vectors")
    yield Etl(tmp_path, shared_api, clouds, site)
    clouds.postgres.rows("delete from public.vectors")
    site.close()


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {one["document"]: one["reason"] for one in report["failed"]}


def drip(site: Site) -> Any:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        while not site.ending.wait(0.2):
            request.wfile.write(b"<")

    return answer


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Connection", "close")
    request.end_headers()
    while True:
        request.wfile.write(b"<p>" * 20000)


def test_what_a_site_says_becomes_documents_and_a_second_run_costs_nothing(
    etl: Etl, model: Model
) -> None:
    site = etl.site
    for number in range(4):
        site.pages[f"/p{number}"] = html(
            f"Page {number}", f"Text of page\n{number} within seven\ndays."
        )
    # One page under six addresses, a list with bare &, an index of a gz and a text.
    site.pages["/p0?sort=up"] = html(
        "Page 0",
        "Text of page\n0 within seven\ndays.",
        f"<link rel=canonical href='{site.url}/p0'>",
    )
    more = ["/p0/", "/p0#top", "/p0?utm_source=x", "/p0?utm_source=y&amp;fbclid=1", "/p0?sort=up"]
    listed = site.sitemap("/p0", "/p1", *more)[2]
    site.pages["/a.xml.gz"] = (200, {}, gzip.compress(listed.replace(b"&amp;", b"&")))
    site.pages["/b.txt"] = (
        200,
        {"Content-Type": "text/plain"},
        f"{site.url}/p2\n{site.url}/p3\n".encode(),
    )
    index = "".join(f"<sitemap><loc>/{name}</loc></sitemap>" for name in ("a.xml.gz", "b.txt"))
    site.pages["/sitemap.xml"] = (
        200,
        XML,
        f"<?xml version='1.0'?><sitemapindex>{index}</sitemapindex>".encode(),
    )
    site.pages["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /p3\n")
    # Relative links below xml:base, a guid that is the link, a bare & and a title in CDATA.
    site.pages["/n/1"] = html("One", "A purple lamp.")

    def busy(request: BaseHTTPRequestHandler) -> None:
        site.pages["/n/2"] = html("Two", "A green lamp.")
        request.send_response(503)
        request.send_header("Retry-After", "0")
        request.send_header("Content-Length", "0")
        request.end_headers()

    site.pages["/n/2"] = busy
    feed = (
        f'<rss version="2.0" xml:base="{site.url}/n/"><channel><title>N</title>'
        f"<item><title><![CDATA[Fish & <b>chips</b>]]></title><link>1?a=1&b=2</link></item>"
        f"<item><guid>{site.url}/n/2</guid></item>"
        f"<item><title>Only here</title><guid isPermaLink='false'>x-3</guid>"
        f"<description>&lt;p&gt;Whole text.&lt;/p&gt;</description></item>"
        "</channel></rss>"
    )
    site.pages["/n/1?a=1&b=2"] = site.pages["/n/1"]
    site.pages["/feed.xml"] = (200, {"Content-Type": "text/html"}, feed.encode())
    json_feed = {
        "version": "https://jsonfeed.org/version/1.1",
        "items": [{"id": "1", "url": "/n/1"}],
    }
    site.pages["/feed.json"] = (200, {}, json.dumps(json_feed).encode())
    etl.declare("site", "sitemap", "/sitemap.xml")
    etl.declare("news", "feed", "/feed.xml", language="pt")
    etl.declare("json", "feed", "/feed.json")
    report = etl.run()
    assert list(reasons(report)) == [f"site/{site.host}/p3"], "robots.txt"
    assert site.asked("/n/2") == [0, 200], "a busy server is asked again"
    stored, host = etl.stored(), site.host
    assert sorted(stored) == sorted(
        [f"json/{host}/n/1", f"news/{host}/n/1?a=1&b=2", f"news/{host}/n/2", "news/x-3"]
        + [f"site/{host}/p{number}" for number in range(3)]
    )
    assert stored[f"site/{host}/p0"] == "# Page 0\n\nText of page 0 within seven days."
    assert (stored["news/x-3"], report["duplicates"]) == ("Whole text.", 1)
    assert report["message"]["title"] == "documents: 1 not read"

    before, calls = etl.written(), model.calls(EMBEDDINGS)
    # One entry rolls off the feed, and stays.
    rolled = feed.replace(
        "<item><title><![CDATA[Fish & <b>chips</b>]]></title><link>1?a=1&b=2</link></item>", ""
    )
    assert rolled != feed
    site.pages["/feed.xml"] = (200, {}, rolled.encode())
    report = etl.run()
    assert (report["stored"], report["removed"], report["embedded"]) == (0, 0, 0)
    assert (etl.written(), model.calls(EMBEDDINGS)) == (before, calls)
    assert {site.asked(f"/p{number}")[0] for number in range(3)} == {304}
    # Another title alone is written, and embedded by nobody.
    site.pages["/p1"] = html("Page 1", "Text of page\n1 within seven\ndays.").replace(
        "<title>Page 1", "<title>Page One"
    )
    report = etl.run()
    assert (report["stored"], report["embedded"]) == (1, 0)
    # What another model embedded is sent again; the passages that changed last are of the API's own.
    for change in (
        "embedding_model = 'old' where source like",
        "language = language where source not like",
    ):
        etl.clouds.postgres.rows("update public.vectors set " + change + " '%%/p2'")  # noqa: S608
    report = etl.run()
    assert (report["stored"], report["embedded"]) == (1, 1)


def test_pages_that_are_as_before_are_asked_over_few_connections(etl: Etl) -> None:
    site = etl.site
    paths = [f"/p{number}" for number in range(40)]
    site.pages |= {path: html(f"Page {path}", f"Text of {path}.") for path in paths}
    site.pages["/sitemap.xml"] = site.sitemap(*paths)
    etl.declare("site", "sitemap", "/sitemap.xml")
    assert etl.run()["stored"] == 40
    site.seen.clear()
    site.connections = 0
    assert etl.run()["unchanged"] == 40
    assert [site.asked(path) for path in paths] == [[304]] * 40
    assert site.connections <= 8, "each one is a handshake of TLS elsewhere"


def test_whatever_breaks_is_told_by_its_address_and_takes_nothing_with_it(etl: Etl) -> None:
    site = etl.site
    kinds = (
        "maintenance",
        "cut",
        "empty",
        "gone",
        "busy",
        "loop",
        "drip",
        "endless",
        "bomb",
        "inside",
    )
    for kind in kinds:
        site.pages[f"/{kind}/page"] = html(kind, f"All about {kind}.")
        site.pages[f"/{kind}.xml"] = site.sitemap(f"/{kind}/page")
        etl.declare(kind, "sitemap", f"/{kind}.xml")
    site.pages["/rss"] = (
        200,
        {},
        f"<rss version='2.0'><channel><item><link>{site.url}/rss/1</link></item></channel></rss>".encode(),
    )
    site.pages["/rss/1"] = html("Kept", "It has rolled off.")
    etl.declare("rss", "feed", "/rss", keep=False)
    names = [f"bad{number}" for number in range(9)]
    for name in (*names, "good"):
        site.pages[f"/mixed/{name}"] = html(name, f"All about {name}.")
    site.pages["/mixed.xml"] = site.sitemap(*[f"/mixed/{name}" for name in (*names, "good")])
    etl.declare("mixed", "sitemap", "/mixed.xml", select="main")
    assert reasons(etl.run()) == {}
    before = etl.stored()
    assert len(before) == len(kinds) + len(names) + 2

    site.pages["/maintenance.xml"] = (
        "<!doctype html><html><body>We are under maintenance</body></html>"
    )
    site.pages["/cut.xml"] = (200, XML, site.sitemap("/cut/page")[2][:-30])
    site.pages["/empty.xml"] = (200, XML, b"<urlset/>")
    del site.pages["/gone.xml"]
    site.pages["/busy.xml"] = (503, {"Retry-After": "0"}, b"")
    site.pages["/loop.xml"] = (302, {"Location": "/loop.xml"}, b"")
    site.pages["/drip.xml"] = drip(site)
    site.pages["/endless.xml"] = endless
    site.pages["/bomb.xml"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 80_000_000))
    # An address inside, by a list, by a redirect, and by another name of the same machine.
    inside = (
        f"<url><loc>http://169.254.169.254/latest</loc></url><url><loc>{site.url}/out</loc></url>"
    )
    inside += f"<url><loc>http://localhost:{site.host.split(':')[1]}/inside/page</loc></url>"
    site.pages["/inside.xml"] = (200, XML, f"<urlset>{inside}</urlset>".encode())
    site.pages["/out"] = (
        302,
        {"Location": f"http://[::ffff:127.0.0.1]:{site.host.split(':')[1]}/inside/page"},
        b"",
    )
    site.pages["/rss"] = (
        200,
        {},
        f"<rss version='2.0'><channel><item><link>{site.url}/rss/2</link></item><item><link>http".encode(),
    )
    site.pages["/rss/2"] = html("New", "It came before the cut.")
    site.pages["/mixed/good"] = html("good", "All about what is better.")
    site.pages["/mixed/bad0"] = "<html><body><p>no such element</p></body></html>"
    site.pages["/mixed/bad1"] = b""
    site.pages["/mixed/bad2"] = (
        200,
        {"Content-Type": "text/html"},
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
    )
    site.pages["/mixed/bad3"] = html("Page not found", "Sorry, there is no such page.")
    site.pages["/mixed/bad4"] = (302, {"Location": "/"}, b"")
    site.pages["/"] = html("Home", "Welcome.")
    site.pages["/mixed/bad5"] = (
        200,
        {"Content-Encoding": "gzip"},
        gzip.compress(b"x" * 9000)[:-20],
    )
    site.pages["/mixed/bad6"] = (200, {}, b"PK\x03\x04 torn")
    site.pages["/mixed/bad7"] = (200, {}, b"%PDF-1.4 torn")
    site.pages["/mixed/bad8"] = (
        "<html><body><main>" + "<div>" * 200_000 + "deep</main></body></html>"
    )
    started = time.monotonic()
    report = etl.run(patience=8)  # an endless answer needs its time too, to become too large
    assert time.monotonic() - started < 120
    said = reasons(report)
    after = etl.stored()
    assert after.pop(f"mixed/{site.host}/mixed/good").endswith("what is better.")
    before.pop(f"mixed/{site.host}/mixed/good")
    assert "before the cut" in after.pop(f"rss/{site.host}/rss/2")
    assert after == before, "nothing is lost, and nothing of the inside is knowledge"
    for kind, words in {
        "maintenance": "no sitemap", "cut": "no sitemap", "empty": "nothing is listed", "gone": "HTTP 404",
        "busy": "HTTP 503", "loop": "redirects", "drip": "not complete after 8 s",
        "endless": "larger than", "bomb": "larger than",
        "rss": "cut short",
    }.items():  # fmt: skip
        assert words in said[kind], (kind, said[kind])
        assert f"{site.url}/{kind}" in said[kind], "by its address"
    insides = [reason for name, reason in said.items() if name.startswith("inside")]
    assert len(insides) == 3
    assert all("not a public address" in reason for reason in insides), insides
    for number, words in enumerate(
        (
            "no element matches main",
            "empty",
            "neither text",
            "there is nothing",
            "the front page",
            "cut short",
            "zip",
            "broken PDF",
            "",
        )
    ):
        assert words in said[f"mixed/{site.host}/mixed/bad{number}"]
    outcomes = {one["source"]: one["outcome"] for one in report["sources"]}
    assert outcomes.pop("mixed") == outcomes.pop("rss") == "read"
    assert set(outcomes.values()) == {"failed"}
    assert len(report["message"]["text"]) <= 3000
    assert report["message"]["title"].startswith("documents: ")


def test_many_removals_wait_for_a_word_or_a_day_and_few_do_not(etl: Etl) -> None:
    notes, away = etl.folder / "notes", etl.folder / "away"
    notes.mkdir()
    away.mkdir()
    names = [f"{number}.txt" for number in range(8)]
    for name in names:
        (notes / name).write_text(f"All about {name}.")
    etl.sources = [{"name": "notes", "kind": "folder", "folder": "notes"}]
    assert etl.run()["stored"] == 8
    for name in names[2:]:
        (notes / name).rename(away / name)
    report = etl.run()
    assert (report["removed"], report["waiting"], len(etl.stored())) == (0, 6, 8)
    assert "make seed ACCEPT=notes" in report["message"]["text"]
    assert etl.run()["waiting"] == 6, "not because it was asked twice"
    with sqlite3.connect(etl.state) as database:  # a day goes by
        (text,) = database.execute("select state from sources where name = 'notes'").fetchone()
        state = json.loads(text)
        state["waiting"]["since"] -= 86401
        database.execute("update sources set state = ? where name = 'notes'", (json.dumps(state),))
    assert etl.run()["removed"] == 6
    etl.state.unlink()
    assert etl.run()["stored"] == 0, "without what was remembered nothing is sent twice"
    for name in names[2:]:
        (away / name).rename(notes / name)
    (notes / names[0]).unlink()
    report = etl.run()
    assert (report["stored"], report["removed"]) == (6, 1), "one of eight is an editor's work"
    # What is declared no more goes the same way.
    etl.sources = []
    assert etl.run()["waiting"] == 7
    assert etl.run("--accept", "notes")["removed"] == 7


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


class Threaded(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


def test_a_private_repository_and_a_folder_are_read_file_by_file(etl: Etl, tmp_path: Path) -> None:
    from dulwich import porcelain
    from dulwich.repo import Repo
    from dulwich.server import DictBackend
    from dulwich.web import make_wsgi_chain

    work = tmp_path / "handbook"
    (work / "docs").mkdir(parents=True)
    repository = Repo.init(work)
    files = {
        "docs/a.md": "---\ntitle: Olá\ntags: [x]\nlang: pt\n---\n# Um\n\n```sh\na\n\nb\n```\n",
        "docs/b.md": "# Dois\n",
        "docs/logo.png": "no",
        "c.md": "# Outside\n",
        "docs/lfs.md": "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    }

    def commit(**changed: str) -> None:
        for name, text in changed.items():
            (work / name).write_text(text)
        porcelain.add(repository, [str(work / name) for name in changed])
        porcelain.commit(
            repository, b"change", author=b"A <a@example.com>", committer=b"A <a@example.com>"
        )

    commit(**files)
    inner = make_wsgi_chain(DictBackend({"/example/handbook": repository}))
    calls: list[str] = []
    moved = threading.Event()

    def guarded(environ: dict[str, Any], start: Any) -> Any:
        calls.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if moved.is_set():
            start("302 Found", [("Location", f"{etl.site.url}/elsewhere")])
            return [b""]
        if environ.get("HTTP_AUTHORIZATION") != "Basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0":
            start("401 Unauthorized", [])
            return [b""]
        return inner(environ, start)

    server = wsgiref.simple_server.make_server("127.0.0.1", 0, guarded, Threaded, Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    git = {
        "name": "handbook",
        "kind": "git",
        "repository": f"http://{host}/example/handbook",
        "folder": "docs",
    }
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/n.txt").write_text("A note.")
    (tmp_path / "notes/passwd.txt").symlink_to("/etc/passwd")
    etl.sources = [{**git, "allow": [host]}, {"name": "notes", "kind": "folder", "folder": "notes"}]
    try:
        report = etl.run()
        assert "no token" in reasons(report)["handbook"]
        etl.environment["ETL_TOKENS"] = f"{host}=secret"
        report = etl.run()
        assert reasons(report) == {
            "handbook/docs/lfs.md": f"http://{host}/example/handbook/docs/lfs.md: a pointer of Git LFS, not the file"
        }
        assert sorted(etl.stored()) == ["handbook/docs/a.md", "handbook/docs/b.md", "notes/n.txt"]
        assert etl.stored()["handbook/docs/a.md"] == "# Um\n\n```sh\na\n\nb\n```"
        rows = etl.clouds.postgres.rows(
            "select metadata, language from public.vectors where source = 'handbook/docs/a.md'"
        )
        assert rows[0][0]["tags"] == ["x"]
        assert (rows[0][0]["title"], rows[0][1]) == ("Olá", "pt")
        (work / "docs/lfs.md").unlink()
        porcelain.remove(repository, [str(work / "docs/lfs.md")])
        commit(**{"docs/b.md": "# Três\n"})
        report = etl.run()
        assert (report["stored"], report["unchanged"], reasons(report)) == (1, 2, {})
        calls.clear()
        report = etl.run()
        assert (report["stored"], report["unchanged"]) == (0, 3)
        assert calls == ["GET /example/handbook/info/refs"], (
            "nothing but the name of the newest commit"
        )
        moved.set()
        assert "declare that address" in reasons(etl.run())["handbook"]
        assert etl.site.asked("/elsewhere") == [], "the token is shown to nobody else"
        etl.sources = [git]
        assert "by https only" in reasons(etl.run())["handbook"]
    finally:
        server.shutdown()
        server.server_close()


def test_the_server_runs_once_for_all_who_ask_and_stays_small(etl: Etl) -> None:
    port, site = free_port(), etl.site
    gate = threading.Event()

    def slow(request: BaseHTTPRequestHandler) -> None:
        gate.wait(WAIT_SECONDS)
        body = html("Slow", "It took its time.").encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    site.pages["/slow"] = slow
    site.pages["/slow.xml"] = site.sitemap("/slow", "/missing")
    etl.declare("slow", "sitemap", "/slow.xml", schedule="daily")
    etl.declare("bad", "page", "/nowhere")
    command = [
        sys.executable,
        "-m",
        "cimt_etl",
        "serve",
        str(etl.file),
        "--api",
        etl.api.url,
        "--state",
        str(etl.state),
    ]
    environment = {
        "INGEST_KEY": INGEST_KEY,
        "ETL_KEY": "a-new-key-of-the-etl",
        "ETL_KEY_OLD": "key-of-the-etl",
        "PYTHONPATH": str(ROOT / "services/etl"),
    }
    options = ["--host", "127.0.0.1", "--port", str(port)]
    url, key = f"http://127.0.0.1:{port}", {"Authorization": "Bearer key-of-the-etl"}
    with (
        process([*command, *options], etl.folder / "log", env=environment) as started,
        httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client,
    ):
        answers(f"{url}/healthz", started, etl.folder / "log")
        assert (
            client.post("/run").status_code
            == client.get("/runs", headers={"Authorization": "Bearer x"}).status_code
            == 401
        )
        new = {"Authorization": "Bearer a-new-key-of-the-etl"}
        assert client.post("/run?wait=soon", headers=new).status_code == 422, "it got in"
        reports: list[Any] = []
        first = threading.Thread(
            target=lambda: reports.append(
                httpx.post(f"{url}/run", headers=key, timeout=WAIT_SECONDS).json()
            )
        )
        first.start()
        eventually(lambda: site.asked("/slow"), "the run")
        answer = client.post("/run?wait=60", headers=key)
        assert (answer.status_code, answer.json()["running"]) == (202, True), (
            "one who waits is enough"
        )
        events = []
        with client.stream(
            "POST", "/run", headers={**key, "Accept": "application/x-ndjson"}
        ) as stream:
            gate.set()
            events = [json.loads(line) for line in stream.iter_lines()]
        first.join()
        assert events[-1]["report"] == reports[0], "one run for both"
        assert any(event.get("source") == "slow" and event["done"] for event in events)
        assert len(site.asked("/slow")) == 1
        assert reports[0]["message"]["title"] == "documents: 2 not read"
        client.post(
            "/told", headers=key, json={"told": reports[0]["message"]["told"]}
        ).raise_for_status()
        report = client.post("/run?due", headers=key).json()
        assert report["message"] is None, "the same again is no news, nor what is not due yet"
        assert {one["source"]: one["outcome"] for one in report["sources"]} == {
            "slow": "not due",
            "bad": "failed",
        }
        assert len(client.get("/runs", headers=key).json()) == 2
        assert 'cimt_etl_runs_total{result="partly"} 2.0' in client.get("/metrics").text
        # A run that is killed, as for its memory, is told, leaves nothing behind, and the next one goes on.
        gate.clear()
        site.seen.clear()
        killed = threading.Thread(
            target=lambda: reports.append(
                httpx.post(f"{url}/run", headers=key, timeout=WAIT_SECONDS).json()
            )
        )
        killed.start()
        eventually(lambda: site.asked("/slow"), "the run")
        (run,) = children(started.pid)
        readers = children(run)
        assert readers
        os.kill(run, signal.SIGKILL)
        killed.join()
        assert "more memory or time" in reports[1]["error"]
        assert reports[1]["message"]["title"] == "Seed ETL does not run"
        eventually(lambda: not any(running(one) for one in readers), "no more")
        gate.set()
        assert client.post("/run", headers=key).json()["error"] is None
        status = Path(f"/proc/{started.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 80 * 1024, "idle"
