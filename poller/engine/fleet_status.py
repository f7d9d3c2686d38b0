"""What one worker shows of its fleet."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from poller.engine.status import FleetStatus, LeaseNote, LeaseStatus, WorkerStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poller.core.sightings import Sightings
    from poller.core.survey import Survey
    from poller.model import Lease, LeaseChanged, Worker


def fleet_status(
    worker: str,
    trouble: str | None,
    survey: Survey | None,
    sightings: Sightings,
    listed: Iterable[Worker],
    history: Iterable[tuple[float, LeaseChanged]],
) -> FleetStatus:
    """The fleet as `survey` has it, which is None before the first look.

    `listed` are the workers that have rows, `history` is what happened to leases of this worker, with Unix times.
    """
    notes = tuple(
        LeaseNote(at, one.mapping, one.shard, one.event, one.other, one.reason) for at, one in history
    )
    if survey is None:
        return FleetStatus(worker, trouble, history=notes)
    leases = tuple(
        LeaseStatus(
            lease.mapping,
            lease.shard,
            lease.owner,
            sightings.unchanged(key),
            lease.load,
            lease.checkpoint.sequence_number,
            lease.wanted_by,
            _waits_for(lease, survey),
        )
        for key, lease in sorted(survey.leases.items())
        if not lease.checkpoint.finished
    )
    owned: defaultdict[str, list[LeaseStatus]] = defaultdict(list)
    for lease in leases:
        owned[lease.owner].append(lease)
    ordered = sorted(listed, key=lambda one: one.id)
    workers = tuple(_worker(one, survey, owned.get(one.id, ())) for one in ordered)
    return FleetStatus(worker, trouble, workers, leases, notes)


def _worker(worker: Worker, survey: Survey, own: Sequence[LeaseStatus]) -> WorkerStatus:
    return WorkerStatus(
        worker.id,
        tuple(sorted(worker.mappings)),
        worker.id in survey.present,
        len(own),
        sum(lease.load or 0.0 for lease in own),
        worker.lag,
    )


def _waits_for(lease: Lease, survey: Survey) -> tuple[str, ...]:
    parents = (survey.leases.get((lease.mapping, parent)) for parent in lease.parents)
    return tuple(parent.shard for parent in parents if parent and not parent.checkpoint.finished)
