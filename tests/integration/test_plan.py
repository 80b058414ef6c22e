"""The plan of a pull request, on a copy of this repository with a change of each kind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from testbed.tree import copy_tree
from tools.plan import markdown

SECRET = "sk-this-is-the-callers-own"
WORKER = """
  worker:
    image: ${IMAGE_REPOSITORY}/worker:1
    environment:
      API_URL: https://${API_DOMAIN}/
    volumes: ["spool:/spool"]
"""
SETTINGS = """
  PAYMENT_KEY:
    what: key of the payments
    from: your bank
    needed_by: [services]
    app: [api]
    secret: true
  GREETING:
    what: what the product says first
    from: you choose
    used_by: [services]
    app: [api]
"""


class Clone:
    """The tree as it lies here, on `main`, with a branch `work` checked out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copy_tree(folder)
        self.git("init", "-q", "--initial-branch=main")
        self.commit()
        self.git("checkout", "-qb", "work")

    def git(self, *arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, check=True, capture_output=True
        )

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "change")

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new, 1))

    def plan(self, *arguments: str) -> tuple[int, str]:
        """(exit code, document), in a shell that has a secret of production."""
        folders = set(Path(tempfile.gettempdir()).glob("cimt-revision-*"))
        done = subprocess.run(
            [sys.executable, "-m", "tools.plan", "--base", "main", *arguments],
            cwd=self.folder,
            env=os.environ | {"OPENAI_API_KEY": SECRET, "DROPLET_HOST": SECRET, "SERVICE": SECRET},
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert SECRET not in done.stdout
        assert done.stdout.startswith("<!-- cimt-plan -->\n")
        assert set(Path(tempfile.gettempdir()).glob("cimt-revision-*")) <= folders
        return done.returncode, done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "a folder, 100 % new" / "clone")


def test_nothing_changes(clone: Clone) -> None:
    clone.edit("services/api/cimt_api/app.py", "\n", "\n\n")
    clone.git("checkout", "-qm", "main")
    clone.edit("services/compose.yaml", "memory: 384M", "memory: 448M")
    clone.commit()
    clone.git("checkout", "-q", "work")
    code, text = clone.plan()  # main has moved on, which is no change of ours
    assert (code, "Nothing changes in settings, apps, host, n8n and migrations." in text) == (
        0,
        True,
    ), text
    assert "###" not in text


