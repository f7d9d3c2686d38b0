"""A destination that keeps what it gets in a list: for tests and for trying things out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poller.errors import PollerError
    from poller.model import Failure


class MemoryDestination:
    """Takes every failure, or raises `broken` while that is set."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.broken: PollerError | None = None

    async def send(self, failure: Failure) -> None:
        if self.broken is not None:
            raise self.broken
        self.failures.append(failure)
