"""A record that fails for good parks its key: the others go on, and what follows it waits behind it, in order."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.errors import StoreError
from poller.model import Dropped, Invoked, Parked, Settled, SpoolLimits, Trouble
from poller.stores.memory import MemoryStore
from tests.engine.fakes import BUSY, ERROR, OK, Function, failing, settle_down, virtual
from tests.engine.stream_fakes import Clicks, Envelope, Stream

MB = 2**20
#: Longer than any pause of a batch or of a probe.
LONG_ENOUGH = 4000.0


class Poison:
    """A function that fails on some records until they are mended, and knows what it has handled, in order."""

    def __init__(self, *ids: str, partial: bool = False, seconds: float = 0.0) -> None:
        self.ids = set(ids)
        self.handled: list[str] = []
        self.partial = partial
        self.seconds = seconds

    async def __call__(self, call):
        await anyio.sleep(self.seconds)
        bad = [id_ for id_ in call.ids if id_ in self.ids]
        if not bad:
            self.handled += call.ids
            return OK
        if self.partial:
            self.handled += call.ids[: call.ids.index(bad[0])]
            return failing(*bad)
        return ERROR

    def mend(self):
        self.ids.clear()


class Store(MemoryStore):
    """A store that can be down for checkpoints."""

    down = False

    async def save(self, mapping, shard, checkpoint):
        if self.down:
            raise StoreError("the disk is full")
        return await super().save(mapping, shard, checkpoint)


class WatchedSpool:
    """A spool that can be down, slow, or lose its answer, and that remembers its puts."""

    def __init__(self, store):
        self.spool = store.spool
        self.puts: list[list[str]] = []
        self.peak_taken = 0
        #: Raised by the next puts, before they are carried out, or after.
        self.down: StoreError | None = None
        self.lost_answers = 0
        self.slow = 0.0
        self.before_remove = anyio.lowlevel.checkpoint

    def _check(self):
        if self.down:
            raise self.down

    async def put(self, entries, limits):
        self._check()
        await anyio.sleep(self.slow)
        taken = await self.spool.put(entries, limits)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreError("no answer")
        if taken:
            self.puts.append([entry.id.partition(":")[2] for entry in entries])
        return taken

    async def take(self, mapping, kind, **wanted):
        self._check()
        taken = await self.spool.take(mapping, kind, **wanted)
        self.peak_taken = max(self.peak_taken, len(taken))
        return taken

    async def remove(self, mapping, numbers):
        self._check()
        await self.before_remove()
        await self.spool.remove(mapping, numbers)

    async def totals(self, mapping=None, kind=None):
        self._check()
        return await self.spool.totals(mapping, kind)

    async def ids(self, key=None):
        """The sequence numbers that wait, in order."""
        found = await self.spool.take("clicks", "parked", key=key, limit=100_000)
        return [entry.id.partition(":")[2] for entry in found]


def parking(poison=None, **more):
    """A mapping that parks a key whose record has failed once."""
    store = more.pop("store", None) or Store()
    values = {
        "function": Function(handler=poison),
        "policy": StreamPolicy(maximum_retry_attempts=0, bisect_batch_on_function_error=True),
        "store": store,
        "spool": WatchedSpool(store),
    }
    return Clicks(**{**values, **more})


def again(clicks, poison, **more):
    """The mapping in the next process, with what the one before has left."""
    kept = {"stream": clicks.stream, "store": clicks.store, "spool": clicks.spool}
    return parking(poison, **{**kept, "probe_interval": clicks.probe_interval, **more})


def parked(clicks):
    return list(clicks.keeper.parking.keys)


def doing(clicks):
    return clicks.keeper.shards()[0].doing


@asynccontextmanager
async def worked(clicks, seconds=100.0):
    async with clicks.running() as keeper:
        await anyio.sleep(seconds)
        yield keeper


# --- the way in -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_record_that_fails_to_the_end_is_put_aside_with_all_that_follow_it_and_other_keys_go_on():
    poison = Poison("2")
    clicks = parking(poison)
    clicks.stream.put_keys("abcabcabc")
    async with worked(clicks):
        assert await clicks.spool.ids() == ["2", "5", "8"]
        assert poison.handled == ["1", "3", "4", "6", "7", "9"]
        assert (parked(clicks), doing(clicks)) == (["b"], "reading")
        clicks.stream.put_keys("bab")
        await settle_down()
        assert await clicks.spool.ids() == ["2", "5", "8", "10", "12"]
        assert poison.handled[-1] == "11"
        # What is done with is behind the checkpoint, wherever it is.
        assert sum(fact.committed for fact in clicks.observer.of(Settled)) == 12
        await anyio.sleep(2)
        assert await clicks.position_of() == "12"
    assert clicks.observer.of(Dropped) == []
    first, *others = clicks.observer.of(Parked)
    assert first == Parked("clicks", "shard-000", "b", 1, "ValueError", "no such order")
    assert [(fact.records, fact.error_type) for fact in others] == [(2, ""), (2, "")]


@virtual
async def test_the_other_keys_wait_for_the_poison_only_as_long_as_it_is_retried():
    keys = [chr(0x100 + number) for number in range(100)]
    poison = Poison("50")
    clicks = parking(
        poison,
        policy=StreamPolicy(maximum_retry_attempts=2, bisect_batch_on_function_error=True),
    )
    for _ in range(10):
        for key in keys:
            clicks.stream.put(key=key)
    async with worked(clicks, 0):
        # 50 is tried three times, with pauses of 0.5 and 1 second.
        await anyio.sleep(1.6)
        assert len(poison.handled) == 990
        before = len(clicks.function.calls)
        for _ in range(5):
            for key in keys:
                clicks.stream.put(key=key)
            await settle_down()
        assert len(poison.handled) == 990 + 495
        # Five batches of a hundred, none of them in more than one invocation: nothing of the parked key is tried.
        assert [len(batch) for batch in clicks.function.batches[before:]] == [99] * 5
    assert await clicks.spool.ids() == [str(50 + 100 * round_) for round_ in range(15)]


@virtual
async def test_what_follows_in_a_batch_goes_in_with_one_put():
    clicks = parking(Poison("1"))
    clicks.stream.put(500)
    async with worked(clicks):
        pass
    # The first batch was in halves of halves when its first record turned out to be the bad one.
    assert [len(ids) for ids in clicks.spool.puts] == [1, 2, 3, 6, 13, 25, 50, 100, 100, 100, 100]


@virtual
async def test_a_partial_response_parks_the_record_that_it_names():
    poison = Poison("3", partial=True)
    clicks = parking(poison, partial=True)
    clicks.stream.put_keys("abcde")
    async with worked(clicks):
        assert await clicks.spool.ids() == ["3"]
    assert poison.handled == ["1", "2", "4", "5"]
    assert clicks.observer.of(Parked)[0].error_message == "the function named it in batchItemFailures"


@virtual
async def test_a_record_without_a_key_is_given_up_as_ever():
    destination = MemoryDestination()
    clicks = parking(Poison("1"), destination=destination)
    clicks.stream.put(1, key=None)
    clicks.stream.put(1)
    async with worked(clicks):
        assert parked(clicks) == []
    assert [delivery.condition for delivery in destination.deliveries] == ["RetryAttemptsExhausted"]


@virtual
async def test_what_is_too_old_is_given_up_and_not_parked_even_under_a_parked_key():
    policy = StreamPolicy(0, maximum_record_age_in_seconds=60, bisect_batch_on_function_error=True)
    clicks = parking(Poison("1"), policy=policy)
    clicks.stream.put(2)
    async with worked(clicks):
        clicks.keeper.close()
        clicks.stream.put(1)
        await anyio.sleep(61)
        clicks.keeper.open()
        await anyio.sleep(1)
        assert await clicks.spool.ids() == ["1", "2"]
    assert [fact.condition for fact in clicks.observer.of(Dropped)] == ["RecordAgeExceeded"]


@virtual
async def test_what_no_function_can_ever_get_parks_no_key_and_waits_under_none():
    clicks = parking(Poison("2"))
    clicks.stream.put(1, key="huge", size=7 * MB)
    clicks.stream.put(1, key="k")
    clicks.stream.put(1, key="k", size=7 * MB)
    async with worked(clicks):
        assert await clicks.spool.ids() == ["2"]
    assert [fact.first for fact in clicks.observer.of(Dropped)] == ["1", "3"]


@virtual
async def test_a_refusal_parks_nothing():
    clicks = parking(function=Function(BUSY, BUSY))
    clicks.stream.put(3)
    async with worked(clicks):
        assert parked(clicks) == []
    assert clicks.ids == ["1", "2", "3"] * 3


# --- over shards, lanes and restarts --------------------------------------------------------------------------------------


@virtual
async def test_after_a_restart_with_other_lanes_the_key_is_still_parked_and_what_is_read_again_changes_nothing():
    poison = Poison("2")
    clicks = parking(poison)
    clicks.stream.put_keys("abcab")
    async with clicks.running():
        clicks.store.down = True
        await settle_down()
        assert await clicks.spool.ids() == ["2", "5"]
    assert await clicks.position_of() == ""
    clicks.store.down = False
    for lanes in (4, 1):
        clicks = again(clicks, poison, lanes=lanes)
        clicks.stream.put_keys("b")
        async with worked(clicks, 0):
            assert parked(clicks) == ["b"]
            await settle_down()
    assert await clicks.spool.ids() == ["2", "5", "6", "7"]
    assert "2" not in poison.handled


@virtual
async def test_the_children_of_a_shard_keep_the_keys_parked_that_it_has_parked():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put_keys("aa")
    async with worked(clicks):
        one, other = clicks.stream.split("shard-000")
        for shard in (one, other):
            clicks.stream.put(shard=shard, key="a")
            clicks.stream.put(shard=shard, key="b")
        await anyio.sleep(100)
        found = await clicks.spool.spool.take("clicks", "parked", key="a")
        waiting = [entry.id for entry in found]
        assert waiting[:2] == ["shard-000:1", "shard-000:2"]
        assert sorted(waiting[2:]) == [f"{one}:3", f"{other}:5"]
    assert sorted(poison.handled) == ["4", "6"]


@virtual
async def test_keys_that_were_parked_stay_so_where_no_more_are():
    poison = Poison("1", "4")
    clicks = parking(poison)
    clicks.stream.put_keys("a")
    async with worked(clicks):
        pass
    clicks = again(clicks, poison, parks=False)
    clicks.stream.put_keys("aab")
    async with worked(clicks):
        assert parked(clicks) == ["a"]
        assert await clicks.spool.ids() == ["1", "2", "3"]
    assert [fact.first for fact in clicks.observer.of(Dropped)] == ["4"]


# --- no room, no store ----------------------------------------------------------------------------------------------------


@virtual
async def test_a_full_spool_holds_up_its_lane_and_says_so_and_nothing_is_lost():
    poison = Poison("1")
    clicks = parking(poison, stream=Stream(2), spool_limits=SpoolLimits(3, MB), batch_size=10)
    clicks.stream.put(10, key="a")
    clicks.stream.put(5, key="b", shard="shard-001")
    async with worked(clicks) as keeper:
        assert await clicks.spool.ids() == ["1", "2", "3"]
        waiting = "waiting for room among the parked records: the spool is full (3 entries or 1 MB)"
        assert doing(clicks) == waiting
        assert keeper.unparking.status().waiting == waiting
        assert clicks.observer.of(Trouble)[-1].error == waiting
        assert clicks.observer.of(Trouble)[-1].retry_in <= 10
        # The other shard has gone on, and the checkpoint waits.
        assert sorted(poison.handled) == ["11", "12", "13", "14", "15"]
        clicks.stream.put(5, key="b", shard="shard-001")
        await settle_down()
        assert len(poison.handled) == 10
        assert keeper.checkpoints["shard-000"].sequence_number == "3"
        poison.mend()
        (resumed,) = await keeper.unparking.resume("a")
        assert (resumed.state, parked(clicks)) == ("free", [])
        await settle_down()
        assert keeper.unparking.status().waiting == ""
        assert doing(clicks) == "reading"
    own = [id_ for id_ in poison.handled if int(id_) <= 10]
    assert own == [str(number) for number in range(1, 11)]


@virtual
async def test_the_record_that_would_park_its_key_waits_for_room_too_and_its_key_is_not_parked_before():
    poison = Poison("1", "2")
    clicks = parking(poison, spool_limits=SpoolLimits(1, MB), lanes=2)
    clicks.stream.put_keys("ab")
    async with worked(clicks) as keeper:
        (first,) = parked(clicks)
        assert "waiting for room" in doing(clicks)
        # Others made room, which nobody tells.
        (entry,) = await clicks.spool.spool.take("clicks", "parked")
        await clicks.spool.spool.remove("clicks", [entry.number])
        await anyio.sleep(11)
        assert len(parked(clicks)) == 2
        assert len(await clicks.spool.ids()) == 1
        assert (await keeper.unparking.resume(first))[0].state == "free"


@virtual
async def test_what_waits_for_room_is_handed_back_when_the_door_closes_and_taken_up_when_it_opens():
    poison = Poison("1", "2")
    clicks = parking(poison, spool_limits=SpoolLimits(1, MB))
    clicks.stream.put_keys("aab")
    async with worked(clicks) as keeper:
        keeper.close()
        await settle_down()
        assert doing(clicks) == "paused"
        keeper.open()
        await settle_down()
        assert "waiting for room" in doing(clicks)
        poison.mend()
        assert (await keeper.unparking.resume("a"))[0].state == "free"
        await settle_down()
    assert poison.handled == ["1", "2", "3"]


@virtual
async def test_the_poison_that_waits_for_room_when_the_door_closes_is_tried_once_more_when_it_opens():
    poison = Poison("1", "2")
    clicks = parking(poison, spool_limits=SpoolLimits(1, MB))
    clicks.stream.put_keys("ab")
    async with worked(clicks) as keeper:
        keeper.close()
        await settle_down()
        poison.mend()
        keeper.open()
        await settle_down()
        assert parked(clicks) == ["a"]
    assert poison.handled == ["2"]


@virtual
async def test_what_gets_too_old_while_it_waits_for_room_is_given_up():
    policy = StreamPolicy(0, maximum_record_age_in_seconds=60, bisect_batch_on_function_error=True)
    clicks = parking(Poison("1"), policy=policy, spool_limits=SpoolLimits(1, MB))
    clicks.stream.put(3)
    async with worked(clicks, 80):
        assert await clicks.spool.ids() == ["1"]
        assert doing(clicks) == "reading"
    assert [(fact.first, fact.last) for fact in clicks.observer.of(Dropped)] == [("2", "3")]


@virtual
async def test_too_old_records_that_cannot_be_delivered_when_the_door_closes_are_handed_back():
    policy = StreamPolicy(0, maximum_record_age_in_seconds=60, bisect_batch_on_function_error=True)
    destination = MemoryDestination()
    clicks = parking(Poison("1"), policy=policy, spool_limits=SpoolLimits(1, MB), destination=destination)
    clicks.stream.put(3)
    async with worked(clicks, 10) as keeper:
        destination.broken = StoreError("down")
        await anyio.sleep(90)
        assert "on-failure destination" in doing(clicks)
        keeper.close()
        await settle_down()
        destination.broken = None
        keeper.open()
        await anyio.sleep(1)
        assert doing(clicks) == "reading"
    assert [delivery.records for delivery in destination.deliveries] == [2]


@virtual
async def test_a_store_that_is_down_holds_up_the_lane_until_it_is_back():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.spool.down = StoreError("the disk is full")
    # Opening asks the spool as well.
    with pytest.raises(StoreError, match="the disk is full"):
        async with clicks.running():
            pass
    clicks.spool.down = None
    clicks.stream.put(3)
    async with clicks.running() as keeper:
        clicks.spool.down = StoreError("the disk is full")
        await anyio.sleep(30)
        assert doing(clicks) == "waiting for the store of the parked records: the disk is full"
        assert keeper.checkpoints["shard-000"].sequence_number == ""
        clicks.spool.down = None
        await anyio.sleep(11)
        assert await clicks.spool.ids() == ["1", "2", "3"]


@virtual
async def test_a_put_whose_answer_is_lost_is_repeated_and_is_there_once():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.spool.lost_answers = 1
    clicks.stream.put(3)
    async with worked(clicks) as keeper:
        assert await clicks.spool.ids() == ["1", "2", "3"]
        poison.mend()
        assert (await keeper.unparking.resume("k"))[0].records == 3
    assert poison.handled == ["1", "2", "3"]


# --- bounds ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_ten_thousand_parked_records_are_never_in_memory_together():
    poison = Poison("1")
    clicks = parking(poison, spool_limits=SpoolLimits(10_000, 256 * MB))
    clicks.stream.put(10_200)
    async with worked(clicks) as keeper:
        status = keeper.unparking.status()
        assert (status.keys, status.records) == (1, 10_000)
        assert "waiting for room" in doing(clicks)
        assert keeper.load().buffered_records == clicks.batch_size
        poison.mend()
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, parked(clicks)) == ("free", [])
    assert poison.handled == [str(number) for number in range(1, 10_201)]
    assert clicks.spool.peak_taken <= 32
    assert max(len(call.ids) for call in clicks.function.calls) <= clicks.batch_size
    assert {fact.shard for fact in clicks.observer.of(Invoked)} == {"shard-000"}


class Padded(Envelope):
    """Packs a record into as many bytes as it has."""

    def pack(self, record):
        return super().pack(record).ljust(record.size)


@virtual
async def test_of_large_parked_records_no_more_are_in_memory_than_fit_an_event():
    poison = Poison("1")
    clicks = parking(poison, envelope=Padded(), batch_size=100)
    clicks.stream.put(40, size=MB)
    async with worked(clicks) as keeper:
        poison.mend()
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("free", 40)
    assert poison.handled == [str(number) for number in range(1, 41)]
    assert max(len(call.ids) for call in clicks.function.calls) == 5
    assert clicks.spool.peak_taken <= 6
