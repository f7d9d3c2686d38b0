"""A state file that several processes share: real processes, killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from poller.errors import StoreError
from poller.model import Checkpoint, Lease
from poller.stores import _sqlite_file
from poller.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

COUNTING = """
import anyio, sys
from poller.model import Checkpoint
from poller.stores.sqlite import SqliteStore
async def main():
    store = await SqliteStore.open(sys.argv[1], patience=20, shared=True)
    print("open", flush=True)
    me = sys.argv[2]
    for _ in range(int(sys.argv[3])):
        while True:
            seen = next(lease for lease in (await store.list()).leases if lease.shard == "one")
            lease = await store.claim(seen, me)
            if lease:
                break
        done = int(lease.checkpoint.sequence_number or 0) + 1
        if not await store.renew(lease, Checkpoint(str(done)), 1.0):
            continue
        print(done, flush=True)
    await store.aclose()
anyio.run(main)
"""


OPENING = """
import anyio, sys
from poller.stores.sqlite import SqliteStore
async def main():
    store = await SqliteStore.open(sys.argv[1], patience=20, shared=True)
    print(len((await store.list()).leases))
    await store.aclose()
anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poller.db"


@contextmanager
def child(path: Path, name: str, times: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", COUNTING, str(path), name, str(times)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def shared(path: Path, patience: float = 5.0) -> SqliteStore:
    return await SqliteStore.open(path, patience=patience, shared=True)


async def test_a_shared_file_is_as_durable_as_one_that_is_not(path: Path):
    with closing(_sqlite_file.open_file(path, 0, shared=True)) as connection:
        names = ("journal_mode", "synchronous", "locking_mode")
        found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    assert found == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "normal"}


async def test_processes_that_open_and_write_at_the_same_time_see_all_that_the_others_wrote(path: Path):
    store = await shared(path)
    await store.add(Lease("clicks", "one"))
    await store.aclose()
    with child(path, "w1", 30) as one, child(path, "w2", 30) as two, child(path, "w3", 30) as three:
        printed = [process.communicate()[0].split() for process in (one, two, three)]
        assert [process.returncode for process in (one, two, three)] == [0, 0, 0]
    counted = [int(word) for words in printed for word in words[1:]]
    assert len(counted) == len(set(counted)), "no count was committed by two"
    store = await shared(path)
    assert await store.load("clicks") == {"one": Checkpoint(str(max(counted)))}
    assert sorted(counted) == list(range(1, max(counted) + 1)), "and none was lost"
    await store.aclose()


def test_processes_that_make_the_file_together_all_can_use_it(path: Path):
    command = [sys.executable, "-c", OPENING, str(path)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    assert [process.communicate()[0] for process in running] == ["0\n"] * 5
    assert os.listdir(path.parent) == [path.name]


async def test_a_kill_in_the_middle_leaves_the_others_at_work(path: Path):
    store = await shared(path)
    await store.add(Lease("clicks", "one"))
    with child(path, "w1", 1_000_000) as process:
        assert process.stdout
        last = [process.stdout.readline() for _ in range(20)][-1]
        process.send_signal(signal.SIGKILL)
        process.wait()
    held = (await store.list()).leases[0]
    assert int(held.checkpoint.sequence_number) >= int(last)
    assert await store.claim(held, "w2")
    await store.aclose()


async def test_who_wants_the_file_alone_and_who_shares_it_refuse_each_other(path: Path):
    sharing = await shared(path)
    with pytest.raises(StoreError, match="in use by"):
        await SqliteStore.open(path, patience=0)
    assert await sharing.save("clicks", "one", Checkpoint("1"))
    await sharing.aclose()
    alone = await SqliteStore.open(path, patience=0)
    with pytest.raises(StoreError, match="which runs alone or has stopped in the middle of a write: end it"):
        await shared(path, patience=0)
    await alone.aclose()


async def test_a_write_that_another_holds_up_for_long_is_an_error_and_goes_on_afterwards(path: Path):
    store = await shared(path, patience=0.05)
    with closing(_sqlite_file.open_file(path, 1.0, shared=True)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="has stopped in the middle of a write"):
            await store.save("clicks", "one", Checkpoint("1"))
        other.execute("COMMIT")
    assert await store.save("clicks", "one", Checkpoint("1"))
    await store.aclose()


async def test_a_lease_that_makes_no_sense_is_told_as_damage(path: Path):
    store = await shared(path)
    await store.add(Lease("clicks", "one"))
    with closing(_sqlite_file.open_file(path, 1.0, shared=True)) as other:
        other.execute("UPDATE leases SET counter = 'many'")
    with pytest.raises(StoreError, match="a lease makes no sense"):
        await store.list()
    await store.aclose()
