from __future__ import annotations

from poller.core.sightings import Sightings
from poller.model import Lease, Listing, Worker

KEY = ("clicks", "a")


def listing(counter: int, owner: str = "w1", worker: int = 1) -> Listing:
    return Listing([Lease("clicks", "a", owner=owner, counter=counter)], [Worker("w1", frozenset(), worker)])


def test_what_is_seen_for_the_first_time_has_just_changed():
    seen = Sightings().fold(listing(7), 100.0, 101.0)
    assert seen.unchanged(KEY) <= 0
    assert seen.present(10.0) == {"w1"}
    assert seen.leases[KEY].moved < 0, "nobody knows when it got there"


def test_a_row_stands_still_from_an_answer_to_another_question():
    seen = Sightings().fold(listing(7), 100.0, 101.0).fold(listing(7), 105.0, 180.0)
    assert seen.unchanged(KEY) == 4.0, (
        "a process that was stopped before it read the answer knows nothing newer"
    )
    assert seen.fold(listing(7), 200.0, 200.1).unchanged(KEY) == 99.0


def test_a_counter_that_moves_begins_anew_and_an_owner_that_changes_has_moved():
    seen = Sightings().fold(listing(7), 100.0, 101.0).fold(listing(8), 105.0, 106.0)
    assert seen.leases[KEY].since == 106.0
    assert seen.leases[KEY].moved < 0
    seen = seen.fold(listing(9, "w2"), 110.0, 111.0).fold(listing(10, "w2"), 112.0, 113.0)
    assert (seen.leases[KEY].since, seen.leases[KEY].moved) == (113.0, 111.0)


def test_a_worker_that_does_not_count_is_gone_after_a_time():
    seen = Sightings().fold(listing(1), 100.0, 101.0).fold(listing(2), 110.9, 111.0)
    assert seen.present(10.0) == {"w1"}
    assert seen.gone(10.0) == ()
    seen = seen.fold(listing(3), 121.0, 121.0)
    assert seen.present(10.0) == frozenset()
    assert seen.gone(10.0) == ("w1",)


def test_rows_that_are_removed_are_forgotten():
    seen = Sightings().fold(listing(1), 1.0, 1.0).fold(Listing((), ()), 2.0, 2.0)
    assert (seen.leases, seen.workers) == ({}, {})


def test_an_owner_whose_own_row_is_twice_not_there_has_left():
    gone = Listing(listing(7).leases, ())
    seen = Sightings().fold(listing(7), 1.0, 1.0).fold(gone, 2.0, 2.0)
    assert not seen.has_left("w1"), "a look may leave a row out"
    assert not seen.fold(listing(7), 3.0, 3.0).fold(gone, 4.0, 4.0).has_left("w1")
    seen = seen.fold(gone, 3.0, 3.0)
    assert seen.has_left("w1")
    assert not seen.fold(listing(8, "w2"), 4.0, 4.0).absent, "nothing is kept of who owns nothing"


def test_an_owner_that_never_had_a_row_has_not_left():
    stranger = Listing(listing(7).leases, ())
    assert not Sightings().fold(stranger, 1.0, 1.0).fold(stranger, 2.0, 2.0).has_left("w1")
