"""An upgrade from an older n8n keeps everything. Installs a second n8n, so it has its own verb: `make n8n-upgrade`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from local.waiting import eventually
from testbed.n8n.server import N8n
from testbed.n8n.world import WEBHOOK_KEY, World, running

FROM = os.environ.get("N8N_FROM") or "2.40.7"


def kept(world: World) -> dict[str, Any]:
    """What people and the role find in n8n: workflows, whether they run, credentials, what has run."""
    workflows = [world.n8n.api("GET", f"/workflows/{one['id']}") for one in world.workflows()]
    return {
        "workflows": [(one["id"], one["active"], one["nodes"]) for one in workflows],
        "runs": {
            one["id"]: sorted(run["id"] for run in world.n8n.executions(one["id"]))
            for one in workflows
        },
    }


def test_an_upgrade_keeps_what_the_workflows_are_and_know(tmp_path: Path) -> None:
    """The workflows of this repository, after a run of each, with an alarm that was told and is not over."""
    (tmp_path / "n8n").mkdir()
    with running(tmp_path / "n8n", version=FROM) as world:
        outside = world.outside
        outside.report = {"stored": 2, "failed": []}
        assert world.call("seed-etl") == outside.report
        # Of runs only those that failed are kept; the error handler tells of this one.
        outside.broken["/run"] = 500
        world.n8n.webhook("seed-etl", Authorization=f"Bearer {WEBHOOK_KEY}")
        eventually(lambda: outside.messages, "the message of the error handler")
        outside.broken.clear()
        outside.broken["/readyz"] = 503
        for _ in range(2):
            seen = world.call("alerts")
        assert seen["failing"] == ["api"]
        world.call("release-notice", {"service": "api", "result": "live", "revision": "0" * 40})
        eventually(lambda: outside.messages[-1]["title"] == "api live", "the notice of a release")
        told = len(outside.messages)
        before = kept(world)
        assert before["runs"]["seed-etl"]
        assert world.n8n.stop() == 0

        new = world.n8n = N8n(tmp_path / "n8n")
        try:
            new.start()
            for hook in ("seed-etl", "alerts", "release-notice"):
                world.wait_for_webhook(hook)
            assert kept(world) == before
            # It remembers that it was told, and by which key the api and the channel are reached.
            assert world.call("alerts")["failing"] == ["api"]
            assert len(outside.messages) == told
            outside.broken.clear()
            for _ in range(3):
                seen = world.call("alerts")
            assert seen["failing"] == []
            assert [one["title"] for one in outside.messages[told:]] == ["up: api"]
            assert world.call("seed-etl") == outside.report
        finally:
            new.kill()
