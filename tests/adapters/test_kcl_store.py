"""A mapping on the lease table of an application of the KCL: moving over and back, both at once, tables that are none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import anyio
import pytest

from poller.app import seeking
from poller.app.lease_tables import beside
from poller.aws.session import AwsSession
from poller.config import Aws, parse
from poller.core.shards import SKEW
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Worker
from poller.stores._kcl_rows import WHOLE_RECORD
from poller.stores.by_mapping import ByMapping
from poller.stores.kcl import KclStore, Origin
from poller.stores.memory import MemoryStore
from tests.adapters.kcl_library import Kcl, KclLease
from tests.engine.fakes import Recorder
from tests.scripted_aws import Refuse, Reply, ScriptedAws
from tests.scripted_session import open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.config import Mapping
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

REGION = "eu-west-1"
CLICKS = Origin("clicks", "TRIM_HORIZON")
FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"
LEFT, RIGHT = "shardId-000000000002", "shardId-000000000003"
BEGINNING = "495903382714902566085596925383615710959215759891365"
SEQUENCE = f"{BEGINNING}10000"


@pytest.fixture
async def session(dynamodb_local: Server) -> AsyncIterator[AwsSession]:
    config = Aws(region=REGION, endpoint_url=dynamodb_local.endpoint_url)
    async with AwsSession(config, Recorder()) as opened:
        yield opened


@pytest.fixture(params=["2.7", "3.0", "3.5"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def kcl(session: AwsSession, version: str) -> Kcl:
    """A worker of an application that has a table."""
    library = Kcl(session, f"app-{uuid4()}", "kcl-1", version)
    await library.create_table()
    return library


async def opened(kcl: Kcl, origin: Origin = CLICKS) -> KclStore:
    return await KclStore.open(kcl._table, kcl._session, origin, REGION)


async def leases(store: KclStore) -> dict[str, Lease]:
    return {lease.shard: lease for lease in (await store.list()).leases}


async def owned(kcl: Kcl, store: KclStore, worker: str = "w1", **more: Any) -> Lease:
    """A lease of the application that `worker` of ours has claimed."""
    await kcl.create(KclLease(FIRST, 4, 0, (SEQUENCE, 0), **more))
    claimed = await store.claim((await leases(store))[FIRST], worker)
    assert claimed
    return claimed


# --- over and back ------------------------------------------------------------------------------------------------------


async def test_an_application_moves_over_and_back_without_losing_its_place(kcl: Kcl):
    parents = frozenset({FIRST})
    await kcl.create(KclLease(FIRST, 90, 0, ("SHARD_END", 0), children=frozenset({LEFT, RIGHT})))
    await kcl.create(KclLease(SECOND, 7, 3, (SEQUENCE, 2), "kcl-1", hash_range=("0", "9")))
    await kcl.create(KclLease(LEFT, 12, 1, (SEQUENCE, 0), "kcl-2", parents=parents, throughput=1.5))
    await kcl.create(KclLease(RIGHT, 0, 0, ("TRIM_HORIZON", 0), parents=parents))
    before = await kcl.list()

    store = await opened(kcl)
    found = await leases(store)
    assert {shard: lease.checkpoint for shard, lease in found.items()} == {
        FIRST: Checkpoint(finished=True),
        SECOND: Checkpoint(SEQUENCE, 2),
        LEFT: Checkpoint(SEQUENCE, 0),
        RIGHT: Checkpoint(),
    }
    ends = {
        SECOND: Checkpoint(f"{BEGINNING}20000", 4),
        LEFT: Checkpoint(f"{BEGINNING}30000", finished=True),
        RIGHT: Checkpoint(f"{BEGINNING}40000"),
    }
    for shard, end in ends.items():
        claimed = await store.claim(found[shard], "w1")
        assert claimed
        renewed = await store.renew(claimed, claimed.checkpoint, 5.0)
        assert renewed
        assert await store.release(renewed, end)

    after = await kcl.list()
    assert after.keys() == before.keys()
    assert after[FIRST] == before[FIRST]
    assert after[SECOND].checkpoint == (f"{BEGINNING}20000", 4)
    assert after[LEFT].checkpoint == ("SHARD_END", 0)
    assert after[RIGHT].checkpoint == (f"{BEGINNING}40000", WHOLE_RECORD)
    for shard in ends:
        assert after[shard].owner is None
        assert after[shard].switches == 0
        assert after[shard].counter == before[shard].counter + 3
        kept = {"parents": before[shard].parents, "hash_range": before[shard].hash_range}
        assert {name: getattr(after[shard], name) for name in kept} == kept
    taken = await kcl.take(after[SECOND])
    assert taken
    renewed_there = await kcl.renew(taken)
    assert renewed_there
    assert await kcl.checkpoint(renewed_there, (f"{BEGINNING}50000", 1))
    assert (await leases(store))[SECOND].checkpoint == Checkpoint(f"{BEGINNING}50000", 1)
    assert await kcl.remove_parent(FIRST)


async def test_what_is_added_here_is_a_lease_to_the_kcl(kcl: Kcl):
    store = await opened(kcl)
    await store.add(Lease("clicks", LEFT, (SECOND, FIRST)))
    await store.add(Lease("clicks", RIGHT))
    made = await kcl.list()
    assert made[LEFT] == KclLease(LEFT, 0, 0, ("TRIM_HORIZON", 0), parents=frozenset({FIRST, SECOND}))
    assert made[RIGHT] == KclLease(RIGHT, 0, 0, ("TRIM_HORIZON", 0))
    assert await kcl.create(made[LEFT]) is False
    assert await kcl.take(made[LEFT])


async def test_a_table_that_is_missing_is_made_as_the_kcl_would(session: AwsSession, version: str):
    name = f"app-{uuid4()}"
    store = await KclStore.open(name, session, CLICKS, REGION)
    assert repr(store) == f"<KclStore {name} of clicks>"
    kcl = Kcl(session, name, "kcl-1", version)
    described = (await kcl.call("DescribeTable", {}))["Table"]
    assert described["KeySchema"] == [{"AttributeName": "leaseKey", "KeyType": "HASH"}]
    assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert await kcl.list() == {}
    assert await kcl.create(KclLease(FIRST, 0, 0, ("LATEST", 0)))
    assert await store.load("clicks")
    await store.aclose()


async def test_an_application_of_3_5_has_other_rows_in_its_table(session: AwsSession):
    kcl = Kcl(session, f"app-{uuid4()}", "kcl-1", "3.5")
    await kcl.create_table()
    await kcl.put_row(
        {"leaseKey": {"S": "kcl-1"}, "entityType": {"S": "WORKER_METRIC_STATS"}, "lut": {"N": "1"}}
    )
    await kcl.put_row(
        {"leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}, "leaseOwner": {"S": "kcl-1"}}
    )
    await kcl.create(KclLease(FIRST, 1, 0, ("TRIM_HORIZON", 0)))
    store = await opened(kcl)
    assert set(await store.load("clicks")) == set(await leases(store)) == {FIRST}


# --- counting -----------------------------------------------------------------------------------------------------------


async def test_owners_are_counted_between_checkpoints_as_the_kcl_does(kcl: Kcl):
    store = await opened(kcl)
    lease = await owned(kcl, store, owner="kcl-2")
    assert (await kcl.get(FIRST)).switches == 1
    idle = await store.renew(lease, lease.checkpoint, None)
    assert idle
    assert (await kcl.get(FIRST)).switches == 1
    assert await store.release(idle, idle.checkpoint, "w2")
    assert (await kcl.get(FIRST)).switches == 2
    taken = await store.claim((await leases(store))[FIRST], "w2")
    assert taken
    assert (await kcl.get(FIRST)).switches == 2, "it was its own already"
    moved = await store.renew(taken, Checkpoint(SEQUENCE + "0"), None)
    assert moved
    assert (await kcl.get(FIRST)).switches == 0
    assert await store.release(moved, Checkpoint(SEQUENCE + "1"), "w3")
    assert (await kcl.get(FIRST)).switches == 1
    assert await store.release((await leases(store))[FIRST], Checkpoint(SEQUENCE + "1"))
    freed = await kcl.get(FIRST)
    assert (freed.owner, freed.switches) == (None, 1)


async def test_a_checkpoint_ends_what_was_pending_and_a_renewal_does_not(kcl: Kcl):
    store = await opened(kcl)
    lease = await owned(kcl, store, pending=(SEQUENCE, 4))
    renewed = await store.renew(lease, lease.checkpoint, None)
    assert renewed
    assert (await kcl.get(FIRST)).pending == (SEQUENCE, 4)
    assert await store.renew(renewed, Checkpoint(SEQUENCE, 3), None)
    assert (await kcl.get(FIRST)).pending is None


# --- both at once -------------------------------------------------------------------------------------------------------


async def test_a_worker_of_the_kcl_that_lost_its_lease_to_us_cannot_write(kcl: Kcl):
    await kcl.create(KclLease(FIRST, 4, 0, (SEQUENCE, 0)))
    theirs = await kcl.take(await kcl.get(FIRST))
    assert theirs
    store = await opened(kcl)
    ours = await store.claim((await leases(store))[FIRST], "w1")
    assert ours
    assert await kcl.renew(theirs) is None
    assert await kcl.checkpoint(theirs, (SEQUENCE + "9", 0)) is None
    assert await kcl.evict(theirs) is False
    assert (await leases(store))[FIRST] == ours


async def test_of_two_claims_one_wins(kcl: Kcl):
    await kcl.create(KclLease(FIRST, 4, 0, (SEQUENCE, 0)))
    store = await opened(kcl)
    seen = (await leases(store))[FIRST]
    assert await kcl.take(await kcl.get(FIRST))
    assert await store.claim(seen, "w1") is None
    stolen = await kcl.get(FIRST)
    assert await store.claim((await leases(store))[FIRST], "w1")
    assert await kcl.take(stolen) is None


async def test_what_the_kcl_steals_from_us_we_cannot_write(kcl: Kcl):
    store = await opened(kcl)
    lease = await owned(kcl, store)
    assert await kcl.take(await kcl.get(FIRST))
    assert await store.renew(lease, Checkpoint(SEQUENCE + "1"), None) is None
    assert await store.release(lease, Checkpoint(SEQUENCE + "1")) is False
    assert (await kcl.get(FIRST)).checkpoint == (SEQUENCE, 0)


# --- hand-over of 3.x ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def leader(session: AwsSession) -> Kcl:
    kcl = Kcl(session, f"app-{uuid4()}", "leader", "3.0")
    await kcl.create_table()
    return kcl


async def test_a_lease_that_the_leader_asks_us_for_is_renewed_until_it_is_handed_over(leader: Kcl):
    store = await opened(leader)
    lease = await owned(leader, store)
    assert await leader.ask_for(await leader.get(FIRST), "heir")
    renewed = await store.renew(lease, Checkpoint(SEQUENCE, 5), None)
    assert renewed
    assert (renewed.owner, renewed.wanted_by) == ("w1", "heir")
    listing = await store.list()
    assert listing.foreign_heirs == {("clicks", "heir")}, "or nobody would hand it over"
    assert not listing.workers, "or it would seem to have left, once it has the lease"
    assert await store.want(renewed, "w2") is False
    assert await store.release(renewed, Checkpoint(SEQUENCE, 6), "heir")
    handed = await leader.get(FIRST)
    assert (handed.owner, handed.former, handed.checkpoint) == ("heir", None, (SEQUENCE, 6))
    assert await leader.renew(handed)
    assert await store.renew(renewed, Checkpoint(SEQUENCE, 7), None) is None


async def test_a_lease_in_a_hand_over_is_not_claimed_from_its_heir(leader: Kcl):
    await leader.create(KclLease(FIRST, 4, 0, (SEQUENCE, 0), "kcl-1"))
    store = await opened(leader)
    before = (await leases(store))[FIRST]
    assert await leader.ask_for(await leader.get(FIRST), "heir")
    asked = (await leases(store))[FIRST]
    assert (asked.owner, asked.counter) == ("kcl-1", before.counter), "nothing has happened to who reads it"
    assert await store.claim(replace(asked, owner="heir"), "w1") is None
    assert await store.claim(replace(asked, owner=""), "w1") is None
    # Its owner has died meanwhile: whoever sees the counter stand still may take it, as the leader would.
    claimed = await store.claim(asked, "w1")
    assert claimed
    row = await leader.get(FIRST)
    assert (row.owner, row.former, row.switches) == ("w1", None, 1)


async def test_a_leader_that_loses_patience_fences_us(leader: Kcl):
    store = await opened(leader)
    lease = await owned(leader, store)
    assert await leader.ask_for(await leader.get(FIRST), "heir")
    assert await leader.assign(await leader.get(FIRST), "heir")
    assert await store.renew(lease, Checkpoint(SEQUENCE, 5), None) is None
    assert (await leader.get(FIRST)).checkpoint == (SEQUENCE, 0)


# --- where nothing is done ----------------------------------------------------------------------------------------------


async def test_the_latest_is_fixed_by_the_first_claim(kcl: Kcl):
    await kcl.create(KclLease(FIRST, 0, 0, ("LATEST", 0)))
    now = 1_700_000_000.0
    store = await opened(kcl)
    store._wall = lambda: now
    claimed = await store.claim((await leases(store))[FIRST], "w1")
    assert claimed
    assert claimed.checkpoint == Checkpoint(since=now - SKEW)
    now += 600
    renewed = await store.renew(claimed, claimed.checkpoint, None)
    assert renewed
    assert renewed.checkpoint == claimed.checkpoint
    assert await store.release(renewed, renewed.checkpoint)
    assert (await kcl.get(FIRST)).checkpoint == ("LATEST", 0), "to the KCL it is still what it was"
    assert (await leases(store))[FIRST].checkpoint == claimed.checkpoint
    again = await store.claim((await leases(store))[FIRST], "w1")
    assert again
    moved = await store.renew(again, Checkpoint("5"), None)
    assert moved
    assert (await kcl.get(FIRST)).others.keys() <= {"entityType"}


async def test_a_time_that_only_the_application_knows_is_asked_for(kcl: Kcl):
    await kcl.create(KclLease(FIRST, 0, 0, ("AT_TIMESTAMP", 0)))
    with pytest.raises(
        StoreError, match=r"^lease_table = app-\S+: shardId-000000000000: begins AT_TIMESTAMP, and only"
    ):
        await opened(kcl)
    store = await opened(kcl, Origin("clicks", "AT_TIMESTAMP", 1_700_000_000.0))
    assert await store.load("clicks") == {FIRST: Checkpoint(since=1_700_000_000.0)}


async def test_where_a_command_has_sought_to_is_no_loss_to_the_kcl(kcl: Kcl):
    store = await opened(kcl, Origin("clicks", "LATEST"))
    await kcl.create(KclLease(LEFT, 4, 2, (SEQUENCE, 0), parents=frozenset({FIRST}), pending=(SEQUENCE, 1)))
    for checkpoint in (Checkpoint(since=1_700_000_000.0), Checkpoint()):
        await store.seek("clicks", LEFT, checkpoint)
        row = await kcl.get(LEFT)
        assert (row.checkpoint, row.counter, row.pending) == (("TRIM_HORIZON", 0), 4, None)
        assert (await store.load("clicks"))[LEFT] == checkpoint
        assert (await store.load("clicks"))[FIRST] == Checkpoint(finished=True), (
            "its parent is done all the same"
        )
    await store.seek("clicks", LEFT, Checkpoint("5", 1))
    assert (await kcl.get(LEFT)).checkpoint == ("5", 1)
    await store.seek("clicks", LEFT, Checkpoint("5", finished=True))
    assert (await kcl.get(LEFT)).checkpoint == ("SHARD_END", 0)
    await store.seek("clicks", RIGHT, Checkpoint("5"))
    assert (await kcl.get(RIGHT)).counter == 0
    for shard in (LEFT, RIGHT, "never there"):
        await store.seek("clicks", shard, None)
    assert await kcl.list() == {}


# --- parents without rows -----------------------------------------------------------------------------------------------


async def test_a_parent_whose_row_the_kcl_has_removed_is_finished(kcl: Kcl):
    await kcl.create(KclLease(LEFT, 4, 0, (SEQUENCE, 0), parents=frozenset({FIRST})))
    await kcl.create(KclLease(RIGHT, 0, 0, ("TRIM_HORIZON", 0), parents=frozenset({SECOND})))
    store = await opened(kcl)
    done = Checkpoint(finished=True)
    assert (await leases(store))[FIRST] == Lease("clicks", FIRST, checkpoint=done)
    assert SECOND not in await leases(store), "another worker may be about to add it"
    assert (await store.load("clicks"))[FIRST] == done
    assert FIRST not in await kcl.list()


async def test_a_seek_opens_a_shard_again_whose_row_the_kcl_has_removed(kcl: Kcl):
    await kcl.create(KclLease(LEFT, 4, 0, (SEQUENCE, 0), parents=frozenset({FIRST})))
    store = await opened(kcl)
    mapping = cast("Mapping", SimpleNamespace(name="clicks", source="kinesis"))
    taking = seeking.Taking("seek-1", failover_time=0.2)
    await seeking.carry_out(store, mapping, seeking.Wish("TRIM_HORIZON"), 1_700_000_000.0, taking)
    found = await leases(store)
    assert {shard: (row.checkpoint, row.owner) for shard, row in found.items()} == {
        FIRST: (Checkpoint(), ""),
        LEFT: (Checkpoint(), ""),
    }
    assert {row.checkpoint for row in (await kcl.list()).values()} == {("TRIM_HORIZON", 0)}


async def test_a_shard_that_is_finished_when_it_is_added_gets_no_row(kcl: Kcl):
    store = await opened(kcl)
    done = Checkpoint(finished=True)
    await store.add(Lease("clicks", FIRST, (SECOND,), checkpoint=done))
    assert (await leases(store))[FIRST] == Lease("clicks", FIRST, (SECOND,), checkpoint=done)
    assert await kcl.list() == {}
    await store.seek("clicks", FIRST, None)
    assert await leases(store) == {}


# --- checkpoints without a lease ----------------------------------------------------------------------------------------


async def test_a_checkpoint_that_somebody_moves_meanwhile_is_never_moved_back(kcl: Kcl):
    store = await opened(kcl)
    lease = await owned(kcl, store)
    assert await store.save("clicks", FIRST, Checkpoint(SEQUENCE, 5))
    behind = await store.renew(lease, Checkpoint(SEQUENCE, 3), None)
    assert behind
    assert behind.checkpoint == Checkpoint(SEQUENCE, 5)
    assert await store.save("clicks", FIRST, Checkpoint(SEQUENCE, 6))
    ahead = await store.renew(behind, Checkpoint(SEQUENCE, 7), None)
    assert ahead
    assert ahead.checkpoint == Checkpoint(SEQUENCE, 7)
    assert await store.save("clicks", FIRST, Checkpoint(SEQUENCE, 6)) is False


async def test_a_row_of_old_without_a_sub_sequence_number_is_moved_too(kcl: Kcl):
    lease = {"leaseKey": {"S": FIRST}, "leaseCounter": {"N": "3"}, "ownerSwitchesSinceCheckpoint": {"N": "0"}}
    await kcl.put_row(lease | {"checkpoint": {"S": SEQUENCE}})
    store = await opened(kcl)
    claimed = await store.claim((await leases(store))[FIRST], "w1")
    assert claimed
    assert await store.renew(claimed, Checkpoint(SEQUENCE, 1), None)
    assert (await kcl.get(FIRST)).checkpoint == (SEQUENCE, 1)


async def test_savers_at_the_same_time_make_one_row_with_the_furthest(kcl: Kcl):
    store = await opened(kcl)
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(store.save, "clicks", FIRST, Checkpoint(str(100 + number)))
    assert await store.load("clicks") == {FIRST: Checkpoint("103")}


# --- tables that are none -----------------------------------------------------------------------------------------------


async def make(session: AwsSession, **keys: str) -> str:
    name = f"app-{uuid4()}"
    kinds = ("HASH", "RANGE")
    schema = [{"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, kinds, strict=False)]
    types = [{"AttributeName": key, "AttributeType": kind} for key, kind in keys.items()]
    params = {
        "TableName": name,
        "KeySchema": schema,
        "AttributeDefinitions": types,
        "BillingMode": "PAY_PER_REQUEST",
    }
    await session.call("dynamodb", "CreateTable", params)
    return name


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"poller_key": "S"}, "poller_key"),
        ({"wid": "S"}, "wid"),
        ({"leaseKey": "S", "at": "N"}, "leaseKey, at"),
        ({"leaseKey": "N"}, "leaseKey"),
    ],
)
async def test_a_table_that_is_not_the_kcls_is_refused(session: AwsSession, keys: dict[str, str], shown: str):
    name = await make(session, **keys)
    with pytest.raises(StoreError) as refused:
        await KclStore.open(name, session, CLICKS, REGION)
    assert str(refused.value) == (
        f"lease_table = {name}: no lease table of the KCL, whose key is leaseKey, but one with the key {shown}: name the"
        " application's own, or a new one"
    )


async def test_a_row_that_is_no_lease_and_the_table_of_many_streams_are_refused(leader: Kcl):
    many = {"streamName": {"S": "123456789012:clicks:1700000000"}, "shardId": {"S": FIRST}}
    row = {"leaseCounter": {"N": "1"}, "checkpoint": {"S": "5"}}
    await leader.put_row({"leaseKey": {"S": f"123456789012:clicks:1700000000:{FIRST}"}, **row, **many})
    with pytest.raises(StoreError, match="several streams: only those of one stream can be taken over"):
        await opened(leader)
    await leader.call("DeleteItem", {"Key": {"leaseKey": {"S": f"123456789012:clicks:1700000000:{FIRST}"}}})
    await leader.put_row({"leaseKey": {"S": "cart-7"}, "total": {"N": "1"}})
    with pytest.raises(StoreError, match=r"^lease_table = app-\S+: cart-7: no lease of the KCL, which have"):
        await opened(leader)


# --- trouble ------------------------------------------------------------------------------------------------------------

KEYS = {
    "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "leaseKey", "AttributeType": "S"}],
}
FAILED = Refuse(
    "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "The conditional request failed"
)
DENIED = Refuse("com.amazon.coral.service#AccessDeniedException", "not authorized to perform this")
ROW = {
    "leaseKey": {"S": FIRST},
    "leaseOwner": {"S": "w1"},
    "leaseCounter": {"N": "3"},
    "checkpoint": {"S": "5"},
    "checkpointSubSequenceNumber": {"N": "0"},
}


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with open_aws() as scripted:
        yield scripted


@pytest.fixture
async def scripted(aws: ScriptedAws) -> AsyncIterator[KclStore]:
    aws.script("DescribeTable", Reply({"Table": {"TableStatus": "ACTIVE", **KEYS}}))
    aws.script("Scan", Reply({"Items": [ROW]}))
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint), Recorder()) as session:
        yield await KclStore.open("app", session, CLICKS)


async def test_a_checkpoint_that_changes_all_the_time_is_an_error(aws: ScriptedAws, scripted: KclStore):
    moving = [Reply({"Item": ROW | {"checkpoint": {"S": str(number)}}}) for number in range(10, 40)]
    aws.script("GetItem", *moving)
    aws.script("UpdateItem", *[FAILED] * 20)
    mine = Lease("clicks", FIRST, owner="w1", counter=3, checkpoint=Checkpoint("5", 0))
    with pytest.raises(
        StoreError, match=r"^lease_table = app: shardId-000000000000: its checkpoint changes all the time"
    ):
        await scripted.renew(mine, Checkpoint("99"), None)
    with pytest.raises(StoreError, match="its checkpoint changes all the time"):
        await scripted.save("clicks", FIRST, Checkpoint("99"))


async def test_a_row_that_is_removed_while_it_is_renewed_is_a_lost_lease(
    aws: ScriptedAws, scripted: KclStore
):
    aws.script("UpdateItem", FAILED)
    aws.script("GetItem", Reply({}))
    mine = Lease("clicks", FIRST, owner="w1", counter=3, checkpoint=Checkpoint("5", 0))
    assert await scripted.renew(mine, Checkpoint("6"), None) is None


async def test_a_row_that_another_has_made_meanwhile_is_moved(aws: ScriptedAws, scripted: KclStore):
    aws.script("GetItem", Reply({}), Reply({"Item": ROW}))
    aws.script("PutItem", FAILED)
    aws.script("UpdateItem", Reply({"Attributes": ROW}))
    assert await scripted.save("clicks", FIRST, Checkpoint("6"))


# --- in the file --------------------------------------------------------------------------------------------------------

FILE = """
[daemon]
fleet = true
[functions.f]
handler = "m:f"
[[mappings]]
name = "clicks"
event_source_arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
function_name = "f"
starting_position = "AT_TIMESTAMP"
starting_position_timestamp = 1700000000
"""


async def test_the_file_says_which_mappings_have_tables_of_their_own(session: AwsSession):
    own = MemoryStore()
    assert await beside(own, parse(FILE, where="f", environ={}, now=2e9), session) is own
    for kind in ("kcl", "poller"):
        keys = f'lease_table = "app-{uuid4()}"\nlease_format = "{kind}"'
        store = await beside(own, parse(FILE + keys, where="f", environ={}, now=2e9), session)
        await store.add(Lease("clicks", FIRST, checkpoint=Checkpoint(since=5.0)))
        await store.add(Lease("orders", "s"))
        found = (await store.list()).leases
        assert sorted(lease.key for lease in found) == [("clicks", FIRST), ("orders", "s")]
        assert await own.load("clicks") == {}
        assert await store.load("clicks") == {FIRST: Checkpoint(since=5.0)}


# --- beside the state ---------------------------------------------------------------------------------------------------


async def test_a_table_that_cannot_be_read_does_not_hide_the_leases_of_others(
    aws: ScriptedAws, scripted: KclStore
):
    own = MemoryStore()
    await own.add(Lease("orders", "s"))
    await own.add(Lease("clicks", "left over from before"))
    await own.beat(Worker("w1", frozenset({"clicks", "orders"}), 1))
    asked = ROW | {"leaseOwner": {"S": "heir"}, "checkpointOwner": {"S": "w9"}}
    aws.script("Scan", DENIED, Reply({"Items": [asked]}), DENIED)
    store = ByMapping(own, {"clicks": scripted})
    assert repr(store) == f"<ByMapping {own!r}, 1 others>"
    with pytest.raises(StoreError, match=r"^lease_table = app: "):
        await store.list()
    known = await store.list()
    assert [lease.key for lease in known.leases] == [("orders", "s"), ("clicks", FIRST)]
    assert [worker.id for worker in known.workers] == ["w1"]
    assert known.foreign_heirs == {("clicks", "heir")}
    assert known.stale == {}
    again = await store.list()
    assert again.stale["clicks"].startswith("lease_table = app: ")
    assert replace(again, stale={}) == known
    await store.aclose()
