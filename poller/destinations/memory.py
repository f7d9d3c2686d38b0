"""A destination that keeps what it gets in a list: for tests and for trying things out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poller.errors import PollerError
    from poller.model import Delivery


class MemoryDestination:
    """Takes every delivery, or raises `broken` while that is set."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.broken: PollerError | None = None
        self.limit: int | None = None

    async def send(self, delivery: Delivery) -> None:
        if self.broken is not None:
            raise self.broken
        self.deliveries.append(delivery)
