"""Keeps received messages hidden for as long as poller has them.

A message is hidden until its *visibility timeout* has run out; an extension starts the timeout again. The laws:

* A message that is *held* is extended when half of its timeout has passed, together with all that are due soon; when that
  fails, again every tenth of the timeout, so that one lost request does no harm.
* SQS hides a message for 12 hours from its receive at most. The extension that reaches this limit is the last one.
* An extension that is on its way can arrive after what is sent next. It cannot hurt a deletion, but it would hide again
  what was just given back: so whoever gives back waits for it (`landed`), and it is not cut off by a cancellation.
* The queue's timeout may be changed at any time, so it is read again once a minute as long as something is held.
* One timer serves all messages, and none runs while nothing is held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from poller.errors import AwsError
from poller.sources._sqs_batch import CALL_TIMEOUT, in_parallel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from poller.model import Record
    from poller.sources._sqs_batch import BatchRequests

#: Seconds; the longest that SQS lets one receive of a message last.
LONGEST_HOLD = 12 * 3600.0
#: Seconds after which the queue's visibility timeout is read again.
TIMEOUT_AGE = 60.0
#: Part of the timeout after which a failed extension is repeated.
PAUSE = 0.1
#: Part of the timeout, and seconds at most, by which an extension may come early to share a request.
EARLY = 0.1
EARLIEST = 5.0
#: Seconds; a server under load may take that long, and giving up on it makes the load worse.
SHORTEST_PATIENCE = 2.0
#: Seconds that `stop` waits for extensions on their way.
LANDING_TIME = 1.0


@dataclass(slots=True, eq=False)
class Hold:
    """The messages of one receive that are not settled yet. Times are of the loop's clock, in seconds."""

    since: float
    """Not later than SQS began to count the 12 hours."""
    due: float
    """When to extend; never again when infinite."""
    records: dict[str, Record]
    """By receipt handle."""


@dataclass(slots=True, eq=False)
class Flight:
    """One extension on its way."""

    receipts: frozenset[str]
    landed: anyio.Event


class Visibility:
    """The messages of one queue that are to stay hidden."""

    def __init__(
        self,
        timeout: float,
        batch: BatchRequests,
        read_timeout: Callable[[float], Awaitable[float]],
        trouble: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.timeout = timeout
        self._batch = batch
        self._read_timeout = read_timeout
        self._trouble = trouble
        self._clock = clock
        self._read_again_at = self._clock() + TIMEOUT_AGE
        self._holds: dict[str, Hold] = {}
        self._held = anyio.Event()
        self._flights: set[Flight] = set()
        self._requests = anyio.CancelScope()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._holds)

    @property
    def records(self) -> list[Record]:
        """All that is held."""
        return [record for hold in dict.fromkeys(self._holds.values()) for record in hold.records.values()]

    # --- holding --------------------------------------------------------------------------------------------------------

    def hold(self, records: Sequence[Record], asked_at: float) -> None:
        """Keep what a receive that was sent at `asked_at` has just brought."""
        by_receipt = {record.receipt: record for record in records}
        if not self._holds.keys().isdisjoint(by_receipt):
            # A receive that was asked for again may bring what is held already.
            self.let_go(records)
        hold = Hold(asked_at, self._clock() + self.timeout / 2, by_receipt)
        for receipt in by_receipt:
            self._holds[receipt] = hold
        if not self._held.is_set():
            self._held.set()

    def let_go(self, records: Iterable[Record]) -> None:
        """Extend these no more."""
        for record in records:
            hold = self._holds.pop(record.receipt, None)
            if hold is not None:
                del hold.records[record.receipt]

    async def landed(self, records: Iterable[Record]) -> None:
        """Wait until no extension of `records`, which were let go, is on its way."""
        receipts = [record.receipt for record in records]
        for flight in [flight for flight in self._flights if not flight.receipts.isdisjoint(receipts)]:
            await flight.landed.wait()

    async def stop(self) -> None:
        """Send no more extensions, and wait a moment for those on their way."""
        self._stopped = True
        with anyio.move_on_after(LANDING_TIME):
            for flight in list(self._flights):
                await flight.landed.wait()
        self._requests.cancel()

    # --- extending ------------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Extend what is held, for ever."""
        while True:
            await self._held.wait()
            earliest = min((hold.due for hold in self._holds.values()), default=0.0)
            await anyio.sleep_until(min(earliest, self._read_again_at))
            if self._holds:
                await self._work()
            else:
                self._held = anyio.Event()

    async def _work(self) -> None:
        with anyio.CancelScope(shield=True) as self._requests:
            await self._extend_due()
        if self._clock() >= self._read_again_at:
            await self._read_timeout_again()

    async def _extend_due(self) -> None:
        now = self._clock()
        soon = now + min(self.timeout * EARLY, EARLIEST)
        due = [hold for hold in dict.fromkeys(self._holds.values()) if hold.due <= soon]
        for seconds, records in self._plan(due, now).items():
            await in_parallel(partial(self._extend, seconds), records)

    def _plan(self, due: Iterable[Hold], now: float) -> dict[int, list[Record]]:
        """Which messages to hide for how many seconds; assumes that it will succeed."""
        plan: dict[int, list[Record]] = {}
        for hold in due:
            left = hold.since + LONGEST_HOLD - now
            seconds = int(min(self.timeout, left))
            hold.due = math.inf if left <= self.timeout else now + max(seconds / 2, 0.5)
            if seconds > 0:
                plan.setdefault(seconds, []).extend(hold.records.values())
        return plan

    async def _extend(self, seconds: int, planned: Sequence[Record]) -> None:
        # Some may have been settled while this request waited for its turn.
        records = [record for record in planned if record.receipt in self._holds]
        if self._stopped or not records:
            return
        flight = Flight(frozenset(record.receipt for record in records), anyio.Event())
        self._flights.add(flight)
        try:
            answers = await self._batch.once(
                "ChangeMessageVisibilityBatch",
                records,
                {"VisibilityTimeout": seconds},
                self._patience,
            )
        except AwsError as error:
            self._repeat(records, str(error))
        else:
            self.let_go(answers.stale)
            if answers.complaint:
                self._repeat(answers.undone, answers.complaint)
        finally:
            self._flights.discard(flight)
            flight.landed.set()

    @property
    def _patience(self) -> float:
        """Seconds for a request: two may go unanswered before the messages show, unless the timeout is too short for that."""
        return max(min(SHORTEST_PATIENCE, self.timeout / 2), min(CALL_TIMEOUT, self.timeout / 8), 0.5)

    def _repeat(self, records: Iterable[Record], problem: str) -> None:
        self._trouble(problem)
        due = self._clock() + max(self.timeout * PAUSE, 0.5)
        for record in records:
            if (hold := self._holds.get(record.receipt)) is not None:
                del hold.records[record.receipt]
                self._holds[record.receipt] = Hold(hold.since, due, {record.receipt: record})

    async def _read_timeout_again(self) -> None:
        self._read_again_at = self._clock() + TIMEOUT_AGE
        before = self.timeout
        try:
            self.timeout = await self._read_timeout(self._patience)
        except AwsError as error:
            self._trouble(str(error))
        if self.timeout < before:
            # What was received since the change shows earlier than we thought.
            for hold in self._holds.values():
                hold.due = min(hold.due, self._clock())
