"""Destinations that are down, with a spool behind them: the shard goes on, order stays, nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import anyio
import pytest

from poller.core import spooled
from poller.core.failure import fitted
from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.engine.status import SpoolStatus
from poller.errors import StoreError, Unreachable
from poller.model import Delivered, DeliveryFailed, Dropped, Spooled, SpoolLimits, Trouble
from poller.stores._memory_spool import MemorySpool
from poller.stores.memory import MemoryStore
from tests.engine.fakes import EPOCH, ERROR, OK, Function, delivery_of, settle_down, virtual
from tests.engine.stream_fakes import FAILED_ARN, Clicks, Stream

DOWN = Unreachable("connection refused")
NO_RETRIES = StreamPolicy(maximum_retry_attempts=0)


async def failing(call):
    return ERROR


def poisoned(**more):
    """A mapping of which every record is given up at once, one by one, and whose destination is down."""
    more = {
        "batch_size": 1,
        "spool_after": 3,
        "policy": NO_RETRIES,
        "destination": MemoryDestination(),
    } | more
    clicks = Clicks(function=Function(handler=failing), **more)
    if type(clicks.destination) is MemoryDestination:
        clicks.destination.broken = DOWN
    return clicks


def restarted(clicks, **more):
    """As after a kill: of the old process there is nothing but the store."""
    return replace(clicks, keepers=[], function=Function(handler=failing), **more)


def sent(clicks):
    """The records that the destination has got, in the order in which it did."""
    return [one.document["KinesisBatchInfo"]["startSequenceNumber"] for one in clicks.destination.deliveries]


async def stored(clicks):
    return [
        spooled.delivery(entry).document["KinesisBatchInfo"]["startSequenceNumber"]
        for entry in await clicks.store.spool.take("clicks", "delivery", limit=10_000)
    ]


def doing(clicks):
    return clicks.keeper.shards()[0].doing


def position(clicks):
    return clicks.keeper.checkpoints["shard-000"].sequence_number


class StubbornSpool(MemorySpool):
    """Fails as it is told to."""

    def __init__(self):
        super().__init__()
        self.failing = set()
        self.before_put = self.after_take = anyio.lowlevel.checkpoint

    def _check(self, verb):
        if verb in self.failing:
            raise StoreError("the disk is full")

    async def put(self, entries, limits):
        await self.before_put()
        self._check("put")
        return await super().put(entries, limits)

    async def take(self, *args, **more):
        self._check("take")
        taken = await super().take(*args, **more)
        await self.after_take()
        return taken

    async def remove(self, mapping, numbers):
        await anyio.lowlevel.checkpoint()
        self._check("remove")
        await super().remove(mapping, numbers)

    async def totals(self, mapping=None, kind=None):
        await anyio.lowlevel.checkpoint()
        self._check("totals")
        return await super().totals(mapping, kind)


def stubborn():
    store = MemoryStore()
    store.spool = StubbornSpool()
    return store


# --- the way in ---------------------------------------------------------------------------------------------------------


@virtual
async def test_after_so_many_tries_a_batch_is_spooled_and_the_shard_goes_on():
    clicks = poisoned()
    clicks.stream.put(1)
    async with clicks.running():
        await settle_down()
        assert doing(clicks) == "waiting for the on-failure destination: connection refused"
        await anyio.sleep(3.6)
        assert position(clicks) == "1"
        assert doing(clicks) == "reading"
        assert await stored(clicks) == ["1"]
    tries = [fact for fact in clicks.observer.of(DeliveryFailed) if not fact.spooled]
    assert [(fact.shard, fact.retry_in) for fact in tries] == [
        ("shard-000", 0.5),
        ("shard-000", 1.0),
        ("shard-000", 2.0),
    ]
    assert clicks.observer.of(Spooled) == [
        Spooled("clicks", "shard-000", 1, "RetryAttemptsExhausted", "connection refused")
    ]
    assert clicks.observer.of(Delivered) == []


@virtual
async def test_a_destination_that_comes_back_in_time_spools_nothing():
    clicks = poisoned()
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(1)
        clicks.destination.broken = None
        await anyio.sleep(10)
        assert sent(clicks) == ["1"]
        assert clicks.spooler.status() == ()
    assert clicks.observer.of(Spooled) == []


@virtual
async def test_while_something_is_spooled_what_comes_goes_behind_it_at_once():
    clicks = poisoned()
    clicks.stream.put(3)
    async with clicks.running():
        await anyio.sleep(3.5)
        await settle_down()
        assert (position(clicks), await stored(clicks)) == ("3", ["1", "2", "3"])
        clicks.stream.put(1)
        await settle_down()
        assert (position(clicks), await stored(clicks)) == ("4", ["1", "2", "3", "4"])
        # All is said by one line, and its age is that of the oldest.
        size = sum(len(entry.body) for entry in await clicks.store.spool.take("clicks", "delivery"))
        (line,) = clicks.spooler.status()
        assert line == SpoolStatus(FAILED_ARN, 4, size, EPOCH + 3.5, "connection refused")
        assert repr(clicks.spooler) == "<Spooler clicks: 4 deliveries>"


@virtual
async def test_other_shards_do_not_have_to_find_out_by_themselves():
    clicks = poisoned(stream=Stream(2))
    clicks.stream.put(shard="shard-000")
    async with clicks.running():
        await anyio.sleep(4)
        clicks.stream.put(5, shard="shard-001")
        await settle_down()
        assert clicks.keeper.checkpoints["shard-001"].sequence_number == "6"
        assert await stored(clicks) == ["1", "2", "3", "4", "5", "6"]


# --- the way out --------------------------------------------------------------------------------------------------------


@virtual
async def test_what_is_spooled_is_delivered_in_order_when_the_destination_is_back():
    clicks = poisoned()
    clicks.stream.put(5)
    async with clicks.running():
        await anyio.sleep(300)
        clicks.destination.broken = None
        await anyio.sleep(70)
        assert sent(clicks) == ["1", "2", "3", "4", "5"]
        assert await stored(clicks) == []
        assert clicks.spooler.status() == ()
        # And it is taken to be up again.
        clicks.stream.put(1)
        await settle_down()
        assert sent(clicks)[-1] == "6"
    assert [fact.records for fact in clicks.observer.of(Delivered)] == [1] * 6
    assert len(clicks.observer.of(Spooled)) == 5


@virtual
async def test_the_pauses_between_tries_grow_up_to_a_minute():
    clicks = poisoned(spool_after=1)
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(300)
    pauses = [fact.retry_in for fact in clicks.observer.of(DeliveryFailed) if fact.spooled]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 9]
    assert {fact.shard for fact in clicks.observer.of(DeliveryFailed) if fact.spooled} == {""}


@virtual
async def test_what_was_spooled_is_delivered_after_a_restart():
    clicks = poisoned()
    clicks.stream.put(3)
    async with clicks.running():
        await anyio.sleep(10)
    again = restarted(clicks)
    async with again.running():
        assert [line.entries for line in again.spooler.status()] == [3]
        again.stream.put(1)
        await anyio.sleep(5)
        assert await stored(again) == ["1", "2", "3", "4"]
        again.destination.broken = None
        await anyio.sleep(70)
    assert sent(again) == ["1", "2", "3", "4"]
    assert await stored(again) == []


@virtual
async def test_what_was_spooled_is_delivered_by_a_mapping_that_spools_no_more():
    clicks = poisoned()
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(10)
    again = restarted(clicks, spool_after=None, others={"nothing": MemoryDestination()})
    again.destination.broken = None
    async with again.running():
        await settle_down()
    assert sent(again) == ["1", "2"]


@virtual
async def test_what_was_meant_for_another_destination_goes_there_and_holds_up_no_one():
    clicks = poisoned()
    clicks.stream.put(1)
    old, lost = MemoryDestination(), delivery_of({"for": "a destination that is no more"})
    await clicks.store.spool.put(
        [
            spooled.entry(lost, "arn:gone", 1.0),
            spooled.entry(replace(lost, id="2", document={"for": "old"}), "arn:old", 2.0),
        ],
        clicks.spool_limits,
    )
    clicks.others["arn:old"] = old
    clicks.destination.broken = None
    async with clicks.running():
        await anyio.sleep(10)
        assert [one.document for one in old.deliveries] == [{"for": "old"}]
        assert sent(clicks) == ["1"]
        (line,) = clicks.spooler.status()
        assert (line.destination, line.why) == ("arn:gone", "there is no destination arn:gone")


@virtual
async def test_a_destination_that_was_replaced_by_another_of_its_name_is_found():
    clicks = poisoned()
    before, now = MemoryDestination(), MemoryDestination()
    before.broken = DOWN
    entry = spooled.entry(delivery_of({"for": "old"}), "arn:old", 1.0)
    await clicks.store.spool.put([entry], clicks.spool_limits)
    clicks.others["arn:old"] = before
    async with clicks.running():
        await anyio.sleep(10)
        clicks.others["arn:old"] = now
        await anyio.sleep(70)
        assert [one.document for one in now.deliveries] == [{"for": "old"}]
        assert clicks.spooler.status() == ()


@virtual
async def test_what_makes_no_sense_is_kept_and_said():
    clicks = poisoned()
    entry = spooled.entry(delivery_of({}), FAILED_ARN, 1.0)
    await clicks.store.spool.put([replace(entry, body=b"{")], clicks.spool_limits)
    async with clicks.running():
        await anyio.sleep(100)
        (line,) = clicks.spooler.status()
        assert line.why.startswith(f"the spooled delivery {entry.id} makes no sense: ")
    assert clicks.destination.deliveries == []
    assert {fact.error for fact in clicks.observer.of(Trouble)} == {line.why}


class Narrow(MemoryDestination):
    """Finds out how much it takes when it is asked to take something."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    async def send(self, delivery):
        if self.broken is None:
            fitted(delivery.document, self.most)
        await super().send(delivery)


