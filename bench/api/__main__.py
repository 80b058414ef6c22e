"""This API, LiteLLM's proxy, a plain FastAPI relay and the model's stand-in, side by side in one run.

Usage: python -m bench.api [--rounds 3] [--seconds 4] [--users 20] [--without litellm]
       python -m bench.api --long 100000      memory of this API over so many streams, and nothing else

All of them, Postgres and the client share this machine, so only ratios mean something, and those of what a server's
own process computes for a stream mean most: the database of production has cores of its own. A stream has 100 events,
which the stand-in sends as fast as it can. LiteLLM is installed into ~/.cache/cimt the first time (some minutes).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import uvloop

from bench.api.load import Target, computing, first_token, memory, resident, throughput
from local.waiting import free_port
from testbed import api as harness

LITELLM = "1.106.2"  # from 1.109 on its proxy extra needs a package that not every mirror has
EVENTS = 100
OPEN = (1, 100, 500, 1000)  # streams
QUESTION = "How long is the warranty?"
ENDLESS = f"[stand-in: endless; delay=2] {QUESTION}"
LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "{url}/v1", api_key: sk-for-the-stand-in}}
general_settings: {{master_key: sk-bench-0123456789abcdef}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""
COMPLETION: dict[str, object] = {
    "model": harness.CHAT_MODEL,
    "messages": [{"role": "user", "content": "$QUESTION"}],
    "stream": True,
}
ASK: dict[str, object] = {"message": "$QUESTION", "stream": True}


def litellm() -> Path:
    """The proxy's program, from an environment of its own."""
    folder = Path.home() / ".cache/cimt" / f"litellm-{LITELLM}"
    if not (folder / "complete").exists():
        print(f"bench: installing LiteLLM {LITELLM} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, f"litellm[proxy]=={LITELLM}"], check=True)
        (folder / "complete").touch()
    return folder / "bin/litellm"


def start(
    stack: contextlib.ExitStack,
    folder: Path,
    name: str,
    command: list[str],
    environment: dict[str, str] | None = None,
) -> tuple[str, int]:
    """Start a server whose command ends with the option for its port; its address and PID."""
    port, log = free_port(), folder / f"{name}.log"
    started = stack.enter_context(harness.process([*command, str(port)], log, env=environment))
    url = f"http://127.0.0.1:{port}"
    harness.answers(url, started, log)
    return url, started.pid


def targets(stack: contextlib.ExitStack, folder: Path, without: list[str]) -> list[Target]:
    """Start everything."""
    print("bench: starting everything", flush=True)
    clouds = stack.enter_context(harness.clouds(folder))
    run = [sys.executable, "-m"]
    model = ["local.openai", "--chunks", str(EVENTS), "--port"]
    url, pid = start(stack, folder, "model", [*run, *model])
    key = {"Authorization": "Bearer sk-for-the-stand-in"}
    made = [Target("upstream itself", f"{url}/v1/chat/completions", COMPLETION, key, (pid,))]
    token = {"Authorization": f"Bearer {clouds.sign_in.token('ann@example.com')}"}
    environment = clouds.environment() | {
        "OPENAI_BASE_URL": f"{url}/v1",
        "STREAMS_TOTAL": "5000",
        "STREAMS_PER_USER": "5000",
        "RATE_PER_MINUTE": "1000000",
        "RESUME_SECONDS": "0",
        "LOG_LEVEL": "info",
        "MALLOC_ARENA_MAX": "1",  # as the image sets it
    }
    relay = {"CHAT_LOG": "off", "RETRIEVAL_COUNT": "0"}
    for name, more in (("this API, relay", relay), ("this API, full", {})):
        api = stack.enter_context(harness.api(folder / name, environment | more, until="/readyz"))
        made.append(Target(name, f"{api.url}/chat", ASK, token, (api.process.pid,)))
    _documents(made[-1].url)
    plain = ["uvicorn", "bench.api.plain:app", "--log-level", "warning", "--port"]
    openai = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "sk-for-the-stand-in"}
    at, pid = start(stack, folder, "plain", [*run, *plain], openai)
    made.append(Target("plain FastAPI + SDK", f"{at}/chat", ASK, {}, (pid,)))
    if "litellm" not in without:
        config = folder / "litellm.yaml"
        config.write_text(LITELLM_CONFIG.format(url=url, model=harness.CHAT_MODEL))
        command = [str(litellm()), "--config", str(config), "--num_workers", "1", "--port"]
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        at, pid = start(stack, folder, "litellm", command, quiet)
        master = {"Authorization": "Bearer sk-bench-0123456789abcdef"}
        made.append(
            Target("LiteLLM proxy", f"{at}/v1/chat/completions", COMPLETION, master, (pid,))
        )
    return made


