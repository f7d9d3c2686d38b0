"""The records of one shard on their way through a replay: what a task finds is handed out at a pace, and followed to its end.

A task of the reader's own looks for records and puts them in; whoever receives takes them out, as whole groups as far as they
fit, so that the records of one message share a batch. There is room for so many, and past that nothing more is looked for.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from poller.core.batch import size_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poller.core.pace import Allowance
    from poller.core.replay import Tally
    from poller.errors import AwsError
    from poller.model import Record, Shard

#: Records and bytes that wait to be received; what is put in at once is taken whole.
HELD_RECORDS = 2_000
HELD_BYTES = 16 * 2**20


class Replayed:
    """One shard of a replay, as `poller.ports.Reader`."""

    redelivers = False
    full = False
    behind: float | None = None
    children: tuple[Shard, ...] = ()

    def __init__(self, allowance: Allowance) -> None:
        self.doing = "reading"
        self._allowance = allowance
        self._groups: deque[Sequence[Record]] = deque()
        self._records = 0
        self._bytes = 0
        self._failure: AwsError | None = None
        self._finished = False
        self._change = anyio.Event()

    def __repr__(self) -> str:
        return f"<Replayed {self.doing}: {self._records} records wait>"

    # --- the task that looks for records ----------------------------------------------------------------------------------

    async def put(self, group: Sequence[Record]) -> None:
        """Offer records that belong together, as soon as there is room for more."""
        while self._records >= HELD_RECORDS or self._bytes >= HELD_BYTES:
            await self._change.wait()
        if group:
            self._groups.append(group)
            self._records += len(group)
            self._bytes += size_of(group)
            self._stir()

    async def fail(self, error: AwsError) -> None:
        """Let whoever receives next hear of `error`; return when somebody has."""
        self._failure = error
        self._stir()
        while self._failure is error:
            await self._change.wait()

    def finish(self) -> None:
        """There will be no more."""
        self._finished = True
        self._stir()

    def _stir(self) -> None:
        self._change.set()
        self._change = anyio.Event()

    # --- the reader -----------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._finished and not self._groups

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """As the port says; no more than the allowance grants."""
        deadline = anyio.current_time() + wait
        while True:
            now = anyio.current_time()
            if (pause := self._allowance.wait(now)) > 0:
                self.doing = "held to its rate"
                await anyio.sleep_until(min(now + pause, deadline))
                if now + pause > deadline:
                    return ()
                continue
            self.doing = "reading"
            if self._groups:
                return self._take(limit)
            if self._failure is not None:
                error, self._failure = self._failure, None
                self._stir()
                raise error
            if self._finished:
                await anyio.lowlevel.checkpoint()
                return ()
            change = self._change
            with anyio.CancelScope(deadline=deadline):
                await change.wait()
            if not change.is_set():
                return ()

    def _take(self, limit: int) -> list[Record]:
        taken: list[Record] = []
        while self._groups and len(taken) + len(self._groups[0]) <= limit:
            taken += self._groups.popleft()
        if not taken:
            first = self._groups.popleft()
            taken = list(first[:limit])
            self._groups.appendleft(first[limit:])
        self._records -= len(taken)
        self._bytes -= size_of(taken)
        self._allowance.spend(len(taken), anyio.current_time())
        self._stir()
        return taken

    async def ack(self, records: Sequence[Record]) -> int:
        """Nothing to do: what is done is told by the prefix of the shard that is."""
        return len(records)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Nothing to do: a replay that goes on reads them again."""


class Course:
    """The records of one shard in the order in which they were put in, and how far they are done."""

    def __init__(self, tally: Tally) -> None:
        self.put = 0
        """Records so far."""
        self.done = 0
        """Of these, the first so many are done."""
        self._tally = tally
        self._open: deque[Record] = deque()
        # Of open records only, so that it stays small however long the replay is.
        self._failed: set[str] = set()

    def __repr__(self) -> str:
        return f"<Course {self.done}/{self.put} done, {len(self._failed)} failed among the open ones>"

    def add(self, record: Record) -> None:
        """The next record."""
        self._open.append(record)
        self.put += 1

    def failed(self, ids: Iterable[str]) -> None:
        """Open records with these ids have failed for good."""
        self._failed.update(ids)

    def passed(self, record: Record) -> None:
        """Everything up to and including `record`, the very object, is done."""
        while True:
            first = self._open.popleft()
            self.done += 1
            if first.id not in self._failed:
                self._tally.succeeded += 1
            elif not (self._open and self._open[0].id == first.id):
                # The records inside an aggregate share an id, and follow each other.
                self._failed.discard(first.id)
            if first is record:
                break
