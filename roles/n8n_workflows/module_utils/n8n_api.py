"""Client of n8n's public API, for the module that runs on the droplet (standard library only).

n8n publishes no port: a request goes to its loopback address inside its container's network. Contract: n8n's own
OpenAPI document, dist/public-api/v1/openapi.yml of the pinned version.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import io
import json
import os
import pathlib
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

TIMEOUT = 120.0  # seconds for one answer: an emulated droplet thinks for long
LABEL = "CIMT converge"  # of our API key, as the editor shows it
# What the converge does, and no more.
SCOPES = (
    *("workflow:list", "workflow:read", "workflow:create", "workflow:update", "workflow:import"),
    *("workflow:activate", "workflow:delete", "workflowTags:list", "workflowTags:update"),
    *("tag:list", "tag:create", "credential:list", "credential:create", "credential:update"),
)
CLONE_NEWNET = 0x40000000


class N8nError(Exception):
    """n8n refused an operation, or did not answer; ``status`` is the HTTP status (0: no answer)."""

    def __init__(self, purpose: str, status: int, message: str) -> None:
        super().__init__(f"n8n: {purpose}: {message}" + (f" (HTTP {status})" if status else ""))
        self.status = status


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Be in the network of a process for the block. Only this thread moves; a socket made there stays there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def move(descriptor: int) -> None:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot enter the container's network: {os.strerror(code)}")

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            move(theirs)
            try:
                yield
            finally:
                move(own)
        finally:
            os.close(theirs)
    finally:
        os.close(own)


class Api:
    """One n8n at ``port`` on loopback: of this host, or of the container whose PID ``container`` finds."""

    def __init__(self, port: int, container: Callable[[], int] | None = None) -> None:
        self.port = port
        self.container = container
        self.key = ""

    # -- the wire ---------------------------------------------------------------------

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Status, body and headers of one answer. Raises N8nError when there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            if self.container is None:
                connection.connect()
            else:
                with network_of(self.container()):
                    connection.connect()
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        except (OSError, http.client.HTTPException) as error:
            raise N8nError(f"{method} {path}", 0, f"no answer: {error}") from None
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the public API (``/workflows``…); the decoded answer."""
        data = b"" if body is None else json.dumps(body).encode()
        return self._send(method, path, data, "application/json")

    def _send(self, method: str, path: str, data: bytes, kind: str) -> Any:
        headers = {"X-N8N-API-KEY": self.key, "Content-Type": kind, "Accept": "application/json"}
        status, text, _ = self.ask(method, f"/api/v1{path}", data, headers)
        if not 200 <= status < 300:
            raise N8nError(f"{method} {path}", status, said(text))
        return json.loads(text) if text else None

    def all(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list, page by page."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            mark = "&" if "?" in path else "?"
            page = self.call(
                "GET", f"{path}{mark}limit=100" + (f"&cursor={cursor}" if cursor else "")
            )
            found += page["data"]
            cursor = page.get("nextCursor") or ""
            if not cursor:
                return found

    # -- what it is used for ----------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Until n8n can serve; raises N8nError with the last reason."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                status, _, _ = self.ask("GET", "/healthz/readiness")
                if status == 200:
                    return
                reason = f"/healthz/readiness answers {status}"
            except N8nError as error:
                reason = str(error)
            if time.monotonic() >= deadline:
                raise N8nError("start", 0, f"not ready after {seconds:.0f} s: {reason}")
            time.sleep(1)

    def key_works(self) -> bool:
        """Whether the key is still accepted, with every right that is needed."""
        try:
            self.call("GET", "/workflows?limit=1")
            self.call("GET", "/credentials?limit=1")
        except N8nError as error:
            if error.status in (401, 403):
                return False
            raise
        return True

    def new_key(self, email: str, password: str) -> str:
        """A fresh API key of the owner, by signing in as the editor does; an older one of ours ends."""
        headers = {"Content-Type": "application/json", "browser-id": "cimt"}

        def internal(method: str, path: str, body: Any = None) -> Any:
            data = b"" if body is None else json.dumps(body).encode()
            status, text, answered = self.ask(method, path, data, headers)
            if status == 401:
                raise N8nError("sign in", status, f"{email} or its password is not accepted")
            if not 200 <= status < 300:
                raise N8nError(f"{method} {path}", status, said(text))
            if cookie := answered.get("Set-Cookie"):
                headers["Cookie"] = cookie.split(";")[0]
            return json.loads(text)["data"]

        internal("POST", "/rest/login", {"emailOrLdapLoginId": email, "password": password})
        listed = internal("GET", "/rest/api-keys")
        for old in listed if isinstance(listed, list) else listed["items"]:
            if old["label"] == LABEL:
                internal("DELETE", f"/rest/api-keys/{old['id']}")
        body = {"label": LABEL, "expiresAt": None, "scopes": list(SCOPES)}
        return str(internal("POST", "/rest/api-keys", body)["rawApiKey"])

    def create(self, workflows: Sequence[dict[str, Any]]) -> None:
        """Make workflows with the ids they have (all or none); unpublished, without tags.

        By a package, because a plain POST /workflows gives an id of its own. A beta of n8n: the tests run it.
        """
        boundary = secrets.token_hex(16)
        fields = {"workflowConflictPolicy": "fail", "workflowPublishingPolicy": "unpublish-all"}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f"--{boundary}\r\nContent-Disposition: form-data; "
            'name="package"; filename="cimt.n8np"\r\nContent-Type: application/gzip\r\n\r\n'
        )
        data = "".join(parts).encode() + package(workflows) + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        self._send("POST", "/n8n-packages/import", data, kind)

    def listens(self, path: str, method: str) -> bool:
        """Whether a production webhook is registered, without calling it (a browser's preflight asks the same)."""
        headers = {"Access-Control-Request-Method": method, "Origin": "http://localhost"}
        _, _, answered = self.ask("OPTIONS", f"/webhook/{path}", headers=headers)
        return method in answered.get("Access-Control-Allow-Methods", "").split(", ")


