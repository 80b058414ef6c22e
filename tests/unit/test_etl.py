"""What Seed ETL makes of bytes: words, code, tables and characters as a reader sees them, and never what is no text."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pypdf
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from local.settings import ROOT
from services.etl.cimt_etl.__main__ import parser, run
from services.etl.cimt_etl.documents import document
from services.etl.cimt_etl.fetch import Reach, Refused, public
from services.etl.cimt_etl.read import Unreadable, decode, feed, sitemap
from services.etl.cimt_etl.sources import canonical, load

URL = "https://www.example.com/help/page"
quick = settings(max_examples=40, deadline=None)


def read(data: bytes | str, url: str = URL, **asked: Any) -> dict[str, Any]:
    return document(data.encode() if isinstance(data, str) else data, {"url": url, **asked})


PAGE = """<!doctype html><html lang="pt-BR"><head><title>Garantia
 — Loja</title></head><body>
<header><nav><ul><li><a href=/>Início</a></li><li><a href=/b>Blog</a></li></ul></nav></header>
<div class="cookie" role="dialog">Aceite os cookies</div>
{open}<h1>Garantia</h1><p>A garantia vale por
sete&nbsp;dias após a <b>compra</b>, veja <a href="../prazos">os
prazos</a>.</p>
<ul><li>um<ul><li>dentro</li></ul></li><li>dois</li></ul>
<pre><code class="language-python">def f(x):
    return x

