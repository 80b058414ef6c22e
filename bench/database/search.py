"""Hybrid search as the API asks: of everything, filtered, and for readers of little; what is new beside what it was.

Usage: python -m bench.database.search [--rows 20000] [--queries 20] [--major 17]

Passages lie around topics, as those of documents do, and have 120 words, some of which are in a fifth of all.
Shared ones are searched first; then each gets an owner: readers of 8, of 1 % and of half of them, and others. As
role `cimt_api` with the claims of a user, everything by the claims of the ingest routes. Times are milliseconds as a
client on loopback sees them, with words and embedding, and with the embedding alone. `times` is the median over that
of the search of everything, `rows` the fewest that came, `recall` (embedding alone) is against an exact scan.
20,000 rows take two minutes to make, for each of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from testbed.postgres import MIGRATIONS, apply, server

RELEASED = "20261125120000"  # the newest migration of what the other is compared with
WANTED = 8
NOISE = (
    "(select array_agg((random() - 0.5) * {0}) from generate_series(1, 1536) where {1} is not null)"
)
# Three syllables make a word; the first of 30,000 is in a fifth of the passages.
SYLLABLES = (
    "(select array(select a || b from unnest(string_to_array('b c d f g l m p r t', ' ')) a, "
    "unnest(string_to_array('a e i o u', ' ')) b) as part)"
)
WORDS = (
    "(select string_agg(part[1 + k %% 50] || part[1 + k / 50 %% 50] || part[1 + (k / 2500 + k) %% 50], ' ') "
    "from (select floor(100 * (exp(random() * ln(301)) - 1))::integer as k "
    "from generate_series(1, 120) where n is not null) as drawn)"
)
# The shape of Supabase's guide "Hybrid search": every row is numbered, then the numbers are sorted.
DOCUMENTED = """
create function public.documented(query_embedding extensions.halfvec(1536), query_text text, match_count integer)
returns setof bigint language sql set search_path = public, extensions as $$
with full_text as (
  select id, row_number() over (
    order by ts_rank_cd(search, websearch_to_tsquery('simple', query_text)) desc, id) as rank_ix
  from vectors where search @@ websearch_to_tsquery('simple', query_text)
  order by rank_ix limit least(match_count, 30) * 2),
semantic as (
  select id, row_number() over (order by embedding <=> query_embedding) as rank_ix
  from vectors order by rank_ix limit least(match_count, 30) * 2)
