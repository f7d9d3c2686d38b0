"""Who is to have the leases that a worker gives back as it goes, or as a mapping of it is withdrawn.

It names them, so that what it gives back need not be found free and be shared out by several looks. What is handed to it
meanwhile, by those that have not heard yet, it gives back as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from poller.core.survey import heirs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.core.survey import Survey
    from poller.engine.lease_table import LeaseTable
    from poller.engine.presence import Presence
    from poller.model import Lease, LeaseKey, Listing, Worker

#: Seconds that a stop waits for the table, and for others that go.
PATIENCE = 1.0
#: Seconds between two looks for what may still come.
PAUSE = 0.25


class Succession:
    """What one worker leaves to the others."""

    def __init__(
        self,
        table: LeaseTable,
        presence: Presence,
        held: Callable[[], Sequence[Lease]],
        surveyed: Callable[[Listing, float], Survey],
    ) -> None:
        """`held` returns its leases, `surveyed` what a listing comes to that was asked for at a time."""
        self._table = table
        self._presence = presence
        self._held = held
        self._surveyed = surveyed
        # Nobody is for leaving it free.
        self._heirs: dict[LeaseKey, str] = {}
        self._choosing = anyio.Lock()

    async def heir(self, lease: Lease) -> str:
        """Who is to have a lease whose mapping was withdrawn; empty for whoever finds it free."""
        with anyio.move_on_after(PATIENCE):
            async with self._choosing:
                if lease.key not in self._heirs:
                    await self._choose(lease.mapping)
        return self._heirs.pop(lease.key, "")

    def forget(self, key: LeaseKey) -> None:
        """That lease is not held any more."""
        self._heirs.pop(key, None)

    async def _choose(self, mapping: str) -> None:
        # Others have to know of the withdrawal first: of two that go at a time one sees that the other does.
        await self._presence.withdrawal(mapping)
        asked = anyio.current_time()
        listing = await self._table.attempt(self._table.store.list)
        if listing is not None:
            me = self._presence.worker
            withdrawn = [lease for lease in self._held() if lease.mapping not in me.mappings]
            found = heirs(self._surveyed(listing, asked), me.id, withdrawn)
            self._heirs = dict.fromkeys((lease.key for lease in withdrawn), "") | found

    async def hand_on(self, known: Sequence[Worker]) -> None:
        """Give back what others have handed to this worker while it went, and wait a little for what may still come: what it
        had asked for, and from others of those `known` that go."""
        me, store, attempt = self._presence.worker.id, self._table.store, self._table.attempt
        ran = {one.id for one in known if one.mappings} - {me}
        with anyio.move_on_after(PATIENCE):
            while (listing := await attempt(store.list)) is not None:
                for lease in listing.leases:
                    if lease.owner == me and (row := await attempt(store.claim, lease, me)):
                        await attempt(store.release, row, row.checkpoint)
                others_go = any(one.id in ran and not one.mappings for one in listing.workers)
                if not others_go and all(lease.wanted_by != me for lease in listing.leases):
                    return
                await anyio.sleep(PAUSE)
