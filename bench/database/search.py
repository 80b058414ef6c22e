"""Hybrid search: ours, Supabase's documented form, and the bare index, on one table in one run.

Usage: python -m bench.database.search [--rows 20000] [--queries 20] [--major 18]

Passages lie around topics, as those of documents do. 20,000 rows take about a minute to make, 200,000 about ten.
Times are in milliseconds as a client on loopback sees them; recall is against the exact answer (index off).
"""

from __future__ import annotations

import argparse
import statistics
import time

import psycopg

from tests.database.server import MIGRATIONS, apply, server

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
WAYS = {
    "documented hybrid_search": "select * from public.documented(%(near)s, %(words)s, %(wanted)s)",
    "search_vectors": "select id from public.search_vectors(%(near)s, %(words)s, %(wanted)s)",
    "search_vectors, 1 % of rows": "select id from public.search_vectors(%(near)s, %(words)s, %(wanted)s, "
    "metadata_filter => '{\"team\": 7}')",
    "bare index, nearest only": "select id from public.vectors order by embedding operator(extensions.<=>) "
    "%(near)s::extensions.halfvec limit %(wanted)s",
}


def fill(connection: psycopg.Connection, rows: int) -> None:
    """Passages around 200 topics, the vector index built afterwards."""
    connection.execute("set search_path = public, extensions; set maintenance_work_mem = '1GB'")
    connection.execute("drop index public.vectors_embedding; select setseed(0.5)")
    topic = NOISE.format("1.0", "i")
    connection.execute(f"create temp table topics as select i, {topic}::halfvec(1536) as at from generate_series(0, 199) i")  # noqa: S608, E501 # fmt: skip
    around = NOISE.format("0.8", "n")
    connection.execute(
        f"""insert into vectors (source, chunk, content, content_hash, metadata, embedding_model, embedding)
        select 'doc' || n / 20, n %% 20, 'topic' || n %% 200 || ' word' || n %% 997 || ' common',
          md5(n::text) || md5(n::text), jsonb_build_object('team', n %% 100), 'bench', at + {around}::halfvec(1536)
        from generate_series(1, %s) n join topics on i = n %% 200""",  # noqa: S608
        (rows,),
    )
    connection.execute(
        "create index vectors_embedding on public.vectors using hnsw (embedding extensions.halfvec_cosine_ops)"
    )
    connection.execute("vacuum analyze public.vectors")
    connection.execute(DOCUMENTED)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--major", type=int, default=18, choices=[16, 18])
    arguments = parser.parse_args()
    with server(arguments.major) as made:
        start = time.perf_counter()
        apply(made.url())
        print(f"apply all {len(MIGRATIONS)} migrations: {time.perf_counter() - start:.2f} s")
        with psycopg.connect(made.url(), autocommit=True) as connection:
            start = time.perf_counter()
            fill(connection, arguments.rows)
            print(f"make and index {arguments.rows} rows: {time.perf_counter() - start:.0f} s")
            asked = connection.execute(
                "select (embedding + (select array_agg((random() - 0.5) * 0.4) from generate_series(1, 1536) "
                "where id is not null)::halfvec(1536))::text, "
                "split_part(content, ' ', 1) from vectors order by md5(id::text) limit %s",
                (arguments.queries,),
            ).fetchall()
            print(f"{'':30} {'min':>8} {'median':>8} {'max':>8} ms  {'rows':>5}  same as exact")
            for way, sql in WAYS.items():
                times, found, same = [], [], []
                for near, words in asked:
                    values = {"near": near, "words": words, "wanted": WANTED}
                    start = time.perf_counter()
                    ids = [row[0] for row in connection.execute(sql.encode(), values)]
                    times.append((time.perf_counter() - start) * 1000)
                    found.append(len(ids))
                    with connection.transaction():
                        connection.execute("set local enable_indexscan = off")
                        exact_sql = (
                            WAYS["documented hybrid_search"] if way == "search_vectors" else sql
                        )
                        exact = [row[0] for row in connection.execute(exact_sql.encode(), values)]
                    same.append(len(set(ids) & set(exact)) / max(len(exact), 1))
                print(
                    f"{way:30} {min(times):8.1f} {statistics.median(times):8.1f} {max(times):8.1f}     "
                    f"{min(found):5}  {statistics.mean(same):.3f}"
                )


if __name__ == "__main__":
    main()