def _documents(chat_url: str) -> None:
    """Something to find."""
    key = {"Authorization": f"Bearer {harness.INGEST_KEY}"}
    with httpx.Client(base_url=chat_url.removesuffix("/chat"), headers=key, timeout=60) as client:
        for number in range(50):
            text = f"Product {number} has a warranty of {number % 7 + 1} years. " * 8
            answer = client.put(f"/documents/manual-{number}", json={"content": text})
            if not answer.is_success:
                raise SystemExit(f"bench: a document was not taken: {answer.text}")


def spread(values: list[float], unit: str) -> str:
    """Minimum, median and maximum."""
    shown = (f"{value:.1f}" for value in (min(values), statistics.median(values), max(values)))
    return "/".join(shown) + f" {unit}"


async def bench(made: list[Target], rounds: int, seconds: float, users: int) -> None:
    """Print one line per target and measure."""

    async def each(
        title: str, measure: Callable[[Target], Awaitable[float]], unit: str
    ) -> dict[str, float]:
        print(f"\n{title} (min/median/max of {rounds} rounds)", flush=True)
        found: dict[str, list[float]] = {target.name: [] for target in made}
        for _ in range(rounds):  # in turn, so that a busy moment of the machine hits all
            for target in made:
                found[target.name].append(await measure(target))
        for name, values in found.items():
            print(f"  {name:22} {spread(values, unit)}", flush=True)
        return {name: statistics.median(values) for name, values in found.items()}

    for target in made:  # warm
        await throughput(target, QUESTION, 4, 1)

    async def token(target: Target) -> float:
        return statistics.median(await first_token(target, QUESTION, 30)) * 1000

    first = await each("first token, one user", token, "ms")
    for name, value in first.items():
        print(f"  {name:22} {value - first['upstream itself']:+.1f} ms to the upstream itself")

    computed: dict[str, list[float]] = {target.name: [] for target in made}

    async def streams(target: Target) -> float:
        before, started = computing(target.pids), time.monotonic()
        rate = await throughput(target, QUESTION, users, seconds)
        of_one = (computing(target.pids) - before) / (rate * (time.monotonic() - started))
        computed[target.name].append(of_one * 1000)
        return rate

    rate = await each(f"streams of {EVENTS} events, {users} users", streams, "streams/s")
    own = {name: statistics.median(values) for name, values in computed.items()}
    print("\nof one core, what a stream takes in the server's own process")
    for name, values in computed.items():
        print(f"  {name:22} {spread(values, 'ms')}")
    if base := rate.get("LiteLLM proxy"):
        print("\nto LiteLLM: streams/s, and what a stream takes")
        for name, value in rate.items():
            print(f"  {name:22} {value / base:.1f} x, {own['LiteLLM proxy'] / own[name]:.1f} x")
    print(f"\nresident memory with open streams: idle, then {', '.join(map(str, OPEN))}")
    for target in made:
        sizes = [resident(target.pids)]
        for count in OPEN:
            try:
                sizes.append(await memory(target, ENDLESS, count))
            except (RuntimeError, TimeoutError, OSError) as error:
                print(
                    f"  {target.name}: not with {count} streams ({str(error)[:80] or 'too late'})"
                )
                break
        print(f"  {target.name:22} {' / '.join(map(str, sizes))} MB", flush=True)


async def long(made: list[Target], streams: int, users: int) -> None:
    """Resident memory at every tenth of so many streams."""
    print(f"\nresident memory over {streams} streams, {users} users", flush=True)
    for target in made:
        sizes = [resident(target.pids)]
        for _ in range(10):
            await throughput(target, QUESTION, users, streams=streams / 10)
            sizes.append(resident(target.pids))
        print(f"  {target.name:22} {' '.join(map(str, sizes))} MB", flush=True)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each throughput round")
    parser.add_argument("--users", type=int, default=20, help="at the same time")
    parser.add_argument("--without", action="append", default=[], choices=["litellm"])
    parser.add_argument("--long", type=int, default=0, metavar="STREAMS")
    given = parser.parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cimt-bench-") as folder,
        contextlib.ExitStack() as all_,
    ):
        Path(folder).chmod(0o755)
        if given.long:
            made = [
                target
                for target in targets(all_, Path(folder), ["litellm"])
                if target.name.startswith("this API")
            ]
            uvloop.run(long(made, given.long, given.users))
        else:
            made = targets(all_, Path(folder), given.without)
            uvloop.run(bench(made, given.rounds, given.seconds, given.users))
    print(f"\nbench: {time.monotonic() - started:.0f} s, {os.cpu_count()} CPUs for all of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