@virtual
async def test_what_turns_out_to_be_too_large_stays_and_is_passed_over():
    clicks = poisoned(destination=Narrow(900))
    large = replace(delivery_of({"requestContext": {"condition": "c"}, "x": "x" * 1000}), id="large")
    success = replace(
        delivery_of({"requestContext": {"condition": "Success"}, "x": "x" * 1000}), id="fine", succeeded=True
    )
    entries = [spooled.entry(one, FAILED_ARN, 1.0) for one in (large, success)]
    await clicks.store.spool.put(entries, clicks.spool_limits)
    async with clicks.running():
        clicks.stream.put(2)
        await settle_down()
        assert sent(clicks) == ["1", "2"]
        (line,) = clicks.spooler.status()
        assert (line.entries, line.why) == (1, "a document of 1043 bytes; the destination takes 900")
        assert [one.id for one in await clicks.store.spool.take("clicks", "delivery")] == ["large"]
        told = [(fact.retry_in, fact.succeeded, fact.spooled) for fact in clicks.observer.of(DeliveryFailed)]
        assert told == [(None, False, True), (None, True, True)]
    assert clicks.observer.of(Dropped) == []
    # Somebody has raised the limit.
    again = restarted(clicks, destination=MemoryDestination())
    async with again.running():
        await settle_down()
        assert [one.id for one in again.destination.deliveries] == ["large"]
        assert again.spooler.status() == ()


