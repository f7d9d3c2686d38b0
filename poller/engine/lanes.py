"""One shard read, many lanes: each lane is a reader of its own for the pipeline that works on it.

A record's key decides its lane, so the records of one key stay in order while lanes run beside each other. The lanes share one
reader: the first lane that has nothing to do reads on for all of them, and what belongs to others waits in their buffers. There
is one bound for what waits in all of them: past it the shard is read no further until a lane has taken something, so a slow key
in the end slows its shard, and nothing is dropped. A read that fails is the failure of every lane that waits for it.

The checkpoint is a contiguous prefix of the shard over all lanes (law 3): every record is tracked in the order of the shard
before a lane sees it, and settled in whatever order the lanes finish.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from poller.core.lanes import split
from poller.core.progress import Progress
from poller.errors import AwsError, ShardGone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.model import Record, Shard
    from poller.ports import Reader

#: Records and bytes that may wait for the lanes of one shard; what one read brings is always taken whole.
BUFFER_RECORDS = 10_000
BUFFER_BYTES = 16 * 2**20


@dataclass(slots=True, eq=False)
class _Change:
    """Something that lanes wait for: a read has ended, or there is room for one."""

    event: anyio.Event = field(default_factory=anyio.Event)
    failure: AwsError | None = None
    """What the read raised."""


class Lane:
    """One lane, as the reader of its pipeline; see `poller.ports.Reader`."""

    redelivers = False

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.buffer: deque[Record] = deque()

    def __repr__(self) -> str:
        return f"<Lane {len(self.buffer)} records wait>"

    @property
    def ended(self) -> bool:
        """True when the shard is closed and this lane has received all of its records."""
        return self._lanes.ended and not self.buffer

    @property
    def behind(self) -> float | None:
        return self._lanes.behind

    @property
    def doing(self) -> str:
        return self._lanes.reader.doing

    @property
    def children(self) -> tuple[Shard, ...]:
        return self._lanes.reader.children

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        if not self.buffer:
            await self._lanes.read_for(self, limit, wait)
        return self._lanes.take(self, limit)

    async def ack(self, records: Sequence[Record]) -> int:
        self._lanes.settle(records)
        return len(records)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Nothing: what is not acked is before no checkpoint, and is read again by whoever reads the shard next."""


class Lanes:
    """Splits what `reader` brings over `count` lanes, and calls `moved` with the last record of the settled prefix."""

    def __init__(self, reader: Reader, count: int, moved: Callable[[Record], None]) -> None:
        self.reader = reader
        self.lanes = [Lane(self) for _ in range(count)]
        self.waiting_records = 0
        self.waiting_bytes = 0
        self.behind: float | None = None
        """As the reader says, if the last read came back: one that failed has not seen the end of the shard."""
        self._moved = moved
        self._progress: Progress[Record] = Progress()
        self._reading = False
        self._gone = False
        self._change = _Change()

    def __repr__(self) -> str:
        return f"<Lanes {len(self.lanes)}, {len(self._progress)} records open>"

    @property
    def open_records(self) -> int:
        """Records received and not done."""
        return len(self._progress)

    @property
    def oldest(self) -> Record | None:
        """The first record that is not done."""
        return self._progress.oldest

    @property
    def ended(self) -> bool:
        """True when the shard has no more records to read: it is closed, or the stream has removed it."""
        return self.reader.ended or self._gone

    @property
    def drained(self) -> bool:
        """True when the shard has ended and every record of it is done."""
        return self.ended and not self._progress

    # --- reading --------------------------------------------------------------------------------------------------------

    async def read_for(self, lane: Lane, limit: int, wait: float) -> None:
        """Return when `lane` has records, the shard has ended, a read brought nothing, or `wait` seconds have passed."""
        until = anyio.current_time() + wait
        while not (lane.buffer or self.ended):
            if self._reading or self._full:
                if not await self._change_before(until):
                    return
            elif not await self._read(limit, until) or anyio.current_time() >= until:
                # Reads that bring something for others only must not keep this lane past its time.
                return

    @property
    def _full(self) -> bool:
        return self.waiting_records >= BUFFER_RECORDS or self.waiting_bytes >= BUFFER_BYTES

    async def _change_before(self, until: float) -> bool:
        """Wait for what another lane does; raises what its read raised. False when nothing happened until then."""
        change = self._change
        with anyio.CancelScope(deadline=until):
            await change.event.wait()
        if change.failure:
            raise change.failure
        return change.event.is_set()

    async def _read(self, limit: int, until: float) -> bool:
        """Read on for all lanes; False when that brought nothing."""
        self._reading = True
        try:
            wanted = min(limit * len(self.lanes), BUFFER_RECORDS)
            records = await self.reader.receive(wanted, max(0.0, until - anyio.current_time()))
        except ShardGone:
            self._gone = True
            return False
        except AwsError as error:
            self._change.failure, self.behind = error, None
            raise
        finally:
            self._reading = False
            self._wake()
        # Nothing is awaited between the reader's step forward and here: a cancellation cannot come between.
        self.behind = self.reader.behind
        self._progress.track(records)
        for lane, share in zip(self.lanes, split(records, len(self.lanes)), strict=True):
            lane.buffer.extend(share)
        self.waiting_records += len(records)
        self.waiting_bytes += sum(record.size for record in records)
        return bool(records)

    def take(self, lane: Lane, limit: int) -> list[Record]:
        """What waits for `lane`, up to `limit` records."""
        buffer = lane.buffer
        if len(buffer) <= limit:
            taken = list(buffer)
            buffer.clear()
        else:
            taken = [buffer.popleft() for _ in range(limit)]
        was_full = self._full
        self.waiting_records -= len(taken)
        self.waiting_bytes -= sum(record.size for record in taken)
        if was_full and not self._full:
            self._wake()
        return taken

    def _wake(self) -> None:
        self._change.event.set()
        self._change = _Change()

    # --- settling -------------------------------------------------------------------------------------------------------

    def settle(self, records: Sequence[Record]) -> None:
        """Note that `records`, the very objects that were received, are done."""
        moved = self._progress.resolve(records)
        if moved is not None:
            self._moved(moved)
