"""Parked keys are taken up again, by probes and by command: in order, beside live records, until nothing of them is left."""

from __future__ import annotations

import anyio
import pytest

from poller.core.breaker import CircuitPolicy
from poller.destinations.memory import MemoryDestination
from poller.engine.slots import Places, Slots
from poller.engine.unparking import PATIENCE, Resumed
from poller.errors import PollerError, StoreError
from poller.model import CircuitState, Invoked, SpoolLimits, Trouble, Unparked
from tests.engine.fakes import BUSY, ERROR, OK, settle_down, virtual
from tests.engine.test_parking import MB, Poison, again, parked, parking, worked


def freed(clicks):
    return [fact.key for fact in clicks.observer.of(Unparked) if fact.free]


def status_of(clicks, key="k"):
    (found,) = [one for one in clicks.keeper.unparking.status().first if one.key == key]
    return found


def batches_since(clicks, number):
    return clicks.function.batches[number:]


# --- resumed by command ---------------------------------------------------------------------------------------------------


@virtual
async def test_a_key_is_taken_up_in_order_more_and_more_of_it_at_a_time_and_then_its_records_are_live():
    poison = Poison("1")
    clicks = parking(poison, batch_size=6)
    clicks.stream.put(20)
    async with worked(clicks) as keeper:
        before = len(clicks.function.batches)
        poison.mend()
        assert await keeper.unparking.resume("k") == (Resumed("k", "free", 20),)
        assert [len(batch) for batch in batches_since(clicks, before)] == [1, 2, 4, 6, 6, 1]
        assert (parked(clicks), await clicks.spool.ids(), freed(clicks)) == ([], [], ["k"])
        clicks.stream.put(1)
        await settle_down()
        assert clicks.function.batches[-1] == ["21"]
    assert poison.handled == [str(number) for number in range(1, 22)]
    assert sum(fact.records for fact in clicks.observer.of(Unparked)) == 20
    facts = clicks.observer.of(Invoked)
    assert {(fact.mapping, fact.function, fact.shard) for fact in facts} == {("clicks", "count", "shard-000")}


@virtual
async def test_a_key_that_still_fails_costs_one_invocation_and_stays_parked():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(20)
    async with worked(clicks) as keeper:
        before = len(clicks.function.batches)
        (resumed,) = await keeper.unparking.resume("k")
        assert resumed == Resumed("k", "failing", 0, "ValueError: no such order")
        assert batches_since(clicks, before) == [["1"]]
        assert len(await clicks.spool.ids()) == 20
        assert status_of(clicks).doing == "waits for poller resume"


@pytest.mark.parametrize("partial", [False, True])
@virtual
async def test_a_key_that_fails_in_the_middle_keeps_what_was_done_and_parks_from_there(partial):
    poison = Poison("1", "11", "20")
    clicks = parking(poison, partial=partial)
    poison.partial = partial
    clicks.stream.put(30)
    async with worked(clicks) as keeper:
        poison.ids.discard("1")
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("failing", 10)
        assert await clicks.spool.ids() == [str(number) for number in range(11, 31)]
        clicks.stream.put(1)
        await settle_down()
        poison.ids.discard("11")
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("failing", 9)
        poison.mend()
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("free", 12)
    assert poison.handled == [str(number) for number in range(1, 32)]


@virtual
async def test_records_that_come_while_a_key_is_taken_up_go_behind_it():
    poison = Poison("1", seconds=0.1)
    clicks = parking(poison, batch_size=4)
    clicks.stream.put(20)
    async with worked(clicks) as keeper, anyio.create_task_group() as tasks:
        poison.mend()
        tasks.start_soon(keeper.unparking.resume, "k")
        for _ in range(30):
            await anyio.sleep(0.05)
            clicks.stream.put_keys("kx")
        await anyio.sleep(20)
        assert parked(clicks) == []
        clicks.stream.put(3)
        await anyio.sleep(1)
        mine = [record.id for record in clicks.stream.records["shard-000"] if record.key == "k"]
    assert [id_ for id_ in poison.handled if id_ in mine] == mine
    assert clicks.function.overlaps == []


@virtual
async def test_a_slow_put_is_waited_for_before_a_key_is_free():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(1)
    async with worked(clicks) as keeper:
        poison.mend()
        clicks.spool.slow = 5.0
        clicks.stream.put(1)
        await settle_down()
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("free", 2)
    assert poison.handled == ["1", "2"]


