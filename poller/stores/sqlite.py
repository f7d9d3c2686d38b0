"""State in a SQLite file, for one daemon, or for several of one machine that share it: checkpoints.

What else the file keeps is in `_sqlite_leases` and `_spool_table`.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from poller.core.positions import position
from poller.errors import StoreError
from poller.stores._group_commit import GroupCommit
from poller.stores._spool_table import SqliteSpool, Statement
from poller.stores._sqlite_file import UNFIT, damaged, explain, open_file
from poller.stores._sqlite_leases import Add, Beat, Change, Leave, ListAll, Want
from poller.stores._sqlite_leases import Request as LeaseRequest
from poller.stores._sqlite_rows import COLUMNS, KEEP_THE_FURTHEST, ROW, checkpoint_of, checkpoint_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poller.model import Checkpoint, Lease, Listing, Worker

# Every step of a statement lets go of the interpreter lock, and waits up to 5 ms for it when the event loop is busy. One
# statement for many rows makes that a few waits a transaction instead of two a checkpoint. 100 rows of 8 are what the
# oldest SQLite takes.
_ROWS = 100


class _Load(NamedTuple):
    mapping: str


class _Save(NamedTuple):
    mapping: str
    shard: str
    position: str
    checkpoint: Checkpoint


class _Seek(NamedTuple):
    mapping: str
    shard: str
    checkpoint: Checkpoint | None


_Request = _Load | _Save | _Seek | LeaseRequest | Statement


class SqliteStore:
    """A `poller.ports.CheckpointStore` and `poller.ports.LeaseStore` in a file.

    What `save` has returned from survives a kill and a loss of power. A cancelled `save` has happened or not. Unless it is
    opened as shared, one process at a time may use the file, and leases are no more than what they are in memory.
    """

    def __init__(self, path: Path, commits: GroupCommit[_Request]) -> None:
        self.path = path
        self.spool = self.jobs = SqliteSpool(commits.ask)
        """What waits, and the jobs, in the same file."""
        self._commits = commits

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path}: {self.transactions} transactions>"

    @classmethod
    async def open(cls, path: str | Path, patience: float = 1.0, *, shared: bool = False) -> SqliteStore:
        """Open or make the file; waits up to `patience` seconds for another process that is about to let go of it.

        When it is `shared`, every transaction waits so long for those of other processes; file systems of other machines
        do not do. Raises StoreError for a file that cannot be used, and changes nothing in it.
        """
        path = Path(path)
        commits: GroupCommit[_Request] = GroupCommit(
            str(path), partial(_Table, path, patience, shared=shared)
        )
        await commits.open()
        return cls(path, commits)

    @property
    def transactions(self) -> int:
        """How many there were; each that changed something cost one fsync."""
        return self._commits.groups

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        found: Mapping[str, Checkpoint] = await self._commits.ask(_Load(mapping))
        return found

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        moved: bool = await self._commits.ask(_Save(mapping, shard, position(checkpoint), checkpoint))
        return moved

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            position(checkpoint)
        await self._commits.ask(_Seek(mapping, shard, checkpoint))

    # --- leases ---------------------------------------------------------------------------------------------------------

    async def list(self) -> Listing:
        found: Listing = await self._commits.ask(ListAll())
        return found

    async def beat(self, worker: Worker) -> None:
        await self._commits.ask(Beat(worker))

    async def leave(self, worker: Worker) -> None:
        await self._commits.ask(Leave(worker))

    async def add(self, lease: Lease) -> None:
        position(lease.checkpoint)
        await self._commits.ask(Add(lease))

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        return await self._change(Change(lease, worker))

    async def want(self, lease: Lease, worker: str) -> bool:
        wanted: bool = await self._commits.ask(Want(lease, worker))
        return wanted

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        position(checkpoint)
        return await self._change(Change(lease, lease.owner, checkpoint, renews=True, load=load))

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        position(checkpoint)
        return await self._change(Change(lease, to, checkpoint)) is not None

    async def _change(self, change: Change) -> Lease | None:
        row: Lease | None = await self._commits.ask(change)
        return row

    async def aclose(self) -> None:
        await self._commits.aclose()


class _Table:
    """The connection, in its thread."""

    def __init__(self, path: Path, patience: float, *, shared: bool) -> None:
        self._path = path
        self._shared = shared
        self._connection = open_file(path, patience, shared=shared)

    def close(self) -> None:
        self._connection.close()

    def answer(self, requests: Sequence[_Request]) -> Sequence[object]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            answers = self._carry_out(requests)
            self._connection.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):  # SQLite has done so itself after most errors
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise explain(self._path, error, shared=self._shared) from error
            raise
        return answers

    def _carry_out(self, requests: Sequence[_Request]) -> list[object]:
        answers: list[object] = []
        saves: dict[tuple[str, str], _Save] = {}
        for request in requests:
            # One statement holds a shard once: whether the second save moves it depends on the first.
            if saves and (not isinstance(request, _Save) or request[:2] in saves or len(saves) == _ROWS):
                answers += self._save(list(saves.values()))
                saves.clear()
            if isinstance(request, _Save):
                saves[request[:2]] = request
            elif isinstance(request, _Load):
                answers.append(self._load(request.mapping))
            elif isinstance(request, _Seek):
                answers.append(self._seek(request))
            elif isinstance(request, LeaseRequest):
                answers.append(self._change(request))
            else:
                answers.append(request.answer(self._connection))
        if saves:
            answers += self._save(list(saves.values()))
        return answers

    def _save(self, saves: Sequence[_Save]) -> Sequence[object]:
        statement = f"INSERT INTO checkpoints VALUES {', '.join([ROW] * len(saves))} {KEEP_THE_FURTHEST}"
        try:
            cursor = self._connection.execute(
                statement, [value for save in saves for value in checkpoint_row(*save)]
            )
        except UNFIT as error:
            if len(saves) == 1:
                return [_unfit(saves[0], error)]
            return [answer for save in saves for answer in self._save([save])]
        if cursor.rowcount == len(saves):
            return [True] * len(saves)
        return [self._position(save) == save.position for save in saves]

    def _position(self, save: _Save) -> str:
        found: str = self._connection.execute(
            "SELECT position FROM checkpoints WHERE mapping = ? AND shard = ?", save[:2]
        ).fetchone()[0]
        return found

    def _load(self, mapping: str) -> dict[str, Checkpoint] | StoreError:
        rows = self._connection.execute(
            f"SELECT shard, {COLUMNS} FROM checkpoints WHERE mapping = ?", (mapping,)
        )
        try:
            return {shard: checkpoint_of(stored, *values) for shard, stored, *values in rows}
        except (StoreError, TypeError, ValueError) as error:
            return damaged(self._path, f"a checkpoint of {mapping} makes no sense: {error}")

    def _change(self, request: LeaseRequest) -> object:
        try:
            return request.carry_out(self._connection)
        except UNFIT as error:
            return damaged(self._path, f"a lease makes no sense: {error}")

    def _seek(self, request: _Seek) -> StoreError | None:
        mapping, shard, checkpoint = request
        if checkpoint is None:
            for table in ("checkpoints", "leases"):
                where = "WHERE mapping = ? AND shard = ?"
                self._connection.execute(f"DELETE FROM {table} {where}", request[:2])
            return None
        save = _Save(mapping, shard, position(checkpoint), checkpoint)
        try:
            self._connection.execute(
                f"INSERT OR REPLACE INTO checkpoints VALUES {ROW}", checkpoint_row(*save)
            )
        except UNFIT as error:
            return _unfit(save, error)
        return None


def _unfit(save: _Save, error: Exception) -> StoreError:
    return StoreError(f"the checkpoint of {save.mapping} in {save.shard} cannot be stored: {error}")
