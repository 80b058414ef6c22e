"""One, two and three replicas of this API on one Postgres, in turn in one run; and what their common limits cost.

Usage: python -m bench.api.replicas [--rounds 3] [--seconds 4] [--users 24]

Replicas, Postgres, the model's stand-in and the client share this machine's cores: the ratios are what is left of a
replica's worth beside all of them, not what a droplet with cores of its own gains.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import psycopg
import uvloop

from bench.api.__main__ import ASK, EVENTS, QUESTION, spread, start
from bench.api.load import Target, throughput
from testbed import api as harness

COUNTS = (1, 2, 3)
CALLS = 400
RESERVE = "select * from private.reserve_money(%s, 'm', 1, 600, 1000000000, 1000000000)"
BEGIN = (
    "select * from private.begin_answer(%s, %s, %s, 10, 1000000, 1000000, '{}', '{}', 'm', 1, 600, "
    "1000000000, 1000000000)"
)


def limits(clouds: harness.Clouds) -> None:
    """Print what a question takes in Postgres with the limits and without them, call by call in turn."""
    account = clouds.postgres.rows("select id::text from auth.users limit 1")[0][0]
    replica = uuid4()
    took: dict[str, list[float]] = {"money alone": [], "money, rate and place": []}
    with psycopg.connect(
        clouds.postgres.url, autocommit=True, prepare_threshold=None
    ) as connection:
        for _ in range(CALLS):
            for name, times in took.items():
                started = time.perf_counter()
                with connection.pipeline():
                    claims = json.dumps({"sub": account})
                    connection.execute(
                        "select set_config('request.jwt.claims', %s, true)", (claims,)
                    )
                    if name == "money alone":
                        connection.execute(RESERVE, (uuid4(),))
                    else:
                        connection.execute(BEGIN, (uuid4(), uuid4(), replica))
                times.append((time.perf_counter() - started) * 1000)
                clouds.postgres.rows("delete from private.reservations")
    print(f"\na question in Postgres, one connection, {CALLS} calls of each in turn")
    for name, times in took.items():
        times.sort()
        print(
            f"  {name:22} {statistics.median(times):.2f} ms, p99 {times[int(CALLS * 0.99)]:.2f} ms"
        )
    alone, both = (statistics.median(times) for times in took.values())
    print(f"  the limits cost        {both - alone:+.2f} ms")


async def replicas(apis: list[harness.Api], tokens: list[str], rounds: int, seconds: float) -> None:
    """Print the whole streams per second of one, two and three, each user at one of them."""
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for number in range(rounds + 1):  # the first one warms
        for count in COUNTS:
            users = [
                Target(
                    f"{count}",
                    f"{apis[place % count].url}/chat",
                    ASK,
                    {"Authorization": f"Bearer {token}"},
                )
                for place, token in enumerate(tokens)
            ]
            rates = await asyncio.gather(
                *(throughput(user, QUESTION, 1, seconds) for user in users)
            )
            if number:
                found[count].append(sum(rates))
    one = statistics.median(found[1])
    print(f"\nstreams of {EVENTS} events, {len(tokens)} users (min/median/max of {rounds} rounds)")
    for count, values in found.items():
        ratio = statistics.median(values) / one
        print(f"  {count} replicas             {spread(values, 'streams/s')}, {ratio:.2f} x one")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.api.replicas", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--users", type=int, default=24, help="at the same time")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="cimt-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        clouds = stack.enter_context(harness.clouds(folder))
        model = [sys.executable, "-m", "local.openai", "--chunks", str(EVENTS), "--port"]
        url, _ = start(stack, folder, "model", model)
        environment = clouds.environment() | {
            "OPENAI_BASE_URL": f"{url}/v1",
            "RATE_PER_MINUTE": "1000000",
            "RESUME_SECONDS": "0",
            "MALLOC_ARENA_MAX": "1",  # as the image sets it
        }
        apis = [
            stack.enter_context(harness.api(folder / f"{number}", environment, until="/readyz"))
            for number in range(max(COUNTS))
        ]
        tokens = [clouds.sign_in.token(f"{number}@example.com") for number in range(given.users)]
        uvloop.run(replicas(apis, tokens, given.rounds, given.seconds))
        limits(clouds)
    print(f"\nbench: {os.cpu_count()} CPUs for all of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
