"""A change of the embedding model: every passage gets an embedding of the new one while the old ones answer.

Usage: EMBEDDING_MODEL=… [CONFIRM=yes | CONFIRM=drop] python -m tools.database.reembed

What is missing is counted, and what it costs is said, before anything is paid for: that needs CONFIRM=yes. The
passages stay as they are; the new embeddings stand beside them, and a run that was killed goes on where it was. Once
none is missing the new model is served: the API asks every few seconds which one it is, so EMBEDDING_MODEL may be set
there before or after. The old embeddings stay until a later run with CONFIRM=drop has put the new ones in their place;
until then the way back is the same command with the old model.
The database is the one that `make migrate` would take. OPENAI_API_KEY and OPENAI_BASE_URL are as for the API.
Exit codes: 0 done, or nothing to do; 1 it failed, and goes on where it was; 2 refused before anything was paid for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
import yaml
from pgvector import HalfVector
from pgvector.psycopg.halfvec import HalfVectorBinaryDumper

from tools.database.address import ROOT, Refused, database_url, hide_secrets, told

psycopg.adapters.register_dumper(HalfVector, HalfVectorBinaryDumper)
PRICES = ROOT / "services/api/cimt_api/prices.json"
DIMENSIONS = 1536  # of the columns; every model of the third generation is asked for so many
TOKEN_BYTES = 3  # of UTF-8; English takes 4, Portuguese 3.5: rather too many tokens than too few
BATCH, BATCH_BYTES = 64, 200_000  # passages and bytes in one request
MOVED = 200  # passages in one transaction, each of which goes into the vector index
LOCK = 0x454D4244  # "EMBD": one run at a time

LACKS = (
    "from public.vectors v where v.embedding_model <> %(model)s and not exists (select from private.embeddings e "
    "where e.id = v.id and e.model = %(model)s and e.content_hash = v.content_hash)"
)
MOVE = """
with chosen as (
  select v.id from public.vectors v
  join private.embeddings e on e.id = v.id and e.model = %(model)s and e.content_hash = v.content_hash
  where v.embedding_model <> %(model)s order by v.id limit %(moved)s for update of v),
moved as (
  delete from private.embeddings e using chosen c where e.id = c.id and e.model = %(model)s returning e.id, e.embedding)
update public.vectors v set embedding = m.embedding, embedding_model = %(model)s from moved m where v.id = m.id"""


Rows = list[tuple[int, str, str]]  # passages: id, hash, text


class EmbeddingFailed(Exception):
    """The model's service gave no embeddings; the text says why."""


