"""One shard read, many lanes: each lane is a reader of its own for the pipeline that works on it.

A record's key decides its lane, so the records of one key stay in order while lanes run beside each other. The lanes share one
reader: the first lane that has nothing to do reads on for all of them, and what belongs to others waits in their buffers. There
is one bound for all that is held of a shard: past it the shard is read no further until the oldest records are done, so a slow
key in the end slows its shard, and nothing is dropped. A batch that is filling goes then as it is: the oldest record may be in
it, and the whole shard would wait for its window. A read that fails is the failure of every lane, of those that come later too:
only a lane that has heard of it reads again, so that lanes which pause for different times do not add up.

The checkpoint is a contiguous prefix of the shard over all lanes (law 3): every record is tracked in the order of the shard
before a lane sees it, and settled in whatever order the lanes finish.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from poller.core.batch import size_of
from poller.core.lanes import split
from poller.core.progress import Progress
from poller.errors import AwsError, ShardGone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.model import Record, Shard
    from poller.ports import Reader

#: Records and bytes of one shard that may be held; what one read brings is always taken whole. Held is all from the oldest open
#: record onwards: what waits for a lane, what is worked on, and what was done before its turn.
HELD_RECORDS = 50_000
HELD_BYTES = 64 * 2**20
#: The most records of one read.
READ_RECORDS = 10_000


class Lane:
    """One lane, as the reader of its pipeline; see `poller.ports.Reader`."""

    redelivers = False

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.buffer: deque[Record] = deque()
        self.heard = 0
        """How many failed reads there were when it was last told of one."""

    def __repr__(self) -> str:
        return f"<Lane {len(self.buffer)} records wait>"

    @property
    def ended(self) -> bool:
        """True when the shard is closed and this lane has received all of its records."""
        return self._lanes.ended and not self.buffer

    @property
    def full(self) -> bool:
        """True while all that may be held of the shard is, and nothing of it waits for this lane."""
        return self._lanes.full and not self.buffer

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
        self.behind: float | None = None
        """As the reader says, if the last read came back: one that failed has not seen the end of the shard."""
        self._moved = moved
        self._progress: Progress[Record] = Progress()
        self._reading = False
        self._gone = False
        self._failure: AwsError | None = None
        self._failed_reads = 0
        # What lanes wait for: a read has ended, or there is room for one.
        self._change = anyio.Event()

    def __repr__(self) -> str:
        return f"<Lanes {len(self.lanes)}, {len(self._progress)} records open>"

    @property
    def open_records(self) -> int:
        """Records received and not done."""
        return len(self._progress)

    @property
    def waiting_records(self) -> int:
        """Records received that no lane has taken yet."""
        return sum(len(lane.buffer) for lane in self.lanes)

    @property
    def waiting_bytes(self) -> int:
        """Of these records. They are counted when somebody asks, which is less often than they come and go."""
        return sum(size_of(lane.buffer) for lane in self.lanes)

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
        """Return when `lane` has records, the shard has ended, a read brought nothing or filled the shard's room, or `wait`
        seconds have passed.

        Raises what the last read raised, once for each lane.
        """
        until = anyio.current_time() + wait
        was_full = self.full
        while not (lane.buffer or self.ended or (self.full and not was_full)):
            if self._failure is not None and lane.heard < self._failed_reads:
                lane.heard = self._failed_reads
                raise self._failure
            if self._reading or self.full:
                if not await self._change_before(until):
                    return
            elif not await self._read(lane, limit, until) or anyio.current_time() >= until:
                # Reads that bring something for others only must not keep this lane past its time.
                return

    @property
    def full(self) -> bool:
        """True while all that may be held is: nothing is read before the oldest records are done."""
        progress = self._progress
        return progress.held_records >= HELD_RECORDS or progress.held_bytes >= HELD_BYTES

    async def _change_before(self, until: float) -> bool:
        """Wait for what another lane does; False when nothing happened until then."""
        change = self._change
        with anyio.CancelScope(deadline=until):
            await change.wait()
        return change.is_set()

    async def _read(self, lane: Lane, limit: int, until: float) -> bool:
        """Read on for all lanes, called by one; False when that brought nothing."""
        self._reading = True
        try:
            wanted = min(limit * len(self.lanes), READ_RECORDS)
            records = await self.reader.receive(wanted, max(0.0, until - anyio.current_time()))
        except ShardGone:
            self._gone = True
            return False
        except AwsError as error:
            self._failure, self.behind = error, None
            self._failed_reads += 1
            lane.heard = self._failed_reads
            raise
        finally:
            self._reading = False
            self._wake()
        # Nothing is awaited between the reader's step forward and here: a cancellation cannot come between.
        self._failure, self.behind = None, self.reader.behind
        self._progress.track(records)
        for one, share in zip(self.lanes, split(records, len(self.lanes)), strict=True):
            one.buffer.extend(share)
        return bool(records)

    def take(self, lane: Lane, limit: int) -> list[Record]:
        """What waits for `lane`, up to `limit` records."""
        buffer = lane.buffer
        if len(buffer) <= limit:
            taken = list(buffer)
            buffer.clear()
        else:
            taken = [buffer.popleft() for _ in range(limit)]
        return taken

    def _wake(self) -> None:
        self._change.set()
        self._change = anyio.Event()

    # --- settling -------------------------------------------------------------------------------------------------------

    def settle(self, records: Sequence[Record]) -> None:
        """Note that `records`, the very objects that were received, are done."""
        was_full = self.full
        moved = self._progress.resolve(records)
        if moved is not None:
            self._moved(moved)
            if was_full and not self.full:
                self._wake()
