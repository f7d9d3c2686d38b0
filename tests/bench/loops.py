"""What is compared with the daemon: receive-and-delete loops, each run as a process of its own.

    python -m tests.bench.loops aiobotocore ENDPOINT --seconds 5        prints one JSON object

* `aiobotocore`: what a good user would write: one client, ten loops at the same time, uvloop.
* `boto3`: the loop of every tutorial: one thread, blocking.
* `wire`: poller's own hot calls in ten loops, without the engine, events or a handler.
* `async-kinesis`: the consumer of that package.
* `kinesis-aiobotocore` and so on: the same on streams; see `stream_loops`.
"""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

from tests.bench import stream_loops
from tests.bench.windows import COUNTED, REGION, Count, window

LOOPS = 10
RECEIVE = {
    "MaxNumberOfMessages": 10,
    "WaitTimeSeconds": 20,
    "MessageSystemAttributeNames": ["All"],
    "MessageAttributeNames": ["All"],
}


def _entries(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"Id": str(at), "ReceiptHandle": message["ReceiptHandle"]} for at, message in enumerate(messages)]


async def aiobotocore(endpoint: str, warm_up: float, seconds: float) -> dict[str, float]:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(max_pool_connections=50)
    async with get_session().create_client(
        "sqs", region_name=REGION, endpoint_url=endpoint, config=config
    ) as sqs:
        url = (await sqs.get_queue_url(QueueName="busy"))["QueueUrl"]

        async def loop(count: Count) -> None:
            while True:
                messages = (await sqs.receive_message(QueueUrl=url, **RECEIVE)).get("Messages")
                if messages:
                    reply = await sqs.delete_message_batch(QueueUrl=url, Entries=_entries(messages))
                    count.messages += len(reply["Successful"])

        return await window(loop, Count(), warm_up, seconds, LOOPS)


async def wire(endpoint: str, warm_up: float, seconds: float) -> dict[str, float]:
    from poller.aws.session import AwsSession
    from poller.config import Aws
    from poller.telemetry.observers import Fanout

    async with AwsSession(Aws(region=REGION, endpoint_url=endpoint), Fanout()) as session:
        sqs = await session.hot("sqs")
        url = (await session.call("sqs", "GetQueueUrl", {"QueueName": "busy"}))["QueueUrl"]

        async def loop(count: Count) -> None:
            while True:
                reply = await sqs.call("ReceiveMessage", {"QueueUrl": url, **RECEIVE}, timeout=30)
                entries = _entries(reply["Messages"])
                reply = await sqs.call(
                    "DeleteMessageBatch", {"QueueUrl": url, "Entries": entries}, timeout=10
                )
                count.messages += len(reply["Successful"])

        return await window(loop, Count(), warm_up, seconds, LOOPS)


def boto3(endpoint: str, warm_up: float, seconds: float) -> dict[str, float]:
    import boto3

    sqs = boto3.client("sqs", region_name=REGION, endpoint_url=endpoint)
    url = sqs.get_queue_url(QueueName="busy")["QueueUrl"]
    count = Count()
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set():
            messages = sqs.receive_message(QueueUrl=url, **RECEIVE).get("Messages")
            if messages:
                reply = sqs.delete_message_batch(QueueUrl=url, Entries=_entries(messages))
                count.messages += len(reply["Successful"])

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    ended.wait(warm_up)
    count.begin()
    ended.wait(seconds)
    measured = count.end()
    with count.allocations(measured):
        ended.wait(COUNTED)
    ended.set()
    thread.join()
    return measured


LOOPS_BY_NAME: dict[str, Any] = {
    "aiobotocore": aiobotocore,
    "wire": wire,
    "kinesis-aiobotocore": stream_loops.aiobotocore("kinesis"),
    "async-kinesis": stream_loops.async_kinesis,
    "kinesis-wire": stream_loops.wire("kinesis"),
    "dynamodb-aiobotocore": stream_loops.aiobotocore("dynamodbstreams"),
    "dynamodb-wire": stream_loops.wire("dynamodbstreams"),
}


def main() -> None:
    """Run one loop and print what it measured."""
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=["boto3", *LOOPS_BY_NAME])
    parser.add_argument("endpoint")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.5)
    asked = parser.parse_args()
    timing = (asked.endpoint, asked.warm_up, asked.seconds)
    loop = LOOPS_BY_NAME.get(asked.loop)
    measured = uvloop.run(loop(*timing)) if loop else boto3(*timing)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
