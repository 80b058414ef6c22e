"""A release of ours beside Swarm's bare update, on the local droplet, while people ask and read long answers.

Usage: python -m bench.release [--rounds 20] [--bare-every 4] [--streams 50] [--rate 4]      after `make up`

A round releases another image by `make deploy`. In every fourth one Swarm alone goes to the other image and back by
`docker service update`, so that panel and ledger say at its end what runs. Each switch is counted from the hook (the
command, for the bare one) to the new revision's first answer. Everything shares this machine's cores: only the ratios
mean something. Ctrl-C ends it with the table of what was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from local.settings import load
from local.sign_in import sign_in
from testbed.droplet import DOMAIN, GENEROUS, Client, Image, built, on_droplet, release, variant

A_PERSON = 4  # streams at once: MAX_STREAMS_PER_USER of the api
QUESTION = "[stand-in: endless; delay=2] How long is the warranty?"
# Seconds that are looked at after the new revision's first answer: what drains is cut then (DRAIN_SECONDS and
# SHUTDOWN_SECONDS of the api, and what an emulated droplet takes for them).
AFTER = 45
GOOD = "RUN printf %s {revision} > /app/revision"
HOOK = re.compile(r"(\d+\.\d) s  deploy hook fired")
STEADY = re.compile(r"(\d+\.\d) s  health: ")


@dataclass
class Seen:
    """What clients met: requests as (second of the clock, seconds it took, revision or "" for a failure)."""

    requests: list[tuple[float, float, str]] = field(default_factory=list)
    cut: int = 0
    resumed: int = 0
    ended: int = 0
    spliced: list[str] = field(default_factory=list)


class Clients:
    """People who ask `rate` times a second, and `streams` long answers that are taken up again where they broke off."""

    def __init__(self, tokens: list[str], streams: int, rate: float) -> None:
        door = Client()
        self.url = f"https://127.0.0.1:{door.port}"
        self.context, self.seen = door.context, Seen()
        self.tokens, self.streams, self.rate = tokens, streams, rate
        self.end = asyncio.Event()
        self.reading, self.all_read = 0, asyncio.Event()

    def client(self) -> httpx.AsyncClient:
        """A browser of its own."""
        return httpx.AsyncClient(
            base_url=self.url,
            verify=self.context,
            timeout=60,
            headers={"Host": DOMAIN},
            limits=httpx.Limits(max_connections=None),
        )

    async def ask(self) -> None:
        """Two requests on a connection of its own: as people ask, which no proxy tries again, and for the revision."""
        begun, started = time.time(), time.perf_counter()
        revision = ""
        try:
            async with self.client() as client:
                asked = await client.post("/chat", extensions={"sni_hostname": DOMAIN})
                answer = await client.get("/healthz", extensions={"sni_hostname": DOMAIN})
                if asked.status_code == answer.status_code == 200:
                    revision = str(answer.json()["revision"])
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        self.seen.requests.append((begun, time.perf_counter() - started, revision))

    async def asking(self) -> None:
        """Ask until the end, whether or not the last answer has come."""
        async with asyncio.TaskGroup() as group:
            while not self.end.is_set():
                group.create_task(self.ask())
                await asyncio.sleep(1 / self.rate)

    async def read(self, number: int) -> None:
        """One long answer until the end; whenever its stream breaks off it is taken up where it was."""
        headers = {"Authorization": f"Bearer {self.tokens[number // A_PERSON]}"}
        question = {"id": str(uuid.uuid4()), "message": QUESTION, "stream": True}
        text, at, first = "", "", True
        async with self.client() as client:
            while not self.end.is_set():
                asked = headers | ({"Last-Event-ID": at} if at else {})
                kind = ("POST", "/chat") if first else ("GET", f"/chat/{question['id']}")
                try:
                    async with client.stream(
                        *kind,
                        headers={**asked, "Accept": "text/event-stream"},
                        json=question if first else None,
                        extensions={"sni_hostname": DOMAIN},
                    ) as stream:
                        if stream.status_code != 200:
                            await asyncio.sleep(1)
                            continue
                        if first:
                            self.reading += 1
                            if self.reading == self.streams:
                                self.all_read.set()
                        else:
                            self.seen.resumed += 1
                        first = False
                        async for line in stream.aiter_lines():
                            if line.startswith("id:"):
                                at = line[3:].strip()
                            elif line.startswith("data: {"):
                                text += delta(line[6:])
                            elif line == "data: [DONE]":
                                # Its process had no more time: the answer ends.
                                self.seen.ended += 1
                                return
                            if at and not line and len(text) != int(at):
                                self.seen.spliced.append(f"{len(text)} characters, and id {at}")
                                return
                            if self.end.is_set():
                                return
                except httpx.HTTPError:
                    pass
                if not self.end.is_set() and not first:
                    self.seen.cut += 1

    async def during(self, switch: Any) -> Seen:
        """What clients see while `switch` runs in a thread, from when every stream has begun."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.asking())
            for number in range(self.streams):
                group.create_task(self.read(number))
            await self.all_read.wait()
            await asyncio.to_thread(switch)
            await asyncio.sleep(AFTER)
            self.end.set()
        return self.seen


