"""Health: the troubles of a mapping's parts, told as the state of one mapping."""

from __future__ import annotations

from poller.engine.health import Health
from poller.model import MappingState, Trouble
from tests.engine.fakes import Recorder


def of_clicks():
    observer = Recorder()
    return Health("clicks", observer), observer


def test_a_mapping_is_degraded_from_its_first_trouble_to_the_end_of_its_last():
    health, observer = of_clicks()
    health.failed("one", "no route", 0.5)
    health.failed("other", "access denied", 1.0)
    assert observer.states("clicks") == [MappingState.DEGRADED]
    health.recovered("one")
    assert observer.states("clicks") == [MappingState.DEGRADED]
    health.recovered("other")
    assert observer.states("clicks") == [MappingState.DEGRADED, MappingState.RUNNING]
    assert observer.of(Trouble) == [
        Trouble("clicks", "no route", 0.5),
        Trouble("clicks", "access denied", 1.0),
    ]


def test_it_names_the_oldest_trouble_that_is_still_there():
    health, _ = of_clicks()
    assert health.trouble is None
    health.failed("one", "no route", 0.5)
    health.failed("other", "access denied", 0.5)
    health.failed("one", "still no route", 1.0)
    assert health.trouble == "still no route"
    assert (health.of("other"), health.of("third")) == ("access denied", "")
    assert repr(health) == "<Health clicks: 2 parts in trouble>"
    health.recovered("one")
    assert health.trouble == "access denied"


def test_the_recovery_of_a_part_that_was_well_says_nothing():
    health, observer = of_clicks()
    health.recovered("one")
    assert observer.facts == []
    health.failed("one", "no route", 0.5)
    health.recovered("other")
    assert observer.states("clicks") == [MappingState.DEGRADED]


def test_a_part_that_no_longer_tries_is_forgotten_without_a_word():
    health, observer = of_clicks()
    health.failed("one", "no route", 0.5)
    health.forget("one")
    health.forget("one")
    assert health.trouble is None
    assert observer.states("clicks") == [MappingState.DEGRADED]
    health.failed("one", "no route", 0.5)
    assert observer.states("clicks") == [MappingState.DEGRADED, MappingState.DEGRADED]