@virtual
async def test_a_put_that_begins_and_ends_during_the_last_look_keeps_the_key_parked():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(1)
    async with worked(clicks) as keeper:
        poison.mend()
        spool, looks = clicks.spool.spool, []

        class SlowLook:
            async def take(self, *args, **wanted):
                found = await spool.take(*args, **wanted)
                looks.append(len(found))
                if not found and len(looks) == 2:
                    clicks.stream.put(1)
                    await anyio.sleep(1)
                return found

            def __getattr__(self, name):
                return getattr(spool, name)

        clicks.spool.spool = SlowLook()
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("free", 2)
    assert looks == [1, 0, 1, 0]
    assert poison.handled == ["1", "2"]


@virtual
async def test_a_command_that_comes_during_an_attempt_gets_the_result_of_the_next_one():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=60)
    clicks.stream.put(3)
    async with worked(clicks, 1) as keeper:
        poison.seconds = 2.0
        await anyio.sleep(60)
        assert status_of(clicks).doing == "taken up, 0 records handled"
        ended = []

        async def resume():
            ended.append(await keeper.unparking.resume("k"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(resume)
            tasks.start_soon(resume)
            await anyio.sleep(0.5)
            assert status_of(clicks).doing == "taken up, 0 records handled"
            await anyio.sleep(1)
            poison.mend()
    assert ended == [(Resumed("k", "free", 3),)] * 2


@virtual
async def test_a_command_that_comes_during_the_attempt_that_frees_the_key_is_told_so():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=60)
    clicks.stream.put(1)
    async with worked(clicks, 1) as keeper:
        poison.mend()
        poison.seconds = 2.0
        await anyio.sleep(60)
        assert poison.handled == []
        assert (await keeper.unparking.resume("k"))[0].state == "free"
    assert poison.handled == ["1"]


@virtual
async def test_what_takes_longer_goes_on_without_the_command():
    poison = Poison("1", seconds=15.0)
    clicks = parking(poison)
    clicks.stream.put(7)
    async with worked(clicks) as keeper:
        poison.mend()
        began = anyio.current_time()
        assert await keeper.unparking.resume("k") == (Resumed("k", "going on", 1),)
        assert anyio.current_time() - began == PATIENCE
        await anyio.sleep(60)
        assert parked(clicks) == []


@virtual
async def test_all_keys_are_taken_up_a_few_at_a_time():
    poison = Poison("1", "2", "3", "4", "5", "6", seconds=1.0)
    clicks = parking(poison, batch_size=1)
    clicks.stream.put_keys("abcdef" * 2)
    async with worked(clicks) as keeper:
        poison.ids = {"3"}
        clicks.function.peak = 0
        resumed = await keeper.unparking.resume(None)
        assert clicks.function.peak == 4
        assert {one.key: one.state for one in resumed} == {
            **dict.fromkeys("abdef", "free"),
            "c": "failing",
        }
        assert parked(clicks) == ["c"]
        poison.mend()
        await keeper.unparking.resume(None)
        assert await keeper.unparking.resume(None) == ()


@virtual
async def test_what_cannot_be_resumed_is_said_in_one_line():
    clicks = parking(Poison("1"))
    clicks.stream.put(1)
    async with worked(clicks) as keeper:
        with pytest.raises(PollerError, match="clicks has no parked key 'other': poller status clicks shows"):
            await keeper.unparking.resume("other")
        keeper.close()
        with pytest.raises(PollerError, match="it is paused, or its circuit breaker is open: first"):
            await keeper.unparking.resume("k")


# --- probes ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_probe_comes_after_an_interval_and_less_and_less_often_while_it_fails():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(5)
    async with worked(clicks, 0) as keeper:
        await settle_down()
        before = len(clicks.function.calls)
        began = anyio.current_time()
        assert status_of(clicks).doing == "next try in 10 s"
        await anyio.sleep(1000)
        probes = [round(call.at - began) for call in clicks.function.calls[before:]]
        assert probes == [10, 30, 70, 150, 310, 470, 630, 790, 950]
        assert {tuple(call.ids) for call in clicks.function.calls[before:]} == {("1",)}
        poison.mend()
        await anyio.sleep(160)
        assert (parked(clicks), freed(clicks)) == ([], ["k"])
        assert keeper.unparking.status().keys == 0


@virtual
async def test_a_probe_that_gets_on_begins_the_pauses_anew():
    poison = Poison("1", "2")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(5)
    async with worked(clicks, 1000):
        poison.ids.discard("1")
        await anyio.sleep(170)
        assert await clicks.spool.ids() == ["2", "3", "4", "5"]
        before = len(clicks.function.calls)
        poison.mend()
        await anyio.sleep(20)
        assert len(clicks.function.calls) > before
        assert parked(clicks) == []


@virtual
async def test_without_an_interval_there_is_no_probe():
    clicks = parking(Poison("1"))
    clicks.stream.put(5)
    async with worked(clicks, 9_000):
        assert status_of(clicks).doing == "waits for poller resume"
        assert len([batch for batch in clicks.function.batches if batch == ["1"]]) == 1


@virtual
async def test_a_parked_key_is_probed_after_a_restart_and_while_its_shards_are_idle():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(5)
    async with worked(clicks, 3):
        pass
    clicks.stream.split("shard-000")
    poison.mend()
    clicks = again(clicks, poison)
    async with worked(clicks, 1):
        assert (status_of(clicks).error_type, status_of(clicks).records) == ("ValueError", 5)
        await anyio.sleep(10)
        assert parked(clicks) == []
    assert poison.handled == ["1", "2", "3", "4", "5"]


@virtual
async def test_nothing_is_taken_up_while_the_mapping_is_paused():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(5)
    async with worked(clicks, 1) as keeper:
        keeper.close()
        poison.mend()
        await anyio.sleep(500)
        assert poison.handled == []
        keeper.open()
        await anyio.sleep(1)
    assert len(poison.handled) == 5


@virtual
async def test_a_pause_ends_an_attempt_after_the_batch_that_runs_and_it_goes_on_when_the_door_opens():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(30)
    async with worked(clicks, 1) as keeper:
        poison.mend()
        poison.seconds = 1.0
        await anyio.sleep(10.5)
        assert keeper.load().in_flight_invocations == 1
        keeper.close()
        await anyio.sleep(100)
        done = len(poison.handled)
        assert 0 < done < 30
        assert len(await clicks.spool.ids()) == 30 - done
        keeper.open()
        await anyio.sleep(10)
    assert poison.handled == [str(number) for number in range(1, 31)]


@virtual
async def test_a_stop_finishes_the_batch_that_runs_and_tells_who_waits():
    poison = Poison("1", seconds=1.0)
    clicks = parking(poison, slots=Slots(Places(4), None))
    clicks.stream.put(1)
    clicks.stream.put_keys("x")
    poison.ids.add("2")
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(10)
        poison.mend()
        resumed = []

        async def resume():
            resumed.extend(await keeper.unparking.resume(None))

        tasks.start_soon(resume)
        await anyio.sleep(0.5)
        keeper.quiet()
    # A quarter of four slots is one key at a time: the other one was not begun.
    assert [one.state for one in resumed] == ["going on", "going on"]
    assert sorted(one.records for one in resumed) == [0, 1]
    assert len(poison.handled) == 1
    assert len(await clicks.spool.ids()) == 1


# --- beside live records --------------------------------------------------------------------------------------------------


@virtual
async def test_keys_that_are_taken_up_use_a_quarter_of_the_slots_at_most():
    poison = Poison(*map(str, range(1, 9)), seconds=1.0)
    clicks = parking(poison, slots=Slots(Places(8), None), probe_interval=5, lanes=6)
    clicks.stream.put_keys("abcdefgh")
    async with worked(clicks, 20):
        clicks.function.peak = 0
        await anyio.sleep(200)
        assert clicks.function.peak == 2


@virtual
async def test_a_function_that_is_busy_is_asked_again_and_that_is_no_failure():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(2)
    async with worked(clicks) as keeper:
        replies = [BUSY, BUSY, BUSY]

        async def busy(call):
            return replies.pop() if replies else await poison(call)

        clicks.function._handler = busy
        poison.mend()
        assert (await keeper.unparking.resume("k"))[0] == Resumed("k", "free", 2)
    assert poison.handled == ["1", "2"]


@virtual
async def test_a_busy_function_holds_up_no_pause():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(2)
    async with worked(clicks, 1) as keeper:
        clicks.function._handler = None
        clicks.function._replies = [BUSY] * 100
        await anyio.sleep(10)
        keeper.close()
        await settle_down()
        assert status_of(clicks).doing == "next try in 0 s"


@virtual
async def test_events_are_built_anew_for_each_attempt():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(4)
    async with worked(clicks) as keeper:
        seen = []

        async def spoiling(call):
            seen.append([record["messageId"] for record in call.invocation.event["Records"]])
            for record in call.invocation.event["Records"]:
                record.clear()
            return ERROR if "3" in call.ids else OK

        clicks.function._handler = spoiling
        assert (await keeper.unparking.resume("k"))[0].records == 2
        assert seen == [["1"], ["2", "3"], ["2"], ["3"]]


@virtual
async def test_an_event_never_passes_the_limit_and_holds_records_of_one_shard():
    poison = Poison("1")
    clicks = parking(poison, payload=13 + 250)
    clicks.stream.put(10)
    async with worked(clicks) as keeper:
        child, _ = clicks.stream.split("shard-000")
        clicks.stream.put(5, shard=child)
        await anyio.sleep(10)
        before = len(clicks.function.batches)
        poison.mend()
        (resumed,) = await keeper.unparking.resume("k")
        assert (resumed.state, resumed.records) == ("free", 15)
        batches = batches_since(clicks, before)
        assert max(map(len, batches)) == 2
        assert not any({"10", "11"} <= set(batch) for batch in batches)
        shards = {
            id_: fact.shard
            for fact, batch in zip(clicks.observer.of(Invoked), clicks.function.batches, strict=True)
            for id_ in batch
        }
        assert (shards["10"], shards["11"]) == ("shard-000", child)


@virtual
async def test_a_record_that_would_be_too_large_alone_keeps_its_key_parked_and_says_why():
    # Only a change of the configuration makes a parked record larger than an event may be.
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(2, size=100)
    async with worked(clicks) as keeper:
        clicks.envelope.unpack = lambda shard, packed: (
            type(clicks.envelope).unpack(clicks.envelope, shard, packed)._replace(size=7 * MB)
        )
        (resumed,) = await keeper.unparking.resume("k")
        assert resumed.error == "its event passes 6 MB, so no function can get it"


@virtual
async def test_a_key_that_waits_for_a_slot_when_the_mapping_is_paused_stays_as_it_is():
    poison = Poison("1")
    clicks = parking(poison, probe_interval=10)
    clicks.stream.put(1)
    async with worked(clicks, 5) as keeper:
        slots = clicks.slots
        while slots.try_acquire():
            pass
        await anyio.sleep(10)
        assert (slots.waiting, status_of(clicks).doing) == (1, "taken up, 0 records handled")
        keeper.close()
        await settle_down()
        assert (slots.waiting, status_of(clicks).doing) == (0, "next try in 0 s")


@virtual
async def test_a_key_that_found_no_room_to_be_parked_is_not_taken_up():
    poison = Poison("1", "2")
    clicks = parking(poison, probe_interval=20, spool_limits=SpoolLimits(1, MB))
    clicks.stream.put_keys("ab")
    async with worked(clicks, 15) as keeper:
        assert parked(clicks) == ["a"]
        # Its own lane tries it once more, and has no need to park it.
        keeper.close()
        poison.ids.discard("2")
        await settle_down()
        keeper.open()
        await anyio.sleep(100)
        assert poison.handled == ["2"]
        assert (parked(clicks), freed(clicks)) == (["a"], [])


# --- an on-success destination, a circuit breaker -------------------------------------------------------------------------


@virtual
async def test_an_on_success_destination_is_told_of_what_was_parked_before_it_is_removed():
    poison = Poison("1")
    success = MemoryDestination()
    clicks = parking(poison, on_success=success)
    clicks.stream.put(3)
    async with worked(clicks) as keeper:
        assert success.deliveries == []
        poison.mend()
        success.broken = StoreError("down")
        with anyio.move_on_after(5):
            await keeper.unparking.resume("k")
        assert status_of(clicks).doing == "waiting for the on-success destination: down"
        assert await clicks.spool.ids() == ["1", "2", "3"]
        # A pause leaves it parked, and to be repeated.
        keeper.close()
        await settle_down()
        assert status_of(clicks).doing == "next try in 0 s"
        success.broken = None
        keeper.open()
        await anyio.sleep(5)
        assert parked(clicks) == []
    assert poison.handled == ["1", "1", "2", "3"]
    told = [delivery.document["requestPayload"]["Records"] for delivery in success.deliveries]
    assert [[record["messageId"] for record in records] for records in told] == [["1"], ["2", "3"]]
    assert {(delivery.shard, delivery.succeeded) for delivery in success.deliveries} == {("shard-000", True)}


@virtual
async def test_a_closed_circuit_hears_nothing_of_probes_and_an_open_one_lets_none_through():
    poison = Poison("1")
    policy = CircuitPolicy(consecutive_failures=3, pause=30, maximum_pause=60)
    clicks = parking(poison, circuit=policy, probe_interval=1, batch_size=1)
    clicks.stream.put(1, key="a")
    async with worked(clicks, 20):
        # A few probes have failed by now.
        assert poison.handled == []
        assert (clicks.keeper.breaker.circuit.state, parked(clicks)) == (CircuitState.CLOSED, ["a"])
        before = len(clicks.function.calls)
        clicks.function._handler, clicks.function._replies = None, [ERROR] * 3
        clicks.stream.put_keys("bcd")
        await settle_down()
        assert clicks.keeper.breaker.circuit.state is CircuitState.OPEN
        with pytest.raises(PollerError, match="its circuit breaker is open"):
            await clicks.keeper.unparking.resume("a")
        await anyio.sleep(10)
        # The first failure of all was that of the poison.
        assert len(clicks.function.calls) == before + 2
        poison.mend()
        clicks.function._handler = poison
        clicks.stream.put_keys("xyz")
        await anyio.sleep(120)
        assert parked(clicks) == []
    assert sorted(poison.handled, key=int) == ["1", "2", "3", "4", "5", "6", "7"]


@virtual
async def test_where_nothing_else_comes_a_parked_key_is_the_probe_that_closes_the_circuit():
    poison = Poison("1", "2", "3")
    policy = CircuitPolicy(consecutive_failures=3, pause=30, maximum_pause=60)
    clicks = parking(poison, circuit=policy, probe_interval=10, batch_size=1)
    clicks.stream.put_keys("abc")
    async with worked(clicks, 1) as guarded:
        assert clicks.keeper.breaker.circuit.state is CircuitState.OPEN
        await anyio.sleep(60)
        assert len(clicks.function.calls) < 6
        poison.mend()
        await anyio.sleep(300)
        assert (clicks.keeper.breaker.circuit.state, parked(clicks)) == (CircuitState.CLOSED, [])
        assert guarded.load().in_flight_invocations == 0
    assert sorted(poison.handled) == ["1", "2", "3"]


# --- the spool in trouble -------------------------------------------------------------------------------------------------


@virtual
async def test_a_spool_that_cannot_be_read_keeps_the_key_parked():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(2)
    async with worked(clicks) as keeper:
        poison.mend()
        clicks.spool.down = StoreError("gone")
        (resumed,) = await keeper.unparking.resume("k")
        assert resumed == Resumed("k", "failing", 0, "parked records cannot be read: gone")
        clicks.spool.down = None
        assert (await keeper.unparking.resume("k"))[0].state == "free"


@virtual
async def test_an_entry_that_makes_no_sense_keeps_its_key_parked_and_harms_no_other():
    poison = Poison("1", "2")
    clicks = parking(poison)
    clicks.stream.put_keys("ab")
    async with worked(clicks) as keeper:
        poison.mend()
        unpack = clicks.envelope.unpack

        def damaged(shard, packed):
            return unpack(shard, b"{" if b'"1"' in packed else packed)

        clicks.envelope.unpack = damaged
        one, other = await keeper.unparking.resume(None)
        assert one.error.startswith("parked records cannot be read: record shard-000:1 makes no sense:")
        assert other.state == "free"


@virtual
async def test_what_was_handled_is_removed_before_anything_else_however_long_that_takes():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(3)
    async with worked(clicks) as keeper, anyio.create_task_group() as tasks:
        poison.mend()

        async def breaking(call):
            clicks.spool.down = StoreError("the disk is full")
            return await poison(call)

        clicks.function._handler = breaking
        tasks.start_soon(keeper.unparking.resume, "k")
        await anyio.sleep(10)
        assert poison.handled == ["1"]
        (trouble, *_) = clicks.observer.of(Trouble)
        assert trouble.error == "handled records cannot be removed from the parked ones: the disk is full"
        clicks.function._handler = poison
        clicks.spool.down = None
        await anyio.sleep(20)
        assert poison.handled == ["1", "2", "3"]


@virtual
async def test_a_pause_while_nothing_can_be_removed_repeats_what_was_handled():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(2)
    async with worked(clicks) as keeper, anyio.create_task_group() as tasks:
        poison.mend()

        async def breaking(call):
            clicks.spool.down = StoreError("the disk is full")
            return await poison(call)

        clicks.function._handler = breaking
        tasks.start_soon(keeper.unparking.resume, "k")
        await anyio.sleep(1)
        keeper.close()
        await settle_down()
        clicks.function._handler, clicks.spool.down = poison, None
        keeper.open()
        await anyio.sleep(1)
    assert poison.handled == ["1", "1", "2"]


@virtual
async def test_a_kill_between_success_and_removal_repeats_a_batch_and_loses_nothing():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(7)
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(5)
        poison.mend()

        async def killed():
            if len(poison.handled) == 3:
                tasks.cancel_scope.cancel()
                await anyio.lowlevel.checkpoint()

        clicks.spool.before_remove = killed
        tasks.start_soon(keeper.unparking.resume, "k")
    clicks = again(clicks, poison)
    clicks.spool.before_remove = anyio.lowlevel.checkpoint
    assert await clicks.spool.ids() == ["2", "3", "4", "5", "6", "7"]
    async with worked(clicks, 1) as keeper:
        await keeper.unparking.resume(None)
    assert poison.handled == ["1", "2", "3", "2", "3", "4", "5", "6", "7"]


# --- what it shows --------------------------------------------------------------------------------------------------------


@virtual
async def test_the_status_names_the_keys_that_were_parked_first_and_counts_all():
    poison = Poison(*map(str, range(1, 16)))
    clicks = parking(poison, batch_size=1)
    keys = "abcdefghijklmno"
    clicks.stream.put_keys(keys)
    clicks.stream.put_keys("aab")
    async with worked(clicks, 10) as keeper:
        status = keeper.unparking.status()
        assert (status.keys, status.records, status.waiting) == (15, 18, "")
        assert "".join(one.key for one in status.first) == keys[:10]
        assert (status.first[0].records, status.first[0].error_message) == (3, "no such order")
        assert status.bytes == sum(one.size for one in keeper.parking.keys.values()) > 0
        assert status.oldest == min(one.since for one in keeper.parking.keys.values())
        assert repr(keeper.parking) == "<Parking clicks: 15 keys>"
        assert repr(keeper.unparking) == "<Unparking clicks: 0 keys taken up, <Schedule of 0 keys>>"


@virtual
async def test_counts_are_right_again_soon_after_records_were_read_twice():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put_keys("kkx")
    async with clicks.running():
        clicks.store.down = True
        await settle_down()
    clicks.store.down = False
    clicks = again(clicks, poison)
    async with worked(clicks, 0) as keeper:
        await settle_down()
        await anyio.sleep(6)
        assert keeper.unparking.status().records == 2
        # Somebody else has emptied it.
        found = await clicks.spool.spool.take("clicks", "parked")
        await clicks.spool.spool.remove("clicks", [entry.number for entry in found])
        clicks.stream.put(1)
        await anyio.sleep(6)
        assert keeper.unparking.status().records == 1
        assert len(await clicks.spool.ids()) == 1
        clicks.stream.put_keys("k")
        await settle_down()
        clicks.spool.down = StoreError("busy")
        await anyio.sleep(6)
        assert clicks.observer.of(Trouble)[-1].error == "parked records cannot be counted: busy"
        clicks.spool.down = None
        await anyio.sleep(6)
        assert keeper.unparking.status().records == 2


@virtual
async def test_a_key_of_which_nothing_is_left_is_counted_as_such_and_is_free_when_somebody_looks():
    poison = Poison("1", "2")
    clicks = parking(poison)
    clicks.stream.put_keys("ab")
    async with worked(clicks, 0) as keeper:
        await settle_down()
        found = await clicks.spool.spool.take("clicks", "parked", key="a")
        await clicks.spool.spool.remove("clicks", [entry.number for entry in found])
        await anyio.sleep(6)
        assert [one.records for one in keeper.unparking.status().first] == [0, 1]
        assert (await keeper.unparking.resume("a"))[0] == Resumed("a", "free", 0)
        assert parked(clicks) == ["b"]