def delta(data: str) -> str:
    """The text of one event."""
    choices = json.loads(data).get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


@dataclass
class Switch:
    """One switch to another image, as measured."""

    kind: str
    seconds: float
    failed: int
    requests: int
    slow: float  # seconds, the 99th percentile of requests that began during the switch
    cut: int
    resumed: int
    ended: int


def ours(image: Image) -> float:
    """Release it; seconds from the hook until the revision stood."""
    done = release(image)
    if done.returncode:
        raise SystemExit("bench: the release failed. Next: make history")
    fired, steady = HOOK.search(done.stdout), STEADY.search(done.stdout)
    if not (fired and steady):  # it ran already
        raise SystemExit(f"bench: nothing was released:\n{done.stdout}")
    return float(steady[1]) - float(fired[1])


def bare(image: Image) -> float:
    """Swarm's own update; seconds until the revision stood."""
    started, client = time.monotonic(), Client()
    on_droplet(
        f"docker service update --quiet --with-registry-auth --image {image.reference} cimt_api >/dev/null",
        timeout=GENEROUS,
    )
    client.wait_for(image.revision)
    return time.monotonic() - started


def measured(kind: str, image: Image, tokens: list[str], streams: int, rate: float) -> Switch:
    """Switch to `image` while clients look."""
    took: list[float] = []
    switch = {"ours": ours, "bare": bare}[kind]
    seen = asyncio.run(Clients(tokens, streams, rate).during(lambda: took.append(switch(image))))
    if seen.spliced:
        raise SystemExit(f"bench: an answer was spliced: {seen.spliced[0]}")
    first = min(begun for begun, _, revision in seen.requests if revision == image.revision)
    times = sorted(
        seconds for begun, seconds, _ in seen.requests if first - took[0] <= begun <= first + AFTER
    )
    made = Switch(
        kind,
        took[0],
        sum(not revision for _, _, revision in seen.requests),
        len(seen.requests),
        times[int(0.99 * (len(times) - 1))],
        seen.cut,
        seen.resumed,
        seen.ended,
    )
    print(
        f"{kind}: {made.seconds:.0f} s, {made.failed} of {made.requests} requests failed, p99 {made.slow:.2f} s, "
        f"{made.cut} streams cut, {made.resumed} taken up, {made.ended} ended with their process",
        flush=True,
    )
    return made


def spread(values: list[float]) -> str:
    """Minimum, median, maximum."""
    return f"{min(values):.1f}/{statistics.median(values):.1f}/{max(values):.1f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bare-every", type=int, default=4, help="rounds")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    given = parser.parse_args()
    live = built()
    others = [variant(live, number, GOOD) for number in (7, 8)]
    supabase = f"http://127.0.0.1:{load(running=True).ports['supabase']}"
    switches: list[Switch] = []
    running = live
    try:
        for round_ in range(given.rounds):
            people = range(-(-given.streams // A_PERSON))  # a token lives for an hour
            tokens = [sign_in(supabase, f"{uuid.uuid4().hex}@example.com") for _ in people]
            image, other = others[round_ % 2], running
            running = image
            bare_too = [("bare", other), ("bare", image)] if round_ % given.bare_every == 0 else []
            for kind, to in [("ours", image), *bare_too]:
                switches.append(measured(kind, to, tokens, given.streams, given.rate))
    except KeyboardInterrupt:
        print(f"\nended after {len(switches)} switches")
    finally:
        release(live)
    if {one.kind for one in switches} != {"ours", "bare"}:
        raise SystemExit("bench: not one round was whole")
    print(
        "\n| | switches | seconds | p99 during it | failed | streams cut, taken up, ended |\n|---|---|---|---|---|---|"
    )
    for kind in ("ours", "bare"):
        of = [one for one in switches if one.kind == kind]
        print(
            f"| {kind} | {len(of)} | {spread([one.seconds for one in of])} | {spread([one.slow for one in of])} "
            f"| {sum(one.failed for one in of)} of {sum(one.requests for one in of)} "
            f"| {sum(one.cut for one in of)}, {sum(one.resumed for one in of)}, {sum(one.ended for one in of)} |"
        )
    middle = {
        kind: statistics.median(one.seconds for one in switches if one.kind == kind)
        for kind in ("ours", "bare")
    }
    print(f"\nours takes {middle['ours'] / middle['bare']:.2f} times the bare update")


if __name__ == "__main__":
    main()
