"""Several workers on one stream, in virtual time: they share its shards, hand them over, and take them from the dead."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.core.breaker import CircuitPolicy
from poller.core.leases import FAILOVER_TIME
from poller.engine.dispatch import Dispatch
from poller.engine.door import Door
from poller.engine.invoker import Call, FunctionPlan, Invoker
from poller.engine.slots import Places, Slots
from poller.engine.tenancy import STUCK, Watched
from poller.errors import StoreError, Unreachable
from poller.model import Checkpoint, Lease, Returned, Shard, StartAt
from poller.stores.memory import MemoryStore
from tests.engine.fakes import BUSY, ERROR, Function, Recorder, in_virtual_time, virtual, world
from tests.engine.fleet import Fleet
from tests.engine.stream_fakes import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine.fleet import Member

#: One more of a kind of which the quick tests have one already.
ANOTHER = pytest.mark.slow


async def feed(fleet: Fleet, seconds: float, pause: float = 0.25) -> None:
    """Put a record into every open shard every so often."""
    until = anyio.current_time() + seconds
    while anyio.current_time() < until:
        for name, shard in list(fleet.stream.listed.items()):
            if not shard.closed:
                fleet.stream.put(shard=name, key=name)
        await anyio.sleep(pause)


def put(fleet: Fleet) -> list[str]:
    return [record.id for records in fleet.stream.records.values() for record in records]


def check_nothing_lost(fleet: Fleet) -> None:
    assert set(put(fleet)) == set(fleet.handled)


def check_order(fleet: Fleet) -> None:
    """The first time that each record of a key was handled comes in the order of the key."""
    first: dict[str | None, list[int]] = {}
    seen: set[str] = set()
    for entry in fleet.done:
        for id_, key in zip(entry.ids, entry.keys, strict=True):
            if id_ not in seen:
                seen.add(id_)
                first.setdefault(key, []).append(int(id_))
    for ids in first.values():
        assert ids == sorted(ids)


def check_no_repeats(fleet: Fleet) -> None:
    assert len(fleet.handled) == len(set(fleet.handled))


# --- one worker ---------------------------------------------------------------------------------------------------------


@virtual
async def test_one_worker_reads_all_and_its_checkpoints_go_with_its_leases():
    fleet = Fleet(Stream(3))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 30.0)
        await anyio.sleep(2.0)
        assert one.shards == {"shard-000", "shard-001", "shard-002"}
        check_nothing_lost(fleet)
        for shard, checkpoint in (await fleet.table.load("clicks")).items():
            assert checkpoint.sequence_number == fleet.stream.records[shard][-1].id
        assert "save" not in one.way.calls
        assert [shard.checkpoint_age for shard in one.keeper.shards()] == [0.0] * 3
        assert 3 * 25 <= one.way.calls.count("renew") <= 3 * 31, "once a second and shard, and no more"
        assert one.keeper.trouble is None


@virtual
async def test_a_worker_says_how_old_the_oldest_record_is_that_it_has_not_done():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")

    async def fails(_: object) -> object:
        return ERROR

    async def lags() -> list[float]:
        return [worker.lag for worker in (await fleet.table.list()).workers]

    async with one.running():
        await anyio.sleep(10.0)
        assert await lags() == [0.0]
        one.reply = fails
        fleet.stream.put()
        await anyio.sleep(60.0)
        (lag,) = await lags()
        assert 54.0 <= lag <= 60.0


@virtual
async def test_an_idle_shard_costs_a_write_in_five_seconds():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(3.0)
        one.way.calls.clear()
        await anyio.sleep(100.0)
        assert one.way.calls.count("renew") <= 2 * 20
        assert one.way.calls.count("beat") <= 20


@virtual
async def test_a_stop_hands_everything_back_and_repeats_nothing():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.2)
        await one.stop()
    assert set((await fleet.owners()).values()) == {""}
    assert (await fleet.table.list()).workers == ()
    async with fleet.member("w2").running():
        await feed(fleet, 5.0)
        await anyio.sleep(3.0)
    check_nothing_lost(fleet)
    check_no_repeats(fleet)
    check_order(fleet)


@virtual
async def test_a_hard_stop_gives_the_leases_back_with_what_is_done():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.0)
        one.seconds = 1000.0
        fleet.stream.put()
        await anyio.sleep(1.0)
        one.process.cancel()
        await one.ended.wait()
        # As the table was last reached by a task that is no longer there: the lease keeper was cancelled with all others.
    assert fleet.stream.reading == {"shard-000": 0, "shard-001": 0}


@virtual
async def test_a_mapping_that_is_cut_short_leaves_its_leases_to_others():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.leases.run)
        async with anyio.create_task_group() as mapping:
            mapping.start_soon(_run, one)
            await feed(fleet, 5.0)
            one.seconds = 1000.0
            fleet.stream.put()
            await anyio.sleep(1.0)
            mapping.cancel_scope.cancel()
        assert await fleet.owners() == {"shard-000": "", "shard-001": ""}
        one.leases.quiet()
    (open_record,) = set(put(fleet)) - set(fleet.handled)
    assert (await fleet.table.load("clicks"))["shard-000"].sequence_number < open_record


async def _run(one: Member) -> None:
    async with one.clicks.open() as one.keeper:
        await one.keeper.run()


# --- several ------------------------------------------------------------------------------------------------------------


@virtual
async def test_workers_that_start_together_share_the_shards():
    fleet = Fleet(Stream(8))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 10.0)
        await anyio.sleep(2.0)
        assert one.shards | two.shards == set(fleet.stream.listed)
        assert one.shards.isdisjoint(two.shards)
        assert 3 <= len(one.shards) <= 5
        check_nothing_lost(fleet)
        check_no_repeats(fleet)


@virtual
async def test_who_joins_gets_its_part_and_nothing_is_repeated_or_out_of_order():
    fleet = Fleet(Stream(8), seconds=0.4)
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running():
        await feed(fleet, 30.0)
        async with two.running():
            joined = anyio.current_time()
            await feed(fleet, 30.0)
            assert len(two.shards) == 4
            claims = [at for at, fact in two.leases.history if fact.event == "claimed"]
            assert len(claims) == 4
            await anyio.sleep(3.0)
            assert one.events.count("handed over") == 4
            assert {entry.worker for entry in fleet.begun if entry.at > joined + 20} == {"w1", "w2"}
    check_nothing_lost(fleet)
    check_no_repeats(fleet)
    check_order(fleet)


@virtual
async def test_who_leaves_is_followed_within_two_seconds_without_repeats():
    fleet = Fleet(Stream(6))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 20.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed, fleet, 10.0)
            await one.stop()
            await anyio.sleep(2.0)
            assert two.shards == set(fleet.stream.listed)
        await anyio.sleep(2.0)
    check_nothing_lost(fleet)
    check_no_repeats(fleet)
    check_order(fleet)


@pytest.mark.parametrize("offset", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_whoever_looks_while_a_worker_leaves_leaves_it_nothing(offset: float):
    async def body() -> None:
        fleet = Fleet(Stream(6))
        one, two = fleet.member("w1"), fleet.member("w2")
        async with one.running(), two.running():
            await anyio.sleep(20.0 + offset)
            one.way.slow = {"beat": 0.3}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.stop)
                await anyio.sleep(1.4)
                assert two.shards == set(fleet.stream.listed)

    in_virtual_time(body)


@pytest.mark.parametrize(
    "offset", [0.0, *(pytest.param(at, marks=ANOTHER) for at in (0.1, 0.2, 0.4, 0.6, 0.8))]
)
@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_what_is_handed_to_a_worker_that_leaves_comes_back_at_once(offset: float, seconds: float):
    async def body() -> None:
        fleet = Fleet(Stream(8), seconds=seconds)
        one, two = fleet.member("w1"), fleet.member("w2")
        async with one.running():
            await feed(fleet, 20.0, pause=2.0)
            async with two.running(), anyio.create_task_group() as tasks:
                tasks.start_soon(feed, fleet, 8.0)
                for _ in range(100):
                    await anyio.sleep(0.05)
                    if any(lease.wanted_by for lease in (await fleet.table.list()).leases):
                        break
                await anyio.sleep(offset)
                await two.stop()
                await anyio.sleep(1.5)
                assert one.shards == set(fleet.stream.listed)
            await anyio.sleep(2.0)
        check_nothing_lost(fleet)
        check_no_repeats(fleet)
        check_order(fleet)

    in_virtual_time(body)


@pytest.mark.parametrize("apart", [0.0, *(pytest.param(gap, marks=ANOTHER) for gap in (0.01, 0.1, 0.3))])
@pytest.mark.parametrize("stays", [True, False])
def test_workers_that_stop_together_leave_nothing_to_each_other(apart: float, stays: bool):
    async def body() -> None:
        fleet = Fleet(Stream(8))
        one, two, three = (fleet.member(name) for name in ("w1", "w2", "w3"))
        async with one.running(), two.running(), three.running():
            await feed(fleet, 20.0, pause=2.0)
            async with anyio.create_task_group() as tasks:
                for member in (one, two) if stays else (one, two, three):
                    tasks.start_soon(member.stop)
                    await anyio.sleep(apart)
            assert set((await fleet.owners()).values()) == ({"w3"} if stays else {""})
            if stays:
                await anyio.sleep(1.2)
                assert three.shards == set(fleet.stream.listed)

    in_virtual_time(body)


@virtual
async def test_what_was_handed_on_is_somebody_elses_by_then():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(20.0)
        claim = fleet.table.claim

        async def late(lease: Lease, worker: str) -> Lease | None:
            await claim(lease, "w2")
            return await claim(lease, worker)

        fleet.table.claim = late  # type: ignore[method-assign]
        release = fleet.table.release

        async def back(lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
            return await release(lease, checkpoint, "w1")

        fleet.table.release = back  # type: ignore[method-assign]
        await one.stop()
    assert set((await fleet.owners()).values()) == {"w2"}


@virtual
async def test_looks_that_fail_hold_up_no_stop():
    fleet = Fleet(Stream(6))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(20.0)
        one.way.refuses = {"list"}
        with anyio.fail_after(0.5):
            await one.stop()
    assert set((await fleet.owners()).values()) == {""}


@virtual
async def test_a_table_that_does_not_answer_holds_up_a_stop_for_two_seconds_at_most():
    fleet = Fleet(Stream(6))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(20.0)
        one.way.slow = {"beat": 60.0}
        with anyio.fail_after(2.5):
            await one.stop()
    assert set((await fleet.owners()).values()) == {""}


@virtual
async def test_shards_of_the_dead_are_read_within_the_failover_time_and_a_look_and_repeat_about_a_second():
    fleet = Fleet(Stream(6))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 20.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed, fleet, 20.0)
            await anyio.sleep(0.9)
            one.kill()
            await anyio.sleep(FAILOVER_TIME + 2.0)
            assert two.shards == set(fleet.stream.listed)
        await anyio.sleep(2.0)
    check_nothing_lost(fleet)
    check_order(fleet)
    assert len(fleet.handled) - len(set(fleet.handled)) <= 6 * 2.5 / 0.25


@virtual
async def test_who_is_cut_off_begins_nothing_more_before_anybody_takes_over_and_writes_nothing_after():
    fleet = Fleet(Stream(4))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 20.0)
        mine = set(one.shards)
        one.way.cut = True
        await feed(fleet, 30.0)
        taken = min(at for at, fact in two.leases.history if fact.shard in mine and fact.event == "claimed")
        since = taken - fleet.world.wall() + anyio.current_time()
        late = [entry for entry in fleet.begun if entry.worker == "w1" and entry.at >= since]
        assert late == []
        assert one.events[-1] == "lost"
        assert not one.keeper.shards()
        one.way.cut = False
        await feed(fleet, 40.0)
        assert len(one.shards) == len(two.shards) == 2, "it comes back"
        await anyio.sleep(2.0)
    check_nothing_lost(fleet)
    check_order(fleet)


@virtual
async def test_an_invocation_that_ends_after_its_lease_was_lost_commits_nothing_and_nothing_follows_it():
    fleet = Fleet(Stream(1), settings={"batch_size": 1})
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(3.0)
        one.seconds = 5.0
        fleet.stream.put(3)
        await anyio.sleep(1.0)
        # The process stands still, and its clock does not: as after a SIGCONT, all is late at once.
        (holding,) = one.leases._held.values()
        holding.renewed -= 3 * FAILOVER_TIME
        holding.renewing = True
        lease = holding.lease
        fleet.table._put(Lease("clicks", "shard-000", owner="w9", counter=lease.counter + 1))
        await anyio.sleep(10.0)
        assert len(fleet.begun) == 1
        assert (await fleet.table.load("clicks"))["shard-000"] == Checkpoint()


@virtual
async def test_the_fence_lets_nothing_begin_even_before_the_loss_is_noticed():
    fleet = Fleet(Stream(1), settings={"batch_size": 1})
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(3.0)
        one.seconds = 0.2
        fleet.stream.put(3)
        await anyio.sleep(0.1)
        (holding,) = one.leases._held.values()
        holding.renewed -= 3 * FAILOVER_TIME
        await anyio.sleep(0.3)
        assert len(fleet.begun) == 1
        await anyio.sleep(3.0)
    assert one.events.count("lost") == 1


@virtual
async def test_behind_a_fence_no_invocation_begins_and_no_slot_is_kept():
    places = Places(1)
    function = Function()
    invoker = Invoker(FunctionPlan("f", "arn", 3.0), function, Slots(places, None), Recorder(), world())
    dispatch = Dispatch(invoker, Door(), None)
    fences = [True]
    dispatch.fence = lambda: fences[-1]
    assert await dispatch.invoke(Call("clicks", "kinesis", partial=False, event={"Records": []})) is not None
    fences.append(False)
    assert await dispatch.invoke(Call("clicks", "kinesis", partial=False, event={"Records": []})) is None
    assert (len(function.calls), places.taken) == (1, 0)


# --- shards that split and merge ----------------------------------------------------------------------------------------


@virtual
async def test_children_are_read_by_anybody_once_their_parents_are_finished():
    fleet = Fleet(Stream(2), seconds=0.5)
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 10.0)
        fleet.stream.split("shard-000")
        await feed(fleet, 10.0)
        fleet.stream.merge("shard-002", "shard-003")
        await feed(fleet, 20.0)
        await anyio.sleep(5.0)
        assert await fleet.finished() == {"shard-000", "shard-002", "shard-003"}
        assert one.shards | two.shards == {"shard-001", "shard-004"}
        assert "finished" in one.events + two.events
        assert {shard.shard for shard in (*one.keeper.shards(), *two.keeper.shards())} == {
            "shard-001",
            "shard-004",
        }
    check_nothing_lost(fleet)
    check_no_repeats(fleet)
    for parent, child in (("shard-000", "shard-002"), ("shard-002", "shard-004"), ("shard-003", "shard-004")):
        last = max(entry.at for entry in fleet.begun if parent in entry.keys)
        assert last < min(entry.at for entry in fleet.begun if child in entry.keys)


@virtual
async def test_a_merged_shard_waits_in_a_fleet_too_for_a_parent_that_came_and_went_since_the_last_listing():
    fleet = Fleet(Stream(2), seconds=8.0)
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await anyio.sleep(5.0)
        fleet.stream.put(shard="shard-000", key="shard-000")
        brief, _ = fleet.stream.split("shard-000")
        merged = fleet.stream.merge(brief, "shard-001")
        fleet.stream.listing_failures = [Unreachable("down")] * 3
        fleet.stream.put(shard=merged, key=merged)
        await anyio.sleep(30.0)
    check_nothing_lost(fleet)
    (before,) = (entry.at for entry in fleet.begun if "shard-000" in entry.keys)
    (after,) = (entry.at for entry in fleet.begun if merged in entry.keys)
    assert after >= before + 8.0


@virtual
async def test_a_child_that_another_worker_has_found_is_looked_up_before_it_is_read():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(5.0)
        fleet.stream.names_children = False
        # All of the parent was done by somebody else, who has found the child.
        child = fleet.stream.create()
        fleet.stream.listing_failures = [Unreachable("down")] * 4
        await fleet.table.add(Lease("clicks", child))
        fleet.stream.put(shard=child)
        await anyio.sleep(3.0)
        assert [shard.doing for shard in one.keeper.shards()] == ["reading", "cannot be found: down"]
        await anyio.sleep(8.0)
        check_nothing_lost(fleet)
        assert [shard.doing for shard in one.keeper.shards()] == ["reading", "reading"]


@virtual
async def test_a_shard_that_the_stream_has_no_more_is_finished_for_all():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(5.0)
        fleet.stream.gone.add("shard-009")
        await fleet.table.add(Lease("clicks", "shard-009"))
        await anyio.sleep(5.0)
        assert await fleet.finished() == {"shard-009"}


@virtual
async def test_a_lease_that_is_lost_while_its_children_are_taken_in_is_not_finished():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.0)
        quick = fleet.table.add

        async def add(lease: Lease) -> None:
            raise StoreError("too busy")

        fleet.table.add = add  # type: ignore[method-assign]
        fleet.stream.split("shard-000")
        await anyio.sleep(2.0)
        steal(fleet, "shard-000")
        await anyio.sleep(5.0)
        assert one.events[-1] == "lost"
        fleet.table.add = quick  # type: ignore[method-assign]
        await anyio.sleep(60.0)
        assert await fleet.finished() == {"shard-000"}, "by who takes it in the end"


@virtual
async def test_children_that_were_found_while_the_table_was_down_are_read_once_it_is_back():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.0)
        one.way.cut = True
        for child in fleet.stream.split("shard-000"):
            fleet.stream.put(shard=child)
        await anyio.sleep(2 * FAILOVER_TIME)
        assert one.events[-1] == "lost"
        one.way.cut = False
        await anyio.sleep(60.0)
        assert await fleet.finished() == {"shard-000"}
    check_nothing_lost(fleet)


@virtual
async def test_the_row_of_a_merged_shard_is_not_made_before_that_of_a_parent():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.0)
        brief, _ = fleet.stream.split("shard-000")
        one.way.unwritten = {brief}
        fleet.stream.put(shard=brief)
        await anyio.sleep(2.0)
        merged = fleet.stream.merge(brief, "shard-001")
        fleet.stream.put(shard=merged)
        await anyio.sleep(5.0)
        assert merged not in await fleet.owners()
        one.way.unwritten = set()
        await anyio.sleep(60.0)
    check_nothing_lost(fleet)
    check_order(fleet)


@virtual
async def test_a_shard_is_not_read_before_a_parent_whose_row_is_shown_a_moment_later():
    fleet = Fleet(Stream(1), seconds=3.0)
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await anyio.sleep(5.0)
        between, _ = fleet.stream.split("shard-000")
        fleet.stream.put(shard=between)
        child, _ = fleet.stream.split(between)
        fleet.stream.put(shard=child)
        one.way.late, two.way.late = {between}, {between}
        await anyio.sleep(30.0)
    check_nothing_lost(fleet)
    check_order(fleet)


@virtual
async def test_a_lease_that_is_lost_in_the_moment_in_which_it_is_finished_stays_with_who_has_it():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.0)
        quick = fleet.table.release

        async def release(lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
            steal(fleet, lease.shard)
            return await quick(lease, checkpoint, to)

        fleet.table.release = release  # type: ignore[method-assign]
        fleet.stream.close("shard-000")
        await anyio.sleep(2.0)
        assert await fleet.finished() == set()
        assert one.events[-1] == "lost"
        fleet.table.release = quick  # type: ignore[method-assign]
        await anyio.sleep(30.0)
        assert await fleet.finished() == {"shard-000"}


@virtual
async def test_a_lease_that_is_claimed_while_the_mapping_ends_is_given_back():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.leases.run)
        async with one.clicks.open() as keeper:
            one.leases.enlist("clicks", keeper._admit)
            await anyio.sleep(3.0)
            assert one.shards == {"shard-000"}
            assert fleet.begun == []
        assert await fleet.owners() == {"shard-000": ""}
        one.leases.quiet()


@virtual
async def test_a_watched_reader_is_the_reader_but_tells_when_it_has_received():
    fleet = Fleet(Stream(1))
    fleet.stream.put(2, size=30)
    told: list[int] = []
    tenancy = SimpleNamespace(received=told.append)
    async with fleet.stream.open(Shard("shard-000"), StartAt()) as reader:
        reader.ack = reader.release = lambda *arguments: _answer(arguments)
        watched = Watched(reader, tenancy)
        assert (watched.behind, watched.doing, watched.ended, watched.children) == (1.0, "reading", False, ())
        records = await watched.receive(10, 1.0)
        assert told == [60]
        assert await watched.ack(records) == (records,)
        await watched.release(records, 2.0)


async def _answer(arguments: tuple[Any, ...]) -> Any:
    return arguments


def steal(fleet: Fleet, shard: str) -> None:
    """Another worker, which is never seen again, takes a lease."""
    lease = fleet.table._leases["clicks", shard]
    fleet.table._put(replace(lease, owner="w9", counter=lease.counter + 1))


@virtual
async def test_who_loses_a_lease_and_takes_it_again_reads_it_once_the_former_reader_has_ended():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    closing = anyio.Event()
    quick = fleet.stream.open

    @asynccontextmanager
    async def slow_to_close(shard: Shard, start: StartAt) -> AsyncIterator[Any]:
        async with quick(shard, start) as reader:
            try:
                yield reader
            finally:
                with anyio.CancelScope(shield=True):
                    await closing.wait()

    fleet.stream.open = slow_to_close  # type: ignore[method-assign]
    async with one.running():
        await feed(fleet, 5.0)
        steal(fleet, "shard-000")
        await anyio.sleep(FAILOVER_TIME + 3.0)
        fleet.stream.put(3)
        assert one.events == ["claimed", "lost", "claimed"]
        assert repr(one.keeper._tenancies["shard-000"]) == "<Tenancy of shard-000>"
        steal(fleet, "shard-000")
        await anyio.sleep(FAILOVER_TIME + 3.0)
        assert one.events == ["claimed", "lost"] * 2 + ["claimed"]
        await anyio.sleep(100.0)
        assert len(one.shards) == 1, "it waits for something that it knows"
        assert fleet.stream.reading == {"shard-000": 1}
        closing.set()
        await anyio.sleep(1.0)
        check_nothing_lost(fleet)
        assert fleet.stream.reading == {"shard-000": 1}


@virtual
async def test_a_lease_that_waits_for_its_former_reader_can_be_given_back():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await feed(fleet, 5.0)
        tenancy = one.keeper._tenancies["shard-000"]
        tenancy.ended = anyio.Event()
        tenancy.scope = anyio.CancelScope()
        steal(fleet, "shard-000")
        await anyio.sleep(FAILOVER_TIME + 3.0)
        assert one.shards
        written = (await fleet.table.load("clicks"))["shard-000"]
        with anyio.fail_after(1.0):
            one.keeper.close()
            await one.leases.vacated("clicks")
        assert (await fleet.table.load("clicks"))["shard-000"] == written
        tenancy.ended.set()


@virtual
async def test_finished_shards_that_are_no_longer_listed_are_forgotten_by_all():
    fleet = Fleet(Stream(1))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 3.0)
        fleet.stream.split("shard-000")
        await feed(fleet, 10.0)
        fleet.stream.split("shard-001")
        await feed(fleet, 10.0)
        fleet.stream.remove("shard-000")
        await anyio.sleep(300.0)
        assert "shard-000" in await fleet.owners(), "its child is listed and not all of its descent is done"
        fleet.stream.split("shard-002")
        fleet.stream.remove("shard-001")
        await feed(fleet, 300.0, pause=5.0)
        assert "shard-000" not in await fleet.owners()
        await anyio.sleep(5.0)
    check_nothing_lost(fleet)
    check_no_repeats(fleet)


# --- the first start ----------------------------------------------------------------------------------------------------


class SlowTable(MemoryStore):
    """Rows come one in a while, as from a worker that adds many."""

    async def add(self, lease: Lease) -> None:
        await anyio.sleep(0.05 * int(lease.shard[-3:]))
        await super().add(lease)


@virtual
async def test_workers_that_start_together_at_the_latest_bring_nothing_from_before():
    fleet = Fleet(Stream(10), SlowTable(), settings={"position": "LATEST"})
    await anyio.sleep(100.0)
    for shard in fleet.stream.listed:
        fleet.stream.put(5, shard=shard)
    old = put(fleet)
    await anyio.sleep(100.0)
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running():
        await anyio.sleep(0.2)
        async with two.running():
            await anyio.sleep(15.0)
            assert one.shards | two.shards == set(fleet.stream.listed)
            await feed(fleet, 5.0)
            await anyio.sleep(2.0)
    assert set(fleet.handled) == set(put(fleet)) - set(old)


@virtual
async def test_what_was_put_while_the_first_owner_had_it_is_not_skipped_by_the_next_at_the_latest():
    fleet = Fleet(Stream(1), settings={"position": "LATEST"})
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await anyio.sleep(5.0)
        owner, other = (one, two) if one.shards else (two, one)
        owner.seconds = 1000.0
        fleet.stream.put(3)
        await anyio.sleep(1.0)
        owner.kill()
        await anyio.sleep(FAILOVER_TIME + 5.0)
        assert other.shards
        check_nothing_lost(fleet)


@virtual
async def test_what_was_put_before_the_first_claim_is_not_skipped_at_the_latest():
    fleet = Fleet(Stream(1), settings={"position": "LATEST"})
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(0.5)
        one.keeper.close()
        await anyio.sleep(60.0)
        fleet.stream.put()
        await anyio.sleep(60.0)
        one.keeper.open()
        await anyio.sleep(10.0)
    check_nothing_lost(fleet)


@virtual
async def test_checkpoints_of_a_single_daemon_are_gone_on_with_and_get_their_parents():
    fleet = Fleet(Stream(1))
    child, _ = fleet.stream.split("shard-000")
    numbers = fleet.stream.put(4)
    await fleet.table.save("clicks", "shard-000", Checkpoint(numbers[1]))
    await fleet.table.save("clicks", child, Checkpoint())
    async with fleet.member("w1").running():
        await anyio.sleep(10.0)
    assert fleet.handled == numbers[2:]
    parents = {lease.shard: lease.parents for lease in (await fleet.table.list()).leases}
    assert parents[child] == ("shard-000",)


@virtual
async def test_a_table_that_is_down_at_the_first_listing_holds_up_the_start_only():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    quick = fleet.table.add
    tries = 0

    async def add(lease: Lease) -> None:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise StoreError("too busy")
        await quick(lease)

    fleet.table.add = add  # type: ignore[method-assign]
    async with one.running():
        await feed(fleet, 10.0)
        await anyio.sleep(2.0)
        check_nothing_lost(fleet)


@virtual
async def test_a_stop_while_the_first_rows_cannot_be_written_ends():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")

    async def add(lease: Lease) -> None:
        raise StoreError("too busy")

    async with one.running():
        await anyio.sleep(3.0)
        fleet.table.add = add  # type: ignore[method-assign]
        fleet.stream.split("shard-000")
        await anyio.sleep(3.0)
        with anyio.fail_after(10.0):
            await one.stop()


# --- commands -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_paused_worker_leaves_its_shards_to_the_others_and_takes_part_again_when_it_is_resumed():
    fleet = Fleet(Stream(4), seconds=0.4)
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await feed(fleet, 20.0)
        one.keeper.close()
        await feed(fleet, 3.0)
        assert not one.shards
        assert two.shards == set(fleet.stream.listed)
        one.keeper.open()
        await feed(fleet, 30.0)
        assert len(one.shards) == 2
        await anyio.sleep(3.0)
    check_nothing_lost(fleet)
    check_no_repeats(fleet)
    check_order(fleet)


@virtual
async def test_a_mapping_that_is_paused_from_the_start_takes_nothing():
    fleet = Fleet(Stream(2))
    one = fleet.member("w1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.leases.run)
        async with one.clicks.open() as keeper:
            keeper.close()
            tasks.start_soon(keeper.run)
            await anyio.sleep(10.0)
            assert not one.shards
            keeper.open()
            await anyio.sleep(5.0)
            assert len(one.shards) == 2
            keeper.quiet()
        one.leases.quiet()


@virtual
async def test_who_pauses_and_resumes_at_once_reads_each_shard_once():
    fleet = Fleet(Stream(1), seconds=5.0)
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(3.0)
        fleet.stream.put(3)
        await anyio.sleep(1.0)
        one.keeper.close()
        one.keeper.open()
        await anyio.sleep(20.0)
        fleet.stream.put(2)
        await anyio.sleep(20.0)
        assert fleet.stream.reading == {"shard-000": 1}
    check_nothing_lost(fleet)
    check_no_repeats(fleet)


@virtual
async def test_an_open_circuit_keeps_its_leases():
    fleet = Fleet(Stream(2), settings={"circuit": CircuitPolicy(2, 30.0, 60.0)})
    one = fleet.member("w1")

    async def fails(_: object) -> object:
        return ERROR

    async with one.running():
        await anyio.sleep(3.0)
        one.reply = fails
        for shard in ("shard-000", "shard-001"):
            fleet.stream.put(shard=shard)
        await anyio.sleep(200.0)
        assert len(one.shards) == 2
        assert one.events == ["claimed"] * 2
        one.reply = None
        await anyio.sleep(200.0)
        check_nothing_lost(fleet)


# --- progress -----------------------------------------------------------------------------------------------------------


@virtual
async def test_whoever_waits_for_something_that_it_knows_keeps_its_lease():
    for trouble in (ERROR, BUSY):
        fleet = Fleet(Stream(1))
        one = fleet.member("w1")

        async def fails(_: object, reply: object = trouble) -> object:
            return reply

        async with one.running():
            one.reply = fails
            await anyio.sleep(3.0)
            fleet.stream.put()
            await anyio.sleep(10 * STUCK)
            assert one.events == ["claimed"]


@virtual
async def test_a_long_invocation_keeps_its_lease_and_a_hand_over_waits_for_it():
    fleet = Fleet(Stream(2))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running():
        await anyio.sleep(3.0)
        one.seconds = 300.0
        for shard in ("shard-000", "shard-001"):
            fleet.stream.put(shard=shard)
        await anyio.sleep(30.0)
        async with two.running():
            await anyio.sleep(200.0)
            assert len(one.shards) == 2
            await anyio.sleep(120.0)
            assert len(two.shards) == 1
    check_no_repeats(fleet)


@virtual
async def test_a_reader_that_hangs_loses_its_shard_to_another_worker():
    fleet = Fleet(Stream(1))
    one, two = fleet.member("w1"), fleet.member("w2")
    async with one.running(), two.running():
        await anyio.sleep(5.0)
        owner, other = (one, two) if one.shards else (two, one)
        (reading,) = owner.clicks.keeper._reading.values()

        async def hangs(limit: int, wait: float) -> None:
            await anyio.sleep_forever()

        reading.lanes.reader._reader.receive = hangs
        fleet.stream.put()
        await anyio.sleep(STUCK + 3 * FAILOVER_TIME)
        assert other.shards == {"shard-000"}
        check_nothing_lost(fleet)


@virtual
async def test_a_shard_that_one_worker_cannot_read_goes_to_another():
    fleet = Fleet(Stream(1))
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(5.0)
        fleet.stream.failures = [Unreachable("no route")] * 1000
        # A long poll was under way when it began.
        await anyio.sleep(20.0 + STUCK + FAILOVER_TIME)
        assert one.events == ["claimed", "lost"]


@virtual
async def test_a_shard_that_cannot_be_opened_is_drained_at_once():
    fleet = Fleet(Stream(1))
    fleet.stream.opening_failures = [Unreachable("no route")] * 1000
    one = fleet.member("w1")
    async with one.running():
        await anyio.sleep(20.0)
        (shard,) = one.keeper.shards()
        assert shard.doing.startswith("cannot be opened")
        with anyio.fail_after(1.0):
            await one.stop()
    assert await fleet.owners() == {"shard-000": ""}


@virtual
async def test_windows_go_from_worker_to_worker():
    fleet = Fleet(Stream(1), settings={"window_length": 3600, "batch_size": 1})
    one, two = fleet.member("w1"), fleet.member("w2")
    states: list[object] = []

    async def count(call: Any) -> Any:
        states.append(call.invocation.event["state"])
        return Returned({"state": {"batches": len(states)}})

    one.reply = two.reply = count
    async with one.running():
        await anyio.sleep(3.0)
        fleet.stream.put(2)
        await anyio.sleep(3.0)
        await one.stop()
    (row,) = (await fleet.table.load("clicks")).values()
    assert row.window
    async with two.running():
        await anyio.sleep(3.0)
        fleet.stream.put(1)
        await anyio.sleep(3.0)
    assert states == [{}, {"batches": 1}, {"batches": 2}]
