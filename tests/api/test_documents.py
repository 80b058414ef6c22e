"""The ETL's entry: what is stored, embedded, kept and removed; twice, at the same time, and broken off."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from testbed.api import INGEST_KEY, Api, Clouds, Model

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def etl(shared_api: Api, model: Model) -> Iterator[httpx.Client]:
    """With the service credential."""
    with shared_api.client(INGEST_KEY) as client:
        yield client


@pytest.fixture
def path() -> str:
    """Of a document of its own for each test."""
    return f"/documents/{uuid4()}.md"


def handbook(*, changed: int = -1, chapters: int = 12) -> str:
    """Some thirty passages; in one chapter a word may be another."""
    return "# Handbook\n\n" + "\n\n".join(
        f"## Chapter {chapter}\n\n"
        + "\n\n".join(
            " ".join(f"c{chapter}p{paragraph}w{word}" for word in range(60))
            + (" changed." if chapter == changed and paragraph == 0 else " as ever.")
            for paragraph in range(3)
        )
        for chapter in range(chapters)
    )


def stored(clouds: Clouds, path: str) -> list[tuple[Any, ...]]:
    """Passages in order: position, text, and the row's version, which any write changes."""
    return clouds.postgres.rows(
        "select chunk, content, xmin::text from public.vectors where source = %s order by chunk",
        path.removeprefix("/documents/"),
    )


