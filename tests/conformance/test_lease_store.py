"""What every lease store promises, run over each of them: memory, one file of several processes, DynamoDB, the KCL's tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Worker
from tests.conformance.media import KCL, STORES, medium

if TYPE_CHECKING:
    from pathlib import Path

    from poller.ports import CheckpointStore, LeaseStore
    from tests.conformance.media import Open

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FIRST = Checkpoint(since=1_700_000_000.0)
WINDOW = Checkpoint("8", window='{"sum": 7}')
NEW = Lease("clicks", "shard-1", ("shard-0", "shard-00"), checkpoint=FIRST)


SHARED = [name for name in STORES if name != "sqlite"]


@pytest.fixture(params=[*SHARED, *KCL])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return medium(request, tmp_path)


@pytest.fixture(params=SHARED)
def open_roomy(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """One that keeps windows as well."""
    return medium(request, tmp_path)


async def saved(store: CheckpointStore) -> Checkpoint:
    return (await store.load("clicks"))["shard-1"]


async def row(store: LeaseStore, shard: str = "shard-1") -> Lease:
    return next(lease for lease in (await store.list()).leases if lease.shard == shard)


async def owned(store: LeaseStore, owner: str = "w1") -> Lease:
    """A new lease that `owner` has."""
    await store.add(NEW)
    lease = await store.claim(NEW, owner)
    assert lease
    return lease


# --- rows ---------------------------------------------------------------------------------------------------------------


async def test_an_empty_table_has_nobody_and_nothing(open_store: Open):
    async with open_store() as store:
        listing = await store.list()
    assert (tuple(listing.leases), tuple(listing.workers)) == ((), ())


async def test_a_lease_is_added_once_and_comes_back_as_it_was(open_store: Open):
    async with open_store() as store:
        await store.add(NEW)
        await store.add(NEW)
        await store.add(replace(NEW, mapping="click"))
        assert sorted((await store.list()).leases, key=lambda lease: lease.key) == [
            replace(NEW, mapping="click"),
            NEW,
        ]
        assert await saved(store) == FIRST
    async with open_store() as store:
        assert await row(store, "shard-1")


async def test_adding_what_is_there_changes_nothing_but_its_parents(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        renewed = await store.renew(lease, Checkpoint("5"), 12.5)
        await store.add(replace(NEW, parents=("shard-0", "shard-2")))
        assert await row(store) == replace(renewed, parents=("shard-0", "shard-2"))


async def test_a_checkpoint_of_a_single_daemon_is_a_lease_that_is_free(open_store: Open):
    async with open_store() as store:
        await store.save("clicks", "shard-1", Checkpoint("5", 3))
        free = Lease("clicks", "shard-1", checkpoint=Checkpoint("5", 3))
        assert await row(store) == free
        await store.add(NEW)
        assert await row(store) == replace(free, parents=NEW.parents)
        claimed = await store.claim(free, "w1")
        assert claimed == replace(free, parents=NEW.parents, owner="w1", counter=1)


async def test_a_position_that_is_none_is_refused(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        with pytest.raises(StoreError, match="is not a sequence number"):
            await store.renew(lease, Checkpoint("LATEST"), None)
        with pytest.raises(StoreError, match="is not a sequence number"):
            await store.release(lease, Checkpoint("LATEST"))
        with pytest.raises(StoreError, match="is not a sequence number"):
            await store.add(replace(NEW, shard="other", checkpoint=Checkpoint("LATEST")))
        assert await row(store) == lease


# --- claim, renew, release ----------------------------------------------------------------------------------------------


async def test_a_claim_counts_and_is_refused_to_who_saw_something_else(open_store: Open):
    async with open_store() as store:
        await store.add(NEW)
        assert await store.claim(NEW, "w1") == replace(NEW, owner="w1", counter=1)
        assert await store.claim(NEW, "w2") is None
        assert await store.claim(replace(NEW, shard="never added"), "w2") is None
        expired = await row(store)
        taken = await store.claim(expired, "w2")
        assert taken == replace(NEW, owner="w2", counter=2)
        assert await row(store) == taken


async def test_a_renewal_counts_and_carries_checkpoint_and_load(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        renewed = await store.renew(lease, Checkpoint("5", 7), 1234.5)
        assert renewed == replace(lease, counter=2, checkpoint=Checkpoint("5", 7), load=1234.5)
        assert await row(store) == renewed
        assert await saved(store) == Checkpoint("5", 7)
        idle = await store.renew(renewed, Checkpoint("5", 7), 0.0)
        assert idle == replace(renewed, counter=3, load=0.0)


async def test_a_former_owner_can_neither_renew_nor_release(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        taken = await store.claim(lease, "w2")
        assert await store.renew(lease, Checkpoint("9"), 1.0) is None
        assert await store.release(lease, Checkpoint("9")) is False
        assert await row(store) == taken
        # Not even when it was its own before: the counter has moved on.
        assert await store.claim(await row(store), "w1")
        assert await store.renew(lease, Checkpoint("9"), 1.0) is None
        await store.seek("clicks", "shard-1", None)
        assert await store.renew(lease, Checkpoint("9"), 1.0) is None


async def test_a_release_makes_the_lease_free_with_its_checkpoint(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        assert await store.release(lease, Checkpoint("7")) is True
        assert await store.release(replace(lease, counter=5), Checkpoint("7")) is False
        freed = await row(store)
        assert (freed.owner, freed.counter) == ("", 2)
        assert await saved(store) == Checkpoint("7")


async def test_a_lease_with_a_finished_checkpoint_is_complete(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        assert await store.release(lease, Checkpoint("5", finished=True))
        assert (await row(store)).checkpoint.finished
        assert (await saved(store)).finished


async def test_a_write_that_is_tried_again_is_recognised(open_store: Open):
    """Its answer may have been lost on the way."""
    async with open_store() as store:
        await store.add(NEW)
        lease = await store.claim(NEW, "w1")
        assert lease
        assert await store.claim(NEW, "w1") == lease
        renewed = await store.renew(lease, Checkpoint("5"), 2.0)
        assert renewed
        assert await store.renew(lease, Checkpoint("5"), 2.0) == renewed
        assert await store.want(renewed, "w2") is True
        assert await store.want(renewed, "w2") is True
        assert await store.release(renewed, Checkpoint("6"), "w2") is True
        assert await store.release(renewed, Checkpoint("6"), "w2") is True
        handed = await row(store)
        assert (handed.owner, handed.counter) == ("w2", 3)
        assert await store.release(handed, Checkpoint("6")) is True
        assert await store.release(handed, Checkpoint("6")) is True
        assert (await row(store)).counter == 4


async def test_a_late_renewal_is_not_taken_for_the_claim_of_what_was_ones_own(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        assert await store.renew(lease, Checkpoint("5"), None)
        assert await store.claim(lease, "w1") is None
        assert await store.claim(await row(store), "w1")


async def test_a_release_whose_checkpoint_is_not_there_was_no_release(open_store: Open):
    """The heir may have claimed the lease because it expired; that is no hand-over."""
    async with open_store() as store:
        lease = await owned(store)
        assert await store.claim(lease, "w2")
        assert await store.release(lease, Checkpoint("6"), "w2") is False
        assert (await row(store)).checkpoint == FIRST


# --- hand-off -----------------------------------------------------------------------------------------------------------


async def test_a_wish_is_told_by_the_next_renewal_and_the_owner_names_its_heir(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        assert await store.want(lease, "w2") is True
        renewed = await store.renew(lease, Checkpoint("5"), None)
        assert renewed
        assert renewed.wanted_by == "w2"
        assert await store.release(renewed, Checkpoint("6"), "w2") is True
        handed = await row(store)
        assert handed == replace(NEW, owner="w2", counter=3, checkpoint=Checkpoint("6"))
        assert await store.renew(renewed, Checkpoint("7"), None) is None
        assert await store.claim(handed, "w2") == replace(handed, counter=4)


async def test_one_wish_at_a_time_whatever_the_counter_says(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        renewed = await store.renew(lease, FIRST, None)
        assert renewed
        assert await store.want(lease, "w2") is True
        assert await store.want(lease, "w3") is False
        assert await store.want(replace(lease, wanted_by="w2"), "w3") is True
        assert (await row(store)).wanted_by == "w3"
        assert await store.want(replace(lease, owner="w9", wanted_by="w3"), "w2") is False
        assert await store.want(replace(NEW, shard="never added"), "w2") is False


async def test_a_claim_ends_a_wish(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        assert await store.want(lease, "w2")
        taken = await store.claim(lease, "w3")
        assert taken
        assert taken.wanted_by == ""


# --- the checkpoint moves forward only ----------------------------------------------------------------------------------


async def test_a_checkpoint_that_is_behind_stays_and_does_not_hinder_the_renewal(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        assert await store.save("clicks", "shard-1", Checkpoint("9")) is True
        renewed = await store.renew(lease, Checkpoint("5"), 3.0)
        assert renewed == replace(lease, counter=2, checkpoint=Checkpoint("9"), load=3.0)
        assert await store.release(renewed, Checkpoint("6")) is True
        assert (await row(store)).checkpoint == Checkpoint("9")


async def test_a_late_checkpoint_of_a_former_owner_only_moves_forward(open_store: Open):
    async with open_store() as store:
        lease = await owned(store)
        taken = await store.claim(lease, "w2")
        assert taken
        assert await store.save("clicks", "shard-1", Checkpoint("4")) is True
        ahead = await store.renew(taken, Checkpoint("6"), None)
        assert ahead
        assert await store.save("clicks", "shard-1", Checkpoint("5")) is False
        assert await row(store) == ahead


# --- windows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5_000, 700_000])
async def test_state_of_a_window_comes_with_the_claim_and_not_with_the_list(open_roomy: Open, size: int):
    async with open_roomy() as store:
        lease = await owned(store)
        one, two = (Checkpoint("7", window='{"s": "' + letter * size + '"}') for letter in "ab")
        renewed = await store.renew(lease, one, None)
        assert renewed
        renewed = await store.renew(renewed, two, None)
        assert renewed
        listed = await row(store)
        assert listed == replace(renewed, checkpoint=Checkpoint("7"))
        claimed = await store.claim(listed, "w2")
        assert claimed
        assert claimed.checkpoint == two
        assert await saved(store) == two
        assert await store.release(claimed, WINDOW)
        assert await saved(store) == WINDOW


# --- workers ------------------------------------------------------------------------------------------------------------


async def test_workers_say_that_they_are_there_and_leave(open_store: Open):
    async with open_store() as store:
        one, two = Worker("w1", frozenset({"clicks", "orders"}), 1), Worker("w2", frozenset(), 1)
        await store.beat(one)
        await store.beat(two)
        later = replace(one, counter=2, lag=3.5)
        await store.beat(later)
        workers = {worker.id: worker for worker in (await store.list()).workers}
        assert workers == {"w1": later, "w2": two}
        await store.leave(one)
        await store.leave(two)
        await store.leave(two)
        assert tuple((await store.list()).workers) == (later,), "it has counted on"
        assert await store.load("w1") == {}


# --- many at once -------------------------------------------------------------------------------------------------------


async def test_of_many_that_claim_one_lease_one_gets_it(open_store: Open):
    async with open_store() as one, open_store() as two:
        await one.add(NEW)
        got: list[Lease] = []

        async def claim(store: LeaseStore, worker: str) -> None:
            lease = await store.claim(NEW, worker)
            if lease:
                got.append(lease)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(claim, (one, two)[number % 2], f"w{number}")
        assert len(got) == 1
        assert await row(two) == got[0]


async def test_many_leases_are_listed_whole(open_store: Open):
    async with open_store() as store:
        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(store.add, Lease("clicks", f"shard-{number}", ("x" * 200,) * 20))
        assert len({lease.shard for lease in (await store.list()).leases}) == 300
