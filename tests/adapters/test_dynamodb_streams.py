"""What is particular to the streams of DynamoDB: rollover, replies that are empty for no reason, and trimming that is said."""

from __future__ import annotations

import anyio
import pytest

from poller.errors import BadReply, RequestRefused
from poller.model import Shard, StartAt
from tests.adapters.stream_reading import LATEST, TRIM_HORIZON, Rig, after, data, drain, idle, receive
from tests.engine.fakes import virtual
from tests.fake_streams import DAY, EPOCH, FakeDynamoDbStream, refused

HOUR = 3600.0


@virtual
async def test_a_listing_of_many_shards_is_read_to_its_end() -> None:
    fake = FakeDynamoDbStream()
    fake.page = 2
    for _ in range(6):
        fake.roll_over()
    shards = await Rig(fake).source().shards()
    names = list(fake.shards)
    assert [shard.id for shard in shards] == names
    assert shards[3] == Shard(names[3], (names[2],), closed=True)
    assert shards[6] == Shard(names[6], (names[5],))
    assert len(fake.calls) == 4


@virtual
async def test_a_listing_that_makes_no_sense_is_a_bad_reply() -> None:
    fake = FakeDynamoDbStream()
    fake.script("DescribeStream", {"StreamDescription": {"Shards": [{"ShardId": "x"}]}})
    with pytest.raises(BadReply, match="DescribeStream"):
        await Rig(fake).source().shards()


@virtual
async def test_rollover_every_four_hours_loses_nothing_and_keeps_the_order() -> None:
    fake = FakeDynamoDbStream()
    rig = Rig(fake, idle_interval=60)
    got: list[str] = []

    async def produce() -> None:
        for hour in range(12):
            fake.put(f"{hour}", shard=list(fake.shards)[-1])
            await anyio.sleep(HOUR / 2)
            if hour % 4 == 3:
                fake.roll_over()
            await anyio.sleep(HOUR / 2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(produce)
        name = next(iter(fake.shards))
        while len(got) < 12:
            async with rig.open(shard=name) as reader:
                while not reader.ended and len(got) < 12:
                    got += data(await reader.receive(100, 20))
            known = {parent: shard.id for shard in await rig.source().shards() for parent in shard.parents}
            name = known.get(name, name)
    assert got == [str(hour) for hour in range(12)]


@virtual
async def test_an_idle_shard_costs_far_less_than_a_read_a_second() -> None:
    rig = Rig(FakeDynamoDbStream())
    async with rig.open() as reader:
        await idle(reader, 30 * DAY / 1000)
    assert len(rig.fake.reads) < 2_600_000 / 1000 / 4.6


@virtual
async def test_an_empty_reply_in_front_of_records_leads_nobody_past_them() -> None:
    fake = FakeDynamoDbStream()
    rig = Rig(fake)
    name = next(iter(fake.shards))
    async with rig.open(LATEST) as early:
        await idle(early, 10)
        fake.put("one")
        await receive(early, 1)
        await idle(early, 10)
        empty = {"Records": [], "NextShardIterator": fake.iterator(name, 0)}
        async with rig.open(TRIM_HORIZON, mapping="late") as late:
            fake.script("GetRecords", empty)
            assert not await late.receive(10, 20)
            assert await receive(late, 1) == ["one"]


@virtual
async def test_a_latest_older_than_the_tip_does_not_move_there_on_an_empty_reply() -> None:
    fake = FakeDynamoDbStream()
    rig = Rig(fake)
    name = next(iter(fake.shards))
    async with rig.open(LATEST) as one, rig.open(LATEST, mapping="other") as other:
        await anyio.sleep(1)
        fake.put("one")
        await receive(one, 1)
        await idle(one, 5)
        fake.script("GetRecords", {"Records": [], "NextShardIterator": fake.iterator(name, 0)})
        other.position = other.position._replace(timestamp=other.position.timestamp + 0.5)
        rig.stream._open[name]._cursors[other.position] = rig.stream._open[name]._cursors[
            next(iter(rig.stream._open[name]._cursors))
        ]
        assert not await other.receive(10, 20)
        assert await receive(other, 1) == ["one"]


@virtual
async def test_a_time_is_found_by_skipping_what_is_older() -> None:
    fake = FakeDynamoDbStream()
    fake.put(*["old"] * 2500)
    await anyio.sleep(HOUR)
    fake.put("new", "newer")
    async with Rig(fake).open(StartAt("AT_TIMESTAMP", timestamp=EPOCH + HOUR - 1.5)) as reader:
        assert await receive(reader, 2) == ["new", "newer"]
    assert anyio.current_time() < HOUR + 2


@virtual
async def test_a_time_within_a_second_brings_the_whole_second() -> None:
    fake = FakeDynamoDbStream()
    await anyio.sleep(10.1)
    fake.put("one")
    await anyio.sleep(0.3)
    async with Rig(fake).open(StartAt("AT_TIMESTAMP", timestamp=EPOCH + 10.4)) as reader:
        assert await receive(reader, 1) == ["one"]


@virtual
async def test_a_read_that_meets_trimmed_data_goes_on_at_the_trim_horizon() -> None:
    fake = FakeDynamoDbStream()
    rig = Rig(fake)
    (number,) = fake.put("one")
    async with rig.open() as reader:
        await receive(reader, 1)
        fake.put("lost", "kept")
        fake.trim(2)
        assert await receive(reader, 1) == ["kept"]
    (told,) = rig.trimmed
    assert told.after == number


@virtual
async def test_trimming_at_the_trim_horizon_itself_is_no_news() -> None:
    fake = FakeDynamoDbStream()
    rig = Rig(fake)
    async with rig.open() as reader:
        fake.put("one")
        fake.script("GetRecords", refused("TrimmedDataAccessException"))
        assert await receive(reader, 1) == ["one"]
    assert not rig.trimmed


@pytest.mark.parametrize("times", [1, 4])
@virtual
async def test_trimming_in_front_of_a_time_brings_nothing_older(times: int) -> None:
    fake = FakeDynamoDbStream()
    rig = Rig(fake)
    fake.put("old", "older")
    await anyio.sleep(HOUR)
    fake.put("new")
    async with rig.open(StartAt("AT_TIMESTAMP", timestamp=EPOCH + HOUR)) as reader:
        fake.script("GetRecords", *[refused("TrimmedDataAccessException")] * times)
        if times > 3:
            with pytest.raises(RequestRefused):
                await receive(reader, 1)
        assert await receive(reader, 1) == ["new"]
    assert not rig.trimmed


@virtual
async def test_an_end_without_records_is_an_end() -> None:
    fake = FakeDynamoDbStream()
    fake.roll_over()
    async with Rig(fake).open() as reader:
        assert await drain(reader) == []
        assert reader.children == ()


@virtual
async def test_latest_brings_nothing_older_where_another_mapping_has_yet_to_find_its_records() -> None:
    rig = Rig.of("dynamodb")
    first, *_ = rig.fake.put("first", "old", "older")
    async with rig.open(after(first), mapping="behind") as behind:
        blank = {"Records": [], "NextShardIterator": "iterator-0"}
        rig.fake.script("GetRecords", blank)
        assert not await behind.receive(10, 1)
        await anyio.sleep(1)
        async with rig.open(LATEST, mapping="new") as new:
            rig.fake.script("GetRecords", blank)
            assert not await behind.receive(10, 1)
            await idle(new, 5)
            rig.fake.put("newest")
            assert await receive(new, 1) == ["newest"]
        assert await receive(behind, 3) == ["old", "older", "newest"]