print(f(1))</code></pre>
<table><tr><th>prazo</th><th>taxa</th></tr><tr><td>5 dias</td><td>R$ 3</td></tr></table>
<form><label>E-mail</label><input></form><p>Fim da <img alt="foto da nota" src=x> página.</p>{close}
<footer>Todos os direitos reservados</footer><script>var segredo = 1</script></body></html>"""


@pytest.mark.parametrize("around", ["main", "article", "div"])
def test_a_page_keeps_its_words_lists_code_and_tables_and_loses_what_is_around(around: str) -> None:
    found = read(PAGE.format(open=f"<{around}>", close=f"</{around}>"))
    text = found["content"]
    for kept in (
        "# Garantia", "vale por sete dias após a **compra**", "[os prazos](https://www.example.com/prazos)",
        "- um\n  * dentro\n- dois",
        "```python\ndef f(x):\n    return x\n\nprint(f(1))\n```", "| 5 dias | R$ 3 |", "Fim da foto da nota página.",
    ):  # fmt: skip
        assert kept in text, text
    for lost in ("Início", "cookies", "E-mail", "direitos", "segredo"):
        assert lost not in text, text
    assert (found["title"], found["language"]) == ("Garantia — Loja", "pt")


def test_what_was_declared_is_taken_and_left_out() -> None:
    page = (
        "<html><body><div id=a>One <i class=x>not</i> two.</div><div id=b>Other</div></body></html>"
    )
    assert read(page, select="#a", exclude=".x")["content"] == "One  two.".replace("  ", " ")
    with pytest.raises(Unreadable, match="no element matches main"):
        read(page, select="main")


def docx(text: str) -> bytes:
    made = io.BytesIO()
    name = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    rels = "http://schemas.openxmlformats.org/package/2006/relationships"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{name}"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{rels}">'
            f'<Relationship Id="r1" Type="{kind}" Target="word/document.xml"/></Relationships>',
        )
        archive.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        )
    return made.getvalue()


def pdf(password: str = "") -> bytes:
    writer, made = pypdf.PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(made)
    return made.getvalue()


def test_a_kind_is_what_the_bytes_are_not_what_the_server_says() -> None:
    assert read(docx("Ligação"), type="text/html")["content"] == "Ligação"
    assert (
        read("<p>a</p><p>b</p><p>c</p>", type="application/octet-stream")["content"]
        == "a\n\nb\n\nc"
    )
    assert read("a <b> c", type="text/plain")["content"] == "a <b> c"
    matter = read("---\ntitle: Olá\ndate: 2026-01-02\n---\ntext\n", url="a/b.md")
    assert (matter["content"], matter["title"], matter["metadata"]) == (
        "text",
        "Olá",
        {"date": "2026-01-02"},
    )
    assert read("---\na: [\n---\ntext\n", url="b.md")["content"].startswith("---"), (
        "what is no front matter stays"
    )
    for data, words in (
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "neither text"),
        (b"", "empty"),
        (pdf(), "scanned"),
        (pdf("secret"), "encrypted PDF"),
        (b"%PDF-1.7 torn", "broken PDF"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "old Office"),
        (b"<?xml version='1.0'?><rss/>", "XML"),
        (
            b"<html><title>404 Not Found</title><body>Sorry</body></html>",
            "says that there is nothing",
        ),
        (
            "<html><title>Página não encontrada</title><body>Voltar</body></html>".encode(),
            "says that there is nothing",
        ),
        (
            b"<html><body><div id=app></div><noscript>Enable it</noscript></body></html>",
            "without text",
        ),
    ):
        with pytest.raises(Unreadable, match=words):
            read(data, type="text/html")


@quick
@given(
    text=st.text(st.sampled_from("abc éãçõüñ«»–“”€ABC,.\n"), min_size=30, max_size=200),
    codec=st.sampled_from(["utf-8", "windows-1252", "utf-16", "iso-8859-15"]),
    declared=st.sampled_from(["header", "meta"]),
)
def test_text_is_decoded_as_browsers_do(text: str, codec: str, declared: str) -> None:
    label = f"charset={codec}"
    try:
        data = f"<html><head><meta {label}></head><body>{text}".encode(codec)
    except UnicodeEncodeError:
        assume(False)
    if codec == "utf-16":
        declared = "header"
    assert text in decode(data, f"text/html; {label}" if declared == "header" else "", True)


def test_what_declares_nothing_or_something_wrong_is_read_all_the_same() -> None:
    text = "A ligação não está disponível às três da manhã; o preço é de 5 € por mês."
    assert decode(text.encode(), "text/html; charset=iso-8859-1", True) == text
    assert decode(text.encode("cp1252"), "", True) == text
    assert decode(text.encode("cp1252"), "text/html; charset=iso-8859-1", True) == text, (
        "as on the web, it is windows-1252"
    )
    assert (
        decode("日本語のテキスト".encode("iso-2022-jp"), "text/html; charset=iso-2022-jp", True)
        == "日本語のテキスト"
    )


links = st.lists(
    st.text(st.sampled_from("abc/?&=é-"), min_size=1, max_size=12), min_size=1, max_size=5
)


@quick
@given(paths=links, form=st.sampled_from(["rss", "atom", "json", "guid", "bare"]))
def test_no_entry_of_a_feed_is_lost(paths: list[str], form: str) -> None:
    base = "https://www.example.com/n/"
    urls = [f"{base}x{number}{path}" for number, path in enumerate(paths)]
    if form == "json":
        data = json.dumps(
            {
                "version": "https://jsonfeed.org/version/1",
                "items": [{"id": "1", "url": url} for url in urls],
            }
        )
    elif form == "atom":
        entries = "".join(
            f'<entry><title>t</title><link href="{escape(url.removeprefix(base))}"/></entry>'
            for url in urls
        )
        data = f'<feed xmlns="http://www.w3.org/2005/Atom" xml:base="{base}"><title>f</title>{entries}</feed>'
    else:
        tag = "guid" if form == "guid" else "link"
        said = [url if form == "bare" else escape(url) for url in urls]
        items = "".join(f"<item><{tag}>{url}</{tag}></item>" for url in said)
        data = f'<rss version="2.0"><channel>{items}</channel></rss>'
    found = feed(data.encode(), {"url": base, "type": "text/html"})
    assert [canonical(entry[0]) for entry in found["entries"]] == [canonical(url) for url in urls]
    assert found["whole"]
    assert found["lost"] == 0


@quick
@given(cut=st.integers(1, 100))
def test_a_list_that_is_cut_short_is_never_taken_for_a_whole_one(cut: int) -> None:
    urls = "".join(f"<url><loc>https://example.com/{number}</loc></url>" for number in range(4))
    whole = f"<urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>{urls}</urlset>".encode()
    assert len(sitemap(whole, {"url": URL})["pages"]) == 4
    with pytest.raises(Unreadable):
        sitemap(whole[:-cut], {"url": URL})
    items = urls.replace("url>", "item>").replace("loc>", "link>")
    rss = f"<rss version='2.0'><channel>{items}</channel></rss>".encode()
    with contextlib.suppress(Unreadable):
        assert not feed(rss[:-cut], {"url": URL})["whole"]


def test_one_page_has_one_address() -> None:
    for url in ("/a/", "/a", "//a#x", "/a?utm_source=y&fbclid=1", "/a/index.html", ":443/a"):
        assert canonical(f"https://EXAMPLE.com{url}") == "https://example.com/a", url
    assert canonical("https://example.com/a?b=2&a=%C3%A9") == canonical(
        "https://example.com/a?a=é&b=2"
    )
    assert canonical("https://example.com/%61%2Fb") != canonical("https://example.com/a/b")


def test_what_is_declared_is_right_and_every_fault_of_it_is_named(tmp_path: Path) -> None:
    assert isinstance(load(ROOT / "services/etl/sources.yaml"), list)
    wrong = tmp_path / "sources.yaml"
    for text, words in (
        (
            "- {name: site, kind: sitemap}\n- {name: Big, kind: page, url: 'https://a'}",
            ["site: ", "Big"],
        ),
        ("- {name: a, kind: page, url: 'https://a'}\n" * 2, ["a: declared twice"]),
        ("- {name: a, kind: feed, url: 'https://a', match: '['}", ["a: '[' is not a 'regex'"]),
        ("- {name: a, kind: rss, url: 'https://a'}", ["its kind is one of page, sitemap, feed"]),
        ("- {name: [", ["sources.yaml"]),
        ("name: a", ["not of type 'array'"]),
    ):
        wrong.write_text(text)
        with pytest.raises(ValueError, match=str(wrong)) as told:
            load(wrong)
        assert all(word in str(told.value) for word in words), told.value


def test_only_the_internet_is_reached() -> None:
    for address in (
        "127.0.0.1", "10.0.0.1", "172.17.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.1", "::1",
        "::", "fe80::1%eth0",
        "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "224.0.0.1", "255.255.255.255", "ff02::1",
    ):  # fmt: skip
        assert not public(address), address
    for address in ("93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"):
        assert public(address), address
    reach = Reach(allow=frozenset(["127.0.0.1:8000"]), own=frozenset(["api.example.com"]))
    assert reach.addresses("127.0.0.1", 8000) == ["127.0.0.1"]
    for host, port in (
        ("127.0.0.1", 8001),
        ("api.example.com", 443),
        ("API.example.com.", 443),
        ("0x7f000001", 80),
        ("2130706433", 80),
    ):
        with pytest.raises(Refused):
            reach.addresses(host, port)


def test_a_run_waits_for_another_or_a_backup_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INGEST_KEY", "k" * 32)
    (tmp_path / "sources.yaml").write_text("[]")
    options = ["--api", "http://127.0.0.1:9", "--state", str(tmp_path / "state.sqlite")]
    asked = parser().parse_args(["run", str(tmp_path / "sources.yaml"), *options, "--wait", "0"])
    with (tmp_path / "state.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(asked) == 2
    assert "another run, or a backup, holds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "page",
    [
        "<html><title>Warranty</title><main><h1>Warranty</h1><p>Two years.</p></main>",
        "<!doctype html><html><head><title>Warranty</title></head><main><h1>Warranty</h1><p>Two years.</p></main>",
        "<!doctype html><title>Warranty</title><article><h1>Warranty</h1><p>Two years.</p></article>",
        "<!doctype html><title>Warranty</title><h1>Warranty</h1><p>Two years.",
    ],
)
def test_a_page_may_leave_out_its_body_s_tag(page: str) -> None:
    """HTML 5 lets it; the parser is older, and takes a <main> there for a part of the head."""
    found = read(page)
    assert (found["title"], found["content"]) == ("Warranty", "# Warranty\n\nTwo years.")
