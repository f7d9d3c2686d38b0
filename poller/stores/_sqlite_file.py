"""The state file: made whole, recognised, refused when it is not ours to write.

A file is only ever added to by the poller that understands it. One that is damaged, belongs to another application or to a
newer poller is left exactly as it is: overwriting it would lose positions, and with them records.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from poller.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: "polr", where SQLite's header says whose file it is.
APPLICATION_ID = 0x706F6C72

#: Script n brings a file from schema n to schema n + 1. A script that was released is never changed: add one.
MIGRATIONS = (
    """
    CREATE TABLE checkpoints (
        mapping TEXT NOT NULL,
        shard TEXT NOT NULL,
        position TEXT NOT NULL,
        sequence_number TEXT NOT NULL,
        sub_sequence_number INTEGER,
        since REAL NOT NULL,
        window TEXT NOT NULL,
        finished INTEGER NOT NULL,
        PRIMARY KEY (mapping, shard)
    );
    """,
    # AUTOINCREMENT gives no number twice: what was read of the spool is never mistaken for what came later. The body is the
    # last column, so that whoever looks at the others never reads it. Triggers keep the totals in the transaction of what they
    # count.
    """
    CREATE TABLE spool (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        mapping TEXT NOT NULL,
        id TEXT NOT NULL,
        key TEXT NOT NULL,
        shard TEXT NOT NULL,
        at REAL NOT NULL,
        error_type TEXT NOT NULL,
        error_message TEXT NOT NULL,
        size INTEGER NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (mapping, kind, id)
    );
    CREATE INDEX spool_by_kind ON spool (mapping, kind);
    CREATE INDEX spool_by_key ON spool (mapping, kind, key);
    CREATE TABLE spool_of_mapping (
        mapping TEXT PRIMARY KEY,
        entries INTEGER NOT NULL,
        size INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE spool_of_key (
        mapping TEXT NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        entries INTEGER NOT NULL,
        size INTEGER NOT NULL,
        oldest REAL NOT NULL,
        newest REAL NOT NULL,
        PRIMARY KEY (mapping, kind, key)
    ) WITHOUT ROWID;
    CREATE TRIGGER spool_put AFTER INSERT ON spool BEGIN
        INSERT INTO spool_of_mapping VALUES (new.mapping, 1, new.size)
            ON CONFLICT (mapping) DO UPDATE SET entries = entries + 1, size = size + excluded.size;
        INSERT INTO spool_of_key VALUES (new.mapping, new.kind, new.key, 1, new.size, new.at, new.at)
            ON CONFLICT (mapping, kind, key) DO UPDATE SET
                entries = entries + 1, size = size + excluded.size, newest = excluded.newest;
    END;
    CREATE TRIGGER spool_remove AFTER DELETE ON spool BEGIN
        UPDATE spool_of_mapping SET entries = entries - 1, size = size - old.size WHERE mapping = old.mapping;
        DELETE FROM spool_of_mapping WHERE mapping = old.mapping AND entries = 0;
        DELETE FROM spool_of_key
            WHERE mapping = old.mapping AND kind = old.kind AND key = old.key AND entries = 1;
        UPDATE spool_of_key SET
                entries = entries - 1,
                size = size - old.size,
                oldest = (SELECT at FROM spool WHERE mapping = old.mapping AND kind = old.kind AND key = old.key
                    ORDER BY number LIMIT 1),
                newest = (SELECT at FROM spool WHERE mapping = old.mapping AND kind = old.kind AND key = old.key
                    ORDER BY number DESC LIMIT 1)
            WHERE mapping = old.mapping AND kind = old.kind AND key = old.key;
    END;
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        state BLOB NOT NULL
    );
    """,
    """
    CREATE TABLE leases (
        mapping TEXT NOT NULL,
        shard TEXT NOT NULL,
        parents TEXT NOT NULL,
        owner TEXT NOT NULL,
        counter INTEGER NOT NULL,
        load REAL,
        wanted_by TEXT NOT NULL,
        PRIMARY KEY (mapping, shard)
    );
    CREATE TABLE workers (
        id TEXT NOT NULL PRIMARY KEY,
        mappings TEXT NOT NULL,
        counter INTEGER NOT NULL
    );
    """,
    # A table of its own, as daemons that share the file may still write the rows of workers as they were.
    """
    CREATE TABLE lags (
        worker TEXT NOT NULL PRIMARY KEY,
        seconds REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)

# One daemon a file. Exclusive also keeps the index of the log in our memory, so that file systems without shared memory do.
EXCLUSIVE = "locking_mode = EXCLUSIVE"
# Several daemons of one machine a file. The index of the log is shared memory between them.
SHARED = "locking_mode = NORMAL"

PRAGMAS = (
    # A commit appends to the log and is one fsync; the file itself is always whole.
    "journal_mode = WAL",
    # NORMAL would save that fsync, and a loss of power the last seconds of checkpoints. Group commit makes it cheap instead.
    "synchronous = FULL",
    # On a Mac, only this reaches the disk. Elsewhere it does nothing.
    "fullfsync = ON",
    "journal_size_limit = 16777216",
)

#: The value is at fault, not the file: the other requests of a transaction go on.
UNFIT = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,
    OverflowError,
)

