"""The shards of a stream: begun in their order, read to their end, remembered, and each in trouble by itself."""

from __future__ import annotations

import anyio
import pytest

from poller.engine import shard_keeper
from poller.errors import AccessDenied, ResourceNotFound, StoreError, Throttled, Unreachable
from poller.model import Checkpoint, MappingState, StartAt, StateChanged, Trimmed, Trouble
from poller.stores.memory import MemoryStore
from tests.engine.fakes import EPOCH, ERROR, OK, Dropping, Function, settle_down, taking, virtual
from tests.engine.stream_fakes import Clicks, Stream


class FailingStore(MemoryStore):
    """Raises `broken` while that is set; `saves` are the checkpoints in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: StoreError | None = None
        self.saves: list[tuple[str, Checkpoint]] = []

    async def save(self, mapping, shard, checkpoint):
        if self.broken:
            raise self.broken
        self.saves.append((shard, checkpoint))
        return await super().save(mapping, shard, checkpoint)

    async def seek(self, mapping, shard, checkpoint):
        if self.broken:
            raise self.broken
        await super().seek(mapping, shard, checkpoint)


def doing(clicks):
    return {shard.shard: shard.doing for shard in clicks.keeper.shards()}


async def stopped(clicks, keeper):
    """Run the keeper until it is quiet, as a stop does."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await settle_down()
        keeper.quiet()


# --- reading ------------------------------------------------------------------------------------------------------------


@virtual
async def test_every_record_of_a_shard_is_processed_in_its_order_and_the_checkpoint_is_behind_the_last():
    clicks = Clicks(batch_size=100)
    ids = clicks.stream.put(250)
    async with clicks.running() as keeper:
        await settle_down()
        (status,) = keeper.shards()
        assert (status.sequence_number, status.iterator_age, status.open_records) == ("250", 0.0, 0)
        assert (keeper.load().receivers, keeper.load().buffered_records) == (1, 0)
    assert clicks.ids == ids
    assert [len(batch) for batch in clicks.function.batches] == [100, 100, 50]
    assert await clicks.position_of() == "250"


@virtual
async def test_shards_are_read_side_by_side():
    clicks = Clicks(stream=Stream(3), function=Function(handler=taking(10)))
    for shard in clicks.stream.listed:
        clicks.stream.put(shard=shard)
    async with clicks.running() as keeper:
        await settle_down()
        assert clicks.function.running == 3
        assert keeper.load().in_flight_invocations == 3
        assert set(doing(clicks).values()) == {"working"}


@virtual
async def test_what_is_filtered_out_moves_the_checkpoint():
    clicks = Clicks(filters=Dropping("2", "3"))
    clicks.stream.put(3)
    async with clicks.running():
        await settle_down()
    assert clicks.function.batches == [["1"]]
    assert await clicks.position_of() == "3"


@virtual
async def test_the_age_of_the_oldest_open_record_is_the_iterator_age():
    clicks = Clicks(function=Function(handler=taking(100)))
    clicks.stream.put()
    async with clicks.running() as keeper:
        await anyio.sleep(30)
        (status,) = keeper.shards()
        assert (status.iterator_age, status.open_records) == (30, 1)


# --- where it begins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "seen"), [("TRIM_HORIZON", ["1", "2", "3"]), ("LATEST", ["3"]), ("AT_TIMESTAMP", ["2", "3"])]
)
@virtual
async def test_a_new_mapping_begins_at_its_starting_position(position, seen):
    clicks = Clicks(position=position, timestamp=EPOCH + 5)
    clicks.stream.put()
    await anyio.sleep(10)
    clicks.stream.put()
    async with clicks.running():
        await settle_down()
        clicks.stream.put()
        await settle_down()
    assert clicks.ids == seen


@virtual
async def test_after_a_restart_it_goes_on_behind_the_checkpoint():
    stream, store = Stream(), MemoryStore()
    before = Clicks(stream=stream, store=store)
    stream.put(3)
    async with before.open() as keeper:
        await stopped(before, keeper)
    after = Clicks(stream=stream, store=store, position="LATEST")
    stream.put(2)
    async with after.running():
        await settle_down()
    assert (before.ids, after.ids) == (["1", "2", "3"], ["4", "5"])


