"""What is particular to Kinesis: listings, splits and merges, silence about what was trimmed, and the quota in bytes."""

from __future__ import annotations

import anyio
import pytest

from poller.errors import BadReply, RequestRefused, ServiceFault
from poller.model import Shard, StartAt
from tests.adapters.stream_reading import LATEST, Rig, after, data, drain, idle, receive
from tests.engine.fakes import virtual
from tests.fake_streams import DAY, EPOCH, FakeKinesis

HALF = 2**127


@virtual
async def test_a_listing_of_many_shards_is_read_to_its_end() -> None:
    fake = FakeKinesis(8)
    fake.page = 3
    left, right = fake.split("shardId-000000000001")
    merged = fake.merge(left, right)
    shards = await Rig(fake).source().shards()
    assert [shard.id for shard in shards] == list(fake.shards)
    eighth = 2**125
    assert Shard("shardId-000000000001", (), True, (eighth, 2 * eighth - 1)) in shards
    assert Shard(left, ("shardId-000000000001",), True, (eighth, eighth * 3 // 2 - 1)) in shards
    assert Shard(merged, (left, right), False, (eighth, 2 * eighth - 1)) in shards
    assert [call.operation for call in fake.calls] == ["ListShards"] * 4


@virtual
async def test_an_emulator_that_does_not_know_its_own_tokens_is_asked_another_way() -> None:
    fake = FakeKinesis(7)
    fake.page = 3
    fake.tokens = False
    shards = await Rig(fake).source().shards()
    assert [shard.id for shard in shards] == list(fake.shards)
    assert [call.operation for call in fake.calls] == ["ListShards"] * 2 + ["DescribeStream"] * 3


@pytest.mark.parametrize(
    "reply", [{}, {"StreamDescription": {"Shards": [{}]}}, {"StreamDescription": {"Shards": []}}]
)
@virtual
async def test_a_description_that_makes_no_sense_is_a_bad_reply(reply: dict[str, object]) -> None:
    fake = FakeKinesis(7)
    fake.page = 3
    fake.tokens = False
    fake.script("DescribeStream", reply)
    with pytest.raises(BadReply, match="DescribeStream"):
        await Rig(fake).source().shards()


@virtual
async def test_a_listing_that_fails_in_the_middle_for_another_reason_is_a_failure() -> None:
    fake = FakeKinesis(7)
    fake.page = 3
    fake.script("ListShards", None, ServiceFault("broken"))
    with pytest.raises(ServiceFault):
        await Rig(fake).source().shards()


@virtual
async def test_a_split_shard_names_its_children_at_its_end() -> None:
    fake = FakeKinesis()
    rig = Rig(fake)
    fake.put("one")
    parent = next(iter(fake.shards))
    left, right = fake.split(parent)
    async with rig.open() as reader:
        assert not reader.children
        assert await drain(reader) == ["one"]
        assert reader.children == (
            Shard(left, (parent,), hash_range=(0, HALF - 1)),
            Shard(right, (parent,), hash_range=(HALF, 2 * HALF - 1)),
        )


@virtual
async def test_a_merged_shard_is_named_by_both_parents() -> None:
    fake = FakeKinesis(2)
    rig = Rig(fake)
    one, other = list(fake.shards)
    merged = fake.merge(one, other)
    for parent in (one, other):
        async with rig.open(shard=parent) as reader:
            await drain(reader)
            assert reader.children == (Shard(merged, (one, other), hash_range=(0, 2 * HALF - 1)),)


@virtual
async def test_a_shard_that_is_split_while_it_is_read_ends_within_the_idle_interval() -> None:
    fake = FakeKinesis()
    rig = Rig(fake)
    async with rig.open() as reader:
        await idle(reader, 60)
        fake.split(next(iter(fake.shards)))
        began = anyio.current_time()
        assert await drain(reader) == []
        assert anyio.current_time() - began <= 1.0


@virtual
async def test_a_timestamp_is_exact_to_the_millisecond() -> None:
    fake = FakeKinesis()
    fake.put("before")
    await anyio.sleep(0.25)
    fake.put("at")
    async with Rig(fake).open(StartAt("AT_TIMESTAMP", timestamp=EPOCH + 0.25)) as reader:
        # An SDK sends whole seconds.
        assert fake.calls[-1].params["Timestamp"] == EPOCH + 0.25
        fake._iterators["iterator-0"] = (next(iter(fake.shards)), 0, 0.0)
        assert await receive(reader, 1) == ["at"]


@virtual
async def test_a_timestamp_in_the_future_is_refused_by_name() -> None:
    with pytest.raises(RequestRefused, match="InvalidArgument"):
        async with Rig(FakeKinesis()).open(StartAt("AT_TIMESTAMP", timestamp=EPOCH + 60)):
            pass


@virtual
async def test_a_gap_in_the_shard_is_walked_without_pauses() -> None:
    fake = FakeKinesis()
    fake.put("one")
    name = next(iter(fake.shards))
    for _ in range(10):
        walk = {"Records": [], "NextShardIterator": fake.iterator(name, 0), "MillisBehindLatest": 3_600_000}
        fake.script("GetRecords", walk)
    async with Rig(fake).open() as reader:
        assert not await reader.receive(10, 20)
        assert reader.behind == 3600
        assert await receive(reader, 1) == ["one"]
        assert anyio.current_time() < 2.2


@virtual
async def test_large_pages_are_followed_by_a_rest_as_long_as_their_bytes_need() -> None:
    fake = FakeKinesis()
    fake.put(*["x" * 1000] * 6000)
    async with Rig(fake).open() as reader:
        await receive(reader, 6000)
    # Six megabytes at two megabytes a second; the last page is not waited for.
    assert 1.5 <= anyio.current_time() <= 3.1


@pytest.mark.slow
@virtual
async def test_a_page_of_small_records_is_larger_than_one_of_large_records() -> None:
    fake = FakeKinesis()
    fake.put(*["x"] * 30_000)
    async with Rig(fake).open() as reader:
        await receive(reader, 30_000)
        limits = [call.params["Limit"] for call in fake.calls_of("GetRecords")]
        assert limits[0] == 1000
        assert limits[-1] > 5000
        fake.put(*["x" * 100_000] * 200)
        await receive(reader, 200)
        fake.put("x")
        await receive(reader, 1)
        assert fake.calls_of("GetRecords")[-1].params["Limit"] == 100


@virtual
async def test_a_young_record_behind_a_checkpoint_is_not_looked_into() -> None:
    fake = FakeKinesis()
    numbers = fake.put("0", "1", "2")
    fake.trim(2)
    rig = Rig(fake)
    async with rig.open(after(numbers[0])) as reader:
        assert await receive(reader, 1) == ["2"]
    assert len(fake.reads) == 1
    assert not rig.trimmed


@virtual
async def test_a_trim_horizon_that_cannot_be_seen_is_no_loss() -> None:
    fake = FakeKinesis()
    numbers = fake.put("0", "1")
    await anyio.sleep(DAY - 600)
    rig = Rig(fake)
    fake.script("GetRecords", None, {"Records": [], "NextShardIterator": "x", "MillisBehindLatest": 5})
    async with rig.open(after(numbers[0])) as reader:
        assert await receive(reader, 1) == ["1"]
    assert not rig.trimmed


@virtual
async def test_a_reader_that_finds_the_end_of_a_quiet_shard_joins_the_tip_from_the_trim_horizon_too() -> None:
    fake = FakeKinesis()
    rig = Rig(fake)
    async with rig.open(LATEST) as one, rig.open(mapping="other") as other:
        for _ in range(3):
            await one.receive(10, 20)
            await other.receive(10, 20)
        assert one.position == other.position
        fake.put("new")
        assert await receive(one, 1) == await receive(other, 1) == ["new"]
        assert data(await other.receive(10, 1)) == []
