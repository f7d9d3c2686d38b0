"""All shards of one mapping on a stream: found, read in the order of their descent, and remembered.

`core.shards.ShardTree` says which shards may be read; this asks the source for them, opens a reader for each that is ready, and
runs one pipeline a lane over it. The life of a shard here::

    listed --> its first checkpoint saved --> waits for its parents --> reading <--> cannot be opened: tried again
                                                                          |
                             forgotten <-- no longer listed <-- finished <'  closed, and every record of it is done

* A shard that has ended names its children, or the next listing does (it alone tells of a parent of theirs that is not known
  here): so the stream is listed again at once, then after growing pauses, up to one listing in `DISCOVERY` seconds.
* Trouble of one shard is its own: it is tried again with growing pauses while the others go on. A bug is the mapping's.
* Progress is noted whenever the settled prefix of a shard moves, and written by the `Checkpointer`. Leaving `opened` writes
  what is noted, for up to `flush_timeout` seconds; what is not written then is repeated at the next start.

Closing, opening and quietening go to all pipelines, which share one door. Where keys are parked, all shards share one
`Parking`, and one `Unparking` beside them takes up what is parked, also while no shard brings anything.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import anyio

from poller.core.retry import backoff
from poller.core.shards import ShardTree, held_up
from poller.engine.breaker import Breaker
from poller.engine.checkpointer import Checkpointer
from poller.engine.door import Door
from poller.engine.health import Health
from poller.engine.parking import Parking
from poller.engine.reading import Reading
from poller.engine.status import IDLE, ShardStatus
from poller.engine.unparking import Unparking
from poller.errors import PollerError, ShardGone, StoreError
from poller.model import Trimmed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence

    from anyio.abc import TaskGroup

    from poller.core.breaker import CircuitPolicy
    from poller.core.shards import StartingPosition
    from poller.engine.invoker import Invoker
    from poller.engine.parking import ParkingPlan
    from poller.engine.pipeline import Pipeline, Plan
    from poller.engine.status import Load
    from poller.engine.stream_work import Batches
    from poller.model import Checkpoint, Shard, StartAt
    from poller.ports import CheckpointStore, Reader, Source, Spool

#: Seconds between two listings of a stream on which nothing has ended.
DISCOVERY = 60.0
#: Shards that are opened at a time: a thousand at once would time out waiting for each other.
OPENING = 40
#: Seconds from the end of a shard to the second listing; the first comes at once.
DISCOVERY_AT_END = 1.0


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What a mapping says about a stream."""

    plan: Plan
    batches: Callable[[str], Batches]
    """What to do with the batches of a shard, by its id."""
    lanes: int
    """Batches of one shard in flight."""
    position: StartingPosition
    timestamp: float
    """Unix time, for AT_TIMESTAMP."""
    flush_timeout: float
    """Seconds in which the last checkpoints are written."""
    circuit: CircuitPolicy | None = None
    parking: ParkingPlan | None = None
    """None where no key is ever parked."""


