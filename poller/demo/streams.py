"""The demo's streams: a Kinesis stream, and a table whose changes a DynamoDB stream tells."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from poller.errors import PollerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from poller.model import Checkpoint

CLICKS = "clicks"
CUSTOMERS = "customers"

_SHARDS = 2
#: Items that one request may write.
BATCH = 25


class Streams:
    """Makes both on entering. `connect` makes a client of a service of the emulator, as a context manager."""

    def __init__(self, connect: Callable[[str], Any]) -> None:
        self._connect = connect
        self._open = AsyncExitStack()
        self._kinesis: Any = None
        self._table: Any = None
        self._changes: Any = None
        #: What the emulator names the two streams.
        self.clicks_arn = ""
        self.customers_arn = ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._kinesis, self._table, self._changes = [
                await stack.enter_async_context(self._connect(service))
                for service in ("kinesis", "dynamodb", "dynamodbstreams")
            ]
            await self._kinesis.create_stream(StreamName=CLICKS, ShardCount=_SHARDS)
            summary = await self._kinesis.describe_stream_summary(StreamName=CLICKS)
            self.clicks_arn = summary["StreamDescriptionSummary"]["StreamARN"]
            made = await self._table.create_table(
                TableName=CUSTOMERS,
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
                StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
            )
            self.customers_arn = made["TableDescription"]["LatestStreamArn"]
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    # --- writing ----------------------------------------------------------------------------------------------

    async def put_clicks(self, orders: Sequence[dict[str, Any]]) -> None:
        """Put orders into the Kinesis stream, a customer's in their order; PollerError when one is refused."""
        records = [{"Data": json.dumps(one).encode(), "PartitionKey": one["customer"]} for one in orders]
        reply = await self._kinesis.put_records(StreamName=CLICKS, Records=records)
        if reply["FailedRecordCount"]:
            raise PollerError("the emulator refused a record of the Kinesis stream")

    async def put_customers(self, orders: Sequence[dict[str, Any]]) -> None:
        """Write orders into the table; PollerError when one is refused."""
        requests = [{"PutRequest": {"Item": _item(one)}} for one in orders]
        reply = await self._table.batch_write_item(RequestItems={CUSTOMERS: requests})
        if reply.get("UnprocessedItems"):
            raise PollerError("the emulator refused an item of the table")

    # --- reading what is left and what was given up -----------------------------------------------------------

    async def behind(self, clicks: Mapping[str, Checkpoint], customers: Mapping[str, Checkpoint]) -> set[str]:
        """The ids of what the streams hold behind these checkpoints, by shard."""
        listed = await self._kinesis.list_shards(StreamARN=self.clicks_arn)
        described = await self._changes.describe_stream(StreamArn=self.customers_arn)
        ids: set[str] = set()
        for shard in listed["Shards"]:
            ids |= await self._clicks_from(shard["ShardId"], _after(clicks.get(shard["ShardId"])))
        for shard in described["StreamDescription"]["Shards"]:
            ids |= await self._customers_from(shard["ShardId"], _after(customers.get(shard["ShardId"])))
        return ids

    async def given_up(self, document: dict[str, Any]) -> set[str]:
        """The ids of the batch that an on-failure document tells of: it says where they are, not what they were."""
        batch = document["KinesisBatchInfo"]
        start = {
            "ShardIteratorType": "AT_SEQUENCE_NUMBER",
            "StartingSequenceNumber": batch["startSequenceNumber"],
        }
        return await self._clicks_from(batch["shardId"], start, batch["batchSize"])

    async def _clicks_from(self, shard: str, start: dict[str, str], count: int | None = None) -> set[str]:
        iterator = await self._kinesis.get_shard_iterator(StreamARN=self.clicks_arn, ShardId=shard, **start)
        records = await _read(self._kinesis, iterator["ShardIterator"], count)
        return {json.loads(record["Data"])["id"] for record in records}

    async def _customers_from(self, shard: str, start: dict[str, str]) -> set[str]:
        if number := start.pop("StartingSequenceNumber", ""):
            start["SequenceNumber"] = number
        iterator = await self._changes.get_shard_iterator(
            StreamArn=self.customers_arn, ShardId=shard, **start
        )
        records = await _read(self._changes, iterator["ShardIterator"], None)
        return {record["dynamodb"]["Keys"]["id"]["S"] for record in records}


async def _read(client: Any, iterator: str | None, count: int | None) -> list[dict[str, Any]]:
    """The next `count` records, or all to the end of the shard as it is now."""
    found: list[dict[str, Any]] = []
    while iterator and (count is None or len(found) < count):
        limit = {} if count is None else {"Limit": count - len(found)}
        reply = await client.get_records(ShardIterator=iterator, **limit)
        if not reply["Records"]:
            break
        found += reply["Records"]
        iterator = reply.get("NextShardIterator")
    return found


def _after(checkpoint: Checkpoint | None) -> dict[str, str]:
    if checkpoint is None or not checkpoint.sequence_number:
        return {"ShardIteratorType": "TRIM_HORIZON"}
    return {
        "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
        "StartingSequenceNumber": checkpoint.sequence_number,
    }


def _item(order: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {
        name: {"N": str(value)} if isinstance(value, int | float) else {"S": value}
        for name, value in order.items()
    }
