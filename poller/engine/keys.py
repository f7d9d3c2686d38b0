"""One batch in flight a key (law 2).

The source already holds back a key whose records are in flight. It stops doing so when a visibility timeout passes that
could not be extended, and offers the same records again while the first batch still runs; this gate makes the second batch
wait for the first. All keys of a batch are taken in one step, so two batches cannot wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterable


class KeyGate:
    """The keys that have a batch in flight."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<KeyGate {len(self._busy)} keys in flight>"

    def try_enter(self, keys: Iterable[str]) -> bool:
        """Take all of `keys` if none has a batch in flight."""
        wanted = set(keys)
        if not self._busy.isdisjoint(wanted):
            return False
        self._busy |= wanted
        return True

    async def enter(self, keys: Iterable[str]) -> None:
        """Take all of `keys`, waiting until none of them has a batch in flight."""
        while not self.try_enter(keys):
            await self._changed.wait()

    def leave(self, keys: Iterable[str]) -> None:
        """Give `keys` back."""
        self._busy.difference_update(keys)
        self._changed.set()
        self._changed = anyio.Event()
