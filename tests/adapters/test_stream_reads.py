"""The reads of a shard: who reads when, what is shared, and what happens when it goes wrong. Over both streams."""

from __future__ import annotations

import tracemalloc
from contextlib import AsyncExitStack
from itertools import pairwise

import anyio
import pytest

from poller.errors import AccessDenied, BadReply, ResourceNotFound, ServiceFault, ShardGone, Throttled
from poller.model import Shard, StartAt, Trimmed
from poller.sources import _stream as stream_module
from poller.sources import _stream_page as page_bounds
from tests.adapters.stream_reading import (
    KINDS,
    LATEST,
    TRIM_HORIZON,
    Rig,
    after,
    data,
    drain,
    follow,
    idle,
    make_fake,
    receive,
)
from tests.engine.fakes import settle_down, virtual
from tests.fake_streams import DAY, EPOCH, refused, throttled, wall

pytestmark = pytest.mark.parametrize("kind", KINDS)

MINUTE = 60.0
HOUR = 3600.0


# --- receiving ----------------------------------------------------------------------------------------------------------


@virtual
async def test_records_come_in_order_and_in_pieces_of_the_size_asked_for(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put(*[str(number) for number in range(950)])
    async with rig.open() as reader:
        first = await reader.receive(400, 20)
        assert len(first) == 400
        assert data(first) + await receive(reader, 550, limit=100) == [str(number) for number in range(950)]
    assert len(rig.fake.reads) == 1


@virtual
async def test_a_receive_builds_only_what_it_hands_out(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put(*["x"] * 1000)
    async with rig.open() as reader:
        built = 0
        records = reader._envelope.records

        class Counting:
            def records(self, shard_id: str, wires: list[dict[str, object]]) -> object:
                nonlocal built
                built += len(wires)
                return records(shard_id, wires)

        reader._envelope = Counting()  # type: ignore[assignment]
        await reader.receive(10, 20)
        assert built == 10
        assert "990 records in hand" in repr(reader)


@pytest.mark.parametrize("bound", ["BUILT_AT_ONCE", "BUILT_BYTES"])
@virtual
async def test_other_tasks_have_their_turn_while_a_large_batch_is_built(
    bound: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, bound, 100)
    rig = Rig.of(kind)
    rig.fake.put(*["x"] * 1000)
    async with rig.open() as reader:
        await reader.receive(1, 20)
        turns = 0

        async def work() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            assert len(await reader.receive(999, 20)) == 999
            assert turns
            tasks.cancel_scope.cancel()


@virtual
async def test_receives_at_the_same_time_share_the_records_between_them(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=0.05))
    rig.fake.put(*[str(number) for number in range(300)])
    got: list[list[str]] = [[], [], []]
    async with rig.open() as reader, anyio.create_task_group() as tasks:
        for mine in got:
            tasks.start_soon(follow, reader, mine, 7)
        await anyio.sleep(10)
        rig.fake.put("last")
        await anyio.sleep(10)
        tasks.cancel_scope.cancel()
    assert sorted([item for mine in got for item in mine], key=lambda item: (len(item), item)) == [
        *map(str, range(300)),
        "last",
    ]


@virtual
async def test_a_receive_of_nothing_ends_with_its_wait_even_while_a_read_hangs(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=5.0))
    rig.fake.put("one")
    async with rig.open() as reader:
        began = anyio.current_time()
        assert not await reader.receive(10, 0.5)
        assert anyio.current_time() - began == pytest.approx(0.5)
        await anyio.sleep(10)
        # What the read brought in the meantime is not read again.
        assert data(await reader.receive(10, 0.5)) == ["one"]
    assert len(rig.fake.reads) == 1