class Reembedding:
    """One model's embeddings of all passages, on one connection; `model` is the new one."""

    def __init__(self, connection: psycopg.Connection, model: str) -> None:
        self._connection = connection
        self._values = {"model": model, "moved": MOVED}
        self._model = model

    def _one(self, query: str) -> tuple[Any, ...]:
        row = self._connection.execute(query.encode(), self._values).fetchone()
        assert row is not None  # noqa: S101 - each of these has a row
        return row

    def missing(self) -> tuple[int, int]:
        """(passages without an embedding of the model, bytes of their texts)."""
        count, size = self._one(
            f"select count(*), coalesce(sum(octet_length(v.content)), 0)::bigint {LACKS}"
        )
        return count, size

    def others(self) -> int:
        """How many embeddings of other models there are."""
        row = self._one(
            "select (select count(*) from public.vectors where embedding_model <> %(model)s) "
            "+ (select count(*) from private.embeddings where model <> %(model)s)"
        )
        return int(row[0])

    def served(self) -> str:
        """The model by which passages are found now."""
        return str(self._one("select private.served_model(%(model)s)")[0])

    def batches(self) -> Iterator[Rows]:
        """Passages without an embedding of the model, as many as fit one request."""
        last = 0
        while True:
            query = f"select v.id, v.content_hash, v.content {LACKS} and v.id > %(last)s order by v.id limit {BATCH}"
            values = {**self._values, "last": last}
            rows = self._connection.execute(query.encode(), values).fetchall()
            if not rows:
                return
            size = 0
            fitting: Rows = []
            for row in rows:
                size += len(row[2].encode())
                if fitting and size > BATCH_BYTES:
                    break
                fitting.append(row)
            yield fitting
            last = fitting[-1][0]

    def store(self, rows: Rows, vectors: list[list[float]]) -> None:
        """Keep the embeddings of one request. A passage that is gone by now, or another, takes none."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(
                "insert into private.embeddings (id, model, content_hash, embedding) "
                "select v.id, %s, %s, %s::extensions.halfvec from public.vectors v where v.id = %s for key share "
                "on conflict (model, id) do update "
                "set content_hash = excluded.content_hash, embedding = excluded.embedding",
                [
                    (self._model, digest, HalfVector(vector), number)
                    for (number, digest, _), vector in zip(rows, vectors, strict=True)
                ],
            )

    def serve(self) -> bool:
        """Let passages be found by the model from now on, unless one has none of its embeddings."""
        with self._connection.transaction():
            # Writers wait for this moment: none comes between the look and the word.
            self._connection.execute("set local lock_timeout = '10s'")
            self._connection.execute("lock table public.vectors in share row exclusive mode")
            if self.missing()[0]:
                return False
            self._connection.execute(
                "insert into private.served_embeddings (model) values (%(model)s) "
                "on conflict (only_one) do update set model = excluded.model",
                self._values,
            )
            return True

    def move(self) -> int:
        """Put some of the new embeddings in the place of the old ones; how many."""
        return self._connection.execute(MOVE.encode(), self._values).rowcount

    def forget(self) -> None:
        """Delete what is left beside the passages: embeddings of other models, or of texts that have changed."""
        self._connection.execute("delete from private.embeddings")


def embed(model: str, batches: Iterable[Rows]) -> Iterator[tuple[Rows, list[list[float]]]]:
    """Each batch with an embedding for each of its texts. Raises EmbeddingFailed, after attempts of the SDK's own."""
    import openai  # two seconds that only who embeds needs

    # Only the third generation can be told how long its vectors are.
    sized = {"dimensions": DIMENSIONS} if "-3-" in model else {}
    try:
        client = openai.OpenAI(max_retries=8)  # waits as long as a rate limit says
        for rows in batches:
            texts = [text for *_, text in rows]
            answer = client.embeddings.create(model=model, input=texts, **sized)  # type: ignore[arg-type]
            vectors = [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
            if len(vectors) != len(texts) or any(len(vector) != DIMENSIONS for vector in vectors):
                raise EmbeddingFailed(f"{model} gave no {DIMENSIONS} numbers for each text")
            yield rows, vectors
    except openai.OpenAIError as error:
        raise EmbeddingFailed(str(error)) from None


def estimate(model: str, count: int, size: int) -> str:
    """What embedding so many passages of so many bytes costs, at most."""
    entry = json.loads(PRICES.read_text())["embedding"].get(model)
    tokens = -(-size // TOKEN_BYTES)
    cost = (
        f"{tokens / 1e6 * float(entry['prices'][-1]['input']):.2f} USD (prices of {entry['seen']})"
        if entry
        else "at a price not known here"
    )
    return f"{count} passages, {size} bytes, at most {tokens} tokens, {cost}"


def run(connection: psycopg.Connection, model: str, confirm: str) -> None:
    """One run. Raises Refused where it has to be confirmed, or another is at work, and EmbeddingFailed."""
    # Held for as long as the connection lives.
    row = connection.execute("select pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
    if not row or not row[0]:
        raise Refused("another run is at work. Next: wait until it has ended")
    work = Reembedding(connection, model)
    count, size = work.missing()
    print(f"reembed: {model} has no embedding of {estimate(model, count, size)}", flush=True)
    served = work.served()
    if count or served != model:
        if confirm != "yes":
            raise Refused(f"{served} answers as before. Next: the same with CONFIRM=yes")
        done = 0
        while not work.serve():
            for rows, vectors in embed(model, work.batches()):
                work.store(rows, vectors)
                done += len(rows)
                part = 100 * done // max(count, done)
                print(f"reembed: {done} of {max(count, done)} ({part} %)", flush=True)
        print(f"reembed: {model} is served from now on")
    old = work.others()
    if old and confirm != "drop":
        print(
            f"reembed: {old} embeddings of other models are left. Next, when {model} does well: CONFIRM=drop"
        )
    elif old:
        moved = 0
        while some := work.move():
            moved += some
            print(f"reembed: {moved} old embeddings replaced", flush=True)
        work.forget()
        print(f"reembed: only embeddings of {model} are left")


def main() -> int:
    """Command line; returns the exit code."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    hide_secrets("stdout", "stderr")
    declared = yaml.safe_load((ROOT / "services/settings.yaml").read_text())["settings"]
    model = os.environ.get("EMBEDDING_MODEL") or declared["EMBEDDING_MODEL"]["default"]
    try:
        url = database_url()
        with psycopg.connect(
            url, autocommit=True, application_name="cimt reembed", connect_timeout=30
        ) as connection:
            run(connection, model, os.environ.get("CONFIRM", ""))
    except Refused as reason:
        print(f"reembed: {reason}", file=sys.stderr)
        return 2
    except (psycopg.Error, EmbeddingFailed) as error:
        print(
            f"reembed: {told(error)}. Next: the same again, it goes on where it was",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
