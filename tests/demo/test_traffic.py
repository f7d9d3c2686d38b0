import anyio
import pytest

from poller.demo.traffic import DEAD_LETTER_QUEUES, QUEUES, Traffic
from poller.errors import PollerError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def traffic(emulator):
    async with Traffic(emulator.endpoint_url, rate=1000, seed=7) as ready:
        yield ready
        for queue in (*QUEUES, *DEAD_LETTER_QUEUES):
            await ready._sqs.delete_queue(QueueUrl=ready._urls[queue])


@pytest.mark.slow
async def test_all_that_is_sent_is_in_the_queues_with_some_drafts_and_some_poison(traffic):
    await traffic.send(300)

    assert await traffic.waiting(*QUEUES) == 300
    assert len(traffic.sent.all) == 300
    assert 5 < len(traffic.sent.drafts) < 25
    assert 1 < len(traffic.sent.poison) < 15
    assert not traffic.sent.drafts & traffic.sent.poison

    taken = [await traffic.take(queue) for queue in QUEUES]
    assert all(taken)
    # Of a FIFO queue one receive takes what one group has; the next one takes more.
    assert set().union(*taken) == traffic.sent.all
    assert await traffic.waiting(*QUEUES) == 0


@pytest.mark.slow
async def test_an_order_that_fails_three_times_is_dead_lettered(traffic):
    await traffic.send(1)
    (queue,) = [queue for queue in QUEUES if await traffic.waiting(queue)]
    dead = DEAD_LETTER_QUEUES[QUEUES.index(queue)]
    for _ in range(3):
        (message,) = await traffic._receive(queue)
        await traffic._sqs.change_message_visibility(
            QueueUrl=traffic._urls[queue], ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )

    assert await traffic._receive(queue) == []
    assert await traffic.take(dead) == traffic.sent.all


async def test_sending_goes_on_until_it_is_cancelled_and_what_was_sent_is_known(traffic):
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(traffic.run)
            while not traffic.sent.all:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    assert await traffic.waiting(*QUEUES) == len(traffic.sent.all) > 0


async def test_an_order_that_is_refused_is_not_counted_as_sent(traffic, monkeypatch):
    async def refuse(**_):
        return {"Failed": [{"Id": "0", "Message": "the queue is full"}]}

    monkeypatch.setattr(traffic._sqs, "send_message_batch", refuse)

    with pytest.raises(PollerError, match="refused an order: the queue is full"):
        await traffic.send(1)
    assert traffic.sent.all == set()
