"""A client that costs little: raw HTTP/1.1 on asyncio, one connection per user while it lasts, read by its bytes."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

END = b"data: [DONE]"
TEXT = re.compile(rb'"content": ?"[^"]')  # in the first event with text; an empty one is the role
WAIT_SECONDS = 120.0


@dataclass
class Target:
    """Where a question goes, and as what."""

    name: str
    url: str
    body: dict[str, object]
    headers: dict[str, str] = field(default_factory=dict)
    pids: tuple[int, ...] = ()

    def request(self, question: str) -> bytes:
        """The bytes of one request; `$QUESTION` in the body stands for the question."""
        at = urlsplit(self.url)
        body = json.dumps(self.body).replace("$QUESTION", question).encode()
        lines = [f"POST {at.path} HTTP/1.1", f"Host: {at.netloc}", "Content-Type: application/json"]
        lines += ["Accept: text/event-stream", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """One user's connection."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> asyncio.StreamWriter:
        """Connect."""
        at = urlsplit(self.target.url)
        self.reader, self.writer = await asyncio.open_connection(at.hostname, at.port)
        return self.writer

    async def first_text(self, request: bytes) -> tuple[float, bytes]:
        """Send; seconds until text came, and what was read by then. RuntimeError unless it is a stream."""
        started = time.perf_counter()
        writer = self.writer or await self.open()
        writer.write(request)
        got = b""
        async with asyncio.timeout(WAIT_SECONDS):
            while not TEXT.search(got):
                data = await self.reader.read(65536)
                got += data
                if not data or not got.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"{self.target.name}: {got[:600].decode(errors='replace')}")
        return time.perf_counter() - started, got

    async def stream(self, request: bytes) -> float:
        """One whole stream; seconds until its first text."""
        seconds, got = await self.first_text(request)
        tail = got[-64:]
        async with asyncio.timeout(WAIT_SECONDS):
            while not (END in tail and tail.endswith(b"0\r\n\r\n")):
                data = await self.reader.read(65536)
                if not data:
                    raise RuntimeError(f"{self.target.name}: the stream broke off")
                tail = (tail + data)[-64:]
        if b"\r\nconnection: close\r\n" in got[: got.index(b"\r\n\r\n") + 2].lower():
            self.close()
        return seconds

    def close(self) -> None:
        """Leave, if it ever came."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


async def first_token(target: Target, question: str, times: int) -> list[float]:
    """Seconds until the first text, one stream after the other on one connection."""
    connection = Connection(target)
    request = target.request(question)
    seconds = [await connection.stream(request) for _ in range(times)]
    connection.close()
    return seconds


async def throughput(
    target: Target, question: str, users: int, seconds: float = math.inf, streams: float = math.inf
) -> float:
    """Whole streams per second, with so many users who ask again as soon as they are answered.

    It ends after so many seconds or streams.
    """
    request = target.request(question)
    finished = 0
    until = 0.0

    async def user() -> None:
        nonlocal finished
        connection = Connection(target)
        while time.perf_counter() < until and finished < streams:
            await connection.stream(request)
            finished += 1
        connection.close()

    started = time.perf_counter()
    until = started + seconds
    await asyncio.gather(*(user() for _ in range(users)))
    return finished / (time.perf_counter() - started)


async def memory(target: Target, question: str, streams: int) -> int:
    """Resident memory in MB while so many streams are open and each has had some text."""
    connections = [Connection(target) for _ in range(streams)]
    request = target.request(question)
    turn = asyncio.Semaphore(50)  # a listen queue is not what is measured

    async def begin(connection: Connection) -> None:
        async with turn:
            await connection.first_text(request)

    try:
        await asyncio.gather(*(begin(connection) for connection in connections))
        return resident(target.pids)
    finally:
        for connection in connections:
            connection.close()
        async with asyncio.timeout(WAIT_SECONDS):  # until the server has noticed
            while accepted(target):  # noqa: ASYNC110 - another process, and it tells nobody
                await asyncio.sleep(0.1)


def accepted(target: Target) -> int:
    """How many connections to a target's port still stand, in whatever state but the last one."""
    port = urlsplit(target.url).port
    ends = subprocess.run(
        ["ss", "-Htn", "state", "connected", "exclude", "time-wait", f"sport = :{port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return len(ends.stdout.splitlines())


def resident(pids: tuple[int, ...]) -> int:
    """Resident memory of these processes, in MB."""
    kilobytes = 0
    for pid in pids:
        with open(f"/proc/{pid}/status") as status:
            kilobytes += next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return round(kilobytes / 1024)


def computing(pids: tuple[int, ...]) -> float:
    """What these processes have computed since they started, in seconds of one core."""
    ticks = 0
    for pid in pids:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])  # utime, stime: proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")