@virtual
async def test_a_hard_stop_repeats_what_was_open_and_writes_what_was_done():
    stream, store = Stream(), MemoryStore()
    before = Clicks(stream=stream, store=store, batch_size=1, function=Function(OK, handler=None))
    stream.put(2)
    async with before.running():
        await settle_down()
        before.function.hold()
        stream.put(2)
        await settle_down()
        assert before.ids == ["1", "2", "3"]
    assert before.function.cancelled == 1
    after = Clicks(stream=stream, store=store)
    async with after.running():
        await settle_down()
    assert after.ids == ["3", "4"]


@virtual
async def test_the_latest_that_could_not_be_opened_at_once_is_sought_by_its_time():
    clicks = Clicks(position="LATEST")
    clicks.stream.opening_failures = [Throttled("slow down")]
    async with clicks.running():
        await settle_down()
        clicks.stream.put()
        await anyio.sleep(10)
    assert clicks.ids == ["1"]
    ((_, start),) = clicks.stream.opened
    assert start == StartAt("AT_TIMESTAMP", timestamp=EPOCH - 10)


@virtual
async def test_the_latest_is_that_of_the_first_listing_however_long_the_store_was_down_then():
    store = FailingStore()
    store.broken = StoreError("the disk is full")
    clicks = Clicks(position="LATEST", store=store)

    async def recover() -> None:
        await anyio.sleep(60)
        clicks.stream.put()
        await anyio.sleep(60)
        store.broken = None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recover)
        async with clicks.running():
            await anyio.sleep(60)
    assert clicks.ids == ["1"]


@virtual
async def test_the_first_checkpoints_of_parents_are_saved_before_those_of_their_children():
    store = FailingStore()
    clicks = Clicks(store=store)
    one, other = clicks.stream.split("shard-000")
    merged = clicks.stream.merge(one, other)
    async with clicks.open():
        order = [shard for shard, _ in store.saves]
    assert order.index("shard-000") < min(order.index(one), order.index(other))
    assert order.index(merged) == 3


@pytest.mark.parametrize(
    ("checkpoint", "seen"),
    [(Checkpoint(), ["1", "2", "3"]), (Checkpoint("1"), ["2", "3"]), (Checkpoint(since=EPOCH + 5), ["3"])],
)
@virtual
async def test_after_a_seek_it_goes_on_from_there_wherever_it_began(checkpoint, seen):
    stream, store = Stream(), MemoryStore()
    before = Clicks(stream=stream, store=store)
    stream.put(2)
    async with before.open() as keeper:
        await stopped(before, keeper)
    await anyio.sleep(10)
    stream.put()
    await store.seek("clicks", "shard-000", checkpoint)
    after = Clicks(stream=stream, store=store, position="LATEST")
    async with after.running():
        await settle_down()
    assert after.ids == seen


@virtual
async def test_a_finished_shard_that_was_sought_is_read_again_and_its_children_wait_for_it():
    stream, store = Stream(), MemoryStore()
    stream.put()
    one, _ = stream.split("shard-000")
    before = Clicks(stream=stream, store=store)
    async with before.open() as keeper:
        await stopped(before, keeper)
    assert (await before.saved())["shard-000"].finished
    await store.seek("clicks", "shard-000", Checkpoint())
    stream.put(shard=one)
    after = Clicks(stream=stream, store=store)
    async with after.running():
        await settle_down()
    assert after.ids == ["1", "2"]


# --- splits and merges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_children", [True, False])
@virtual
async def test_children_begin_when_every_record_of_their_parent_is_done(names_children):
    clicks = Clicks(function=Function(handler=taking(30)))
    clicks.stream.names_children = names_children
    clicks.stream.put()
    async with clicks.running():
        await settle_down()
        one, other = clicks.stream.split("shard-000")
        clicks.stream.put(shard=one)
        clicks.stream.put(shard=other)
        await anyio.sleep(29)
        assert clicks.ids == ["1"]
        await anyio.sleep(2)
        assert clicks.ids == ["1", "2", "3"] or clicks.ids == ["1", "3", "2"]
    saved = await clicks.saved()
    assert saved["shard-000"].finished
    assert not saved[one].finished


@virtual
async def test_a_merged_shard_waits_for_both_of_its_parents():
    clicks = Clicks(stream=Stream(2), function=Function(handler=taking(30)))
    clicks.stream.put(shard="shard-000")
    async with clicks.running():
        await settle_down()
        merged = clicks.stream.merge("shard-000", "shard-001")
        clicks.stream.put(shard=merged)
        await anyio.sleep(20)
        assert clicks.ids == ["1"]
        assert doing(clicks) == {"shard-000": "working", merged: "waiting for its parent shard-000"}
        await anyio.sleep(11)
        assert clicks.ids == ["1", "2"]


