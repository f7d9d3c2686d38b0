"""Carries out what was decided about a batch, and tells what became of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.model import Settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.model import Record
    from poller.ports import Observer, Reader


class Settler:
    """Settles the records of one mapping at its reader."""

    def __init__(self, mapping: str, reader: Reader, observer: Observer) -> None:
        self._mapping = mapping
        self._reader = reader
        self._observer = observer

    async def done(self, records: Sequence[Record]) -> None:
        """Acknowledge records that succeeded or were filtered out."""
        if not records:
            return
        confirmed = await self._reader.ack(records)
        if self._reader.redelivers:
            self._observer.settled(Settled(self._mapping, deleted=confirmed))
        else:
            self._observer.settled(Settled(self._mapping, committed=confirmed))

    async def leave(self, records: Sequence[Record]) -> None:
        """Leave failed records to the source, which offers them again in its own time."""
        if not records:
            return
        await self._reader.release(records, None)
        self._observer.settled(Settled(self._mapping, left=len(records)))

    async def give_back(self, records: Sequence[Record]) -> None:
        """Offer records that no handler saw again at once."""
        if not records:
            return
        await self._reader.release(records, 0.0)
        self._observer.settled(Settled(self._mapping, released=len(records)))
