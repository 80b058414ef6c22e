"""A real n8n on loopback with the environment that services/compose.yaml gives it in production."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from local.images import n8n as installation
from local.settings import ROOT, load
from local.waiting import eventually, free_port
from plugins.filter import settings
from plugins.filter.compose import panel_apps
from plugins.filter.n8n import n8n_password_hash

OWNER = "owner@example.com"
PASSWORD = "Correct-horse-battery-1"
KEY = "an-encryption-key-for-tests-only"
START_SECONDS = 300  # the CI machine is slow


def compose_environment(key: str = KEY) -> dict[str, str]:
    """n8n's environment as the panel would get it, for n8n.example.com."""
    whole = yaml.safe_load((ROOT / "services/compose.yaml").read_text())
    alone = {**whole, "services": {"n8n": whole["services"]["n8n"]}, "configs": {}}
    given = {
        "IMAGE_REPOSITORY": "registry.example.com",
        "N8N_DOMAIN": "n8n.example.com",
        "N8N_OWNER_EMAIL": OWNER,
        "N8N_ENCRYPTION_KEY": key,
    }
    file = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
    known = settings.values(file, given)
    plain = settings.of_apps(file, known) | {"N8N_TAG": "1"}
    secrets = settings.of_apps(file, known, secret=True)
    secrets["N8N_OWNER_PASSWORD_HASH"] = n8n_password_hash(PASSWORD, key)
    declared = panel_apps(yaml.safe_dump(alone), plain, secrets)
    environment: dict[str, str] = declared["apps"][0]["env"] | declared["secret_env"]["n8n"]
    return environment


class N8n:
    """One n8n whose volume is ``folder``; `start` again after `stop` or `kill` keeps what is in it."""

    def __init__(self, folder: Path, version: str = "", **environment: str) -> None:
        self.folder = folder
        self.installed = installation.ensure(load(), version)
        self.port, self.broker = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = installation.environment(
            self.installed,
            {
                **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
                **self.declared(),
                # What a container would keep apart.
                "HOME": str(folder),
                "N8N_USER_FOLDER": str(folder),
                "N8N_LISTEN_ADDRESS": "127.0.0.1",
                "N8N_PORT": str(self.port),
                "N8N_RUNNERS_BROKER_PORT": str(self.broker),
                "N8N_LOG_LEVEL": "info",
                # The world outside is on loopback here.
                "N8N_SSRF_ALLOWED_IP_RANGES": "127.0.0.1/32",
                **environment,
            },
        )
        self.log = folder / "n8n.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._session: httpx.Client | None = None
        self._key = ""

    def declared(self) -> dict[str, str]:
        """What its compose file gives it."""
        return compose_environment()

    # -- its life ---------------------------------------------------------------------

    def start(self, wait: bool = True) -> N8n:
        """Start it; with ``wait`` until it can serve."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["n8n", "start"],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the task runner goes with it
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Until /healthz/readiness says 200; fails with the log when it does not come."""

        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(f"{self.url}/healthz/readiness", timeout=10)
                return answer.status_code == 200
            return False

        try:
            eventually(ready, "n8n is ready", START_SECONDS, self.process)
        except TimeoutError as error:
            raise AssertionError(f"{error}:\n{self.tail()}") from None

    def stop(self) -> int:
        """Ask it to end, as Swarm does; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """kill -9 of n8n and its task runner."""
        return self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        process, self.process, self._session = self.process, None, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how) if how == signal.SIGKILL else process.send_signal(how)
        try:
            return process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def cli(self, *arguments: str, seconds: float = 300) -> str:
        """Output of `n8n ARGUMENTS` on the same volume."""
        done = subprocess.run(
            ["n8n", *arguments],
            env={**self.environment, "N8N_RUNNERS_BROKER_PORT": str(free_port())},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"n8n {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def cli_import(self, workflow: Mapping[str, Any]) -> None:
        """Put a workflow in with the id it has; unpublished."""
        self._import("workflow", dict(workflow))

    def cli_import_credential(self, credential: Mapping[str, Any]) -> None:
        """Put a credential in with the id it has."""
        self._import("credentials", [dict(credential)])

    def _import(self, kind: str, content: Any) -> None:
        path = self.folder / "import.json"
        path.write_text(json.dumps(content))
        self.cli(f"import:{kind}", f"--input={path}")
        path.unlink()

    # -- asking it --------------------------------------------------------------------

    def session(self) -> httpx.Client:
        """The owner, signed in as the editor does."""
        if self._session is None:
            session = httpx.Client(base_url=self.url, timeout=60, headers={"browser-id": "tests"})
            answer = session.post(
                "/rest/login", json={"emailOrLdapLoginId": OWNER, "password": PASSWORD}
            )
            assert answer.status_code == 200, answer.text
            # The cookie is for HTTPS only, so the client would not send it here.
            session.headers["Cookie"] = f"n8n-auth={answer.cookies['n8n-auth']}"
            self._session = session
        return self._session

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the public API (`/workflows`…), with all rights; the decoded answer."""
        if not self._key:
            scopes = self.session().get("/rest/api-keys/scopes").json()["data"]
            made = self.session().post(
                "/rest/api-keys",
                json={"label": f"tests {self.port}", "expiresAt": None, "scopes": scopes},
            )
            assert made.status_code == 200, made.text
            self._key = made.json()["data"]["rawApiKey"]
        answer = httpx.request(
            method,
            f"{self.url}/api/v1{path}",
            json=body,
            headers={"X-N8N-API-KEY": self._key},
            timeout=60,
        )
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def webhook(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """POST to a production webhook."""
        return httpx.post(f"{self.url}/webhook/{path}", json=body, headers=headers, timeout=60)

    def install(self, workflows: Sequence[Mapping[str, Any]]) -> None:
        """Import and publish workflows and start: for tests of what a workflow does. n8n must not run."""
        assert self.process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        for workflow in workflows:
            self.cli_import(workflow)
        self.start()
        for workflow in workflows:
            self.api("POST", f"/workflows/{workflow['id']}/publish")

    def executions(self, workflow: str, status: str = "") -> list[dict[str, Any]]:
        """Finished and running executions of a workflow, newest first, with their data."""
        query = f"/executions?workflowId={workflow}&includeData=true&limit=100"
        found: list[dict[str, Any]] = self.api(
            "GET", query + (f"&status={status}" if status else "")
        )["data"]
        return found