@virtual
async def test_a_receive_without_patience_still_gets_a_read_going(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    async with rig.open() as reader:
        assert not await reader.receive(10, 0)
        await settle_down()
        assert data(await reader.receive(10, 0)) == ["one"]


@virtual
async def test_a_receive_of_nothing_ends_with_its_wait_in_the_pause_between_reads(kind: str) -> None:
    rig = Rig.of(kind, idle_interval=30)
    async with rig.open() as reader:
        await idle(reader, 10 * MINUTE)
        began = anyio.current_time()
        assert not await reader.receive(10, 1.5)
        assert anyio.current_time() - began == pytest.approx(1.5)
        assert reader.doing == "idle"


@virtual
async def test_settling_is_bookkeeping_only(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one", "two")
    async with rig.open() as reader:
        records = await reader.receive(10, 20)
        calls = len(rig.fake.calls)
        assert await reader.ack(records) == 2
        await reader.release(records, 0.0)
        assert len(rig.fake.calls) == calls
        assert reader.redelivers is False


@virtual
async def test_a_cancelled_receive_loses_nothing(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=0.3))
    rig.fake.put(*[str(number) for number in range(50)])
    got: list[str] = []
    async with rig.open() as reader:
        for _ in range(4):
            with anyio.move_on_after(0.2):
                got += data(await reader.receive(10, 20))
        assert got + await receive(reader, 50 - len(got)) == [str(number) for number in range(50)]


# --- starting -----------------------------------------------------------------------------------------------------------


@virtual
async def test_the_four_starting_positions(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("one", "two")
    await anyio.sleep(100)
    rig.fake.put("three", "four")
    sub = StartAt("AFTER_SEQUENCE_NUMBER", numbers[1], sub_sequence_number=3)
    at = StartAt("AT_TIMESTAMP", timestamp=EPOCH + 50)
    starts = {TRIM_HORIZON: 0, after(numbers[0]): 1, sub: 1, at: 2, LATEST: 4}
    for start, skipped in starts.items():
        async with rig.open(start) as reader:
            rig.fake.put("last")
            everything = ["one", "two", "three", "four", *["last"] * list(starts).index(start), "last"]
            seen = await receive(reader, len(everything) - max(skipped, 0) if start != LATEST else 1)
            assert seen == (["last"] if start == LATEST else everything[skipped:])


@virtual
async def test_a_shard_that_is_gone_is_told_from_a_stream_that_is_gone(kind: str) -> None:
    rig = Rig.of(kind)
    with pytest.raises(ShardGone, match="shardId-of-last-year") as raised:
        async with rig.open(after("12345678901234567890"), shard="shardId-of-last-year"):
            pass
    assert raised.value.code == "ShardGone"
    rig.fake.exists = False
    with pytest.raises(ResourceNotFound) as stream_gone:
        async with rig.open():
            pass
    assert not isinstance(stream_gone.value, ShardGone)
    assert rig.stream.open_shards == 0


@virtual
async def test_a_stream_that_lists_no_shards_at_all_has_lost_none(kind: str) -> None:
    """It is just being made, under a name that it had before."""
    rig = Rig.of(kind)
    name, _ = rig.fake.shards.popitem()
    with pytest.raises(ResourceNotFound) as raised:
        async with rig.open(after("12345678901234567890"), shard=name):
            pass
    assert not isinstance(raised.value, ShardGone)


@virtual
async def test_many_shards_that_are_gone_are_found_out_with_few_listings(kind: str) -> None:
    rig = Rig(make_fake(kind, shards=250, latency=0.5))
    gone = 0

    async def open_gone(number: int) -> None:
        nonlocal gone
        await anyio.sleep(number / 100)
        with pytest.raises(ShardGone):
            async with rig.source().open(Shard(f"gone-{number}"), after("1")):
                pass
        gone += 1

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(open_gone, number)
    assert gone == 40
    listing = "ListShards" if kind == "kinesis" else "DescribeStream"
    # Three pages each.
    assert len(rig.fake.calls_of(listing)) <= 6


@virtual
async def test_a_shard_that_vanishes_while_it_is_read_is_said_to_be_gone(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as reader:
        await reader.receive(10, 1)
        name, _ = rig.fake.shards.popitem()
        rig.fake.add()
        assert name not in rig.fake.shards
        with pytest.raises(ShardGone):
            await idle(reader, MINUTE)


@virtual
async def test_a_refusal_of_a_shard_that_is_listed_stays_what_it_is(kind: str) -> None:
    rig = Rig.of(kind)
    odd = ResourceNotFound("no such index", code="ResourceNotFoundException")
    rig.fake.script("GetShardIterator", odd)
    with pytest.raises(ResourceNotFound, match="no such index"):
        async with rig.open():
            pass


@virtual
async def test_a_denied_stream_is_said_so_on_entering(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.script("GetShardIterator", AccessDenied("no"))
    with pytest.raises(AccessDenied):
        async with rig.open():
            pass
    assert rig.stream.open_shards == 0


@virtual
async def test_being_cancelled_on_entering_leaves_nothing_behind(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=5))
    with anyio.move_on_after(1):
        async with rig.open():
            pass
    assert rig.stream.open_shards == 0
    assert "0 shards" in repr(rig.stream)


# --- one read, many functions -------------------------------------------------------------------------------------------


@virtual
async def test_mappings_at_the_same_position_share_every_read(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=0.02))
    got: list[list[str]] = [[], [], [], []]
    async with anyio.create_task_group() as tasks, AsyncExitStack() as opened:
        for number, mine in enumerate(got):
            reader = await opened.enter_async_context(rig.open(mapping=f"mapping-{number}"))
            tasks.start_soon(follow, reader, mine)
        alone = 0
        for number in range(100):
            rig.fake.put(str(number))
            await anyio.sleep(0.33)
        alone = len(rig.fake.reads)
        tasks.cancel_scope.cancel()
    assert all(mine == [str(number) for number in range(100)] for mine in got)
    # 33 seconds at five reads a second: what one mapping alone would need.
    assert alone <= 5 * 33 + 1
    assert rig.fake.refusals == 0


@pytest.mark.slow
@virtual
async def test_empty_polls_are_shared_too(kind: str) -> None:
    rig = Rig.of(kind)
    async with AsyncExitStack() as opened:
        readers = [await opened.enter_async_context(rig.open(mapping=f"mapping-{n}")) for n in range(5)]
        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(idle, reader, 10 * MINUTE)
    shared = len(rig.fake.reads)
    rig = Rig.of(kind)
    async with rig.open() as reader:
        await idle(reader, 10 * MINUTE)
    assert shared == len(rig.fake.reads)


@virtual
async def test_mappings_that_began_at_different_places_of_a_quiet_shard_come_together(kind: str) -> None:
    rig = Rig.of(kind)
    (number,) = rig.fake.put("old")
    await anyio.sleep(1)
    async with anyio.create_task_group() as tasks, AsyncExitStack() as opened:
        got: list[list[str]] = [[], [], [], []]
        starts = [after(number), LATEST, LATEST, LATEST]
        for start, mine in zip(starts, got, strict=True):
            reader = await opened.enter_async_context(rig.open(start))
            tasks.start_soon(follow, reader, mine)
            await anyio.sleep(7)
        await anyio.sleep(MINUTE)
        before = len(rig.fake.reads)
        await anyio.sleep(MINUTE)
        assert len(rig.fake.reads) - before <= MINUTE / rig.stream._idle_interval + 1
        rig.fake.put("new")
        await anyio.sleep(10)
        assert got == [["new"]] * 4
        tasks.cancel_scope.cancel()


@virtual
async def test_a_latest_that_was_throttled_for_long_is_sought_where_it_was(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("old")
    await anyio.sleep(MINUTE)
    rig.fake.script("GetShardIterator", *[throttled("GetShardIterator")] * 7)
    async with anyio.create_task_group() as tasks:

        async def put() -> None:
            await anyio.sleep(12)
            rig.fake.put("new")

        tasks.start_soon(put)
        async with rig.open(StartAt("LATEST", timestamp=wall())) as reader:
            assert await receive(reader, 1) == ["new"]


@virtual
async def test_a_latest_that_waited_before_it_was_throttled_is_sought_where_it_was(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("old")
    await anyio.sleep(MINUTE)
    began = wall()
    await anyio.sleep(9)
    rig.fake.script("GetShardIterator", *[throttled("GetShardIterator")] * 4)
    async with anyio.create_task_group() as tasks:

        async def put() -> None:
            await anyio.sleep(2)
            rig.fake.put("new")

        tasks.start_soon(put)
        async with rig.open(StartAt("LATEST", timestamp=began)) as reader:
            assert await receive(reader, 1) == ["new"]


@virtual
async def test_a_late_mapping_never_gets_what_was_there_before_it(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open(LATEST) as early, anyio.create_task_group() as tasks:
        got: list[str] = []
        tasks.start_soon(follow, early, got)
        await anyio.sleep(MINUTE)
        rig.fake.put("between")
        await anyio.sleep(0.01)
        async with rig.open(LATEST, mapping="late") as late:
            late_got: list[str] = []
            tasks.start_soon(follow, late, late_got)
            await anyio.sleep(MINUTE)
            rig.fake.put("new")
            await anyio.sleep(MINUTE)
            assert (got, late_got) == (["between", "new"], ["new"])
            tasks.cancel_scope.cancel()


@virtual
async def test_a_slightly_slower_mapping_is_served_from_memory(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as fast, rig.open(mapping="slow") as slow:
        for number in range(3):
            rig.fake.put(str(number))
            assert await receive(fast, 1) == [str(number)]
        reads = len(rig.fake.reads)
        assert await receive(slow, 3) == ["0", "1", "2"]
        assert len(rig.fake.reads) == reads


@virtual
async def test_a_mapping_whose_position_lies_inside_a_page_is_served_from_it(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("0", "1", "2", "3")
    aggregate = StartAt("AFTER_SEQUENCE_NUMBER", numbers[2], sub_sequence_number=1)
    # Somebody else is still to come to the page, so it is kept.
    async with rig.open() as fast, rig.open(mapping="slow"):
        await receive(fast, 4)
        for start, expected in ((after(numbers[1]), ["2", "3"]), (aggregate, ["2", "3"])):
            async with rig.open(start, mapping="in between") as reader:
                assert await receive(reader, 2) == expected
    assert len(rig.fake.reads) == 1


@virtual
async def test_a_mapping_behind_the_last_page_or_in_front_of_it_is_not_served_from_it(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("0", "1")
    async with rig.open(after(numbers[0])) as fast, rig.open(after(numbers[0]), mapping="slow"):
        await receive(fast, 1)
        aggregate = StartAt("AFTER_SEQUENCE_NUMBER", numbers[0], sub_sequence_number=1)
        async with rig.open(aggregate, mapping="in front") as reader:
            assert await receive(reader, 2) == ["0", "1"]
        (number,) = rig.fake.put("2")
        async with rig.open(after(number), mapping="behind") as reader:
            rig.fake.put("3")
            assert await receive(reader, 1) == ["3"]


@virtual
async def test_a_mapping_that_is_further_behind_reads_for_itself_and_only_it(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as fast, rig.open(mapping="slow") as slow:
        for number in range(20):
            rig.fake.put(str(number))
            assert await receive(fast, 1) == [str(number)]
        reads = len(rig.fake.reads)
        assert await receive(slow, 20) == [str(number) for number in range(20)]
        assert len(rig.fake.reads) > reads
        rig.fake.put("last")
        assert await receive(fast, 1) == ["last"]
        assert await receive(slow, 1) == ["last"]
    assert rig.fake.refusals == 0


@virtual
async def test_pages_are_kept_within_their_bounds_and_only_while_somebody_needs_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_bounds, "BYTES_KEPT", 5000)
    rig = Rig.of(kind)
    async with rig.open() as fast, rig.open(mapping="slow"):
        reads = rig.stream._open[next(iter(rig.fake.shards))]
        for number in range(10):
            rig.fake.put(str(number))
            await receive(fast, 1)
            assert len(reads.pages) <= page_bounds.PAGES_KEPT
        assert len(reads.pages) == page_bounds.PAGES_KEPT
        for _ in range(4):
            rig.fake.put("x" * 900)
            await receive(fast, 1)
            assert reads.pages.cost <= 5000
        assert "2 readers" in repr(reads)
    async with rig.open() as alone:
        reads = rig.stream._open[next(iter(rig.fake.shards))]
        assert len(await receive(alone, 14)) == 14
        assert len(reads.pages) == 0


@virtual
async def test_a_page_that_is_larger_than_the_bound_is_kept_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_bounds, "BYTES_KEPT", 100)
    rig = Rig.of(kind)
    rig.fake.put("one")
    async with rig.open() as fast, rig.open(mapping="slow") as slow:
        await receive(fast, 1)
        reads = len(rig.fake.reads)
        assert await receive(slow, 1) == ["one"]
        assert len(rig.fake.reads) == reads


@virtual
async def test_a_failure_is_shared_by_those_who_wait_for_the_same_read(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=0.1))
    rig.fake.put("one")
    failed = 0
    async with rig.open() as one, rig.open(mapping="other") as other, anyio.create_task_group() as tasks:
        rig.fake.script("GetRecords", ServiceFault("broken"))

        async def poll(reader: object) -> None:
            nonlocal failed
            with pytest.raises(ServiceFault):
                await reader.receive(10, 20)  # type: ignore[attr-defined]
            failed += 1

        tasks.start_soon(poll, one)
        tasks.start_soon(poll, other)
    assert failed == 2
    assert len(rig.fake.reads) == 1


@virtual
async def test_when_the_one_who_reads_leaves_the_others_go_on(kind: str) -> None:
    rig = Rig(make_fake(kind, latency=1.0))
    rig.fake.put("one")
    got: list[str] = []
    async with rig.open(mapping="stays") as stays, anyio.create_task_group() as tasks:
        async with rig.open(mapping="leaves") as leaves:
            assert not await leaves.receive(10, 0.1)
            tasks.start_soon(follow, stays, got)
            await anyio.sleep(0.5)
        await anyio.sleep(5)
        assert got == ["one"]
        tasks.cancel_scope.cancel()
    with pytest.raises(anyio.ClosedResourceError):
        await leaves.receive(10, 20)


# --- pace ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@virtual
async def test_a_busy_shard_is_read_as_fast_as_the_quota_allows_and_no_faster(kind: str) -> None:
    rig = Rig.of(kind)
    delays: list[float] = []

    async def produce() -> None:
        while True:
            rig.fake.put(str(anyio.current_time()))
            await anyio.sleep(0.037)

    async with rig.open() as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(produce)
        with anyio.move_on_after(MINUTE):
            while True:
                put_at = map(float, data(await reader.receive(100, 20)))
                delays.extend(anyio.current_time() - at for at in put_at)
        tasks.cancel_scope.cancel()
    assert 290 <= len(rig.fake.reads) <= 301
    assert rig.fake.refusals == 0
    assert sorted(delays)[len(delays) // 2] <= 0.11
    assert max(delays) <= 0.21


@virtual
async def test_a_record_every_second_reaches_the_handler_within_a_quarter_of_one(kind: str) -> None:
    rig = Rig.of(kind)
    delays: list[float] = []

    async def produce() -> None:
        for number in range(200):
            await anyio.sleep(0.7 + number % 7 / 10)
            rig.fake.put(str(anyio.current_time()))

    async with rig.open() as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(produce)
        while len(delays) < 200:
            put_at = map(float, data(await reader.receive(100, 20)))
            delays.extend(anyio.current_time() - at for at in put_at)
    assert sorted(delays)[100] <= 0.2


@virtual
async def test_an_idle_shard_is_read_less_and_less_until_a_record_comes(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as reader:
        rig.fake.put("one")
        await receive(reader, 1)
        await idle(reader, 10 * MINUTE)
        reads = rig.fake.reads
        gaps = [later - earlier for earlier, later in pairwise(reads)]
        interval = rig.stream._idle_interval
        assert all(later > earlier - 1e-6 for earlier, later in pairwise(gaps))
        assert gaps[1] == pytest.approx(0.2)
        assert gaps[-1] == pytest.approx(interval)
        calls = len(reads)
        await idle(reader, MINUTE)
        assert len(rig.fake.reads) - calls == pytest.approx(MINUTE / interval, abs=1)
        rig.fake.put("two")
        await receive(reader, 1)
        woken = len(rig.fake.reads)
        await idle(reader, 1.1)
        assert len(rig.fake.reads) - woken == 5


@virtual
async def test_the_idle_interval_can_be_chosen(kind: str) -> None:
    rig = Rig.of(kind, idle_interval=30.0)
    async with rig.open() as reader:
        await idle(reader, 10 * MINUTE)
        calls = len(rig.fake.reads)
        await idle(reader, 10 * MINUTE)
        assert len(rig.fake.reads) - calls == pytest.approx(20, abs=1)


@virtual
async def test_the_quota_is_that_of_the_shard_whatever_its_readers_do(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.reads_per_second = 5
    rig.fake.put(*["x"] * 1000)
    async with anyio.create_task_group() as tasks, AsyncExitStack() as opened:
        numbers = [rig.fake.number(record) for record in rig.fake.shards[next(iter(rig.fake.shards))].records]
        for position in range(0, 1000, 100):
            reader = await opened.enter_async_context(rig.open(after(numbers[position])))
            tasks.start_soon(follow, reader, [])
        await anyio.sleep(30)
        tasks.cancel_scope.cancel()
    assert rig.fake.refusals == 0
    reads = rig.fake.reads
    assert min(later - earlier for earlier, later in pairwise(reads)) > 0.199


# --- iterators ----------------------------------------------------------------------------------------------------------


@virtual
async def test_an_iterator_that_grew_old_is_sought_again_behind_the_last_record(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("one")
    async with rig.open() as reader:
        await receive(reader, 1)
        rig.fake.put("two")
        await anyio.sleep(HOUR)
        assert await receive(reader, 1) == ["two"]
    last = rig.fake.calls_of("GetShardIterator")[-1].params
    assert last["ShardIteratorType"] == "AFTER_SEQUENCE_NUMBER"
    assert numbers[0] in last.values()


@virtual
async def test_an_iterator_that_is_refused_as_expired_is_sought_again(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    async with rig.open() as reader:
        await receive(reader, 1)
        rig.fake.put("two")
        rig.fake.script("GetRecords", refused("ExpiredIteratorException"))
        assert await receive(reader, 1) == ["two"]
    assert len(rig.fake.calls_of("GetShardIterator")) == 2


@virtual
async def test_a_source_that_calls_every_iterator_expired_is_trouble(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as reader:
        rig.fake.script("GetRecords", *[refused("ExpiredIteratorException")] * 3)
        with pytest.raises(Exception, match="ExpiredIterator"):
            await reader.receive(10, 20)
        await reader.receive(10, 20)


@virtual
async def test_a_latest_that_expires_before_the_first_record_still_begins_where_it_was(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("old")
    await anyio.sleep(MINUTE)
    async with rig.open(LATEST) as reader:
        await anyio.sleep(1)
        rig.fake.put("new")
        await anyio.sleep(HOUR)
        assert await receive(reader, 1) == ["new"]


@virtual
async def test_a_latest_of_long_ago_may_be_given_with_its_time(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open(StartAt("LATEST", timestamp=wall())) as reader:
        rig.fake.put("new")
        assert await receive(reader, 1) == ["new"]


@virtual
async def test_the_trim_horizon_is_sought_again_when_it_expires(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as reader:
        await idle(reader, 10)
        await anyio.sleep(HOUR)
        rig.fake.put("new")
        assert await receive(reader, 1) == ["new"]


# --- throttling ---------------------------------------------------------------------------------------------------------


@virtual
async def test_throttling_is_waited_out_once_for_all_readers_and_shown(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    got: list[list[str]] = [[], []]
    async with rig.open() as one, rig.open(mapping="other") as other, anyio.create_task_group() as tasks:
        rig.fake.script("GetRecords", *[throttled()] * 5)
        tasks.start_soon(follow, one, got[0])
        tasks.start_soon(follow, other, got[1])
        await anyio.sleep(0.1)
        assert (one.doing, other.doing) == ("throttled", "throttled")
        await anyio.sleep(MINUTE)
        assert got == [["one"], ["one"]]
        assert "throttled" not in (one.doing, other.doing)
        tasks.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in pairwise(rig.fake.reads[:6])]
    assert all(0.3 * 2**n <= pause <= 0.3 * 2**n + 0.6 for n, pause in enumerate(pauses))
    assert pauses[-1] > 4


@virtual
async def test_who_comes_while_the_shard_is_throttled_waits_as_well(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("one", "two")
    async with rig.open() as one, rig.open(after(numbers[0]), mapping="other") as other:
        rig.fake.script("GetRecords", *[throttled()] * 4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive, one, 2)
            await anyio.sleep(0.1)
            tasks.start_soon(receive, other, 1)
            await anyio.sleep(0.1)
            assert other.doing == "throttled"


@virtual
async def test_throttling_without_end_becomes_the_mappings_trouble(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as reader:
        rig.fake.script("GetRecords", *[throttled()] * 10)
        with pytest.raises(Throttled):
            await reader.receive(10, 10 * MINUTE)
        assert not await reader.receive(10, 20)


@virtual
async def test_throttled_seeks_are_tried_again(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    rig.fake.script("GetShardIterator", throttled("GetShardIterator"), throttled("GetShardIterator"))
    async with rig.open() as reader:
        assert await receive(reader, 1) == ["one"]


# --- trouble ------------------------------------------------------------------------------------------------------------


@virtual
async def test_other_failures_are_the_callers(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    async with rig.open() as reader:
        rig.fake.script("GetRecords", AccessDenied("no"))
        with pytest.raises(AccessDenied):
            await reader.receive(10, 20)
        assert await receive(reader, 1) == ["one"]


@pytest.mark.parametrize("reply", [{}, {"Records": [{"dynamodb": {}}], "NextShardIterator": "x"}])
@virtual
async def test_a_reply_that_makes_no_sense_is_a_bad_reply_and_is_asked_for_again(
    kind: str, reply: dict[str, object]
) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    async with rig.open() as reader:
        rig.fake.script("GetRecords", reply)
        with pytest.raises(BadReply):
            await reader.receive(10, 20)
        assert await receive(reader, 1) == ["one"]


@virtual
async def test_an_iterator_that_is_missing_from_its_reply_is_a_bad_reply(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.script("GetShardIterator", {})
    with pytest.raises(BadReply, match="ShardIterator"):
        async with rig.open():
            pass


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("bad", [0, 2])
@virtual
async def test_a_record_that_makes_no_sense_is_not_skipped(kind: str, bad: int, kept: bool) -> None:
    rig = Rig.of(kind)
    rig.fake.put("0", "1", "2", "3")
    async with rig.open() as reader, rig.open(TRIM_HORIZON if kept else LATEST, mapping="other"):
        (shard,) = rig.fake.shards.values()
        whole = shard.records[bad]
        name = "PartitionKey" if kind == "kinesis" else "eventID"
        if kind == "kinesis":
            shard.records[bad] = {**whole, "PartitionKey": object()}
        else:
            shard.records[bad] = {key: value for key, value in whole.items() if key != name}
        got = data(await reader.receive(bad, 20)) if bad else []
        with pytest.raises(BadReply):
            await reader.receive(10, 20)
        shard.records[bad] = whole
        assert got + await receive(reader, 4 - bad) == ["0", "1", "2", "3"]


# --- ends ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_closed_shard_ends_behind_its_last_record(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put(*[str(number) for number in range(10)])
    rig.fake.add(next(iter(rig.fake.shards)))
    async with rig.open() as reader:
        assert len(await reader.receive(9, 20)) == 9
        assert not reader.ended
        assert len(await reader.receive(9, 20)) == 1
        assert reader.ended
        assert reader.doing == "ended"
        assert not await reader.receive(9, 20)
        calls = len(rig.fake.calls)
        assert not await reader.receive(9, 20)
        assert len(rig.fake.calls) == calls


@virtual
async def test_a_shard_that_is_closed_while_it_is_read_ends_too(kind: str) -> None:
    rig = Rig.of(kind)
    async with rig.open() as reader, rig.open(mapping="other") as other:
        rig.fake.put("one")
        assert await receive(reader, 1) == ["one"]
        rig.fake.add(next(iter(rig.fake.shards)))
        assert await drain(reader) == []
        assert await drain(other) == ["one"]


@virtual
async def test_an_empty_closed_shard_ends_without_pauses(kind: str) -> None:
    rig = Rig.of(kind)
    name = next(iter(rig.fake.shards))
    rig.fake.add(name)
    async with rig.open() as reader:
        for _ in range(30):
            rig.fake.script("GetRecords", {"Records": [], "NextShardIterator": rig.fake.iterator(name, 0)})
        assert await drain(reader) == []
        assert anyio.current_time() < 10


# --- what is lost -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_mapping_that_was_overtaken_goes_on_at_the_trim_horizon_and_says_so(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("0")
    async with rig.open() as reader:
        await receive(reader, 1)
        await anyio.sleep(HOUR)
        rig.fake.put("lost")
        await anyio.sleep(HOUR)
        rig.fake.put("kept")
        await anyio.sleep(DAY - 600)
        assert await receive(reader, 1) == ["kept"]
        (told,) = rig.trimmed
        assert told == Trimmed("clicks", reader._shard.id, numbers[0], told.lost_seconds)
        assert told.lost_seconds == pytest.approx(2 * HOUR if kind == "kinesis" else 2 * HOUR - 600, abs=2)
        rig.fake.put("more")
        assert await receive(reader, 1) == ["more"]
    assert len(rig.trimmed) == 1


@virtual
async def test_a_checkpoint_that_was_trimmed_is_told_to_every_mapping_of_it(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("0", "1", "2", "3")
    await anyio.sleep(DAY - 600)
    rig.fake.trim(3)
    async with rig.open(after(numbers[0])) as one, rig.open(after(numbers[0]), mapping="other") as other:
        assert await receive(one, 1) == ["3"]
        assert await receive(other, 1) == ["3"]
    assert [(told.mapping, told.after, told.lost_seconds) for told in rig.trimmed] == [
        ("clicks", numbers[0], None),
        ("other", numbers[0], None),
    ]


@virtual
async def test_a_checkpoint_that_is_old_but_there_is_no_loss(kind: str) -> None:
    rig = Rig.of(kind)
    numbers = rig.fake.put("0", "1", "2")
    await anyio.sleep(DAY - 600)
    aggregate = StartAt("AFTER_SEQUENCE_NUMBER", numbers[1], sub_sequence_number=1)
    for start in (after(numbers[0]), aggregate):
        async with rig.open(start) as reader:
            assert await receive(reader, 2) == ["1", "2"]
    assert not rig.trimmed


@pytest.mark.slow
@virtual
async def test_an_idle_mapping_loses_nothing_when_its_last_record_is_trimmed(kind: str) -> None:
    rig = Rig.of(kind, idle_interval=60)
    rig.fake.put("one")
    async with rig.open() as reader:
        await receive(reader, 1)
        await idle(reader, DAY + HOUR)
        rig.fake.put("two")
        assert await receive(reader, 1) == ["two"]
    assert not rig.trimmed


# --- lag ----------------------------------------------------------------------------------------------------------------


@virtual
async def test_how_far_a_mapping_is_behind(kind: str) -> None:
    rig = Rig.of(kind)
    rig.fake.put("one")
    await anyio.sleep(30)
    rig.fake.put("two")
    async with rig.open() as reader:
        assert reader.behind is None
        await reader.receive(1, 20)
        assert reader.behind == pytest.approx(30, abs=1)
        await reader.receive(1, 20)
        assert reader.behind == pytest.approx(0, abs=1)
        await idle(reader, 10)
        assert reader.behind == 0
        assert reader.doing == "idle"


# --- listings -----------------------------------------------------------------------------------------------------------


@virtual
async def test_mappings_share_a_listing_until_the_shards_change(kind: str) -> None:
    rig = Rig(make_fake(kind, 3, latency=0.1))
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(rig.source(f"mapping-{number}").shards)
    assert len(rig.fake.calls) == 1
    first = next(iter(rig.fake.shards))
    rig.fake.add(first)
    async with rig.open() as reader:
        await drain(reader)
    assert len(await rig.source().shards()) == 4
    await anyio.sleep(2)
    assert [shard.closed for shard in await rig.source().shards() if shard.id == first] == [True]


@virtual
async def test_a_failed_listing_is_not_remembered(kind: str) -> None:
    rig = Rig.of(kind)
    operation = "ListShards" if kind == "kinesis" else "DescribeStream"
    rig.fake.script(operation, ServiceFault("broken"), {})
    with pytest.raises(ServiceFault):
        await rig.source().shards()
    with pytest.raises(BadReply):
        await rig.source().shards()
    assert len(await rig.source().shards()) == 1


# --- a thousand shards --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@virtual
async def test_a_thousand_open_shards_take_a_few_kilobytes_each(kind: str) -> None:
    rig = Rig(make_fake(kind, 1000))
    async with AsyncExitStack() as opened:
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for name in rig.fake.shards:
            await opened.enter_async_context(rig.open(LATEST, shard=name))
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (taken - before) / 1000 < 8000


@pytest.mark.slow
@virtual
async def test_many_idle_shards_cost_one_read_an_interval_each(kind: str) -> None:
    rig = Rig(make_fake(kind, 100))
    interval = rig.stream._idle_interval
    async with AsyncExitStack() as opened:
        readers = [await opened.enter_async_context(rig.open(LATEST, shard=name)) for name in rig.fake.shards]
        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(idle, reader, MINUTE)
            await anyio.sleep(8 * interval)
            before = len(rig.fake.calls)
            await anyio.sleep(2 * interval)
            assert 200 <= len(rig.fake.calls) - before <= 250
            tasks.cancel_scope.cancel()
