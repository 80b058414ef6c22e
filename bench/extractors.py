"""What of a page three extractors keep, and what around it they lose: ours, trafilatura alone, and jusText.

Usage: python -m bench.extractors

Twenty pages, ten layouts as they are found on the web in English and in Portuguese, written for this: each says some
sentences that count and some that do not (menus, cookies, footers, forms, teasers). Counted is how many of the former
are in the text, how many of the latter, and whether code, tables and lists stay what they are.
"""

# ruff: noqa: E501 - a page is read line by line

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable

import justext
import trafilatura

from services.etl.cimt_etl.documents import document

COUNTS = {
    "en": """Every turbo kettle has a warranty of seven years.|Keep the invoice, because we ask for it.|Unplug it first.
The warranty ends when somebody else has opened the device.|Parcels within the country take two to four days.
Call us before you send anything back, and we tell you the number of your case.|Not on Sundays.|Batteries go separately.
We pay for the way back when the fault is ours, and you do when it is not.|A refund takes ten days from the day that
the parcel has arrived in our store.|Clean the filter once a month under running water.|Never use soap on it.
If the lamp blinks three times, the tank is empty.|If it blinks five times, the pump is stuck.|Then press reset.
The shop in Porto opens at nine on Saturdays.|Large orders are delivered by a carrier, who calls the day before.""",
    "pt": """Toda chaleira turbo tem garantia de sete anos.|Guarde a nota fiscal, porque vamos pedi-la.|Tire da tomada antes.
A garantia acaba quando outra pessoa abriu o aparelho.|Encomendas dentro do país levam de dois a quatro dias.
Ligue antes de devolver qualquer coisa, e dizemos o número do seu atendimento.|Não aos domingos.|Pilhas vão à parte.
Pagamos a volta quando o defeito é nosso, e você paga quando não é.|O reembolso leva dez dias a partir do dia em que
a encomenda chegou ao nosso depósito.|Limpe o filtro uma vez por mês em água corrente.|Nunca use sabão nele.
Se a luz piscar três vezes, o tanque está vazio.|Se piscar cinco vezes, a bomba travou.|Então aperte reiniciar.
A loja do Porto abre às nove aos sábados.|Pedidos grandes vão por transportadora, que liga na véspera.""",
}
AROUND = {
    "en": """Home and garden|About our company|Sign in to your account|We use cookies to make this site better for you
All rights reserved by the shop|Subscribe to our newsletter|Share this page with friends|You may also like the tea pot
Was this page helpful|Follow us everywhere|Your e-mail address|Jobs and press""",
    "pt": """Casa e jardim|Sobre a nossa empresa|Entre na sua conta|Usamos cookies para melhorar este site para você
Todos os direitos reservados à loja|Assine a nossa newsletter|Compartilhe com amigos|Talvez goste também do bule de chá
Esta página ajudou|Siga-nos em todo lugar|Seu endereço de e-mail|Vagas e imprensa""",
}
CODE = "reset --all\n\n  --force"
# K and L stand for the next sentence that counts, or does not.
TOP = "<header><nav><ul><li><a href=/>L</a></li><li><a href=/b>L</a></li><li><a href=/c>L</a></li></ul></nav></header>"
END = "<footer><p>L</p><a href=/j>L</a></footer>"
LAYOUTS = {
    "main": f"{TOP}<main><h1>K</h1><p>K K</p><p>K</p><ul><li>K</li><li>K</li></ul></main>{END}",
    "article": f"{TOP}<article><h1>K</h1><p>K</p><p>K K</p></article><aside><h3>L</h3><a href=/t>L</a></aside>{END}",
    "divs": "<div class=menu><a href=/>L</a> <a href=/b>L</a></div><div class=content><div class=t>K</div><div>K K</div>"
    "<div>K</div></div><div class=side><a href=/c>L</a></div><div class=foot>L</div>",
    "manual": f"{TOP}<div class=tree><ul><li><a href=/1>L</a><li><a href=/2>L</a></ul></div><div role=main><h1>K</h1>"
    f"<p>K</p><pre><code>{CODE}</code></pre><p>K K</p></div>{END}",
    "questions": f"{TOP}<div id=faq><h2>K</h2><p>K</p><h2>K</h2><p>K K</p><h2>K</h2><p>K</p></div>{END}",
    "news": f"{TOP}<article><h1>K</h1><p>K K</p><p>K</p></article><section><h2>L</h2><ul><li><a href=/n>L</a></ul></section>"
    f"<div class=share><button>L</button></div>{END}",
    "product": f"{TOP}<section><h1>K</h1><table><tr><th>A1</th><th>A2</th></tr><tr><td>K</td><td>K</td></tr></table>"
    f"<p>K K</p><form><label>L</label><input><button>L</button></form></section>{END}",
    "terms": f"{TOP}<div class=legal><h1>K</h1><ol><li>K</li><li>K</li><li>K<ol><li>K</li></ol></li></ol><p>K</p></div>{END}",
    "tables": "<table><tr><td><a href=/>L</a><br><a href=/b>L</a></td><td><h1>K</h1><p>K</p><p>K K</p></td></tr>"
    "<tr><td colspan=2>L</td></tr></table>",
    "help": f"{TOP}<div role=dialog>L</div><div class=wrap><p class=crumbs><a href=/>L</a></p><h1>K</h1><p>K</p><details><summary>K"
    f"</summary><p>K K</p></details><form><p>L</p></form></div>{END}",
}
EXTRACTORS: dict[str, Callable[[str, str], str]] = {
    "ours": lambda page, _: document(page.encode(), {"url": "https://www.example.com/a"})["content"],
    "trafilatura": lambda page, _: trafilatura.extract(
        page, output_format="markdown", include_tables=True, include_links=True, include_formatting=True, favor_recall=True
    ) or "",
    "jusText": lambda page, language: "\n".join(
        one.text
        for one in justext.justext(page, justext.get_stoplist({"en": "English", "pt": "Portuguese"}[language]))
        if not one.is_boilerplate
    ),
}  # fmt: skip


