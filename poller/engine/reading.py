"""One shard that is being read: its lanes, a pipeline over each, and what they are doing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from poller.core import windows
from poller.engine import parts
from poller.engine.lanes import Lanes
from poller.engine.pipeline import Pipeline
from poller.engine.status import IDLE
from poller.engine.stream_work import StreamWork

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.engine.door import Door
    from poller.engine.shard_keeper import ShardKeeper
    from poller.engine.status import Load
    from poller.model import Record, Shard
    from poller.ports import Reader


class Reading:
    """One shard that is being read."""

    def __init__(
        self,
        keeper: ShardKeeper,
        shard: Shard,
        reader: Reader,
        door: Door,
        fence: Callable[[], bool] | None = None,
    ) -> None:
        checkpoint = keeper.checkpoints[shard.id]
        plan, batches = keeper.plan, keeper.plan.batches(shard.id)
        self.lanes = Lanes(reader, plan.lanes, self._moved)
        self.works: list[StreamWork] = []
        self.pipelines: list[Pipeline] = []
        self._keeper = keeper
        self._shard = shard.id
        self._envelope = batches.envelope
        for lane in self.lanes.lanes:
            # One batch of a lane at a time, or its keys would lose their order.
            around = parts.build(plan.plan.name, lane, keeper.invoker, 1, door, keeper.health, keeper.breaker)
            around.dispatch.fence = fence
            window = windows.load(checkpoint.window) if batches.window_length else None
            work = StreamWork(batches, around, window, self._window_closed, keeper.parking)
            self.works.append(work)
            self.pipelines.append(Pipeline(plan.plan, around, work))

    @property
    def window(self) -> str:
        """The open window as a checkpoint has it. There is one lane where there are windows."""
        return windows.dump(self.works[0].window)

    async def run(self) -> None:
        """Read until quiet, or to the end of a closed shard."""
        async with anyio.create_task_group() as tasks:
            for pipeline in self.pipelines:
                tasks.start_soon(pipeline.run)

    def _moved(self, record: Record) -> None:
        self._keeper.note(self._shard, self._envelope.checkpoint(record), self.window)

    def _window_closed(self) -> None:
        self._keeper.note(self._shard, self._keeper.checkpoints[self._shard], self.window)

    def quiet(self) -> None:
        for pipeline in self.pipelines:
            pipeline.quiet()

    def load(self) -> Load:
        load = sum((pipeline.load() for pipeline in self.pipelines), IDLE)
        waiting = self.lanes
        return replace(
            load,
            buffered_records=load.buffered_records + waiting.waiting_records,
            buffered_bytes=load.buffered_bytes + waiting.waiting_bytes,
        )

    @property
    def is_busy(self) -> bool:
        """Whether it is at work, or waits for something else than records."""
        pipelines = self.pipelines
        return (
            any(work.doing for work in self.works)
            or any(pipeline.dispatch.in_flight_invocations for pipeline in pipelines)
            or any(pipeline.at_capacity for pipeline in pipelines)
        )

    @property
    def doing(self) -> str:
        """In a word or two, the most telling one first."""
        special = (work.doing for work in self.works)
        failing = (self._keeper.health.of(pipeline) for pipeline in self.pipelines)
        if telling := next(filter(None, (*special, *failing)), ""):
            return telling
        if any(pipeline.dispatch.in_flight_invocations for pipeline in self.pipelines):
            return "working"
        if all(pipeline.at_capacity for pipeline in self.pipelines):
            return "at the concurrency limit"
        return self.lanes.reader.doing

    def iterator_age(self, wall: float) -> float | None:
        """Seconds of records between what is done and the end of the shard; None when that cannot be read now."""
        oldest = self.lanes.oldest
        if oldest is None:
            return self.lanes.behind
        return max(0.0, wall - oldest.arrived)
