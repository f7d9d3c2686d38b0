"""Whether a mapping takes work in. Whoever waits for something on behalf of new work waits here, so that closing ends it.

The shards of a mapping share its door. A shard that is read under a lease has one of its own behind that: it can be closed
alone, and is closed, by itself, as soon as the lease could be another worker's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Door:
    """Open at first."""

    def __init__(self) -> None:
        self.is_open = True
        self._waits: set[anyio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"<Door {'open' if self.is_open else 'closed'}, {len(self._waits)} wait>"

    def close(self) -> None:
        """Let nothing in; what waits in `unless_closed` gives up."""
        if not self.is_open:
            return  # A thousand lanes close the door that they share, and each would go through all that wait.
        self.is_open = False
        for scope in self._waits:
            scope.cancel()

    def open(self) -> None:
        """Let work in again."""
        self.is_open = True

    async def unless_closed(self, wait: Callable[[], Awaitable[object]]) -> bool:
        """Await `wait()`, or return False as soon as the door closes."""
        if not self.is_open:
            return False
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await wait()
            finally:
                self._waits.discard(scope)
        return not scope.cancelled_caught


class InnerDoor(Door):
    """A door behind another: open while both are, and `fence` says so."""

    def __init__(self, outer: Door, fence: Callable[[], bool]) -> None:
        self._outer = outer
        self._fence = fence
        super().__init__()

    @property
    def is_open(self) -> bool:
        """Asked each time, as a lease ends by time alone."""
        return self._is_open and self._outer.is_open and self._fence()

    @is_open.setter
    def is_open(self, is_open: bool) -> None:
        self._is_open = is_open

    def close(self) -> None:
        self._is_open = False
        for scope in self._waits:
            scope.cancel()

    async def unless_closed(self, wait: Callable[[], Awaitable[object]]) -> bool:
        done = False

        async def inside() -> None:
            nonlocal done
            done = await super(InnerDoor, self).unless_closed(wait)

        return await self._outer.unless_closed(inside) and done