@virtual
async def test_a_merged_shard_waits_for_a_parent_that_came_and_went_since_the_last_listing():
    clicks = Clicks(stream=Stream(2), function=Function(handler=taking(30)))
    async with clicks.running():
        await settle_down()
        clicks.stream.put(shard="shard-000")
        brief, _ = clicks.stream.split("shard-000")
        merged = clicks.stream.merge(brief, "shard-001")
        clicks.stream.put(shard=merged)
        await anyio.sleep(20)
        assert clicks.ids == ["1"]
        assert doing(clicks)[merged] == f"waiting for its parent {brief}"
        await anyio.sleep(11)
        assert clicks.ids == ["1", "2"]


@virtual
async def test_a_child_that_no_listing_names_yet_is_looked_for_with_growing_pauses():
    clicks = Clicks()
    clicks.stream.names_children = False
    async with clicks.running():
        await settle_down()
        listings = clicks.stream.listings
        clicks.stream.close("shard-000")
        began = anyio.current_time()
        await anyio.sleep(8)
        assert clicks.stream.listings - listings == 4  # at once, then after 1, 3 and 7 seconds
        child = clicks.stream.create("shard-000")
        clicks.stream.put(shard=child)
        await anyio.sleep(10)
        assert clicks.ids == ["1"]
        assert clicks.function.calls[0].at - began == 15


@virtual
async def test_new_shards_are_found_by_listing_now_and_then():
    clicks = Clicks()
    async with clicks.running():
        await settle_down()
        new = clicks.stream.create()
        clicks.stream.put(shard=new)
        await anyio.sleep(shard_keeper.DISCOVERY + 1)
        assert clicks.ids == ["1"]


@virtual
async def test_a_finished_shard_is_forgotten_once_it_is_listed_no_more_and_its_children_are_finished():
    clicks = Clicks(stream=Stream(2))
    async with clicks.running():
        await settle_down()
        merged = clicks.stream.merge("shard-000", "shard-001")
        await anyio.sleep(5)
        last = clicks.stream.create(merged)
        clicks.stream.close(merged)
        await anyio.sleep(5)
        clicks.stream.gone |= {"shard-000", "shard-001", merged}
        await anyio.sleep(200)
    # The parent of an open shard stays: it could be listed again, and would look new.
    assert (await clicks.saved()).keys() == {merged, last}


@virtual
async def test_forgetting_waits_for_a_store_that_is_down():
    store = FailingStore()
    clicks = Clicks(store=store)
    async with clicks.running():
        await settle_down()
        one = clicks.stream.create("shard-000")
        clicks.stream.close("shard-000")
        await anyio.sleep(5)
        clicks.stream.create(one)
        clicks.stream.close(one)
        await anyio.sleep(5)
        clicks.stream.gone.add("shard-000")
        store.broken = StoreError("the disk is full")
        await anyio.sleep(100)
        assert "shard-000" in clicks.keeper.checkpoints
        store.broken = None
        await anyio.sleep(100)
    assert "shard-000" not in await clicks.saved()


@virtual
async def test_a_shard_that_goes_before_it_is_read_to_its_end_is_told_of():
    clicks = Clicks(stream=Stream(2))
    clicks.stream.put(3)
    async with clicks.running():
        await anyio.sleep(2)
        clicks.stream.remove("shard-000")
        # Of a shard of which nothing was read, nobody knows whether there was anything.
        clicks.stream.remove("shard-001")
        await anyio.sleep(30)
    assert clicks.observer.of(Trimmed) == [Trimmed("clicks", "shard-000", "3", None)]


@virtual
async def test_a_shard_that_went_while_nothing_ran_is_told_of():
    clicks = Clicks()
    clicks.stream.put(3)
    async with clicks.running():
        await anyio.sleep(2)
    clicks.stream.create("shard-000")
    clicks.stream.gone.add("shard-000")
    again = Clicks(stream=clicks.stream, store=clicks.store)
    async with again.running():
        await anyio.sleep(30)
    assert again.observer.of(Trimmed) == [Trimmed("clicks", "shard-000", "3", None)]