def put(etl: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = etl.put(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_only_what_changed_is_embedded_and_written(
    etl: httpx.Client, path: str, model: Model, clouds: Clouds
) -> None:
    first = put(etl, path, content=handbook(), title="Handbook")
    assert first["chunks"] == first["embedded"] > 20
    before, calls = stored(clouds, path), model.calls(EMBEDDINGS)
    assert [row[0] for row in before] == list(range(first["chunks"]))

    again = put(etl, path, content=handbook(), title="Handbook")
    assert (again["embedded"], again["unchanged"], again["removed"]) == (0, first["chunks"], 0)
    assert stored(clouds, path) == before  # not one row was written
    assert model.calls(EMBEDDINGS) == calls

    edited = put(etl, path, content=handbook(changed=5), title="Handbook")
    assert 1 <= edited["embedded"] <= 2
    assert edited["removed"] == edited["embedded"]
    # The edited passages, and the first, which says which content this is.
    written = [old for old, new in zip(before, stored(clouds, path), strict=True) if old != new]
    assert len(written) <= edited["embedded"] + 1


def test_what_moves_keeps_its_embedding_and_what_vanishes_goes(
    etl: httpx.Client, path: str, clouds: Clouds
) -> None:
    put(etl, path, content=handbook())

    def embeddings() -> dict[str, str]:
        return dict(
            clouds.postgres.rows(
                "select content, embedding::text from public.vectors where source = %s",
                path.removeprefix("/documents/"),
            )
        )

    before = embeddings()
    longer = put(etl, path, content=f"# News\n\n{'All is new here. ' * 40}\n\n{handbook()}")
    assert longer["embedded"] <= 3
    after = embeddings()
    same = before.keys() & after.keys()
    assert len(same) >= len(before) - 2
    assert all(before[text] == after[text] for text in same)

    shorter = put(etl, path, content=handbook(chapters=2))
    assert shorter["embedded"] <= 1
    assert shorter["removed"] > 20
    assert len(stored(clouds, path)) == shorter["chunks"] < 10
    assert put(etl, path, content=" \n ")["chunks"] == 0
    assert stored(clouds, path) == []


def test_the_list_tells_an_etl_what_it_need_not_send(etl: httpx.Client) -> None:
    names = [f"list/{uuid4()}" for _ in range(3)]
    sent = {name: put(etl, f"/documents/{name}", content=f"About {name}") for name in names}
    found: dict[tuple[str, str | None], Any] = {}
    after = None
    while True:
        answer = etl.get("/documents", params={"limit": 2, **({"after": after} if after else {})})
        for item in answer.json()["items"]:
            assert (item["source"], item["owner_id"]) not in found
            found[item["source"], item["owner_id"]] = item
        after = answer.json()["next"]
        if after is None:
            break
    assert {name: found[name, None]["sha256"] for name in names} == {
        name: sent[name]["sha256"] for name in names
    }
    assert found[names[0], None]["chunks"] == 1


def test_any_source_can_be_named(etl: httpx.Client, clouds: Clouds) -> None:
    source = f"https://example.com/ção?page={uuid4()}#top"
    path = f"/documents/{quote(source, safe='')}"
    assert put(etl, path, content="Some text")["source"] == source
    assert clouds.postgres.rows("select 1 from public.vectors where source = %s", source)
    assert etl.delete(path).json() == {"removed": 1}
    assert etl.delete(path).status_code == 404


def test_two_writers_leave_one_document_not_a_mix(
    etl: httpx.Client, path: str, clouds: Clouds
) -> None:
    versions = [
        "\n\n".join(
            f"## {name} {number}\n\n" + f"{name}{number} " * 150 for number in range(length)
        )
        for name, length in (("ann", 6), ("bob", 9), ("carl", 3))
    ]
    for _ in range(3):
        with ThreadPoolExecutor(6) as pool:
            answers = list(
                pool.map(lambda content: etl.put(path, json={"content": content}), versions * 2)
            )
        assert {answer.status_code for answer in answers} <= {200, 409}
        assert 200 in {answer.status_code for answer in answers}
        names = {text.split()[1] for _, text, _ in stored(clouds, path)}
        assert len(names) == 1
        texts = [text for _, text, _ in stored(clouds, path)]
        assert len(texts) == len(set(texts))


def test_nothing_is_lost_when_embedding_fails(
    etl: httpx.Client, path: str, model: Model, clouds: Clouds
) -> None:
    put(etl, path, content=handbook())
    before = stored(clouds, path)
    model.behave("failing", status=500, paths=[EMBEDDINGS])
    failed = etl.put(path, json={"content": "Something else altogether"})
    assert failed.status_code in (502, 503)
    assert failed.headers["content-type"] == "application/problem+json"
    assert stored(clouds, path) == before


def test_a_rate_limit_half_way_is_waited_for(etl: httpx.Client, path: str, model: Model) -> None:
    # More often than the upstream client tries by itself.
    model.behave("rate_limited", retry_after=1, times=5, paths=[EMBEDDINGS])
    assert put(etl, path, content="A text that is worth waiting for")["embedded"] == 1


def test_what_does_not_fit_is_refused_and_changes_nothing(
    etl: httpx.Client, path: str, clouds: Clouds
) -> None:
    put(etl, path, content="As it was")
    before = stored(clouds, path)
    wrong: list[tuple[Any, int]] = [
        ({"content": "a\0b"}, 422),
        ({"content": "x", "language": "klingon"}, 422),
        ({"content": "x", "metadata": {"a": "\0"}}, 422),
        ({"content": "x", "metadata": {"a": "y" * 20_000}}, 422),
        ({"content": "x", "metadata": []}, 422),
        ({"content": "x", "surprise": 1}, 422),
        ({"content": "x", "owner_id": "47ef7537-252a-4728-b1d2-6ad549fa51a3"}, 404),
        ({"content": "x" * 3_000_000}, 413),
    ]
    for body, status in wrong:
        answer = etl.put(path, json=body)
        assert (str(body)[:60], answer.status_code) == (str(body)[:60], status), answer.text[:300]
    raw = {"content-type": "application/json"}
    for text in ('{"content": "x", "metadata": {"a": NaN}}', '{"content": "\\ud800"}', "{"):
        assert etl.put(path, content=text, headers=raw).status_code == 422, text
    assert etl.put(f"/documents/{'a' * 2001}", json={"content": "x"}).status_code == 422
    assert stored(clouds, path) == before


def test_the_model_that_embedded_is_part_of_what_is_known(
    etl: httpx.Client, path: str, clouds: Clouds
) -> None:
    put(etl, path, content="The same text")
    clouds.postgres.rows(
        "update public.vectors set embedding_model = 'an-older-model' where source = %s",
        path.removeprefix("/documents/"),
    )
    assert put(etl, path, content="The same text")["embedded"] == 1
