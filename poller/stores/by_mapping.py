"""Mappings whose leases are in tables of their own, beside those in the state that the daemon has for the others.

The workers are in the state only, so those of one fleet have one state, whatever tables their mappings have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

from poller.errors import StoreError
from poller.model import Listing
from poller.ports import CheckpointStore, Leases, LeaseStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.model import Checkpoint, Lease, Worker


class Own(CheckpointStore, LeaseStore, Protocol):
    """The state."""


class Other(CheckpointStore, Leases, Protocol):
    """The table of one mapping."""


class ByMapping:
    """A `poller.ports.CheckpointStore` and `poller.ports.LeaseStore` over several, by the names of mappings.

    A table that cannot be read does not hide the others: its leases are listed as they were last, and the listing says so. They
    seem to stand still then, and who takes one for expired cannot claim it. Before its first look there is no list at all.
    """

    def __init__(self, own: Own, others: Mapping[str, Other]) -> None:
        self._own = own
        self._others = others
        self._known: dict[str, Listing] = {}

    def __repr__(self) -> str:
        return f"<ByMapping {self._own!r}, {len(self._others)} others>"

    def _of(self, mapping: str) -> Own | Other:
        return self._others.get(mapping, self._own)

    async def aclose(self) -> None:
        """Close all of them."""
        for store in (*self._others.values(), self._own):
            await store.aclose()

    # --- checkpoints ----------------------------------------------------------------------------------------------------

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        return await self._of(mapping).load(mapping)

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        return await self._of(mapping).save(mapping, shard, checkpoint)

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        await self._of(mapping).seek(mapping, shard, checkpoint)

    # --- workers --------------------------------------------------------------------------------------------------------

    async def beat(self, worker: Worker) -> None:
        await self._own.beat(worker)

    async def leave(self, worker: Worker) -> None:
        await self._own.leave(worker)

    # --- leases ---------------------------------------------------------------------------------------------------------

    async def list(self) -> Listing:
        failed: dict[str, StoreError] = {}
        async with anyio.create_task_group() as looks:
            for mapping in self._others:
                looks.start_soon(self._look, mapping, failed)
        for mapping, error in failed.items():
            if mapping not in self._known:
                raise error
        own = await self._own.list()
        leases = [lease for lease in own.leases if lease.mapping not in self._others]
        foreign_heirs: frozenset[tuple[str, str]] = frozenset()
        for mapping, listing in self._known.items():
            # A table may have other mappings, and workers that once had it for their state.
            leases += [lease for lease in listing.leases if lease.mapping == mapping]
            foreign_heirs |= listing.foreign_heirs
        stale = {mapping: str(error) for mapping, error in failed.items()}
        return Listing(leases, own.workers, foreign_heirs, stale)

    async def _look(self, mapping: str, failed: dict[str, StoreError]) -> None:
        try:
            self._known[mapping] = await self._others[mapping].list()
        except StoreError as error:
            failed[mapping] = error

    async def add(self, lease: Lease) -> None:
        await self._of(lease.mapping).add(lease)

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        return await self._of(lease.mapping).claim(lease, worker)

    async def want(self, lease: Lease, worker: str) -> bool:
        return await self._of(lease.mapping).want(lease, worker)

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        return await self._of(lease.mapping).renew(lease, checkpoint, load)

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        return await self._of(lease.mapping).release(lease, checkpoint, to)
