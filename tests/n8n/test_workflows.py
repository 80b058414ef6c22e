"""What the workflows do, on the real n8n with the environment of production; only the outside is a server here."""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.settings import ROOT
from local.waiting import eventually
from plugins.module_utils import n8n_files
from testbed.n8n.world import WEBHOOK_KEY, World, running
from tools.workflows.__main__ import main


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


# -- Seed ETL -------------------------------------------------------------------------


def test_what_the_etl_says_is_told_and_then_it_is_told_that_it_was(world: World) -> None:
    outside = world.outside
    outside.forget()
    news = {"level": "alarm", "title": "documents: 1 not read", "text": "site: HTTP 404"}
    outside.report = {"stored": 2, "failed": [{}], "message": {**news, "told": "mark"}}
    assert world.call("seed-etl", {"accept": "a b"}) == outside.report
    assert outside.requests("POST", "/run") == [("/run?wait=600&accept=a%20b", 200)]
    assert outside.messages == [{"product": "CIMT", **news}]
    assert outside.posts["/told"] == [{"told": "mark"}]
    # What nobody heard was not told: the etl says it again.
    outside.forget()
    outside.broken["/notify"] = 500
    answer = world.n8n.webhook("seed-etl", Authorization=f"Bearer {WEBHOOK_KEY}")
    assert (answer.status_code, "/told" in outside.posts) == (500, False)
    outside.broken.clear()
    # No news; and by the clock only what is due.
    outside.forget()
    outside.report |= {"message": None}
    world.cron = "*/2 * * * * *"
    world.configure("seed-etl")
    eventually(lambda: outside.requests("POST", "/run?wait=600&due"), "a scheduled run")
    world.cron = "0 0 1 1 *"
    world.configure("seed-etl")
    # The handler of errors may still tell of the message that nobody heard.
    titles = [one["title"] for one in outside.messages if one["title"].startswith("documents")]
    assert (titles, outside.posts) == ([], {})


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


def assert_cards(text: str, count: int) -> None:
    """Each alarm of a message leads to a heading of the page of cards, in both languages."""
    cards = re.findall(r"^→ docs/operations/alarms\.md#(.+)$", text, re.MULTILINE)
    assert len(cards) == count
    for page in ("alarms.md", "alarms.pt-BR.md"):
        content = (ROOT / "docs/operations" / page).read_text()
        # As GitHub makes an anchor of a heading, but that a card says its own where the language differs.
        there = re.findall(r"^## `?([\w ]+?)`?$", content, re.MULTILINE)
        there = [one.lower().replace(" ", "-") for one in there]
        there += re.findall(r'<a id="([^"]+)">', content)
        assert set(cards) <= set(there), page


def test_an_alarm_is_raised_once_and_recovers_once_across_a_restart(world: World) -> None:
    outside = world.outside
    outside.forget()
    assert checks(world, 1)["failing"] == []
    outside.broken["/readyz"] = 503
    assert checks(world, 3)["failing"] == ["api"]
    assert [one["text"] for one in outside.messages] == [
        "DOWN api: HTTP 503: broken for a test\n→ docs/operations/alarms.md#api"
    ]
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
    """Every bound of the file: one report beyond all of them, and each is told with what it is of."""
    outside = world.outside
    outside.forget()
    (settings,) = (
        json.loads(node["parameters"]["jsonOutput"])["host"]
        for node in json.loads((ROOT / "n8n_workflows/alerts.json").read_text())["nodes"]
        if node["name"] == "Settings"
    )
    bad = {name: bound + 1 for name, bound in settings["limits"].items()}
    bad |= {name: bound - 1 for name, bound in settings["at_least"].items()}
    named = {"disk_used_percent": "/", "failed_units": "cimt-backup.service"}
    world.call("alerts", {"host": bad, "named": named})
    assert checks(world, 4)["failing"] == [], (
        "one report is one opinion, however often it is looked at"
    )
    for _ in range(2):
        answer = world.call("alerts", {"host": bad, "named": named})
    assert sorted(answer["failing"]) == sorted(f"host {name}" for name in bad)
    (message,) = outside.messages
    assert "DOWN host disk_used_percent: 86, more than 85 (/)" in message["text"]
    assert "DOWN host failed_units: 1, more than 0 (cimt-backup.service)" in message["text"]
    assert "DOWN host certificate_left_percent: 14, less than 15" in message["text"]
    assert_cards(message["text"], len(bad))
    good = dict.fromkeys(settings["limits"], 0) | dict.fromkeys(settings["at_least"], 100)
    for _ in range(3):
        answer = world.call("alerts", {"host": good, "named": named})
    assert answer["failing"] == []


def test_what_is_inside_is_reached_only_by_the_names_of_the_apps(world: World) -> None:
    inside = {"name": "inside", "url": "http://169.254.169.254/latest"}
    world.configure("alerts", probes=[inside])
    (bad,) = checks(world, 1)["bad"]
    assert "The target 169.254.169.254 is not allowed" in bad
    world.configure("alerts", probes=[{"name": "api", "url": f"{world.outside.url}/readyz"}])


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


def test_a_budget_that_runs_out_is_told_twice_in_a_month(world: World) -> None:
    """At 80 %, and when nothing is left. The page is what the api serves: tests/api/test_money.py."""
    outside = world.outside

    def serve(used: float | None, reached: int = 0) -> None:
        lines = ["# HELP x y", "cimt_budget_month_usd 20.0"]
        if used is not None:
            lines += [
                f"cimt_budget_month_used_ratio {used}",
                f"cimt_budget_month_reached {reached}.0",
            ]
        outside.pages["/metrics"] = ("text/plain", "\n".join([*lines, ""]).encode())

    def told() -> list[tuple[str, str]]:
        return [(one["level"], one["title"]) for one in outside.messages]

    world.configure("alerts", probes=[{"name": "api figures", "url": f"{outside.url}/metrics"}])
    outside.forget()
    serve(0.799)
    assert checks(world, 4)["bad"] == []
    serve(0.81)
    assert checks(world, 6)["failing"] == ["budget"]
    assert told() == [("notice", "notice: budget")]
    said = outside.messages[0]["text"]
    assert said.startswith(
        "NOTICE budget: 81 % of the 20 USD of this month are spent. Next: make usage"
    )
    serve(None)  # the api has just started and does not know yet
    assert checks(world, 4)["failing"] == ["budget"]
    serve(0.9999, 1)
    assert checks(world, 6)["failing"] == ["budget", "budget reached"]
    assert told()[1:] == [("alarm", "down: budget reached")]
    assert "every question is refused until it ends (UTC)" in outside.messages[1]["text"]
    serve(0)  # the next month
    assert checks(world, 4)["failing"] == []
    assert told()[2:] == [("recovery", "up: budget, budget reached")]
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
    outside.broken["/run"] = 500
    outside.forget()
    for _ in range(2):
        answer = world.n8n.webhook("seed-etl", Authorization=f"Bearer {WEBHOOK_KEY}")
        assert answer.status_code == 500
    eventually(lambda: outside.messages, "a message")
    outside.broken.clear()
    failures = [one for one in outside.messages if one["title"] == 'workflow "Seed ETL" failed']
    assert len(failures) == 1
    assert failures[0]["text"].startswith("Run: ")


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
