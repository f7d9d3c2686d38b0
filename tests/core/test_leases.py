from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.leases import (
    FAILOVER_TIME,
    Claim,
    HandOff,
    Held,
    Lost,
    Release,
    Renew,
    Want,
    has_happened,
    look_interval,
    plan,
    portion,
    upkeep,
)
from poller.core.sightings import Sightings
from poller.core.survey import Survey, heirs, survey
from poller.model import Checkpoint, Lease, Listing, Worker

CLICKS = frozenset({"clicks"})
ME, OTHER = Worker("me", CLICKS, 1), Worker("other", CLICKS, 1)
DONE = Checkpoint(finished=True)


def lease(shard: str = "a", owner: str = "", counter: int = 1, **more) -> Lease:
    return Lease("clicks", shard, owner=owner, counter=counter, **more)


def leases(owner: str, number: int, **more) -> list[Lease]:
    return [lease(f"{owner}-{at}", owner, **more) for at in range(number)]


def seen(*rows: Lease, workers: tuple[Worker, ...] = (ME, OTHER), still_for: float = 0.0) -> Survey:
    """A look at rows of which those of leases have stood still for a time."""
    before = Sightings().fold(Listing(rows, ()), -still_for, -still_for)
    listing = Listing(rows, workers)
    return survey(listing, before.fold(listing, 0.0, 0.0), FAILOVER_TIME)


def by_kind(actions, kind) -> set[str]:
    return {action.lease.shard for action in actions if type(action) is kind}


# --- what is free -------------------------------------------------------------------------------------------------------


def test_free_leases_are_claimed_each_by_one_worker():
    rows = [lease(f"s{number}") for number in range(20)]
    found = seen(*rows)
    mine, others = (by_kind(plan(found, who, {}), Claim) for who in (ME, OTHER))
    assert mine | others == {row.shard for row in rows}
    assert not mine & others
    assert 9 <= len(mine) <= 11


def test_a_lease_is_taken_once_it_stood_still_for_the_failover_time_and_not_before():
    row = lease(owner="dead")
    assert not plan(seen(row, workers=(ME,), still_for=9.9), ME, {})
    assert plan(seen(row, workers=(ME,), still_for=10.0), ME, {}) == (Claim(row),)


def test_what_was_handed_to_somebody_who_has_left_meanwhile_is_free_without_waiting():
    row = lease(owner="other")
    there, gone = Listing((row,), (ME, OTHER)), Listing((row,), (ME,))
    sightings = Sightings().fold(there, 0.0, 0.0).fold(gone, 1.0, 1.0)
    assert not plan(survey(gone, sightings, FAILOVER_TIME), ME, {})
    sightings = sightings.fold(gone, 2.0, 2.0)
    assert plan(survey(gone, sightings, FAILOVER_TIME), ME, {}) == (Claim(row),)


def test_an_expired_lease_goes_to_another_than_the_one_that_let_it_expire():
    row = lease(owner="other")
    found = seen(row, still_for=12.0)
    assert plan(found, ME, {}) == (Claim(row),)
    assert found.claims.keys() == {"me"}
    assert plan(seen(row, workers=(OTHER,), still_for=12.0), OTHER, {}) == (Claim(row),), "if there is any"


def test_what_the_first_does_not_take_in_time_the_next_does():
    row = lease()
    heirs = {name for still in (0.0, 6.0) for name in seen(row, still_for=still).claims}
    assert heirs == {"me", "other"}


def test_children_are_claimed_after_their_parents_are_finished():
    child = lease("child", parents=("left", "right", "trimmed away"))
    right = lease("right", checkpoint=DONE)
    assert by_kind(plan(seen(lease("left"), right, child, workers=(ME,)), ME, {}), Claim) == {"left"}
    left = lease("left", checkpoint=DONE)
    assert by_kind(plan(seen(left, right, child, workers=(ME,)), ME, {}), Claim) == {"child"}


def test_a_row_that_is_new_waits_a_look_for_those_of_its_parents():
    child = lease("child", counter=0, parents=("parent",))
    alone, both = Listing((child,), (ME,)), Listing((lease("parent", counter=0), child), (ME,))
    sightings = Sightings().fold(alone, 0.0, 0.1)
    assert not plan(survey(alone, sightings, FAILOVER_TIME), ME, {}), "the parent's may be shown later"
    found = survey(both, sightings.fold(both, 1.0, 1.1), FAILOVER_TIME)
    assert by_kind(plan(found, ME, {}), Claim) == {"parent"}
    found = survey(alone, sightings.fold(alone, 1.0, 1.1), FAILOVER_TIME)
    assert by_kind(plan(found, ME, {}), Claim) == {"child"}, "there is none"


