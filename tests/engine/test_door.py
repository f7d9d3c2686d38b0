"""The door: whoever waits behind it goes when it closes."""

from __future__ import annotations

from functools import partial

import anyio

from poller.engine.door import Door, InnerDoor
from tests.engine.fakes import settle_down, virtual


@virtual
async def test_a_wait_ends_as_soon_as_the_door_closes():
    door, answers = Door(), []

    async def wait() -> None:
        answers.append(await door.unless_closed(anyio.sleep_forever))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settle_down()
        assert repr(door) == "<Door open, 1 wait>"
        door.close()
    assert answers == [False]
    assert repr(door) == "<Door closed, 0 wait>"


@virtual
async def test_nothing_is_waited_for_behind_a_closed_door():
    door = Door()
    door.close()
    assert not await door.unless_closed(anyio.sleep_forever)
    door.open()
    assert await door.unless_closed(partial(anyio.sleep, 1))


@virtual
async def test_an_inner_door_is_open_while_the_outer_one_is_and_its_fence_holds():
    fences = [True]
    outer = Door()
    inner, other = InnerDoor(outer, lambda: fences[-1]), InnerDoor(outer, lambda: True)
    assert inner.is_open
    inner.close()
    assert (inner.is_open, other.is_open, outer.is_open) == (False, True, True)
    outer.close()
    inner.open()
    assert not inner.is_open
    assert not await inner.unless_closed(anyio.sleep_forever)
    outer.open()
    assert await inner.unless_closed(partial(anyio.sleep, 1))
    fences.append(False)
    assert not inner.is_open
    assert not await inner.unless_closed(anyio.sleep_forever)


@virtual
async def test_a_wait_at_an_inner_door_ends_when_either_closes():
    outer = Door()
    inner, other = InnerDoor(outer, lambda: True), InnerDoor(outer, lambda: True)
    answers: list[str] = []

    async def wait(door: Door, name: str) -> None:
        assert not await door.unless_closed(anyio.sleep_forever)
        answers.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, inner, "inner")
        tasks.start_soon(wait, other, "other")
        await settle_down()
        inner.close()
        await settle_down()
        assert answers == ["inner"]
        outer.close()
    assert answers == ["inner", "other"]
