"""What the daemon on streams is compared with: GetRecords loops, one a shard, that do nothing with what they get."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NoReturn

from tests.bench.canned_reply import ACCOUNT
from tests.bench.canned_streams import DynamoDbStreams, Kinesis
from tests.bench.windows import REGION, Count, window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

SHARDS = 4
KINESIS = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/busy-{SHARDS}"
DYNAMODB = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/busy-{SHARDS}/stream/2026-01-01T00:00:00.000"


def _seek(service: str, number: int) -> dict[str, Any]:
    if service == "kinesis":
        shard = {
            "StreamARN": KINESIS,
            "StreamName": f"busy-{SHARDS}",
            "ShardId": Kinesis.shard_id.format(number),
        }
    else:
        shard = {"StreamArn": DYNAMODB, "ShardId": DynamoDbStreams.shard_id.format(number)}
    return {**shard, "ShardIteratorType": "TRIM_HORIZON"}


async def _read(service: str, call: Call, warm_up: float, seconds: float) -> dict[str, float]:
    numbers = iter(range(SHARDS))

    async def loop(count: Count) -> None:
        reply = await call("GetShardIterator", _seek(service, next(numbers)))
        iterator = reply["ShardIterator"]
        while True:
            reply = await call("GetRecords", {"ShardIterator": iterator, "Limit": 1000})
            count.messages += len(reply["Records"])
            iterator = reply["NextShardIterator"]

    return await window(loop, Count(), warm_up, seconds, loops=SHARDS)


def aiobotocore(service: str) -> Any:
    """The loops on one client, as a good user would write them."""

    async def run(endpoint: str, warm_up: float, seconds: float) -> dict[str, float]:
        from aiobotocore.session import get_session

        async with get_session().create_client(service, region_name=REGION, endpoint_url=endpoint) as client:

            async def call(operation: str, params: dict[str, Any]) -> dict[str, Any]:
                method = client.get_records if operation == "GetRecords" else client.get_shard_iterator
                found: dict[str, Any] = await method(**params)
                return found

            return await _read(service, call, warm_up, seconds)

    return run


def wire(service: str) -> Any:
    """The loops on poller's own hot calls."""

    async def run(endpoint: str, warm_up: float, seconds: float) -> dict[str, float]:
        from poller.aws.session import AwsSession
        from poller.config import Aws
        from poller.telemetry.observers import Fanout

        async with AwsSession(Aws(region=REGION, endpoint_url=endpoint), Fanout()) as session:
            api = await session.api(service)

            async def call(operation: str, params: dict[str, Any]) -> dict[str, Any]:
                return await api(operation, params, 30)

            return await _read(service, call, warm_up, seconds)

    return run


async def async_kinesis(endpoint: str, warm_up: float, seconds: float) -> NoReturn:
    """The package's consumer, as its README has it, but without its pause of a second between the reads of a shard. It prints
    what it measured by itself, and ends the process.
    """
    from kinesis import Consumer, StringProcessor

    consumer = Consumer(
        f"busy-{SHARDS}",
        endpoint_url=endpoint,
        region_name=REGION,
        processor=StringProcessor(),
        record_limit=1000,
        shard_fetch_rate=1000,
        use_list_shards=True,
        idle_timeout=60.0,
    )

    async def loop(count: Count) -> None:
        async for record in consumer:
            len(record)
            count.messages += 1
            if count.over:
                return

    await consumer.__aenter__()
    measured = await window(loop, Count(), warm_up, seconds, loops=1)
    # It is not left: its tasks would wait for room for records that nobody takes any more, even when they are cancelled.
    print(json.dumps(measured), flush=True)
    os._exit(0)