def test_a_parent_of_the_same_name_in_another_mapping_is_none():
    stranger = Lease("orders", "parent")
    child = lease("child", parents=("parent",))
    assert by_kind(plan(seen(stranger, child, workers=(ME,)), ME, {}), Claim) == {"child"}


def test_a_mapping_that_nobody_runs_is_let_be_and_others_have_those_who_run_them():
    both = Worker("both", frozenset({"clicks", "orders"}), 1)
    rows = [
        *(Lease(mapping, f"s{number}") for mapping in ("clicks", "orders") for number in range(10)),
        Lease("nobodys", "s"),
    ]
    found = seen(*rows, workers=(ME, both))
    assert {row.mapping for row in found.claims["me"]} == {"clicks"}
    assert len([row for row in found.claims["both"] if row.mapping == "orders"]) == 10
    assert not any(row.mapping == "nobodys" for rows in found.claims.values() for row in rows)


def test_a_worker_that_got_stuck_on_a_lease_does_not_take_it_again():
    free, mine = lease("free"), lease("mine", "me")
    found = seen(free, mine, workers=(ME,))
    assert by_kind(plan(found, ME, {}), Claim) == {"free", "mine"}
    assert not plan(found, ME, {}, shunned={free.key, mine.key})


# --- what is owned ------------------------------------------------------------------------------------------------------


def test_a_lease_that_was_handed_to_me_is_claimed_and_one_that_i_read_is_not():
    row = lease(owner="me", counter=5)
    assert plan(seen(row), ME, {}) == (Claim(row),)
    assert plan(seen(row), ME, {row.key: 5}) == ()
    assert plan(seen(row, still_for=30.0), ME, {}) == (Claim(row),), "of an earlier attempt"


def test_a_lease_that_somebody_wants_is_handed_off_if_that_one_is_there():
    row = lease(owner="me", wanted_by="other")
    assert plan(seen(row), ME, {row.key: 1}) == (HandOff(row, "other"),)
    assert plan(seen(row, workers=(ME,)), ME, {row.key: 1}) == ()
    assert plan(seen(row, workers=(ME, Worker("other", frozenset(), 2))), ME, {row.key: 1}) == (), (
        "it is about to go"
    )
    mine = replace(row, wanted_by="me")
    assert plan(seen(mine), ME, {row.key: 1}) == ()


def test_a_lease_that_another_has_is_lost_but_not_because_of_an_old_look():
    row = lease(owner="other", counter=5)
    assert Lost(row) in plan(seen(row), ME, {row.key: 4})
    assert Lost(row) not in plan(seen(row), ME, {row.key: 6})
    assert plan(seen(), ME, {row.key: 4}) == ()


def test_a_worker_that_stops_runs_no_mapping_and_so_gives_everything_back():
    stopping = Worker("me", frozenset(), 2)
    rows = [lease("a", "me"), lease("b", "me"), lease("c")]
    actions = plan(seen(*rows), stopping, {row.key: 1 for row in rows[:2]})
    assert actions == (Release(rows[0]), Release(rows[1]))


def test_what_somebody_leaves_goes_to_those_who_run_its_mapping_and_evenly():
    third, elsewhere = Worker("third", CLICKS, 1), Worker("elsewhere", frozenset({"orders"}), 1)
    mine = leases("me", 9)
    orders = Lease("orders", "a", owner="me")
    found = heirs(seen(*mine, orders, workers=(ME, OTHER, third, elsewhere)), "me", [*mine, orders])
    assert found.pop(orders.key) == "elsewhere"
    assert sorted(Counter(found.values()).values()) in ([4, 5], [3, 6])
    assert found.keys() == {row.key for row in mine}
    assert heirs(seen(*mine, workers=(ME,)), "me", mine) == {}


# --- balance ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_has_nothing_asks_the_others_for_its_part():
    found = seen(*leases("other", 10))
    wanted = by_kind(plan(found, ME, {}), Want)
    assert len(wanted) == 5
    assert not plan(found, OTHER, {row.key: 1 for row in leases("other", 10)})


def test_who_stops_asks_for_nothing():
    assert not plan(seen(*leases("other", 10)), Worker("me", frozenset()), {})


def test_what_is_wanted_counts_as_moved_and_a_wish_of_the_dead_does_not():
    rows = leases("other", 10)
    asked = [replace(row, wanted_by="me") for row in rows[:5]]
    assert not plan(seen(*asked, *rows[5:]), ME, {})
    haunted = [replace(row, wanted_by="dead") for row in rows]
    assert len(by_kind(plan(seen(*haunted), ME, {}), Want)) == 5