class ShardKeeper:
    """Runs one mapping on a stream; see `poller.engine.child.Runner`."""

    circuit = None

    def __init__(
        self,
        plan: StreamPlan,
        source: Source,
        store: CheckpointStore,
        invoker: Invoker,
        spool: Spool | None = None,
    ) -> None:
        """`spool` is there where the plan has parking."""
        name, observer = plan.plan.name, invoker.observer
        self.plan = plan
        self.invoker = invoker
        self.door = Door()
        self.breaker = Breaker(name, plan.circuit, self.door, invoker) if plan.circuit else None
        self.health = Health(name, observer)
        self.checkpoints: dict[str, Checkpoint] = {}
        """The newest of each shard, saved or not."""
        self._name = name
        self._source = source
        self._store = store
        self._world = invoker.world
        self._checkpointer = Checkpointer(name, store, observer, self._world)
        self.parking: Parking | None = None
        self.unparking: Unparking | None = None
        if plan.parking and spool:
            self.parking = Parking(plan.parking, spool, observer, self._world)
            self.unparking = Unparking(
                self.parking, plan.batches, plan.plan.limits, invoker, self.door, self.health, self.breaker
            )
        self._tree = ShardTree({}, plan.position, plan.timestamp)
        # First checkpoints that are not saved yet, in their order; one saves them at a time.
        self._first: dict[str, Checkpoint] = {}
        self._saving_first = anyio.Lock()
        self._reading: dict[str, Reading] = {}
        # Shards that were begun and have no reader at the moment, and why.
        self._opening: dict[str, str] = {}
        self._opening_places = anyio.Semaphore(OPENING)
        self._tasks: TaskGroup | None = None
        self._quieted = anyio.Event()
        self._ended = anyio.Event()

    def __repr__(self) -> str:
        return f"<ShardKeeper {self._name}: {self._tree!r}>"

    def lanes(self) -> int:
        """How many there are over all shards that are being read: each can have one invocation in flight."""
        return sum(len(reading.pipelines) for reading in self._reading.values())

    # --- life -----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ShardKeeper]:
        """Take up the checkpoints and the shards as they are now; on leaving, write what was noted.

        Raises StoreError and AwsError.
        """
        self.checkpoints = await self._load()
        self._tree = ShardTree(self.checkpoints, self.plan.position, self.plan.timestamp)
        if self.parking:
            await self.parking.open()
        await self._learn(await self._source.shards())
        try:
            yield self
        finally:
            with anyio.move_on_after(self.plan.flush_timeout, shield=True):
                await self._leave()

    async def _load(self) -> dict[str, Checkpoint]:
        """What is known of the mapping's shards."""
        return dict(await self._store.load(self._name))

    async def _leave(self) -> None:
        """Write what is not written yet; nothing runs any more."""
        await self._checkpointer.flush()

    async def run(self) -> None:
        """Work until quiet and drained."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._checkpointer.run)
            try:
                async with anyio.create_task_group() as self._tasks:
                    background.start_soon(self._discover)
                    if self.unparking:
                        self._tasks.start_soon(self.unparking.run)
                    self._begin_ready()
                    await self._quieted.wait()
            finally:
                self._tasks = None
            background.cancel_scope.cancel()

    def close(self) -> None:
        """Receive no more; what is at work goes on."""
        self.door.close()
        for pipeline in self._pipelines():
            pipeline.close()

    def open(self) -> None:
        """Receive again after `close`."""
        if not self._quieted.is_set():
            self.door.open()
            for pipeline in self._pipelines():
                pipeline.open()
            if self.unparking:
                self.unparking.wake()

    def quiet(self) -> None:
        """Receive no more, for good; `run` returns when what is at work is done."""
        self.door.close()
        for reading in self._reading.values():
            reading.quiet()
        if self.unparking:
            self.unparking.quiet()
        self._quieted.set()

    def _pipelines(self) -> Iterable[Pipeline]:
        return (pipeline for reading in self._reading.values() for pipeline in reading.pipelines)

    # --- which shards there are -----------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        pause = DISCOVERY
        while True:
            # So long after the last end of a shard that no listing is from before it.
            calm = pause == DISCOVERY
            with anyio.move_on_after(pause) as waiting:
                await self._ended.wait()
            if waiting.cancelled_caught:
                pause = min(DISCOVERY, pause * 2)
            else:
                self._ended = anyio.Event()
                calm, pause = False, DISCOVERY_AT_END
            try:
                listed = await self._source.shards()
            except PollerError as error:
                self.health.failed("discovery", str(error), pause)
            else:
                self.health.recovered("discovery")
                await self._learn(listed)
                await self._forget({shard.id for shard in listed})
                self._begin_ready()
                if calm:
                    self._look_for_another_stream(listed)

    def _look_for_another_stream(self, listed: Sequence[Shard]) -> None:
        """Tell when shards seem to be those of a stream that was made again under its name: these are never read."""
        if revived := self._tree.revived(listed):
            what = f"{revived[0]} is finished here and open in the stream, which must be another one of the same name"
            self.health.failed("revived", f"{what}: poller seek {self._name} --to TRIM_HORIZON", DISCOVERY)
        else:
            self.health.recovered("revived")

    async def _learn(self, shards: Iterable[Shard]) -> None:
        """Take in shards, and save the first checkpoints of those that are new, parents first.

        Those too that another task has learned and not saved: it may have been cut short, and one of them may be a parent.
        """
        self._first |= self._tree.learn(shards, self._world.wall())
        async with self._saving_first:
            generation: dict[str, Checkpoint] = {}
            for shard, checkpoint in list(self._first.items()):
                if generation.keys() & set(self._tree.shard(shard).parents):
                    await self._save_all(generation)
                    generation = {}
                generation[shard] = checkpoint
            await self._save_all(generation)

    async def _save_all(self, checkpoints: dict[str, Checkpoint]) -> None:
        async with anyio.create_task_group() as tasks:
            for shard, checkpoint in checkpoints.items():
                tasks.start_soon(self._save, shard, checkpoint)

    async def _save(self, shard: str, checkpoint: Checkpoint) -> None:
        """Save until it is: nothing of a shard is read before."""
        if await self._insist(partial(self._store.save, self._name, shard, checkpoint)):
            self.checkpoints[shard] = checkpoint
            self._first.pop(shard, None)

    async def _insist(self, write: Callable[[], Awaitable[object]]) -> bool:
        """Write until it is done; False when all is quiet before."""
        tries = 0
        while True:
            try:
                await write()
            except StoreError as error:
                pause = backoff(tries, self._world.chance())
                tries += 1
                self.health.failed("store", f"checkpoints cannot be saved: {error}", pause)
                await self._unless_quieted(pause)
                if self._quieted.is_set():
                    return False
            else:
                self.health.recovered("store")
                return True

    async def _forget(self, listed: set[str]) -> None:
        gone = self._tree.forgettable(listed)
        try:
            for shard in gone:
                await self._store.seek(self._name, shard, None)
        except StoreError:
            return  # they take a few bytes until the next listing
        self._tree.forget(gone)
        for shard in gone:
            self.checkpoints.pop(shard, None)
            self._first.pop(shard, None)

    # --- shards ---------------------------------------------------------------------------------------------------------

    def _begin_ready(self) -> None:
        if self._tasks is None or self._quieted.is_set():
            return
        for shard in self._tree.ready():
            # Only a shard whose first checkpoint is saved: another one of the same listing may be waiting for the store.
            if shard.id in self.checkpoints:
                start = self._tree.begin(shard.id, self.checkpoints[shard.id], self._world.wall())
                self._tasks.start_soon(self._keep_reading, shard, start)

    async def _keep_reading(self, shard: Shard, start: StartAt) -> None:
        """Read a shard to its end, however often it takes."""
        tries = 0
        while not self._is_quiet(shard.id):
            began = anyio.current_time()
            try:
                if await self._read(shard, start):
                    return
            except ShardGone:
                self._tell_gone(shard.id)
                await self._finish(shard, ())
                return
            except PollerError as error:
                tries = 0 if anyio.current_time() - began > DISCOVERY else tries + 1
                pause = backoff(tries, self._world.chance())
                self._opening[shard.id] = f"cannot be opened: {error}"
                # A thousand shards that cannot be opened are one thing to tell; which ones they are, the status shows.
                self.health.failed(shard.id, str(error), pause)
                await self._unless_quieted(pause)
            # Not where it began before: something may be done by now, and the latest would be another one.
            start = self._tree.begin(shard.id, self.checkpoints[shard.id], self._world.wall())
        self._opening.pop(shard.id, None)

    async def _read(self, shard: Shard, start: StartAt) -> bool:
        """Read a shard until it ends or all is quiet; True when it has ended."""
        self._opening[shard.id] = "opening"
        async with AsyncExitStack() as stack:
            async with self._opening_places:
                # Its turn may have been long in coming.
                start = held_up(start, self._world.wall())
                reader = await stack.enter_async_context(self._source.open(shard, start))
            self.health.recovered(shard.id)
            del self._opening[shard.id]
            reading = self._reading[shard.id] = self._begin_reading(shard, reader)
            try:
                if self._is_quiet(shard.id):
                    reading.quiet()
                await reading.run()
            finally:
                del self._reading[shard.id]
        if reading.lanes.drained:
            if not reader.ended:
                self._tell_gone(shard.id)
            await self._finish(shard, reader.children)
            return True
        return False

    def _tell_gone(self, shard: str) -> None:
        """A shard went before it was read to its end: what came behind its checkpoint cannot be read any more."""
        if after := self.checkpoints[shard].sequence_number:
            self.invoker.observer.trimmed(Trimmed(self._name, shard, after, None))

    def _begin_reading(self, shard: Shard, reader: Reader) -> Reading:
        return Reading(self, shard, reader, self.door)

    def _is_quiet(self, shard: str) -> bool:
        """Whether a shard is to be read no more."""
        return self._quieted.is_set()

    async def _finish(self, shard: Shard, children: Collection[Shard]) -> None:
        """A shard is done with: go on to its children."""
        self._opening.pop(shard.id, None)
        self.health.forget(shard.id)
        self._tree.finish(shard.id)
        self.note(shard.id, replace(self.checkpoints[shard.id], finished=True), "")
        await self._learn(self._tree.acquainted(children))
        self._begin_ready()
        self._ended.set()

    async def _unless_quieted(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._quieted.wait()

    def note(self, shard: str, checkpoint: Checkpoint, window: str) -> None:
        """A shard is done up to `checkpoint`."""
        since = self.checkpoints[shard].since
        self.checkpoints[shard] = replace(checkpoint, since=since, window=window)
        self._noted(shard)

    def _noted(self, shard: str) -> None:
        self._checkpointer.note(shard, self.checkpoints[shard])

    # --- what it is doing -----------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """Why the source cannot be read, or progress not be kept, at the moment."""
        return self.health.trouble or self._checkpointer.trouble

    @property
    def at_capacity(self) -> bool:
        """True when nothing is received because the function can take no more."""
        pipelines = list(self._pipelines())
        return self.invoker.slots.waiting > 0 and all(pipeline.at_capacity for pipeline in pipelines)

    def load(self) -> Load:
        """What is at work now, over all shards."""
        parked = self.unparking.load() if self.unparking else IDLE
        return sum((reading.load() for reading in self._reading.values()), parked)

    def shards(self) -> tuple[ShardStatus, ...]:
        """Every shard that is not finished, in the order of their ids."""
        wall = self._world.wall()
        return tuple(
            self._status(shard, wall)
            for shard, checkpoint in sorted(self.checkpoints.items())
            if not checkpoint.finished
        )

    def _status(self, shard: str, wall: float) -> ShardStatus:
        reading = self._reading.get(shard)
        return ShardStatus(
            shard=shard,
            doing=self._doing(shard, reading),
            sequence_number=self.checkpoints[shard].sequence_number,
            iterator_age=reading.iterator_age(wall) if reading else None,
            checkpoint_age=self._unsaved(shard),
            open_records=reading.lanes.open_records if reading else 0,
        )

    def _unsaved(self, shard: str) -> float:
        """Seconds for which progress has been waiting to be saved."""
        return self._checkpointer.age(shard)

    def _doing(self, shard: str, reading: Reading | None) -> str:
        if reading:
            return reading.doing if self.door.is_open else "paused"
        if shard in self._opening:
            return self._opening[shard]
        parents = sorted(self._tree.waits_for(shard))
        return f"waiting for its parent {', '.join(parents)}" if parents else "waiting"
