"""What the stand-in says: the best sentence of the first passages in the prompt, or that there is none."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

# A token, for counting and for streaming: up to eight letters with the space in front, or one other sign.
PIECE = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+$")
# How a prompt carries passages, and what was asked when they stand in the same message.
PASSAGE = re.compile(r"<passage\b[^>]*>(.+?)</passage>", re.DOTALL)
QUESTION = re.compile(r"<question>(.+?)</question>", re.DOTALL)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
PASSAGES = 3  # the first ones only, as somebody in a hurry reads
WORDS = {
    "en": "the is are what how when who why does can i my your long much of and to",
    "pt": "o a os as é são qual quais como quando quem que não posso meu minha quanto do da em um uma para",
    "es": "el la los las es son cuál cómo cuándo quién qué no puedo mi cuánto del en un una para",
    "fr": "le la les est sont quel quelle comment quand qui que ne puis mon ma combien du des en un une pour",
    "de": "der die das ist sind was wie wann wer warum kann ich mein nicht und zu ein eine für lange",
    "it": "il lo la gli le è sono quale come quando chi che non posso mio mia quanto del in un una per",
}
PHRASES = {  # language: (with a passage, with none)
    "en": ("According to [{0}]: {1}", "No document that I was given supports an answer to this."),
    "pt": ("Segundo [{0}]: {1}", "Nenhum documento que recebi sustenta uma resposta a isto."),
    "es": ("Según [{0}]: {1}", "Ningún documento que recibí respalda una respuesta a esto."),
    "fr": ("D'après [{0}] : {1}", "Aucun document reçu ne permet de répondre à cela."),
    "de": ("Laut [{0}]: {1}", "Kein Dokument, das mir vorliegt, stützt eine Antwort darauf."),
    "it": ("Secondo [{0}]: {1}", "Nessun documento ricevuto permette di rispondere."),
}
_COMMON = {language: frozenset(words.split()) for language, words in WORDS.items()}
STOP_WORDS = frozenset().union(*_COMMON.values())


def pieces(text: str) -> list[str]:
    """The text cut into tokens; joined they are the text again."""
    return PIECE.findall(text)


def tokens(text: str) -> int:
    """How many tokens the text has."""
    return len(PIECE.findall(text))


def words(text: str) -> list[str]:
    """Lower-case words without accents, common ones left out."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(sign for sign in plain if not unicodedata.combining(sign))
    return [word for word in re.findall(r"\w+", plain) if word not in STOP_WORDS]


def text_of(content: Any) -> str:
    """The text of a message's or an input item's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def answer(messages: Sequence[dict[str, Any]]) -> str:
    """The answer to the last message of the user; the same for the same messages."""
    asked = [text_of(item.get("content")) for item in messages if item.get("role") == "user"]
    last = asked[-1] if asked else ""
    told = [text_of(item.get("content")) for item in messages if item.get("role") == "system"]
    tagged = QUESTION.search(last)
    return _answer(tagged[1].strip() if tagged else last, "\n".join([*told, last]))


@functools.lru_cache(maxsize=1024)
def _answer(question: str, instructions: str) -> str:
    asked = frozenset(words(question))
    supported, unsupported = PHRASES[language(question)]
    best, number, most = "", 0, -1
    for index, passage in enumerate(PASSAGE.findall(instructions)[:PASSAGES], start=1):
        for sentence in SENTENCE.split(passage):
            shared = len(asked.intersection(words(sentence)))
            if sentence.strip() and not sentence.startswith("#") and shared > most:
                best, number, most = sentence.strip(), index, shared
    return supported.format(number, best) if best else unsupported


def language(question: str) -> str:
    """The language that shares most words with the question; English when none does."""
    spoken = set(re.findall(r"\w+", question.lower()))
    return max(_COMMON, key=lambda name: len(spoken & _COMMON[name]))
