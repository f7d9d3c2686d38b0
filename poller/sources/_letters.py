"""What holds failed records: a message of a queue or an object of a bucket, and the box that they lie in.

A letter is taken once in a replay. It is done with when all of its records are, or it is kept: left where it is, out of the way
of this replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Letter:
    """One message or object."""

    id: str
    """The message's id, or the object's key."""
    body: str | bytes
    handle: Any
    """What its box knows it by."""


class Box(Protocol):
    """Where letters come from."""

    @property
    def ended(self) -> bool:
        """True when everything in it was taken, as far as that can be told."""
        ...

    @property
    def cut_short(self) -> bool:
        """True when it has ended although there is more."""
        ...

    @property
    def note(self) -> str:
        """What there is to say of it now: what it waits for, or why it ended early."""
        ...

    async def take(self, limit: int) -> Sequence[Letter]:
        """Up to `limit` letters, after a moment of waiting if there are none; raises `poller.errors.AwsError`."""
        ...

    async def done(self, letters: Sequence[Letter]) -> int:
        """All of their records succeeded; returns how many stay where they are although they should have gone."""
        ...

    async def keep(self, letters: Sequence[Letter]) -> None:
        """They stay where they are."""
        ...
