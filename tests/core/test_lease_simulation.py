"""Whole fleets in virtual time: what the lease plan and the conditional writes make of joins, deaths and a bad network.

`Fleet` asserts all the time that no two workers commit the same and that no two read one shard; the tests add how soon, how
evenly and how calmly. Each is run with several seeds; a failure names its seed and comes again with it.
"""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from poller.core.leases import FAILOVER_TIME, LOOKS, look_interval
from tests.core.fleet import Fleet, Network

if TYPE_CHECKING:
    from collections.abc import Callable


#: Time that requests take on the way, several of them one after the other.
ON_THE_WAY = 0.2
#: More of them say more, and take their time.
SEEDS = range(int(os.environ.get("POLLER_SIMULATION_SEEDS", "2")))


def fleet_of(workers: int, shards: int, seed: int, network: Network | None = None) -> Fleet:
    """A fleet that has been at work for half a minute."""
    chance = Random(seed)
    fleet = Fleet({f"shard-{number}": chance.uniform(0.5, 1.5) for number in range(shards)}, seed, network)
    fleet.join(workers)
    fleet.run(30.0)
    assert not fleet.unread()
    fleet.gaps.clear()
    fleet.moves.clear()
    return fleet


def longest_gap(fleet: Fleet) -> float:
    return max(gap for _, gap in fleet.gaps)


def bound(fleet: Fleet) -> float:
    return FAILOVER_TIME + look_interval(len(fleet.true_loads)) + ON_THE_WAY


# --- one thing at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_at_a_start_of_all_together_nothing_is_taken_twice_and_all_is_read_at_once(seed: int):
    fleet = Fleet({f"shard-{number}": 1.0 for number in range(64)}, seed)
    fleet.join(4)
    fleet.run(4.0)
    assert not fleet.unread()
    fleet.run(60.0)
    assert fleet.imbalance() <= 1.25
    assert len(fleet.moves) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_shards_of_a_worker_that_died_are_read_within_the_failover_time_and_a_look(seed: int):
    fleet = fleet_of(8, 120, seed)
    dead = fleet.some()
    lost = set(dead.held)
    fleet.kill(dead)
    fleet.run(60.0)
    assert not fleet.unread()
    assert len(fleet.gaps) >= len(lost)
    assert longest_gap(fleet) <= bound(fleet)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_shards_of_all_workers_but_one_are_read_within_the_same_time(seed: int):
    fleet = fleet_of(6, 60, seed)
    for worker in fleet.alive()[1:]:
        fleet.kill(worker)
    fleet.run(30 + bound(fleet))
    assert not fleet.unread()
    assert longest_gap(fleet) <= bound(fleet)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_that_leaves_gives_its_shards_away_within_two_seconds_and_little_else_moves(seed: int):
    fleet = fleet_of(8, 120, seed)
    leaving = fleet.some()
    lost = {reading.lease.key for reading in leaving.held.values()}
    leaving.leave()
    fleet.run(60.0)
    assert not fleet.unread()
    assert longest_gap(fleet) <= 2.0
    assert len(fleet.gaps) <= 1.6 * len(lost)
    assert len(fleet.moves) - len(lost) <= 0.6 * len(lost)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("joining", [1, 8])
