"""An upgrade from an older n8n keeps everything. Installs a second n8n, so it has its own verb: `make n8n-upgrade`."""

from __future__ import annotations

import os
from pathlib import Path

from testbed.n8n.samples import CREDENTIAL, Slow, workflow
from testbed.n8n.server import N8n
from tests.n8n.test_durability import call

FROM = os.environ.get("N8N_FROM") or "2.40.7"


def test_an_upgrade_keeps_workflows_credentials_and_executions(tmp_path: Path) -> None:
    slow = Slow()
    slow.gate.set()
    old, new = N8n(tmp_path / "n8n", FROM), N8n(tmp_path / "n8n")
    try:
        old.start()
        old.cli_import(workflow(slow.url))
        old.cli_import_credential(CREDENTIAL)
        old.api("POST", "/workflows/sample/publish", {})
        call(old, slow)
        before = old.executions("sample")
        assert old.stop() == 0

        new.start()
        kept = new.api("GET", "/workflows/sample")
        assert kept["active"]
        assert kept["nodes"] == workflow(slow.url)["nodes"]
        assert [one["id"] for one in new.executions("sample")] == [one["id"] for one in before]
        call(new, slow)
    finally:
        old.kill()
        new.kill()
        slow.close()
