"""The failed records of a queue's mapping, from letters: as a reader under the pipeline that works on queues.

A letter is a dead letter, which is the record itself, or an invocation record, which holds the records of a batch. What fails
is offered again, with a fresh event and after a growing pause, until it has had its attempts; then its letter is kept. Letters
are done with when all of their records are; one with a record that the replay was not asked for is kept too.

Records of one FIFO group keep their order: they come in order, one batch of a group is in flight, and what fails is offered
again before the others of its group.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import orjson

from poller.core.replay import check_failed, read
from poller.core.retry import backoff
from poller.model import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from poller.core.pace import Allowance
    from poller.core.replay import Tally
    from poller.model import Shard
    from poller.sources._letters import Box, Letter

#: Records that wait to be received; what one letter holds is taken whole.
HELD_RECORDS = 1_000


@dataclass(slots=True, eq=False)
class _Failure:
    """A letter while its records are replayed."""

    letter: Letter
    left: int
    """Records that are not settled."""
    bad: bool = False
    partial: bool = False
    """Whether it holds records that the replay was not asked for."""


@dataclass(slots=True, eq=False)
class _Receipt:
    """What one record is known by."""

    failure: _Failure
    encoded: bytes
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a record is tried, and what is known of the last failure."""

    allowed: int
    error: Callable[[], tuple[str, str]]
    """Type and message of the failure that the calling task has just seen."""
    chance: Callable[[], float]


