"""What one worker remembers of the table of leases from look to look.

How long a row stood still is all that there is to tell the living from the dead, and only what has been seen twice is known to
have stood still: from when an answer that had it arrived to when another question was asked whose answer had it still. These
are two times, because a process may be stopped between a question and its answer, and what it reads then is as old as the
question. The clock is the observer's own and never jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poller.model import LeaseKey, Listing

K = TypeVar("K")


class Seen(NamedTuple):
    """What a row said last, on the observer's clock."""

    owner: str
    counter: int
    since: float
    """When it was first seen like this."""
    moved: float
    """When its owner was first seen; minus infinity if it was the first that was seen at all."""


@dataclass(frozen=True, slots=True)
class Sightings:
    """What one worker remembers of the table from look to look; it never outlives the worker."""

    at: float = -inf
    """When the last look began."""
    leases: Mapping[LeaseKey, Seen] = field(default_factory=dict)
    workers: Mapping[str, Seen] = field(default_factory=dict)
    absent: Mapping[str, int] = field(default_factory=dict)
    """Owners of leases whose own rows were there once and are no more, and in how many looks they were not."""

    def fold(self, listing: Listing, asked: float, answered: float) -> Sightings:
        """Add a look that was asked for and answered at these times."""
        leases = ((lease.key, lease.owner, lease.counter) for lease in listing.leases)
        workers = ((worker.id, worker.id, worker.counter) for worker in listing.workers)
        there = _fold(self.workers, workers, answered)
        owners = {lease.owner for lease in listing.leases}
        gone = (self.workers.keys() | self.absent.keys()) & owners - there.keys()
        absent = {name: self.absent.get(name, 0) + 1 for name in sorted(gone)}
        return Sightings(asked, _fold(self.leases, leases, answered), there, absent)

    def has_left(self, name: str) -> bool:
        """Whether a worker has gone for good, after it gave all of its leases back; one may have been handed to it meanwhile.

        Once is not enough: a table that is only consistent in the end may have left a row out.
        """
        return self.absent.get(name, 0) > 1

    def unchanged(self, key: LeaseKey) -> float:
        """Seconds for which the row of a lease is known to have stood still."""
        return self.at - self.leases[key].since

    def present(self, failover_time: float) -> frozenset[str]:
        """The workers that have counted within the failover time, or may have."""
        return frozenset(name for name, seen in self.workers.items() if self.at - seen.since < failover_time)

    def gone(self, seconds: float) -> tuple[str, ...]:
        """The workers that have not counted for so long: their rows may be removed."""
        return tuple(sorted(name for name, seen in self.workers.items() if self.at - seen.since >= seconds))


def _fold(known: Mapping[K, Seen], rows: Iterable[tuple[K, str, int]], now: float) -> dict[K, Seen]:
    folded: dict[K, Seen] = {}
    for key, owner, counter in rows:
        seen = known.get(key)
        if seen is None:
            seen = Seen(owner, counter, now, -inf)
        elif seen.counter != counter or seen.owner != owner:
            seen = Seen(owner, counter, now, seen.moved if seen.owner == owner else now)
        folded[key] = seen
    return folded