_CURES = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space, and it goes on by itself",
    sqlite3.SQLITE_READONLY: "not writable: let the user that runs poller write to the file and its directory",
    sqlite3.SQLITE_PERM: "not writable: let the user that runs poller write to the file and its directory",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: let the user that runs poller read and write the file and its directory",
    sqlite3.SQLITE_IOERR: "the disk reports an error: look at the system's log",
    sqlite3.SQLITE_NOTADB: "not a state file of poller, or damaged: name another file, or put back a copy",
    sqlite3.SQLITE_CORRUPT: "damaged: put back a copy, or move it away to begin at the starting positions",
}


def open_file(path: Path, patience: float, *, shared: bool = False) -> sqlite3.Connection:
    """Open the state file at `path` for this process alone, or `shared` with others, making it when there is none.

    Waits up to `patience` seconds for another process to let go of it, and of each transaction where it is shared. Raises
    StoreError with one line that says what to do.
    """
    path = Path(os.path.realpath(path))
    try:
        _check_place(path)
        if not path.exists():
            _create(path)
        _check_access(path)
        _check_owner(path)
        return _connect(path, patience, SHARED if shared else EXCLUSIVE)
    except sqlite3.Error as error:
        raise explain(path, error, shared=shared) from error
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}: let the user that runs poller read and write it in {path.parent}"
        ) from error


def explain(path: Path, error: sqlite3.Error, *, shared: bool = False) -> StoreError:
    """One line for what SQLite says about the file at `path`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # above it are details
    if code == sqlite3.SQLITE_BUSY and shared:
        return StoreError(
            f"{path}: held by {_holder(path)}, which runs alone or has stopped in the middle of a write: end it, or "
            "let all daemons share the file"
        )
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(
            f"{path}: in use by {_holder(path)}: stop it first, or give each daemon a file of its own"
        )
    cure = _CURES.get(code)
    return StoreError(f"{path}: {cure} ({error})" if cure else f"{path}: {error}")


def damaged(path: Path, how: str) -> StoreError:
    """The error for a file whose content cannot be ours."""
    return StoreError(f"{path}: {_CURES[sqlite3.SQLITE_CORRUPT]} ({how})")


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreError(
            f"{path}: there is no directory {path.parent}: create it, writable for the user that runs poller"
        )
    size = _size(path)
    if size is not None and not path.is_file():
        raise StoreError(f"{path}: not a regular file: name a file")
    # We never leave an empty file, and SQLite would take one for new and delete the log that belongs to it.
    if size == 0:
        raise damaged(path, "it is empty")
    if size is None and _size(Path(f"{path}-wal")):
        raise damaged(path, "it is gone, but its log, the -wal file, is there")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _create(path: Path) -> None:
    """Make a whole, empty state file appear at `path` in one step, readable by its owner only."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        with closing(sqlite3.connect(name, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection, 0)
        _put_in_place(name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _put_in_place(name: str, path: Path) -> None:
    try:
        os.link(name, path)
    except FileExistsError:
        return  # another process was faster; the lock will tell which of us goes on
    except OSError:
        os.rename(name, path)  # a file system without hard links


def _check_access(path: Path) -> None:
    """SQLite would open a file that it may not write, and fail on it later with a riddle."""
    for place in (path, path.parent):
        if not os.access(place, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise StoreError(f"{path}: {_CURES[sqlite3.SQLITE_READONLY]}")


def _check_owner(path: Path) -> None:
    """Refuse a file of another application without taking a lock or leaving a trace in it.

    It is not read by hand: closing any descriptor of a file drops all of a process's locks on it, those of SQLite included.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        if owner != APPLICATION_ID:
            raise StoreError(f"{path}: a file of another application: name another one")
        _check_version(path, connection)


def _check_version(path: Path, connection: sqlite3.Connection) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path}: written by a newer poller (schema {version}, this one knows {len(MIGRATIONS)}): "
            "run that one, or name another file"
        )
    if version < 1:
        raise damaged(path, f"schema {version}")
    return version


def _connect(path: Path, patience: float, locking: str) -> sqlite3.Connection:
    # rw: a file that vanished since it was checked must not come back empty.
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None)
    try:
        for pragma in (locking, *PRAGMAS):
            connection.execute(f"PRAGMA {pragma}")
        if (found := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise damaged(path, " ".join(found.split()))
        _bring_up_to_date(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(path: Path, connection: sqlite3.Connection) -> None:
    """Migrate in one transaction, in which nobody else can; it also shows that the file can be written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        _migrate(connection, _check_version(path, connection))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    for step in MIGRATIONS[version:]:
        for statement in _statements(step):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    """One after the other: executescript would commit first. A trigger has semicolons of its own."""
    statement = ""
    for part in script.rstrip().removesuffix(";").split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _holder(path: Path) -> str:
    """Who holds a lock on `path`, as far as the kernel tells."""
    try:
        status = path.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return "another process"
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids = {int(fields[4]) for fields in map(str.split, locks) if fields[1] == "POSIX" and fields[5] == file}
    if os.getpid() in pids:
        return "this process itself"
    # Another pid namespace shows 0.
    return next((f"process {pid}" for pid in pids if pid > 0), "another process")
