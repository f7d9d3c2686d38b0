"""The row that says to the others that a worker is there, and which mappings it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from poller.core.leases import RENEWALS
from poller.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.engine.lease_table import LeaseTable
    from poller.model import Worker


class Presence:
    """Beats until it is cancelled, and at once when the mappings change. The row stays until `leave`."""

    def __init__(
        self, worker: Worker, table: LeaseTable, failover_time: float, lag: Callable[[], float]
    ) -> None:
        self.worker = worker
        self._table = table
        self._pause = failover_time / RENEWALS
        self._lag = lag
        # The mappings of the last beat that arrived.
        self._known_for: frozenset[str] = frozenset()
        self._arrived = anyio.Event()
        self._changed = anyio.Event()
        self._beating = anyio.Lock()

    def runs(self, mappings: frozenset[str]) -> None:
        """These are the mappings from now on."""
        if mappings != self.worker.mappings:
            self.worker = replace(self.worker, mappings=mappings)
            self._changed.set()

    async def beat(self) -> None:
        """Say it again and again."""
        while True:
            async with self._beating:
                self._changed = anyio.Event()
                worker = self.worker = replace(self.worker, counter=self.worker.counter + 1, lag=self._lag())
                try:
                    await self._table.store.beat(worker)
                except StoreError as error:
                    self._table.fails("beat", error)
                else:
                    self._table.works("beat", "other")
                    self._known_for = worker.mappings
                    self._arrived.set()
                    self._arrived = anyio.Event()
            with anyio.move_on_after(self._pause):
                await self._changed.wait()

    async def withdrawal(self, mapping: str) -> None:
        """Return when the others can know that this worker does not run `mapping` any more."""
        while mapping in self._known_for - self.worker.mappings:
            await self._arrived.wait()

    async def rest(self) -> None:
        """Return between two beats. Who leaves names its last one: what became of one that was cut short would not be known."""
        async with self._beating:
            pass

    async def leave(self) -> None:
        """Remove the row, if the table can be used."""
        await self._table.attempt(self._table.store.leave, self.worker)