@virtual
async def test_what_is_known_to_be_too_large_is_not_spooled_but_dropped_as_without_a_spool():
    clicks = poisoned()
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(4)
        assert await stored(clicks) == ["1"]
        clicks.destination.limit = 100
        clicks.stream.put(1)
        await settle_down()
        assert (position(clicks), await stored(clicks)) == ("2", ["1"])
    assert [(fact.first, fact.last) for fact in clicks.observer.of(Dropped)] == [("2", "2")]


# --- a full spool -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_full_spool_makes_the_shard_wait_behind_what_is_spooled_and_say_so():
    clicks = poisoned(spool_limits=SpoolLimits(2, 2**20))
    clicks.stream.put(5)
    async with clicks.running():
        await anyio.sleep(20)
        assert (position(clicks), await stored(clicks)) == ("2", ["1", "2"])
        full = "waiting for the on-failure destination, as the spool is full (2 entries, 1 MB): connection refused"
        assert doing(clicks) == full
        assert clicks.observer.of(Trouble)[0].error == full
        await anyio.sleep(1000)
        assert (position(clicks), await stored(clicks)) == ("2", ["1", "2"])
        clicks.destination.broken = None
        await anyio.sleep(70)
        assert position(clicks) == "5"
        assert doing(clicks) == "reading"
    assert sent(clicks) == ["1", "2", "3", "4", "5"]
    assert await stored(clicks) == []


