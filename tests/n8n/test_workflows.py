"""What the workflows do, on the real n8n with the environment of production; only the outside is a server here."""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.settings import ROOT
from local.waiting import eventually
from plugins.module_utils import n8n_files
from testbed.n8n.outside import Outside
from testbed.n8n.world import WEBHOOK_KEY, World, running
from tools.workflows.__main__ import main

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


class Mailbox:
    """An SMTP server on loopback that keeps what it is given."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        mails = self.mails

        class Session(socketserver.StreamRequestHandler):
            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

            def handle(self) -> None:
                self.say("220 mailbox")
                while line := self.rfile.readline().decode().strip():
                    verb = line.split()[0].upper()
                    if verb == "DATA":
                        self.say("354 go on")
                        lines = iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ".")
                        mails.append("\n".join(lines))
                    self.say("221 bye" if verb == "QUIT" else "250 mailbox")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("n8n")) as world:
        yield world


@pytest.fixture
def site(world: World) -> Iterator[Outside]:
    """A site with a sitemap, a feed, a git server and a PDF; taken away again with all documents."""
    outside = world.outside
    for number in range(3):
        html = PAGE.format(f"Page {number}", f"Text of page {number}.")
        outside.pages[f"/p{number}"] = ("text/html; charset=utf-8", html.encode())
    urls = "".join(f"<url><loc>{outside.url}/p{number}</loc></url>" for number in range(3))
    outside.pages["/sitemap.xml"] = ("application/xml", f"<urlset>{urls}</urlset>".encode())
    items = f"<item><title>One</title><link>{outside.url}/p1</link></item>"
    feed = f'<rss version="2.0"><channel>{items}</channel></rss>'
    outside.pages["/feed.xml"] = ("application/rss+xml", feed.encode())
    tree = [
        {"path": "docs/set up.md", "type": "blob", "sha": "a1"},
        {"path": "docs/logo.png", "type": "blob", "sha": "b1"},
        {"path": "README.md", "type": "blob", "sha": "c1"},
    ]
    listing = json.dumps({"tree": tree, "truncated": False}).encode()
    outside.pages["/api/repos/example/handbook/git/trees/main"] = ("application/json", listing)
    markdown = "# Ligação\n\nSó isto.\n".encode()
    outside.pages["/raw/example/handbook/main/docs/set%20up.md"] = ("text/plain", markdown)
    outside.pages["/terms.pdf"] = ("application/pdf", pdf("Terms of the service"))
    yield outside
    keep = outside.pages["/readyz"]
    outside.pages.clear()
    outside.pages["/readyz"] = keep
    outside.broken.clear()
    outside.documents.clear()


def sources(outside: Outside) -> list[dict[str, Any]]:
    return [
        {"name": "site", "kind": "sitemap", "url": f"{outside.url}/sitemap.xml", "select": "main", "language": "en"},
        {"name": "news", "kind": "feed", "url": f"{outside.url}/feed.xml"},
        {"name": "handbook", "kind": "git", "repository": "example/handbook", "folder": "docs", "language": "pt",
         "api": f"{outside.url}/api", "files": f"{outside.url}/raw"},
        {"name": "terms", "kind": "page", "url": f"{outside.url}/terms.pdf"},
    ]  # fmt: skip


# -- Seed ETL -------------------------------------------------------------------------


def test_etl_fills_the_api_and_a_second_run_sends_nothing(world: World, site: Outside) -> None:
    host = site.url.removeprefix("http://")
    report = world.etl(*sources(site))
    assert (report["stored"], report["embedded"], report["failed"]) == (6, 6, [])
    assert sorted(site.documents) == [
        "handbook/docs/set up.md",
        f"news/{host}/p1",
        *(f"site/{host}/p{number}" for number in range(3)),
        "terms",
    ]
    page = site.documents[f"site/{host}/p0"]
    assert page["content"] == "# Page 0\n\nText of page 0."
    assert (page["title"], page["language"]) == ("Page 0", "en")
    assert page["metadata"] == {"url": f"{site.url}/p0", "collection": "site"}
    assert site.documents["handbook/docs/set up.md"]["content"] == "# Ligação\n\nSó isto."
    assert site.documents["terms"]["content"] == "Terms of the service"

    report = world.etl(*sources(site))
    assert (report["stored"], report["embedded"], report["unchanged"]) == (0, 0, 6)
    assert site.requests("PUT") == []
    # Pages are asked whether they changed; a file of an unchanged git tree is not even asked for.
    assert {status for path, status in site.requests("HEAD", "/p")} == {304}
    assert [path for path, _ in site.requests("GET") if path[:2] == "/p"] == []
    assert site.requests("GET", "/raw") == []


def test_etl_sends_only_what_changed_and_removes_what_is_gone(world: World, site: Outside) -> None:
    host = site.url.removeprefix("http://")
    world.etl(*sources(site))
    html = PAGE.format("Page 0", "Another text.")
    site.pages["/p0"] = ("text/html", html.encode())
    # Another page, but not another text: its server says "changed", its hash does not.
    kind, content = site.pages["/p2"]
    site.pages["/p2"] = (kind, content.replace(b"menu", b"another menu"))
    urls = f"<url><loc>{site.url}/p0</loc></url><url><loc>{site.url}/p2</loc></url>"
    site.pages["/sitemap.xml"] = ("application/xml", f"<urlset>{urls}</urlset>".encode())
    report = world.etl(*sources(site)[:-1])
    assert [path for path, _ in site.requests("PUT")] == [
        f"/documents/site%2F{host.replace(':', '%3A')}%2Fp0"
    ]
    assert (report["stored"], report["removed"], report["failed"]) == (1, 2, [])
    assert f"site/{host}/p1" not in site.documents
    assert "terms" not in site.documents


def test_etl_reports_failures_once_and_loses_nothing(world: World, site: Outside) -> None:
    world.etl(*sources(site))
    before = dict(site.documents)
    site.broken["/sitemap.xml"] = 404
    site.pages["/terms.pdf"] = ("application/pdf", b"%PDF-1.4 torn")
    report = world.etl(*sources(site))
    failed = {one["document"]: one["reason"] for one in report["failed"]}
    assert set(failed) == {"site", "terms"}
    assert f"{site.url}/sitemap.xml" in failed["site"]
    assert site.documents == before, "a list that cannot be read removes nothing"
    assert [one["title"] for one in site.messages] == ["documents that could not be ingested: 2"]
    world.etl(*sources(site))
    assert site.messages == [], "the same again is no news"
    site.broken.clear()
    site.pages["/terms.pdf"] = ("application/pdf", pdf("Terms of the service"))
    world.etl(*sources(site))
    assert [one["title"] for one in site.messages] == ["all documents are ingested again"]


def test_etl_asks_a_busy_server_again(world: World, site: Outside) -> None:
    site.broken["/p1"] = 503
    world.configure("seed-etl", sources=sources(site)[:1])
    site.forget()

    def mend() -> None:
        eventually(lambda: site.requests("GET", "/p1"), "the page is asked for")
        site.broken.clear()

    thread = threading.Thread(target=mend)
    thread.start()
    report = world.call("seed-etl")
    thread.join()
    assert [status for _, status in site.requests("GET", "/p1")] == [503, 200]
    assert (report["stored"], report["failed"]) == (3, [])


def test_an_etl_that_was_killed_is_completed_by_the_next_run(world: World, site: Outside) -> None:
    world.configure("seed-etl", sources=sources(site))
    site.forget()

    def call() -> None:
        with contextlib.suppress(httpx.HTTPError):  # its connection breaks
            world.n8n.webhook("seed-etl", Authorization=f"Bearer {WEBHOOK_KEY}")

    run = threading.Thread(target=call)
    run.start()
    eventually(lambda: site.requests("PUT"), "a document is sent")
    world.n8n.kill()
    run.join()
    world.n8n.start()
    world.wait_for_webhook("seed-etl")
    assert world.call("seed-etl")["failed"] == []
    paths = [path for path, _ in site.requests("PUT")]
    assert len(site.documents) == 6
    assert sorted(paths) == sorted(set(paths)), "nothing is sent twice"


def test_nobody_gets_in_without_the_key(world: World) -> None:
    for path in ("seed-etl", "alerts", "release-notice"):
        assert world.n8n.webhook(path).status_code == 403
        assert world.n8n.webhook(path, Authorization="Bearer guess").status_code == 403


# -- Alerts, errors, releases ---------------------------------------------------------


def checks(world: World, times: int) -> Any:
    """The answer of the last of some checks."""
    for _ in range(times):
        answer = world.call("alerts")
    return answer


def test_an_alarm_is_raised_once_and_recovers_once_across_a_restart(world: World) -> None:
    outside = world.outside
    outside.forget()
    assert checks(world, 1)["failing"] == []
    outside.broken["/readyz"] = 503
    assert checks(world, 3)["failing"] == ["api"]
    assert [one["text"] for one in outside.messages] == ["DOWN api: HTTP 503: broken for a test"]
    # What it knows survives a restart and a converge.
    world.n8n.stop()
    world.n8n.start()
    world.wait_for_webhook("alerts")
    world.configure("alerts", remind_hours=24)
    assert checks(world, 2)["failing"] == ["api"]
    assert len(outside.messages) == 1
    outside.broken.clear()
    assert checks(world, 4)["failing"] == []
    assert [one["title"] for one in outside.messages] == ["down: api", "up: api"]


def test_one_bad_check_is_no_alarm(world: World) -> None:
    outside = world.outside
    world.configure("alerts", confirm=4)
    outside.forget()
    for _ in range(2):
        outside.broken["/readyz"] = 503
        checks(world, 1)
        outside.broken.clear()
        checks(world, 2)
    world.configure("alerts", confirm=2)
    assert outside.messages == []


def test_what_the_host_reports_is_checked(world: World) -> None:
    outside = world.outside
    outside.forget()
    full = {"host": {"disk_used_percent": 91, "certificate_left_percent": 80}}
    world.call("alerts", full)
    assert checks(world, 4)["failing"] == [], (
        "one report is one opinion, however often it is looked at"
    )
    for _ in range(2):
        answer = world.call("alerts", full)
    assert answer["failing"] == ["host disk_used_percent"]
    assert [one["text"] for one in outside.messages] == [
        "DOWN host disk_used_percent: 91, more than 85"
    ]
    for _ in range(3):
        answer = world.call(
            "alerts", {"host": {"disk_used_percent": 40, "certificate_left_percent": 80}}
        )
    assert answer["failing"] == []


def test_figures_of_a_metrics_page_are_checked(world: World) -> None:
    outside = world.outside

    def serve(errors: float) -> None:
        text = (
            f'# TYPE requests counter\nrequests{{route="/{{x:path}}",status="200"}} 1000\n'
            f'requests{{route="/",status="500"}} 3\nrequests{{route="/",status="503"}} {errors}\n'
            "requests_created 1e9\n# TYPE quiet counter\nrss 1.5e+08\n"
        )
        outside.pages["/metrics"] = ("text/plain", text.encode())

    probe = {"name": "figures", "url": f"{outside.url}/metrics"}
    serve(4.5)
    failed = 'requests{status="5'
    world.configure("alerts", probes=[{**probe, "limits": {failed: 7, "rss": 2e8, "quiet": 0}}])
    assert checks(world, 1)["bad"] == [f"figures: {failed} is 7.5, more than 7"]
    world.configure("alerts", probes=[{**probe, "limits": {"gone": 7}}])
    assert checks(world, 1)["bad"] == ["figures: it reports no gone"]
    world.configure("alerts", probes=[{**probe, "growth": {failed: 2}}])
    assert checks(world, 2)["bad"] == []
    serve(8)
    assert checks(world, 1)["bad"] == [f"figures: {failed} has grown by 3.5, more than 2"]
    serve(1)  # it has started again and counts from zero
    assert checks(world, 1)["bad"] == [f"figures: {failed} has grown by 4, more than 2"]
    assert checks(world, 1)["bad"] == []
    world.configure("alerts", probes=[{"name": "api", "url": f"{outside.url}/readyz"}])


def test_the_end_of_a_model_is_told_once_and_in_time(world: World) -> None:
    """The page is what the api serves: tests/api/test_lifetimes.py, and test_product.py for both together."""
    outside = world.outside
    days = 'cimt_model_days_left{date="2027-01-23",model="gpt-6-luna",setting="CHAT_MODEL"}'
    no_date = 'cimt_model_days_left{date="",model="embedder",setting="EMBEDDING_MODEL"} +Inf'
    listed = 'cimt_model_listed{model="gpt-6-luna",setting="CHAT_MODEL"}'

    def serve(*lines: str, age: float = 60) -> None:
        text = "\n".join(["# HELP x y", f"cimt_model_list_age_seconds {age}", *lines, ""])
        outside.pages["/metrics"] = ("text/plain", text.encode())

    def messages() -> list[str]:
        return [one["title"] for one in outside.messages]

    world.configure("alerts", probes=[{"name": "api figures", "url": f"{outside.url}/metrics"}])
    outside.forget()
    serve(f"{days} 61.0", f"{listed} 1.0", no_date)
    assert checks(world, 4)["bad"] == []
    serve(f"{days} 59.0", f"{listed} 1.0", no_date)
    name = "model gpt-6-luna (CHAT_MODEL)"
    assert checks(world, 4)["failing"] == [f"{name} ends"]
    assert messages() == [f"notice: {name} ends"]
    told = outside.messages[0]
    assert told["level"] == "notice"
    assert told["text"].startswith(
        f"NOTICE {name} ends: it is shut down on 2027-01-23, days left: 59. Next: set another CHAT_MODEL"
    )
    serve()  # the api has just started and does not know yet
    assert checks(world, 4)["failing"] == [f"{name} ends"]
    serve(f"{days} 58.0", f"{listed} 1.0", no_date)
    assert checks(world, 4)["failing"] == [f"{name} ends"]
    assert len(outside.messages) == 1, "told once"
    serve(f"{listed} 0.0", no_date)
    assert checks(world, 4)["failing"] == [name]
    assert messages()[1:] == [f"down: {name}"]
    assert outside.messages[1]["level"] == "alarm"
    serve(no_date)  # another model is set
    assert checks(world, 1)["failing"] == []
    serve(age=47 * 3600)
    assert checks(world, 4)["bad"] == []
    serve(age=49 * 3600)
    assert checks(world, 4)["failing"] == ["model list"]
    assert messages()[2:] == ["notice: model list"]
    serve(no_date)
    assert checks(world, 4)["failing"] == []
    world.configure("alerts", probes=[{"name": "api", "url": f"{outside.url}/readyz"}])


def test_the_schedule_checks_by_itself_and_gives_a_sign_of_life(world: World) -> None:
    outside = world.outside
    outside.pages["/alive"] = ("text/plain", b"thanks")
    world.cron = "*/2 * * * * *"
    world.configure("alerts", heartbeat=f"{outside.url}/alive")
    outside.forget()
    eventually(
        lambda: outside.requests("GET", "/readyz") and outside.requests("GET", "/alive"),
        "a scheduled check",
    )
    world.cron = "0 0 1 1 *"
    world.configure("alerts", heartbeat="")


def test_an_alarm_that_nobody_heard_is_raised_again(world: World) -> None:
    outside = world.outside
    outside.forget()
    outside.broken |= {"/notify": 500, "/readyz": 503}
    for _ in range(2):
        world.n8n.webhook("alerts", Authorization=f"Bearer {WEBHOOK_KEY}")
    eventually(lambda: outside.requests("POST", "/notify"), "a message is tried")
    del outside.broken["/notify"]
    eventually(lambda: world.call("alerts")["failing"] == ["api"], "the api counts as down")
    assert "DOWN api" in "".join(one["text"] for one in outside.messages)
    outside.broken.clear()
    eventually(lambda: world.call("alerts")["failing"] == [], "the api is up again")


def test_a_failed_workflow_is_told_once(world: World) -> None:
    outside = world.outside
    world.configure("seed-etl", api=f"{outside.url}/nowhere")
    outside.forget()
    for _ in range(2):
        answer = world.n8n.webhook("seed-etl", Authorization=f"Bearer {WEBHOOK_KEY}")
        assert answer.status_code == 500
    eventually(lambda: outside.messages, "a message")
    world.configure("seed-etl", api=outside.url)
    failures = [one for one in outside.messages if one["title"] == 'workflow "Seed ETL" failed']
    assert len(failures) == 1
    assert failures[0]["text"].startswith("Known documents: ")


def test_a_release_is_told(world: World) -> None:
    world.outside.forget()
    release = {
        "service": "api",
        "result": "rolled back",
        "revision": "abc1234",
        "seconds": 31,
        "reason": "unhealthy",
    }
    world.call("release-notice", release)
    eventually(lambda: world.outside.messages, "the notice")
    assert world.outside.messages == [
        {
            "product": "CIMT",
            "level": "alarm",
            "title": "api rolled back",
            "text": "revision abc1234, 31 s, unhealthy",
        }
    ]


def test_a_message_reaches_every_channel_and_one_that_fails_keeps_none_from_it(
    world: World,
) -> None:
    outside = world.outside
    world.settings["notify"] |= {
        "channels": ["webhook", "slack", "telegram", "mail"],
        "slack_api": f"{outside.url}/slack",
        "slack_channel": "#ops",
        "telegram_chat": "42",
        "mail_from": "n8n@example.com",
        "mail_to": "ann@example.com",
    }
    body = next(one for one in world.workflows() if one["id"] == "notify")
    keep = ("name", "nodes", "connections", "settings")
    world.n8n.api("PUT", "/workflows/notify", {key: body[key] for key in keep})
    outside.forget()
    outside.broken["/notify"] = 500
    with Mailbox() as mailbox:
        smtp = {
            "host": "127.0.0.1",
            "port": mailbox.port,
            "secure": False,
            "disableStartTls": True,
            "user": "",
            "password": "",
        }
        world.n8n.api("PATCH", "/credentials/notify-mail", {"data": smtp})
        telegram = {"accessToken": "telegram-token", "baseUrl": outside.url}
        world.n8n.api("PATCH", "/credentials/notify-telegram", {"data": telegram})
        world.call("release-notice", {"service": "api", "result": "released", "who": "<ann> & co"})
        eventually(lambda: mailbox.mails, "the mail")
    outside.broken.clear()
    slack, telegram = (
        outside.posts[path][0]
        for path in ("/slack/chat.postMessage", "/bottelegram-token/sendMessage")
    )
    assert slack == {"channel": "#ops", "text": "*CIMT: api released*\nby <ann> & co"}
    assert (telegram["chat_id"], telegram["text"]) == (
        "42",
        "CIMT: api released\nby &lt;ann> &amp; co",
    )
    assert "Subject: CIMT: api released" in mailbox.mails[0]
    assert "by <ann> & co" in mailbox.mails[0]
    assert len(outside.requests("POST", "/notify")) == 3, "tried again before it was given up"
    assert world.n8n.executions("release-notice", "error") == []


# -- the editor -----------------------------------------------------------------------


def test_a_setting_that_the_file_does_not_have_goes_away(world: World) -> None:
    path = "/workflows/release-notice"
    wanted = next(one for one in world.workflows() if one["id"] == "release-notice")
    body = {key: wanted[key] for key in ("name", "nodes", "connections")}
    world.n8n.api(
        "PUT", path, {**body, "settings": {**wanted["settings"], "timezone": "Asia/Tokyo"}}
    )
    edited = world.n8n.api("GET", path)
    assert edited["settings"]["timezone"] == "Asia/Tokyo"
    # n8n keeps what an update leaves out, so this takes more than the file's settings.
    settings = n8n_files.settings_for_update(wanted, edited)
    world.n8n.api("PUT", path, {**body, "settings": settings})
    assert n8n_files.text(world.n8n.api("GET", path)) == n8n_files.text(wanted)


def test_an_edit_comes_back_by_pull(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow = next(one for one in world.workflows() if one["id"] == "release-notice")
    edited = {key: workflow[key] for key in ("name", "nodes", "connections", "settings")}
    edited["nodes"] = [
        {**node, "notes": "from the editor"} if node["name"] == "Text" else node
        for node in workflow["nodes"]
    ]
    world.n8n.api("PUT", "/workflows/release-notice", edited)
    key = {"label": "pull", "expiresAt": None, "scopes": ["workflow:list", "workflow:read"]}
    made = world.n8n.session().post("/rest/api-keys", json=key)
    (tmp_path / "n8n.api-key").write_text(made.json()["data"]["rawApiKey"])
    variables = {
        "n8n_workflows_service": "",
        "n8n_workflows_port": world.n8n.port,
        "n8n_workflows_state_directory": str(tmp_path),
        "n8n_workflows_pull_file": str(tmp_path / "running.json"),
        "ansible_python_interpreter": sys.executable,
    }
    task = {"ansible.builtin.include_role": {"name": "n8n_workflows", "tasks_from": "pull"}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", "localhost,", "-e", json.dumps(variables), tmp_path / "play.yml"),
        ],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["pull", "--check", "--input", str(tmp_path / "running.json")]) == 1
    shown = capsys.readouterr().out
    assert "n8n_workflows/release-notice.json: edited in n8n" in shown
    assert '+      "notes": "from the editor"' in shown
