"""What an autoscaler is told."""

from __future__ import annotations

import pytest

from poller.app.scaling import LAG, scale
from poller.engine.status import (
    DaemonStatus,
    FleetStatus,
    LeaseStatus,
    MappingStatus,
    ShardStatus,
    Totals,
    WorkerStatus,
)
from poller.model import MappingState


def status(*ages: float | None, records: int = 0) -> DaemonStatus:
    shards = tuple(ShardStatus(f"s{at}", "reading", "1", age, 0.0, 0) for at, age in enumerate(ages))
    mapping = MappingStatus(
        "clicks", "arn", "f", MappingState.RUNNING, "", 0.0, 1, 0, records, 2, 0, 0, Totals(), shards
    )
    return DaemonStatus("1", 7, 0.0, False, 10, 0, (mapping,))


def lease(shard: str, mapping: str = "clicks", waits_for: tuple[str, ...] = ()) -> LeaseStatus:
    return LeaseStatus(mapping, shard, "w0", 1.0, 1.0, "1", "", waits_for)


def fleet(workers: int, leases: int, *more: LeaseStatus, lag: float = 0.0) -> FleetStatus:
    """One of the workers gives no sign of life; the others, but for this one, have this lag."""
    return FleetStatus(
        "w0",
        None,
        tuple(
            WorkerStatus(f"w{at}", ("clicks",), at < workers, 1, 1.0, lag if 0 < at < workers else 9e9)
            for at in range(workers + 1)
        ),
        (*(lease(f"s{at}") for at in range(leases)), *more),
    )


@pytest.mark.parametrize(
    ("lag", "workers", "leases", "desired"),
    [
        (0.0, 3, 8, 3),
        (LAG, 3, 8, 3),
        (LAG * 1.3, 3, 8, 4),
        (LAG * 100, 3, 8, 6),
        (LAG * 100, 6, 8, 8),
        (0.0, 9, 8, 8),
        (0.0, 2, 0, 1),
    ],
)
def test_more_workers_are_wanted_while_records_grow_old_and_never_more_than_shards(
    lag: float, workers: int, leases: int, desired: int
) -> None:
    answer = scale(status(lag, None, records=5), fleet(workers, leases))
    assert (answer.workers, answer.leases, answer.lag_seconds, answer.lag_records) == (
        workers,
        leases,
        lag,
        7,
    )
    assert answer.desired_workers == desired


def test_a_daemon_of_its_own_counts_its_own_shards() -> None:
    answer = scale(status(0.0, 3.0 * LAG), None)
    assert (answer.workers, answer.leases, answer.desired_workers) == (1, 2, 1), (
        "another could not share its state"
    )


def test_the_lag_is_that_of_the_whole_fleet() -> None:
    answer = scale(status(5.0), fleet(2, 8, lag=LAG * 3))
    assert (answer.lag_seconds, answer.desired_workers) == (LAG * 3, 4)
    assert scale(status(5.0), fleet(2, 8, lag=1.0)).lag_seconds == 5.0


def test_what_cannot_be_read_wants_no_workers() -> None:
    """A mapping that is paused at every daemon, and a shard whose parent is not finished."""
    more = (lease("s0", "paused"), lease("child", waits_for=("s0",)))
    answer = scale(status(LAG * 100), fleet(3, 4, *more))
    assert (answer.leases, answer.desired_workers) == (4, 4)
