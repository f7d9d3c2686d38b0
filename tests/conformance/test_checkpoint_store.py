"""What every checkpoint store promises, run over each of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poller.core.positions import position
from poller.errors import StoreError
from poller.model import Checkpoint
from tests.conformance.media import LOCAL, REMOTE, STORES, medium

if TYPE_CHECKING:
    from pathlib import Path

    from poller.ports import CheckpointStore
    from tests.conformance.media import Open

pytestmark = pytest.mark.anyio


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return medium(request, tmp_path)


FULL = Checkpoint(
    "49671600000000000000000000000000000000000000000000000066", 7, 1763889751.1234567, '{"a": "é"}'
)


# --- keeping ------------------------------------------------------------------------------------------------------------


async def test_a_mapping_without_checkpoints_is_empty(open_store: Open):
    async with open_store() as store:
        assert await store.load("clicks") == {}


@pytest.mark.parametrize(
    "checkpoint", [FULL, Checkpoint(), replace(FULL, finished=True), Checkpoint("1", 2**63 - 1)]
)
async def test_a_checkpoint_comes_back_as_it_was_saved(open_store: Open, checkpoint: Checkpoint):
    async with open_store() as store:
        assert await store.save("clicks", "shard-1", checkpoint) is True
        assert await store.load("clicks") == {"shard-1": checkpoint}


async def test_a_megabyte_of_window_state_comes_back(open_store: Open):
    async with open_store() as store:
        checkpoint = Checkpoint("5", window='{"x": "' + "ü" * 500_000 + '"}')
        assert await store.save("clicks", "shard-1", checkpoint)
        assert await store.load("clicks") == {"shard-1": checkpoint}


async def test_mappings_and_shards_are_kept_apart(open_store: Open):
    async with open_store() as store:
        for number, (mapping, shard) in enumerate(
            itertools.product(["clicks", "click"], ["a", "b", "'; --"])
        ):
            assert await store.save(mapping, shard, Checkpoint(str(number)))
        assert await store.load("clicks") == {
            "a": Checkpoint("0"),
            "b": Checkpoint("1"),
            "'; --": Checkpoint("2"),
        }
        assert await store.load("click") == {
            "a": Checkpoint("3"),
            "b": Checkpoint("4"),
            "'; --": Checkpoint("5"),
        }


async def test_what_was_saved_is_there_when_the_store_is_opened_again(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "shard-1", FULL)
    async with open_store() as store:
        assert await store.load("clicks") == {"shard-1": FULL}


async def test_what_was_loaded_does_not_change_with_the_store(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "shard-1", Checkpoint("1"))
        loaded = await store.load("clicks")
        await store.save("clicks", "shard-1", Checkpoint("2"))
        assert loaded == {"shard-1": Checkpoint("1")}


async def test_a_store_says_what_it_is(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "shard-1", FULL)
        assert type(store).__name__ in repr(store)


# --- moving -------------------------------------------------------------------------------------------------------------

FORWARD = [
    (Checkpoint(), Checkpoint("0")),
    (Checkpoint("9"), Checkpoint("10")),
    (Checkpoint("5", 0), Checkpoint("5", 1)),
    (Checkpoint("5", 9), Checkpoint("5", 10)),
    (Checkpoint("5", 9), Checkpoint("5")),
    (Checkpoint("5"), Checkpoint("6", 0)),
    (Checkpoint("5"), Checkpoint("5", finished=True)),
    (Checkpoint("5"), Checkpoint(finished=True)),
    (FULL, replace(FULL, sequence_number=FULL.sequence_number[:-1] + "7", sub_sequence_number=None)),
]


@pytest.mark.parametrize(("behind", "ahead"), FORWARD)
async def test_a_checkpoint_moves_forward_and_never_backwards(
    open_store: Open, behind: Checkpoint, ahead: Checkpoint
):
    async with open_store() as store:
        assert await store.save("clicks", "shard-1", behind) is True
        assert await store.save("clicks", "shard-1", ahead) is True
        assert await store.save("clicks", "shard-1", behind) is False
        assert await store.load("clicks") == {"shard-1": ahead}


async def test_window_state_may_change_where_the_position_stays(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "shard-1", Checkpoint("5", window="{}"))
        assert await store.save("clicks", "shard-1", Checkpoint("5", window='{"sum": 1}')) is True
        assert await store.load("clicks") == {"shard-1": Checkpoint("5", window='{"sum": 1}')}


@pytest.mark.parametrize("checkpoint", [Checkpoint("LATEST"), Checkpoint("-1"), Checkpoint("1", -1)])
async def test_what_is_no_position_is_refused_and_changes_nothing(open_store: Open, checkpoint: Checkpoint):
    async with open_store() as store:
        await store.save("clicks", "shard-1", Checkpoint("1"))
        with pytest.raises(StoreError, match="is not a"):
            await store.save("clicks", "shard-1", checkpoint)
        with pytest.raises(StoreError, match="is not a"):
            await store.seek("clicks", "shard-1", checkpoint)
        assert await store.load("clicks") == {"shard-1": Checkpoint("1")}


async def test_seek_puts_a_checkpoint_anywhere_and_saves_go_on_from_there(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "shard-1", Checkpoint("9", finished=True))
        await store.seek("clicks", "shard-1", Checkpoint("3"))
        assert await store.load("clicks") == {"shard-1": Checkpoint("3")}
        assert await store.save("clicks", "shard-1", Checkpoint("2")) is False
        assert await store.save("clicks", "shard-1", Checkpoint("4")) is True


async def test_seek_removes_a_checkpoint_and_no_other(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "a", Checkpoint("1"))
        await store.save("clicks", "b", Checkpoint("1"))
        await store.seek("clicks", "a", None)
        await store.seek("clicks", "never-seen", None)
        assert await store.load("clicks") == {"b": Checkpoint("1")}


# --- the law ------------------------------------------------------------------------------------------------------------

SMALL = st.builds(
    Checkpoint,
    sequence_number=st.sampled_from(["", "0", "1", "9", "10", "11", "9" * 30, "1" + "0" * 30]),
    sub_sequence_number=st.sampled_from([None, 0, 1, 9, 10]),
    since=st.floats(allow_nan=False, allow_infinity=False),
    window=st.sampled_from(["", "{}", '{"a": 1}', "\x00é\U0001f600"]),
    finished=st.sampled_from([False, False, False, True]),
)
SAVES = st.lists(st.tuples(st.sampled_from(["a", "b"]), SMALL), max_size=30)


QUIET = [HealthCheck.function_scoped_fixture]


@pytest.mark.slow
@pytest.mark.parametrize("open_store", LOCAL, indirect=True)
@given(saves=SAVES, together=st.booleans())
@settings(max_examples=60, suppress_health_check=QUIET)
def test_after_any_saves_the_checkpoint_is_the_furthest_of_them(
    open_store: Open, saves: list[tuple[str, Checkpoint]], together: bool
):
    """Saves that wait at the same time are carried out in the order in which they were asked for."""
    anyio.run(check, open_store, saves, together)


@pytest.mark.slow
@pytest.mark.parametrize("open_store", REMOTE, indirect=True)
@given(saves=SAVES)
@settings(max_examples=8, suppress_health_check=QUIET)
def test_after_any_saves_over_a_network_the_checkpoint_is_the_furthest_of_them(
    open_store: Open, saves: list[tuple[str, Checkpoint]]
):
    """Each of these examples is a new session; and over a network only saves one after the other have an order."""
    anyio.run(check, open_store, saves, False)


async def check(open_store: Open, saves: list[tuple[str, Checkpoint]], together: bool) -> None:
    furthest: dict[str, Checkpoint] = {}
    moved: list[bool] = []
    for shard, checkpoint in saves:
        moved.append(shard not in furthest or position(checkpoint) >= position(furthest[shard]))
        if moved[-1]:
            furthest[shard] = checkpoint
    async with open_store() as store:
        for shard in "ab":
            await store.seek("clicks", shard, None)
        assert await answers(store, saves, together) == moved
        assert await store.load("clicks") == furthest
    async with open_store() as store:
        assert await store.load("clicks") == furthest


async def answers(store: CheckpointStore, saves: list[tuple[str, Checkpoint]], together: bool) -> list[bool]:
    """Save one after the other, or let all of them wait at the same time."""
    if not together:
        return [await store.save("clicks", shard, checkpoint) for shard, checkpoint in saves]
    found: dict[int, bool] = {}

    async def save(number: int, shard: str, checkpoint: Checkpoint) -> None:
        found[number] = await store.save("clicks", shard, checkpoint)

    async with anyio.create_task_group() as tasks:
        for number, (shard, checkpoint) in enumerate(saves):
            tasks.start_soon(save, number, shard, checkpoint)
    return [found[number] for number in range(len(saves))]
