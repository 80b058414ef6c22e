"""`make auth`: the real Supabase CLI against a stand-in of Supabase's management API, and the mail it declares."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.supabase import mails
from testbed import supabase_management
from testbed.supabase_management import REF, Management

ROOT = Path(__file__).parents[2]
GIVEN = {
    "ENV": "production",
    "SUPABASE_URL": f"https://{REF}.supabase.co",
    "SUPABASE_ACCESS_TOKEN": "sbp_" + "a1" * 20,
    "WEB_DOMAIN": "app.example.com",
    "SMTP_HOST": "smtp.example.com",
    "SMTP_USER": "mailer",
    "SMTP_PASSWORD": "a-password-of-mails",
    "SMTP_FROM": "no-reply@example.com",
}


@pytest.fixture
def management(tmp_path: Path) -> Iterator[tuple[Management, Path]]:
    with supabase_management.management(tmp_path) as both:
        yield both


def auth(profile: Path | None, *options: str, **given: str) -> subprocess.CompletedProcess[str]:
    options = (*options, "--profile", str(profile)) if profile else options
    known = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "tools.auth", *options],
        cwd=ROOT,
        env={**known, **GIVEN, **given},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_shows_what_differs_and_changes_nothing_until_it_is_told_to(
    management: tuple[Management, Path],
) -> None:
    kept, profile = management
    plan = auth(profile, SMTP_PASSWORD="", RECEIPT_FACTS=str(profile.with_name("facts")))
    assert plan.returncode == 2, plan.stdout + plan.stderr
    assert '"https://app.example.com"' in plan.stdout
    assert "http://localhost:3000" in plan.stdout
    assert "secrets and the text of mails are not compared" in plan.stdout
    assert "Next: make auth ENV=production CONFIRM=yes" in plan.stdout
    assert kept.written == []
    noted = json.loads(profile.with_name("facts").read_text())["changed"]
    assert "auth.site_url (update)" in noted, "the nightly issue tells what differs"
    made = auth(profile, CONFIRM="yes", SIGN_UP="invited")
    assert made.returncode == 0, made.stdout + made.stderr
    (written,) = kept.written
    assert written["site_url"] == "https://app.example.com"
    assert (written["smtp_host"], written["smtp_pass"]) == (
        "smtp.example.com",
        GIVEN["SMTP_PASSWORD"],
    )
    assert written["disable_signup"] is True
    assert written["mailer_otp_length"] == 6
    assert "{{ .TokenHash }}" in written["mailer_templates_confirmation_content"]
    assert (
        written["mailer_templates_confirmation_content"]
        == written["mailer_templates_magic_link_content"]
    )
    assert kept.tokens == {f"Bearer {GIVEN['SUPABASE_ACCESS_TOKEN']}"}
    for said in (plan, made):
        assert GIVEN["SMTP_PASSWORD"] not in said.stdout + said.stderr
        assert GIVEN["SUPABASE_ACCESS_TOKEN"] not in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"SMTP_HOST": "", "SMTP_PASSWORD": "", "CONFIRM": "yes"},
            "not set: SMTP_HOST, SMTP_PASSWORD. Supabase's own mail sends two",
        ),
        ({"WEB_DOMAIN": ""}, "not set: WEB_DOMAIN"),
        ({"SUPABASE_URL": "https://auth.example.com"}, "names no project"),
        ({"ENV": "local"}, "make auth ENV=production"),
    ],
)
def test_what_would_leave_people_outside_is_refused(given: dict[str, str], says: str) -> None:
    done = auth(None, **given)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Next: " in done.stderr


def test_without_a_token_a_night_says_so_and_is_not_red() -> None:
    done = auth(None, "--with-token", SUPABASE_ACCESS_TOKEN="", SMTP_HOST="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("auth: not compared: SUPABASE_ACCESS_TOKEN is not set here")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("kind", ["signup", "magiclink"])
def test_the_mail_has_a_code_and_a_link_in_both_languages(kind: str) -> None:
    values = {"Token": "123456", "TokenHash": "ab&c", "SiteURL": "https://app.example.com"}
    subject, text, link = mails.mail(kind, values)
    assert "123456" in subject
    assert link == "https://app.example.com/sign-in#token_hash=ab&c&type=email"
    words = re.sub(r"<[^>]+>", " ", text)
    assert "O seu código" in words
    assert "Your code" in words
    assert words.count("123456") == 2
    assert "{{" not in text + subject
    # Nothing that a mail program would fetch, or a filter dislike; nothing that a scanner's GET uses up.
    assert not re.search(r"<(img|script|link|style)|url\(|/verify|ConfirmationURL", text)
