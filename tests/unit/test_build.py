"""services/build.sh, with a stand-in for buildah: what is asked of it, and what is written down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32
BUILDAH = f"""#!/bin/bash
printf '%s\\n' "$*" >>"$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = --digestfile ]; then printf '{DIGEST}' >"$2"; fi
  shift
done
exit "${{BUILDAH_EXIT:-0}}"
"""


class Checkout:
    """A small repository with one service, and buildah as we want it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "checkout"
        self.calls = root / "calls"
        self.result = self.root / ".local/build/api.json"
        programs = root / "bin"
        programs.mkdir()
        (programs / "buildah").write_text(BUILDAH)
        (programs / "buildah").chmod(0o755)
        self.path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        service = self.root / "services/api"
        service.mkdir(parents=True)
        shutil.copy(ROOT / "services/build.sh", self.root / "services")
        (service / "Dockerfile").write_text("FROM scratch\n")
        (service / "code.py").write_text("1\n")
        (self.root / ".gitignore").write_text("/.local/\n__pycache__/\n")
        self.git("init", "-q")
        self.commit()

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.root), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "test")

    def build(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "services/build.sh"), *arguments],
            env=os.environ
            | {"PATH": self.path, "CALLS": str(self.calls), "SSL_CERT_FILE": ""}
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def revision(self) -> str:
        result = self.build("api", "--repository", "example.com/cimt/api")
        assert result.returncode == 0, result.stderr
        return str(json.loads(self.result.read_text())["revision"])


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_result_names_image_digest_revision_and_where_it_was_pushed(checkout: Checkout) -> None:
    pull = "10.0.2.2:5000/cimt/api"
    arguments = ["--repository", "example.com/cimt/api", "--pull-repository", pull]
    result = checkout.build("api", *arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads(checkout.result.read_text()) == {
        "image": f"{pull}@{DIGEST}",
        "digest": DIGEST,
        "revision": checkout.git("rev-parse", "HEAD"),
        "pushed_to": "example.com/cimt/api",
    }
    assert f"{pull}@{DIGEST}" in result.stdout
    assert [path.name for path in checkout.result.parent.iterdir()] == ["api.json"]


def test_buildah_gets_base_revision_certificate_and_tag(checkout: Checkout) -> None:
    certificate = checkout.root.parent / "ca.crt"
    certificate.write_text("a certificate\n")
    repository = "example.com/cimt/api"
    arguments = ["--repository", repository, "--base", "localhost/cimt/base:1", "--tag", "2.33.1"]
    assert checkout.build("api", *arguments, SSL_CERT_FILE=str(certificate)).returncode == 0
    build, push = checkout.calls.read_text().splitlines()
    assert build.startswith("bud ")
    # The OCI format has no HEALTHCHECK.
    assert "--format docker" in build
    assert f"REVISION={checkout.git('rev-parse', 'HEAD')}" in build
    assert "BASE_IMAGE=localhost/cimt/base:1" in build
    assert f"--secret id=ca,src={certificate}" in build
    assert push.startswith("push ")
    assert push.endswith(f"{repository}:2.33.1")
    assert "tls-verify" not in push


def test_a_changed_tree_has_another_revision(checkout: Checkout) -> None:
    service = checkout.root / "services/api"
    clean = checkout.revision()
    assert clean == checkout.git("rev-parse", "HEAD")
    (service / "__pycache__").mkdir()
    (service / "__pycache__/code.pyc").write_text("2\n")
    (checkout.root / "elsewhere").write_text("not the service's\n")
    assert checkout.revision() == clean
    (service / "code.py").write_text("2\n")
    changed = checkout.revision()
    assert changed.startswith(f"{clean}-dirty-")
    assert len(changed) == len(clean) + len("-dirty-") + 8
    assert checkout.revision() == changed
    (service / "new.py").write_text("3\n")
    added = checkout.revision()
    (service / "code.py").unlink()
    assert len({clean, changed, added, checkout.revision()}) == 4
    checkout.commit()
    assert checkout.revision() == checkout.git("rev-parse", "HEAD")


def test_a_failed_build_keeps_the_last_result(checkout: Checkout) -> None:
    checkout.revision()
    before = checkout.result.read_text()
    result = checkout.build("api", "--repository", "example.com/other", BUILDAH_EXIT="7")
    assert result.returncode != 0
    assert checkout.result.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which service"),
        (["api"], "--repository is missing"),
        (["api", "--repository"], "--repository needs a value"),
        (["web", "--repository", "example.com/web"], "services/web/Dockerfile"),
        (["api", "--repositry", "example.com/api"], "--repositry"),
        (["api", "--repository", "127.0.0.1:1/api", "--local"], "python -m local clouds start"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_built(
    checkout: Checkout, arguments: list[str], says: str
) -> None:
    result = checkout.build(*arguments)
    assert result.returncode != 0
    assert says in result.stderr
    assert not checkout.calls.exists()
