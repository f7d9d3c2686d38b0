"""Who should have which lease, computed from one look at the table. Equal for all workers that saw the same.

A lease is *free* when nobody owns it, or its owner has gone or let it expire, and its parents are finished or have no rows.
What is free is placed; then loads are evened out, by placing differently what is not taken yet, and by asking owners for the
rest. Workers that run the same mappings form a *class*, and leases stay within it; what a worker carries counts in all of its
classes.

A worker that has let a lease expire is dead, or has got stuck, and gets nothing that is free as long as there are others. A
worker that owns leases but does not count, say because it is another program on the same table, is left what it has, and
gives away what it has too much.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.core.balance import Item, place, relieve

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poller.core.sightings import Sightings
    from poller.model import Lease, LeaseKey, Listing

#: Failover times during which a lease that changed hands is not moved again.
SETTLED = 2.0
#: Chances that the worker which comes next has in one failover time to take what is free.
TURNS = 2
#: The part of all load that has to be free for who takes what to depend on trembling loads: all take something then anyhow.
MANY = 0.1
#: The part of the average load that a lease without any counts as.
LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Survey:
    """Who should have what, from one look. Equal for all who saw the same."""

    leases: Mapping[LeaseKey, Lease]
    """All that there are."""
    present: Mapping[str, frozenset[str]]
    """The workers that are there, with the mappings that they run."""
    foreign_heirs: frozenset[tuple[str, str]]
    """As `Listing` has them."""
    owned: Mapping[str, Sequence[Lease]]
    """Leases by their owner, expired ones included."""
    claims: Mapping[str, Sequence[Lease]]
    """Free leases, by who is to take them."""
    wants: Mapping[str, Sequence[Lease]]
    """Leases by who is to ask their owners for them."""
    loads: Mapping[str, float]
    """What each worker carries when all of this is done, in averages of a lease."""
    weights: Mapping[LeaseKey, float]
    """What the leases that are not finished weigh, in the same unit."""

    def takes(self, worker: str, mapping: str) -> bool:
        """Whether a worker may be handed leases of a mapping: it is there and runs it, or is of another program that does."""
        return _takes(worker, mapping, self.present, self.foreign_heirs)


def _takes(
    worker: str,
    mapping: str,
    present: Mapping[str, frozenset[str]],
    foreign_heirs: frozenset[tuple[str, str]],
) -> bool:
    return mapping in present.get(worker, ()) or (mapping, worker) in foreign_heirs


def heirs(survey: Survey, worker: str, leases: Iterable[Lease]) -> dict[LeaseKey, str]:
    """Who is to have the leases of a worker that goes; none for a lease whose mapping nobody else runs."""
    loads = dict(survey.loads)
    by_takers: defaultdict[tuple[str, ...], list[Item]] = defaultdict(list)
    for lease in leases:
        others = (name for name in sorted(survey.present) if name != worker)
        takers = tuple(name for name in others if survey.takes(name, lease.mapping))
        by_takers[takers].append(Item(lease.key, survey.weights.get(lease.key, 1.0)))
    found: dict[LeaseKey, str] = {}
    for takers, items in by_takers.items():
        if takers:
            found |= place(items, loads, takers)
    return found


def survey(listing: Listing, sightings: Sightings, failover_time: float) -> Survey:
    """Work it out. `sightings` have the look in them."""
    return _Surveyor(listing, sightings, failover_time).survey()


class _Surveyor:
    def __init__(self, listing: Listing, sightings: Sightings, failover_time: float) -> None:
        self.sightings = sightings
        self.failover_time = failover_time
        self.leases = {lease.key: lease for lease in listing.leases}
        present = sightings.present(failover_time)
        self.workers = [worker for worker in listing.workers if worker.id in present]
        self.present = {worker.id: worker.mappings for worker in self.workers}
        self.foreign_heirs = listing.foreign_heirs
        self.active = {key: lease for key, lease in self.leases.items() if self._is_active(lease)}
        self.weights = _weights(self.active)
        self.loads = dict.fromkeys(sorted(self.present), 0.0)
        self.failing: set[str] = set()
        self.owned: defaultdict[str, list[Lease]] = defaultdict(list)
        self.free: defaultdict[str, list[Lease]] = defaultdict(list)
        self.movable: defaultdict[str, list[Lease]] = defaultdict(list)
        self.claims: defaultdict[str, list[Lease]] = defaultdict(list)
        self.wants: defaultdict[str, list[Lease]] = defaultdict(list)

    def survey(self) -> Survey:
        for key, lease in self.active.items():
            self._sort(key, lease)
        for takers, mappings in self._classes().items():
            self._even_out(takers, mappings)
        return Survey(
            self.leases,
            self.present,
            self.foreign_heirs,
            self.owned,
            self.claims,
            self.wants,
            self.loads,
            self.weights,
        )

    def _is_active(self, lease: Lease) -> bool:
        if lease.checkpoint.finished:
            return False
        if lease.owner or not lease.parents:
            return True
        parents = [self.leases.get((lease.mapping, parent)) for parent in lease.parents]
        # A look may show a row that is new and not yet those of its parents, which were made before it.
        if None in parents and not lease.counter and self.sightings.unchanged(lease.key) <= 0:
            return False
        return all(parent is None or parent.checkpoint.finished for parent in parents)

    def _sort(self, key: LeaseKey, lease: Lease) -> None:
        """Enter a lease as owned, as free, or as both when it is expired, with its load where it is or is bound for."""
        owner, wanted_by = lease.owner, lease.wanted_by
        if self._is_nobodys(lease):
            self.free[lease.mapping].append(lease)
            return
        self.owned[owner].append(lease)
        seen, at = self.sightings.leases[key], self.sightings.at
        if at - seen.since >= self.failover_time:
            self.free[lease.mapping].append(lease)
            self.failing.add(owner)
            return
        bound = wanted_by != owner and _takes(wanted_by, lease.mapping, self.present, self.foreign_heirs)
        bearer = wanted_by if bound else owner
        self.loads[bearer] = self.loads.get(bearer, 0.0) + self.weights[key]
        if not bound and at - seen.moved >= SETTLED * self.failover_time:
            self.movable[lease.mapping].append(lease)

    def _is_nobodys(self, lease: Lease) -> bool:
        return not lease.owner or self.sightings.has_left(lease.owner)

    def _classes(self) -> dict[tuple[str, ...], list[str]]:
        """Mappings that have leases, by the workers that run them."""
        runs: defaultdict[str, list[str]] = defaultdict(list)
        for worker in sorted(self.workers, key=lambda worker: worker.id):
            for mapping in worker.mappings:
                runs[mapping].append(worker.id)
        classes: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for mapping in sorted(self.free.keys() | self.movable.keys()):
            if mapping in runs:
                classes[tuple(runs[mapping])].append(mapping)
        return classes

    def _even_out(self, takers: Sequence[str], mappings: Iterable[str]) -> None:
        mappings = list(mappings)
        free = [lease for mapping in mappings for lease in self.free[mapping]]
        movable = [lease for mapping in mappings for lease in self.movable[mapping]]
        items = [self._item(lease) for lease in free]
        placed = place(items, self.loads, [name for name in takers if name not in self.failing] or takers)
        givers: defaultdict[str, list[tuple[float, LeaseKey]]] = defaultdict(list)
        for lease in movable:
            givers[lease.owner].append((self.weights[lease.key], lease.key))
        if sum(item.weight for item in items) > MANY * sum(self.weights.values()):
            for key, taker in placed.items():
                givers[taker].append((self.weights[key], key))
        loads = {name: self.loads[name] for name in {*takers, *givers}}
        for move in relieve(loads, takers, givers):
            if move.key in placed:
                placed[move.key] = move.taker
            else:
                self.wants[move.taker].append(self.leases[move.key])
        self.loads.update(loads)
        for key, taker in placed.items():
            self.claims[taker].append(self.leases[key])

    def _item(self, lease: Lease) -> Item:
        """What is free, for the worker whose turn it is by now."""
        free_for = self.sightings.unchanged(lease.key) - (
            0.0 if self._is_nobodys(lease) else self.failover_time
        )
        turn = max(0, int(free_for * TURNS / self.failover_time))
        return Item(lease.key, self.weights[lease.key], turn)


def _weights(leases: Mapping[LeaseKey, Lease]) -> dict[LeaseKey, float]:
    """What leases weigh: their loads, in averages, and something for those that are idle."""
    known = [lease.load for lease in leases.values() if lease.load is not None]
    mean = sum(known) / len(known) if known else 0.0
    if mean <= 0.0:
        return dict.fromkeys(leases, 1.0)
    return {
        key: 1.0 if lease.load is None else max(LEAST, lease.load / mean) for key, lease in leases.items()
    }
