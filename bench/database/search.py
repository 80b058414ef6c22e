"""Hybrid search: ours, Supabase's documented form, and the bare index, on one table in one run.

Usage: python -m bench.database.search [--rows 20000 200000] [--queries 20] [--major 18]

Passages lie around topics, as those of documents do. 20,000 rows take a minute to make, 200,000 about ten.
Each way runs as `postgres`, past the policies, and as the API does: role `cimt_api` with the claims of a user.
Times are in milliseconds as a client on loopback sees them, `ratio` is to the documented form of the same role,
and `same as exact` compares the rows with those of exact search (vector index off).
"""

from __future__ import annotations

import argparse
import statistics
import time

import psycopg

from testbed.postgres import MIGRATIONS, apply, server

WANTED = 8
NOISE = (
    "(select array_agg((random() - 0.5) * {0}) from generate_series(1, 1536) where {1} is not null)"
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
FIRST = "documented hybrid_search"
SEARCH = "select id from public.search_vectors(%(near)s, %(words)s, %(wanted)s"
NEAREST = (
    "select id from public.vectors{} order by embedding operator(extensions.<=>) "
    "%(near)s::extensions.halfvec limit %(wanted)s"
)
# way: (what is asked, what an exact search answers)
FORM = "select * from public.documented(%(near)s, %(words)s, %(wanted)s)"
WAYS = {
    FIRST: (FORM, FORM),
    "search_vectors": (f"{SEARCH})", FORM),
    "search_vectors, 1 % of rows": (f"{SEARCH}, metadata_filter => '{{\"team\": 7}}')",) * 2,
    "search_vectors, half of rows": (f"{SEARCH}, metadata_filter => '{{\"half\": 1}}')",) * 2,
    "bare index, nearest only": (NEAREST.format(""),) * 2,
}
CLAIMS = '{"sub": "11111111-1111-4111-8111-111111111111", "role": "authenticated"}'


def topics(connection: psycopg.Connection) -> None:
    """200 centres, around which the passages of one topic lie."""
    connection.execute("set search_path = public, extensions; set maintenance_work_mem = '1GB'")
    topic = NOISE.format("1.0", "i")
    connection.execute(
        f"select setseed(0.5); create temp table topics as "  # noqa: S608
        f"select i, {topic}::halfvec(1536) as at from generate_series(0, 199) i"
    )
    connection.execute(DOCUMENTED)
    connection.execute("grant execute on function public.documented to cimt_api")


def fill(connection: psycopg.Connection, rows: int) -> None:
    """Add passages until there are so many; the vector index is built afterwards."""
    around = NOISE.format("0.8", "n")
    connection.execute("drop index public.vectors_embedding")
    connection.execute(
        f"""insert into vectors (source, chunk, content, content_hash, metadata, embedding_model, embedding)
        select 'doc' || n / 20, n %% 20, 'topic' || n %% 200 || ' word' || n %% 997 || ' common',
          md5(n::text) || md5(n::text), jsonb_build_object('team', n %% 100, 'half', n / 200 %% 2),
          'bench', at + {around}::halfvec(1536)
        from generate_series((select count(*) from vectors) + 1, %s) n join topics on i = n %% 200""",  # noqa: S608
        (rows,),
    )
    connection.execute(
        "create index vectors_embedding on public.vectors using hnsw (embedding extensions.halfvec_cosine_ops)"
    )
    connection.execute("vacuum analyze public.vectors")


def measure(sessions: dict[str, psycopg.Connection], asked: list[tuple[str, str]]) -> None:
    """Print one line for each way and role; `sessions` are by role."""
    print(
        f"{'':30} {'as':9} {'min':>8} {'median':>8} {'max':>8} ms {'ratio':>6} {'rows':>5}  same as exact"
    )
    documented = {}
    for way, (sql, exact_sql) in WAYS.items():
        for role, connection in sessions.items():
            times, found, same = [], [], []
            for near, words in asked:
                values = {"near": near, "words": words, "wanted": WANTED}
                start = time.perf_counter()
                ids = [row[0] for row in connection.execute(sql.encode(), values)]
                times.append((time.perf_counter() - start) * 1000)
                found.append(len(ids))
                with connection.transaction():
                    connection.execute("set local enable_indexscan = off")
                    exact = [row[0] for row in connection.execute(exact_sql.encode(), values)]
                same.append(len(set(ids) & set(exact)) / max(len(exact), 1))
            median = statistics.median(times)
            ratio = documented.setdefault(role, median) / median
            print(
                f"{way:30} {role:9} {min(times):8.1f} {median:8.1f} {max(times):8.1f}    {ratio:6.1f} "
                f"{min(found):5}  {statistics.mean(same):.3f}",
                flush=True,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--major", type=int, default=18, choices=[16, 18])
    arguments = parser.parse_args()
    with server(arguments.major) as made:
        start = time.perf_counter()
        apply(made.url())
        print(f"apply all {len(MIGRATIONS)} migrations: {time.perf_counter() - start:.2f} s")
        with (
            psycopg.connect(made.url(), autocommit=True) as connection,
            psycopg.connect(made.url(user="cimt_api"), autocommit=True) as api,
        ):
            topics(connection)
            api.execute("select set_config('request.jwt.claims', %s, false)", (CLAIMS,))
            for session in (connection, api):
                session.prepare_threshold = (
                    None  # the API prepares nothing: it may sit behind a pooler
                )
            for rows in sorted(arguments.rows):
                start = time.perf_counter()
                fill(connection, rows)
                print(
                    f"make and index {rows} rows: {time.perf_counter() - start:.0f} s", flush=True
                )
                asked = connection.execute(
                    "select (embedding + (select array_agg((random() - 0.5) * 0.4) "
                    "from generate_series(1, 1536) where id is not null)::halfvec(1536))::text, "
                    "split_part(content, ' ', 1) from vectors order by md5(id::text) limit %s",
                    (arguments.queries,),
                ).fetchall()
                measure({"postgres": connection, "cimt_api": api}, asked)


if __name__ == "__main__":
    main()
