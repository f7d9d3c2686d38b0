"""What is done with a batch of a stream: it is tried until it is done or given up, in order (spec 5.4 to 5.9).

`core.retry` decides; this carries it out. A batch may fall into several, which are worked on one after the other: the first
half of a bisected batch before the second, the rest of a partly failed one after what came before it::

    pending: [batch] --> expire --> divert --> attempt --> Commit   settled; its rest, if any, comes next
                            |          |                   Retry    a pause, then the same again
                            |          |                   Bisect   first half next, then the second
                            |          |                   GiveUp --,-- parks its key --,
                            |          '-- of a parked key ---------|-------------------'--> spool takes it -----> settled
                            '-- too old ----------------------------'--> destination or spool, or dropped --------> settled

Records are settled as the objects that were received. What a handler has seen it may have changed, so from the second attempt
on the events are built anew. The door's closing ends every pause; what is left then is handed back, in its order, unless the
door is open again by the time that this runs: whoever opened it has not seen anything come back. How records leave
that are given up, or whose key is parked, is in `parting`. What succeeded is told to an on-success destination before it is
settled.

With a tumbling window every batch is cut at its window's end, and each window ends with an invocation of its own, which the
same policy applies to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from poller.core import envelope, failure, windows
from poller.core.parking import place
from poller.core.retry import (
    Bisect,
    Commit,
    Retry,
    StreamBatch,
    TooLarge,
    decide_stream,
    expire,
    expires_at,
    is_too_large,
)
from poller.engine.accounts import Account, Witness
from poller.engine.delivery import Outlet
from poller.engine.parting import LastAttempt, Parting
from poller.engine.work import DONE, Worked
from poller.model import NotInvoked, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.core.failure import Origin
    from poller.core.retry import GiveUp, StreamDecision, StreamOutcome, StreamPolicy
    from poller.core.windows import Window
    from poller.engine.delivery import Route
    from poller.engine.invoker import Call
    from poller.engine.parking import Parking
    from poller.engine.parts import Parts
    from poller.model import Checkpoint, Outcome, Record, Reply

#: Bytes that the other members of a window's event take at most, its state excluded.
WINDOW_MEMBERS = 1024


class Envelope(Protocol):
    """Builds what Lambda delivers of a stream's records; see `core.stream_envelope`."""

    def rebuild(self, shard_id: str, record: Record) -> Record:
        """The record with a fresh event."""
        ...

    def window_event(
        self, shard_id: str, records: Sequence[Record], window: Window, *, final: bool
    ) -> dict[str, Any]:
        """The event of a batch in a tumbling window."""
        ...

    def checkpoint(self, record: Record) -> Checkpoint:
        """The position after the record."""
        ...


@dataclass(frozen=True, slots=True)
class Batches:
    """What a mapping says about the batches of one shard."""

    call: Call
    """What is asked of the function, for no records yet."""
    function_arn: str
    origin: Origin
    envelope: Envelope
    policy: StreamPolicy
    window_length: int = 0
    """Seconds; 0 for no windows."""
    destination: Route | None = None
    """For what is given up."""
    on_success: Route | None = None

    def account(self) -> Account:
        """How they are told of; a record's place in its shard tells it from all others."""
        origin, checkpoint = self.origin, self.envelope.checkpoint
        return Account(
            self.call.mapping,
            origin.stream_arn,
            origin.shard_id,
            self.function_arn,
            lambda record: place(checkpoint(record)),
        )

    def fresh(self, records: Sequence[Record]) -> list[Record]:
        """The records with events that no handler has seen."""
        rebuild, shard = self.envelope.rebuild, self.origin.shard_id
        return [rebuild(shard, record) for record in records]

    def event(self, records: Sequence[Record], window: Window | None, *, final: bool) -> dict[str, Any]:
        """The event of an invocation."""
        if window is None:
            return envelope.event(records)
        return self.envelope.window_event(self.origin.shard_id, records, window, final=final)


