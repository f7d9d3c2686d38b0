import json
from operator import attrgetter

import anyio
import pytest

from poller.demo.streams import CLICKS, CUSTOMERS
from poller.demo.traffic import DEAD_LETTER_QUEUES, FAILED_QUEUE, QUEUES, Traffic
from poller.errors import PollerError
from poller.model import Checkpoint

pytestmark = pytest.mark.anyio


@pytest.fixture
async def traffic(emulator):
    async with Traffic(emulator.endpoint_url, rate=1000, seed=7) as ready:
        yield ready
        for queue in (*QUEUES, *DEAD_LETTER_QUEUES, FAILED_QUEUE):
            await ready._sqs.delete_queue(QueueUrl=ready._urls[queue])
        await ready.streams._kinesis.delete_stream(StreamName=CLICKS)
        await ready.streams._table.delete_table(TableName=CUSTOMERS)


def queued(traffic):
    return traffic.sent.all - traffic.sent.streamed


@pytest.mark.slow
async def test_all_that_is_sent_is_in_queues_and_streams_with_some_drafts_and_some_poison(traffic):
    await traffic.send(300)

    assert len(traffic.sent.all) == 300
    assert await traffic.waiting(*QUEUES) == len(queued(traffic)) > 100
    assert 5 < len(traffic.sent.drafts) < 25
    assert 1 < len(traffic.sent.poison) < 15
    assert not traffic.sent.drafts & traffic.sent.poison

    assert await traffic.streams.behind({}, {}) == traffic.sent.streamed
    taken = [await traffic.take(queue) for queue in QUEUES]
    assert all(taken)
    # Of a FIFO queue one receive takes what one group has; the next one takes more.
    assert set().union(*taken) == queued(traffic)
    assert await traffic.waiting(*QUEUES) == 0


@pytest.mark.slow
async def test_an_order_that_fails_three_times_is_dead_lettered(traffic):
    while not queued(traffic):
        await traffic.send(1)
    (queue,) = [queue for queue in QUEUES if await traffic.waiting(queue)]
    dead = DEAD_LETTER_QUEUES[QUEUES.index(queue)]
    for _ in range(3):
        (message,) = await traffic._receive(queue)
        await traffic._sqs.change_message_visibility(
            QueueUrl=traffic._urls[queue], ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )

    assert await traffic._receive(queue) == []
    assert await traffic.take(dead) == queued(traffic)


@pytest.mark.slow
async def test_what_lies_behind_the_checkpoints_is_left_and_what_was_given_up_is_found_again(traffic):
    clicks = [{"id": f"click-{number}", "customer": "c"} for number in range(5)]
    await traffic.streams.put_clicks(clicks)
    await traffic.streams.put_customers([{"id": f"customer-{number}", "amount": 1} for number in range(5)])
    streams = traffic.streams
    kinesis = await records(streams._kinesis, {"StreamARN": streams.clicks_arn})
    dynamodb = await records(streams._changes, {"StreamArn": streams.customers_arn})
    (shard, numbers), (change_shard, changes) = kinesis, dynamodb

    left = await streams.behind(
        {shard: Checkpoint(numbers[1])}, {change_shard: Checkpoint(changes[3]), "other": Checkpoint()}
    )
    assert left == {"click-2", "click-3", "click-4", "customer-4"}

    where = {"shardId": shard, "startSequenceNumber": numbers[1], "batchSize": 2}
    body = json.dumps({"KinesisBatchInfo": where})
    await traffic._sqs.send_message(QueueUrl=traffic._urls[FAILED_QUEUE], MessageBody=body)
    assert await traffic.take_given_up() == {"click-1", "click-2"}
    assert await traffic.waiting(FAILED_QUEUE) == 0


async def records(client, stream):
    """The one shard that has records, and their sequence numbers."""
    if "StreamARN" in stream:
        shards = (await client.list_shards(**stream))["Shards"]
    else:
        shards = (await client.describe_stream(**stream))["StreamDescription"]["Shards"]
    for shard in shards:
        start = {"ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        iterator = (await client.get_shard_iterator(**stream, **start))["ShardIterator"]
        if found := (await client.get_records(ShardIterator=iterator))["Records"]:
            return shard["ShardId"], [one.get("dynamodb", one)["SequenceNumber"] for one in found]
    raise AssertionError("no shard has records")


async def test_sending_goes_on_until_it_is_cancelled_and_what_was_sent_is_known(traffic):
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(traffic.run)
            while not queued(traffic):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    assert await traffic.waiting(*QUEUES) == len(queued(traffic)) > 0
    assert await traffic.streams.behind({}, {}) == traffic.sent.streamed


@pytest.mark.parametrize(
    ("kind", "where", "method", "reply"),
    [
        ("order", "_sqs", "send_message_batch", {"Failed": [{"Id": "0", "Message": "the queue is full"}]}),
        ("click", "streams._kinesis", "put_records", {"FailedRecordCount": 1}),
        ("customer", "streams._table", "batch_write_item", {"UnprocessedItems": {CUSTOMERS: [{}]}}),
    ],
)
async def test_an_order_that_is_refused_is_not_counted_as_sent(
    traffic, monkeypatch, kind, where, method, reply
):
    async def refuse(**_):
        return reply

    monkeypatch.setattr(attrgetter(where)(traffic), method, refuse)
    monkeypatch.setattr("poller.demo.traffic._WAYS", {kind: 1})

    with pytest.raises(PollerError, match="the emulator refused"):
        await traffic.send(1)
    assert traffic.sent.all == set()