def sentences(text: str) -> list[str]:
    """What is between the bars and the lines."""
    return [one.strip() for one in re.split(r"\||(?<=[.\w])\n(?=[A-ZÀ-Ú])", text)]


def words(text: str) -> str:
    """Only the words, so that marks of Markdown do not count."""
    return " ".join(["", *re.findall(r"\w+", text), ""])


def main() -> None:
    """Measure and print."""
    found: dict[str, Counter[str]] = {name: Counter() for name in EXTRACTORS}
    total: Counter[str] = Counter()
    for language in ("en", "pt"):
        pools = {
            "K": itertools.cycle(sentences(COUNTS[language])),
            "L": itertools.cycle(sentences(AROUND[language])),
        }
        for layout in LAYOUTS.values():
            said: dict[str, list[str]] = {"K": [], "L": []}

            def put(
                match: re.Match[str],
                said: dict[str, list[str]] = said,
                pools: dict[str, itertools.cycle[str]] = pools,
            ) -> str:
                said[match[0]].append(next(pools[match[0]]).replace("\n", " "))
                return said[match[0]][-1]

            body = re.sub(r"\b[KL]\b", put, layout)
            page = f"<!doctype html><html lang={language}><head><title>{said['K'][0]}</title></head><body>{body}</body></html>"
            total += Counter(
                kept=len(said["K"]),
                around=len(said["L"]),
                code="<pre>" in page,
                table="<th>" in page,
            )
            for name, extract in EXTRACTORS.items():
                try:
                    text = extract(page, language)
                except Exception as error:  # noqa: BLE001 - what cannot be read keeps nothing
                    text = ""
                    print(f"{name}: {error}")
                seen = words(text)
                found[name] += Counter(
                    kept=sum(words(one) in seen for one in said["K"]),
                    around=sum(words(one) in seen for one in said["L"]),
                    code=f"\n{CODE}\n" in text,
                    table=bool(re.search(r"^\| A1 +\| A2 +\|", text, re.MULTILINE)),
                )
    for name, counts in found.items():
        print(
            name.ljust(12), ", ".join(f"{what} {counts[what]} of {total[what]}" for what in total)
        )


if __name__ == "__main__":
    main()
