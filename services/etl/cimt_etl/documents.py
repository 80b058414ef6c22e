"""Documents: bytes become Markdown with what they say of themselves."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from typing import Any
from urllib.parse import urljoin, urlsplit

import mammoth
import pypdf
import trafilatura
import yaml
from html_to_markdown import ConversionOptions, convert
from lxml import etree, html
from lxml.cssselect import CSSSelector

from .read import Unreadable, decode, tidy

TEXT_BYTES = 1_900_000  # of a document; the API takes 2 MiB of JSON
UNPACKED_BYTES = 64 * 1024 * 1024  # of a DOCX
METADATA_BYTES = 4096
LANGUAGES = ("en", "pt", "es", "fr", "de", "it")

# Short pages that say nothing but that there is nothing. Longer ones may be about such errors.
NOTHING_HERE = re.compile(
    r"\b404\b|not found|(?:does not|doesn't|no longer) exist|n[ãa]o (?:foi )?encontrad|n[ãa]o existe|"
    r"no encontrad|no existe|introuvable|nicht gefunden|non trovat|"
    r"(?:under|scheduled|down for) maintenance|em manuten[çc][ãa]o|temporarily unavailable|"
    r"indispon[íi]vel|just a moment",
    re.IGNORECASE,
)
NOTHING_CHARACTERS = 600
DROPPED = (
    "script, style, noscript, template, nav, footer, form, aside, dialog, iframe, object, canvas, svg, button, select, "
    "[role=navigation], [role=banner], [role=contentinfo], [role=search], [role=dialog], [role=complementary], "
    "[hidden], [aria-hidden=true]"
)
MARKDOWN = ConversionOptions(
    extract_metadata=False, heading_style="atx", skip_images=True, autolinks=False
)


def kind(data: bytes, type_: str, name: str) -> str:
    """Return html, markdown, text, pdf or docx by what a file holds; type and name only tell kinds of text apart."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        try:
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            raise Unreadable("a broken zip archive") from None
        if "word/document.xml" in names:
            return "docx"
        raise Unreadable("a zip archive, but no DOCX")
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Unreadable("an old Office file: save it as DOCX or PDF")
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff")) or "utf-16" in type_.lower()
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b\x1a" for byte in data[:4096])
    if not wide and (b"\0" in data[:4096] or control > len(data[:4096]) // 50):
        raise Unreadable("neither text nor PDF nor DOCX")
    start = (head.replace(b"\0", b"") if wide else head).lower()
    if re.match(
        rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", start, re.S
    ):
        return "html"
    if re.match(rb"(?:<\?xml|<(?:rss|feed|urlset|sitemapindex|rdf)\b)", start):
        raise Unreadable("XML, which is no page (a list is declared as sitemap or feed)")
    ending = name.lower().rsplit(".", 1)[-1]
    if ending in ("md", "mdx", "markdown") or "markdown" in type_:
        return "markdown"
    if "html" in type_ or (not type_ and ending in ("html", "htm")):
        return "html"
    if (
        "text/plain" not in type_
        and len(re.findall(rb"</(?:p|div|h[1-6]|li|table|span|a|main)>", data[:65536])) > 2
    ):
        return "html"
    return "text"


def document(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """Return {content, title, language, metadata, canonical, notes} of a file. Raises Unreadable."""
    type_, name = asked.get("type", ""), urlsplit(asked["url"]).path
    if not data.strip():
        raise Unreadable("empty")
    what = kind(data, type_, name)
    read = {"html": _page, "markdown": _markdown, "text": _text, "pdf": _pdf, "docx": _docx}[what]
    found = {
        "title": None,
        "language": None,
        "metadata": {},
        "canonical": None,
        "notes": [],
        **read(data, asked),
    }
    found["content"] = tidy(found["content"])
    if not any(map(str.isalnum, found["content"])):
        raise Unreadable("without text" + (" (scanned pages?)" if what == "pdf" else ""))
    size = len(found["content"].encode())
    if size > TEXT_BYTES:
        raise Unreadable(f"{size:,} bytes of text, more than the {TEXT_BYTES:,} of a document")
    if found["title"]:
        found["title"] = " ".join(tidy(found["title"]).split())[:500] or None
    found["sha256"] = hashlib.sha256(found["content"].encode()).hexdigest()
    return found


def _page(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", decode(data, asked.get("type", ""), True)).replace(
        "\0", ""
    )
    if not text.strip():
        raise Unreadable("empty")
    try:
        root = html.document_fromstring(text, parser=html.HTMLParser(huge_tree=True))
    except (etree.LxmlError, ValueError) as error:
        raise Unreadable(f"HTML that cannot be parsed: {error}") from None
    base = root.xpath("string(//base/@href)")
    address = urljoin(asked["url"], base) if base else asked["url"]
    canonical = root.xpath(
        "string(//link[translate(@rel, 'CANOIL', 'canoil')='canonical']/@href)"
    ).strip()
    title = root.xpath("string(//title)").strip() or root.xpath("string(//h1)").strip() or None
    language = (root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang") or "")[
        :2
    ].lower()
    _join_lines(root)
    root.make_links_absolute(address, handle_failures="discard")
    content = _content(root, asked)
    heading = root.xpath("string(//h1)")
    if len(content) < NOTHING_CHARACTERS and any(
        NOTHING_HERE.search(one) for one in (title or "", heading, content[:200])
    ):
        raise Unreadable(
            f"says that there is nothing: {' '.join((title or heading or content).split())[:80]}"
        )
    return {
        "content": content,
        "title": title,
        "language": language if language in LANGUAGES else None,
        "canonical": urljoin(address, canonical) if canonical else None,
    }


def _content(root: html.HtmlElement, asked: dict[str, Any]) -> str:
    """Return the part that counts as Markdown: as declared, as the page marks it, or as trafilatura finds it."""
    if asked.get("exclude"):
        _drop(root, asked["exclude"])
    if asked.get("select"):
        found = CSSSelector(asked["select"])(root)
        if not found:
            raise Unreadable(f"no element matches {asked['select']}")
        inside = {id(below) for one in found for below in one.iterdescendants()}
        return "\n\n".join(_convert(one) for one in found if id(one) not in inside)
    body = root.find("body")
    if body is None:
        # Its tag may be left out, and a <main> that comes then is in the head for the parser.
        body = root
        _drop(body, "title, meta, link, base")
    marked = body.xpath(".//main | .//*[@role='main']") or body.xpath(".//article")
    source = html.tostring(root, encoding="unicode")
    _drop(body, DROPPED)
    for header in body.xpath(
        ".//header[not(ancestor::main or ancestor::article or ancestor::*[@role='main'])]"
    ):
        header.drop_tree()
    whole = _convert(body)
    if len(marked) == 1 and (text := _convert(marked[0])):
        return text
    found = trafilatura.extract(
        source, output_format="markdown", include_tables=True, include_links=True, include_formatting=True,
        include_comments=False, favor_recall=True, with_metadata=False,
    ) or ""  # fmt: skip
    # It decides which blocks count; the words of a block are ours, with their code and lists as they were.
    return _blocks(whole, found) or whole


WORD = re.compile(r"\w+")


def _blocks(whole: str, found: str) -> str:
    """Return the blocks of `whole` from the first to the last that `found` has, without lists of links."""
    known = {" ".join(WORD.findall(line)) for line in found.split("\n")}
    everything = " ".join(WORD.findall(found))
    blocks = re.split(r"\n{2,}(?=\S)", whole)
    kept = []
    for block in blocks:
        words = " ".join(WORD.findall(block))
        first = " ".join(words.split()[:12])
        kept.append(bool(words) and (words in known or first in everything))
    if not any(kept):
        return ""
    start, end = kept.index(True), len(kept) - kept[::-1].index(True)
    while start and blocks[start - 1].startswith("#"):
        start -= 1
        kept[start] = True
    return "\n\n".join(
        block
        for block, keep in zip(blocks[start:end], kept[start:end], strict=True)
        if keep or not _links(block)
    )


def _links(block: str) -> bool:
    inside = sum(map(len, re.findall(r"\[([^\]]*)\]\(", block)))
    bare = len(re.sub(r"\]\([^)]*\)|[\s\[\]*#>|-]", "", block)) or 1
    return inside > 0.6 * bare


def _drop(root: html.HtmlElement, selector: str) -> None:
    for one in CSSSelector(selector)(root):
        if one.getparent() is not None:
            one.drop_tree()


def _join_lines(root: html.HtmlElement) -> None:
    """Write a line break as the space that a reader sees, but in preformatted text; pictures as their words."""
    for one in root.iter(etree.Element):
        code = (
            one.tag in ("pre", "textarea")
            or next(one.iterancestors("pre", "textarea"), None) is not None
        )
        if one.text and not code:
            one.text = re.sub(r"\s+", " ", one.text)
        if one.tail and next(one.iterancestors("pre", "textarea"), None) is None:
            one.tail = re.sub(r"\s+", " ", one.tail)
        if one.tag == "img" and (words := one.get("alt", "").strip()):
            one.tag, one.text = "span", f"{words}"


def _convert(element: html.HtmlElement) -> str:
    return str(
        convert(html.tostring(element, encoding="unicode", with_tail=False), MARKDOWN).content
    ).strip()


def _markdown(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    text = decode(data, asked.get("type", ""), False)
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise Unreadable("a pointer of Git LFS, not the file")
    metadata, text, notes = _front_matter(text.replace("\r\n", "\n"))
    heading = re.search(r"^#{1,2}\s+(.+?)\s*#*$", text, re.MULTILINE)
    language = str(metadata.pop("lang", None) or metadata.pop("language", None) or "")[:2].lower()
    return {
        "content": text,
        "title": str(metadata.pop("title", None) or (heading.group(1) if heading else "")) or None,
        "language": language if language in LANGUAGES else None,
        "metadata": metadata,
        "notes": notes,
    }


def _front_matter(text: str) -> tuple[dict[str, Any], str, list[str]]:
    """Split a leading block of YAML from Markdown: (what it says, the rest, notes). What is no YAML stays text."""
    found = re.match(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|$)", text, re.DOTALL)
    if not found:
        return {}, text, []
    try:
        values = yaml.safe_load(found.group(1))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text, ["its front matter is no YAML, and stays in the text"]
    if not isinstance(values, dict):
        return {}, text, []
    plain = json.loads(json.dumps(values, default=str, skipkeys=True).replace("\\u0000", ""))
    if len(json.dumps(plain, ensure_ascii=False).encode()) > METADATA_BYTES:
        return (
            {},
            text,
            [f"its front matter is larger than {METADATA_BYTES} bytes, and stays in the text"],
        )
    return plain, text[found.end() :], []


def _text(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    return {"content": decode(data, asked.get("type", ""), False)}


def _pdf(data: bytes, _: dict[str, Any]) -> dict[str, Any]:
    try:
        pdf = pypdf.PdfReader(io.BytesIO(data))
        if pdf.is_encrypted and not pdf.decrypt(""):
            raise Unreadable("an encrypted PDF")
        pages = [page.extract_text() for page in pdf.pages]
        title = str((pdf.metadata.title if pdf.metadata else None) or "").strip()
    except Unreadable:
        raise
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - pypdf raises whatever a broken file leads it to
        name = type(error).__name__
        if name in ("DependencyError", "FileNotDecryptedError", "WrongPasswordError"):
            raise Unreadable("an encrypted PDF") from None
        raise Unreadable(f"a broken PDF: {name}: {str(error)[:120]}") from None
    bare = sum(not page.strip() for page in pages)
    notes = (
        [f"{bare} of its {len(pages)} pages have no text (scanned?)"]
        if 0 < bare < len(pages)
        else []
    )
    return {"content": "\n\n".join(pages), "title": title or None, "notes": notes}


def _docx(data: bytes, _: dict[str, Any]) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(one.file_size for one in archive.infolist())
    if size > UNPACKED_BYTES:
        raise Unreadable(f"a DOCX that unpacks to {size:,} bytes")
    try:
        made = mammoth.convert_to_html(
            io.BytesIO(data), convert_image=mammoth.images.img_element(lambda _image: {})
        )
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, SyntaxError) as error:
        raise Unreadable(f"a broken DOCX: {type(error).__name__}: {str(error)[:120]}") from None
    if not made.value.strip():
        raise Unreadable("without text")
    root = html.document_fromstring(f"<html><body>{made.value}</body></html>")
    heading = root.xpath("string(//h1)").strip()
    return {"content": _convert(root.find("body")), "title": heading or None}