class StreamWork:
    """Works on the batches of one lane of a shard. `window` is the one that was open at the checkpoint."""

    def __init__(
        self,
        batches: Batches,
        parts: Parts,
        window: Window | None,
        closed: Callable[[], None],
        parking: Parking | None = None,
    ) -> None:
        """`closed` is called when a window has ended, which moves the checkpoint without a record. `parking` is the mapping's,
        None where no key is ever parked."""
        self.window = window
        self._doing = ""
        self._batches = batches
        self._parts = parts
        self._parting = Parting(batches, parts, parking)
        self._success = Outlet(batches.on_success, parts) if batches.on_success else None
        # Of the last attempt, for the account of it; and the window as it was before that.
        self._witness: Witness | None = None
        self._window_before = window
        # Since when the shard brings nothing, and when that was seen last.
        self._quiet_since = self._quiet_at = -math.inf
        self._world = parts.world
        self._closed = closed
        self._mapping = batches.call.mapping
        self._shard = batches.origin.shard_id
        # What went back unfinished, the next batch last, with its attempts; and whether a handler has seen some of it.
        self._left: list[StreamBatch] = []
        self._seen = False
        # That of the attempt before, as long as its batch is tried again unchanged.
        self._request_id = ""
        # Of the function, at the last attempt, where Lambda has said it.
        self._version = ""

    @property
    def doing(self) -> str:
        """What it waits for, for `/status`; empty when that is nothing special."""
        return self._parting.doing or (self._success.waiting if self._success else "") or self._doing

    # --- batches --------------------------------------------------------------------------------------------------------

    async def process(self, batch: Sequence[Record], dropped: Sequence[Record]) -> Worked:
        self._quiet_at = -math.inf
        # That costs nothing here, and a batch may be tried for days.
        await self._parts.settler.done(dropped)
        left = await (self._finish_windows(batch) if self._batches.window_length else self._finish(batch))
        return DONE if left is None else Worked(unfinished=left)

    async def fresh(self, filling: Sequence[Record]) -> tuple[Sequence[Record], float]:
        # What was handed back goes on where it stopped, and of a record in a window more is told than is known here.
        if self._left or self._batches.window_length:
            return filling, math.inf
        policy = self._batches.policy
        pending = [StreamBatch(filling)]
        # It is asked at each receive, and the first record is the oldest but for the moments that arrival times differ by.
        if expires_at(filling[:1], policy) <= self._world.wall():
            await self._part_with_expired(pending)
        left = pending[0].records
        return left, expires_at(left[:1], policy) - self._world.wall()

    async def _finish(self, batch: Sequence[Record], *, final: bool = False) -> list[Record] | None:
        """Work until every record is done or given up. When the door closes before: what is left, which may be nothing."""
        pending, seen = self._take_up(batch)
        while pending:
            if not (await self._part_with_expired(pending) and await self._part_with_parked(pending)):
                return self._hand_back(pending, seen=seen)
            live = pending[-1]
            if not (live.records or final):
                pending.pop()
                continue
            outcome = await self._attempt(live, seen=seen, final=final)
            if outcome is None:
                if self._parts.door.is_open:
                    continue
                return self._hand_back(pending, seen=seen)
            seen = seen or not isinstance(outcome, NotInvoked | TooLarge)
            wall, chance = self._world.wall(), self._world.chance()
            decision = decide_stream(outcome, live, self._batches.policy, now=wall, chance=chance)
            if isinstance(decision, Retry):
                pending[-1] = decision.batch
                self._tell_too_large(outcome, decision)
            left = await self._carry_out(decision, outcome)
            if left is None:
                return self._hand_back(pending, seen=seen)
            pending[-1:] = reversed(left)
        return None

    def _take_up(self, batch: Sequence[Record]) -> tuple[list[StreamBatch], bool]:
        """What is to be done, the next batch last, and whether a handler has seen some of it.

        What was handed back comes first again, and goes on where it stopped.
        """
        left = _records(self._left)
        if not (left and len(left) <= len(batch) and all(map(is_, left, batch))):
            return [StreamBatch(batch)], self._seen and not set(map(id, left)).isdisjoint(map(id, batch))
        new = [StreamBatch(batch[len(left) :])] if len(batch) > len(left) else []
        pending, self._left = [*new, *self._left], []
        return pending, self._seen

    def _hand_back(self, pending: list[StreamBatch], *, seen: bool) -> list[Record]:
        left = _records(pending)
        if left:
            self._left, self._seen = pending, seen
        self._begin_another()
        return left

    def _tell_too_large(self, outcome: StreamOutcome, decision: Retry) -> None:
        if isinstance(outcome, TooLarge):
            first = decision.batch.records[0].id
            text = f"{self._shard}: the event of record {first} alone passes 6 MB, so no function can get it"
            self._parts.observer.trouble(Trouble(self._mapping, text, decision.at - self._world.wall()))

    def _begin_another(self) -> None:
        """What comes next is not the batch of the last attempt."""
        self._request_id = self._doing = ""

    async def _pause(self, seconds: float) -> bool:
        """Wait, less if the door closes; False when it is closed."""
        door = self._parts.door
        await door.unless_closed(partial(anyio.sleep, seconds))
        return door.is_open

    async def _carry_out(
        self, decision: StreamDecision, outcome: StreamOutcome
    ) -> Sequence[StreamBatch] | None:
        """Do what was decided and return the batches that are left, in their order; None when the door closed before."""
        match decision:
            case Commit(done, rest):
                if not await self._tell_success(done, outcome):
                    return None
                self._begin_another()
                await self._parts.settler.done(done)
                return [rest] if rest else []
            case Bisect(first, second):
                self._begin_another()
                return [first, second]
            case Retry(again, at):
                self._doing = _retrying(again)
                return [again] if await self._pause(max(0.0, at - self._world.wall())) else None
            case _:
                if not await self._give_up(decision):
                    return None
                self._begin_another()
                return []

    async def _part_with_expired(self, pending: list[StreamBatch]) -> bool:
        """Give up what is too old of the next batch, which keeps the rest; False when the door closed before."""
        expired = expire(pending[-1], self._batches.policy, self._world.wall()).given_up
        for given_up in expired:
            if not await self._give_up(given_up):
                return False
            _part_with(pending, given_up.records)
        if expired:
            self._begin_another()
        return True

    async def _part_with_parked(self, pending: list[StreamBatch]) -> bool:
        """Put records of parked keys behind what is parked of them; False when the door closed before."""
        while held := self._parting.held(pending[-1].records):
            parked = await self._parting.park(held)
            if parked:
                _part_with(pending, parked)
                self._begin_another()
            # Room may have been long in coming.
            elif parked is None or not await self._part_with_expired(pending):
                return False
        return True

    async def _give_up(self, given_up: GiveUp) -> bool:
        """Part with records for good; False when the door closed before."""
        last = LastAttempt(self._request_id, self._version, self.window)
        return await self._parting.give_up(given_up, last)

    async def _attempt(self, batch: StreamBatch, *, seen: bool, final: bool) -> StreamOutcome | None:
        """Invoke the function once; None when the door closed before a handler saw the records."""
        if is_too_large(batch.records, self._window_size()):
            return TooLarge()
        records = self._batches.fresh(batch.records) if seen else batch.records
        self._request_id = self._request_id or self._world.request_id()
        call = replace(
            self._batches.call,
            records=records,
            event=self._batches.event(records, self.window, final=final),
            request_id=self._request_id,
            judge=partial(self._judge, final=final),
            shard=self._shard,
        )
        if self._success is not None:
            self._window_before = self.window
            self._witness = Witness(batch.records, call.event, self._request_id)
            call = self._witness.of(call)
        return await self._parts.dispatch.invoke(call)

    # --- success --------------------------------------------------------------------------------------------------------

    async def _tell_success(self, done: Sequence[Record], outcome: StreamOutcome) -> bool:
        """Tell of records that are done before the checkpoint passes them; False when the door closed before."""
        if self._success is None or self._witness is None or isinstance(outcome, TooLarge):
            return True
        account = self._batches.account()
        delivery = account.of(done, self._witness, outcome, failure.SUCCESS, self._world.wall())
        taken = await self._success.deliver_or_drop(delivery)
        if not taken:
            # The function will see these records again, so what it made of them does not count yet.
            self.window = self._window_before
        return taken

    # --- windows --------------------------------------------------------------------------------------------------------

    async def idle(self) -> None:
        """Close a window that has run out while the shard brings nothing, or that the end of the shard ends."""
        window, reader = self.window, self._parts.reader
        if window is None:
            return
        now = self._world.clock()
        if now > self._quiet_at + windows.QUIET:
            # Nobody has asked for long: not before the start, during a batch, or behind a closed door.
            self._quiet_since = now
        self._quiet_at = now
        quiet = now >= self._quiet_since + windows.QUIET
        at_tip = quiet and reader.behind is not None and reader.behind <= 0
        if windows.is_due(window, None, self._world.wall(), ended=reader.ended, at_tip=at_tip):
            await self._close_window()

    async def _finish_windows(self, batch: Sequence[Record]) -> list[Record] | None:
        """As `_finish`, over as many windows as the batch touches."""
        left = list(batch)
        while True:
            # A pause or a restart may have come between a state that has outgrown its window and the end of that.
            if self.window is not None and self._is_over(self.window, left):
                if not await self._close_window():
                    return left
            elif left:
                self.window, count = windows.cut(self.window, left, self._batches.window_length)
                unfinished = await self._finish(left[:count])
                if unfinished is not None:
                    return [*unfinished, *left[count:]]
                left = left[count:]
            else:
                return None

    def _is_over(self, window: Window, following: Sequence[Record]) -> bool:
        next_one = following[0] if following else None
        return windows.is_due(window, next_one, self._world.wall(), ended=False, at_tip=False)

    async def _close_window(self) -> bool:
        """The final invocation of the open window; False when the door closed before it was done or given up."""
        if await self._finish((), final=True) is not None:
            return False
        self.window = None
        self._closed()
        return True

    def _judge(self, reply: Reply, outcome: Outcome, *, final: bool) -> Outcome:
        self._version = failure.version_of(reply)
        if self.window is None or final:
            return outcome
        judged, self.window = windows.carry(self.window, reply, outcome)
        return judged

    def _window_size(self) -> int:
        """Bytes that the window adds to an event."""
        return 0 if self.window is None else len(self.window.state.encode()) + WINDOW_MEMBERS


def _part_with(pending: list[StreamBatch], records: Sequence[Record]) -> None:
    """Take records, which are settled, out of the next batch, which keeps its attempts."""
    gone = set(map(id, records))
    left = [record for record in pending[-1].records if id(record) not in gone]
    pending[-1] = replace(pending[-1], records=left)


def _records(pending: Sequence[StreamBatch]) -> list[Record]:
    """In their order, of batches of which the next comes last."""
    return [record for batch in reversed(pending) for record in batch.records]


def _retrying(batch: StreamBatch) -> str:
    what = f"the batch from {batch.records[0].id}" if batch.records else "the end of a window"
    if batch.refusals:
        return f"waiting until {what} can be invoked"
    return f"retrying {what}, {batch.attempts} attempts failed"
