"""Ten thousand spooled batches lie on the disk, not in memory, while they are put, wait and are delivered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BATCHES = 10_000
#: Bytes of each in the spool, a little more.
SIZE = 20_000

#: A process of its own: what it takes at most is told by the system, and what SQLite takes is part of it.
SPOOLING = """
import json, random, sys, time
from pathlib import Path
from dataclasses import replace
import anyio
from poller.core import spooled
from poller.engine.invoker import World
from poller.engine.spooler import Spooler, SpoolPlan
from poller.model import Delivery, SpoolLimits
from poller.stores.sqlite import SqliteStore

path, batches, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
limits = SpoolLimits(batches, 2**30)
taken = []

def peak():
    # Of this program alone: getrusage would also tell of the one that has started it.
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

class Destination:
    async def send(self, delivery):
        taken.append(delivery.id)

class Silent:
    def __getattr__(self, name):
        return lambda fact: None

async def main():
    store = await SqliteStore.open(path)
    event = {"Records": [{"data": "x" * size}]}
    one = Delivery("0", "clicks", "shard-1", "arn", {"condition": "c"}, event, 1.0, 1, "c")
    await store.spool.put([spooled.entry(one, "warm", 1.0)], limits)
    await store.spool.remove("clicks", [1])
    before = peak()
    for number in range(0, batches, 100):
        entries = [
            spooled.entry(replace(one, id=str(each)), "failed", 1.0) for each in range(number, number + 100)
        ]
        assert await store.spool.put(entries, limits)
    full = not await store.spool.put([spooled.entry(replace(one, id="more"), "failed", 1.0)], limits)
    put = peak()
    world = World(time.time, random.random, str)
    async def open_spool():
        return store.spool
    spooler = Spooler(SpoolPlan("clicks", limits, open_spool, lambda name: Destination()), Silent(), world)
    async with spooler.working():
        (line,) = spooler.status()
        while spooler.status():
            await anyio.sleep(0.05)
    await store.aclose()
    in_order = taken == [str(number) for number in range(batches)]
    print(json.dumps([full, line.entries, line.bytes, in_order, put - before, peak() - before]))

anyio.run(main)
"""


@pytest.mark.slow
def test_ten_thousand_spooled_batches_take_no_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPOOLING, str(tmp_path / "poller.db"), str(BATCHES), str(SIZE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, entries, size, in_order, grown_by_putting, grown = json.loads(done.stdout)
    assert full, "the limit of entries holds"
    assert entries == BATCHES
    assert size >= BATCHES * SIZE
    assert in_order
    # A put of a hundred at a time and SQLite's page cache, of 200 MB that are spooled.
    assert grown_by_putting < 30_000_000
    assert grown < 30_000_000
