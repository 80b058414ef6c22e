"""Production releases what GitHub attests: the deploy playbook, with stand-ins for `gh` and for ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plugins.filter.settings import needed

ROOT = Path(__file__).parents[2]
IMAGE = "ghcr.io/example/cimt/api@sha256:" + "ab" * 32
REVISION = "c" * 40
GH = """#!/bin/sh
echo "gh $*" >>"$CALLS"
cat "$DOCKER_CONFIG/config.json" >"$CALLS.sign-in"
echo "$GH_SAYS" >&2
exit "$GH_EXIT"
"""
SSH = """#!/bin/sh
echo ssh >>"$CALLS"
exit 255
"""
# What the playbook cannot do without, whatever it is.
NEEDED = needed(yaml.safe_load((ROOT / "services/settings.yaml").read_text()))["deploy"]
WANTED = (
    f"gh attestation verify oci://{IMAGE} --repo Example/cimt "
    f"--source-ref refs/heads/main --source-digest {REVISION}"
)


def deploy(folder: Path, **environment: str) -> tuple[list[str], str]:
    """What was called of `gh` and ssh, in order, and what the playbook said, on one line."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("gh", GH), ("ssh", SSH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    ansible = Path(sys.executable).with_name("ansible-playbook")
    command = [ansible, "-i", "inventory/production", "playbooks/deploy.yml"]
    given = dict.fromkeys(NEEDED, "anything") | {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        "CALLS": str(calls),
        "GH_EXIT": "0",
        "GH_SAYS": "",
        "GITHUB_REPOSITORY": "Example/cimt",
        "ALLOW_OLDER": "true",  # the revision is nobody's
        "DROPLET_HOST": "192.0.2.1",
        "API_DOMAIN": "api.example.com",
        "WEB_DOMAIN": "app.example.com",
        "REGISTRY_USERNAME": "me",
        "REGISTRY_PASSWORD": "a-token-to-pull",
        "BUILDS": json.dumps({"api": {"image": IMAGE, "revision": REVISION}}),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=given | environment, capture_output=True, text=True
    )
    assert done.returncode != 0, "the stand-in of ssh reaches nothing"
    said = " ".join((done.stdout + done.stderr).replace("\\n", " ").split())
    assert "a-token-to-pull" not in said
    return calls.read_text().splitlines(), said


def test_an_attested_image_is_released(tmp_path: Path) -> None:
    calls, said = deploy(tmp_path)
    assert calls[0] == WANTED, said
    assert set(calls[1:]) == {"ssh"}
    sign_in = json.loads((tmp_path / "calls.sign-in").read_text())
    assert list(sign_in["auths"]) == ["ghcr.io"]


@pytest.mark.parametrize(
    ("code", "says", "then"),
    [
        ("1", "no attestations found for subject", f"Next: {WANTED}. "),
        ("4", "please run: gh auth login", "Next: gh auth login, or set GH_TOKEN. "),
    ],
)
def test_without_an_attestation_nothing_is_touched(
    tmp_path: Path, code: str, says: str, then: str
) -> None:
    calls, said = deploy(tmp_path, GH_EXIT=code, GH_SAYS=says)
    assert calls == [WANTED], said
    assert f"{IMAGE} is not released" in said
    assert says in said
    assert then in said
    assert "ATTEST=none" in said


def test_an_environment_without_attestations_asks_for_none(tmp_path: Path) -> None:
    calls, said = deploy(tmp_path, ATTEST="none")
    assert set(calls) == {"ssh"}, said


def test_the_real_gh_takes_this_command(tmp_path: Path) -> None:
    """It knows every option, and stops only where it would ask GitHub."""
    gh = Path(sys.executable).with_name("gh")
    done = subprocess.run(
        [gh, *WANTED.split()[1:]],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert "gh auth login" in done.stderr
