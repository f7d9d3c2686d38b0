"""Brings what became of batches to a destination, for as long as it takes.

A batch is given up only when its destination has taken it (law 1). While that is down, whoever delivers waits and says so; the
door's closing ends the wait, with the batch still to be delivered. What is too large for the destination is the one thing that
waiting cannot help: whoever delivers decides what becomes of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio

from poller.core.retry import backoff
from poller.errors import DocumentTooLarge, PollerError
from poller.model import Delivered, DeliveryFailed

if TYPE_CHECKING:
    from poller.engine.parts import Parts
    from poller.model import Delivery
    from poller.ports import Destination


class Outlet:
    """The way to one destination, for one worker at a time."""

    def __init__(self, destination: Destination, parts: Parts, *, degrades: bool = False) -> None:
        """`degrades` shows the mapping as degraded while this waits: for one that has no shards to say so."""
        self.waiting = ""
        """What it waits for, for `/status`; empty when nothing is in its way."""
        self._destination = destination
        self._health = parts.health if degrades else None
        self._door = parts.door
        self._observer = parts.observer
        self._world = parts.world

    async def deliver(self, delivery: Delivery) -> bool:
        """Return True when the destination has taken it, False when the door closed before.

        Raises DocumentTooLarge, of which nothing is told yet, when it never will take it.
        """
        try:
            return await self._deliver(delivery)
        finally:
            self.waiting = ""
            if self._health is not None:
                # A mapping that is paused or stopping is not running again.
                well = self._health.recovered if self._door.is_open else self._health.forget
                well(self)

    def tell_too_large(self, delivery: Delivery, error: DocumentTooLarge) -> None:
        """Tell that `delivery` is not tried again."""
        self._observer.delivery_failed(
            DeliveryFailed(delivery.mapping, delivery.shard, str(error), None, delivery.succeeded)
        )

    async def _deliver(self, delivery: Delivery) -> bool:
        tries = 0
        while not await self._try(delivery, tries):
            if not self._door.is_open:
                return False
            tries += 1
        self._observer.delivered(
            Delivered(
                delivery.mapping, delivery.shard, delivery.records, delivery.condition, delivery.succeeded
            )
        )
        return True

    async def _try(self, delivery: Delivery, tries: int) -> bool:
        """Send once; when that fails, the pause that follows."""
        try:
            await self._destination.send(delivery)
        except DocumentTooLarge:
            raise
        except PollerError as error:
            pause = backoff(tries, self._world.chance())
            kind = "on-success" if delivery.succeeded else "on-failure"
            self.waiting = f"waiting for the {kind} destination: {error}"
            self._observer.delivery_failed(
                DeliveryFailed(delivery.mapping, delivery.shard, str(error), pause, delivery.succeeded)
            )
            if self._health is not None:
                self._health.waits(self, self.waiting)
            await self._door.unless_closed(partial(anyio.sleep, pause))
            return False
        return True