@virtual
async def test_a_spool_that_others_have_filled_makes_the_shard_try_the_destination_as_without_one():
    clicks = poisoned(spool_limits=SpoolLimits(1, 2**20))
    parked = replace(spooled.entry(delivery_of({}), "a key", 1.0), kind="parked")
    await clicks.store.spool.put([parked], clicks.spool_limits)
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(20)
        assert doing(clicks) == (
            "waiting for the on-failure destination, as the spool is full (1 entries, 1 MB): connection refused"
        )
        assert clicks.spooler.status() == ()
        clicks.destination.broken = None
        await anyio.sleep(60)
        assert sent(clicks) == ["1", "2"]
    assert clicks.observer.of(Spooled) == []


@virtual
async def test_room_that_others_make_is_found_within_a_minute():
    clicks = poisoned(spool_limits=SpoolLimits(2, 2**20))
    parked = replace(spooled.entry(delivery_of({}), "a key", 1.0), kind="parked")
    clicks.stream.put(2)
    async with clicks.running():
        await clicks.store.spool.put([parked], clicks.spool_limits)
        await anyio.sleep(300)
        assert (position(clicks), await stored(clicks)) == ("1", ["1"])
        (entry,) = await clicks.store.spool.take("clicks", "parked")
        await clicks.store.spool.remove("clicks", [entry.number])
        await anyio.sleep(60)
        assert (position(clicks), await stored(clicks)) == ("2", ["1", "2"])


@virtual
async def test_shards_that_wait_for_room_are_let_go_as_it_is_made():
    clicks = poisoned(stream=Stream(20), spool_limits=SpoolLimits(3, 2**20), store=stubborn())
    puts = []

    async def note():
        puts.append(anyio.current_time())

    for shard in clicks.stream.records:
        clicks.stream.put(shard=shard)
    async with clicks.running():
        await anyio.sleep(1000)
        clicks.store.spool.before_put = note
        clicks.destination.broken = None
        await anyio.sleep(31)
        assert sorted(sent(clicks), key=int) == [str(number) for number in range(1, 21)]
    # Not all of them at each entry that was removed.
    assert len(puts) <= 3 * 17


class CountingSpool(StubbornSpool):
    """Counts the puts for which there was no room."""

    refused = 0

    async def put(self, entries, limits):
        taken = await super().put(entries, limits)
        self.refused += not taken
        return taken


@virtual
async def test_of_many_shards_that_wait_few_ask_for_each_bit_of_room_that_is_made():
    store = MemoryStore()
    store.spool = CountingSpool()
    clicks = poisoned(stream=Stream(100), store=store, spool_limits=SpoolLimits(5, 2**20))
    for shard in clicks.stream.listed:
        clicks.stream.put(1, shard=shard)
    async with clicks.running():
        await anyio.sleep(20)
        clicks.destination.broken = None
        before, store.spool.before_put = store.spool.refused, partial(anyio.sleep, 0.05)
        await anyio.sleep(70)
        assert len(sent(clicks)) == len(set(sent(clicks))) == 100
        assert store.spool.refused - before <= 150


