"""The course of a shard through a replay: what is done, what has failed, and how little of that is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poller.core.replay import Tally
from poller.model import Record
from poller.sources._replayed import Course


def record(number: int) -> Record:
    return Record(str(number), None, 1, {}, None)


@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=60).map(sorted),
    failed=st.sets(st.integers(0, 30)),
    ends=st.lists(st.integers(1, 60)),
)
def test_all_but_what_failed_succeeds_and_nothing_is_kept_of_what_is_done(
    numbers: list[int], failed: set[int], ends: list[int]
):
    tally = Tally()
    course, records = Course(tally), [record(number) for number in numbers]
    for one in records:
        course.add(one)
    failed &= set(numbers)
    course.failed(str(number) for number in failed)
    for end in sorted({*(end for end in ends if end <= len(records)), len(records)}):
        course.passed(records[end - 1])
        assert course.done == end
        assert tally.succeeded == sum(number not in failed for number in numbers[:end])
        left = failed & set(numbers[end:])
        assert repr(course) == f"<Course {end}/{len(records)} done, {len(left)} failed among the open ones>"
