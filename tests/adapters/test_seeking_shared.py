"""Moving a mapping whose state several daemons share."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import anyio
import pytest

from poller.app import seeking
from poller.errors import PollerError
from poller.model import Checkpoint, Lease
from poller.stores.memory import MemoryStore

if TYPE_CHECKING:
    from poller.config import Mapping

pytestmark = pytest.mark.anyio

NOW = 1_700_000_000.0
TAKING = seeking.Taking("seek-1", failover_time=0.2)


class Clicks:
    """As much of a mapping as a seek needs."""

    name = "clicks"
    source = "kinesis"


MAPPING = cast("Mapping", Clicks())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeking, "LOOK", 0.02)


async def table(owner: str = "") -> MemoryStore:
    store = MemoryStore()
    for shard in ("s0", "s1"):
        await store.add(Lease("clicks", shard, checkpoint=Checkpoint("7")))
    await store.add(Lease("orders", "s0", checkpoint=Checkpoint("7")))
    if owner:
        (row, *_) = (await store.list()).leases
        assert await store.claim(row, owner)
    return store


async def test_free_shards_are_moved_and_free_again() -> None:
    store = await table()
    await seeking.carry_out(store, MAPPING, seeking.Wish("TRIM_HORIZON"), NOW, TAKING)
    rows = {lease.key: lease for lease in (await store.list()).leases}
    assert [rows["clicks", shard].checkpoint for shard in ("s0", "s1")] == [Checkpoint()] * 2
    assert {lease.owner for lease in rows.values()} == {""}
    assert rows["clicks", "s0"].counter == 2, "who looked before has to look again"
    assert rows["orders", "s0"].checkpoint == Checkpoint("7")
    assert rows["orders", "s0"].counter == 0


async def test_the_latest_stays_where_it_was_put() -> None:
    store = await table()
    await seeking.carry_out(store, MAPPING, seeking.Wish("LATEST", "s0"), NOW, TAKING)
    found = await store.load("clicks")
    assert found["s0"].since > 0
    assert found["s1"] == Checkpoint("7")


@pytest.mark.usefixtures("quick")
async def test_shards_of_a_dead_daemon_are_moved_once_it_gave_no_sign_of_life_for_long_enough() -> None:
    store = await table("dead")
    began = anyio.current_time()
    await seeking.carry_out(store, MAPPING, seeking.Wish("TRIM_HORIZON"), NOW, TAKING)
    assert anyio.current_time() - began >= 0.2
    assert set((await store.load("clicks")).values()) == {Checkpoint()}


@pytest.mark.usefixtures("quick")
async def test_nothing_is_moved_while_another_daemon_reads_it() -> None:
    store = await table("w9")
    (row, *_) = (await store.list()).leases

    async def renew() -> None:
        await anyio.sleep(0.05)
        await store.renew(row, Checkpoint("8"), None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew)
        with pytest.raises(PollerError, match="s0 is read by w9: poller pause clicks at every daemon"):
            await seeking.carry_out(store, MAPPING, seeking.Wish("TRIM_HORIZON"), NOW, TAKING)
    assert (await store.load("clicks"))["s0"] == Checkpoint("8")


async def test_what_was_taken_is_given_back_when_another_daemon_takes_the_next_one() -> None:
    store = await table()
    quick = store.claim

    async def claim(lease: Lease, worker: str) -> Lease | None:
        if lease.shard == "s1":
            await quick(lease, "w9")
            return None
        return await quick(lease, worker)

    store.claim = claim  # type: ignore[method-assign]
    with pytest.raises(PollerError, match="s1 is read by another daemon"):
        await seeking.carry_out(store, MAPPING, seeking.Wish("TRIM_HORIZON"), NOW, TAKING)
    rows = {lease.key: lease for lease in (await store.list()).leases}
    assert (rows["clicks", "s0"].owner, rows["clicks", "s1"].owner) == ("", "w9")
    assert set((await store.load("clicks")).values()) == {Checkpoint("7")}