@virtual
async def test_when_nothing_is_spooled_any_more_nobody_waits_for_room():
    clicks = poisoned(stream=Stream(40), spool_limits=SpoolLimits(1, 2**20), spool_after=50)
    first = delivery_of({"KinesisBatchInfo": {"startSequenceNumber": "0"}})
    await clicks.store.spool.put([spooled.entry(first, FAILED_ARN, 1.0)], clicks.spool_limits)
    for shard in clicks.stream.listed:
        clicks.stream.put(1, shard=shard)
    async with clicks.running():
        await anyio.sleep(1000)
        clicks.destination.broken = None
        times = []
        for _ in range(60):
            await anyio.sleep(1)
            times += [anyio.current_time()] * (len(sent(clicks)) - len(times))
        assert len(times) == 41
        assert times[-1] - times[0] <= 1


@virtual
async def test_a_pause_ends_the_wait_for_room_and_the_batch_is_tried_again_afterwards():
    clicks = poisoned(spool_limits=SpoolLimits(1, 2**20))
    clicks.stream.put(2)
    async with clicks.running() as keeper:
        await anyio.sleep(100)
        keeper.close()
        await settle_down()
        assert keeper.load().in_flight_invocations == 0
        keeper.open()
        await settle_down()
        assert (position(clicks), await stored(clicks)) == ("1", ["1"])
        clicks.destination.broken = None
        await anyio.sleep(70)
    assert sent(clicks) == ["1", "2"]


# --- a spool that fails -------------------------------------------------------------------------------------------------


@virtual
async def test_a_spool_that_cannot_be_written_makes_the_shard_wait_for_the_destination():
    clicks = poisoned(store=stubborn())
    clicks.store.spool.failing.add("put")
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(100)
        assert position(clicks) == ""
        why = "as the spool cannot be written (the disk is full): connection refused"
        assert doing(clicks) == f"waiting for the on-failure destination, {why}"
        clicks.store.spool.failing.clear()
        await anyio.sleep(60)
        assert (position(clicks), await stored(clicks)) == ("1", ["1"])


@virtual
async def test_behind_what_is_spooled_a_spool_that_cannot_be_written_is_tried_with_growing_pauses():
    clicks = poisoned(store=stubborn())
    clicks.stream.put(1)
    puts = []

    async def note():
        puts.append(anyio.current_time())

    async with clicks.running():
        await anyio.sleep(4)
        clicks.store.spool.failing.add("put")
        clicks.store.spool.before_put = note
        clicks.stream.put(1)
        await anyio.sleep(8)
        assert puts == [4.0, 4.5, 5.5, 7.5, 11.5]
        clicks.store.spool.failing.clear()
        await anyio.sleep(60)
        assert await stored(clicks) == ["1", "2"]


@pytest.mark.parametrize("verb", ["take", "remove", "totals"])
@virtual
async def test_whatever_fails_of_a_spool_nothing_is_lost_or_sent_twice(verb):
    clicks = poisoned(store=stubborn())
    clicks.stream.put(3)
    async with clicks.running():
        await anyio.sleep(4)
        clicks.store.spool.failing.add(verb)
        clicks.stream.put(1)
        clicks.destination.broken = None
        await anyio.sleep(100)
        assert position(clicks) == "4"
        assert "the disk is full" in {fact.error for fact in clicks.observer.of(Trouble)}
        clicks.store.spool.failing.clear()
        await anyio.sleep(60)
        assert sent(clicks) == ["1", "2", "3", "4"]
        assert clicks.spooler.status() == ()


@virtual
async def test_figures_that_cannot_be_read_keep_the_next_batch_behind_the_one_before():
    clicks = poisoned(store=stubborn())
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(3)
        clicks.store.spool.failing.add("totals")
        await anyio.sleep(1)
        assert [line.entries for line in clicks.spooler.status()] == [2]
    assert await stored(clicks) == ["1", "2"]


@virtual
async def test_a_spool_that_cannot_be_opened_keeps_the_mapping_from_being_opened():
    clicks = poisoned(store=stubborn())
    clicks.store.spool.failing.add("totals")
    with pytest.raises(StoreError, match="the disk is full"):
        async with clicks.open():
            pass
    assert clicks.keepers[0].shards() == ()


# --- pauses, stops, kills -----------------------------------------------------------------------------------------------