def test_a_lease_that_has_just_moved_stays():
    rows = leases("other", 10)
    before = Sightings().fold(Listing([replace(row, owner="dead") for row in rows], ()), 0.0, 0.0)
    listing = Listing(rows, (ME, OTHER))
    seen_move = before.fold(listing, 1.0, 1.0)
    assert not survey(listing, seen_move, FAILOVER_TIME).wants
    workers = [replace(worker, counter=2) for worker in (ME, OTHER)]
    fresh = Listing([replace(row, counter=2) for row in rows], workers)
    assert survey(fresh, seen_move.fold(fresh, 21.0, 21.0), FAILOVER_TIME).wants


def test_loads_count_and_idle_leases_count_a_little():
    heavy = lease("heavy", "other", load=1000.0)
    rows = [heavy, *(lease(f"light-{number}", "other", load=1.0) for number in range(20))]
    wanted = by_kind(plan(seen(*rows), ME, {}), Want)
    assert len(wanted) == 20
    idle = [lease(f"idle-{number}", "other", load=0.0) for number in range(20)]
    assert len(by_kind(plan(seen(*idle), ME, {}), Want)) == 10


def test_a_load_that_is_not_known_yet_is_an_average_one():
    rows = [lease("known", "other", load=500.0), lease("new", "other"), lease("newer", "other")]
    found = seen(*rows)
    assert sum(found.loads.values()) == pytest.approx(3.0)
    assert len(by_kind(plan(found, ME, {}), Want)) == 1


def test_an_owner_that_does_not_count_as_a_worker_is_left_its_part():
    found = seen(*leases("stranger", 30))
    assert 8 <= len(by_kind(plan(found, ME, {}), Want)) <= 11


# --- keeping it ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "progresses", "expected"),
    [
        (0.0, True, ()),
        (4.9, True, ()),
        (5.0, True, (Renew,)),
        (8.9, True, (Renew,)),
        (8.9, False, ()),
        (9.0, True, (Lost,)),
        (9.0, False, (Lost,)),
    ],
)
def test_a_lease_is_renewed_while_its_reader_progresses_and_given_up_before_others_take_it(
    age: float, progresses: bool, expected: tuple[type, ...]
):
    actions = upkeep([Held(lease(owner="me"), 100.0, progresses)], 100.0 + age)
    assert tuple(map(type, actions)) == expected
    assert all(action.lease == lease(owner="me") for action in actions)


def test_a_longer_failover_time_means_fewer_renewals():
    held = [Held(lease(owner="me"), 0.0, True)]
    assert upkeep(held, 14.0, 30.0) == ()
    assert upkeep(held, 15.0, 30.0) == (Renew(held[0].lease),)


def test_a_checkpoint_that_moves_is_written_more_often_but_not_by_a_stuck_reader():
    mine = lease(owner="me")
    assert upkeep([Held(mine, 0.0, True, moved=True)], 0.9) == ()
    assert upkeep([Held(mine, 0.0, True, moved=True)], 1.0) == (Renew(mine),)
    assert upkeep([Held(mine, 0.0, False, moved=True)], 1.0) == ()
    assert upkeep([Held(mine, 0.0, True, moved=True)], 5.0, checkpoint_interval=60.0) == (Renew(mine),)


def test_a_small_table_is_looked_at_every_second_and_a_large_one_every_five():
    assert look_interval(0) == 1.0
    assert look_interval(64) == pytest.approx(1.032)
    assert look_interval(10_000) == look_interval(8_000) == 5.0


# --- what is divided ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.sets(st.text(max_size=3), min_size=1, max_size=20))
def test_the_portions_of_all_workers_are_the_whole_and_differ_by_one_at_most(total, workers):
    portions = [portion(total, workers, worker) for worker in workers]
    assert sum(portions) == total
    assert max(portions) - min(portions) <= 1


# --- what became of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "owner", "checkpoint", "expected"),
    [
        (lease(owner="other", counter=8), "other", None, True),
        (lease(owner="other", counter=7), "other", None, False),
        (lease(owner="other", counter=9), "other", None, False),
        (lease(owner="third", counter=8), "other", None, False),
        (lease(owner="me", counter=8), "me", None, False),
        (lease(owner="me", counter=8, checkpoint=Checkpoint("5")), "me", Checkpoint("5"), True),
        (lease(owner="other", counter=8, checkpoint=Checkpoint("5")), "other", Checkpoint("5"), True),
        (lease(owner="other", counter=8, checkpoint=Checkpoint("4")), "other", Checkpoint("5"), False),
    ],
)
def test_a_write_whose_answer_was_lost_is_known_by_what_it_left(row, owner, checkpoint, expected):
    assert has_happened(row, lease(owner="me", counter=7), owner, checkpoint) is expected
