"""Who reads which shard: the decisions by which many workers share one table of leases, without a leader.

A lease is the right to read one shard and to move its checkpoint. It is a row of a table that every worker reads and that is
written conditionally only. The life of a lease::

    added ---> free <-------------------------------------------------+
                |  claimed                                            | released, or expired: its counter
                v                                                     | stood still for the failover time
              owned --- renewed, with the checkpoint ---> owned ------+
                |  wanted by another: the batch in flight is finished
                v
              handed over ---> owned by the other                 finished: the shard is closed and all of it done

*Fencing.* Every change of owner and every renewal adds one to the lease's `counter` and happens only if owner and counter are
still what the writer has seen last. So of two that believe to own a lease one cannot write, whatever the clocks say and
however long a process was stopped. A checkpoint goes in the same write as the renewal.

*Time.* No time is ever written to the table and no two clocks are compared. A lease is expired for an observer once its
counter stood still for the failover time between two looks, on the observer's own monotonic clock: from when an answer that
had it arrived to when another question was asked whose answer had it still. An owner counts from when it asked for its last
renewal, and gives up earlier than anybody can take over. `poller.core.sightings` is what an observer remembers.

*The plan.* `poller.core.survey` computes from one look at the table who should have what; it is the same for all workers
with the same look. `plan` is one worker's part of it. Looks differ a little, so plans do, and the conditional writes settle
it. A plan that is carried out in part leaves the rest as it was (`poller.core.balance`), and what somebody does not take in
time falls to the next. Nothing is taken from an owner that renews: it is asked, and hands over between two batches.

*Leaving.* Who goes hands its leases to heirs among those that stay (`survey.heirs`), who take them at their next look. It has
taken its mappings out of its row before, so of two that go one knows; what comes to it meanwhile it makes free; and what is
still its own when its row has gone is free for all who have seen that row.

*Calm.* Loads within ten percent of the average are let be. A lease that has changed hands stays for two failover times. One
that is wanted counts as moved already, so that nobody else asks for another one instead.

*Descent.* A child's lease is free only when all of its parents that the table knows are finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.core.positions import position

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from poller.core.survey import Survey
    from poller.model import Checkpoint, Lease, LeaseKey, Worker

#: Seconds without a renewal after which a lease is anybody's.
FAILOVER_TIME = 10.0
#: What part of the failover time an owner goes on without a renewal.
HELD = 0.9
#: Renewals of an idle lease in one failover time.
RENEWALS = 2
#: Seconds between two writes of a lease whose checkpoint moves: what a crash repeats.
CHECKPOINT_INTERVAL = 1.0
#: Seconds between two looks at the table, at least and at most, and how many leases more make them one second more.
LOOKS = (1.0, 5.0)
LEASES_A_SECOND = 2_000


# --- what there is to do ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renew:
    """Count on, and write the checkpoint with it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Claim:
    """Take a lease that is free, or that has been handed to this worker."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Want:
    """Ask the owner for a lease."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class HandOff:
    """Finish what is in flight, checkpoint, and make `to` the owner."""

    lease: Lease
    to: str


