"""Dead letters on their way back: what of a message is kept, what is named as failed, what order means."""

from __future__ import annotations

from typing import Any

import pytest

from poller.errors import AccessDenied, Throttled
from poller.model import FunctionError, Invocation, Refused, Returned
from poller.runtimes.redrive import Redrive

pytestmark = pytest.mark.anyio
URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"


class Queue:
    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refused: set[str] = set()
        self.errors: list[Exception | None] = []

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.calls.append((operation, params))
        if self.errors and (error := self.errors.pop(0)):
            raise error
        if operation == "GetQueueUrl":
            return {"QueueUrl": URL}
        taken = [one["Id"] for one in params["Entries"] if one["MessageBody"] not in self.refused]
        return {"Successful": [{"Id": one} for one in taken]}

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [
            entry
            for operation, params in self.calls
            if operation == "SendMessageBatch"
            for entry in params["Entries"]
        ]


def message(body: str, **attributes: str) -> dict[str, Any]:
    return {"messageId": f"id-{body}", "body": body, "attributes": attributes, "messageAttributes": {}}


async def invoke(redrive: Redrive, *messages: dict[str, Any]) -> Any:
    return await redrive.invoke(Invocation("r-1", {"Records": list(messages)}, 0.0, "arn"))


def failed(*bodies: str) -> Returned:
    return Returned({"batchItemFailures": [{"itemIdentifier": f"id-{body}"} for body in bodies]})


async def test_a_message_keeps_its_body_its_attributes_its_trace_and_its_group() -> None:
    queue = Queue()
    redrive = Redrive("orders", "123456789012", queue.api, fifo=False)
    redrive.open()
    assert await redrive.ready("r-1") is None
    one = message("a", AWSTraceHeader="Root=1", MessageGroupId="tenant")
    one["messageAttributes"] = {
        "kind": {"stringValue": "x", "dataType": "String", "stringListValues": [], "binaryListValues": []},
        "raw": {"binaryValue": "AAE=", "dataType": "Binary", "stringListValues": [], "binaryListValues": []},
    }
    assert await invoke(redrive, one) == failed()
    assert queue.calls[0] == (
        "GetQueueUrl",
        {"QueueName": "orders", "QueueOwnerAWSAccountId": "123456789012"},
    )
    assert queue.sent == [
        {
            "Id": "0",
            "MessageBody": "a",
            "MessageAttributes": {
                "kind": {"StringValue": "x", "DataType": "String"},
                "raw": {"BinaryValue": b"\x00\x01", "DataType": "Binary"},
            },
            "MessageSystemAttributes": {"AWSTraceHeader": {"StringValue": "Root=1", "DataType": "String"}},
            "MessageGroupId": "tenant",
        }
    ]
    assert redrive.workers() is None
    await redrive.aclose()


async def test_what_the_queue_does_not_take_is_named() -> None:
    queue = Queue()
    queue.refused = {"b"}
    redrive = Redrive("orders", "123456789012", queue.api, fifo=False)
    assert await invoke(redrive, message("a"), message("b"), message("c")) == failed("b")
    assert len([one for one in queue.calls if one[0] == "SendMessageBatch"]) == 1


async def test_large_messages_share_no_request() -> None:
    queue = Queue()
    redrive = Redrive("orders", "123456789012", queue.api, fifo=False)
    assert await invoke(redrive, *(message(letter * 600_000) for letter in "ab")) == failed()
    assert len([one for one in queue.calls if one[0] == "SendMessageBatch"]) == 2


async def test_a_request_that_fails_after_others_names_its_messages_so_that_no_other_is_sent_twice() -> None:
    queue = Queue()
    queue.errors = [None, None, Throttled("slow down")]
    redrive = Redrive("orders", "123456789012", queue.api, fifo=False)
    assert await invoke(redrive, *(message(letter * 600_000) for letter in "ab")) == failed("b" * 600_000)


async def test_why_a_first_request_fails_is_told_however_many_messages_it_has() -> None:
    queue = Queue()
    queue.errors = [None, AccessDenied("no sqs:SendMessage", code="AccessDenied")]
    redrive = Redrive("orders", "123456789012", queue.api, fifo=False)
    denied = FunctionError("AccessDenied", "no sqs:SendMessage")
    assert await invoke(redrive, message("a"), message("b")) == denied


async def test_a_queue_out_of_reach_costs_no_attempt_and_a_denied_one_is_an_error() -> None:
    queue = Queue()
    redrive = Redrive("orders", "123456789012", queue.api, fifo=False)
    queue.errors = [Throttled("slow down")]
    assert await invoke(redrive, message("a")) == Refused("slow down")
    queue.errors = [AccessDenied("no sqs:SendMessage", code="AccessDenied")]
    assert await invoke(redrive, message("a")) == FunctionError("AccessDenied", "no sqs:SendMessage")
    queue.errors = [None, Throttled("slow down")]
    assert await invoke(redrive, message("a")) == Refused("slow down")


async def test_of_a_fifo_group_nothing_overtakes_what_was_not_taken() -> None:
    queue = Queue()
    queue.refused = {"a1"}
    redrive = Redrive("orders.fifo", "123456789012", queue.api, fifo=True)
    messages = [
        message(f"{group}{at}", MessageGroupId=group, MessageDeduplicationId="d")
        for at in (1, 2)
        for group in "ab"
    ]
    assert await invoke(redrive, *messages) == failed("a1", "a2")
    assert [one["MessageBody"] for one in queue.sent] == ["a1", "b1", "b2"]
    queue.errors = [Throttled("slow down")]
    assert await invoke(redrive, message("c", MessageGroupId="c")) == Refused("slow down")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"MessageDeduplicationId": "order-1"}, "order-1-again"),
        ({"MessageDeduplicationId": "order-1-again"}, "order-1-again-again"),
        ({}, "id-a-again"),
    ],
)
async def test_a_fifo_queue_does_not_take_it_for_the_message_that_it_has_seen(
    attributes: dict[str, str], expected: str
) -> None:
    queue = Queue()
    redrive = Redrive("orders.fifo", "123456789012", queue.api, fifo=True)
    for _ in range(2):
        await invoke(redrive, message("a", MessageGroupId="g", **attributes))
    assert [one["MessageDeduplicationId"] for one in queue.sent] == [expected] * 2


async def test_a_long_deduplication_id_stays_within_its_limit() -> None:
    queue = Queue()
    redrive = Redrive("orders.fifo", "123456789012", queue.api, fifo=True)
    await invoke(redrive, message("a", MessageGroupId="g", MessageDeduplicationId="x" * 128))
    assert len(queue.sent[0]["MessageDeduplicationId"]) == 64


async def test_a_queue_without_an_address_is_a_reply_that_makes_no_sense() -> None:
    async def api(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        return {}

    reply = await invoke(Redrive("orders", "123456789012", api, fifo=False), message("a"))
    assert reply == Refused("GetQueueUrl: a reply without QueueUrl")