@virtual
async def test_a_shard_that_the_stream_has_no_more_is_finished_and_its_child_begins():
    stream, store = Stream(), MemoryStore()
    child = stream.create("shard-000")
    stream.put(shard=child)
    await store.save("clicks", "shard-000", Checkpoint("0"))
    stream.remove("shard-000")
    clicks = Clicks(stream=stream, store=store)
    async with clicks.running():
        await settle_down()
    assert clicks.ids == ["1"]
    assert (await clicks.saved())["shard-000"].finished


@virtual
async def test_a_shard_that_is_removed_while_it_is_read_ends_after_what_was_received():
    clicks = Clicks(function=Function(handler=taking(10)))
    clicks.stream.put()
    async with clicks.running():
        await settle_down()
        clicks.stream.remove("shard-000")
        await anyio.sleep(20)
        assert clicks.keeper.shards() == ()
    assert clicks.ids == ["1"]
    assert (await clicks.saved())["shard-000"] == Checkpoint("1", finished=True)


# --- trouble ------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_finished_shard_that_is_open_in_the_stream_is_one_of_another_stream():
    clicks = Clicks()
    await clicks.store.save("clicks", "shard-000", Checkpoint("9", finished=True))
    async with clicks.running() as keeper:
        await anyio.sleep(5)
        assert keeper.trouble is None, "a listing may be a moment old"
        await anyio.sleep(shard_keeper.DISCOVERY)
        assert keeper.trouble == (
            "shard-000 is finished here and open in the stream, which must be another one of the same name: "
            "poller seek clicks --to TRIM_HORIZON"
        )
        clicks.stream.close("shard-000")
        await anyio.sleep(shard_keeper.DISCOVERY)
        assert keeper.trouble is None


@virtual
async def test_a_mapping_whose_stream_is_missing_cannot_be_opened():
    clicks = Clicks()
    clicks.stream.listing_failures = [ResourceNotFound("no such stream")]
    with pytest.raises(ResourceNotFound):
        async with clicks.open():
            pass


@virtual
async def test_a_shard_that_cannot_be_opened_is_tried_again_while_the_others_go_on():
    clicks = Clicks(stream=Stream(2))
    for shard in clicks.stream.listed:
        clicks.stream.put(shard=shard)
    clicks.stream.opening_failures = [AccessDenied("kinesis:GetShardIterator")] * 1
    async with clicks.running() as keeper:
        await settle_down()
        assert len(clicks.ids) == 1
        assert "cannot be opened: kinesis:GetShardIterator" in doing(clicks).values()
        assert "kinesis:GetShardIterator" in (keeper.trouble or "")
        await anyio.sleep(5)
        assert len(clicks.ids) == 2
        assert keeper.trouble is None
    states = [fact.state for fact in clicks.observer.of(StateChanged)]
    assert states == [MappingState.DEGRADED, MappingState.RUNNING]


@virtual
async def test_shards_that_fail_together_are_one_mapping_that_is_degraded_once():
    clicks = Clicks(stream=Stream(3))
    clicks.stream.failures = [Unreachable("no network")] * 3
    async with clicks.running() as keeper:
        await settle_down()
        assert set(doing(clicks).values()) == {"no network"}
        assert {shard.iterator_age for shard in keeper.shards()} == {None}
        assert keeper.trouble == "no network"
        await anyio.sleep(10)
        clicks.stream.put()
        await settle_down()
        assert keeper.trouble is None
    assert clicks.ids == ["1"]
    assert len(clicks.observer.of(Trouble)) == 3
    assert len(clicks.observer.of(StateChanged)) == 2


@virtual
async def test_a_listing_that_fails_stops_no_shard():
    clicks = Clicks()
    async with clicks.running() as keeper:
        await settle_down()
        clicks.stream.listing_failures = [Throttled("slow down")]
        await anyio.sleep(shard_keeper.DISCOVERY + 1)
        assert keeper.trouble == "slow down"
        clicks.stream.put()
        await settle_down()
        assert clicks.ids == ["1"]
        await anyio.sleep(shard_keeper.DISCOVERY)
        assert keeper.trouble is None


