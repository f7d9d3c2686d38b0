"""A replay of a stream's records: what a source finds is worked on as the records of a shard are, beside the live mapping.

There is no second loop: each shard is read by `Lanes` and worked on by one `Pipeline` and one `StreamWork` a lane, with the
mapping's function, batches and failure policy. What is different is where records come from, and that nothing here has to do
with checkpoints: the source is told how far its records are done, and keeps that as it likes. It names its shards a part at a
time, until it names none.

A shard of the replay has its lanes at most, all of them together have `concurrency` invocations in flight: whoever waits for a
place waits in turn with the live mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from poller.core.retry import backoff
from poller.engine import parts
from poller.engine.door import Door
from poller.engine.health import Health
from poller.engine.lanes import Lanes
from poller.engine.pipeline import Pipeline
from poller.engine.stream_work import StreamWork
from poller.errors import AwsError
from poller.model import StartAt
from poller.ports import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.engine.invoker import Invoker
    from poller.engine.pipeline import Plan
    from poller.engine.stream_work import Batches
    from poller.model import Record, Shard
    from poller.ports import Reader


class ReplaySource(Source, Protocol):
    """What is replayed."""

    async def passed(self, shard: str, record: Record) -> None:
        """Everything of the shard that was handed out up to `record`, the very object, is done or given up.

        Raises `poller.errors.AwsError` when that cannot be noted; then it is told again with a later record, or not at all.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How a replay works."""

    plan: Plan
    batches: Callable[[str], Batches]
    """What to do with the batches of a shard, by its id."""
    lanes: int
    """Batches of one shard in flight."""
    concurrency: int
    """Batches in flight, all shards together."""


class Replay:
    """Replays everything that `source` has, or until it is told to be quiet."""

    def __init__(self, plan: ReplayPlan, source: ReplaySource, invoker: Invoker) -> None:
        self.door = Door()
        self.health = Health(plan.plan.name, invoker.observer)
        self._plan = plan
        self._lanes = max(1, min(plan.lanes, plan.concurrency))
        self._shards_at_once = max(1, plan.concurrency // self._lanes)
        self._source = source
        self._invoker = invoker
        # By the pipelines that they are done by.
        self._works: dict[Pipeline, StreamWork] = {}
        self._passed: dict[str, Record] = {}
        self._noted = anyio.Event()
        # Nobody may take a step for told while somebody else is still telling it.
        self._telling = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Replay {self._plan.plan.name}: {len(self._works)} lanes at work>"

    @property
    def trouble(self) -> str | None:
        """Why it does not go on at the moment."""
        return self.health.trouble

    @property
    def doing(self) -> str:
        """What it waits for, in a few words; empty when that is nothing special."""
        return self.trouble or next((work.doing for work in self._works.values() if work.doing), "")

    async def run(self) -> None:
        """Work until all is done, or until quiet and drained."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._tell_passed)
            places = anyio.Semaphore(self._shards_at_once)
            while self.door.is_open and (shards := await self._next()):
                async with anyio.create_task_group() as part:
                    for shard in shards:
                        # Taken here, so that they begin in their order.
                        await places.acquire()
                        part.start_soon(self._replay, shard, places)
                await self._flush()
            background.cancel_scope.cancel()

    def quiet(self) -> None:
        """Take up nothing more; `run` returns when what is at work is done."""
        self.door.close()
        for pipeline in self._works:
            pipeline.quiet()

    # --- the source -----------------------------------------------------------------------------------------------------

    async def _next(self) -> Sequence[Shard]:
        tries = 0
        found: list[Shard] = []

        async def look() -> None:
            found.extend(await self._source.shards())

        while self.door.is_open:
            try:
                await self.door.unless_closed(look)
            except AwsError as error:
                await self._pause("source", error, tries)
                tries += 1
            else:
                self.health.recovered("source")
                return found
        return ()

    async def _pause(self, what: str, error: AwsError, tries: int) -> None:
        pause = backoff(tries, self._invoker.world.chance())
        self.health.failed(what, str(error), pause)
        await self.door.unless_closed(partial(anyio.sleep, pause))

    # --- one shard ------------------------------------------------------------------------------------------------------

    async def _replay(self, shard: Shard, places: anyio.Semaphore) -> None:
        try:
            if self.door.is_open:
                async with self._source.open(shard, StartAt()) as reader:
                    await self._work_on(shard.id, reader)
        finally:
            places.release()

    async def _work_on(self, shard: str, reader: Reader) -> None:
        lanes = Lanes(reader, self._lanes, partial(self._note, shard))
        works = dict(self._pipeline(shard, lane) for lane in lanes.lanes)
        self._works.update(works)
        if not self.door.is_open:
            self.quiet()
        async with anyio.create_task_group() as tasks:
            for pipeline in works:
                tasks.start_soon(pipeline.run)
        for pipeline in works:
            del self._works[pipeline]
        # While it is open: what the source keeps for it ends with that.
        await self._flush()

    def _pipeline(self, shard: str, lane: Reader) -> tuple[Pipeline, StreamWork]:
        name = self._plan.plan.name
        around = parts.build(name, lane, self._invoker, 1, self.door, self.health)
        # There are no windows: nothing is to be kept when one ends.
        work = StreamWork(self._plan.batches(shard), around, None, lambda: None)
        return Pipeline(self._plan.plan, around, work), work

    # --- how far it is --------------------------------------------------------------------------------------------------

    def _note(self, shard: str, record: Record) -> None:
        self._passed[shard] = record
        self._noted.set()

    async def _tell_passed(self) -> None:
        while True:
            await self._noted.wait()
            await self._flush()

    async def _flush(self) -> None:
        """Tell the source how far its shards are done; one that cannot note it is told again at the next step."""
        async with self._telling:
            self._noted = anyio.Event()
            while self._passed:
                shard, record = self._passed.popitem()
                try:
                    await self._source.passed(shard, record)
                except AwsError as error:
                    self.health.failed(f"passed {shard}", str(error), 0.0)
                else:
                    self.health.recovered(f"passed {shard}")
