"""Read lists, and documents by `documents.py`, each file in a process of its own, which this one forks.

`python -m cimt_etl.read SOCKET lists|documents`: a connection is one file, a line of JSON answered by a line of JSON.
A reader that takes more memory or time than it may ends without an answer. Nothing here touches the network.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import logging
import os
import re
import socketserver
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import charset_normalizer
import feedparser
import webencodings
from lxml import etree

from .limits import limit

MEMORY_BYTES = 96 * 1024 * 1024  # that reading one file may add
CPU_SECONDS = 20
WALL_SECONDS = 40
UNPACKED_BYTES = 64 * 1024 * 1024  # of a gz sitemap
BARE = re.compile(rb"&(?!(?:#\d+|#[xX][\da-fA-F]+|\w+);)")
ADDRESSES = 50_000  # of one list


class Unreadable(Exception):
    """Why a file is no document, in words for people."""


def decode(data: bytes, type_: str, page: bool) -> str:
    """Decode as browsers do (BOM, header, meta), but what is valid UTF-8 is UTF-8 whatever was declared."""
    for mark, codec in (
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
    ):
        if data.startswith(mark):
            return data[len(mark) :].decode(codec, "replace")
    declared = re.search(r"charset=[\"']?([\w.:-]+)", type_, re.IGNORECASE)
    label = declared.group(1) if declared else ""
    if not label and page:
        meta = re.search(
            rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)|<\?xml[^>]+encoding=[\"']([\w.:-]+)",
            data[:4096],
            re.I,
        )
        label = (meta.group(1) or meta.group(2)).decode("ascii", "replace") if meta else ""
    encoding = (
        webencodings.lookup(label) if label else None
    )  # latin-1 is windows-1252, as on the web
    if not (encoding and encoding.name.startswith("utf-16")) and b"\x1b" not in data:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            # One character that a limit cut in two, or a stray byte, in what else is UTF-8.
            if (encoding is None or encoding.name == "utf-8") and _mostly_utf8(data):
                return data.decode("utf-8", "replace")
    if encoding is not None and encoding.name != "utf-8":
        return str(encoding.codec_info.decode(data, "replace")[0])
    guess = charset_normalizer.from_bytes(data[:200_000]).best()
    codec = guess.encoding if guess else "cp1252"
    # What knows no more of a page than that it is Western is read as browsers read it.
    return data.decode(
        "cp1252" if codec in ("latin_1", "cp1250", "ascii", "iso8859_1") else codec, "replace"
    )


def _mostly_utf8(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(ord(character) > 127 for character in text) - wrong
    return right > 4 * wrong


def tidy(text: str) -> str:
    """Compose characters, and take out those that are not seen or that Postgres cannot keep."""
    text = unicodedata.normalize(
        "NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    )
    text = re.sub(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b\u2060\ufeff\ud800-\udfff]", "", text
    )
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


# -- lists ----------------------------------------------------------------------------


def sitemap(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """Return {pages: [[address, time]], sitemaps: [address]} of a sitemap, an index or a text. Raises Unreadable."""
    if data.startswith(b"\x1f\x8b"):
        unzip = zlib.decompressobj(47)
        try:
            data = unzip.decompress(data, UNPACKED_BYTES)
        except zlib.error as error:
            raise Unreadable(f"broken gz: {error}") from None
        if not unzip.eof:
            raise Unreadable("gz that is cut short, or far too large")
    text = decode(data, asked.get("type", ""), True).strip()
    if not text:
        raise Unreadable("empty")
    if not text.startswith("<"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        wrong = next((line for line in lines if not re.match(r"https?://\S+$", line)), None)
        if wrong is not None:
            raise Unreadable(f"neither XML nor a list of addresses: {wrong[:80]}")
        return {"pages": [[line, None] for line in lines], "sitemaps": []}
    root = _xml(text)
    name = etree.QName(root).localname.lower()
    if name not in ("urlset", "sitemapindex"):
        raise Unreadable(f"no sitemap, its first element is <{name}>")
    pages: list[list[str | None]] = []
    maps: list[list[str | None]] = []
    for one in root:
        if not isinstance(one.tag, str):
            continue
        values = {
            etree.QName(child).localname: (child.text or "").strip()
            for child in one
            if isinstance(child.tag, str)
        }
        if not values.get("loc"):
            raise Unreadable("an entry without an address")
        where, time = urljoin(asked["url"], values["loc"]), values.get("lastmod", "")
        # A date without a time does not tell two changes of one day apart.
        (maps if name == "sitemapindex" else pages).append([where, time if "T" in time else None])
    return {"pages": pages, "sitemaps": [one[0] for one in maps]}


def _xml(text: str) -> etree._Element:
    """Parse XML strictly, but for a bare & in an address, the fault of half of the sitemaps."""
    text = re.sub(r"^<\?xml[^>]*\?>", "", text)
    text = re.sub(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[\da-fA-F]+);)", "&amp;", text)
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        return etree.fromstring(text, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise Unreadable(f"no sitemap: {error}") from None


def feed(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """Return {entries: [[address, time, title, HTML, id]], whole, lost: int} of a feed. Raises Unreadable."""
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _json_feed(data, asked)
    # A bare & is one, outside of CDATA: the parser would make it the beginning of an entity.
    parts = re.split(rb"(<!\[CDATA\[.*?\]\]>)", data, flags=re.DOTALL)
    data = b"".join(
        part if part.startswith(b"<![CDATA[") else BARE.sub(b"&amp;", part) for part in parts
    )
    headers = {"content-location": asked["url"], "content-type": asked.get("type", "")}
    parsed = feedparser.parse(io.BytesIO(data), response_headers=headers, sanitize_html=False)
    if not parsed.version and not parsed.entries:
        raise Unreadable("no feed")
    entries, lost = [], 0
    for one in parsed.entries:
        links = [
            link.get("href", "")
            for link in one.get("links", [])
            if link.get("rel", "alternate") == "alternate"
        ]
        address = (links[0] if links else one.get("link", "")) or _permalink(one)
        content = one.get("content") or []
        body = content[0].get("value", "") if content else one.get("summary", "")
        if address:
            address = urljoin(asked["url"], address.strip())
        elif not body:
            lost += 1
            continue
        time = dict.get(one, "updated")
        entries.append(
            [address or None, time, one.get("title"), body if not address else None, one.get("id")]
        )
    return {"entries": entries, "whole": not parsed.bozo or _closed(data), "lost": lost}


def _permalink(entry: Any) -> str:
    identity = entry.get("id", "")
    return (
        identity if entry.get("guidislink") and identity.startswith(("http://", "https://")) else ""
    )


def _closed(data: bytes) -> bool:
    """Whether the last element of a feed is closed: what is odd inside loses nothing, what is cut short does."""
    return re.search(rb"</(?:rss|feed|rdf:RDF)\s*>\s*$", data.rstrip(b"\0 \r\n\t")) is not None


def _json_feed(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        parsed = json.loads(decode(data, "", False))
        items = parsed["items"]
        if "jsonfeed.org" not in parsed["version"] or not isinstance(items, list):
            raise KeyError("version")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unreadable("no feed") from None
    entries, lost = [], 0
    for one in items:
        if not isinstance(one, dict):
            lost += 1
            continue
        identity = str(one.get("id", ""))
        address = one.get("url") or (
            identity if identity.startswith(("http://", "https://")) else ""
        )
        body = one.get("content_html") or one.get("content_text")
        if not address and not body:
            lost += 1
            continue
        where = urljoin(asked["url"], str(address)) if address else None
        entries.append(
            [
                where,
                one.get("date_modified"),
                one.get("title"),
                None if where else body,
                identity or None,
            ]
        )
    return {"entries": entries, "whole": True, "lost": lost}


# -- a process for each file ------------------------------------------------------------

READERS: dict[str, Callable[[bytes, dict[str, Any]], dict[str, Any]]] = {
    "sitemap": sitemap,
    "feed": feed,
}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what a reader says, or {error}."""
    try:
        found = READERS[asked["kind"]](Path(asked["path"]).read_bytes(), asked)
        listed = len(found.get("pages", found.get("entries", ())))
        if listed > ADDRESSES:
            return {"error": f"names {listed:,} addresses, more than {ADDRESSES:,}"}
    except Unreadable as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"takes more than {MEMORY_BYTES >> 20} MB of memory to read"}
    except RecursionError:
        return {"error": "nested too deeply to be read"}
    except Exception as error:  # noqa: BLE001 - whatever a strange file leads a library to: it is told, the run goes on
        return {"error": f"cannot be read: {type(error).__name__}: {str(error)[:160]}"}
    return found


class Handler(socketserver.StreamRequestHandler):
    """One file."""

    def handle(self) -> None:
        """Read it under the limits of a process that is its own."""
        limit(MEMORY_BYTES, CPU_SECONDS, WALL_SECONDS)
        asked = json.loads(self.rfile.readline())
        self.wfile.write(json.dumps(answer(asked)).encode() + b"\n")


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks a process for each connection, with every library loaded."""

    request_queue_size = 64
    max_children = 8


def main(path: str, kind: str) -> None:
    """Serve readers of lists or of documents on a socket until the run that started it ends it."""
    logging.disable(logging.CRITICAL)  # what libraries complain of in files
    os.environ.pop("INGEST_KEY", None)
    if kind == "documents":
        from . import documents

        READERS["document"] = documents.document
    with Server(path, Handler) as server:
        gc.freeze()
        server.serve_forever()


if __name__ == "__main__":
    # By its name, under which documents.py imports it.
    importlib.import_module("cimt_etl.read").main(*sys.argv[1:])