def package(workflows: Sequence[dict[str, Any]]) -> bytes:
    """An n8n package (format 1): gzip-compressed tar, its manifest first."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:

        def add(path: str, content: Any) -> None:
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        entries = [
            {"id": one["id"], "name": one["name"], "target": f"workflows/{one['id']}"}
            for one in workflows
        ]
        manifest = {
            "packageFormatVersion": "1",
            "exportedAt": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
            "sourceN8nVersion": "2",
            "sourceId": "cimt",
            "workflows": entries,
        }
        add("manifest.json", manifest)
        for one in workflows:
            keep = {key: one[key] for key in ("id", "name", "nodes", "connections", "settings")}
            add(
                f"workflows/{one['id']}/workflow.json",
                {**keep, "parentFolderId": None, "isArchived": False},
            )
            add(
                f"workflows/{one['id']}/workflow-metadata.json",
                {"versionId": "file", "publishedVersionId": None},
            )
    return stream.getvalue()


def said(text: bytes) -> str:
    """n8n's own words from an error body."""
    try:
        body = json.loads(text)
        detail = body.get("description") or body.get("issues") or ""
        return str(body["message"]) + (f" ({str(detail)[:500]})" if detail else "")
    except (ValueError, KeyError, AttributeError):
        return text.decode(errors="replace")[:200] or "empty answer"


def container_pid(run: Callable[[list[str]], tuple[int, str, str]], docker: str, name: str) -> int:
    """PID, on this host, of the one running container of a Swarm service. Raises N8nError when there is none."""
    listed = [docker, "ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={name}"]
    _, out, _ = run([*listed, "--filter", "status=running"])
    if not out.split():
        raise N8nError("container", 0, f"no container of {name} runs")
    code, pid, err = run([docker, "inspect", "--format", "{{.State.Pid}}", out.split()[0]])
    if code != 0 or not pid.strip().isdigit():
        raise N8nError("container", 0, f"of {name} went away: {err.strip()[:200]}")
    return int(pid)


def volume_key(volume: str) -> str:
    """The encryption key that n8n keeps on its volume; '' on a fresh one. Raises N8nError for a broken file."""
    path = pathlib.Path(volume, "config")
    try:
        return str(json.loads(path.read_text())["encryptionKey"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise N8nError("volume", 0, f"{path} cannot be read: {error!r}") from None
