"""One shard that is read under a lease: a tenant of it.

A tenancy begins when its lease is claimed, and waits first until a former one of the same shard has ended. It is *drained* when
the lease is to be handed over: no more is received, what is at work is finished. It is *evicted* when the lease is gone: all of
it is cancelled. Between the two lies the fence, which lets no invocation begin once the lease could be another worker's; that
holds even for a process that was stopped for longer than it knows of.

*Progress.* A reader that neither receives nor works, and waits for nothing that is known, for `STUCK` seconds is stuck: it gets
no renewal, so that its shard goes to somebody else. A read that fails is no progress either: others may be able to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from poller.core.batch import size_of
from poller.core.meter import Meter
from poller.engine.door import InnerDoor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.engine.door import Door
    from poller.engine.reading import Reading
    from poller.model import Checkpoint, Lease, Record, Shard
    from poller.ports import Reader

#: Seconds without progress after which a reader is stuck; a long poll lasts 20.
STUCK = 60.0


class Watched:
    """A reader that knows when it has last received, and how much."""

    redelivers = False
    full = False

    def __init__(self, reader: Reader, tenancy: Tenancy) -> None:
        self._reader = reader
        self._tenancy = tenancy

    @property
    def ended(self) -> bool:
        return self._reader.ended

    @property
    def behind(self) -> float | None:
        return self._reader.behind

    @property
    def doing(self) -> str:
        return self._reader.doing

    @property
    def children(self) -> tuple[Shard, ...]:
        return self._reader.children

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        records = await self._reader.receive(limit, wait)
        self._tenancy.received(size_of(records))
        return records

    async def ack(self, records: Sequence[Record]) -> int:
        return await self._reader.ack(records)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        await self._reader.release(records, delay)


class Tenancy:
    """See `poller.engine.holding.Tenant`."""

    def __init__(
        self,
        lease: Lease,
        door: Door,
        holds: Callable[[], bool],
        newest: Callable[[], Checkpoint],
        reading: Callable[[], Reading | None],
        wall: Callable[[], float],
        left: Callable[[], None],
        former: Tenancy | None = None,
    ) -> None:
        """`door` is the mapping's, `holds` says whether the lease is held for certain, `newest` how far the shard is done, and
        `reading` is what reads it at the moment. `left` is called when it is evicted. `former` is waited for."""
        self.lease = lease
        self.door = InnerDoor(door, self.fence)
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        """Nothing of it runs any more."""
        self.draining = False
        self.evicted = False
        self.finishing = False
        """All of the shard is done; its children are being taken in."""
        self.completing = False
        """So are they; the lease is about to be released for good."""
        self.former = former
        self._mapping_door = door
        self._holds = holds
        self._newest = newest
        self._reading = reading
        self._wall = wall
        self._left = left
        self._moved = anyio.current_time()
        self._meter = Meter(lease.load, self._moved)
        # As it was when the lease was gone: the mapping's newest may be another tenancy's by then.
        self._last: Checkpoint | None = None

    def __repr__(self) -> str:
        return f"<Tenancy of {self.lease.shard}{', draining' if self.draining else ''}>"

    def fence(self) -> bool:
        """Whether anything more of the shard may be begun."""
        return not self.evicted and self._holds()

    @property
    def is_over(self) -> bool:
        """Whether it is evicted and nothing of it runs any more, nor of one before it."""
        return self.evicted and self.ended.is_set() and (self.former is None or self.former.is_over)

    async def over(self) -> None:
        """Return when nothing of it runs any more, nor of one before it."""
        await self.ended.wait()
        if self.former:
            await self.former.over()

    def received(self, size: int) -> None:
        """A receive has come back."""
        self._moved = anyio.current_time()
        self._meter.count(size)

    # --- what its keeper asks -------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        if self.former is not None:
            return self.lease.checkpoint
        return self._newest() if self._last is None else self._last

    def load(self) -> float | None:
        return self._meter.rate(anyio.current_time())

    def lag(self) -> float | None:
        reading = self._reading() if self.former is None else None
        return None if reading is None else reading.iterator_age(self._wall())

    def progresses(self) -> bool:
        if self._is_known_to_wait():
            self._moved = anyio.current_time()
        return anyio.current_time() - self._moved < STUCK

    def _is_known_to_wait(self) -> bool:
        if self.former is not None or not self._mapping_door.is_open:
            return True
        reading = self._reading()
        return reading is not None and reading.is_busy

    async def drain(self) -> None:
        self.draining = True
        reading = self._reading() if self.former is None else None
        if reading is not None:
            reading.quiet()
        elif not self.finishing:
            self.scope.cancel()
        await self.ended.wait()

    def evict(self) -> None:
        self._last = self.checkpoint()
        self.evicted = True
        if not self.completing:
            self.scope.cancel()
        self._left()
