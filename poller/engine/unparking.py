"""Parked keys are taken up again, by a probe from time to time or by command, until nothing of them is parked.

A key is taken up with its oldest record alone: as long as nothing has changed, it is that one which fails, and costs one
invocation. Each success doubles what is taken next, up to the mapping's batch size. What fails is parted as on a stream
(spec 5.4 to 5.8): what came before the lowest failed record is done, the rest is halved; a single record that fails ends it::

    due --> look: nothing there, nothing comes --> free, its records are live
             ^ |
             | '--> some --> invoke --> done: removed from the spool, and on to the next ones
             |                    '---> one record failed: due again after a pause that grows
             '--- live records of the key came meanwhile, behind all others

Invocations go the way of all others: the function's slots in turn, the mapping's door, the same facts, the same on-success
destination. At most `KEYS_AT_A_TIME` keys and a quarter of the function's concurrency are at work, one batch of a key at a
time, so live records go on beside them. What succeeded is removed before anything else of its key is invoked; a crash in
between repeats it. A circuit breaker whose circuit is closed hears nothing of all this, as a key that is known to fail says
nothing about the function. Else it lets these invocations through with the others, or keeps them back: where no live records
come, they are all that can close it.

`resume` asks for a key now. It gets the result of an attempt that begins after it: one that was under way may have been
before whatever the operator has mended.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal

import anyio

from poller.core import envelope, failure
from poller.core.batch import ENVELOPE_SIZE
from poller.core.parking import Schedule, probe_pause
from poller.core.retry import (
    Bisect,
    Commit,
    Retry,
    StreamBatch,
    StreamPolicy,
    TooLarge,
    backoff,
    decide_stream,
    is_too_large,
)
from poller.engine.accounts import Witness
from poller.engine.breaker import GuardedDispatch
from poller.engine.delivery import Outlet
from poller.engine.dispatch import Dispatch
from poller.engine.parking import SHOWN, why
from poller.engine.status import Load, ParkedKeyStatus, ParkedStatus
from poller.errors import PollerError, StoreError
from poller.model import CircuitState, FunctionError, Trouble, Unparked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.core.batch import BatchLimits
    from poller.core.retry import StreamOutcome
    from poller.engine.breaker import Breaker
    from poller.engine.door import Door
    from poller.engine.health import Health
    from poller.engine.invoker import Call, Invoker
    from poller.engine.parking import Parking
    from poller.engine.stream_work import Batches
    from poller.model import Record, SpoolEntry

#: Keys that are taken up beside each other at most.
KEYS_AT_A_TIME = 4
#: Entries that one look brings at most: their bodies are all in memory, whatever the batch takes of them.
LOOK = 32
#: Seconds between two reads of the exact counts.
REFRESH = 5.0
#: Seconds that a command waits for its result.
PATIENCE = 20.0
#: No record is tried twice in one attempt.
POLICY = StreamPolicy(maximum_retry_attempts=0, bisect_batch_on_function_error=True)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of a key that was asked for."""

    key: str
    state: Literal["free", "failing", "going on"]
    records: int
    """Handled so far."""
    error: str = ""


#: What an attempt came to: nothing of the key is left, the door closed before, or a record failed.
_End = Literal["free", "closed"] | FunctionError


class _Attempt:
    """One attempt to free a key."""

    def __init__(self) -> None:
        self.records = 0
        """Handled so far."""
        self.outlet: Outlet | None = None
        """The way to the on-success destination, once there was something to tell it."""
        self.end: _End = "closed"
        self.ended = anyio.Event()

    def told(self, key: str) -> Resumed:
        """As a command is told."""
        if isinstance(self.end, FunctionError):
            return Resumed(key, "failing", self.records, _text(self.end))
        return Resumed(key, "free" if self.end == "free" else "going on", self.records)