@virtual
async def test_a_paused_mapping_goes_on_delivering_what_is_spooled():
    clicks = poisoned()
    clicks.stream.put(3)
    async with clicks.running() as keeper:
        await anyio.sleep(10)
        keeper.close()
        clicks.destination.broken = None
        await anyio.sleep(60)
        assert sent(clicks) == ["1", "2", "3"]


class Slow(MemoryDestination):
    """Takes its time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.at_work = anyio.Event()

    async def send(self, delivery):
        if self.broken is None:
            self.at_work.set()
            await anyio.sleep(self.seconds)
        await super().send(delivery)


@virtual
async def test_at_a_stop_the_delivery_in_flight_comes_to_its_end_and_the_next_one_waits():
    clicks = poisoned()
    clicks.destination = Slow(5)
    clicks.destination.broken = DOWN
    clicks.stream.put(2)
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(20)
        clicks.destination.broken = None
        await clicks.destination.at_work.wait()
        began = anyio.current_time()
        keeper.quiet()
    assert 0 < anyio.current_time() - began <= 5
    assert sent(clicks) == ["1"]
    assert await stored(clicks) == ["2"]


@virtual
async def test_a_stop_does_not_wait_for_the_next_try():
    clicks = poisoned()
    clicks.stream.put(2)
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(500)
        began = anyio.current_time()
        keeper.quiet()
    assert anyio.current_time() == began
    assert await stored(clicks) == ["1", "2"]


@virtual
async def test_a_hard_stop_in_the_middle_of_a_delivery_sends_it_again_under_the_same_id():
    clicks = poisoned()
    clicks.destination = Slow(5)
    clicks.destination.broken = DOWN
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(20)
        clicks.destination.broken = None
        (entry,) = await clicks.store.spool.take("clicks", "delivery")
        await clicks.destination.at_work.wait()
    again = restarted(clicks)
    async with again.running():
        await anyio.sleep(20)
    assert [one.id for one in again.destination.deliveries] == [entry.id]
    assert await stored(again) == []


@virtual
async def test_a_kill_between_spooling_and_settling_spools_nothing_twice():
    clicks = poisoned()
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(10)
        assert await stored(clicks) == ["1", "2"]
    # The checkpoint of it was never written: it begins anew.
    again = restarted(clicks)
    await again.store.seek("clicks", "shard-000", None)
    async with again.running():
        await anyio.sleep(10)
        assert position(again) == "2"
        assert [line.entries for line in again.spooler.status()] == [2]
        again.destination.broken = None
        await anyio.sleep(60)
    assert sent(again) == ["1", "2"]


@virtual
async def test_a_put_on_its_way_keeps_its_line_from_ending():
    clicks = poisoned(store=stubborn())
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(10)
        slow = anyio.Event()
        clicks.store.spool.before_put = slow.wait
        clicks.stream.put(1)
        clicks.destination.broken = None
        await anyio.sleep(60)
        assert (sent(clicks), position(clicks)) == (["1"], "1")
        slow.set()
        await settle_down()
        assert (sent(clicks), position(clicks)) == (["1", "2"], "2")


@virtual
async def test_what_was_put_while_an_empty_look_was_on_its_way_is_found():
    clicks = poisoned(store=stubborn())
    clicks.stream.put(1)
    looked = anyio.Event()
    async with clicks.running():
        await anyio.sleep(10)
        clicks.destination.broken = None

        async def wait_if_empty():
            if not clicks.store.spool._waiting["clicks"].all.entries:
                await looked.wait()

        clicks.store.spool.after_take = wait_if_empty
        await anyio.sleep(60)
        assert sent(clicks) == ["1"]
        # The look that found nothing is not back yet. The destination fails anew.
        clicks.destination.broken = DOWN
        clicks.stream.put(1)
        await anyio.sleep(10)
        assert await stored(clicks) == ["2"]
        looked.set()
        clicks.destination.broken = None
        await anyio.sleep(60)
    assert sent(clicks) == ["1", "2"]


@virtual
async def test_success_is_none_of_the_spools_business():
    clicks = poisoned()
    clicks.function = Function(OK, OK)
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(10)
        assert position(clicks) == "2"
    assert clicks.observer.of(DeliveryFailed) == []
    assert await stored(clicks) == []