def test_a_join_is_balanced_within_a_minute_with_few_moves_and_then_all_is_calm(seed: int, joining: int):
    fleet = fleet_of(8, 160, seed)
    fleet.join(joining)
    fleet.run(90.0)
    fair = 160 * joining / (8 + joining)
    assert fleet.imbalance() <= 1.25
    assert len(fleet.moves) <= 1.3 * fair + 4
    assert longest_gap(fleet) <= 2.0, "a hand-over"
    fleet.moves.clear()
    fleet.run(400.0)
    assert fleet.imbalance() <= 1.25
    assert len(fleet.moves) <= 3, "loads only tremble"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_loads_are_balanced_not_counts(seed: int):
    chance = Random(seed)
    shards = {f"shard-{number}": chance.choice([1.0, 1.0, 1.0, 20.0]) for number in range(400)}
    fleet = Fleet(shards, seed)
    fleet.join(5)
    fleet.run(30.0)
    fleet.join(1)
    fleet.run(90.0)
    assert fleet.imbalance() <= 1.25
    counts = [len(worker.held) for worker in fleet.alive()]
    assert max(counts) > min(counts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_stuck_reader_loses_its_shard_and_a_worker_that_was_stopped_cannot_commit(seed: int):
    fleet = fleet_of(4, 40, seed)
    stuck, stopped = fleet.alive()[:2]
    reading = next(iter(stuck.held.values()))
    reading.stuck = True
    stopped.stopped_until = fleet.now + 30.0
    before = set(stopped.held)
    fleet.run(30 + bound(fleet) + 1)
    assert reading.lease.key not in stuck.held
    assert any(reading.lease.key in worker.held for worker in fleet.alive() if worker is not stuck)
    taken = {key for worker in fleet.alive() if worker is not stopped for key in worker.held}
    assert before <= taken
    fleet.run(62.0)
    assert all(len(readers) <= 1 for readers in fleet.readers.values()), "it has noticed"
    fleet.run(150.0)
    assert fleet.imbalance() <= 1.25


# --- everything at once -------------------------------------------------------------------------------------------------


def kill(fleet: Fleet) -> None:
    if len(fleet.alive()) > 2:
        fleet.kill(fleet.some())


def leave(fleet: Fleet) -> None:
    if len([worker for worker in fleet.alive() if not worker.leaving]) > 2:
        fleet.some_that_stays().leave()


def join(fleet: Fleet) -> None:
    fleet.join(fleet.chance.choice([1, 1, 3]))


def stop(fleet: Fleet) -> None:
    worker = fleet.some()
    worker.stopped_until = max(worker.stopped_until, fleet.now + fleet.chance.uniform(1, 40))


def cut_off(fleet: Fleet) -> None:
    for worker in fleet.chance.sample(fleet.alive(), len(fleet.alive()) // 2):
        worker.cut_off_until = fleet.now + fleet.chance.uniform(1, 40)


def get_stuck(fleet: Fleet) -> None:
    for reading in fleet.some().held.values():
        reading.stuck = fleet.chance.random() < 0.3


EVENTS: tuple[Callable[[Fleet], None], ...] = (kill, leave, join, stop, cut_off, get_stuck)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2 * len(SEEDS)))
def test_whatever_happens_no_two_commit_and_after_it_all_is_read_and_balanced(seed: int):
    bad = Network(latency=0.05, lost_requests=0.05, lost_answers=0.05, repeated=0.05, slow=0.02)
    chance = Random(seed)
    fleet = Fleet({f"shard-{number}": chance.uniform(0.5, 1.5) for number in range(150)}, seed, bad)
    fleet.join(6)
    at = 30.0
    while at < 400.0:
        fleet.run(at)
        chance.choice(EVENTS)(fleet)
        at += chance.expovariate(1 / 8.0)
    fleet.network = Network()
    fleet.run(at := at + 40.0 + 2 * FAILOVER_TIME)  # until the last of them has woken up
    assert not fleet.unread()
    fleet.run(at + 60.0)
    assert fleet.imbalance() <= 1.25
    assert fleet.commits > 5_000
    fleet.moves.clear()
    fleet.run(at + 180.0)
    assert len(fleet.moves) <= 8


# --- as large as it gets ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_workers_share_ten_thousand_shards(capsys: pytest.CaptureFixture[str]):
    """About twenty seconds of CPU. All look in five groups: what a group makes of its look is worked out once."""
    chance = Random(7)
    shards = {f"shard-{number}": chance.uniform(0.5, 1.5) for number in range(10_000)}
    fleet = Fleet(shards, 7, phases=5)
    fleet.join(980)
    fleet.run(FAILOVER_TIME + 2 * LOOKS[1])
    assert not fleet.unread()
    assert not fleet.moves
    fleet.gaps.clear()
    fleet.join(20)
    fleet.run(28.0)
    for _ in range(10):
        fleet.kill(fleet.some())
    fleet.run(72.0)
    assert len(fleet.unread()) <= 10, "some are being handed over"
    assert longest_gap(fleet) <= bound(fleet)
    assert fleet.imbalance() <= 1.25
    assert len(fleet.moves) <= 500
    idle = [fleet.writes[second] for second in range(62, 72)]
    per_second = sum(idle) / len(idle)
    with capsys.disabled():
        print(f"\n10,000 shards, 990 workers: {per_second:.0f} writes/s idle, {len(fleet.moves)} moves")
    assert per_second <= 10_000 / 5 + 990 / 5 + 10
