"""What is particular to the SQLite store: other processes, kills, groups, disks that fail."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from poller.errors import StoreError
from poller.model import Checkpoint
from poller.stores import _sqlite_file
from poller.stores.sqlite import SqliteStore
from tests.adapters.sqlite_files import opened, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poller.db"


# --- other processes ----------------------------------------------------------------------------------------------------

HOLDING = """
import anyio, sys
from poller.stores.sqlite import SqliteStore
async def main():
    store = await SqliteStore.open(sys.argv[1])
    print("open", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.read)
anyio.run(main)
"""

SAVING = """
import anyio, itertools, sys
from poller.model import Checkpoint
from poller.stores.sqlite import SqliteStore
async def save(store, shard, first):
    for number in itertools.count(first):
        await store.save("clicks", shard, Checkpoint(str(number)))
        print(shard, number, flush=True)
async def main():
    store = await SqliteStore.open(sys.argv[1])
    loaded = await store.load("clicks")
    async with anyio.create_task_group() as tasks:
        for shard in "abcd":
            tasks.start_soon(save, store, shard, int(loaded[shard].sequence_number) + 1 if loaded else 1)
anyio.run(main)
"""


@contextmanager
def child(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
async def test_a_second_daemon_is_refused_until_the_first_has_gone(path: Path):
    with child(HOLDING, path) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        line = await refusal(path)
        # Not every file system and system tells who it is.
        assert (
            f"in use by process {process.pid}: stop it first" in line or "in use by another process" in line
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
    async with opened(path) as store:
        assert await store.load("clicks") == {}


async def test_a_second_store_in_the_same_process_is_refused_and_the_first_keeps_its_lock(path: Path):
    async with opened(path) as store:
        # Twice: the second line would differ if the first attempt had dropped the lock. (Nor does the test read the file.)
        for _ in range(2):
            with pytest.raises(
                StoreError, match=r"in use by (this process itself|another process): stop it first"
            ):
                await SqliteStore.open(path, patience=0)
        assert await store.save("clicks", "shard-1", Checkpoint("1"))


async def test_who_holds_the_file_is_not_guessed(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "")
    async with opened(path):
        with pytest.raises(StoreError, match="in use by another process: stop it first"):
            await SqliteStore.open(path, patience=0)
    assert _sqlite_file._holder(path.with_suffix(".gone")) == "another process"


@pytest.mark.slow
async def test_what_was_saved_survives_kill_9_at_any_moment(path: Path):
    for lines in (1, 7, 50, 211, 400):
        with child(SAVING, path) as process:
            assert process.stdout
            printed = [process.stdout.readline() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            # What it wrote to the pipe before it died counts too, but for a line that was cut off.
            printed += process.stdout.readlines()
        promised: dict[str, int] = {}
        for line in printed:
            if line.endswith("\n"):
                shard, number = line.split()
                promised[shard] = int(number)
        assert len(printed) >= lines
        async with opened(path) as store:
            held = await store.load("clicks")
        assert all(int(held[shard].sequence_number) >= number for shard, number in promised.items())


# --- groups and trouble -------------------------------------------------------------------------------------------------


async def test_a_thousand_saves_at_a_time_cost_few_transactions(path: Path):
    async with opened(path) as store:
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(store.save, "clicks", f"shard-{number}", Checkpoint("1"))
        assert len(await store.load("clicks")) == 1000
        assert store.transactions <= 20
        assert repr(store) == f"<SqliteStore {path}: {store.transactions} transactions>"


async def test_a_value_that_cannot_be_stored_harms_no_other_in_its_group(path: Path):
    refused: list[str] = []

    async def save(store: SqliteStore, shard: str, checkpoint: Checkpoint) -> None:
        try:
            await store.save("clicks", shard, checkpoint)
        except StoreError as error:
            refused.append(str(error))

    async with opened(path) as store:
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(save, store, f"shard-{number}", Checkpoint("1"))
            tasks.start_soon(save, store, "bad-1", Checkpoint("1", window="\ud800"))
            tasks.start_soon(save, store, "bad-2", Checkpoint("1", since=float("nan")))
        assert len(refused) == 2
        assert "the checkpoint of clicks in bad-1 cannot be stored: " in refused[0]
        with pytest.raises(StoreError, match="in shard-0 cannot be stored"):
            await store.seek("clicks", "shard-0", Checkpoint("1", window="\ud800"))
        assert len(await store.load("clicks")) == 50


async def test_a_bug_in_one_group_leaves_no_transaction_open(path: Path, monkeypatch: pytest.MonkeyPatch):
    async with opened(path) as store:
        await store.save("clicks", "shard-1", Checkpoint("1"))
        with monkeypatch.context() as patched:
            patched.setattr("poller.stores.sqlite._Table._position", lambda table, save: 1 / 0)
            with pytest.raises(StoreError, match="the state store failed: ZeroDivisionError"):
                await store.save("clicks", "shard-1", Checkpoint("0"))
        assert await store.save("clicks", "shard-1", Checkpoint("2"))


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`: writes fail as on a broken disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_fails_is_told_and_saving_goes_on_when_it_is_back(path: Path):
    async with opened(path) as store:
        saved = 0
        with files_at_most(100_000), pytest.raises(StoreError, match="the disk reports an error"):  # noqa: PT012
            for saved in range(100):
                await store.save("clicks", "shard-1", Checkpoint(str(saved), window="x" * 8000))
        assert saved
        assert (await store.load("clicks"))["shard-1"].sequence_number == str(saved - 1)
        assert await store.save("clicks", "shard-1", Checkpoint("100"))
    async with opened(path) as store:
        assert await store.load("clicks") == {"shard-1": Checkpoint("100")}


async def test_a_full_disk_is_told_and_harms_nothing_that_was_saved(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_sqlite_file, "PRAGMAS", (*_sqlite_file.PRAGMAS, "max_page_count = 20"))
    async with opened(path) as store:
        await store.save("clicks", "shard-1", Checkpoint("1"))
        with pytest.raises(StoreError, match="the disk is full: free some space"):
            await store.save("clicks", "shard-2", Checkpoint("1", window="x" * 100_000))
        assert await store.save("clicks", "shard-1", Checkpoint("2"))
        assert await store.load("clicks") == {"shard-1": Checkpoint("2")}


async def test_a_cancelled_save_has_happened_or_not_and_the_store_goes_on(path: Path):
    async with opened(path) as store:
        for number in range(1, 51):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    for shard in "abc":
                        tasks.start_soon(store.save, "clicks", shard, Checkpoint(str(number)))
                    for _ in range(number % 5):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
        held = await store.load("clicks")
        assert all(1 <= int(checkpoint.sequence_number) <= 50 for checkpoint in held.values())
        assert await store.save("clicks", "a", Checkpoint("51"))
