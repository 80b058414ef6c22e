"""Does search find the right passage? Questions in Portuguese and English over a handbook, typed well and badly.

Usage: python -m bench.database.questions [--handbook bench/database/handbook] [--major 17] [--misses]

A handbook is a folder of Markdown files, one a language: `#` is a document, `##` one of its passages, and each line
that begins with `?` is a question whose answer is the passage above it. Asked of `search_vectors` as the API does:
role `cimt_api`, claims of a user; by words alone, by vectors alone and by both. `released` is the search by words of
26 November 2026, which is told the right language. Each number is hit@1/hit@5: the part of the questions whose passage
came first, or among the first five. Vectors are OpenAI's where OPENAI_API_KEY is set; else they are those of the
stand-in, a hashed bag of words, which say nothing about real ones.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from local.openai.embeddings import embed
from services.api.cimt_api.store.ingest import halfvec
from testbed.postgres import apply, server

MODEL = "text-embedding-3-small"
CLAIMS = '{"sub": "11111111-1111-4111-8111-111111111111", "role": "authenticated"}'
FIRST = 5
SEARCH = "select id from public.search_vectors(%(near)s::extensions.halfvec, %(words)s, %(first)s)"
# All words, or else any of them, by the stemmer of the language.
RELEASED = """
with asked as (select c.config, websearch_to_tsquery(c.config, %(words)s) as every,
  (select string_agg(quote_literal(l), ' | ')::tsquery
   from unnest(tsvector_to_array(to_tsvector(c.config, %(words)s))) l) as any_of
  from (select case %(language)s when 'pt' then 'portuguese' else 'english' end::regconfig as config) c)
select v.id from public.vectors v, asked where v.search @@ case
  when exists (select from public.vectors w where w.search @@ every) then every else any_of end
order by ts_rank_cd(v.search, case
  when exists (select from public.vectors w where w.search @@ every) then every else any_of end) desc, v.id
limit %(first)s"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONG = re.compile(r"[^\W\d_]{5,}")


@dataclass
class Passage:
    """A passage with the questions that it answers."""

    language: str
    title: str
    heading: str
    text: str = ""
    questions: list[str] = field(default_factory=list)


def read(folder: Path) -> list[Passage]:
    """The passages of a handbook, in the order of their files and lines."""
    passages: list[Passage] = []
    for file in sorted(folder.glob("*.md")):
        title = ""
        for line in file.read_text().splitlines():
            if line.startswith("# "):
                title = line[2:]
            elif line.startswith("## "):
                passages.append(Passage(file.stem, title, line[3:]))
            elif line.startswith("? "):
                passages[-1].questions.append(line[2:])
            elif line:
                passages[-1].text += f"{line}\n"
    return passages


