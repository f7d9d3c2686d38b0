from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.polling import Polling


def test_an_idle_queue_gets_one_receive_at_a_time():
    polling = Polling(ceiling=10)
    polling.came_back(asked=10, got=0, after=20)
    assert polling.allowed == 1


def test_a_full_receive_earns_one_more():
    polling = Polling(ceiling=10)
    polling.came_back(asked=10, got=10, after=0.01)
    assert polling.allowed == 2


def test_a_receive_is_full_when_it_brought_all_that_it_asked_for():
    polling = Polling(ceiling=10)
    polling.came_back(asked=3, got=3, after=0.01)
    assert polling.allowed == 2


def test_a_full_receive_that_waited_for_its_messages_earns_nothing():
    polling = Polling(ceiling=10)
    polling.came_back(asked=1, got=1, after=0.01)
    assert polling.allowed == 2
    for _ in range(10):
        polling.came_back(asked=1, got=1, after=0.5)
    assert polling.allowed == 2


def test_a_long_way_to_the_queue_is_no_reason_to_receive_less():
    polling = Polling(ceiling=10)
    for _ in range(3):
        polling.came_back(asked=10, got=10, after=0.2)
    assert polling.allowed == 3


def test_a_way_to_the_queue_that_has_become_longer_is_learnt_from_receives_that_were_alone():
    polling = Polling(ceiling=10)
    polling.came_back(asked=10, got=10, after=0.01)
    polling.came_back(asked=10, got=0, after=20)
    for _ in range(9):
        polling.came_back(asked=10, got=10, after=0.04)
    assert polling.allowed == 1
    polling.came_back(asked=10, got=10, after=0.05)
    polling.came_back(asked=10, got=10, after=0.08)
    assert polling.allowed == 2
    for _ in range(100):
        polling.came_back(asked=10, got=10, after=0.09)
    assert polling.allowed == 2


@pytest.mark.parametrize("after", [0.01, 0.02], ids=["at once", "nearly"])
def test_a_quick_receive_among_slow_ones_says_that_the_way_is_as_short_as_ever(after):
    polling = Polling(ceiling=10)
    polling.came_back(asked=10, got=10, after=0.01)
    for _ in range(20):
        polling.failed()
        for _ in range(9):
            polling.came_back(asked=10, got=10, after=0.04)
        polling.came_back(asked=10, got=10, after=after)
        assert polling.allowed == 2


def test_each_round_of_full_receives_earns_one_more():
    polling = Polling(ceiling=100)
    allowed = []
    for _ in range(5):
        for _ in range(polling.allowed):
            polling.came_back(asked=10, got=10, after=0.01)
        allowed.append(polling.allowed)
    assert allowed == [2, 3, 4, 5, 6]


def test_a_receive_that_is_neither_full_nor_empty_changes_nothing():
    polling = Polling(ceiling=10, allowed=4)
    polling.came_back(asked=10, got=9, after=0.01)
    assert polling.allowed == 4


def test_an_empty_receive_costs_half():
    polling = Polling(ceiling=10, allowed=4)
    polling.came_back(asked=10, got=0, after=20)
    assert polling.allowed == 2


def test_a_failed_receive_brings_the_number_down_to_one():
    polling = Polling(ceiling=10, allowed=8)
    polling.failed()
    assert polling.allowed == 1


@given(st.integers(1, 20), st.lists(st.integers(-1, 10)))
def test_the_number_stays_between_one_and_the_ceiling(ceiling, receives):
    polling = Polling(ceiling)
    for got in receives:
        if got < 0:
            polling.failed()
        else:
            polling.came_back(asked=10, got=got, after=0.01)
        assert 1 <= polling.allowed <= ceiling