def test_a_change_of_each_kind(clone: Clone) -> None:
    compose = "services/compose.yaml"
    clone.edit(compose, "memory: 384M", "memory: 512M")
    clone.edit(
        compose, "      OTEL_SERVICE_NAME: cimt-api\n", "      PAYMENT: Bearer ${PAYMENT_KEY}\n"
    )
    clone.edit(compose, "port: 8000", "port: 8001")
    clone.edit(compose, "\nconfigs:\n", f"{WORKER}\nconfigs:\n")
    clone.edit(compose, "\nvolumes:\n", "\nvolumes:\n  spool:\n")
    with (clone.folder / "services/settings.yaml").open("a") as opened:
        opened.write(SETTINGS.lstrip("\n"))
    clone.edit("services/settings.yaml", "default: gpt-6-luna", "default: gpt-7")
    with (clone.folder / "services/n8n/Dockerfile").open("a") as opened:
        opened.write("LABEL changed=1\n")
    with (clone.folder / "roles/baseline/templates/journald.conf.j2").open("a") as opened:
        opened.write(
            "# {{ lookup('ansible.builtin.env', 'OPENAI_API_KEY') }} ```\n"
            "# {{ lookup('ansible.builtin.pipe', 'env') | replace('\\n', ' ') }}\n"
        )
    clone.edit("roles/baseline/defaults/main.yml", "  - curl\n", "  - wget\n")
    clone.edit(
        "roles/host_report/templates/cimt-host-report.timer.j2", "[Timer]", "[Timer]\nPersistent=no"
    )
    clone.edit("plugins/module_utils/release_ledger.py", '"""', '"""Changed. ')
    workflows = clone.folder / "n8n_workflows"
    (workflows / "release-notice.json").unlink()
    notify = json.loads((workflows / "notify.json").read_text())
    changed, moved, gone = notify["nodes"][0], notify["nodes"][1], notify["nodes"].pop()
    changed["notes"] = "A note."
    moved["position"] = [1, 1]
    added = {
        "id": "new",
        "name": "Later `on`",
        "type": "n8n-nodes-base.wait",
        "typeVersion": 1,
        "position": [0, 0],
        "parameters": {},
    }
    notify["nodes"].append(added)
    (workflows / "notify.json").write_text(json.dumps(notify))
    migrations = clone.folder / "migrations"
    (migrations / "20990101000000_more.sql").write_text(
        "alter table public.profiles add column more text;\n"
    )
    (migrations / "20990102000000_less.sql").write_text("drop table public.profiles;\n")
    (migrations / "20200101000000_late.sql").write_text("select 1;\n")
    clone.commit()

    code, text = clone.plan()
    assert code == 0, text
    for line in (
        # settings
        "**Before the merge**, GitHub's environment `production` must have:\n\n- `PAYMENT_KEY` (secret): key of",
        "New, and may stay unset:\n\n- `GREETING` (variable): what the product says first. From: you choose\n",
        "- `CHAT_MODEL gpt-6-luna → gpt-7`\n",
        # apps
        "- `+ api.env.PAYMENT: Bearer ‹PAYMENT_KEY›`\n",
        "- `- api.env.OTEL_SERVICE_NAME: cimt-api`\n",
        "- `~ api.resources.memoryLimit: 384 -> 512`\n",
        "- `~ api.domains.‹API_DOMAIN›/: https to http port 8000 -> https to http port 8001`\n",
        "- `~ api.env.CHAT_MODEL: gpt-6-luna -> gpt-7`\n",
        "**worker** is new\n",
        "- `+ worker.image: ‹IMAGE_REPOSITORY›/worker:1`\n",
        "- `+ worker.mounts./spool: volume spool`\n",
        # host
        "- `+ package wget`\n",
        "- `- package curl`: stays where it is",
        "`/etc/systemd/journald.conf.d/90-cimt.conf` (file 0644; set baseline)\n\n````diff\n",
        "+# ‹OPENAI_API_KEY› ```\n",
        "cimt-host-report.timer` (file 0644; set host-report)\n\n```diff\n",
        "+Persistent=no\n",
        "These reach the droplet by Operate → provision, not by the merge",
        "**After the merge** Deploy stops, and has done nothing, until Operate → provision has brought the droplet",
        # n8n
        "`n8n_workflows/notify.json` (**Notify**) changes; it is active after the merge\n",
        "- `` + node Later `on` `` (n8n-nodes-base.wait)\n",
        f"- `- node {gone['name']}`\n",
        f"- `node {changed['name']}` changes: notes\n",
        "`n8n_workflows/release-notice.json` (**Release notice**) is removed: in n8n it stays",
        # migrations
        "- `20990101000000_more.sql` **expand**\n",
        "- `20990102000000_less.sql` **contract**: takes away what the running code may use: table public.prof",
        "- **refused**: out of order: migrations/20200101000000_late.sql is older than",
    ):
        assert line in text, f"{line}\n\nis not in\n\n{text}"
    assert re.search(
        r"- `~ n8n.image: ‹IMAGE_REPOSITORY›/n8n:[\d.]+-\w{8} -> ‹IMAGE_REPOSITORY›/n8n:[\d.]+-\w{8}`",
        text,
    )
    assert f"node {moved['name']}" not in text
    assert len(text) <= 60_000

    # Broken: it says what, and still shows the rest.
    clone.edit("services/compose.yaml", "services:", "services: [")
    code, text = clone.plan("--limit", "6000")
    assert (code, len(text) <= 6000) == (1, True)
    told, _, rest = text.partition("### Settings")
    assert "### Could not be computed\n\n- `here, " in told
    assert "services/compose.yaml" in told
    assert "### Apps" not in rest
    assert "PAYMENT_KEY" in rest


def test_a_base_that_is_not_here(clone: Clone) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.plan", "--base", "origin/other"],
        cwd=clone.folder,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("plan: git merge-base knows no 'origin/other' here")
    assert "Next: git fetch origin" in done.stderr


def test_what_is_cut_is_said_and_nothing_ends_its_block() -> None:
    block = markdown.fenced(["```", *(["x" * 100] * 200)], "diff")
    assert block.startswith("````diff\n```\n")
    assert re.search(r"\n````\n\nCut here: \d+ more lines of this diff are not shown\.$", block)
    for limit in range(200, 900):
        text = markdown.limited(["a" * 150, "b" * 300, "c" * 200], limit)
        assert len(text) <= limit
        assert ("Cut here" in text) is (limit < 656), limit
    assert len(markdown.code("y" * 10_000)) < 400
