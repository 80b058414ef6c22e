"""A started n8n with the workflows of the repository in it, and what lies outside. For tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from local.settings import ROOT
from local.waiting import eventually
from plugins.module_utils import n8n_files
from testbed.n8n.outside import ETL_KEY, Outside
from testbed.n8n.server import N8n

HERE = ROOT / "services/n8n"
WORKFLOWS = ROOT / "n8n_workflows"
WEBHOOK_KEY = "key-of-our-webhooks-0123456789abcdef"


class World:
    """A started n8n with the workflows of the repository, and what lies outside."""

    def __init__(self, n8n: N8n, outside: Outside) -> None:
        self.n8n, self.outside = n8n, outside
        self.cron = (
            "0 0 1 1 *"  # of every schedule: only the test that is about it lets one come due
        )
        self.settings: dict[str, dict[str, Any]] = {
            "notify": {"channels": ["webhook"], "webhook_url": f"{outside.url}/notify"},
            "seed-etl": {"etl": outside.url},
            "alerts": {
                "probes": [{"name": "api", "url": f"{outside.url}/readyz"}],
                "confirm": 2,
                "host": {**self.file("alerts")["host"], "max_age_minutes": 0},
            },
        }

    @staticmethod
    def file(workflow: str) -> dict[str, Any]:
        """The settings that a workflow has in its file."""
        found = n8n_files.settings_of(json.loads((WORKFLOWS / f"{workflow}.json").read_text()))
        assert found is not None
        return found

    def files(self) -> list[dict[str, Any]]:
        """The workflows of the repository, every schedule by ``cron``: what comes due disturbs what a test counts."""
        files = [json.loads(path.read_text()) for path in sorted(WORKFLOWS.glob("*.json"))]
        for node in (node for one in files for node in one["nodes"]):
            if node["type"] == "n8n-nodes-base.scheduleTrigger":
                node["parameters"]["rule"]["interval"][0]["expression"] = self.cron
        return files

    def workflows(self) -> list[dict[str, Any]]:
        """They as they are put into n8n: rendered with ``settings``, the called before their callers."""
        rendered = [n8n_files.render(one, self.settings.get(one["id"], {})) for one in self.files()]
        return [{**one, "tags": []} for one in n8n_files.publish_order(rendered)]

    def configure(self, workflow: str, **settings: Any) -> None:
        """Change settings of a running workflow. Unpublished meanwhile: no call can reach its old version."""
        self.settings[workflow] = {**self.settings.get(workflow, {}), **settings}
        body = next(one for one in self.workflows() if one["id"] == workflow)
        keep = ("name", "nodes", "connections", "settings")
        self.n8n.api("POST", f"/workflows/{workflow}/deactivate")
        eventually(lambda: self.n8n.webhook(workflow).status_code == 404, f"{workflow} is off")
        self.n8n.api("PUT", f"/workflows/{workflow}", {key: body[key] for key in keep})
        self.n8n.api("POST", f"/workflows/{workflow}/activate")
        self.wait_for_webhook(workflow)

    def wait_for_webhook(self, path: str) -> None:
        """Until it is there: without its key it then answers 403, before that 404."""
        eventually(lambda: self.n8n.webhook(path).status_code == 403, f"webhook {path}")

    def call(self, path: str, body: Any = None) -> Any:
        key = {"Authorization": f"Bearer {WEBHOOK_KEY}"}
        url = f"{self.n8n.url}/webhook/{path}"
        answer = httpx.post(url, json=body, headers=key, timeout=700)  # an ETL may take long
        assert answer.status_code == 200, answer.text + self.n8n.tail()
        return answer.json()


@contextlib.contextmanager
def running(folder: Path, **environment: str) -> Iterator[World]:
    """Imported, started, published, and every webhook registered."""
    with Outside() as outside:
        outside.pages["/readyz"] = ("application/json", b'{"status": "ready"}')
        n8n = N8n(folder, **environment)
        world = World(n8n, outside)
        declared = yaml.safe_load((HERE / "credentials.yaml").read_text())
        secrets = {
            "ETL_KEY": ETL_KEY,
            "N8N_WEBHOOK_KEY": WEBHOOK_KEY,
            "NOTIFY_WEBHOOK_KEY": "key-of-the-webhook",
            "NOTIFY_SLACK_TOKEN": "slack-token",
        }
        files = {
            "credentials": n8n_files.credentials(declared, secrets),
            "workflow": world.workflows(),
        }
        for kind, content in files.items():
            path = n8n.folder / f"{kind}.json"
            path.write_text(json.dumps(content))
            n8n.cli(f"import:{kind}", f"--input={path}")
        try:
            n8n.start()
            for one in world.workflows():
                n8n.api("POST", f"/workflows/{one['id']}/publish")
            for hook in ("seed-etl", "alerts", "release-notice"):
                world.wait_for_webhook(hook)
            yield world
        finally:
            n8n.kill()
