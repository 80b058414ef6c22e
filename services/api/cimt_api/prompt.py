"""What the model is given: rules, conversation, passages, question, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from .chats import Turn
from .retrieval import Passage
from .settings import Settings


def messages(
    question: str,
    passages: Sequence[Passage] | None,
    history: Sequence[Turn],
    settings: Settings,
) -> list[dict[str, str]]:
    """Messages of a chat completion. `passages`: what search returned; empty: nothing fits; None: retrieval is off."""
    raise NotImplementedError


def language(question: str) -> str:
    """The language of a question as Postgres stems it: en, pt, es, fr, de, it, or simple when it is not clear."""
    raise NotImplementedError
