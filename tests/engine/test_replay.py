"""Replays in virtual time: order, concurrency, how far the source is told that it is, stops."""

from __future__ import annotations

from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.core.batch import BatchLimits
from poller.core.failure import Origin
from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.engine.delivery import Route
from poller.engine.invoker import Call, FunctionPlan, Invoker
from poller.engine.pipeline import Plan
from poller.engine.replay import Replay, ReplayPlan
from poller.engine.slots import Places, Slots
from poller.engine.stream_work import Batches
from poller.errors import Throttled
from poller.model import Record, Shard
from tests.engine.fakes import ERROR, OK, Function, Recorder, settle_down, virtual, world
from tests.engine.stream_fakes import FUNCTION_ARN, STREAM_ARN, Envelope, event, failing_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from poller.model import StartAt


class Reader:
    """The records of one shard, which ends."""

    redelivers = False
    full = False
    behind = None
    doing = "reading"
    children = ()

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    @property
    def ended(self) -> bool:
        return not self._records

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        await anyio.lowlevel.checkpoint()
        taken, self._records[:] = self._records[:limit], self._records[limit:]
        return taken

    async def ack(self, records: Sequence[Record]) -> int:
        raise AssertionError("a lane acknowledges, not the reader behind it")

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        raise AssertionError("nothing is released")


class Source:
    """Parts of shards, each with the numbers of its records."""

    def __init__(self, *parts: dict[str, str]) -> None:
        self._parts = list(parts)
        self._part: dict[str, str] = {}
        self.told: defaultdict[str, list[str]] = defaultdict(list)
        self.open_shards: list[str] = []
        #: Raised by the next calls of `shards` and `passed`, one each; None lets one through.
        self.listing_failures: list[Exception | None] = []
        self.telling_failures: list[Exception | None] = []
        self.telling = anyio.Event()
        self.telling.set()

    async def shards(self) -> Sequence[Shard]:
        await anyio.lowlevel.checkpoint()
        if self.listing_failures and (failure := self.listing_failures.pop(0)):
            raise failure
        self._part = self._parts.pop(0) if self._parts else {}
        return [Shard(name) for name in self._part]

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt) -> AsyncIterator[Reader]:
        self.open_shards.append(shard.id)
        yield Reader([Record(id_, id_, 100, event(id_, id_), None, 1.0) for id_ in self._part[shard.id]])
        self.open_shards.remove(shard.id)

    async def passed(self, shard: str, record: Record) -> None:
        self.told[shard].append(record.id)
        await self.telling.wait()
        if self.telling_failures and (failure := self.telling_failures.pop(0)):
            raise failure


class Steps:
    """A function that ends one invocation at a time."""

    def __init__(self) -> None:
        self._places = anyio.Semaphore(0)

    async def __call__(self, call: Any) -> Any:
        await self._places.acquire()
        return OK

    def one(self) -> None:
        self._places.release()


