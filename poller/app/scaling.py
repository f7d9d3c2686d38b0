"""How many daemons the work wants: what `/scale` says, for autoscalers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poller.engine.status import DaemonStatus, FleetStatus

#: Seconds of lag that one more worker is worth.
LAG = 60.0
#: The most by which one answer multiplies the workers: a fleet that has just grown needs a while to share.
GROWTH = 2


@dataclass(frozen=True, slots=True)
class Scale:
    """What an autoscaler needs to know of the streams; queues have a length of their own."""

    workers: int
    """Daemons that share the state, this one included."""
    leases: int
    """Shards that can be read, of mappings that somebody runs; more workers than that have nothing to do."""
    lag_seconds: float
    """The age of the oldest record that is not done: of the whole fleet, what the others read as they said it last."""
    lag_records: int
    """Records that this daemon has received and that are not done, of queues too."""
    desired_workers: int
    """As many as there are, or more while records are older than a minute; never more than there are shards, and one where the
    state is not shared."""


def scale(status: DaemonStatus, fleet: FleetStatus | None) -> Scale:
    """Work it out."""
    ages = [shard.iterator_age or 0.0 for mapping in status.mappings for shard in mapping.shards]
    lag = max(ages, default=0.0)
    records = sum(mapping.in_flight_records + mapping.buffered_records for mapping in status.mappings)
    if fleet is None:
        return Scale(1, len(ages), lag, records, 1)
    others = [worker for worker in fleet.workers if worker.present and worker.id != fleet.worker]
    run = {mapping for worker in fleet.workers if worker.present for mapping in worker.mappings}
    workers = 1 + len(others)
    leases = sum(lease.mapping in run and not lease.waits_for for lease in fleet.leases)
    lag = max([lag, *(worker.lag for worker in others)])
    wanted = ceil(workers * min(GROWTH, max(1.0, lag / LAG)))
    return Scale(workers, leases, lag, records, max(1, min(wanted, leases)))
