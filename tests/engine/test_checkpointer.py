"""When checkpoints are written, and what happens while they cannot be."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio
import pytest

from poller.engine.checkpointer import Checkpointer
from poller.errors import StoreError
from poller.model import Checkpoint, Trouble
from poller.stores.memory import MemoryStore
from tests.engine.fakes import Recorder, settle_down, virtual, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


class Store(MemoryStore):
    """A memory store that remembers each save, takes its time, and can be down: wholly, or for one shard."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[tuple[float, str, str]] = []
        self.takes = 0.0
        self.down: dict[str, str] = {}
        self.began = anyio.current_time()

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        self.saves.append((anyio.current_time() - self.began, shard, checkpoint.sequence_number))
        await anyio.sleep(self.takes)
        if problem := self.down.get(shard) or self.down.get("*"):
            raise StoreError(problem)
        return await super().save(mapping, shard, checkpoint)

    def times(self, shard: str) -> list[float]:
        return [at for at, name, _ in self.saves if name == shard]


class Setting:
    def __init__(self) -> None:
        self.store = Store()
        self.recorder = Recorder()
        self.checkpointer = Checkpointer("clicks", self.store, self.recorder, world())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Checkpointer]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.checkpointer.run)
            yield self.checkpointer
            tasks.cancel_scope.cancel()

    async def stored(self) -> dict[str, str]:
        found: Mapping[str, Checkpoint] = await self.store.load("clicks")
        return {shard: checkpoint.sequence_number for shard, checkpoint in found.items()}


@virtual
async def test_a_checkpoint_is_written_at_once_when_none_was_lately():
    setting = Setting()
    async with setting.running() as checkpointer:
        await anyio.sleep(100)
        checkpointer.note("a", Checkpoint("1"))
        await settle_down()
        assert setting.store.saves == [(100, "a", "1")]
        await anyio.sleep(100)
        checkpointer.note("a", Checkpoint("2"))
        await settle_down()
        assert setting.store.saves[1:] == [(200, "a", "2")]


@virtual
async def test_a_shard_is_written_at_most_once_a_second_and_its_newest_checkpoint_wins():
    setting = Setting()
    async with setting.running() as checkpointer:
        for number in range(1, 101):
            checkpointer.note("a", Checkpoint(str(number)))
            await anyio.sleep(0.1)
        await anyio.sleep(2)
    times = setting.store.times("a")
    assert len(times) <= 11
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))
    assert await setting.stored() == {"a": "100"}


@virtual
async def test_nothing_is_written_while_nothing_is_noted():
    setting = Setting()
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("1"))
        await anyio.sleep(1000)
    assert len(setting.store.saves) == 1


@virtual
async def test_a_thousand_shards_are_written_at_the_same_time():
    setting = Setting()
    setting.store.takes = 0.5
    async with setting.running() as checkpointer:
        for number in range(1000):
            checkpointer.note(f"shard-{number}", Checkpoint("1"))
        await anyio.sleep(0.6)
        assert len(await setting.stored()) == 1000
        assert checkpointer.unsaved == 0


@virtual
async def test_what_is_noted_while_its_shard_is_being_written_is_written_next():
    setting = Setting()
    setting.store.takes = 0.3
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("1"))
        await anyio.sleep(0.1)
        checkpointer.note("a", Checkpoint("2"))
        await anyio.sleep(0.4)
        assert await setting.stored() == {"a": "1"}
        assert checkpointer.age("a") == 0.5
        await anyio.sleep(1)
    assert await setting.stored() == {"a": "2"}
    assert setting.store.times("a") == [0, 1]


@virtual
async def test_a_save_that_hangs_holds_up_no_other_shard():
    setting = Setting()
    setting.store.takes = 1000.0
    async with setting.running() as checkpointer:
        checkpointer.note("stuck", Checkpoint("1"))
        await anyio.sleep(0.5)
        setting.store.takes = 0.0
        checkpointer.note("b", Checkpoint("1"))
        await anyio.sleep(5)
        assert await setting.stored() == {"b": "1"}
        assert setting.store.times("stuck") == [0]


@virtual
async def test_a_failing_store_is_tried_again_with_growing_pauses_and_loses_nothing():
    setting = Setting()
    setting.store.down["*"] = "the disk is full"
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("1"))
        await anyio.sleep(20)
        checkpointer.note("a", Checkpoint("2"))
        assert checkpointer.trouble == "checkpoints cannot be saved: the disk is full"
        assert checkpointer.age("a") == 20
        pauses = [fact.retry_in for fact in setting.recorder.of(Trouble)]
        assert pauses == [0.5, 1, 2, 4, 8, 16]
        setting.store.down.clear()
        await anyio.sleep(40)
        assert checkpointer.trouble is None
        assert checkpointer.age("a") == 0
    assert await setting.stored() == {"a": "2"}