class Unparking:
    """Takes the parked keys of one mapping up; `run` is owned by whoever runs the mapping."""

    def __init__(
        self,
        parking: Parking,
        batches: Callable[[str], Batches],
        limits: BatchLimits,
        invoker: Invoker,
        door: Door,
        health: Health,
        breaker: Breaker | None = None,
    ) -> None:
        self._parking = parking
        self._mapping = parking.plan.mapping
        self._batches = batches
        self._limits = limits
        self.door = door
        self.health = health
        self.observer = invoker.observer
        self.world = invoker.world
        self._dispatch = Dispatch(invoker, door, None)
        self._guarded = GuardedDispatch(invoker, breaker, door, None) if breaker else None
        self._breaker = breaker
        self._schedule = Schedule()
        self._attempts: dict[str, _Attempt] = {}
        # Of keys that were asked for: the attempt that is still to begin.
        self._asked: dict[str, _Attempt] = {}
        self._woken = anyio.Event()
        self._quieted = False
        parking.on_parked = self._parked

    def __repr__(self) -> str:
        return f"<Unparking {self._mapping}: {len(self._attempts)} keys taken up, {self._schedule!r}>"

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until quiet and drained."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._keep_counts)
            async with anyio.create_task_group() as workers:
                for _ in range(KEYS_AT_A_TIME):
                    workers.start_soon(self._work)
            background.cancel_scope.cancel()
        for attempt in self._asked.values():
            attempt.ended.set()

    def wake(self) -> None:
        """Look again who is due: the door has opened, or something has changed."""
        self._woken.set()
        self._woken = anyio.Event()

    def quiet(self) -> None:
        """Begin nothing more; `run` returns when what is at work is done."""
        self._quieted = True
        self.wake()

    def _parked(self, key: str) -> None:
        self._set_due(key, probe_pause(0, self._parking.plan.probe_interval))
        self.wake()

    def _set_due(self, key: str, pause: float) -> None:
        self._schedule.set(key, anyio.current_time() + pause)

    async def _keep_counts(self) -> None:
        while True:
            await anyio.sleep(REFRESH)
            try:
                await self._parking.refresh()
            except StoreError as error:
                text = f"parked records cannot be counted: {error}"
                self.observer.trouble(Trouble(self._mapping, text, REFRESH))

    async def _work(self) -> None:
        while not self._quieted:
            key = self._schedule.pop(anyio.current_time()) if self._may_begin else None
            if key is not None:
                await self._take_up(key)
                continue
            with anyio.CancelScope(deadline=self._schedule.next if self._may_begin else math.inf):
                await self._woken.wait()

    @property
    def _may_begin(self) -> bool:
        most = max(1, min(KEYS_AT_A_TIME, self._dispatch.ceiling // 4))
        return self.door.is_open and len(self._attempts) < most

    # --- one key --------------------------------------------------------------------------------------------------------

    async def _take_up(self, key: str) -> None:
        """One attempt to free `key`; what becomes of it is in the schedule."""
        attempt = self._attempts[key] = self._asked.pop(key) if key in self._asked else _Attempt()
        try:
            attempt.end = await self._free(key, attempt)
        finally:
            del self._attempts[key]
            attempt.ended.set()
        if isinstance(attempt.end, FunctionError):
            parked = self._parking.keys[key]
            parked.note_error(attempt.end.error_type, attempt.end.error_message)
            parked.failures = 1 if attempt.records else parked.failures + 1
            self._set_due(key, probe_pause(parked.failures, self._parking.plan.probe_interval))
        elif attempt.end == "closed":
            self._set_due(key, 0.0)
        # Whoever asked meanwhile is told of this one only when there is nothing left to try.
        if asked := self._asked.get(key):
            if attempt.end == "free":
                del self._asked[key]
                asked.end = "free"
                asked.ended.set()
            else:
                self._set_due(key, 0.0)
        self.wake()

    async def _free(self, key: str, attempt: _Attempt) -> _End:
        """Take up what is parked of `key`, more and more of it at a time."""
        size = 1
        while self.door.is_open:
            settled = await self._parking.settled(key)
            if settled is None:
                return "free"
            try:
                entries, records = await self._look(key, size)
            except StoreError as error:
                return FunctionError("", f"parked records cannot be read: {error}")
            if not entries:
                if self._parking.free(key, settled):
                    self.observer.unparked(Unparked(self._mapping, key, 0, free=True))
                    return "free"
                continue
            end = await self._try(key, attempt, entries, records)
            if end is not None:
                return end
            size = min(2 * size, self._limits.count)
        return "closed"

    async def _look(self, key: str, size: int) -> tuple[deque[SpoolEntry], list[Record]]:
        """The oldest entries of `key` and their records: up to `size` of one shard that fit into one event."""
        entries: deque[SpoolEntry] = deque()
        records: list[Record] = []
        room = self._limits.size - ENVELOPE_SIZE
        parked = self._parking.keys[key]
        average = max(1, parked.size // max(1, parked.entries))
        while len(entries) < size:
            # Of large ones no more than may fit.
            asked = min(LOOK, size - len(entries), max(1, room // average))
            found = await self._parking.take(key, after=entries[-1].number if entries else 0, limit=asked)
            for entry in found:
                record = self._parking.record(entry)
                room -= record.size
                if entries and (room < 0 or entry.shard != entries[0].shard):
                    return entries, records
                entries.append(entry)
                records.append(record)
            if len(found) < asked:
                break
        return entries, records

    async def _try(
        self, key: str, attempt: _Attempt, entries: deque[SpoolEntry], records: Sequence[Record]
    ) -> _End | None:
        """Invoke until all of `records` are done, None, or one of them has failed or the door has closed."""
        shard = entries[0].shard
        batches = self._batches(shard)
        pending = [StreamBatch(records)]
        while pending:
            live = pending[-1]
            call = self._call(batches, shard, live.records)
            witness = (
                Witness(live.records, call.event, self.world.request_id()) if batches.on_success else None
            )
            outcome = await self._invoke(witness.of(call) if witness else call)
            if outcome is None:
                return "closed"
            wall, chance = self.world.wall(), self.world.chance()
            decision = decide_stream(outcome, live, POLICY, now=wall, chance=chance)
            match decision:
                case Commit(done, rest):
                    if not await self._tell_success(batches, attempt, done, witness, outcome):
                        return "closed"
                    # Records are done in the order in which they were taken.
                    if not await self._remove(key, [entries.popleft() for _ in done]):
                        return "closed"
                    attempt.records += len(done)
                    self.observer.unparked(Unparked(self._mapping, key, len(done), free=False))
                    pending[-1:] = [rest] if rest else []
                case Bisect(first, second):
                    pending[-1:] = [second, first]
                case Retry(again, at):
                    pending[-1] = again
                    if not await self.door.unless_closed(partial(anyio.sleep, max(0.0, at - wall))):
                        return "closed"
                case _:
                    return why(outcome)
        return None

    def _call(self, batches: Batches, shard: str, records: Sequence[Record]) -> Call:
        fresh = [batches.envelope.rebuild(shard, record) for record in records]
        return replace(batches.call, records=fresh, event=envelope.event(fresh), shard=shard)

    async def _invoke(self, call: Call) -> StreamOutcome | None:
        if is_too_large(call.records):
            return TooLarge()
        if self._guarded and self._breaker and self._breaker.circuit.state is not CircuitState.CLOSED:
            return await self._guarded.invoke(call)
        return await self._dispatch.invoke(call)

    async def _tell_success(
        self,
        batches: Batches,
        attempt: _Attempt,
        done: Sequence[Record],
        witness: Witness | None,
        outcome: StreamOutcome,
    ) -> bool:
        """Tell of records that are done before they are removed; False when the door closed before."""
        if batches.on_success is None or witness is None or isinstance(outcome, TooLarge):
            return True
        attempt.outlet = attempt.outlet or Outlet(batches.on_success, self)
        delivery = batches.account().of(done, witness, outcome, failure.SUCCESS, self.world.wall())
        return await attempt.outlet.deliver_or_drop(delivery)

    async def _remove(self, key: str, entries: Sequence[SpoolEntry]) -> bool:
        """Drop what is done before anything else of its key is invoked; False when the door closed before."""
        tries = 0
        while True:
            try:
                await self._parking.remove(key, entries)
            except StoreError as error:
                pause = backoff(tries, self.world.chance())
                tries += 1
                text = f"handled records cannot be removed from the parked ones: {error}"
                self.observer.trouble(Trouble(self._mapping, text, pause))
                if not await self.door.unless_closed(partial(anyio.sleep, pause)):
                    return False
            else:
                return True

    # --- commands -------------------------------------------------------------------------------------------------------

    async def resume(self, key: str | None) -> tuple[Resumed, ...]:
        """Take up one key now, or all that are parked, and wait some time for what becomes of them.

        Raises PollerError for a key that is not parked, and while the mapping is paused.
        """
        if key is not None and key not in self._parking.keys:
            raise PollerError(
                f"{self._mapping} has no parked key {key!r}: poller status {self._mapping} shows those it has"
            )
        if not self.door.is_open:
            raise PollerError(
                f"it is paused, or its circuit breaker is open: first poller resume {self._mapping}"
            )
        asked = {one: self._ask(one) for one in (list(self._parking.keys) if key is None else [key])}
        self.wake()
        with anyio.move_on_after(PATIENCE):
            for attempt in asked.values():
                await attempt.ended.wait()
        return tuple(attempt.told(one) for one, attempt in asked.items())

    def _ask(self, key: str) -> _Attempt:
        if key not in self._attempts:
            self._set_due(key, 0.0)
        return self._asked.setdefault(key, _Attempt())

    # --- what it is doing -----------------------------------------------------------------------------------------------

    def load(self) -> Load:
        """What is at work now."""
        ways = [way for way in (self._dispatch, self._guarded) if way]
        return Load(
            in_flight_invocations=sum(way.in_flight_invocations for way in ways),
            in_flight_records=sum(way.in_flight_records for way in ways),
        )

    def status(self) -> ParkedStatus:
        """A snapshot; the keys that were parked first, one by one."""
        keys = self._parking.keys
        shown = list(islice(keys.items(), SHOWN))
        return ParkedStatus(
            keys=len(keys),
            records=sum(parked.entries for parked in keys.values()),
            bytes=sum(parked.size for parked in keys.values()),
            oldest=min((parked.since for parked in keys.values()), default=None),
            waiting=self._parking.obstacle if self._parking.waiting else "",
            first=tuple(
                ParkedKeyStatus(
                    key=key,
                    records=parked.entries,
                    bytes=parked.size,
                    since=parked.since,
                    error_type=parked.error_type,
                    error_message=parked.error_message,
                    doing=self._doing(key),
                )
                for key, parked in shown
            ),
        )

    def _doing(self, key: str) -> str:
        if attempt := self._attempts.get(key):
            waits = attempt.outlet.waiting if attempt.outlet else ""
            return waits or f"taken up, {attempt.records} records handled"
        due = self._schedule.due(key)
        if due is None:
            return "waits for poller resume"
        return f"next try in {max(0.0, due - anyio.current_time()):.0f} s"


def _text(error: FunctionError) -> str:
    return f"{error.error_type}: {error.error_message}" if error.error_type else error.error_message
