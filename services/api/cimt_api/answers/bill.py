"""What an answer may cost before the model is asked, and what it has cost when it has ended."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from ..model import Usage
from ..prices import Kind, Prices, micro_usd
from ..settings import Settings
from ..store.chats import HISTORY_TURNS
from ..store.money import Charge
from ..store.retrieval import TOKEN_BYTES, tokens
from .answer import Question

EMBEDDED_BYTES = 8000  # of a question: models take 8,191 tokens, and none is shorter than a byte
RULES_TOKENS = 300  # of ours, and what frames them
MESSAGE_TOKENS = 8  # what frames a message
PASSAGE_TOKENS = 100  # what frames a passage: its number, source and title
# Kinds of failure for which nobody is billed: the model did not begin.
UNBILLED = frozenset(
    f"upstream-{kind}"
    for kind in ("unreachable", "rate-limited", "failing", "refused", "quota", "resting")
)

log = logging.getLogger(__name__)


class Till:
    """Knows the prices, and says once of each model that has none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prices = Prices()
        configured: tuple[tuple[Kind, str], ...] = (
            ("chat", settings.chat_model),
            ("embedding", settings.embedding_model),
        )
        self.unpriced = [model for kind, model in configured if not self._prices.known(kind, model)]
        for model in self.unpriced:
            log.warning(
                "money: no price of %s is known, it counts as the dearest that is; add it to prices.json",
                model,
            )

    def most(self, question: Question | None = None) -> int:
        """Return the most that an answer to this may cost, in millionths of a US dollar; None: to any question.

        A token of a text is never shorter than a byte; what is not known yet (passages, memory) is taken as large as
        the settings let it become.
        """
        settings = self._settings
        asked, turns, completion = 0, HISTORY_TURNS, settings.answer_tokens
        prompt = RULES_TOKENS + settings.memory_tokens * TOKEN_BYTES
        if question is not None:
            asked = len(question.text.encode())
            prompt += asked + len(question.instructions.encode())
            turns = turns if question.turns is None else len(question.turns)
            completion = min(question.tokens or completion, completion)
        prompt += 2 * MESSAGE_TOKENS * turns
        embedding = Decimal(0)
        if settings.retrieval_count:
            prompt += settings.retrieval_tokens * TOKEN_BYTES
            prompt += settings.retrieval_count * PASSAGE_TOKENS
            price = self._prices.of("embedding", settings.embedding_model, _today())
            embedding = price.at_most(min(asked, EMBEDDED_BYTES), 0)
        price = self._prices.of("chat", settings.chat_model, _today())
        return micro_usd(embedding + price.at_most(prompt, completion))

    def open(self, reservation: UUID) -> Bill:
        """Return the bill of an answer for which money is held."""
        return Bill(reservation, self._settings, self._prices)


class Bill:
    """The bill of one attempt to write an answer."""

    def __init__(self, reservation: UUID, settings: Settings, prices: Prices) -> None:
        self._reservation = reservation
        self._settings = settings
        self._prices = prices
        self._day = _today()
        self._embedding_model = settings.embedding_model
        self._embedded = 0  # tokens
        self._prompt = 0  # tokens, as far as we can count them; 0: the model was not asked
        self.thought = 0  # characters that the model thought

    def embedded(self, text: str, model: str) -> None:
        """Count the embedding of this text."""
        self._embedded += tokens(text)
        self._embedding_model = model

    def asked(self, messages: Sequence[dict[str, str]]) -> None:
        """Count a prompt that the model is about to be given."""
        self._prompt = sum(tokens(message["content"]) + MESSAGE_TOKENS for message in messages)

    def refused(self, kind: str) -> None:
        """Take back what was asked where a failure of this kind means that the model did not begin."""
        if kind in UNBILLED:
            self._prompt = 0

    def nothing(self) -> Charge:
        """Return the charge of an answer that this process did not write."""
        return Charge(self._reservation)

    def charge(self, text: str, usage: Usage | None) -> Charge:
        """Return what an answer of this text has cost; without its usage its tokens are counted from what there is.

        Text or thought that came is proof that the model had the prompt, and is paid.
        """
        chat = self._prices.of("chat", self._settings.chat_model, self._day)
        guessed = usage is None and bool(self._prompt)
        if usage is None:
            said = tokens(text) + -(-self.thought // TOKEN_BYTES)
            usage = Usage(self._prompt, said)
            cost = chat.at_most(*usage[:2])
        else:
            cost = chat.of(usage)
        embedding = self._prices.of("embedding", self._embedding_model, self._day)
        return Charge(
            self._reservation,
            micro_usd(cost + embedding.of(Usage(self._embedded, 0))),
            prompt=usage.prompt,
            cached=usage.cached,
            completion=usage.completion,
            embedding=self._embedded,
            estimated=guessed,
        )


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
