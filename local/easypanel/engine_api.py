"""The Docker Engine's HTTP API over its Unix socket.

The standard library does it in a page: importing the Docker SDK costs five seconds on an emulated
CPU, at every start of the panel and of ``setup``.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

SOCKET = "/var/run/docker.sock"


class EngineError(Exception):
    """The engine refused; ``status`` is its HTTP status (0: no answer)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; ``timeout`` in seconds for each read."""

    def __init__(self, path: str, timeout: float, host: str = "localhost") -> None:
        super().__init__(host, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def registry_auth(username: str | None, password: str | None) -> dict[str, str]:
    """Header that carries registry credentials; none without a user name."""
    if not username:
        return {}
    value = json.dumps({"username": username, "password": password or ""}).encode()
    return {"X-Registry-Auth": base64.urlsafe_b64encode(value).decode()}


class EngineApi:
    """One engine. Paths are given without a version: the engine then uses its own newest."""

    def __init__(self, path: str = SOCKET, timeout: float = 60) -> None:
        self._path = path
        self._timeout = timeout

    def _open(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: Any,
        headers: dict[str, str] | None,
        timeout: float | None,
    ) -> tuple[UnixConnection, http.client.HTTPResponse]:
        values = {
            key: json.dumps(value) if isinstance(value, dict | list | bool) else value
            for key, value in (query or {}).items()
        }
        url = quote(path, safe="/:@") + ("?" + urlencode(values) if values else "")
        connection = UnixConnection(self._path, timeout or self._timeout)
        sent = dict(headers or {})
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, url, data, sent)
            response = connection.getresponse()
            if response.status >= 400:
                text = response.read().decode(errors="replace")
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    text = json.loads(text)["message"]
                connection.close()
                raise EngineError(response.status, text.strip())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise EngineError(0, f"Docker does not answer at {self._path}: {error}") from error
        return connection, response

    def call(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The decoded answer, None when it is empty; objects in ``query`` are sent as JSON."""
        connection, response = self._open(method, path, query, body, headers, timeout)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(0, f"Docker broke off its answer to {path}: {error}") from error
        finally:
            connection.close()
        return json.loads(data) if data.strip() else None

    def stream(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """The JSON objects of a streamed answer, as they come."""
        connection, response = self._open(method, path, query, None, headers, timeout)
        try:
            for line in response:
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(0, f"Docker broke off its answer to {path}: {error}") from error
        finally:
            connection.close()

    def container_log(self, container: str, lines: int) -> list[str]:
        """The last lines that a container wrote to stdout and stderr."""
        query = {"stdout": True, "stderr": True, "tail": lines}
        connection, response = self._open(
            "GET", f"/containers/{container}/logs", query, None, None, None
        )
        try:
            data = response.read()
        finally:
            connection.close()
        # Without a terminal every piece has a header: stream (1 byte), 3 zeros, length (4 bytes).
        text, position = b"", 0
        while (
            len(data) - position >= 8
            and data[position] <= 2
            and data[position + 1 : position + 4] == b"\0\0\0"
        ):
            (size,) = struct.unpack(">I", data[position + 4 : position + 8])
            text += data[position + 8 : position + 8 + size]
            position += 8 + size
        return (text if position else data).decode(errors="replace").splitlines()[-lines:]
