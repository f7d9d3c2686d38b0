"""The state file: how it is made, and which files are refused and left as they are."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from poller.errors import StoreError
from poller.model import Checkpoint, Job, Lease, SpoolEntry, SpoolLimits
from poller.stores import _sqlite_file
from poller.stores.sqlite import SqliteStore
from tests.adapters.sqlite_files import a_state_file, cut_in_half, names, opened, put, refusal, statement

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

NOBODY = 65534
AN_ENTRY = SpoolEntry("delivery", "clicks", "id-1", "arn:aws:sqs:eu-west-1:1:failed", "shard-0", 1.5, b"{}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poller.db"


# --- making the file ----------------------------------------------------------------------------------------------------


async def test_a_new_file_is_its_owners_alone_and_nothing_lies_beside_it_afterwards(path: Path):
    async with opened(path) as store:
        await store.save("clicks", "shard-1", Checkpoint("1"))
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["with space.db", "q?mode=ro#x%20.db", "ümläut.db", ":memory:"])
async def test_any_file_name_will_do(tmp_path: Path, name: str):
    await a_state_file(tmp_path / name)
    assert names(tmp_path) == [name]


async def test_a_file_system_without_hard_links_will_do(path: Path, monkeypatch: pytest.MonkeyPatch):
    def link(source: str, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    await a_state_file(path)
    assert names(path.parent) == [path.name]


async def test_of_two_that_make_the_file_at_the_same_time_one_wins(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    await a_state_file(path)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    async with opened(path) as store:
        assert await store.load("clicks") == {"shard-0": Checkpoint("1")}


async def test_a_commit_reaches_the_disk_before_it_is_answered(path: Path):
    with closing(_sqlite_file.open_file(path, 0)) as connection:
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "locking_mode", "application_id", "user_version")
        }
    full = 2
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": full,
        "locking_mode": "exclusive",
        "application_id": _sqlite_file.APPLICATION_ID,
        "user_version": len(_sqlite_file.MIGRATIONS),
    }


# --- files that are refused ---------------------------------------------------------------------------------------------


async def test_a_missing_directory_is_named(tmp_path: Path):
    line = await refusal(tmp_path / "var" / "poller.db")
    assert f"there is no directory {tmp_path / 'var'}: create it" in line


async def test_a_directory_is_not_a_file(tmp_path: Path):
    (tmp_path / "poller.db").mkdir()
    assert "not a regular file" in await refusal(tmp_path / "poller.db")


@contextmanager
def as_nobody(*files: Path, mode: int = 0o444) -> Iterator[Path]:
    """A directory with copies of `files` that the user we are for the moment may not write; root may write everywhere."""
    place = Path(tempfile.mkdtemp())
    for file in files:
        Path(shutil.copy(file, place)).chmod(mode)
    place.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield place
    finally:
        if root:
            os.seteuid(0)
        place.chmod(0o755)
        shutil.rmtree(place)


async def test_a_directory_that_cannot_be_written_is_refused():
    with as_nobody() as place:
        line = await refusal(place / "poller.db")
    assert f"Permission denied: let the user that runs poller read and write it in {place}" in line


@pytest.mark.parametrize("mode", [0o444, 0o666])
async def test_a_file_that_cannot_be_written_or_lies_where_its_log_cannot_is_refused(path: Path, mode: int):
    await a_state_file(path)
    with as_nobody(path, mode=mode) as place:
        line = await refusal(place / path.name)
    assert "not writable: let the user that runs poller write to the file and its directory" in line


async def test_a_text_file_is_refused(path: Path):
    put(path, b"[daemon]\n" * 1000)
    assert "not a state file of poller, or damaged: name another file, or put back a copy" in await refusal(
        path
    )


async def test_the_database_of_another_application_is_refused(path: Path):
    statement(path, "CREATE TABLE checkpoints (x); INSERT INTO checkpoints VALUES (1);")
    assert "a file of another application: name another one" in await refusal(path)


async def test_the_file_of_a_newer_poller_is_refused(path: Path):
    await a_state_file(path)
    known = len(_sqlite_file.MIGRATIONS)
    statement(path, f"PRAGMA user_version = {known + 1}")
    line = await refusal(path)
    assert f"written by a newer poller (schema {known + 1}, this one knows {known}): run that one" in line


async def test_the_file_of_a_newer_poller_that_was_killed_is_refused(path: Path, tmp_path: Path):
    await a_state_file(path)
    left = tmp_path / "left" / "poller.db"
    os.mkdir(left.parent)
    with closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute("PRAGMA user_version = 99")
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
    with pytest.raises(StoreError, match="written by a newer poller"):
        await SqliteStore.open(left, patience=0)
    with closing(sqlite3.connect(left)) as newer:
        assert newer.execute("PRAGMA user_version").fetchone() == (99,)
        assert newer.execute("SELECT count(*) FROM checkpoints").fetchone() == (1,)


async def test_a_schema_that_never_was_is_refused(path: Path):
    await a_state_file(path)
    statement(path, "PRAGMA user_version = 0")
    assert "damaged" in await refusal(path)


async def test_an_empty_file_is_refused_since_it_held_positions_once(path: Path):
    put(path, b"")
    assert "damaged: put back a copy, or move it away to begin at the starting positions (it is empty)" in (
        await refusal(path)
    )


async def test_a_log_without_its_file_is_refused(path: Path):
    put(Path(f"{path}-wal"), b"checkpoints")
    assert "it is gone, but its log, the -wal file, is there" in await refusal(path)


async def test_a_file_that_was_cut_off_is_refused(path: Path):
    await a_state_file(path, shards=500)
    cut_in_half(path)
    assert "damaged" in await refusal(path)


async def test_a_file_with_overwritten_pages_is_refused(path: Path):
    await a_state_file(path, shards=500)
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096))
    assert "damaged" in await refusal(path)


async def test_a_checkpoint_that_makes_no_sense_harms_its_mapping_alone(path: Path):
    await a_state_file(path)
    statement(path, "UPDATE checkpoints SET sequence_number = '9', mapping = 'orders'")
    async with opened(path) as store:
        await store.save("clicks", "shard-1", Checkpoint("1"))
        with pytest.raises(StoreError, match="a checkpoint of orders makes no sense: 9 is not at"):
            await store.load("orders")
        assert await store.load("clicks") == {"shard-1": Checkpoint("1")}


async def test_an_older_file_is_brought_up_to_date_with_what_it_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    await a_state_file(path)
    newer = (*_sqlite_file.MIGRATIONS, "CREATE TABLE later (shard TEXT);")
    monkeypatch.setattr(_sqlite_file, "MIGRATIONS", newer)
    async with opened(path) as store:
        assert await store.load("clicks") == {"shard-0": Checkpoint("1")}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM later").fetchall() == []
        assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)


@pytest.mark.parametrize("schema", range(1, len(_sqlite_file.MIGRATIONS)))
async def test_a_file_of_every_older_schema_is_brought_up_to_date_and_can_do_what_a_new_one_can(
    path: Path, monkeypatch: pytest.MonkeyPatch, schema: int
):
    with monkeypatch.context() as patched:
        patched.setattr(_sqlite_file, "MIGRATIONS", _sqlite_file.MIGRATIONS[:schema])
        await a_state_file(path)
    async with opened(path) as store:
        assert await store.load("clicks") == {"shard-0": Checkpoint("1")}
        assert await store.spool.put([AN_ENTRY], SpoolLimits(10, 1000))
        await store.jobs.save_job(Job("a", b"{}"))
    async with opened(path) as store:
        assert await store.spool.take("clicks", "delivery") == [replace(AN_ENTRY, number=1)]
        assert await store.jobs.jobs() == [Job("a", b"{}")]
        assert (await store.list()).leases == [Lease("clicks", "shard-0", checkpoint=Checkpoint("1"))]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch):
    await a_state_file(path)
    with monkeypatch.context() as patched:
        broken = (*_sqlite_file.MIGRATIONS, "CREATE TABLE later (shard TEXT); SELECT nonsense;")
        patched.setattr(_sqlite_file, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="nonsense"):
            await SqliteStore.open(path, patience=0)
    async with opened(path) as store:
        assert await store.load("clicks") == {"shard-0": Checkpoint("1")}