def without_accents(text: str) -> str:
    """The letters alone, as people type who are in a hurry."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def slip(word: str, chance: random.Random) -> str:
    """The word with one letter wrong, missing, twice, or changed for the next."""
    at = chance.randrange(len(word) - 1)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    kinds = (
        before + chance.choice(LETTERS.replace(letter, "")) + after,
        before + after,
        before + letter + letter + after,
        before + after[0] + letter + after[1:],
    )
    return chance.choice([kind for kind in kinds if kind != word])


def one_slip(text: str) -> str:
    """One long word of the question has a slip; always the same one."""
    chance = random.Random(text)  # noqa: S311
    words = list(LONG.finditer(text))
    if not words:
        return text
    word = chance.choice(words)
    return text[: word.start()] + slip(word.group(), chance) + text[word.end() :]


def all_slips(text: str) -> str:
    """Every long word has one, and no accent is typed."""
    chance = random.Random(text)  # noqa: S311
    return LONG.sub(lambda word: slip(word.group(), chance), without_accents(text))


TYPED: dict[str, Callable[[str], str]] = {
    "clean": str,
    "no accents": without_accents,
    "one slip": one_slip,
    "slips in all": all_slips,
}


def vectors(texts: Sequence[str]) -> list[str]:
    """Embeddings as Postgres reads them, by the real model where there is a key."""
    if not os.environ.get("OPENAI_API_KEY"):
        return [halfvec(embed(text, 1536)) for text in texts]
    from openai import OpenAI

    found = OpenAI().embeddings.create(model=MODEL, input=list(texts), dimensions=1536)
    return [halfvec(one.embedding) for one in found.data]


def store(connection: psycopg.Connection, passages: list[Passage]) -> None:
    """Write them as the ingest route does; ids are positions from 1."""
    contents = [f"## {passage.heading}\n\n{passage.text}" for passage in passages]
    rows = zip(passages, contents, vectors(contents), strict=True)
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into public.vectors "
            "(source, chunk, content, content_hash, language, metadata, embedding_model, embedding) "
            "values (%s, %s, %s, repeat('0', 64), %s, jsonb_build_object('title', %s::text), %s, %s)",
            [
                (p.title, number, content, p.language, p.title, MODEL, near)
                for number, (p, content, near) in enumerate(rows)
            ],
        )


@dataclass
class Question:
    """What is asked, in which language, and the number of the passage that answers it."""

    text: str
    language: str
    passage: int


def ask(
    api: psycopg.Connection, owner: psycopg.Connection, questions: list[Question], way: str
) -> tuple[list[int], list[float]]:
    """For each question the place of its passage (0: not among the first), and milliseconds."""
    places, times = [], []
    nearest = vectors([question.text for question in questions])
    for question, near in zip(questions, nearest, strict=True):
        values = {
            "near": None if way == "words" else near,
            "words": "" if way == "vectors" else question.text,
            "language": question.language,
            "first": FIRST,
        }
        connection, sql = (owner, RELEASED) if way == "released" else (api, SEARCH)
        start = time.perf_counter()
        ids = [row[0] for row in connection.execute(sql.encode(), values)]
        times.append((time.perf_counter() - start) * 1000)
        places.append(ids.index(question.passage) + 1 if question.passage in ids else 0)
    return places, times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--handbook", type=Path, default=Path(__file__).with_name("handbook"))
    parser.add_argument("--major", type=int, default=17)
    parser.add_argument("--misses", action="store_true", help="name what words do not find")
    arguments = parser.parse_args()
    passages = read(arguments.handbook)
    asked = [
        Question(text, passage.language, number)
        for number, passage in enumerate(passages, 1)
        for text in passage.questions
    ]
    print(f"{len({p.title for p in passages})} documents, {len(passages)} passages")
    model = MODEL if os.environ.get("OPENAI_API_KEY") else "a stand-in's, not meaningful"
    print(f"vectors: {model}")
    with server(arguments.major) as made:
        apply(made.url())
        with (
            psycopg.connect(made.url(), autocommit=True) as owner,
            psycopg.connect(made.url(user="cimt_api"), autocommit=True) as api,
        ):
            store(owner, passages)
            owner.execute("analyze")
            api.execute("select set_config('request.jwt.claims', %s, false)", (CLAIMS,))
            print(f"{'':3} {'':4} {'typed':13}{''.join(f'{way:>14}' for way in WAYS)}  words ms")
            for language in sorted({question.language for question in asked}):
                for typed, change in TYPED.items():
                    questions = [
                        Question(change(q.text), q.language, q.passage)
                        for q in asked
                        if q.language == language
                    ]
                    report(api, owner, questions, language, typed, misses=arguments.misses)


WAYS = ("released", "words", "vectors", "both")


def report(
    api: psycopg.Connection,
    owner: psycopg.Connection,
    questions: list[Question],
    language: str,
    typed: str,
    *,
    misses: bool,
) -> None:
    """Print one line, and the questions that words alone do not answer."""
    cells, took, missed = [], [], []
    for way in WAYS:
        places, times = ask(api, owner, questions, way)
        first = sum(place == 1 for place in places) / len(places)
        five = sum(place > 0 for place in places) / len(places)
        cells.append(f"{first:.2f}/{five:.2f}")
        if way == "words":
            took = times
            missed = [q.text for q, place in zip(questions, places, strict=True) if not place]
    line = "".join(f"{cell:>14}" for cell in cells)
    print(
        f"{language:3} {len(questions):4} {typed:13}{line}"
        f"  {min(took):.1f}/{statistics.median(took):.1f}/{max(took):.1f}"
    )
    for text in missed if misses else ():
        print(f"    {text}")


if __name__ == "__main__":
    main()
