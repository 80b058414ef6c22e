"""What is declared: the file of sources, and what each of them lists."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import jsonschema
import yaml

from .fetch import ENDS_WITH_US, FILES, GIT_SECONDS, Failed, Fetcher, ref_names

SCHEMA = json.loads(Path(__file__).with_name("sources.schema.json").read_text())
KINDS = [one["properties"]["kind"]["const"] for one in SCHEMA["items"]["oneOf"]]
LIST_BYTES = 64 * 1024 * 1024
MAPS = 1000  # sitemaps of an index
REFS_BYTES = 16 * 1024 * 1024
REF = re.compile(rb"[0-9a-f]{4}([0-9a-f]{40}) ([^\0\n]+)")  # a line of what a git server lists
FILE_BYTES = 20 * 1024 * 1024
HOURS = {
    "hourly": 0.0,
    "daily": 23.0,
    "weekly": 7 * 24 - 1.0,
}  # since the last read, a little less than they say
# What says where a visitor came from, and nothing of the page.
TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|gbraid|wbraid|dclid|msclkid|yclid|mc_[ce]id|igshid|_hs\w+|ref_src|_ga|_gl"
)

Read = Callable[..., Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Item:
    """A document that a source lists. With neither path nor content it is fetched from its address."""

    name: str
    url: str
    version: str | None = None  # equal to the one before: unchanged
    path: Path | None = None
    content: str | None = None
    title: str | None = None


@dataclass(slots=True)
class Listing:
    """What a source lists. Only a whole one can say that something is gone."""

    items: list[Item]
    whole: bool = True
    version: str | None = None  # of all of it: a commit
    notes: list[str] = field(default_factory=list)


def load(path: Path) -> list[dict[str, Any]]:
    """Read the declared sources. Raises ValueError with every fault at once."""
    try:
        sources = yaml.safe_load(path.read_text()) or []
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None
    faults = []
    for fault in jsonschema.Draft202012Validator(
        SCHEMA, format_checker=jsonschema.FormatChecker()
    ).iter_errors(sources):
        where = fault.absolute_path[0] if fault.absolute_path else None
        # Of the kinds that a source may be, only what the one that it names has to say counts.
        parts = fault.context or []
        if fault.validator == "oneOf" and not parts:
            continue  # it names no kind, which is a fault of its own
        others = {part.schema_path[0] for part in parts if [*part.absolute_path][1:] == ["kind"]}
        of = [part for part in parts if part.schema_path[0] not in others]
        name = (
            sources[where].get("name", where)
            if isinstance(where, int) and isinstance(sources[where], dict)
            else "sources"
        )
        said = (
            f"its kind is one of {', '.join(KINDS)}"
            if parts and not of
            else (of or [fault])[0].message
        )
        faults.append(f"{path}: {name}: {said[:200]}")
    names = (
        [one.get("name") for one in sources if isinstance(one, dict)]
        if isinstance(sources, list)
        else []
    )
    faults += [
        f"{path}: {name}: declared twice" for name in {one for one in names if names.count(one) > 1}
    ]
    if faults:
        raise ValueError("\n".join(faults))
    return list(sources)


def canonical(url: str) -> str:
    """Return the one address of a page: no fragment, tracking, default port or trailing slash; the query in order."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    if port and port != {"http": 80, "https": 443}.get(parts.scheme):
        host += f":{port}"
    # Escaped in one way; an escaped slash is none of the address.
    path = "/".join(
        quote(
            unquote(part, errors="surrogateescape"), safe=":@!$&'()*+,;=~", errors="surrogateescape"
        )
        for part in parts.path.split("/")
    )
    path = re.sub(r"/(?:index\.(?:html?|php))?$", "", re.sub(r"/{2,}", "/", path))
    query = [
        (key, value)
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
        if not TRACKING.fullmatch(key)
    ]
    return f"{parts.scheme.lower()}://{host}{path}" + (
        f"?{urlencode(sorted(query))}" if query else ""
    )


def name_of(source: str, url: str) -> str:
    """Return the name of the document of an address."""
    return f"{source}/{canonical(url).partition('://')[2]}"[:2000]


async def listing(
    source: Mapping[str, Any],
    fetcher: Fetcher,
    read: Read,
    known: Mapping[str, str],
    commit: str | None,
    tokens: Mapping[str, str],
    base: Path,
) -> Listing | None:
    """Return what a source lists; None: all as it was at `commit`. `known`: versions by path. Raises Failed."""
    if source["kind"] == "page":
        found: Listing | None = Listing([Item(source["name"], source["url"])])
    elif source["kind"] == "sitemap":
        found = await _sitemap(source, fetcher, read)
    elif source["kind"] == "feed":
        found = await _feed(source, fetcher, read)
    elif source["kind"] == "git":
        found = await _git(source, fetcher, known, commit, tokens)
    else:
        found = _folder(source, base)
    if found is not None and not found.items:
        raise Failed(
            f"{where(source)}: nothing is listed there"
            + (" that matches" if source.get("match") else "")
        )
    return found


def where(source: Mapping[str, Any]) -> str:
    """Return the address of a source, for people."""
    return str(source.get("url") or source.get("repository") or source["folder"])


async def _list(fetcher: Fetcher, read: Read, kind: str, url: str) -> dict[str, Any]:
    answer = await fetcher.get(url, most=LIST_BYTES, declared=True)
    assert answer.path is not None  # noqa: S101 - nothing was asked conditionally
    try:
        return await read(answer.path, kind=kind, url=answer.url, type=answer.type)
    except Failed as error:
        raise Failed(f"{url}: {error}") from None
    finally:
        answer.path.unlink()


