"""All answers of this process: asked, found again, listened to, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from ..http.auth import User
from ..http.problems import Problem
from ..metrics import Metrics
from ..model import Upstream, problem_of_kind
from ..settings import Settings
from ..store.chats import Chats, Stored, id_in_use
from ..store.money import MILLION, Charge, Money
from ..store.places import Admission, Places
from ..store.retrieval import Retriever
from .answer import Answer, Question, State, problem_of
from .bill import Till
from .keeper import Keeper
from .writer import Writer, Writing

TICK_SECONDS = 1.0  # between batches of one answer
STORED_BEFORE_SECONDS = 3.0
LEFT_SECONDS = 1.0  # that an answer is written for nobody when nobody can come back for it
KEPT_SECONDS = 1.0  # for which the last event of an answer waits until that is stored
KEPT = 1000  # finished answers in memory, when they are stored nowhere

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Running:
    """An answer that is not finished and stored yet: its task, and who listens."""

    answer: Answer
    writing: Writing | None  # None: another process writes it
    admission: Admission | None
    task: asyncio.Task[None]
    listeners: int = 0
    met: bool = False  # somebody has listened
    alone: asyncio.TimerHandle | None = None  # abandons it, unless somebody listens


class Answers:
    """All answers of this process, by id; fires the events that come from outside an answer's own writing."""

    def __init__(
        self,
        settings: Settings,
        chats: Chats,
        retriever: Retriever,
        upstream: Upstream,
        metrics: Metrics,
        money: Money,
        places: Places,
        till: Till,
    ) -> None:
        self._settings = settings
        self._chats = chats
        self._keeper = Keeper(chats, money, metrics)
        self._writer = Writer(settings, chats, self._keeper, retriever, upstream, metrics)
        self._places = places
        self._till = till
        self._upstream = upstream
        self._metrics = metrics
        self._running: dict[UUID, Running] = {}
        self._finished: OrderedDict[UUID, Answer] = OrderedDict()
        self._ticks: list[asyncio.Task[None]] = []
        self._unused: set[asyncio.Task[None]] = set()  # give an admission back
        self._stop_at: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to store answers while they grow."""
        self._ticks = [
            asyncio.create_task(self._every_second()),
            asyncio.create_task(self._places.renew(self, self._metrics.registry)),
        ]

    def stop_in(self, seconds: float) -> None:
        """Interrupt in so many seconds what is still being written then; it is stored as far as it got."""
        self._keeper.stopping = True
        if self._stop_at is None:
            self._stop_at = asyncio.get_running_loop().call_later(seconds, self._interrupt)

    async def close(self) -> None:
        """Wait until what is being written is stored, or interrupted at the moment that `stop_in` set."""
        if self._stop_at is None:
            self._interrupt()
        tasks = [running.task for running in self._running.values()]
        await asyncio.gather(*tasks, *self._unused, return_exceptions=True)
        for tick in self._ticks:
            tick.cancel()

    def generating(self) -> int:
        """Count the answers that this process writes."""
        return sum(
            running.writing is not None and not running.answer.done
            for running in self._running.values()
        )

    def unsaved(self) -> int:
        """Count the answers with text that is not stored."""
        rows = [running.writing.row for running in self._running.values() if running.writing]
        return sum(row is not None and len(row.answer.text) > row.saved for row in rows)

    def writes_for(self, user: User) -> bool:
        """Tell whether an answer of this user is being written here: then a question may be one that comes back."""
        return any(
            running.answer.user.id == user.id and not running.answer.done
            for running in self._running.values()
        )

    def find_here(self, question: Question) -> Answer | None:
        """Return the answer to this very question, None where this process has none that says anything.

        Raises Problem 409 where its id is somebody else's, or another question's.
        """
        answer = self._here(question.id)
        if answer is None:
            return None
        asked = answer.question
        if answer.user.id != question.user.id:
            raise Problem(409, "This id is taken", "Choose another id.", kind="conflict")
        if (asked.text and asked.text != question.text) or (
            question.named and question.conversation_id != answer.conversation_id
        ):
            raise id_in_use()
        return None if answer.void else answer

    async def known(self, question: Question, sent: int) -> Answer | None:
        """Return the answer to this very question where there is one, here or in the store: it takes no place.

        None: there is nothing of it, so it may be asked. Raises Problem 409 as `find_here` does, and 404 when of that
        nothing `sent` characters are said to have come: what would be written now is another answer.
        """
        answer = self.find_here(question)
        away = self._here(question.id) is None
        if away and question.resumable and self._settings.chat_log:
            stored = await self._chats.load(question.user, question.id)
            if stored is not None and not stored.void:
                named = question.conversation_id if question.named else None
                if not stored.answers(question.text, named):
                    raise id_in_use()
                return self._adopted(question.user, stored)
        if answer is None and sent:
            raise problem_of("not-found")
        return answer

    async def find(self, user: User, answer_id: UUID) -> Answer:
        """Return the user's answer, from memory or from the database. Raises Problem 404 where there is none."""
        answer = self._here(answer_id)
        if answer is not None and answer.user.id == user.id:
            return answer
        stored = await self._chats.load(user, answer_id) if self._settings.chat_log else None
        if stored is None:
            raise problem_of("not-found")
        return self._adopted(user, stored)

    async def running(self, user: User, conversation_id: UUID) -> Answer | None:
        """Return the newest answer of the user's conversation that is being written, here or elsewhere."""
        for running in reversed(self._running.values()):
            answer = running.answer
            if (answer.user.id, answer.conversation_id) == (user.id, conversation_id):
                return None if answer.done else answer
        if not self._settings.chat_log:
            return None
        stored = await self._chats.running(user, conversation_id)
        return None if stored is None else self._adopted(user, stored)

    async def ask(self, question: Question) -> tuple[Answer, Admission]:
        """Begin to write the answer where its user may ask, and return it with what it was admitted by.

        Raises the Problems of `Places.admit`.
        """
        user, model = question.user, self._settings.chat_model
        most = self._till.most(question)
        admission = await self._places.admit(user, question.id, model, most, self.alone(user))
        if admission.room is not None:
            self.let_go([], [admission.room])
        stored = question.stored and self._settings.chat_log
        answer = Answer(replace(question, stored=stored), model)
        known: Answer | None = answer
        try:
            known = self.find_here(question)
        finally:
            if known is not None:  # begun meanwhile, or another question's
                self._give_back(answer, admission)
        if known is not None:
            return known, admission
        writing = Writing(answer, self._till.open(admission.reservation))
        before = self._running.get(question.id)
        self._run(answer, writing, admission, before)
        return answer, admission

    async def stop(self, user: User, answer_id: UUID) -> None:
        """End an answer by its user's will, wherever it is written; one that has ended stays as it is.

        Raises Problem 404 where there is none.
        """
        answer = await self.find(user, answer_id)
        running = self._running.get(answer_id)
        followed = answer.state is State.FOLLOWED
        if running is None or running.answer is not answer or not answer.stop():
            return
        self._let_go(running)
        if followed:
            await self._chats.stop(user, answer_id)

    def alone(self, user: User | None = None) -> list[UUID]:
        """Return the reservations of answers, or of this user's alone, that nobody listens to any more."""
        return [
            running.admission.reservation
            for running in self._running.values()
            if running.admission is not None
            and not running.answer.done
            and running.met
            and not running.listeners
            and (user is None or running.answer.user.id == user.id)
        ]

    def let_go(self, stopped: Sequence[UUID], abandoned: Sequence[UUID]) -> None:
        """End the answers of these reservations: another replica was told to, or needs their places."""
        for running in list(self._running.values()):
            of = None if running.admission is None else running.admission.reservation
            if (of in stopped and running.answer.stop()) or (
                of in abandoned and running.answer.abandon()
            ):
                self._let_go(running)

    async def kept(self, answer: Answer) -> None:
        """Wait until an answer that has ended is stored and its place is free, for a moment at most.

        Who has read its end asks on, perhaps another replica.
        """
        running = self._running.get(answer.id)
        if running is not None and running.answer is answer and running.writing is not None:
            await asyncio.wait([running.task], timeout=KEPT_SECONDS)

    @contextlib.contextmanager
    def listening(self, answer: Answer) -> Iterator[None]:
        """Count one more listener inside the block; without any the answer is abandoned after a while."""
        running = self._running.get(answer.id)
        if running is None or running.answer is not answer:
            yield
            return
        running.listeners += 1
        running.met = True
        if running.alone is not None:
            running.alone.cancel()
            running.alone = None
        try:
            yield
        finally:
            running.listeners -= 1
            self._leave_alone(running)

    def _here(self, answer_id: UUID) -> Answer | None:
        running = self._running.get(answer_id)
        return running.answer if running is not None else self._finished.get(answer_id)

    def _adopted(self, user: User, stored: Stored) -> Answer:
        """Return the answer of a row; it is followed while another process writes it."""
        answer = self._here(stored.id)
        if answer is not None and answer.user.id == user.id:  # another request was quicker
            return answer
        question = Question(
            user=user, id=stored.id, conversation_id=stored.conversation_id, text=stored.question
        )
        answer = Answer(question, stored.model)
        self._keeper.adopt(answer, stored)
        if not answer.done:
            self._run(answer, None, None, None, stored)
        return answer

    def _leave_alone(self, running: Running) -> None:
        if running.listeners or running.answer.done:
            return
        followed = running.answer.state is State.FOLLOWED
        resumable = running.answer.question.resumable and not followed
        wait = self._settings.resume_seconds if resumable else 0.0

        def abandon() -> None:
            if running.answer.abandon():
                self._let_go(running)

        running.alone = asyncio.get_running_loop().call_later(max(wait, LEFT_SECONDS), abandon)

    def _let_go(self, running: Running) -> None:
        """After an event from outside: the model is told to stop, and the place is free."""
        if running.admission is not None:
            running.admission.ended = True
        running.task.cancel()

    def _give_back(self, answer: Answer, admission: Admission) -> None:
        """Free what was held for an answer that is not written."""

        async def settle() -> None:
            await self._keeper.settle(answer, Charge(admission.reservation))
            self._places.settled(admission)

        admission.ended = True
        task = asyncio.create_task(settle())
        self._unused.add(task)
        task.add_done_callback(self._unused.discard)

    def _run(
        self,
        answer: Answer,
        writing: Writing | None,
        admission: Admission | None,
        before: Running | None,
        stored: Stored | None = None,
    ) -> None:
        async def run() -> None:
            try:
                if writing is not None:
                    await self._stored_before(answer, before)
                    await self._writer.write(writing)
                elif stored is not None:
                    await self._keeper.watch(answer, stored)
            except asyncio.CancelledError:
                pass  # an event has said why
            except Exception:
                log.exception("answer %s", answer.id)
                answer.fail(problem_of("internal"))
            answer.fail(problem_of("interrupted"))  # unless it has ended
            if admission is not None:
                admission.ended = True
            if running.alone is not None:
                running.alone.cancel()
            try:
                if writing is not None:
                    await self._after(writing)
            finally:
                if admission is not None:
                    self._places.settled(admission)
                if self._running.get(answer.id) is running:
                    del self._running[answer.id]

        running = Running(answer, writing, admission, asyncio.create_task(run()))
        self._running[answer.id] = running
        self._leave_alone(running)

    async def _stored_before(self, answer: Answer, before: Running | None) -> None:
        """Wait until the last answer of the conversation is stored: a quick client asks on before it is."""
        last = {
            other.task
            for other in self._running.values()
            if other.answer.conversation_id == answer.conversation_id and other.answer.done
        }
        if before is not None:
            last.add(before.task)
        if last:
            await asyncio.wait(last, timeout=STORED_BEFORE_SECONDS)

    async def _after(self, writing: Writing) -> None:
        """Count the answer and what it cost, and store how it ended."""
        answer, bill = writing.answer, writing.bill
        if answer.question.stored and writing.row is None:
            # It was refused, or is another process's, who pays for it.
            await self._keeper.settle(answer, bill.nothing())
            return
        charge = bill.charge(answer.text, answer.usage)
        self._metrics.answers.labels(answer.status).inc()
        for kind in ("prompt", "cached", "completion", "embedding"):
            self._metrics.tokens.labels(kind).inc(getattr(charge, kind))
        self._metrics.cost.labels(answer.model).inc(charge.micro_usd / MILLION)
        if writing.row is not None:
            await self._keeper.save_end(writing.row)
            return
        await self._keeper.settle(answer, charge)
        self._finished[answer.id] = answer
        if len(self._finished) > KEPT:
            self._finished.popitem(last=False)

    def _interrupt(self) -> None:
        for running in list(self._running.values()):
            if running.answer.fail(problem_of("interrupted")):
                self._let_go(running)

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for running in list(self._running.values()):
                writing, answer = running.writing, running.answer
                if writing is None or answer.done:
                    continue
                if self._writer.overdue(writing):
                    self._upstream.timed_out()
                    if answer.fail(problem_of_kind("upstream-timeout")):
                        self._let_go(running)
                elif writing.row is not None and writing.row.begun:
                    if writing.row.lost and answer.stop():
                        self._let_go(running)
                    else:
                        self._keeper.keep_up(writing.row)
