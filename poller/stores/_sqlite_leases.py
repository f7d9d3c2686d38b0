"""The verbs of leases inside a transaction of the state file.

A lease is a checkpoint with a row beside it that says whose it is; without that row it is nobody's. All of it is read and
written in one transaction that no other process is in, so a condition is an ordinary comparison here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from poller.core.leases import has_happened
from poller.core.positions import position
from poller.model import Checkpoint, Lease, LeaseKey, Listing, Worker
from poller.stores._sqlite_rows import COLUMNS, KEEP_THE_FURTHEST, ROW, checkpoint_of, checkpoint_row

if TYPE_CHECKING:
    from sqlite3 import Connection

_SELECT = f"""
    SELECT checkpoints.mapping, checkpoints.shard, parents, owner, counter, load, wanted_by, {COLUMNS}
    FROM checkpoints LEFT JOIN leases USING (mapping, shard)
"""


class ListAll(NamedTuple):
    """All leases and workers."""

    def carry_out(self, connection: Connection) -> Listing:
        """Read them."""
        leases = [_lease(row) for row in connection.execute(_SELECT)]
        without = [replace(lease, checkpoint=replace(lease.checkpoint, window="")) for lease in leases]
        rows = connection.execute(
            "SELECT id, mappings, counter, seconds FROM workers LEFT JOIN lags ON worker = id"
        )
        workers = [
            Worker(name, frozenset(json.loads(mappings)), counter, lag or 0.0)
            for name, mappings, counter, lag in rows
        ]
        return Listing(without, workers)


class Beat(NamedTuple):
    """A worker is there."""

    worker: Worker

    def carry_out(self, connection: Connection) -> None:
        """Write its row."""
        name, mappings, counter = self.worker.id, sorted(self.worker.mappings), self.worker.counter
        connection.execute(
            "INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", (name, json.dumps(mappings), counter)
        )
        connection.execute("INSERT OR REPLACE INTO lags VALUES (?, ?)", (name, self.worker.lag))


class Leave(NamedTuple):
    """A worker is gone, if it has not counted on."""

    worker: Worker

    def carry_out(self, connection: Connection) -> None:
        """Remove its row."""
        row = (self.worker.id, self.worker.counter)
        connection.execute("DELETE FROM workers WHERE id = ? AND counter = ?", row)
        connection.execute("DELETE FROM lags WHERE worker NOT IN (SELECT id FROM workers)")


class Add(NamedTuple):
    """A lease for a shard that is new, or parents for one that is known."""

    lease: Lease

    def carry_out(self, connection: Connection) -> None:
        """Write its row."""
        lease = self.lease
        row = checkpoint_row(*lease.key, position(lease.checkpoint), lease.checkpoint)
        connection.execute(f"INSERT OR IGNORE INTO checkpoints VALUES {ROW}", row)
        stored = _find(connection, lease.key)
        if stored:
            _put(connection, replace(stored, parents=lease.parents))


class Want(NamedTuple):
    """Somebody asks for a lease."""

    lease: Lease
    worker: str

    def carry_out(self, connection: Connection) -> bool:
        """Note it, if its owner and who asked before are the same."""
        stored = _find(connection, self.lease.key)
        if stored is None or stored.owner != self.lease.owner:
            return False
        if stored.wanted_by == self.lease.wanted_by:
            _put(connection, replace(stored, wanted_by=self.worker))
        return stored.wanted_by in (self.lease.wanted_by, self.worker)


class Change(NamedTuple):
    """A claim, a renewal or a release: owner and counter change, and the checkpoint, if there is one, moves."""

    lease: Lease
    owner: str
    checkpoint: Checkpoint | None = None
    renews: bool = False
    """The load is new, and a wish stays."""
    load: float | None = None

    def carry_out(self, connection: Connection) -> Lease | None:
        """Change the row, if owner and counter are the same, and return it."""
        lease, checkpoint = self.lease, self.checkpoint
        stored = _find(connection, lease.key)
        if stored is None:
            return None
        if (stored.owner, stored.counter) != (lease.owner, lease.counter):
            return stored if has_happened(stored, lease, self.owner, checkpoint) else None
        changed = replace(stored, owner=self.owner, counter=lease.counter + 1)
        _put(connection, replace(changed, load=self.load) if self.renews else replace(changed, wanted_by=""))
        if checkpoint:
            row = checkpoint_row(*lease.key, position(checkpoint), checkpoint)
            connection.execute(f"INSERT INTO checkpoints VALUES {ROW} {KEEP_THE_FURTHEST}", row)
        return _find(connection, lease.key)


Request = ListAll | Beat | Leave | Add | Want | Change


def _find(connection: Connection, key: LeaseKey) -> Lease | None:
    where = "WHERE checkpoints.mapping = ? AND checkpoints.shard = ?"
    row = connection.execute(f"{_SELECT} {where}", key).fetchone()
    return row and _lease(row)


def _put(connection: Connection, lease: Lease) -> None:
    values = (json.dumps(lease.parents), lease.owner, lease.counter, lease.load, lease.wanted_by)
    connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)", (*lease.key, *values))


def _lease(row: tuple[object, ...]) -> Lease:
    mapping, shard, parents, owner, counter, load, wanted_by, *checkpoint = row
    at = checkpoint_of(*checkpoint)  # type: ignore[arg-type]  # SQLite's columns have no types of ours
    if parents is None:
        return Lease(str(mapping), str(shard), checkpoint=at)
    return Lease(
        str(mapping),
        str(shard),
        tuple(json.loads(str(parents))),
        str(owner),
        int(str(counter)),
        at,
        None if load is None else float(str(load)),
        str(wanted_by),
    )
