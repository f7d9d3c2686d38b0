"""What is particular to the DynamoDB store: tables, permissions, answers that are lost, throttling, windows in pieces."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Worker
from poller.stores import _dynamodb_table
from poller.stores._dynamodb_rows import checkpoint_item, lease_key, name_item, piece_key
from poller.stores.dynamodb import DynamoDbStore
from tests.scripted_aws import Close, Refuse, Reply, ScriptedAws
from tests.scripted_session import Facts, open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SCHEMA = [{"AttributeName": "poller_key", "KeyType": "HASH"}]
KEYS = {"KeySchema": SCHEMA, "AttributeDefinitions": [{"AttributeName": "poller_key", "AttributeType": "S"}]}
ACTIVE = Reply({"Table": {"TableStatus": "ACTIVE", **KEYS}})
CREATING = Reply({"Table": {"TableStatus": "CREATING", **KEYS}})
MISSING = Refuse("com.amazonaws.dynamodb.v20120810#ResourceNotFoundException", "Requested resource not found")
FAILED = Refuse(
    "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "The conditional request failed"
)
DENIED = Refuse("com.amazon.coral.service#AccessDeniedException", "not authorized to perform this")
BUSY = Refuse("com.amazonaws.dynamodb.v20120810#ThrottlingException", "Rate of requests exceeds the limit")
SEEN = Lease("clicks", "a", counter=7)
MINE = Lease("clicks", "a", owner="w1", counter=7, checkpoint=Checkpoint("1"))


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with open_aws() as scripted:
        yield scripted


@pytest.fixture
async def session(aws: ScriptedAws) -> AsyncIterator[AwsSession]:
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint), Facts()) as opened:
        yield opened


@pytest.fixture
async def store(aws: ScriptedAws, session: AwsSession) -> DynamoDbStore:
    aws.script("DescribeTable", ACTIVE)
    return await DynamoDbStore.open("leases", session)


def item(lease: Lease) -> dict[str, Any]:
    row = lease_key(*lease.key) | name_item(*lease.key) | checkpoint_item(lease.checkpoint, "")
    row |= {"counter": {"N": str(lease.counter)}}
    return row | ({"owner": {"S": lease.owner}} if lease.owner else {})


def operations(aws: ScriptedAws) -> list[str]:
    return [request.operation for request in aws.requests]


# --- the table ----------------------------------------------------------------------------------------------------------


async def test_a_table_that_is_missing_is_made_paid_by_request_and_waited_for(
    aws: ScriptedAws, session: AwsSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_dynamodb_table, "CREATING_PAUSE", 0.0)
    aws.script("DescribeTable", MISSING, CREATING, CREATING, ACTIVE)
    aws.script("CreateTable", Reply({"TableDescription": {}}))
    store = await DynamoDbStore.open("leases", session)
    assert repr(store) == "<DynamoDbStore leases>"
    created = next(request.params for request in aws.requests if request.operation == "CreateTable")
    assert (created["BillingMode"], created["KeySchema"]) == ("PAY_PER_REQUEST", SCHEMA)
    assert operations(aws).count("DescribeTable") == 4


async def test_of_two_that_make_the_table_at_the_same_time_both_use_it(aws: ScriptedAws, session: AwsSession):
    aws.script("DescribeTable", MISSING, ACTIVE)
    aws.script("CreateTable", Refuse("ResourceInUseException", "Table already exists"))
    assert await DynamoDbStore.open("leases", session)


async def test_a_table_that_is_not_ready_in_time_is_an_error(
    aws: ScriptedAws, session: AwsSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_dynamodb_table, "CREATED_WITHIN", 0.0)
    aws.always("DescribeTable", CREATING)
    with pytest.raises(StoreError, match="dynamodb:leases: is still CREATING after 0 s"):
        await DynamoDbStore.open("leases", session)


async def test_who_may_not_make_the_table_is_told_what_it_looks_like(aws: ScriptedAws, session: AwsSession):
    aws.script("DescribeTable", MISSING)
    aws.script("CreateTable", DENIED)
    with pytest.raises(
        StoreError, match="create it with the string key poller_key, or allow dynamodb:Create"
    ):
        await DynamoDbStore.open("leases", session)


async def test_a_table_that_may_not_be_looked_at_or_made_says_which_permission_is_missing(
    aws: ScriptedAws, session: AwsSession
):
    aws.script("DescribeTable", DENIED, MISSING)
    with pytest.raises(StoreError, match="needs dynamodb:DescribeTable on the table"):
        await DynamoDbStore.open("leases", session)
    aws.script("CreateTable", Refuse("ValidationException", "no such name"))
    with pytest.raises(StoreError, match="dynamodb:leases: dynamodb CreateTable: no such name"):
        await DynamoDbStore.open("leases", session)


async def test_the_table_of_another_application_is_refused(dynamodb_local: Server):
    async with AwsSession(Aws(region="eu-west-1", endpoint_url=dynamodb_local.endpoint_url), Facts()) as aws:
        table = {
            "TableName": "kcl-application",
            "AttributeDefinitions": [{"AttributeName": "leaseKey", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        }
        await aws.call("dynamodb", "CreateTable", table)
        with pytest.raises(StoreError, match="kcl-application: a table of another application"):
            await DynamoDbStore.open("kcl-application", aws)


# --- answers that are lost ----------------------------------------------------------------------------------------------


async def test_a_claim_whose_answer_was_lost_is_recognised(aws: ScriptedAws, store: DynamoDbStore):
    """The connection broke after the write; botocore wrote again, and found the lease to be its own."""
    taken = Lease("clicks", "a", owner="w1", counter=8)
    aws.script("UpdateItem", Close(), FAILED)
    aws.script("GetItem", Reply({"Item": item(taken)}))
    assert await store.claim(SEEN, "w1") == taken
    assert aws.requests[-1].params["ConsistentRead"] is True


async def test_a_claim_of_another_is_not_taken_for_ones_own(aws: ScriptedAws, store: DynamoDbStore):
    aws.script("UpdateItem", FAILED, FAILED)
    aws.script("GetItem", Reply({"Item": item(Lease("clicks", "a", owner="w2", counter=8))}), Reply({}))
    assert await store.claim(SEEN, "w1") is None
    assert await store.claim(SEEN, "w1") is None


async def test_a_renewal_whose_answer_was_lost_is_recognised_and_the_next_goes_on(
    aws: ScriptedAws, store: DynamoDbStore
):
    renewed = Lease("clicks", "a", owner="w1", counter=8, checkpoint=Checkpoint("5"))
    aws.script("UpdateItem", Close(), FAILED)
    aws.script("GetItem", Reply({"Item": item(renewed)}))
    assert await store.renew(MINE, Checkpoint("5"), 1.0) == renewed
    assert operations(aws).count("UpdateItem") == 2, "it is not written once more"


async def test_a_renewal_that_never_got_through_is_an_error_and_no_loss(
    aws: ScriptedAws, store: DynamoDbStore
):
    aws.script("UpdateItem", *[Close()] * 3)
    with pytest.raises(StoreError, match="dynamodb:leases: dynamodb UpdateItem"):
        await store.renew(MINE, Checkpoint("5"), 1.0)


async def test_throttling_is_waited_out_and_told_when_it_lasts(aws: ScriptedAws, store: DynamoDbStore):
    aws.script("UpdateItem", BUSY, Reply({"Attributes": item(MINE)}))
    assert await store.renew(MINE, Checkpoint("1"), None) == MINE
    aws.script("UpdateItem", *[BUSY] * 3)
    with pytest.raises(StoreError, match=r"Rate of requests exceeds the limit \(ThrottlingException\)"):
        await store.renew(MINE, Checkpoint("1"), None)


async def test_a_lease_is_one_write_of_less_than_a_kilobyte(aws: ScriptedAws, store: DynamoDbStore):
    """Which is what a renewal costs: one write unit."""
    number = "49671600000000000000000000000000000000000000000000000066"
    lease = Lease("a-mapping-with-a-long-name", "shardId-000000000042", ("shardId-000000000001",), "w" * 60)
    before = len(aws.requests)
    aws.script("UpdateItem", Reply({"Attributes": item(MINE)}))
    await store.renew(lease, Checkpoint(number, 7, 1_763_889_751.25), 123456.789)
    assert operations(aws)[before:] == ["UpdateItem"]
    assert sum(map(len, map(str, aws.requests[-1].params["ExpressionAttributeValues"].values()))) < 700


# --- rows that somebody has edited ----------------------------------------------------------------------------------------

NONSENSE = [
    (item(MINE) | {"counter": {"S": "seven"}}, "no 'N'"),
    ({name: value for name, value in item(MINE).items() if name != "finished"}, "no 'finished'"),
    (item(MINE) | {"since": {"S": "yesterday"}}, "could not convert string to float: 'yesterday'"),
    (item(MINE) | {"parents": {"L": [{"N": "1"}]}}, "no 'S'"),
    (item(MINE) | {"window_version": {"N": "1"}}, "no 'S'"),
    ({"poller_key": {"S": "worker/w1"}, "counter": {"N": "3"}}, "no 'mappings'"),
]


@pytest.mark.parametrize(("row", "why"), NONSENSE)
async def test_a_row_that_makes_no_sense_is_an_error_that_names_it(
    row: dict[str, Any], why: str, aws: ScriptedAws, store: DynamoDbStore
):
    aws.always("Scan", Reply({"Items": [item(SEEN), row]}))
    aws.always("UpdateItem", Reply({"Attributes": row}))
    line = re.escape(
        f"leases: the row {row['poller_key']['S']} makes no sense ({why}): put it right, or delete it"
    )
    with pytest.raises(StoreError, match=line):
        await (store.claim(SEEN, "w1") if "window_version" in row else store.list())


# --- pages and windows --------------------------------------------------------------------------------------------------


async def test_a_list_of_several_pages_is_read_to_its_end(aws: ScriptedAws, store: DynamoDbStore):
    worker = {"poller_key": {"S": "worker/w1"}, "mappings": {"L": []}, "counter": {"N": "3"}}
    aws.script(
        "Scan",
        Reply({"Items": [item(MINE)], "LastEvaluatedKey": lease_key("clicks", "a")}),
        Reply({"Items": [], "LastEvaluatedKey": lease_key("clicks", "b")}),
        Reply({"Items": [worker]}),
    )
    listing = await store.list()
    assert (listing.leases, listing.workers) == ([MINE], [Worker("w1", frozenset(), 3)])
    assert [request.params.get("ExclusiveStartKey") for request in aws.requests[-3:]] == [
        None,
        lease_key("clicks", "a"),
        lease_key("clicks", "b"),
    ]


def windowed(version: str) -> dict[str, Any]:
    return item(MINE) | {"window_version": {"S": version}, "window_pieces": {"N": "1"}}


async def test_a_window_that_is_replaced_while_it_is_read_is_read_again(
    aws: ScriptedAws, store: DynamoDbStore
):
    aws.script("UpdateItem", Reply({"Attributes": windowed("old")}))
    state = piece_key("new", 0) | {"state": {"S": "{}"}}
    aws.script("GetItem", Reply({}), Reply({"Item": windowed("new")}), Reply({"Item": state}))
    lease = await store.claim(SEEN, "w1")
    assert lease
    assert lease.checkpoint == Checkpoint("1", window="{}")


async def test_a_window_that_is_gone_is_an_error(aws: ScriptedAws, store: DynamoDbStore):
    aws.script("UpdateItem", Reply({"Attributes": windowed("lost")}))
    aws.always("GetItem", Reply({}))
    with pytest.raises(StoreError, match="the window of lease/clicks/a is not there: seek the shard"):
        await store.claim(SEEN, "w1")


async def test_a_window_is_written_when_it_changes_and_nothing_of_it_is_left_behind(dynamodb_local: Server):
    one, two = (Checkpoint("1", window=letter * 200_000) for letter in "ab")

    async with AwsSession(Aws(region="eu-west-1", endpoint_url=dynamodb_local.endpoint_url), Facts()) as aws:
        store = await DynamoDbStore.open("windows", aws)

        async def pieces() -> int:
            found = await aws.call("dynamodb", "Scan", {"TableName": "windows"})
            return sum(row["poller_key"]["S"].startswith("window/") for row in found["Items"])

        await store.add(Lease("clicks", "a", checkpoint=one))
        assert await pieces() == 3
        seen = next(iter((await store.list()).leases))
        lease = await store.claim(seen, "w1")
        for checkpoint in (one, two, two, one):
            assert lease
            lease = await store.renew(lease, checkpoint, None)
            assert await pieces() == 3
        assert lease
        assert await store.release(lease, Checkpoint("2"))
        assert await pieces() == 0
        assert await store.save("clicks", "a", Checkpoint("3", window=one.window))
        assert await store.save("clicks", "a", Checkpoint("4", window=two.window))
        assert await pieces() == 3
        await store.seek("clicks", "a", None)
        assert await pieces() == 0