class Rig:
    """A replay over `source`, with the engine's real parts."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 2,
        lanes: int = 1,
        concurrency: int = 1,
        policy: StreamPolicy | None = None,
        slots: Slots | None = None,
        handler: Any = None,
    ) -> None:
        self.source = source
        self.function = Function(handler=handler)
        self.observer = Recorder()
        self.destination = MemoryDestination()
        self._policy = policy or StreamPolicy(maximum_retry_attempts=1)
        function = FunctionPlan("count", FUNCTION_ARN, 900.0)
        invoker = Invoker(function, self.function, slots or Slots(Places(100), None), self.observer, world())
        plan = Plan("clicks", BatchLimits(batch_size), receive_limit=100, receive_wait=2.0)
        self.replay = Replay(ReplayPlan(plan, self._batches, lanes, concurrency), source, invoker)

    def _batches(self, shard: str) -> Batches:
        return Batches(
            call=Call("clicks", "kinesis", partial=False),
            function_arn=FUNCTION_ARN,
            origin=Origin("kinesis", shard, STREAM_ARN),
            envelope=Envelope(),
            policy=self._policy,
            destination=Route(self.destination),
        )

    @property
    def batches(self) -> list[str]:
        return ["".join(batch) for batch in self.function.batches]


@virtual
async def test_all_parts_are_replayed_shard_by_shard_in_their_order():
    source = Source({"a": "12345", "b": "67"}, {"a": "89"})
    rig = Rig(source)
    await rig.replay.run()
    assert rig.batches == ["12", "34", "5", "67", "89"]
    assert {shard: told[-1] for shard, told in source.told.items()} == {"a": "9", "b": "7"}
    assert source.open_shards == []
    assert "0 lanes" in repr(rig.replay)


@virtual
async def test_a_source_is_told_only_what_is_done():
    source = Source({"a": "1234"})
    steps = Steps()
    rig = Rig(source, handler=steps)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        assert (rig.batches, source.told["a"]) == (["12"], [])
        steps.one()
        await settle_down()
        assert source.told["a"] == ["2"]
        assert "1 lanes" in repr(rig.replay)
        steps.one()
    assert source.told["a"] == ["2", "4"]


@virtual
async def test_what_fails_for_good_goes_to_the_destination_and_counts_as_done():
    source = Source({"a": "1234"})
    rig = Rig(source, handler=failing_on("3", reply=ERROR))
    await rig.replay.run()
    assert rig.batches == ["12", "34", "34"]
    (delivery,) = rig.destination.deliveries
    assert (delivery.shard, delivery.records, delivery.error_type) == ("a", 2, "ValueError")
    assert source.told["a"][-1] == "4"


@pytest.mark.parametrize(("lanes", "concurrency", "shards"), [(1, 2, 2), (2, 2, 1), (4, 2, 1), (1, 1, 1)])
@virtual
async def test_shards_and_lanes_together_keep_to_the_concurrency(lanes: int, concurrency: int, shards: int):
    source = Source(dict.fromkeys("abc", "123456789"))
    steps = Steps()
    rig = Rig(source, lanes=lanes, concurrency=concurrency, batch_size=1, handler=steps)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        assert len(source.open_shards) == shards
        assert len(rig.function.batches) == concurrency
        tasks.cancel_scope.cancel()


@virtual
async def test_it_waits_in_turn_for_the_places_of_its_function():
    slots = Slots(Places(1), None)
    await slots.acquire()
    rig = Rig(Source({"a": "12"}), slots=slots)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        assert rig.batches == []
        slots.release()
    assert rig.batches == ["12"]


@virtual
async def test_a_stop_lets_the_batch_at_work_end_and_takes_up_no_other():
    source = Source({"a": "1234", "b": "56"}, {"a": "78"})
    steps = Steps()
    rig = Rig(source, handler=steps)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        rig.replay.quiet()
        await settle_down()
        steps.one()
    assert rig.batches == ["12"]
    assert source.told == {"a": ["2"]}


@virtual
async def test_a_stop_while_the_source_is_looked_at_ends_it():
    source = Source({"a": "12"})
    source.listing_failures = [Throttled()] * 3
    rig = Rig(source)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        assert rig.replay.trouble == "AWS asks for fewer requests."
        rig.replay.quiet()
    assert rig.batches == []


@virtual
async def test_a_stop_before_it_begins_does_nothing():
    rig = Rig(Source({"a": "12"}))
    rig.replay.quiet()
    await rig.replay.run()
    assert rig.batches == []


@virtual
async def test_a_stop_while_a_shard_is_opened_reads_nothing_of_it():
    source = Source({"a": "12"})
    rig = Rig(source)
    opening, opened = anyio.Event(), source.open

    @asynccontextmanager
    async def open_slowly(shard: Shard, start: StartAt) -> AsyncIterator[Any]:
        await opening.wait()
        async with opened(shard, start) as reader:
            yield reader

    source.open = open_slowly  # type: ignore[method-assign]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        rig.replay.quiet()
        opening.set()
    assert rig.batches == []


@virtual
async def test_a_source_that_cannot_be_looked_at_is_tried_again():
    source = Source({"a": "12"})
    source.listing_failures = [Throttled(), Throttled(), None]
    rig = Rig(source)
    await rig.replay.run()
    assert rig.batches == ["12"]
    assert rig.replay.trouble is None


@virtual
async def test_what_a_source_cannot_note_is_trouble_until_it_can():
    source = Source({"a": "123456"})
    source.telling_failures = [Throttled(), None]
    steps = Steps()
    rig = Rig(source, handler=steps)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        steps.one()
        await settle_down()
        assert rig.replay.trouble == "AWS asks for fewer requests."
        steps.one()
        await settle_down()
        assert rig.replay.trouble is None
        steps.one()
    assert source.told["a"] == ["2", "4", "6"]


@virtual
async def test_it_does_not_end_before_the_source_knows():
    source = Source({"a": "12"})
    rig = Rig(source)
    source.telling = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        assert source.open_shards == ["a"]
        source.telling.set()
    assert source.open_shards == []


@virtual
async def test_a_shard_without_records_is_over_at_once():
    source = Source({"a": ""}, {"a": "1"})
    rig = Rig(source)
    await rig.replay.run()
    assert rig.batches == ["1"]


@virtual
async def test_it_says_what_it_waits_for():
    rig = Rig(
        Source({"a": "12"}),
        handler=failing_on("1", reply=ERROR),
        policy=StreamPolicy(maximum_retry_attempts=3),
    )
    assert rig.replay.doing == ""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.replay.run)
        await settle_down()
        assert rig.replay.doing == "retrying the batch from 1, 1 attempts failed"
    assert rig.replay.doing == ""
