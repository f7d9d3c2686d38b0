"""The door: whoever waits behind it goes when it closes."""

from __future__ import annotations

from functools import partial

import anyio

from poller.engine.door import Door
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
