"""What waits, and the jobs, in memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import TYPE_CHECKING

from poller.model import SpoolTotals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poller.model import Job, SpoolEntry, SpoolKind, SpoolLimits


@dataclass(slots=True)
class _Pile:
    """Entries by their numbers, which is their order."""

    entries: dict[int, SpoolEntry] = field(default_factory=dict)
    size: int = 0

    def add(self, entry: SpoolEntry) -> None:
        self.entries[entry.number] = entry
        self.size += len(entry.body)

    def discard(self, entry: SpoolEntry) -> None:
        del self.entries[entry.number]
        self.size -= len(entry.body)


class _Waiting:
    """What one mapping has in the spool."""

    def __init__(self) -> None:
        self.all = _Pile()
        self.by_kind: defaultdict[str, _Pile] = defaultdict(_Pile)
        self.by_key: dict[tuple[SpoolKind, str], _Pile] = {}
        self.ids: set[tuple[str, str]] = set()

    def add(self, entry: SpoolEntry) -> None:
        self.ids.add((entry.kind, entry.id))
        self.all.add(entry)
        self.by_kind[entry.kind].add(entry)
        self.by_key.setdefault((entry.kind, entry.key), _Pile()).add(entry)

    def discard(self, number: int) -> None:
        entry = self.all.entries.get(number)
        if entry is None:
            return
        self.ids.remove((entry.kind, entry.id))
        self.all.discard(entry)
        self.by_kind[entry.kind].discard(entry)
        of_key = self.by_key[entry.kind, entry.key]
        of_key.discard(entry)
        if not of_key.entries:
            del self.by_key[entry.kind, entry.key]

    def totals(self, wanted: SpoolKind | None) -> list[SpoolTotals]:
        lines = [
            _line(kind, key, pile) for (kind, key), pile in self.by_key.items() if wanted in (None, kind)
        ]
        return sorted(lines, key=lambda line: (line.oldest, line.kind, line.key))


def _line(kind: SpoolKind, key: str, pile: _Pile) -> SpoolTotals:
    entries = pile.entries.values()
    return SpoolTotals(
        kind, key, len(entries), pile.size, oldest=next(iter(entries)).at, newest=next(reversed(entries)).at
    )


class MemorySpool:
    """A `poller.ports.Spool` and a `poller.ports.Jobs` that end with the process."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, _Waiting] = defaultdict(_Waiting)
        self._numbers = count(1)
        self._jobs: dict[str, Job] = {}

    def __repr__(self) -> str:
        return f"<MemorySpool of {sum(len(one.all.entries) for one in self._waiting.values())} entries>"

    async def put(self, entries: Sequence[SpoolEntry], limits: SpoolLimits) -> bool:
        if not entries:
            return True
        waiting = self._waiting[entries[0].mapping]
        fresh: dict[tuple[str, str], SpoolEntry] = {}
        for entry in entries:
            fresh.setdefault((entry.kind, entry.id), entry)
        new = [entry for name, entry in fresh.items() if name not in waiting.ids]
        held = waiting.all
        fits = (
            len(held.entries) + len(new) <= limits.entries
            and held.size + sum(len(entry.body) for entry in new) <= limits.size
        )
        if new and held.entries and not fits:
            return False
        for entry in new:
            waiting.add(replace(entry, number=next(self._numbers)))
        return True

    async def take(
        self, mapping: str, kind: SpoolKind, *, key: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[SpoolEntry]:
        if mapping not in self._waiting:
            return []
        waiting = self._waiting[mapping]
        pile = waiting.by_kind[kind] if key is None else waiting.by_key.get((kind, key), _Pile())
        return list(islice((entry for entry in pile.entries.values() if entry.number > after), limit))

    async def remove(self, mapping: str, numbers: Sequence[int]) -> None:
        if mapping in self._waiting:
            for number in numbers:
                self._waiting[mapping].discard(number)

    async def totals(
        self, mapping: str | None = None, kind: SpoolKind | None = None
    ) -> Mapping[str, Sequence[SpoolTotals]]:
        asked = self._waiting if mapping is None else {mapping} & self._waiting.keys()
        found = {name: self._waiting[name].totals(kind) for name in asked}
        return {name: lines for name, lines in found.items() if lines}

    async def save_job(self, job: Job) -> None:
        self._jobs[job.id] = job

    async def jobs(self) -> Sequence[Job]:
        return list(self._jobs.values())

    async def remove_job(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
