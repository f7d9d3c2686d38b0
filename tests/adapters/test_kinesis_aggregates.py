"""Records that the Kinesis Producer Library has packed, taken apart while a stream is polled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.core.stream_envelope import KinesisEnvelope
from poller.errors import BadReply
from poller.model import Checkpoint, Shard, StartAt
from poller.sources._stream import BUILT_AT_ONCE
from tests.adapters.aggregates import packed
from tests.adapters.stream_reading import REGION, ROLE, TRIM_HORIZON, Rig, after, data, drain, receive
from tests.engine.fakes import settle_down, virtual
from tests.fake_streams import FakeKinesis

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from poller.model import Record
    from poller.sources._stream import StreamReader

HALF = 2**127


def opened(
    rig: Rig, start: StartAt = TRIM_HORIZON, **of_shard: Any
) -> AbstractAsyncContextManager[StreamReader]:
    shard = Shard(next(iter(rig.fake.shards)), **of_shard)
    return rig.source(deaggregate=True).open(shard, start)


def checkpoints(records: Sequence[Record]) -> list[tuple[str, int | None]]:
    envelope = KinesisEnvelope(FakeKinesis.arn, REGION, ROLE)
    made = [envelope.checkpoint(record) for record in records]
    assert made == [Checkpoint(one.sequence_number, one.sub_sequence_number) for one in made]
    return [(one.sequence_number, one.sub_sequence_number) for one in made]


def mixed(fake: FakeKinesis) -> list[str]:
    """Two plain records and an aggregate of three between them; returns the sequence numbers."""
    return fake.put("first", packed("a", "b", "c"), "last")


@virtual
async def test_inner_records_come_as_records_of_their_own_with_the_checkpoint_behind_each() -> None:
    rig = Rig.of("kinesis")
    one, two, three = mixed(rig.fake)
    async with opened(rig) as reader:
        records = await reader.receive(10, 1)
    assert data(records) == ["first", "a", "b", "c", "last"]
    assert [record.key for record in records] == ["customer 1", "inner", "inner", "inner", "customer 1"]
    assert checkpoints(records) == [(one, None), (two, 0), (two, 1), (two, None), (three, None)]
    assert records[1].event["eventID"] == f"shardId-000000000000:{two}"


@virtual
async def test_a_receive_never_brings_more_than_was_asked_for() -> None:
    rig = Rig.of("kinesis")
    mixed(rig.fake)
    rig.fake.split(next(iter(rig.fake.shards)))
    async with opened(rig) as reader:
        assert data(await reader.receive(2, 1)) == ["first", "a"]
        assert repr(reader) == "<StreamReader clicks shardId-000000000000: reading, 3 records in hand>"
        assert data(await reader.receive(1, 1)) == ["b"]
        assert data(await reader.receive(1, 1)) == ["c"]
        assert not reader.ended
        assert data(await reader.receive(1, 1)) == ["last"]
        assert reader.ended
        assert await reader.receive(1, 1) == ()


@virtual
async def test_the_end_of_a_shard_is_behind_the_last_inner_record() -> None:
    rig = Rig.of("kinesis")
    rig.fake.put(packed("a", "b"))
    rig.fake.split(next(iter(rig.fake.shards)))
    async with opened(rig) as reader:
        await reader.receive(1, 1)
        assert not reader.ended
        assert data(await reader.receive(5, 1)) == ["b"]
        assert reader.ended
        assert len(reader.children) == 2


@virtual
async def test_a_start_inside_an_aggregate_skips_what_is_done_of_it() -> None:
    rig = Rig.of("kinesis")
    _, two, three = mixed(rig.fake)
    async with opened(rig, StartAt("AFTER_SEQUENCE_NUMBER", two, sub_sequence_number=1)) as reader:
        records = await reader.receive(10, 1)
    assert data(records) == ["c", "last"]
    assert checkpoints(records) == [(two, None), (three, None)]
    async with opened(rig, after(two)) as reader:
        assert data(await reader.receive(10, 1)) == ["last"]


@virtual
@pytest.mark.parametrize("deaggregate", [True, False])
async def test_a_checkpoint_of_the_kcl_behind_a_plain_record_does_not_bring_it_again(
    *, deaggregate: bool
) -> None:
    rig = Rig.of("kinesis")
    one, two, three = mixed(rig.fake)
    source = rig.source(deaggregate=deaggregate)
    shard = Shard(next(iter(rig.fake.shards)))
    async with source.open(shard, StartAt("AFTER_SEQUENCE_NUMBER", one, sub_sequence_number=0)) as reader:
        records = await reader.receive(10, 1)
    assert [record.id for record in records] == [two, two, two, three] if deaggregate else [two, three]
    async with source.open(shard, StartAt("AFTER_SEQUENCE_NUMBER", two, sub_sequence_number=0)) as reader:
        records = await reader.receive(10, 1)
    assert [record.id for record in records] == [two, two, three] if deaggregate else [two, three]


@virtual
async def test_mappings_that_take_records_apart_and_those_that_do_not_share_their_reads() -> None:
    rig = Rig.of("kinesis")
    mixed(rig.fake)
    async with opened(rig) as one, rig.open(mapping="other") as other:
        assert len(await one.receive(10, 1)) == 5
        assert len(await other.receive(10, 1)) == 3
        rig.fake.put(packed("x", "y"))
        assert len(await other.receive(10, 20)) == 1
        assert data(await one.receive(10, 20)) == ["x", "y"]
    assert len(rig.fake.reads) == 2


@virtual
async def test_inner_records_with_a_hash_key_of_another_shard_are_left_to_that_shard() -> None:
    rig = Rig.of("kinesis")
    aggregate = packed("low", "none", "high", hash_keys={"low": 5, "high": HALF + 5})
    (number,) = rig.fake.put(aggregate)
    async with opened(rig, hash_range=(0, HALF - 1)) as reader:
        records = await reader.receive(10, 1)
    assert data(records) == ["low", "none"]
    assert checkpoints(records) == [(number, 0), (number, None)]
    async with opened(rig, hash_range=(HALF, 2 * HALF - 1)) as reader:
        assert data(await reader.receive(10, 1)) == ["none", "high"]


@virtual
async def test_after_a_split_each_half_knows_its_own_hash_keys() -> None:
    rig = Rig.of("kinesis")
    assert isinstance(rig.fake, FakeKinesis)
    aggregate = packed("low", "high", hash_keys={"low": 5, "high": HALF + 5})
    halves = rig.fake.split(next(iter(rig.fake.shards)))
    for half in halves:
        rig.fake.put(aggregate, shard=half)
    source = rig.source(deaggregate=True)
    shards = {shard.id: shard for shard in await source.shards()}
    got = []
    for half in halves:
        async with source.open(shards[half], TRIM_HORIZON) as reader:
            got.append(await receive(reader, 1))
    assert got == [["low"], ["high"]]


@virtual
async def test_an_aggregate_of_which_nothing_belongs_here_is_passed_over() -> None:
    rig = Rig.of("kinesis")
    elsewhere = packed("x", "y", hash_keys={"x": 5, "y": 5})
    rig.fake.put(elsewhere, "plain", elsewhere)
    rig.fake.split(next(iter(rig.fake.shards)))
    async with opened(rig, hash_range=(HALF, 2 * HALF - 1)) as reader:
        assert await drain(reader) == ["plain"]
        assert reader.ended
    rig = Rig.of("kinesis")
    rig.fake.put(elsewhere)
    rig.fake.split(next(iter(rig.fake.shards)))
    async with opened(rig, hash_range=(HALF, 2 * HALF - 1)) as reader:
        assert await reader.receive(10, 1) == ()
        assert reader.ended


@virtual
async def test_a_record_that_makes_no_sense_is_told_after_those_before_it_and_is_not_skipped() -> None:
    rig = Rig.of("kinesis")
    mixed(rig.fake)
    (shard,) = rig.fake.shards.values()
    key, shard.records[2]["PartitionKey"] = shard.records[2]["PartitionKey"], object()
    async with opened(rig) as reader:
        assert data(await reader.receive(10, 1)) == ["first", "a", "b", "c"]
        for _ in range(2):
            with pytest.raises(BadReply, match="makes no sense"):
                await reader.receive(10, 1)
        shard.records[2]["PartitionKey"] = key
        assert data(await reader.receive(10, 1)) == ["last"]


@virtual
async def test_several_tasks_that_receive_at_the_same_time_get_each_record_once_and_runs_in_order() -> None:
    rig = Rig.of("kinesis")
    texts = [f"{number:04}" for number in range(3 * BUILT_AT_ONCE)]
    rig.fake.put(*(packed(*texts[at : at + 7]) for at in range(0, len(texts), 7)))
    got: list[list[str]] = []
    async with opened(rig) as reader:

        async def work() -> None:
            while sum(map(len, got)) < len(texts):
                got.append(data(await reader.receive(800, 1)))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(work)
    assert sorted(text for run in got for text in run) == texts
    assert all(run == texts[int(run[0]) :][: len(run)] for run in got if run)


@virtual
async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    rig = Rig.of("kinesis")
    texts = [f"{number:04}" for number in range(3 * BUILT_AT_ONCE)]
    rig.fake.put(*(packed(*texts[at : at + 7]) for at in range(0, len(texts), 7)))
    got: list[str] = []
    async with opened(rig) as reader:
        got += data(await reader.receive(1, 1))
        async with anyio.create_task_group() as tasks:

            async def one() -> None:
                got.extend(data(await reader.receive(1000, 1)))

            async def other() -> None:
                got.extend(data(await reader.receive(1000, 1)))

            tasks.start_soon(one)
            tasks.start_soon(other)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await settle_down()
        got += await receive(reader, len(texts) - len(got))
    assert got == texts
