"""When a parked key is tried again, and what its records are called where they wait."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.parking import Schedule, entry_id, probe_pause
from poller.model import Checkpoint


def test_a_record_is_named_by_its_shard_and_its_whole_position():
    assert entry_id("shard-1", Checkpoint("42")) == "shard-1:42"
    assert entry_id("shard-1", Checkpoint("42", 0)) == "shard-1:42.0"
    assert entry_id("shard-2", Checkpoint("42", 7)) == "shard-2:42.7"


@pytest.mark.parametrize(
    ("failures", "interval", "pause"),
    [
        (0, 60, 60),
        (1, 60, 120),
        (4, 60, 960),
        (99, 60, 960),
        (3, 600, 3600),
        (2, 7200, 7200),
        (0, 0, math.inf),
        (5, 0, math.inf),
    ],
)
def test_pauses_double_up_to_sixteen_intervals_or_an_hour_and_without_an_interval_there_is_no_probe(
    failures, interval, pause
):
    assert probe_pause(failures, interval) == pause


def test_keys_come_in_the_order_in_which_they_are_due():
    schedule = Schedule()
    for key, due in {"a": 3.0, "b": 1.0, "c": 2.0, "never": math.inf}.items():
        schedule.set(key, due)
    assert (schedule.next, schedule.pop(0.9)) == (1.0, None)
    assert [schedule.pop(9.0) for _ in range(4)] == ["b", "c", "a", None]
    assert (schedule.next, schedule.due("never"), schedule.due("a")) == (math.inf, None, None)
    assert repr(schedule) == "<Schedule of 0 keys>"


def test_what_was_set_before_counts_no_more():
    schedule = Schedule()
    schedule.set("a", 1.0)
    schedule.set("a", 5.0)
    schedule.set("b", 2.0)
    schedule.set("b", math.inf)
    schedule.set("c", 3.0)
    schedule.set("c", math.inf)
    schedule.set("c", 4.0)
    assert [schedule.pop(9.0) for _ in range(3)] == ["c", "a", None]


def test_a_key_that_is_set_again_and_again_takes_no_more_room():
    schedule = Schedule()
    for due in range(1000):
        schedule.set("a", 1000.0 - due)
    assert (len(schedule._queue) < 20, schedule.pop(1.0), schedule.next) == (True, "a", math.inf)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 100) | st.none()), max_size=200))
def test_the_schedule_is_that_of_the_latest_times_and_holds_little_more(steps):
    schedule, latest = Schedule(), {}
    for key, due in steps:
        if due is None:
            popped = schedule.pop(50.0)
            ripe = [at for at in latest.values() if at <= 50.0]
            assert (popped is None) == (not ripe)
            if popped is not None:
                assert latest.pop(popped) == min(ripe)
        else:
            schedule.set(key, due)
            latest[key] = due
        assert schedule.next == min(latest.values(), default=math.inf)
        assert len(schedule._queue) <= 2 * len(latest) + 17