@dataclass(frozen=True, slots=True)
class Release:
    """Finish what is in flight, checkpoint, and make the lease free: this worker does not run its mapping."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Lost:
    """Another worker has it: stop reading at once, and write nothing."""

    lease: Lease


Action = Claim | Want | HandOff | Release | Lost


def plan(
    survey: Survey, me: Worker, held: Mapping[LeaseKey, int], shunned: Collection[LeaseKey] = ()
) -> tuple[Action, ...]:
    """What `me` is to do now.

    `held` has the counters of the leases that it reads, `shunned` those that it does not want at the moment because it got
    stuck on them.
    """
    return (*_of_mine(survey, me, held, shunned), *_of_others(survey, me, held, shunned))


def _of_mine(
    survey: Survey, me: Worker, held: Mapping[LeaseKey, int], shunned: Collection[LeaseKey]
) -> Iterator[Action]:
    for key, counter in held.items():
        lease = survey.leases.get(key)
        # A lease that this worker has just claimed may still be listed as it was before.
        if lease and lease.owner != me.id and lease.counter > counter:
            yield Lost(lease)
    for lease in survey.owned.get(me.id, ()):
        if lease.mapping not in me.mappings:
            yield Release(lease)
        elif lease.key not in held:
            if lease.key not in shunned:
                yield Claim(lease)
        elif lease.wanted_by != me.id and survey.takes(lease.wanted_by, lease.mapping):
            yield HandOff(lease, lease.wanted_by)


def _of_others(
    survey: Survey, me: Worker, held: Mapping[LeaseKey, int], shunned: Collection[LeaseKey]
) -> Iterator[Action]:
    for lease in survey.claims.get(me.id, ()):
        # What is listed as its own, it has dealt with already.
        if lease.owner != me.id and lease.key not in held and _takes(me, lease, shunned):
            yield Claim(lease)
    yield from (Want(lease) for lease in survey.wants.get(me.id, ()) if _takes(me, lease, shunned))


def _takes(me: Worker, lease: Lease, shunned: Collection[LeaseKey]) -> bool:
    return lease.mapping in me.mappings and lease.key not in shunned


# --- what keeps it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that this worker reads."""

    lease: Lease
    """As the last write of this worker has left it."""
    renewed: float
    """When that write was asked for; the first time, if it took several: any of them may be the one that has happened."""
    progresses: bool
    """Its reader moves on, or waits for something that it knows."""
    moved: bool = False
    """There is a checkpoint that is not written yet."""


def upkeep(
    held: Iterable[Held],
    now: float,
    failover_time: float = FAILOVER_TIME,
    checkpoint_interval: float = CHECKPOINT_INTERVAL,
) -> tuple[Renew | Lost, ...]:
    """What `held` need now: a renewal when half of the failover time is over, earlier where a checkpoint is to be written, and
    an end shortly before all of it is.

    It needs no look at the table. A lease whose reader is stuck gets no renewal, and so goes to somebody else.
    """
    return tuple(_upkeep(held, now, failover_time, checkpoint_interval))


def _upkeep(
    held: Iterable[Held], now: float, failover_time: float, checkpoint_interval: float
) -> Iterator[Renew | Lost]:
    idle = failover_time / RENEWALS
    for one in held:
        age = now - one.renewed
        if not holds(age, failover_time):
            yield Lost(one.lease)
        elif one.progresses and age >= (min(idle, checkpoint_interval) if one.moved else idle):
            yield Renew(one.lease)


def holds(age: float, failover_time: float = FAILOVER_TIME) -> bool:
    """Whether a lease that was renewed `age` seconds ago can be nobody else's yet."""
    return age < HELD * failover_time


def portion(total: int, workers: Collection[str], me: str) -> int:
    """The part of `total` that `me` has when `workers`, one of which it is, divide it: whole, and as even as can be."""
    part, rest = divmod(total, len(workers))
    return part + (sorted(workers).index(me) < rest)


def look_interval(leases: int) -> float:
    """Seconds from one look at a table of so many leases to the next: a look costs what the table is large."""
    least, most = LOOKS
    return min(most, least + leases / LEASES_A_SECOND)


# --- what became of it ----------------------------------------------------------------------------------------------------


def has_happened(row: Lease, lease: Lease, owner: str, checkpoint: Checkpoint | None = None) -> bool:
    """Whether `row` is what a write has left that was to make `owner` the owner of `lease`, its own answer being lost.

    Only the owner counts, and nobody else is called so. When a lease is handed over, two may write the same owner: the one
    that hands over, and the one that takes it because it expired; then the checkpoint tells. A claim has none. Of a lease that
    was the claimer's own already it is not known, as a late renewal leaves the same; then the next look shows what there is.
    """
    if (row.owner, row.counter) != (owner, lease.counter + 1):
        return False
    if checkpoint is None:
        return lease.owner != owner
    return position(row.checkpoint) >= position(checkpoint)