@virtual
async def test_a_store_that_is_down_holds_up_new_shards_and_no_others():
    store = FailingStore()
    clicks = Clicks(store=store)
    async with clicks.running() as keeper:
        await settle_down()
        store.broken = StoreError("the disk is full")
        new = clicks.stream.create()
        clicks.stream.put()
        clicks.stream.put(shard=new)
        await anyio.sleep(shard_keeper.DISCOVERY + 5)
        assert clicks.ids == ["1"]
        assert keeper.trouble == "checkpoints cannot be saved: the disk is full"
        assert keeper.shards()[0].checkpoint_age > 60
        store.broken = None
        await anyio.sleep(120)
        assert clicks.ids == ["1", "2"]
        assert keeper.trouble is None


@virtual
async def test_a_new_shard_begins_with_its_own_checkpoint_saved_whatever_else_begins():
    store = FailingStore()
    clicks = Clicks(stream=Stream(2), store=store)
    async with clicks.running():
        await settle_down()
        store.broken = StoreError("the disk is full")
        new = clicks.stream.create()
        clicks.stream.put(shard=new)
        await anyio.sleep(shard_keeper.DISCOVERY + 5)
        clicks.stream.close("shard-001")
        await settle_down()
        assert new not in doing(clicks)
        assert clicks.ids == []


@virtual
async def test_neither_is_a_new_shard_begun_unsaved_by_another_that_ends():
    store = FailingStore()
    clicks = Clicks(store=store)
    quick = store.save

    async def save(*arguments):
        await anyio.sleep(1.0)
        return await quick(*arguments)

    async with clicks.running():
        await anyio.sleep(shard_keeper.DISCOVERY - 0.5)
        store.save = save
        clicks.stream.split("shard-000")
        await anyio.sleep(0.2)
        new = clicks.stream.create()
        clicks.stream.put(shard=new)
        await anyio.sleep(1.0)
        assert len(clicks.stream.opened) == 3
        assert clicks.ids == []
        await anyio.sleep(2.0)
        assert clicks.ids == ["1"]


@virtual
async def test_a_stop_does_not_wait_for_the_first_checkpoint_of_a_new_shard():
    store = FailingStore()
    clicks = Clicks(store=store)
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await settle_down()
        store.broken = StoreError("the disk is full")
        one, _ = clicks.stream.split("shard-000")
        await anyio.sleep(5)
        began = anyio.current_time()
        keeper.quiet()
    assert anyio.current_time() - began < 10
    assert one not in clicks.keeper.checkpoints


@virtual
async def test_checkpoints_that_cannot_be_written_at_the_stop_are_given_up_in_time():
    store = FailingStore()
    clicks = Clicks(store=store)
    began = anyio.current_time()
    async with clicks.running():
        await settle_down()
        store.broken = StoreError("the disk is full")
        clicks.stream.put()
        await settle_down()
    assert anyio.current_time() - began == 5


@virtual
async def test_many_shards_are_opened_a_few_at_a_time():
    clicks = Clicks(stream=Stream(100))
    clicks.stream.opening_time = 1
    async with clicks.running():
        await anyio.sleep(2.5)
        assert len(clicks.stream.opened) == 2 * shard_keeper.OPENING
        await anyio.sleep(1)
        assert len(clicks.stream.opened) == 100
    assert clicks.stream.peak_opening == shard_keeper.OPENING


@virtual
async def test_a_shard_that_waited_for_its_turn_to_be_opened_gets_what_came_since_the_mapping_began():
    clicks = Clicks(stream=Stream(41), position="LATEST")
    clicks.stream.opening_time = 12
    async with clicks.running():
        await anyio.sleep(11)
        put = {shard: clicks.stream.put(shard=shard) for shard in clicks.stream.records}
        await anyio.sleep(60)
    assert [start.kind for _, start in clicks.stream.opened] == [*["LATEST"] * 40, "AT_TIMESTAMP"]
    last, _ = clicks.stream.opened[-1]
    assert clicks.ids == put[last]


@virtual
async def test_a_bug_in_one_shard_is_the_mappings():
    clicks = Clicks()
    clicks.stream.failures = [ZeroDivisionError()]
    with pytest.raises(ExceptionGroup):
        async with clicks.open() as keeper:
            await keeper.run()


# --- commands -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_paused_mapping_reads_nothing_and_goes_on_where_it_was():
    clicks = Clicks(stream=Stream(2))
    async with clicks.running() as keeper:
        await settle_down()
        keeper.close()
        clicks.stream.put(3)
        await anyio.sleep(100)
        assert clicks.ids == []
        assert set(doing(clicks).values()) == {"paused"}
        keeper.open()
        await settle_down()
        assert clicks.ids == ["1", "2", "3"]


