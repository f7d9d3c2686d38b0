"""State in memory: for tests, and for mappings that may begin anew with the process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from poller.core.leases import has_happened
from poller.core.positions import position
from poller.model import Lease, Listing
from poller.stores._memory_spool import MemorySpool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.model import Checkpoint, LeaseKey, Worker


class MemoryStore:
    """A `poller.ports.CheckpointStore` and `poller.ports.LeaseStore` that ends with the process."""

    def __init__(self) -> None:
        self.spool = self.jobs = MemorySpool()
        """What waits, and the jobs."""
        self._leases: dict[LeaseKey, Lease] = {}
        self._workers: dict[str, Worker] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore of {len(self._leases)} checkpoints>"

    async def aclose(self) -> None:
        """Nothing to let go of."""

    # --- checkpoints ----------------------------------------------------------------------------------------------------

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        return {lease.shard: lease.checkpoint for lease in self._leases.values() if lease.mapping == mapping}

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        lease = self._leases.get((mapping, shard))
        if lease is None:
            await self.seek(mapping, shard, checkpoint)
            return True
        if not _is_ahead(lease, checkpoint):
            return False
        self._put(replace(lease, checkpoint=checkpoint))
        return True

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._leases.pop((mapping, shard), None)
            return
        position(checkpoint)
        lease = self._leases.get((mapping, shard), Lease(mapping, shard))
        self._put(replace(lease, checkpoint=checkpoint))

    # --- leases ---------------------------------------------------------------------------------------------------------

    async def list(self) -> Listing:
        return Listing(tuple(map(_listed, self._leases.values())), tuple(self._workers.values()))

    async def beat(self, worker: Worker) -> None:
        self._workers[worker.id] = worker

    async def leave(self, worker: Worker) -> None:
        stored = self._workers.get(worker.id)
        if stored and stored.counter == worker.counter:
            del self._workers[worker.id]

    async def add(self, lease: Lease) -> None:
        position(lease.checkpoint)
        stored = self._leases.get(lease.key, Lease(lease.mapping, lease.shard, checkpoint=lease.checkpoint))
        self._put(replace(stored, parents=lease.parents))

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        if self._has_happened(lease, worker):
            return self._leases[lease.key]
        stored = self._same(lease)
        return stored and self._put(replace(stored, owner=worker, counter=lease.counter + 1, wanted_by=""))

    async def want(self, lease: Lease, worker: str) -> bool:
        stored = self._leases.get(lease.key)
        if stored is None or stored.owner != lease.owner:
            return False
        if stored.wanted_by != lease.wanted_by:
            return stored.wanted_by == worker
        self._put(replace(stored, wanted_by=worker))
        return True

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        if self._has_happened(lease, lease.owner, checkpoint):
            return self._leases[lease.key]
        stored = self._same(lease, checkpoint)
        return stored and self._put(replace(stored, counter=lease.counter + 1, load=load))

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        stored = self._same(lease, checkpoint)
        if stored is None:
            return self._has_happened(lease, to, checkpoint)
        self._put(replace(stored, owner=to, counter=lease.counter + 1, wanted_by=""))
        return True

    def _same(self, lease: Lease, checkpoint: Checkpoint | None = None) -> Lease | None:
        """The row of `lease`, if it is still its owner's, with the further one of its checkpoint and `checkpoint`."""
        stored = self._leases.get(lease.key)
        further = checkpoint is not None and (stored is None or _is_ahead(stored, checkpoint))
        if stored is None or (stored.owner, stored.counter) != (lease.owner, lease.counter):
            return None
        return replace(stored, checkpoint=checkpoint) if checkpoint and further else stored

    def _has_happened(self, lease: Lease, owner: str, checkpoint: Checkpoint | None = None) -> bool:
        stored = self._leases.get(lease.key)
        return stored is not None and has_happened(stored, lease, owner, checkpoint)

    def _put(self, lease: Lease) -> Lease:
        self._leases[lease.key] = lease
        return lease


def _is_ahead(lease: Lease, checkpoint: Checkpoint) -> bool:
    return position(checkpoint) >= position(lease.checkpoint)


def _listed(lease: Lease) -> Lease:
    if not lease.checkpoint.window:
        return lease
    return replace(lease, checkpoint=replace(lease.checkpoint, window=""))
