from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.progress import Progress


class Position:
    """A record, as far as progress looks at it: something with an identity and a size."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = number + 1


@dataclass
class Equal:
    size: int


def tracked(progress: Progress[Position], *numbers: int) -> list[Position]:
    records = [Position(number) for number in numbers]
    progress.track(records)
    return records


def test_nothing_is_safe_before_the_first_record_is_done() -> None:
    progress = Progress[Position]()
    assert progress.oldest is None
    first, second = tracked(progress, 1, 2)
    assert progress.resolve([second]) is None
    assert progress.oldest is first
    assert len(progress) == 1


def test_a_record_that_is_done_early_waits_for_those_before_it() -> None:
    progress = Progress[Position]()
    first, second, third = tracked(progress, 1, 2, 3)
    assert progress.resolve([second]) is None
    assert progress.resolve([first]) is second
    assert progress.resolve([third]) is third
    assert (len(progress), progress.oldest) == (0, None)


def test_resolving_nothing_moves_nothing() -> None:
    progress = Progress[Position]()
    tracked(progress, 1)
    assert progress.resolve([]) is None


def test_equal_records_are_told_apart_by_their_identity() -> None:
    progress = Progress[Equal]()
    one, other = Equal(1), Equal(1)
    progress.track([one, other])
    assert progress.resolve([other]) is None
    assert progress.resolve([one]) is other


def test_what_is_done_before_its_turn_is_held() -> None:
    progress = Progress[Position]()
    first, second, third = tracked(progress, 1, 2, 3)
    progress.resolve([second])
    assert (progress.held_records, progress.held_bytes) == (3, 2 + 3 + 4)
    progress.resolve([first])
    assert (progress.held_records, progress.held_bytes) == (1, 4)
    progress.resolve([third])
    assert (progress.held_records, progress.held_bytes) == (0, 0)


@pytest.mark.slow
@given(st.data(), st.integers(1, 30))
def test_the_position_is_the_contiguous_prefix_of_what_is_done(data: st.DataObject, count: int) -> None:
    progress = Progress[Position]()
    records: list[Position] = []
    done: set[int] = set()
    before = -1
    while len(done) < count:
        still_open = [record for record in records if record.number not in done]
        if len(records) < count and (not still_open or data.draw(st.booleans())):
            more = data.draw(st.integers(1, count - len(records)))
            records += tracked(progress, *range(len(records), len(records) + more))
            continue
        some = data.draw(st.lists(st.sampled_from(still_open), min_size=1, unique_by=id))
        done.update(record.number for record in some)
        moved = progress.resolve(some)
        expected = min(
            (record.number for record in records if record.number not in done), default=len(records)
        )
        expected -= 1
        assert (moved.number if moved else None) == (expected if expected > before else None)
        assert len(progress) == len(records) - len(done)
        before = expected
    assert before == count - 1
    assert progress.held_bytes == 0
