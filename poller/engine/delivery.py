"""Brings what became of batches to a destination, for as long as it takes.

A batch is given up only when its destination has taken it, or the spool has (law 1). While both are out of reach, whoever
delivers waits and says so; the door's closing ends the wait, with the batch still to be delivered. What is too large for the
destination is the one thing that waiting cannot help: whoever delivers decides what becomes of it.

With a spool behind it, a destination that has failed so many times in a row is left to the `Spooler`, and the batch counts as
delivered. While anything is spooled for it, what comes goes behind that and is not tried here, or it would overtake.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from poller.core.failure import fitted
from poller.core.retry import backoff
from poller.errors import DocumentTooLarge, PollerError
from poller.model import Delivered, DeliveryFailed, Trouble

if TYPE_CHECKING:
    from poller.engine.door import Door
    from poller.engine.health import Health
    from poller.engine.invoker import World
    from poller.engine.spooler import Spooler
    from poller.model import Delivery
    from poller.ports import Destination, Observer


@dataclass(frozen=True, slots=True)
class Overflow:
    """Where what a destination does not take goes instead."""

    spooler: Spooler
    name: str
    """The destination's."""
    attempts: int
    """Tries before that, at least one."""

    @property
    def holds(self) -> bool:
        """Whether something waits there before."""
        return self.spooler.holds(self.name)


@dataclass(frozen=True, slots=True)
class Route:
    """A destination, and where goes what it does not take."""

    destination: Destination
    overflow: Overflow | None = None
    """None where the destination is tried until it does."""


class Site(Protocol):
    """Where deliveries come from: the parts around a reader, or what else invokes for a mapping."""

    @property
    def door(self) -> Door: ...
    @property
    def health(self) -> Health: ...
    @property
    def observer(self) -> Observer: ...
    @property
    def world(self) -> World: ...


class Outlet:
    """The way to one destination, for one worker at a time."""

    def __init__(self, route: Route, site: Site, *, degrades: bool = False) -> None:
        """`degrades` shows the mapping as degraded while this waits: for one that has no shards to say so."""
        self.waiting = ""
        """What it waits for, for `/status`; empty when nothing is in its way."""
        self._destination = route.destination
        self._overflow = route.overflow
        self._health = site.health if degrades else None
        self._door = site.door
        self._observer = site.observer
        self._world = site.world

    async def deliver(self, delivery: Delivery) -> bool:
        """Return True when the destination or the spool has taken it, False when the door closed before.

        Raises DocumentTooLarge, of which nothing is told yet, when the destination never will take it.
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

    async def deliver_or_drop(self, delivery: Delivery) -> bool:
        """As `deliver`, of what is told of a success: without the telling nothing is lost, so what is too large is left out."""
        try:
            return await self.deliver(delivery)
        except DocumentTooLarge as error:
            self.tell_too_large(delivery, error)
            return True

    async def _deliver(self, delivery: Delivery) -> bool:
        overflow, tries = self._overflow, 0
        error: str | None = None
        while True:
            obstacle = ""
            if overflow and (overflow.holds or tries >= overflow.attempts):
                self._check_size(delivery)
                if await overflow.spooler.put(overflow.name, delivery, error or ""):
                    return True
                obstacle = overflow.spooler.obstacle
            pause = backoff(tries, self._world.chance())
            if overflow and obstacle and overflow.holds:
                await self._wait_for_room(delivery, overflow, pause, puts=tries + 1 >= overflow.attempts)
            elif (error := await self._try(delivery, obstacle, pause)) is None:
                return True
            if not self._door.is_open:
                return False
            tries += 1

    async def _wait_for_room(
        self, delivery: Delivery, overflow: Overflow, pause: float, *, puts: bool
    ) -> None:
        """Wait behind what is spooled: to try the destination here would be to overtake that."""
        spooler = overflow.spooler
        self._wait(delivery, spooler.obstacle, spooler.why(overflow.name))
        self._observer.trouble(Trouble(delivery.mapping, self.waiting, pause))
        await self._door.unless_closed(partial(spooler.room, overflow.name, pause, puts=puts))

    async def _try(self, delivery: Delivery, obstacle: str, pause: float) -> str | None:
        """Send once, None when it was taken; else, after the pause that follows, why it was not."""
        try:
            await self._destination.send(delivery)
        except DocumentTooLarge:
            raise
        except PollerError as error:
            self._wait(delivery, obstacle, str(error))
            self._observer.delivery_failed(
                DeliveryFailed(delivery.mapping, delivery.shard, str(error), pause, delivery.succeeded)
            )
            await self._door.unless_closed(partial(anyio.sleep, pause))
            return str(error)
        self._observer.delivered(
            Delivered(
                delivery.mapping, delivery.shard, delivery.records, delivery.condition, delivery.succeeded
            )
        )
        return None

    def _wait(self, delivery: Delivery, obstacle: str, error: str) -> None:
        """Say what for: `obstacle` is what keeps the spool from taking it."""
        kind = "on-success" if delivery.succeeded else "on-failure"
        self.waiting = f"waiting for the {kind} destination{obstacle and f', as {obstacle}'}: {error}"
        if self._health is not None:
            self._health.waits(self, self.waiting)

    def _check_size(self, delivery: Delivery) -> None:
        """Raise DocumentTooLarge for what may not have been tried yet, while something can still be done about it."""
        if self._destination.limit is not None:
            fitted(delivery.document, self._destination.limit)
