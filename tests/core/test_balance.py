from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.balance import FULL, INNER, OUTER, Item, Move, place, relieve

WORKERS = [f"w{number}" for number in range(5)]


def items(*weights: float, turn: int = 0) -> list[Item]:
    return [Item(("clicks", f"shard-{number}"), weight, turn) for number, weight in enumerate(weights)]


def nothing(workers: list[str]) -> dict[str, float]:
    return dict.fromkeys(workers, 0.0)


# --- what is free -------------------------------------------------------------------------------------------------------


def test_nothing_free_is_placed_nowhere():
    assert place([], nothing(WORKERS), WORKERS) == {}


def test_everything_is_placed_and_counted():
    loads = nothing(WORKERS)
    placed = place(items(*[1.0] * 40), loads, WORKERS)
    assert len(placed) == 40
    assert sum(loads.values()) == 40.0
    assert max(loads.values()) <= FULL * 8 + 1


def test_a_worker_that_is_full_gets_nothing():
    loads = {"full": 100.0, "idle": 0.0, "idle too": 0.0}
    placed = place(items(*[1.0] * 30), loads, list(loads))
    assert set(placed.values()) == {"idle", "idle too"}


def test_what_was_not_taken_falls_to_the_next():
    key = items(1.0)[0].key
    heirs = [place(items(1.0, turn=turn), nothing(WORKERS), WORKERS)[key] for turn in range(5)]
    assert sorted(heirs) == WORKERS
    assert place(items(1.0, turn=5), nothing(WORKERS), WORKERS)[key] in WORKERS


def test_what_the_ring_finds_nobody_for_goes_to_the_least_loaded_whose_turn_it_is():
    loads = {"a": 3.0, "b": 1.0, "c": 2.0}
    for turn, heir in ((3, "b"), (4, "c"), (5, "a")):
        assert place(items(0.0, turn=turn), dict(loads), list(loads)) == {("clicks", "shard-0"): heir}


def test_a_worker_more_or_less_changes_little():
    many = [f"w{number}" for number in range(50)]
    before = place(items(*[1.0] * 20), dict.fromkeys(many, 10.0), many)
    after = place(items(*[1.0] * 20), dict.fromkeys(many[:-1], 10.0), many[:-1])
    assert sum(before[key] != after[key] for key in before) <= 4


LOADS = st.lists(st.floats(8.0, 12.0), min_size=3, max_size=12)


@given(loads=LOADS, weights=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=20), part=st.randoms())
def test_a_plan_that_was_carried_out_in_part_leaves_the_rest_as_it_was(loads, weights, part):
    """Each worker carries out its own part, whole."""
    workers = {f"w{number}": load for number, load in enumerate(loads)}
    free = items(*weights)
    whole = place(free, dict(workers), list(workers))
    done = part.choice(sorted(set(whole.values())))
    for item in free:
        workers[done] += item.weight * (whole[item.key] == done)
    rest = place([item for item in free if whole[item.key] != done], dict(workers), list(workers))
    assert all(rest[key] == whole[key] for key in rest)


# --- what has to move ---------------------------------------------------------------------------------------------------


def sack(name: str, *weights: float) -> list[tuple[float, tuple[str, str]]]:
    return [(weight, (name, str(number))) for number, weight in enumerate(weights)]


def test_within_bounds_nothing_moves():
    loads = {"a": 10.5, "b": 9.5}
    assert relieve(loads, ["a", "b"], {"a": sack("a", *[0.5] * 21), "b": sack("b", *[0.5] * 19)}) == []


def test_who_joins_gets_its_part_from_those_that_have_most():
    loads = {"a": 10.0, "b": 11.0, "new": 0.0}
    moves = relieve(loads, ["a", "b", "new"], {name: sack(name, *[1.0] * 10) for name in "ab"})
    assert {move.taker for move in moves} == {"new"}
    assert len({move.key for move in moves}) == len(moves) == 7
    assert loads == {"a": 7.0, "b": 7.0, "new": 7.0}


def test_what_would_only_change_places_stays():
    assert relieve({"a": 10.0, "b": 0.0}, ["a", "b"], {"a": sack("a", 10.0)}) == []
    assert relieve({"a": 10.0, "b": 2.0}, ["a", "b"], {"a": sack("a", 7.0, 6.5)}) == []


def test_who_may_take_nothing_can_still_give():
    loads = {"guest": 20.0, "a": 10.0, "b": 10.0}
    moves = relieve(loads, ["a", "b"], {"guest": sack("guest", *[1.0] * 20)})
    assert {move.giver for move in moves} == {"guest"}
    assert loads["guest"] <= OUTER[1] * 40 / 3


def test_a_giver_without_anything_left_is_done_with():
    loads = {"a": 30.0, "b": 10.0, "c": 0.0}
    moves = relieve(loads, ["b", "c"], {"a": sack("a", 1.0)})
    assert moves == [Move(("a", "0"), "a", "c")]


@given(
    workers=st.lists(st.lists(st.floats(0.2, 3.0), max_size=25), min_size=2, max_size=8),
)
def test_moves_narrow_the_difference_and_end(workers):
    movable = {f"w{number}": sack(f"w{number}", *weights) for number, weights in enumerate(workers)}
    loads = {name: sum(weight for weight, _ in held) for name, held in movable.items()}
    before = dict(loads)
    moves = relieve(loads, list(loads), movable)
    assert len({move.key for move in moves}) == len(moves)
    assert max(loads.values()) <= max(before.values()) + 1e-9
    assert min(loads.values()) >= min(before.values()) - 1e-9
    if moves:
        assert max(loads.values()) - min(loads.values()) <= max(before.values()) - min(before.values())


@pytest.mark.parametrize("number", [3, 7, 20])
def test_fine_grains_end_within_the_bounds(number: int):
    loads = {f"w{at}": 100.0 * (at % 3) for at in range(number)}
    movable = {name: sack(name, *[1.0] * int(load)) for name, load in loads.items()}
    relieve(loads, list(loads), movable)
    mean = sum(loads.values()) / number
    assert OUTER[0] * mean <= min(loads.values()) <= max(loads.values()) <= OUTER[1] * mean
    assert INNER[0] > OUTER[0]