class FailedMessages:
    """See the module; a `poller.ports.Reader`."""

    redelivers = True
    full = False
    behind: float | None = None
    children: tuple[Shard, ...] = ()
    doing = "reading"

    def __init__(
        self,
        box: Box,
        source_arn: str,
        passes: Callable[[Record], bool],
        wants: Callable[[Record], bool],
        attempts: Attempts,
        allowance: Allowance,
        tally: Tally,
        *,
        dead_letters: bool,
        fifo: bool,
    ) -> None:
        """`passes` is what the mapping's filters say: a record that they drop is done with. One that the replay was not asked
        for, as `wants` says, stays where it is."""
        self._box = box
        self._source_arn = source_arn
        self._passes = passes
        self._wants = wants
        self._attempts = attempts
        self._allowance = allowance
        self._tally = tally
        self._dead_letters = dead_letters
        self._ready: deque[Record] = deque()
        self._again: deque[tuple[float, Record]] = deque()
        self._open = 0
        self._fifo = fifo
        # Groups of which records are handed out and not settled: no others of them until they are.
        self._busy: Counter[str | None] = Counter()
        self._change = anyio.Event()

    def __repr__(self) -> str:
        return f"<FailedMessages {self._open} letters open>"

    @property
    def note(self) -> str:
        """What there is to say of it now."""
        return self._box.note

    @property
    def ended(self) -> bool:
        return self._box.ended and not (self._ready or self._again or self._open)

    @property
    def exhausted(self) -> bool:
        """True when all letters were taken, and are done with or kept."""
        return self.ended and not self._box.cut_short

    # --- receiving ------------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """As the port says; no more than the allowance grants."""
        deadline = anyio.current_time() + wait
        while True:
            now = anyio.current_time()
            if (pause := self._allowance.wait(now)) > 0:
                await anyio.sleep_until(min(now + pause, deadline))
                if now + pause > deadline:
                    return ()
                continue
            if found := self._take(limit, now):
                self._allowance.spend(len(found), now)
                return found
            if self.ended or now >= deadline:
                await anyio.lowlevel.checkpoint()
                return ()
            if not self._box.ended and len(self._ready) < HELD_RECORDS and not self._due_before(deadline):
                for letter in await self._box.take(limit):
                    await self._open_letter(letter)
                continue
            change = self._change
            with anyio.CancelScope(deadline=min([deadline, *(at for at, _ in self._again)])):
                await change.wait()

    def _due_before(self, deadline: float) -> bool:
        """Whether something is to be offered again soon: what a look for more would only delay."""
        return any(at < deadline for at, _ in self._again)

    def _take(self, limit: int, now: float) -> list[Record]:
        taken: list[Record] = []
        barred = set(+self._busy)
        waiting = [(at, record) for at, record in self._again]
        self._again.clear()
        for at, record in waiting:
            if at <= now and len(taken) < limit and record.key not in barred:
                taken.append(record._replace(event=orjson.loads(record.receipt.encoded)))
            else:
                self._again.append((at, record))
                barred |= self._group(record)
        ready, self._ready = self._ready, deque()
        for record in ready:
            if len(taken) < limit and record.key not in barred:
                taken.append(record)
            else:
                self._ready.append(record)
                barred |= self._group(record)
        if self._fifo:
            self._busy.update(record.key for record in taken)
        return taken

    def _group(self, record: Record) -> set[str | None]:
        return {record.key} if self._fifo else set()

    def _let_go(self, records: Sequence[Record]) -> None:
        if self._fifo:
            self._busy.subtract(record.key for record in records)
            self._busy = +self._busy
        self._change.set()
        self._change = anyio.Event()

    async def _open_letter(self, letter: Letter) -> None:
        try:
            events = self._events(letter)
        except ValueError as error:
            self._tally.refuse(str(error))
            await self._box.keep([letter])
            return
        failure = _Failure(letter, len(events))
        records = [_record(failure, event, letter, fifo=self._fifo) for event in events]
        passed = [record for record in records if self._passes(record)]
        wanted = [record for record in passed if self._wants(record)]
        failure.partial = len(wanted) < len(passed)
        self._tally.filtered += len(records) - len(wanted)
        failure.left = len(wanted)
        self._open += 1
        self._ready.extend(wanted)
        if not wanted:
            await self._close_letter(failure)

    def _events(self, letter: Letter) -> tuple[dict[str, Any], ...]:
        if self._dead_letters:
            return (letter.handle.event,)
        batch = read(letter.body)
        if not batch.records:
            raise ValueError("it holds no records")
        check_failed(batch, self._source_arn)
        return batch.records

    # --- settling -------------------------------------------------------------------------------------------------------

    async def ack(self, records: Sequence[Record]) -> int:
        """They succeeded."""
        self._let_go(records)
        self._tally.succeeded += len(records)
        await self._settle(records)
        return len(records)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """With a delay no handler has seen them; without one they have failed."""
        self._let_go(records)
        if delay is not None:
            # They stay with whoever closes the box, which shows again what is not settled.
            self._again.extendleft((0.0, record) for record in reversed(records))
            return
        spent: list[Record] = []
        now = anyio.current_time()
        for record in records:
            record.receipt.attempts += 1
            if record.receipt.attempts >= self._attempts.allowed:
                spent.append(record)
            else:
                pause = backoff(record.receipt.attempts - 1, self._attempts.chance())
                self._again.append((now + pause, record))
        if spent:
            error_type, message = self._attempts.error()
            self._tally.fail([record.id for record in spent], error_type, message)
            for record in spent:
                record.receipt.failure.bad = True
            await self._settle(spent)

    async def _settle(self, records: Iterable[Record]) -> None:
        for record in records:
            failure = record.receipt.failure
            failure.left -= 1
            if failure.left == 0:
                await self._close_letter(failure)

    async def _close_letter(self, failure: _Failure) -> None:
        try:
            if failure.bad or failure.partial:
                self._tally.kept += 1
                self._tally.passed_over += not failure.bad
                await self._box.keep([failure.letter])
            else:
                stay = await self._box.done([failure.letter])
                self._tally.messages += 1 - stay
                self._tally.kept += stay
        finally:
            self._open -= 1


def _record(failure: _Failure, event: dict[str, Any], letter: Letter, *, fifo: bool) -> Record:
    encoded = orjson.dumps(event)
    # A standard queue may carry a group id too (fair queues); it says nothing about order there.
    key = (event.get("attributes") or {}).get("MessageGroupId") if fifo else None
    receipt = _Receipt(failure, encoded)
    return Record(str(event.get("messageId", letter.id)), key, len(encoded) + 1, event, receipt)
