"""Concurrency limits: both places or none, in turn, and nothing leaks."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.engine.slots import Places, Slots
from tests.engine.fakes import in_virtual_time, settle_down, virtual


async def use(slots, served, name, seconds=1.0):
    await slots.acquire()
    served.append(name)
    try:
        await anyio.sleep(seconds)
    finally:
        slots.release()


def test_a_place_is_one_of_the_function_and_one_of_the_daemon():
    places = Places(3)
    slots = Slots(places, 2)
    assert [slots.try_acquire() for _ in range(3)] == [True, True, False]
    assert (slots.taken, places.taken) == (2, 2)
    slots.release()
    assert (slots.taken, places.taken) == (1, 1)


def test_a_function_takes_no_place_of_its_own_when_the_daemon_has_none():
    places = Places(1)
    one, other = Slots(places, 1), Slots(places, 1)
    assert one.try_acquire()
    assert not other.try_acquire()
    assert other.taken == 0


@pytest.mark.parametrize(("own", "daemon", "total"), [(None, 5, 5), (3, 5, 3), (9, 5, 5), (0, 5, 0)])
def test_a_function_has_as_many_places_as_the_lower_limit(own, daemon, total):
    assert Slots(Places(daemon), own).total == total


@virtual
async def test_who_waits_is_served_in_turn():
    slots, served = Slots(Places(1), None), []
    async with anyio.create_task_group() as tasks:
        for name in "abcde":
            tasks.start_soon(use, slots, served, name)
            await settle_down()
        assert repr(slots) == "<Slots 1/1 taken, 4 waiting>"
    assert served == list("abcde")


@virtual
async def test_functions_with_waiters_take_turns():
    places, served = Places(1), []
    functions = {name: Slots(places, None) for name in "abc"}
    async with anyio.create_task_group() as tasks:
        for name, slots in functions.items():
            for _ in range(4):
                tasks.start_soon(use, slots, served, name)
                await settle_down()
        assert repr(places) == "<Places 1/1 taken, 3 functions waiting>"
    # a began before anybody waited.
    assert "".join(served) == "aabcabcabcbc"


@virtual
async def test_a_function_at_its_own_limit_does_not_hold_up_the_others():
    places, served = Places(2), []
    narrow, wide = Slots(places, 1), Slots(places, None)
    async with anyio.create_task_group() as tasks:
        for name, slots in [("n", narrow), ("n", narrow), ("w", wide)]:
            tasks.start_soon(use, slots, served, name)
            await settle_down()
        assert served == ["n", "w"]


@virtual
async def test_a_newcomer_never_overtakes():
    slots, served = Slots(Places(1), None), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, slots, served, "first")
        await settle_down()
        tasks.start_soon(use, slots, served, "second")
        await settle_down()
        await anyio.sleep(1)
        assert not slots.try_acquire()
    assert served == ["first", "second"]


@virtual
async def test_who_stops_waiting_leaves_the_line():
    places = Places(1)
    slots = Slots(places, None)
    assert slots.try_acquire()
    with anyio.move_on_after(5):
        await slots.acquire()
    assert slots.waiting == 0
    slots.release()
    assert (slots.taken, places.taken) == (0, 0)
    assert slots.try_acquire()


@virtual
async def test_who_is_cancelled_at_the_moment_of_being_served_gives_the_place_back():
    slots, served = Slots(Places(1), None), []
    assert slots.try_acquire()

    async def cancelled_while_served(scope):
        with scope:
            await slots.acquire()
            served.append("first")
            slots.release()

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(cancelled_while_served, scope)
        await settle_down()
        tasks.start_soon(use, slots, served, "second")
        await settle_down()
        scope.cancel()
        slots.release()
    assert served == ["second"]
    assert slots.taken == 0


@virtual
async def test_more_places_are_handed_out_at_once():
    places, served = Places(1), []
    one, other = Slots(places, None), Slots(places, None)
    async with anyio.create_task_group() as tasks:
        for slots, name in [(one, "a"), (one, "a"), (one, "a"), (other, "b")]:
            tasks.start_soon(use, slots, served, name)
            await settle_down()
        places.resize(3)
        await settle_down()
        assert sorted(served) == ["a", "a", "b"]
        places.resize(10)
        await settle_down()
        assert sorted(served) == ["a", "a", "a", "b"]


@virtual
async def test_fewer_places_hold_as_the_taken_ones_come_free():
    places, peak = Places(4), []
    slots = Slots(places, None)

    async def work():
        await slots.acquire()
        peak.append((anyio.current_time(), slots.taken))
        await anyio.sleep(1)
        slots.release()

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(work)
        await settle_down()
        places.resize(2)
        assert slots.taken == 4
    assert all(taken <= 2 for at, taken in peak if at > 0)
    assert len(peak) == 8


schedules = st.lists(
    st.tuples(
        st.integers(0, 2),  # the function
        st.integers(0, 4),  # when it asks
        st.integers(0, 3),  # how long it works
        st.one_of(st.none(), st.integers(0, 6)),  # after how long it is cancelled
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(schedules, st.integers(1, 4), st.lists(st.tuples(st.integers(1, 8), st.integers(1, 5)), max_size=3))
def test_whatever_the_schedule_the_limits_hold_and_no_place_leaks(schedule, total, resizes):
    async def everything():
        places = Places(total)
        functions = [Slots(places, None), Slots(places, 2), Slots(places, 1)]
        served = [0]
        limit = max(total, *(size for _, size in resizes), 1)

        async def worker(slots, asks, works, patience):
            await anyio.sleep(asks)
            with anyio.move_on_after(patience):
                await slots.acquire()
                served[0] += 1
                try:
                    assert places.taken == sum(each.taken for each in functions) <= limit
                    assert functions[1].taken <= 2
                    assert functions[2].taken <= 1
                    await anyio.sleep(works)
                finally:
                    slots.release()

        async def resizing():
            for pause, size in resizes:
                await anyio.sleep(pause)
                places.resize(size)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(resizing)
            for function, asks, works, patience in schedule:
                tasks.start_soon(worker, functions[function], asks, works, patience)
        assert places.taken == 0
        assert [slots.taken for slots in functions] == [0, 0, 0]
        assert [slots.waiting for slots in functions] == [0, 0, 0]
        assert served[0] >= sum(patience is None for *_, patience in schedule)

    in_virtual_time(everything)
