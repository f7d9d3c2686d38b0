"""What is told of a queue's messages: to whom, in which form, and that nothing is deleted before it is taken."""

from __future__ import annotations

from uuid import UUID

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.destinations.memory import MemoryDestination
from poller.errors import AccessDenied, DocumentTooLarge
from poller.model import Delivered, DeliveryFailed, FunctionError, MappingState, Settled, Spooled
from tests.engine.fakes import (
    BUSY,
    EPOCH,
    ERROR,
    OK,
    Function,
    Mapping,
    Queue,
    failing,
    in_virtual_time,
    settle_down,
    virtual,
)

FUNCTION_ARN = "arn:aws:lambda:eu-west-1:123456789012:function:ship"
DENIED = AccessDenied("sqs:SendMessage is missing")


class Small(MemoryDestination):
    """A destination that takes documents of a few records only, as a message of limited size does."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    async def send(self, delivery):
        if len(delivery.document["requestPayload"]["Records"]) > self.most:
            raise DocumentTooLarge("a document of 12 bytes; the destination takes 10")
        await super().send(delivery)


def given_up_after(retries, *replies, queue=None, destination=None, **more):
    """A mapping that gives up, over a queue whose messages come back after a second."""
    return Mapping(
        queue=queue or Queue(visibility=1.0),
        function=Function(*replies),
        on_failure=destination or MemoryDestination(),
        maximum_retry_attempts=retries,
        **more,
    )


def told(destination):
    """The ids of the messages of each document, in the order of their arrival."""
    return [
        [record["messageId"] for record in delivery.document["requestPayload"]["Records"]]
        for delivery in destination.deliveries
    ]


def gone(mapping):
    return not mapping.queue.messages


# --- giving up ----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_message_is_given_up_when_its_last_retry_has_failed_and_then_deleted():
    mapping = given_up_after(2, ERROR, ERROR, ERROR)
    mapping.queue.send(2)
    async with mapping.running():
        await anyio.sleep(10)
    assert mapping.function.batches == [["m1", "m2"]] * 3
    assert told(mapping.on_failure) == [["m1", "m2"]]
    assert (gone(mapping), mapping.queue.acked) == (True, ["m1", "m2"])
    assert mapping.observer.of(Delivered) == [Delivered("orders", "", 2, "RetriesExhausted")]
    assert mapping.observer.of(Settled) == [
        Settled("orders", left=2),
        Settled("orders", left=2),
        Settled("orders", deleted=2),
    ]


@virtual
async def test_the_document_is_the_record_of_the_last_invocation_with_the_event_of_the_messages():
    said = {"errorType": "OutOfStock", "errorMessage": "no stock", "trace": ["line 9"]}
    error = FunctionError("OutOfStock", "no stock", ("line 9",), said=said)
    mapping = given_up_after(0, error)
    mapping.queue.send(1)
    async with mapping.running():
        await anyio.sleep(5)
    (delivery,) = mapping.on_failure.deliveries
    request_id = mapping.function.calls[0].invocation.request_id
    assert delivery.document == {
        "version": "1.0",
        "timestamp": "2023-11-14T22:13:20.000Z",
        "requestContext": {
            "requestId": request_id,
            "functionArn": f"{FUNCTION_ARN}:$LATEST",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 1,
        },
        "requestPayload": {"Records": [{"messageId": "m1", "receives": 1, "group": None}]},
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled",
        },
        "responsePayload": said,
    }
    assert (delivery.mapping, delivery.shard, delivery.function_arn) == ("orders", "", FUNCTION_ARN)
    assert (delivery.event, delivery.at, delivery.records) == (None, EPOCH, 1)
    assert (delivery.condition, delivery.succeeded) == ("RetriesExhausted", False)
    assert (delivery.error_type, delivery.error_message) == ("OutOfStock", "no stock")
    assert delivery.id == str(UUID(delivery.id))


@virtual
async def test_what_a_handler_does_to_its_event_is_not_told():
    async def spoil(call):
        call.invocation.event["Records"][0].clear()
        call.invocation.event["Records"].pop()
        return ERROR

    mapping = given_up_after(0)
    mapping.function = Function(handler=spoil)
    mapping.queue.send(2)
    async with mapping.running():
        await anyio.sleep(5)
    assert told(mapping.on_failure) == [["m1", "m2"]]


@virtual
async def test_of_a_partly_failed_batch_just_what_failed_is_told_with_what_the_function_returned():
    mapping = given_up_after(0, failing("m3", "m1"), partial=True)
    mapping.queue.send(4)
    async with mapping.running():
        await anyio.sleep(5)
    assert told(mapping.on_failure) == [["m1", "m3"]]
    (delivery,) = mapping.on_failure.deliveries
    assert delivery.document["responsePayload"] == failing("m3", "m1").payload
    assert "functionError" not in delivery.document["responseContext"]
    assert (delivery.error_type, mapping.queue.acked) == ("", ["m2", "m4", "m1", "m3"])


@virtual
async def test_what_may_be_retried_is_left_while_others_of_its_batch_are_given_up():
    mapping = given_up_after(1, ERROR, ERROR, ERROR, batch_size=10)
    mapping.queue.send(1)
    async with mapping.running():
        await anyio.sleep(0.9)
        mapping.queue.send(1)
        mapping.queue.messages[1].visible_at = mapping.queue.messages[0].visible_at
        await anyio.sleep(10)
    assert mapping.function.batches == [["m1"], ["m1", "m2"], ["m2"]]
    assert told(mapping.on_failure) == [["m1"], ["m2"]]
    assert gone(mapping)


@virtual
async def test_what_no_handler_saw_is_not_given_up():
    mapping = given_up_after(0, *[BUSY] * 9, patience=5)
    mapping.queue.send(1)
    async with mapping.running():
        await anyio.sleep(8)
    assert mapping.on_failure.deliveries == []
    assert not gone(mapping)


@virtual
async def test_a_healthy_batch_is_neither_watched_nor_told():
    mapping = given_up_after(3)
    mapping.queue.send(10)
    async with mapping.running():
        await anyio.sleep(5)
    assert (mapping.on_failure.deliveries, len(mapping.queue.acked)) == ([], 10)
    assert mapping.function.calls[0].invocation.request_id == "r-1"


# --- success ------------------------------------------------------------------------------------------------------------


@virtual
async def test_success_is_told_and_then_deleted():
    mapping = Mapping(function=Function(OK), on_success=MemoryDestination())
    mapping.queue.send(3)
    async with mapping.running():
        await anyio.sleep(5)
    assert told(mapping.on_success) == [["m1", "m2", "m3"]]
    (delivery,) = mapping.on_success.deliveries
    context = delivery.document["requestContext"]
    assert (context["condition"], context["approximateInvokeCount"]) == ("Success", 1)
    assert "functionError" not in delivery.document["responseContext"]
    assert (delivery.succeeded, gone(mapping)) == (True, True)
    assert mapping.observer.of(Delivered) == [Delivered("orders", "", 3, "Success", succeeded=True)]


@virtual
async def test_a_partly_failed_batch_is_told_in_two_parts():
    mapping = given_up_after(0, failing("m2"), partial=True, on_success=MemoryDestination())
    mapping.queue.send(3)
    async with mapping.running():
        await anyio.sleep(5)
    assert told(mapping.on_success) == [["m1", "m3"]]
    assert told(mapping.on_failure) == [["m2"]]
    assert gone(mapping)


@virtual
async def test_without_a_destination_for_failures_they_are_left_as_ever():
    mapping = Mapping(function=Function(ERROR), queue=Queue(visibility=1), on_success=MemoryDestination())
    mapping.queue.send(1)
    async with mapping.running():
        await anyio.sleep(5)
    assert mapping.function.batches == [["m1"]] * 2
    assert told(mapping.on_success) == [["m1"]]


@virtual
async def test_what_was_filtered_out_is_not_told():
    from tests.engine.fakes import Dropping

    mapping = Mapping(on_success=MemoryDestination(), filters=Dropping("m2"))
    mapping.queue.send(3)
    async with mapping.running():
        await anyio.sleep(5)
    assert told(mapping.on_success) == [["m1", "m3"]]
    assert gone(mapping)


# --- a destination that is down -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["on_failure", "on_success"])
@virtual
async def test_while_a_destination_is_down_nothing_is_deleted_and_the_mapping_says_so(kind):
    mapping = given_up_after(0, ERROR) if kind == "on_failure" else Mapping(on_success=MemoryDestination())
    destination = getattr(mapping, kind)
    destination.broken = DENIED
    mapping.queue.send(1)
    called = kind.replace("_", "-")
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        assert pipeline.trouble == f"waiting for the {called} destination: sqs:SendMessage is missing"
        assert mapping.queue.acked == []
        assert len(mapping.queue.kept) == 1, "it is kept invisible"
        assert len(mapping.function.calls) == 1
        destination.broken = None
        await anyio.sleep(5)
        assert pipeline.trouble is None
    assert mapping.observer.of(DeliveryFailed) == [
        DeliveryFailed("orders", "", str(DENIED), pause, succeeded=kind == "on_success")
        for pause in (0.5, 1.0, 2.0, 4.0)
    ]
    assert mapping.observer.states() == [MappingState.DEGRADED, MappingState.RUNNING]
    assert gone(mapping)
    assert len(destination.deliveries) == 1


@virtual
async def test_a_destination_that_is_down_holds_up_no_more_workers_than_there_may_be():
    mapping = given_up_after(0, *[ERROR] * 100, batch_size=1, maximum_concurrency=3)
    mapping.on_failure.broken = DENIED
    mapping.queue.send(50)
    async with mapping.running() as pipeline:
        await anyio.sleep(300)
        assert len(mapping.function.calls) == 3
        held = len(mapping.queue.kept)
        assert held <= 13, "three in the hands of workers, and one receive"
        assert pipeline.at_capacity
        mapping.on_failure.broken = None
        await anyio.sleep(300)
    assert sorted(told(mapping.on_failure)) == sorted([id_] for id_ in mapping.queue.acked)
    assert (len(mapping.queue.acked), gone(mapping)) == (50, True)


@virtual
async def test_one_destination_that_is_up_takes_what_another_waiting_worker_does_not_have():
    mapping = given_up_after(0, failing("m1"), OK, partial=True, batch_size=1, maximum_concurrency=2)
    mapping.on_failure.broken = DENIED
    mapping.queue.send(1)
    async with mapping.running():
        await anyio.sleep(5)
        mapping.queue.send(3)
        await anyio.sleep(5)
        assert mapping.queue.acked == ["m2", "m3", "m4"]


@pytest.mark.parametrize("kind", ["on_failure", "on_success"])
@virtual
async def test_a_pause_ends_the_wait_and_leaves_the_messages_to_the_queue(kind):
    mapping = given_up_after(0, ERROR) if kind == "on_failure" else Mapping(queue=Queue(visibility=1))
    setattr(mapping, kind, MemoryDestination())
    destination = getattr(mapping, kind)
    destination.broken = DENIED
    mapping.queue.send(2)
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        await settle_down()
        assert (mapping.queue.left, mapping.queue.acked) == (["m1", "m2"], [])
        assert pipeline.trouble is None
        assert mapping.observer.states() == [MappingState.DEGRADED]
        destination.broken = None
        mapping.function._replies = [ERROR] if kind == "on_failure" else []
        pipeline.open()
        await anyio.sleep(5)
    assert told(destination) == [["m1", "m2"]]
    assert gone(mapping)


# --- size ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_document_that_is_too_large_is_told_in_parts_in_their_order_each_deleted_when_it_is_taken():
    mapping = given_up_after(0, ERROR, destination=Small(2), batch_size=10)
    mapping.queue.send(7)
    async with mapping.running():
        await anyio.sleep(5)
    parts = told(mapping.on_failure)
    assert [id_ for part in parts for id_ in part] == [f"m{number}" for number in range(1, 8)]
    assert max(map(len, parts)) == 2
    assert mapping.queue.acked == [f"m{number}" for number in range(1, 8)]
    assert len({delivery.id for delivery in mapping.on_failure.deliveries}) == len(parts)
    assert mapping.observer.of(DeliveryFailed) == []


@virtual
async def test_a_message_that_is_too_large_by_itself_stays_in_the_queue_and_is_said_loudly():
    mapping = given_up_after(0, *[ERROR] * 2, destination=Small(0), batch_size=2)
    mapping.queue.send(2)
    async with mapping.running():
        await settle_down()
        assert mapping.queue.left == ["m1", "m2"]
        assert mapping.queue.acked == []
        assert (
            mapping.observer.of(DeliveryFailed)
            == [DeliveryFailed("orders", "", "a document of 12 bytes; the destination takes 10", None)] * 2
        )
        await anyio.sleep(0.9)
        assert len(mapping.function.calls) == 1, "no loop: the queue brings it back in its own time"


@virtual
async def test_a_success_that_is_too_large_is_deleted_all_the_same():
    mapping = Mapping(on_success=Small(0))
    mapping.queue.send(2)
    async with mapping.running():
        await anyio.sleep(5)
    assert gone(mapping)
    assert [fact.succeeded for fact in mapping.observer.of(DeliveryFailed)] == [True, True]


# --- order --------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_group_goes_on_only_when_what_was_given_up_of_it_is_delivered_and_deleted():
    mapping = given_up_after(0, ERROR, queue=Queue(fifo=True, visibility=1), batch_size=1)
    mapping.on_failure.broken = DENIED
    mapping.queue.send(2, group="a")
    mapping.queue.send(1, group="b")
    async with mapping.running():
        await anyio.sleep(5)
        assert mapping.function.batches == [["m1"], ["m3"]]
        mapping.on_failure.broken = None
        await anyio.sleep(5)
    assert mapping.function.batches == [["m1"], ["m3"], ["m2"]]
    assert mapping.queue.acked == ["m3", "m1", "m2"]


@virtual
async def test_what_was_given_up_and_cannot_be_told_holds_back_its_group():
    mapping = given_up_after(
        0, ERROR, queue=Queue(fifo=True, visibility=5), destination=Small(0), batch_size=1
    )
    mapping.queue.send(2, group="a")
    async with mapping.running():
        await anyio.sleep(4)
        assert mapping.function.batches == [["m1"]]


# --- the law ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60)
@given(
    poison=st.sets(st.integers(1, 20)),
    outages=st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 10)), max_size=3),
    pauses=st.lists(st.floats(0, 20), max_size=2),
    most=st.integers(1, 10),
    retries=st.integers(0, 2),
    fifo=st.booleans(),
)
def test_every_message_is_handled_or_told_before_it_is_deleted(poison, outages, pauses, most, retries, fifo):
    async def handle(call):
        bad = [id_ for id_ in call.ids if int(id_[1:]) in poison]
        return failing(*bad) if bad else OK

    async def live():
        mapping = given_up_after(
            retries, queue=Queue(fifo=fifo, visibility=2.0), destination=Small(most), partial=True
        )
        mapping.function = Function(handler=handle)

        def check(records):
            known = {id_ for part in told(mapping.on_failure) for id_ in part}
            assert {record.id for record in records if int(record.id[1:]) in poison} <= known

        mapping.queue.on_ack = check
        for number in range(20):
            mapping.queue.send(1, group=f"g{number % 4}")

        async def fail(at, seconds):
            await anyio.sleep(at)
            mapping.on_failure.broken = DENIED
            await anyio.sleep(seconds)
            mapping.on_failure.broken = None

        async def pause(pipeline, at):
            await anyio.sleep(at)
            pipeline.close()
            await anyio.sleep(1)
            pipeline.open()

        async with mapping.running() as pipeline, anyio.create_task_group() as tasks:
            for outage in outages:
                tasks.start_soon(fail, *outage)
            for at in pauses:
                tasks.start_soon(pause, pipeline, at)
            await anyio.sleep(400)
        assert gone(mapping)
        assert {id_ for part in told(mapping.on_failure) for id_ in part} == {f"m{n}" for n in poison}

    in_virtual_time(live)


# --- a spool behind the destinations ------------------------------------------------------------------------------------


@virtual
async def test_what_is_spooled_is_deleted_and_told_when_the_destination_is_back():
    mapping = given_up_after(0, ERROR, OK, spool_after=2, on_success=MemoryDestination())
    mapping.on_failure.broken = mapping.on_success.broken = DENIED
    mapping.queue.send(2)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        assert pipeline.trouble == "waiting for the on-failure destination: sqs:SendMessage is missing"
        await anyio.sleep(1)
        assert gone(mapping)
        assert pipeline.trouble is None
        mapping.queue.send(1)
        await anyio.sleep(10)
        assert gone(mapping)
        assert [line.destination for line in mapping.spoolers[0].status()] == ["failure", "success"]
        mapping.on_failure.broken = mapping.on_success.broken = None
        await anyio.sleep(70)
        assert mapping.spoolers[0].status() == ()
    assert told(mapping.on_failure) == [["m1", "m2"]]
    assert told(mapping.on_success) == [["m3"]]
    assert [(fact.records, fact.condition) for fact in mapping.observer.of(Spooled)] == [
        (2, "RetriesExhausted"),
        (1, "Success"),
    ]


@virtual
async def test_what_is_too_large_is_told_in_halves_by_way_of_the_spool_too():
    mapping = given_up_after(0, *[ERROR] * 9, spool_after=1)
    mapping.on_failure.broken = DENIED
    mapping.on_failure.limit = 520
    mapping.queue.send(4)
    async with mapping.running():
        await anyio.sleep(10)
        assert gone(mapping)
        mapping.on_failure.broken = None
        await anyio.sleep(70)
    assert told(mapping.on_failure) == [["m1", "m2"], ["m3", "m4"]]