select coalesce(full_text.id, semantic.id)
from full_text full outer join semantic on full_text.id = semantic.id
order by coalesce(1.0 / (50 + full_text.rank_ix), 0.0) + coalesce(1.0 / (50 + semantic.rank_ix), 0.0) desc, 1
limit least(match_count, 30) $$"""
DOCUMENTED_SEARCH = "select * from public.documented(%(near)s, %(words)s, %(wanted)s)"
SEARCH = "select id from public.search_vectors(%(near)s, %(words)s, %(wanted)s, metadata_filter => %(filter)s)"
EXACT = (
    "select id from public.vectors where {} order by "
    "(embedding operator(extensions.<=>) %(near)s::extensions.halfvec) + 0 limit %(wanted)s"
)
READERS = {
    f"reader of {part}": f"0000000{n}-0000-4000-8000-000000000000"
    for n, part in enumerate(("8", "1 %", "half", "others"))
}
SERVICE = {"role": "service_role"}


def reader(name: str) -> dict[str, str]:
    """Claims of a user."""
    return {"sub": READERS[name], "role": "authenticated"}


# name: (statement, claims, filter, what it may find)
SHARED = {
    "Supabase's documented form": (DOCUMENTED_SEARCH, reader("reader of 8"), None, "true"),
    "everything": (SEARCH, reader("reader of 8"), None, "true"),
    "filtered to 1 %": (
        SEARCH,
        reader("reader of 8"),
        '{"team": 7}',
        "metadata @> '{\"team\": 7}'",
    ),
    "filtered to half": (
        SEARCH,
        reader("reader of 8"),
        '{"half": 1}',
        "metadata @> '{\"half\": 1}'",
    ),
}
OWNED = {
    "everything": (SEARCH, SERVICE, None, "true"),
    **{
        name: (SEARCH, reader(name), None, f"owner_id = '{READERS[name]}'")
        for name in ("reader of 8", "reader of 1 %", "reader of half")
    },
}


def topics(connection: psycopg.Connection) -> None:
    """200 centres, around which the passages of one topic lie."""
    connection.execute("set search_path = public, extensions; set maintenance_work_mem = '1GB'")
    topic = NOISE.format("1.0", "i")
    connection.execute(
        f"select setseed(0.5); create temp table topics as "  # noqa: S608
        f"select i, {topic}::halfvec(1536) as at from generate_series(0, 199) i"
    )


def fill(connection: psycopg.Connection, rows: int) -> None:
    """Add passages until there are so many; the vector index is built afterwards."""
    around = NOISE.format("0.8", "n")
    connection.execute("drop index public.vectors_embedding")
    connection.execute(
        f"""insert into vectors (source, chunk, content, content_hash, metadata, embedding_model, embedding)
        select 'doc' || n / 20, n %% 20, 'topic' || n %% 200 || ' word' || n %% 997 || ' common ' || {WORDS},
          md5(n::text) || md5(n::text), jsonb_build_object('team', n %% 100, 'half', n / 200 %% 2),
          'bench', at + {around}::halfvec(1536)
        from {SYLLABLES} as syllables, generate_series((select count(*) from vectors) + 1, %s) n
        join topics on i = n %% 200""",  # noqa: S608
        (rows,),
    )
    index(connection)


def index(connection: psycopg.Connection) -> None:
    """Build the vector index."""
    connection.execute(
        "create index vectors_embedding on public.vectors using hnsw (embedding extensions.halfvec_cosine_ops)"
    )
    connection.execute("vacuum analyze")


def own(connection: psycopg.Connection) -> None:
    """Give each passage an owner, and every reader his part."""
    for name, account in READERS.items():
        connection.execute(
            "insert into auth.users (id, email) values (%s, %s)", (account, f"{name}@example.com")
        )
    connection.execute("drop index public.vectors_embedding")
    few, hundredth, half, others = READERS.values()
    connection.execute(
        "update public.vectors set owner_id = case when id %% 2500 = 9 and id <= 20000 then %s::uuid "
        "when id %% 100 = 7 then %s::uuid when id %% 2 = 0 then %s::uuid else %s::uuid end",
        (few, hundredth, half, others),
    )
    index(connection)


def ask(
    api: psycopg.Connection, sql: str, values: dict[str, object], claims: dict[str, str]
) -> tuple[float, list[int]]:
    """Milliseconds and ids, as the API asks: claims and question in one transaction, in one round trip."""
    start = time.perf_counter()
    with api.pipeline():
        api.execute(
            "select set_config('request.jwt.claims', %s, true), set_config('statement_timeout', '60000', true)",
            (json.dumps(claims),),
        )
        cursor = api.execute(sql.encode(), values)
    ids = [row[0] for row in cursor.fetchall()]
    return (time.perf_counter() - start) * 1000, ids


def measure(
    label: str,
    owner: psycopg.Connection,
    api: psycopg.Connection,
    ways: dict[str, tuple[str, dict[str, str], str | None, str]],
    queries: int,
) -> None:
    """Print a line for each way."""
    asked = owner.execute(
        "select (embedding + (select array_agg((random() - 0.5) * 0.4) "
        "from generate_series(1, 1536) where id is not null)::halfvec(1536))::text, "
        "concat_ws(' ', split_part(content, ' ', 1), split_part(content, ' ', 10), split_part(content, ' ', 20), "
        "split_part(content, ' ', 30), split_part(content, ' ', 40)) "
        "from vectors order by md5(id::text) limit %s",
        (queries,),
    ).fetchall()
    unfiltered = 0.0
    for way, (sql, claims, only, may_find) in ways.items():
        both, alone, recall, rows = [], [], [], []
        for near, words in asked:
            values: dict[str, object] = {
                "near": near,
                "words": words,
                "wanted": WANTED,
                "filter": only,
            }
            milliseconds, ids = ask(api, sql, values, claims)
            both.append(milliseconds)
            rows.append(len(ids))
            milliseconds, ids = ask(api, sql, {**values, "words": ""}, claims)
            alone.append(milliseconds)
            exact = {row[0] for row in owner.execute(EXACT.format(may_find).encode(), values)}
            recall.append(len(exact & {*ids}) / len(exact))
        if way == "everything":
            unfiltered = statistics.median(both)
        times = f"{statistics.median(both) / unfiltered:7.1f}" if unfiltered else " " * 7
        print(
            f"{label:9} {way:27} {spread(both)} {times}  {spread(alone)} {min(rows):5} "
            f"{statistics.mean(recall):7.3f}",
            flush=True,
        )


def spread(numbers: Sequence[float]) -> str:
    """Least, median and greatest."""
    return "/".join(
        f"{n:.1f}" for n in (min(numbers), statistics.median(numbers), max(numbers))
    ).rjust(20)


def run(url: str, api_url: str, label: str, files: list[Path], rows: int, queries: int) -> None:
    """Fill one database and measure both states of it."""
    start = time.perf_counter()
    apply(url, files)
    with (
        psycopg.connect(url, autocommit=True) as owner,
        psycopg.connect(api_url, autocommit=True) as api,
    ):
        owner.prepare_threshold = api.prepare_threshold = None  # the API prepares nothing
        topics(owner)
        owner.execute(DOCUMENTED)
        owner.execute("grant execute on function public.documented to cimt_api")
        fill(owner, rows)
        print(f"{label:9} {rows} rows made in {time.perf_counter() - start:.0f} s", flush=True)
        measure(label, owner, api, SHARED, queries)
        own(owner)
        measure(label, owner, api, OWNED, queries)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--major", type=int, default=17)
    arguments = parser.parse_args()
    released = [file for file in MIGRATIONS if file.name[:14] <= RELEASED]
    with server(arguments.major) as made:
        print(f"{'':37} {'both, ms':>20}   times  {'embedding, ms':>20}  rows  recall")
        for rows in sorted(arguments.rows):
            for label, files in (("released", released), ("now", MIGRATIONS)):
                name = made.database()
                urls = made.url(name), made.url(name, "cimt_api")
                run(*urls, label, files, rows, arguments.queries)
                made.admin(f"drop database {name}")


if __name__ == "__main__":
    main()
