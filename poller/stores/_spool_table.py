"""What waits in the state file: deliveries and parked records, and the state of long jobs.

Running totals are kept by triggers, in the transaction of what they count: a `put` looks at one line to know whether there is
room, `totals` at one line for each key, and neither can be at odds with the entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from poller.errors import StoreError
from poller.model import Job, SpoolEntry, SpoolTotals
from poller.stores._sqlite_file import UNFIT

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from poller.model import SpoolKind, SpoolLimits

_PUT = """
    INSERT INTO spool (kind, mapping, id, key, shard, at, error_type, error_message, size, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (mapping, kind, id) DO NOTHING
"""
_TAKE = "SELECT kind, mapping, id, key, shard, at, body, error_type, error_message, number FROM spool"
_TOTALS = "SELECT mapping, kind, key, entries, size, oldest, newest FROM spool_of_key"


class Statement(Protocol):
    """Something to be done in the transaction that is open."""

    def answer(self, connection: sqlite3.Connection) -> object:
        """Do it wholly or, when what it holds cannot be stored, not at all, and return the StoreError of that."""
        ...


class Put(NamedTuple):
    """See `poller.ports.Spool.put`."""

    entries: Sequence[SpoolEntry]
    limits: SpoolLimits

    def answer(self, connection: sqlite3.Connection) -> bool | StoreError:
        if not self.entries:
            return True
        connection.execute("SAVEPOINT put")
        before = self._held(connection)
        try:
            connection.executemany(_PUT, map(_row, self.entries))
        except UNFIT as error:
            _undo(connection)
            return StoreError(f"what {self.entries[0].mapping} spools cannot be stored: {error}")
        after = self._held(connection)
        if before[0] and after != before and not self._fits(*after):
            _undo(connection)
            return False
        connection.execute("RELEASE put")
        return True

    def _held(self, connection: sqlite3.Connection) -> tuple[int, int]:
        found: tuple[int, int] | None = connection.execute(
            "SELECT entries, size FROM spool_of_mapping WHERE mapping = ?", (self.entries[0].mapping,)
        ).fetchone()
        return found or (0, 0)

    def _fits(self, entries: int, size: int) -> bool:
        return entries <= self.limits.entries and size <= self.limits.size


class Take(NamedTuple):
    """See `poller.ports.Spool.take`."""

    mapping: str
    kind: SpoolKind
    key: str | None
    after: int
    limit: int

    def answer(self, connection: sqlite3.Connection) -> list[SpoolEntry]:
        wanted, values = "mapping = ? AND kind = ?", [self.mapping, self.kind]
        if self.key is not None:
            wanted, values = f"{wanted} AND key = ?", [*values, self.key]
        rows = connection.execute(
            f"{_TAKE} WHERE {wanted} AND number > ? ORDER BY number LIMIT ?",
            (*values, self.after, self.limit),
        )
        return [SpoolEntry(*row) for row in rows]


class Remove(NamedTuple):
    """See `poller.ports.Spool.remove`."""

    mapping: str
    numbers: Sequence[int]

    def answer(self, connection: sqlite3.Connection) -> None:
        rows = [(number, self.mapping) for number in self.numbers]
        connection.executemany("DELETE FROM spool WHERE number = ? AND mapping = ?", rows)


class Totals(NamedTuple):
    """See `poller.ports.Spool.totals`."""

    mapping: str | None
    kind: SpoolKind | None

    def answer(self, connection: sqlite3.Connection) -> dict[str, list[SpoolTotals]]:
        asked = {"mapping": self.mapping, "kind": self.kind}
        conditions = [f"{column} = :{column}" for column, value in asked.items() if value is not None]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        found: dict[str, list[SpoolTotals]] = {}
        for mapping, *line in connection.execute(f"{_TOTALS} {where} ORDER BY oldest, kind, key", asked):
            found.setdefault(mapping, []).append(SpoolTotals(*line))
        return found


class SaveJob(NamedTuple):
    """See `poller.ports.Jobs.save_job`."""

    job: Job

    def answer(self, connection: sqlite3.Connection) -> StoreError | None:
        statement = (
            "INSERT INTO jobs (id, state) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state"
        )
        try:
            connection.execute(statement, (self.job.id, self.job.state))
        except UNFIT as error:
            return StoreError(f"job {self.job.id!r} cannot be stored: {error}")
        return None


class ListJobs(NamedTuple):
    """See `poller.ports.Jobs.jobs`."""

    def answer(self, connection: sqlite3.Connection) -> list[Job]:
        return [Job(*row) for row in connection.execute("SELECT id, state FROM jobs ORDER BY number")]


class RemoveJob(NamedTuple):
    """See `poller.ports.Jobs.remove_job`."""

    job_id: str

    def answer(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM jobs WHERE id = ?", (self.job_id,))


class SqliteSpool:
    """A `poller.ports.Spool` and a `poller.ports.Jobs` in the state file, through the thread that has it open."""

    def __init__(self, ask: Callable[[Statement], Awaitable[Any]]) -> None:
        self._ask = ask

    def __repr__(self) -> str:
        return "<SqliteSpool>"

    async def put(self, entries: Sequence[SpoolEntry], limits: SpoolLimits) -> bool:
        taken: bool = await self._ask(Put(entries, limits))
        return taken

    async def take(
        self, mapping: str, kind: SpoolKind, *, key: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[SpoolEntry]:
        found: Sequence[SpoolEntry] = await self._ask(Take(mapping, kind, key, after, limit))
        return found

    async def remove(self, mapping: str, numbers: Sequence[int]) -> None:
        await self._ask(Remove(mapping, numbers))

    async def totals(
        self, mapping: str | None = None, kind: SpoolKind | None = None
    ) -> Mapping[str, Sequence[SpoolTotals]]:
        found: Mapping[str, Sequence[SpoolTotals]] = await self._ask(Totals(mapping, kind))
        return found

    async def save_job(self, job: Job) -> None:
        await self._ask(SaveJob(job))

    async def jobs(self) -> Sequence[Job]:
        found: Sequence[Job] = await self._ask(ListJobs())
        return found

    async def remove_job(self, job_id: str) -> None:
        await self._ask(RemoveJob(job_id))


def _row(entry: SpoolEntry) -> tuple[object, ...]:
    return (
        entry.kind,
        entry.mapping,
        entry.id,
        entry.key,
        entry.shard,
        entry.at,
        entry.error_type,
        entry.error_message,
        len(entry.body),
        entry.body,
    )


def _undo(connection: sqlite3.Connection) -> None:
    connection.execute("ROLLBACK TO put")
    connection.execute("RELEASE put")