def _web(source: Mapping[str, Any], entries: list[tuple[str, str | None]]) -> list[Item]:
    """Return one item for each page, however many addresses it is listed under; an address of the web has a name."""
    wanted = re.compile(source.get("match", ""))
    items: dict[str, Item] = {}
    for url, version in entries:
        if wanted.search(url):
            name = name_of(source["name"], url)
            items.setdefault(name, Item(name, url.partition("#")[0], version))
    return list(items.values())


async def _sitemap(source: Mapping[str, Any], fetcher: Fetcher, read: Read) -> Listing:
    pages: list[tuple[str, str | None]] = []
    waiting, seen, notes = [source["url"]], set(), []
    while waiting:
        url = waiting.pop(0)
        if url in seen:
            continue
        seen.add(url)
        if len(seen) > MAPS:
            raise Failed(f"{source['url']}: names more than {MAPS} sitemaps")
        try:
            found = await _list(fetcher, read, "sitemap", url)
        except Failed as error:
            if url == source["url"]:
                raise
            notes.append(str(error))
            continue
        pages += map(tuple, found["pages"])
        waiting += found["sitemaps"]
    return Listing(_web(source, pages), whole=not notes, notes=notes)


async def _feed(source: Mapping[str, Any], fetcher: Fetcher, read: Read) -> Listing:
    found = await _list(fetcher, read, "feed", source["url"])
    items = _web(source, [(url, time) for url, time, *_ in found["entries"] if url])
    for url, time, title, body, identity in found["entries"]:
        if not url and re.search(source.get("match", ""), identity or title or ""):
            name = f"{source['name']}/{quote(identity or title or body[:40], safe='')}"[:2000]
            items.append(Item(name, source["url"], time, content=body, title=title))
    notes = (
        [f"{source['url']}: {found['lost']} entries with neither address nor text"]
        if found["lost"]
        else []
    )
    if not found["whole"]:
        notes.append(
            f"{source['url']}: the feed is cut short or broken; what could be read of it was"
        )
    # What rolled off is gone only where it was said so.
    return Listing(items, whole=found["whole"] and not source.get("keep", True), notes=notes)


async def _commit(url: str, ref: str, token: str, fetcher: Fetcher) -> str | None:
    """Return the commit that a branch or tag names now; None: whoever fetches it finds out, and says what is wrong."""
    if re.fullmatch(r"[0-9a-f]{40}", ref):
        return ref
    address = f"{url}/info/refs?service=git-upload-pack"
    try:
        answer = await fetcher.get(address, most=REFS_BYTES, declared=True, token=token)
    except Failed:
        return None
    if answer.path is None or answer.url != address:
        return None
    named = {name: commit for commit, name in REF.findall(answer.path.read_bytes())}
    answer.path.unlink()
    found = next((named[one.encode()] for one in ref_names(ref) if one.encode() in named), b"")
    return found.decode()


async def _git(
    source: Mapping[str, Any],
    fetcher: Fetcher,
    known: Mapping[str, str],
    commit: str | None,
    tokens: Mapping[str, str],
) -> Listing | None:
    url = source["repository"]
    url = url if "://" in url else f"https://github.com/{url}"
    parts = urlsplit(url)
    if parts.scheme != "https" and not fetcher.reach.allows(parts.hostname or "", parts.port or 80):
        raise Failed(f"{url}: git is read by https only")
    token = tokens.get(parts.netloc.lower(), "")
    if commit and await _commit(url, source.get("ref") or "HEAD", token, fetcher) == commit:
        return None
    order = {
        "url": url, "ref": source.get("ref"), "folder": source.get("folder"), "match": source.get("match"),
        "token": token, "known": dict(known), "into": str(fetcher.folder),
        "allow": sorted(fetcher.reach.allow), "own": sorted(fetcher.reach.own),
    }  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        *ENDS_WITH_US, sys.executable, "-m", "cimt_etl.git",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=1 << 26,
    )  # fmt: skip
    try:
        async with asyncio.timeout(GIT_SECONDS):
            said, _ = await child.communicate(json.dumps(order).encode())
    except TimeoutError:
        raise Failed(f"{url}: not fetched after {GIT_SECONDS} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode or not said:
        raise Failed(f"{url}: takes more memory or time to fetch than a repository may")
    done = json.loads(said)
    if "error" in done:
        raise Failed(f"{url}: {done['error']}")
    items = [
        Item(f"{source['name']}/{path}", f"{url}/{path}", blob, path=fetcher.folder / blob)
        for path, blob in sorted(done["files"].items())
    ]
    return Listing(items, version=done["commit"])


def _folder(source: Mapping[str, Any], base: Path) -> Listing:
    top = (base / source["folder"]).resolve()
    chosen = re.compile(source["match"]) if source.get("match") else FILES
    if not top.is_dir():
        raise Failed(f"{top}: no such folder")
    items = []
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top).as_posix()
        # Not what a link leads to: a folder of documents must not show other files of the machine.
        if path.is_file() and chosen.search(name) and path.resolve().is_relative_to(top):
            kept = path.stat()
            items.append(
                Item(
                    f"{source['name']}/{name}",
                    name,
                    f"{kept.st_mtime_ns}-{kept.st_size}",
                    path=path,
                )
            )
    return Listing(items)