@virtual
async def test_a_batch_that_is_retried_waits_for_the_end_of_a_pause_and_nothing_overtakes_it():
    clicks = Clicks(batch_size=1, function=Function(ERROR))
    clicks.stream.put(2)
    async with clicks.running() as keeper:
        await settle_down()
        assert doing(clicks) == {"shard-000": "retrying the batch from 1, 1 attempts failed"}
        keeper.close()
        await anyio.sleep(100)
        assert clicks.ids == ["1"]
        keeper.open()
        await settle_down()
        assert clicks.ids == ["1", "1", "2"]


@virtual
async def test_quiet_lets_what_is_at_work_end_and_begins_nothing_more():
    clicks = Clicks(stream=Stream(2), function=Function(handler=taking(10)), batch_size=1)
    clicks.stream.put(2)
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await settle_down()
        clicks.stream.split("shard-001")
        keeper.quiet()
        keeper.open()
    assert clicks.ids == ["1"]
    assert await clicks.position_of() == "1"


@virtual
async def test_a_shard_that_is_being_opened_at_the_stop_is_closed_again():
    clicks = Clicks()
    clicks.stream.opening_time = 3
    clicks.stream.put()
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(1)
        assert doing(clicks) == {"shard-000": "opening"}
        keeper.quiet()
    assert clicks.stream.reading == {"shard-000": 0}
    assert clicks.ids == []


@virtual
async def test_a_mapping_that_is_quiet_before_it_runs_ends_at_once():
    clicks = Clicks()
    async with clicks.open() as keeper:
        keeper.quiet()
        await keeper.run()
    assert clicks.stream.opened == []


@virtual
async def test_a_shard_in_trouble_does_not_hold_up_a_stop():
    clicks = Clicks()
    clicks.stream.opening_failures = [AccessDenied("no")] * 20
    began = anyio.current_time()
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(100)
        stopping = anyio.current_time()
        keeper.quiet()
    assert anyio.current_time() == stopping
    assert stopping - began == 100


# --- what it is doing ---------------------------------------------------------------------------------------------------


@virtual
async def test_at_the_concurrency_limit_it_says_so():
    clicks = Clicks()
    assert clicks.slots.total == 1000
    for _ in range(1000):
        assert clicks.slots.try_acquire()
    async with clicks.running() as keeper:
        await settle_down()
        assert keeper.at_capacity
        assert doing(clicks) == {"shard-000": "at the concurrency limit"}
        clicks.slots.release()
        await settle_down()
        assert not keeper.at_capacity
        assert doing(clicks) == {"shard-000": "reading"}


@virtual
async def test_a_shard_that_nobody_has_begun_yet_is_waiting():
    clicks = Clicks()
    async with clicks.open() as keeper:
        assert doing(clicks) == {"shard-000": "waiting"}
        assert repr(keeper) == "<ShardKeeper clicks: <ShardTree 0 reading, 1 waiting, 0 finished>>"


@virtual
async def test_what_waits_for_the_lanes_is_part_of_the_load():
    clicks = Clicks(lanes=2, batch_size=1, function=Function(handler=taking(10)))
    clicks.stream.put(6)
    async with clicks.running() as keeper:
        await settle_down()
        load = keeper.load()
        assert (load.in_flight_records, load.buffered_records, load.buffered_bytes) == (1, 5, 500)


@virtual
async def test_a_window_is_forgotten_when_the_mapping_has_none_any_more():
    store = MemoryStore()
    window = '{"start":1,"end":2,"state":{}}'
    await store.save("clicks", "shard-000", Checkpoint("1", window=window))
    clicks = Clicks(store=store)
    clicks.stream.put(2)
    async with clicks.running():
        await settle_down()
    assert clicks.ids == ["2"]
    assert (await clicks.saved())["shard-000"] == Checkpoint("2")


@virtual
async def test_what_is_received_while_it_pauses_is_filtered_too():
    clicks = Clicks(filters=Dropping("2"), function=Function(handler=taking(10)), batch_size=1)
    clicks.stream.put(1)
    async with clicks.running() as keeper:
        await settle_down()
        keeper.close()
        clicks.stream.put(2)
        await anyio.sleep(20)
        keeper.open()
        await anyio.sleep(20)
    assert clicks.ids == ["1", "3"]
    assert await clicks.position_of() == "3"
