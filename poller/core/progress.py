"""The commit position over batches that finish in any order.

Positions are tracked in the order of the shard. A position is safe once it and everything tracked before it
is resolved: the checkpoint is a contiguous prefix, so it never passes a batch that is still open, and it
never moves backwards.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

P = TypeVar("P")


class Token(Generic[P]):
    """Stands for one tracked position until it is resolved."""

    __slots__ = ("position", "resolved")

    def __init__(self, position: P) -> None:
        self.position = position
        self.resolved = False


class Progress(Generic[P]):
    """Follows the positions of one shard; holds those from the oldest open one onwards."""

    __slots__ = ("_entries", "_position")

    def __init__(self) -> None:
        self._entries: deque[Token[P]] = deque()
        self._position: P | None = None

    @property
    def position(self) -> P | None:
        """The highest safe position; None before there is one."""
        return self._position

    def __len__(self) -> int:
        return len(self._entries)

    def track(self, position: P) -> Token[P]:
        """Open `position`, the last one of a batch; it must come after all that were tracked before."""
        token = Token(position)
        self._entries.append(token)
        return token

    def resolve(self, token: Token[P]) -> P | None:
        """Close `token` and return the new highest safe position, None when it stays.

        Closing a token twice is harmless.
        """
        token.resolved = True
        moved = None
        # Each entry is appended once and popped once, so a call is O(1) over the life of the shard.
        while self._entries and self._entries[0].resolved:
            moved = self._entries.popleft()
        if moved is None:
            return None
        self._position = moved.position
        return self._position