@virtual
async def test_a_store_that_is_down_for_a_thousand_shards_is_one_trouble():
    setting = Setting()
    setting.store.down["*"] = "the disk is full"
    async with setting.running() as checkpointer:
        for number in range(1000):
            checkpointer.note(f"shard-{number}", Checkpoint("1"))
        await settle_down()
        assert setting.recorder.of(Trouble) == [
            Trouble("clicks", "checkpoints cannot be saved: the disk is full", 0.5)
        ]


@virtual
async def test_a_checkpoint_that_cannot_be_stored_harms_no_other_shard():
    setting = Setting()
    setting.store.down["bad"] = "too big"
    async with setting.running() as checkpointer:
        for number in range(1, 11):
            checkpointer.note("bad", Checkpoint(str(number)))
            checkpointer.note("good", Checkpoint(str(number)))
            await anyio.sleep(1)
        assert await setting.stored() == {"good": "10"}
        assert checkpointer.trouble == "checkpoints cannot be saved: too big"


@virtual
async def test_the_trouble_is_over_when_the_last_shard_is_written():
    setting = Setting()
    setting.store.down = {"a": "too big", "b": "too big"}
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("1"))
        checkpointer.note("b", Checkpoint("1"))
        await settle_down()
        del setting.store.down["a"]
        await anyio.sleep(3)
        assert await setting.stored() == {"a": "1"}
        assert checkpointer.trouble
        del setting.store.down["b"]
        await anyio.sleep(10)
        assert not checkpointer.trouble


@virtual
async def test_what_the_store_is_past_already_counts_as_saved():
    setting = Setting()
    await setting.store.seek("clicks", "a", Checkpoint("9"))
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("5"))
        await settle_down()
        assert checkpointer.unsaved == 0
    assert await setting.stored() == {"a": "9"}


@virtual
async def test_a_flush_writes_all_that_is_noted_without_waiting_for_the_second_to_end():
    setting = Setting()
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("1"))
        await settle_down()
        checkpointer.note("a", Checkpoint("2"))
        checkpointer.note("b", Checkpoint("1"))
    began = anyio.current_time()
    await checkpointer.flush()
    assert anyio.current_time() == began
    assert await setting.stored() == {"a": "2", "b": "1"}


@virtual
async def test_a_flush_saves_after_what_is_being_written_and_only_what_that_left():
    setting = Setting()
    setting.store.takes = 0.3
    async with setting.running() as checkpointer:
        checkpointer.note("a", Checkpoint("1"))
        checkpointer.note("b", Checkpoint("1"))
        await settle_down()
        checkpointer.note("b", Checkpoint("2"))
        await checkpointer.flush()
        assert sorted(setting.store.saves) == [(0, "a", "1"), (0, "b", "1"), (0.3, "b", "2")]
    assert await setting.stored() == {"a": "1", "b": "2"}


@virtual
async def test_a_flush_tries_again_until_the_store_is_back():
    setting = Setting()
    setting.store.down["*"] = "the disk is full"
    setting.checkpointer.note("a", Checkpoint("1"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setting.checkpointer.flush)
        await anyio.sleep(2)
        setting.store.down.clear()
    assert await setting.stored() == {"a": "1"}
    assert setting.store.times("a") == [0, 0.5, 1.5, 3.5]


@virtual
async def test_a_flush_that_is_cut_short_keeps_what_it_could_not_write():
    setting = Setting()
    setting.store.takes = 10.0
    setting.checkpointer.note("a", Checkpoint("1"))
    with anyio.move_on_after(3) as bound:
        await setting.checkpointer.flush()
    assert bound.cancelled_caught
    assert setting.checkpointer.unsaved == 1
    await setting.checkpointer.flush()
    assert await setting.stored() == {"a": "1"}


@virtual
async def test_a_bug_of_a_store_is_not_swallowed():
    setting = Setting()

    async def save(mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        raise KeyError(shard)

    setting.store.save = save  # type: ignore[method-assign]
    setting.checkpointer.note("a", Checkpoint("1"))
    with pytest.raises(ExceptionGroup):
        await setting.checkpointer.run()


@virtual
async def test_it_says_what_it_holds():
    setting = Setting()
    setting.checkpointer.note("a", Checkpoint("1"))
    assert repr(setting.checkpointer) == "<Checkpointer clicks: 1 shards unsaved>"
    assert setting.checkpointer.age("b") == 0
