"""Delivers later, and in order, what destinations did not take when it was time: what waits for them in the spool.

There is one line for each destination, whose life is::

    none --> a put is on its way --> something is stored: the destination is taken to be down, so what comes for it goes behind
     ^                                |      that; a task sends the oldest, and removes it when it was taken
     '------ nothing is there --------'

* An entry is removed after its destination has taken it. A kill between the two sends it again, with the same id.
* Only the spool knows what is stored, for what is put twice is there once. So a line ends exactly when a look that found
  nothing began and ended with no put on its way.
* A destination that is down is tried with growing pauses, and holds up no other. One that cannot be made any more waits
  likewise and says so, as does an entry that cannot be read. What turns out to be too large for its destination is passed over:
  it stays, is shown, and is tried again when the mapping is opened anew. Nothing that tells of a failure is thrown away.
* The spool is bounded. Who finds it full waits for room; they are let go one after the other, as room is made.

It works for as long as its mapping is open, paused or not. When that ends, the delivery in flight may still come to its end.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from poller.core import spooled
from poller.core.retry import backoff
from poller.engine.door import Door
from poller.engine.status import SpoolStatus
from poller.errors import DocumentTooLarge, PollerError, StoreError
from poller.model import Delivered, DeliveryFailed, Spooled, Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import TaskGroup

    from poller.engine.invoker import World
    from poller.model import Delivery, SpoolEntry, SpoolLimits
    from poller.ports import Destination, Observer, Spool


@dataclass(frozen=True, slots=True)
class SpoolPlan:
    """What a mapping says about its spool."""

    mapping: str
    limits: SpoolLimits
    open: Callable[[], Awaitable[Spool]]
    """Raises StoreError."""
    destination: Callable[[str], Destination]
    """Makes the destination of a name, which need not be one that the mapping has now; raises PollerError."""


@dataclass(slots=True, eq=False)
class _Line:
    """What is spooled for one destination."""

    entries: int = 0
    size: int = 0
    oldest: float = 0.0
    why: str = ""
    """What the destination said last."""
    incoming: int = 0
    """Puts on their way."""
    puts: int = 0
    """How many have begun."""
    draining: bool = False
    sent: int | None = None
    """The number of an entry that was taken by the destination, and is to be removed."""
    passed: int = 0
    """The number of the last entry that turned out to be too large for the destination, and stays."""
    stuck: str = ""
    """Why."""
    destination: Destination | None = None


class Spooler:
    """The spooled deliveries of one mapping."""

    def __init__(self, plan: SpoolPlan, observer: Observer, world: World) -> None:
        self.obstacle = ""
        """Why the last put was not taken."""
        self._plan = plan
        self._observer = observer
        self._world = world
        self._lines: dict[str, _Line] = {}
        self._spool: Spool
        self._tasks: TaskGroup
        self._door = Door()
        self._full = self._broken = False
        self._turn = anyio.Lock()
        # Replaced when what they stand for has happened once more.
        self._room = anyio.Event()
        self._landed = anyio.Event()

    def __repr__(self) -> str:
        return (
            f"<Spooler {self._plan.mapping}: {sum(line.entries for line in self._lines.values())} deliveries>"
        )

    def status(self) -> tuple[SpoolStatus, ...]:
        """What waits, a line for each destination."""
        return tuple(
            SpoolStatus(name, line.entries, line.size, line.oldest, line.why or line.stuck)
            for name, line in self._lines.items()
            if line.entries
        )

    # --- life -----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Deliver what an earlier process has left, and what is put, until this is left. Raises StoreError."""
        self._spool = await self._plan.open()
        self._door, self._lines = Door(), {}
        self._full = self._broken = False
        await self._count()
        async with anyio.create_task_group() as self._tasks:
            for name, line in self._lines.items():
                self._begin(name, line)
            try:
                yield
            finally:
                self._door.close()

    def _begin(self, name: str, line: _Line) -> None:
        if self._door.is_open and not line.draining:
            line.draining = True
            self._tasks.start_soon(self._drain, name, line)

    async def _count(self) -> None:
        """Bring the figures of all lines up to date; raises StoreError."""
        totals = await self._spool.totals(self._plan.mapping, "delivery")
        found = {one.key: one for one in totals.get(self._plan.mapping, ())}
        for name in found.keys() - self._lines.keys():
            self._lines[name] = _Line()
        for name, line in self._lines.items():
            one = found.get(name)
            line.entries, line.size, line.oldest = (one.entries, one.size, one.oldest) if one else (0, 0, 0.0)

    # --- putting --------------------------------------------------------------------------------------------------------

    def holds(self, name: str) -> bool:
        """Whether something is stored for the destination `name`, so that what comes for it has to go behind that."""
        line = self._lines.get(name)
        return line is not None and line.entries > 0

    async def put(self, name: str, delivery: Delivery, why: str) -> bool:
        """Spool `delivery` for the destination `name`, which last said `why`; False when it cannot be now."""
        line = self._lines.setdefault(name, _Line())
        line.why = why or line.why
        line.incoming += 1
        line.puts += 1
        try:
            taken = await self._put(line, spooled.entry(delivery, name, self._world.wall()))
        finally:
            line.incoming -= 1
            self._landed.set()
            self._landed = anyio.Event()
            # Also when it was not taken, or cut short: a look finds what there is.
            self._begin(name, line)
        if taken:
            self._observer.spooled(
                Spooled(delivery.mapping, delivery.shard, delivery.records, delivery.condition, line.why)
            )
        return taken

    async def _put(self, line: _Line, entry: SpoolEntry) -> bool:
        limits = self._plan.limits
        try:
            taken = await self._spool.put([entry], limits)
        except StoreError as error:
            self._broken = True
            self.obstacle = f"the spool cannot be written ({error})"
            return False
        self._broken = False
        if not taken:
            self._full = True
            self.obstacle = f"the spool is full ({limits.entries:,} entries, {limits.size / 2**20:,.0f} MB)"
            return False
        self._make_room()
        line.entries += 1
        with suppress(StoreError):
            await self._count()
        return True

    async def room(self, name: str, longest: float, *, puts: bool) -> None:
        """Return when there may be room again for the destination `name`, or after `longest` seconds.

        `puts` says that a put follows even if nothing waits for the destination any more.
        """
        with anyio.move_on_after(longest):
            if self._broken:
                await anyio.sleep_forever()
            async with self._turn:
                while self._full:
                    await self._room.wait()
                # Until whoever is let go has found out, with its put, whether there is room for more.
                self._full = puts or self.holds(name)

    def why(self, name: str) -> str:
        """What the destination `name` said last; empty when nothing waits for it."""
        line = self._lines.get(name)
        return line.why if line else ""

    def _make_room(self) -> None:
        self._full = False
        self._room.set()
        self._room = anyio.Event()

    # --- delivering -----------------------------------------------------------------------------------------------------

    async def _drain(self, name: str, line: _Line) -> None:
        """Deliver what waits for one destination until nothing does, or the mapping is closed."""
        tries = 0
        while self._door.is_open:
            try:
                await self._remove_sent(line)
                puts = line.puts
                entries = await self._spool.take(
                    self._plan.mapping, "delivery", key=name, after=line.passed, limit=1
                )
                if entries:
                    await self._deliver(name, line, entries[0])
                    await self._remove_sent(line)
                    tries = 0
                elif line.incoming or (line.passed and line.puts == puts):
                    await self._door.unless_closed(self._landed.wait)
                elif line.puts == puts:
                    del self._lines[name]
                    return
            except PollerError as error:
                pause = backoff(tries, self._world.chance())
                tries += 1
                self._tell_failure(line, error, pause)
                await self._door.unless_closed(partial(anyio.sleep, pause))

    async def _remove_sent(self, line: _Line) -> None:
        if line.sent is not None:
            await self._spool.remove(self._plan.mapping, [line.sent])
            line.sent = None
            self._make_room()
            await self._count()

    async def _deliver(self, name: str, line: _Line, entry: SpoolEntry) -> None:
        delivery = spooled.delivery(entry)
        if line.destination is None:
            line.destination = self._plan.destination(name)
        try:
            await line.destination.send(delivery)
        except DocumentTooLarge as error:
            self._observer.delivery_failed(
                DeliveryFailed(
                    delivery.mapping, delivery.shard, str(error), None, delivery.succeeded, spooled=True
                )
            )
            if not delivery.succeeded:
                line.passed, line.stuck, line.why = entry.number, str(error), ""
                return
        else:
            line.why = ""
            self._observer.delivered(
                Delivered(
                    delivery.mapping,
                    delivery.shard,
                    delivery.records,
                    delivery.condition,
                    delivery.succeeded,
                )
            )
        line.sent = entry.number

    def _tell_failure(self, line: _Line, error: PollerError, pause: float) -> None:
        line.why = str(error)
        # What it is made of may have been replaced meanwhile, such as a function by a reload.
        line.destination = None
        if isinstance(error, StoreError):
            self._observer.trouble(Trouble(self._plan.mapping, line.why, pause))
        else:
            self._observer.delivery_failed(
                DeliveryFailed(self._plan.mapping, "", line.why, pause, spooled=True)
            )
