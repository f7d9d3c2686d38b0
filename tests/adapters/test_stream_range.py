"""A range of a stream: where it begins, where it ends, what is left out, and where it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.core.pace import Allowance
from poller.core.replay import ReplayEnvelope, Tally
from poller.core.seek import Target
from poller.core.stream_envelope import DynamoDbEnvelope, KinesisEnvelope
from poller.errors import ReplayRefused, RequestRefused, ShardGone, Throttled
from poller.model import Checkpoint, Shard, StartAt
from poller.sources._walk import Replaying
from poller.sources.stream_range import Range, StreamRange
from tests.adapters.aggregates import packed
from tests.adapters.stream_reading import KINDS, REGION, ROLE, Rig, data
from tests.engine.fakes import virtual
from tests.fake_streams import EPOCH, FakeKinesis, wall

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.model import Record

HORIZON = Target("TRIM_HORIZON")


def number(sequence_number: str) -> Target:
    return Target("SEQUENCE_NUMBER", sequence_number)


def ranged(rig: Rig, wanted: Range, done: dict[str, Checkpoint] | None = None, **more: Any) -> StreamRange:
    arn = str(rig.fake.arn)  # type: ignore[attr-defined]
    kinesis = KinesisEnvelope(arn, REGION, ROLE)
    envelope = ReplayEnvelope(kinesis if ":kinesis:" in arn else DynamoDbEnvelope(arn, REGION))
    everything: Callable[[Record], bool] = lambda record: True  # noqa: E731
    replaying = Replaying(
        arn,
        envelope,
        1,
        more.get("passes", everything),
        more.get("wants", everything),
        more.get("group", 100),
    )
    return StreamRange(
        wanted,
        rig.source(deaggregate=more.get("deaggregate", False)),
        replaying,
        Allowance(None),
        more.get("tally", Tally()),
        {} if done is None else done,
    )


async def replayed(source: StreamRange, most: int = 10_000) -> list[str]:
    """What comes of all shards, each up to `most` records."""
    found: list[str] = []
    while shards := await source.shards():
        for shard in shards:
            own: list[str] = []
            async with source.open(shard, StartAt()) as reader:
                while not reader.ended and len(own) < most:
                    records = await reader.receive(min(3, most - len(own)), 60.0)
                    own += data(records)
                    if records:
                        await source.passed(shard.id, records[-1])
            found += own
    assert source.exhausted
    return found


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_from_the_beginning_to_now(kind: str):
    rig = Rig.of(kind)
    rig.fake.put(*"abcdefgh")
    wanted = Range(HORIZON, Target("TIME", time=wall()))
    await anyio.sleep(2)
    rig.fake.put("later")
    assert await replayed(ranged(rig, wanted)) == [*"abcdefgh"]


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_from_a_time_to_a_time(kind: str):
    rig = Rig.of(kind)
    for text in "abcdef":
        rig.fake.put(text)
        await anyio.sleep(10)
    wanted = Range(Target("TIME", time=EPOCH + 9), Target("TIME", time=EPOCH + 31))
    assert await replayed(ranged(rig, wanted)) == ["b", "c", "d"]


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_what_is_older_than_the_first_time_may_be_much(kind: str):
    rig = Rig.of(kind)
    rig.fake.put(*["old"] * 5_000)
    await anyio.sleep(10)
    rig.fake.put(*"ab")
    wanted = Range(Target("TIME", time=EPOCH + 9), Target("TIME", time=EPOCH + 11))
    await anyio.sleep(10)
    assert await replayed(ranged(rig, wanted)) == ["a", "b"]


@virtual
async def test_a_closed_shard_has_not_ended_because_reads_bring_nothing():
    rig = Rig.of("dynamodb")
    rig.fake.put(*"ab")
    rig.fake.shards[next(iter(rig.fake.shards))].closed = True
    rig.fake.script("GetRecords", *[{"Records": [], "NextShardIterator": "iterator-0"}] * 10)
    assert await replayed(ranged(rig, Range(HORIZON, Target("TIME", time=wall() + 10)))) == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_from_a_number_to_a_number_both_included(kind: str):
    rig = Rig.of(kind)
    numbers = rig.fake.put(*"abcdef")
    shard = next(iter(rig.fake.shards))
    tally = Tally()
    assert await replayed(ranged(rig, Range(number(numbers[1]), number(numbers[3]), shard), tally=tally)) == [
        "b",
        "c",
        "d",
    ]
    assert tally.succeeded == 3


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_it_ends_at_the_end_of_a_shard_that_is_open_or_closed(kind: str):
    rig = Rig.of(kind)
    numbers = rig.fake.put(*"ab")
    shard = next(iter(rig.fake.shards))
    far = str(int(numbers[-1]) + 10**9)
    assert await replayed(ranged(rig, Range(HORIZON, number(far), shard))) == ["a", "b"]
    rig.fake.shards[shard].closed = True
    assert await replayed(ranged(rig, Range(HORIZON, number(far), shard))) == ["a", "b"]


@virtual
async def test_all_shards_are_read_or_only_one():
    rig = Rig.of("kinesis")
    child = rig.fake.add(next(iter(rig.fake.shards)))
    rig.fake.put(*"ab", shard=child)
    wanted = Range(HORIZON, Target("TIME", time=wall() + 1))
    assert await replayed(ranged(rig, wanted)) == ["a", "b"]
    source = ranged(rig, Range(wanted.start, wanted.end, child))
    assert [shard.id for shard in await source.shards()] == [child]
    with pytest.raises(ReplayRefused, match="the stream has no shard nowhere"):
        await ranged(rig, Range(wanted.start, wanted.end, "nowhere")).shards()


@virtual
async def test_shards_are_named_by_generations_so_that_keys_keep_their_order():
    rig = Rig.of("kinesis")
    assert isinstance(rig.fake, FakeKinesis)
    first = next(iter(rig.fake.shards))
    left, right = rig.fake.split(first)
    merged = rig.fake.merge(left, right)
    source = ranged(rig, Range(HORIZON, Target("TIME", time=wall())))
    named: list[list[str]] = []
    while shards := await source.shards():
        named.append([shard.id for shard in shards])
        assert source.exhausted is (named[-1] == [merged])
    assert named == [[first], [left, right], [merged]]
    # Of one shard alone nothing is waited for.
    assert [one.id for one in await ranged(rig, Range(HORIZON, number("1"), merged)).shards()] == [merged]


@virtual
async def test_it_goes_on_behind_what_was_done():
    rig = Rig.of("kinesis")
    rig.fake.put(*"abcdefgh")
    wanted, done = Range(HORIZON, Target("TIME", time=wall() + 1)), dict[str, Checkpoint]()
    first = await replayed(ranged(rig, wanted, done), most=4)
    assert first == ["a", "b", "c", "d"]
    assert await replayed(ranged(rig, wanted, done)) == ["e", "f", "g", "h"]
    assert await replayed(ranged(rig, wanted, done)) == []


@virtual
async def test_inside_an_aggregate_it_goes_on_behind_what_was_done():
    rig = Rig.of("kinesis")
    rig.fake.put(packed(*"abcd"))
    wanted, done = Range(HORIZON, Target("TIME", time=wall() + 1)), dict[str, Checkpoint]()
    assert await replayed(ranged(rig, wanted, done, deaggregate=True), most=2) == ["a", "b"]
    assert await replayed(ranged(rig, wanted, done, deaggregate=True)) == ["c", "d"]


@pytest.mark.parametrize("which", ["passes", "wants"])
@virtual
async def test_what_filters_drop_is_counted(which: str):
    rig = Rig.of("kinesis")
    rig.fake.put(*"aXbX")
    tally = Tally()
    wanted = Range(HORIZON, Target("TIME", time=wall() + 1))
    source = ranged(rig, wanted, tally=tally, **{which: lambda record: data([record]) != ["X"]})
    assert await replayed(source) == ["a", "b"]
    assert (tally.filtered, tally.succeeded) == (2, 2)


@virtual
async def test_what_fails_for_good_is_no_success():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"ab")
    tally = Tally()
    source = ranged(rig, Range(HORIZON, Target("TIME", time=wall() + 1)), tally=tally)
    (shard,) = await source.shards()
    async with source.open(shard, StartAt()) as reader:
        records = await reader.receive(10, 20.0)
        source.failed(shard.id, numbers[:1])
        await source.passed(shard.id, records[-1])
    assert tally.succeeded == 1


@virtual
async def test_a_read_that_fails_is_told_and_goes_on_where_it_was():
    rig = Rig.of("kinesis")
    rig.fake.put(*[f"{at}" for at in range(1500)])
    rig.fake.script("GetRecords", None, RequestRefused("odd", operation="GetRecords"))
    source = ranged(rig, Range(HORIZON, Target("TIME", time=wall() + 1)))
    (shard,) = await source.shards()
    found: list[str] = []
    failures = 0
    async with source.open(shard, StartAt()) as reader:
        while not reader.ended:
            try:
                found += data(await reader.receive(100, 20.0))
            except RequestRefused:
                failures += 1
    assert (found, failures) == ([f"{at}" for at in range(1500)], 1)


@virtual
async def test_a_shard_that_cannot_be_opened_is_tried_again_and_one_that_is_gone_ends():
    rig = Rig.of("kinesis")
    rig.fake.put("a")
    rig.fake.script("GetShardIterator", *[Throttled("slow down")] * 12)
    source = ranged(rig, Range(HORIZON, Target("TIME", time=wall() + 1)))
    (shard,) = await source.shards()
    async with source.open(shard, StartAt()) as reader:
        with pytest.raises(Throttled):
            await reader.receive(1, 200.0)
        assert data(await reader.receive(1, 200.0)) == ["a"]
    rig.fake.shards.clear()
    rig.fake.add()
    async with source.open(shard, StartAt()) as reader:
        assert await reader.receive(1, 200.0) == ()
        assert reader.ended


class Vanishing:
    """A stream whose shard goes while it is read."""

    ended = False
    behind = None

    async def receive(self, limit: int, wait: float) -> Any:
        raise ShardGone


@virtual
async def test_a_shard_that_goes_while_it_is_read_ends():
    source = ranged(Rig.of("kinesis"), Range(HORIZON, Target("TIME", time=1.0)))
    error, _ = await source._follow(Shard("s"), Vanishing(), None, StartAt())  # type: ignore[arg-type]
    assert error is None
    assert Shard("s").parents == ()
