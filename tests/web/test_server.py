"""What the page's server answers: the real nginx with the image's files, and what start.sh refuses to serve."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testbed import web
from testbed.api import REVISION

GIVEN = {
    "API_URL": "https://api.example.com",
    "SUPABASE_URL": "https://abcdefghijklmnopqrst.supabase.co/",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_x",
}


@pytest.fixture(scope="module")
def page() -> Iterator[httpx.Client]:
    web.build()
    with web.served(GIVEN) as url, httpx.Client(base_url=url) as client:
        yield client


def test_the_page_and_its_files_are_kept_as_long_as_they_are_good(page: httpx.Client) -> None:
    answer = page.get("/")
    assert answer.headers["cache-control"] == "no-cache"
    (program,) = re.findall(r'src="(/assets/[^"]+\.js)"', answer.text)
    file = page.get(program, headers={"Accept-Encoding": "gzip"})
    assert file.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert file.headers["content-encoding"] == "gzip"
    assert file.headers["content-type"].startswith("text/javascript")
    # A place within the page is the page; a file that is not there is not.
    assert page.get("/c/0b7f0000-0000-4000-8000-000000000000").text == answer.text
    missing = page.get("/assets/index-gone.js")
    assert missing.status_code == 404
    assert "immutable" not in missing.headers.get("cache-control", "")


def test_what_differs_between_environments_is_told_at_run_time(page: httpx.Client) -> None:
    config = page.get("/config.js")
    assert config.headers["cache-control"] == "no-store"
    told = json.loads(config.text.removeprefix("window.CIMT = "))
    assert told == {
        "apiUrl": "https://api.example.com",
        "supabaseUrl": "https://abcdefghijklmnopqrst.supabase.co",
        "publishableKey": "sb_publishable_x",
        "signUp": "open",
    }
    health = page.get("/healthz")
    assert health.json() == {"status": "ok", "revision": REVISION}
    assert health.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/config.js", "/healthz", "/icon.svg", "/assets/none"]
)
def test_every_answer_has_the_policy(page: httpx.Client, path: str) -> None:
    headers = page.get(path).headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert (
        "connect-src 'self' https://api.example.com https://abcdefghijklmnopqrst.supabase.co;"
        in policy
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["server"] == "nginx", "without its version"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_URL", ""),
        ("API_URL", "https://api.example.com; script-src *"),
        ("API_URL", 'https://a"+alert(1)+"'),
        ("SUPABASE_URL", "https://a\nscript-src *"),
        ("SUPABASE_PUBLISHABLE_KEY", ""),
        ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_abc"),
        ("SUPABASE_PUBLISHABLE_KEY", '"};alert(1)'),
        ("SIGN_UP", "closed"),
        ("PORT", "80; root /"),
    ],
)
def test_what_makes_no_sense_is_not_served(tmp_path: Path, name: str, value: str) -> None:
    shutil.copy(web.SERVICE / "start.sh", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "revision").write_text(REVISION)
    done = subprocess.run(
        [tmp_path / "start.sh"],
        env={"PATH": os.environ["PATH"], **GIVEN, name: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"web: {name}" in done.stderr
    assert "sb_secret_abc" not in done.stderr
