"""What the API's retrieval costs beside the bare index query, and what it finds, at several sizes.

Usage: python -m bench.api.retrieval [--rows 1000 20000 200000] [--queries 200] [--major 17]

Both run on one server, one after the other for each question, and who is first changes: the bare query as the
table's owner, without row-level security, its embedding as text; ours as the API runs it (`cimt_api`, claims of a
user, one transaction, the embedding in binary).
Both look as hard (hnsw.ef_search, iterative scan): a bare query that looks less is faster and finds less.
Times are milliseconds as a client on loopback sees them. Recall is against the ten nearest of an exact scan. Ratios are
of the medians. 200,000 rows take about five minutes to make.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import psycopg

from bench.database.search import fill, topics

# With what tells psycopg how it travels.
from services.api.cimt_api.store.retrieval import HalfVector
from testbed.postgres import apply, server

WANTED = 10
FILTER = '{"team": 7}'  # one row in a hundred
USER = "11111111-1111-4111-8111-111111111111"
BARE = (
    "select id from public.vectors "
    "order by embedding operator(extensions.<=>) %(near)s::extensions.halfvec limit %(wanted)s"
)
BARE_FILTERED = (
    "select id from public.vectors where metadata @> %(filter)s::jsonb "
    "order by embedding operator(extensions.<=>) %(near)s::extensions.halfvec limit %(wanted)s"
)
AS_OURS = (
    "select extensions.vector_dims('[1]'::extensions.vector); "
    "set hnsw.iterative_scan = 'strict_order'; set hnsw.ef_search = 100"
)
OURS = (
    "select id, source, chunk, content, metadata, similarity, score from private.search_passages("
    "%(binary)s::extensions.halfvec, 'bench', %(words)s, %(wanted)s, metadata_filter => %(filter)s::jsonb)"
)
# What is compared: name, words of the question, filter.
WAYS = (
    ("embedding only", False, None),
    ("embedding and words", True, None),
    ("embedding only, 1 % of the rows", False, FILTER),
    ("embedding and words, 1 % of the rows", True, FILTER),
)


def bare(connection: psycopg.Connection, values: dict[str, object]) -> list[int]:
    """The nearest ids by index, or as the planner likes it best under a filter."""
    sql = BARE_FILTERED if values["filter"] else BARE
    return [row[0] for row in connection.execute(sql.encode(), values)]


def ours(connection: psycopg.Connection, values: dict[str, object]) -> list[int]:
    """As retrieval.Retriever asks: claims and question in one pipeline, which is one transaction."""
    claims = json.dumps({"sub": USER, "role": "authenticated"})
    with connection.pipeline():
        connection.execute(
            "select set_config('request.jwt.claims', %s, true), set_config('statement_timeout', '10000', true)",
            (claims,),
        )
        cursor = connection.execute(OURS.encode(), values)
    return [row[0] for row in cursor.fetchall()]


def timed(
    statement: Callable[[psycopg.Connection, dict[str, object]], list[int]],
    connection: psycopg.Connection,
    values: dict[str, object],
) -> tuple[float, list[int]]:
    """Milliseconds and ids."""
    start = time.perf_counter()
    ids = statement(connection, values)
    return (time.perf_counter() - start) * 1000, ids


def p95(times: list[float]) -> float:
    """The value that 95 of 100 stay below."""
    return sorted(times)[int(len(times) * 0.95)]


def measure(owner: psycopg.Connection, api: psycopg.Connection, queries: int) -> None:
    """Print one line for each way."""
    asked = owner.execute(
        "select (embedding + (select array_agg((random() - 0.5) * 0.4) from generate_series(1, 1536) "
        "where id is not null)::halfvec(1536))::text, split_part(content, ' ', 2) "
        "from vectors order by md5(id::text) limit %s",
        (queries,),
    ).fetchall()
    for name, with_words, only in WAYS:
        mine: list[float] = []
        theirs: list[float] = []
        recalls: tuple[list[float], list[float]] = ([], [])
        found: list[tuple[dict[str, object], list[int], list[int]]] = []
        least = WANTED
        for near, words in asked:
            values: dict[str, object] = {
                "near": near,
                "binary": HalfVector.from_text(near),
                "words": words if with_words else "",
                "wanted": WANTED,
                "filter": only,
            }
            if len(mine) % 2:
                our_ms, our_ids = timed(ours, api, values)
                bare_ms, bare_ids = timed(bare, owner, values)
            else:
                bare_ms, bare_ids = timed(bare, owner, values)
                our_ms, our_ids = timed(ours, api, values)
            theirs.append(bare_ms)
            mine.append(our_ms)
            least = min(least, len(our_ids))
            found.append((values, our_ids, bare_ids))
        # Not between two questions: reading every row would leave nothing of the index in the processor's caches.
        for values, our_ids, bare_ids in () if with_words else found[:50]:
            with owner.transaction():
                owner.execute("set local enable_indexscan = off")
                exact = set(bare(owner, values))
            recalls[0].append(len(exact & set(our_ids)) / len(exact))
            recalls[1].append(len(exact & set(bare_ids)) / len(exact))
        ratio = statistics.median(mine) / statistics.median(theirs)
        recall = [f"{statistics.mean(parts):.3f}" if parts else "-" for parts in recalls]
        print(
            f"  {name:38} {statistics.median(mine):7.2f} {p95(mine):7.2f}  {recall[0]:>6} {least:5}"
            f"   {statistics.median(theirs):7.2f} {p95(theirs):7.2f}  {recall[1]:>6}  {ratio:6.2f}",
            flush=True,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 20_000, 200_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--major", type=int, default=17)
    arguments = parser.parse_args()
    with server(arguments.major) as made:
        for rows in arguments.rows:
            name = made.database()
            apply(made.url(name))
            with (
                psycopg.connect(made.url(name), autocommit=True) as owner,
                psycopg.connect(made.url(name, "cimt_api"), autocommit=True) as api,
            ):
                owner.prepare_threshold = api.prepare_threshold = None
                owner.execute(AS_OURS.encode())
                start = time.perf_counter()
                topics(owner)
                fill(owner, rows)
                print(f"{rows} rows, made and indexed in {time.perf_counter() - start:.0f} s")
                print(
                    f"  {'ours / bare query':38} {'p50':>7} {'p95':>7}  {'recall':>6} {'least':>5}"
                    f"   {'p50':>7} {'p95':>7}  {'recall':>6}  {'ratio':>6}"
                )
                measure(owner, api, arguments.queries)
            made.admin(f"drop database {name}")


if __name__ == "__main__":
    main()
