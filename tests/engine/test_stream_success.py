"""What a stream's on-success destination is told, and that no checkpoint passes before it is."""

from __future__ import annotations

import anyio

from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.errors import AccessDenied, DocumentTooLarge
from poller.model import Delivered, DeliveryFailed, Dropped
from tests.engine.fakes import EPOCH, ERROR, Function, failing, settle_down, virtual
from tests.engine.stream_fakes import FUNCTION_ARN, Clicks
from tests.engine.test_stream_windows import Counting, final, invoked, put_at, seen, windowed

DENIED = AccessDenied("sqs:SendMessage is missing")


def telling(*replies, **more):
    return Clicks(function=Function(*replies), on_success=MemoryDestination(), **more)


def told(clicks):
    return [
        [record["messageId"] for record in delivery.document["requestPayload"]["Records"]]
        for delivery in clicks.on_success.deliveries
    ]


def position(clicks):
    return clicks.keeper.checkpoints["shard-000"].sequence_number


@virtual
async def test_each_batch_that_succeeded_is_told_with_its_event_and_the_answer():
    clicks = telling(batch_size=2)
    clicks.stream.put(3)
    async with clicks.running():
        await settle_down()
        assert position(clicks) == "3"
    assert told(clicks) == [["1", "2"], ["3"]]
    first = clicks.on_success.deliveries[0]
    assert first.document["requestContext"] == {
        "requestId": "r-1",
        "functionArn": f"{FUNCTION_ARN}:$LATEST",
        "condition": "Success",
        "approximateInvokeCount": 1,
    }
    assert first.document["responsePayload"] is None
    assert (first.mapping, first.shard, first.succeeded, first.event, first.at) == (
        "clicks",
        "shard-000",
        True,
        None,
        EPOCH,
    )
    assert len({delivery.id for delivery in clicks.on_success.deliveries}) == 2
    assert clicks.observer.of(Delivered)[0] == Delivered("clicks", "shard-000", 2, "Success", succeeded=True)


@virtual
async def test_of_a_partly_failed_batch_what_came_before_the_failure_is_told():
    clicks = telling(failing("3"), partial=True)
    clicks.stream.put(4)
    async with clicks.running():
        await anyio.sleep(60)
    assert told(clicks) == [["1", "2"], ["3", "4"]]
    assert clicks.on_success.deliveries[0].document["responsePayload"] == failing("3").payload


@virtual
async def test_what_failed_is_not_told_as_a_success():
    clicks = telling(ERROR, policy=StreamPolicy(maximum_retry_attempts=0), batch_size=1)
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(5)
    assert told(clicks) == [["2"]]
    assert [fact.first for fact in clicks.observer.of(Dropped)] == ["1"]


@virtual
async def test_the_checkpoint_waits_for_the_destination_and_the_shard_says_so():
    clicks = telling(batch_size=1)
    clicks.on_success.broken = DENIED
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(5)
        waits = "waiting for the on-success destination: sqs:SendMessage is missing"
        assert clicks.keeper.shards()[0].doing == waits
        assert position(clicks) == ""
        assert clicks.function.batches == [["1"]]
        clicks.on_success.broken = None
        await anyio.sleep(5)
        assert position(clicks) == "2"
    assert told(clicks) == [["1"], ["2"]]
    assert clicks.function.batches == [["1"], ["2"]]
    assert all(fact.succeeded for fact in clicks.observer.of(DeliveryFailed))


@virtual
async def test_a_pause_ends_the_wait_and_the_function_sees_the_records_again():
    clicks = telling()
    clicks.on_success.broken = DENIED
    clicks.stream.put(2)
    async with clicks.running() as keeper:
        await anyio.sleep(5)
        keeper.close()
        await settle_down()
        assert position(clicks) == ""
        clicks.on_success.broken = None
        keeper.open()
        await anyio.sleep(30)
        assert position(clicks) == "2"
    assert clicks.function.batches == [["1", "2"]] * 2
    assert told(clicks) == [["1", "2"]]


@virtual
async def test_what_is_too_large_to_be_told_is_done_all_the_same():
    clicks = telling()
    clicks.on_success.broken = DocumentTooLarge()
    clicks.stream.put(2)
    async with clicks.running():
        await settle_down()
        assert position(clicks) == "2"
    (fact,) = clicks.observer.of(DeliveryFailed)
    assert (fact.retry_in, fact.succeeded) == (None, True)


# --- windows ------------------------------------------------------------------------------------------------------------


@virtual
async def test_the_invocations_of_a_window_are_told_as_they_were_asked_its_end_included():
    clicks = windowed(on_success=MemoryDestination())
    for second in (0, 1, 10):
        put_at(clicks.stream, second)
    async with clicks.running():
        await settle_down()
    assert told(clicks) == [["1", "2"], [], ["3"]]
    first, end, _ = (delivery.document["requestPayload"] for delivery in clicks.on_success.deliveries)
    assert (first["state"], first["isFinalInvokeForWindow"]) == ({}, False)
    assert (end["state"], end["isFinalInvokeForWindow"]) == (seen(2), True)
    assert clicks.on_success.deliveries[0].document["responsePayload"] == {"state": seen(2)}


@virtual
async def test_the_ends_of_windows_are_told_apart():
    clicks = windowed(on_success=MemoryDestination(), batch_size=1)
    for second in (0, 10, 20):
        put_at(clicks.stream, second)
    async with clicks.running():
        await settle_down()
    ids = [delivery.id for delivery in clicks.on_success.deliveries]
    assert len(set(ids)) == len(ids) == 5


@virtual
async def test_what_is_told_after_a_pause_only_counts_once_in_its_window():
    clicks = windowed(on_success=MemoryDestination())
    assert isinstance(clicks.function, Counting)
    clicks.on_success.broken = DENIED
    put_at(clicks.stream, 0)
    async with clicks.running() as keeper:
        await anyio.sleep(5)
        keeper.close()
        await settle_down()
        clicks.on_success.broken = None
        keeper.open()
        put_at(clicks.stream, 10)
        await anyio.sleep(60)
    assert clicks.function.seen[:3] == [invoked("1"), invoked("1"), final(1)]
