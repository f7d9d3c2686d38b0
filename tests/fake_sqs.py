"""One SQS queue in memory, on anyio's clock, speaking the dicts of SQS's JSON protocol.

It behaves as AWS does where an emulator does not: a receipt of a standard queue can still delete after its visibility
timeout, one of a FIFO queue cannot; nothing stays hidden longer than 12 hours after its receive; a receive that is asked for
again with its attempt id brings the same messages. Where servers differ it is the unkind one: a message that was made visible
can be hidden again by a late request, until somebody receives it. What goes wrong is scripted, call by call, with `script`.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections import defaultdict, deque
from dataclasses import dataclass, field
from hashlib import md5
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio

from poller.errors import AwsError, ResourceNotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST_HOLD = 12 * 3600
INVALID = "InvalidParameterValue"


@dataclass(slots=True)
class Message:
    id: str
    body: str
    group: str | None
    number: int
    attributes: Mapping[str, Any]
    visible_at: float
    receives: int = 0
    received_at: float = -math.inf
    first_received_at: float | None = None
    receipt: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the queue. `params` is what was sent."""

    at: float
    operation: str
    params: dict[str, Any]

    @property
    def receipts(self) -> list[str]:
        return [entry["ReceiptHandle"] for entry in self.params["Entries"]]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one call: it takes effect `before` seconds late, its answer is `after` seconds late or is
    `reply`, `error` is raised instead of doing anything or, when `lost`, after it was done; `entries` fail with these codes.
    """

    error: AwsError | None = None
    lost: bool = False
    before: float = 0.0
    after: float = 0.0
    entries: Mapping[int, str] = field(default_factory=dict)
    sender_fault: bool = False
    reply: Any = None


HANGS = Fault(before=math.inf)


class FakeSqs:
    """`api` is what a reader is given."""

    def __init__(
        self,
        *,
        fifo: bool = False,
        visibility_timeout: int = 30,
        max_receive_count: int | None = None,
        name: str = "orders",
    ) -> None:
        self.fifo = fifo
        self.visibility_timeout = visibility_timeout
        self.max_receive_count = max_receive_count
        self.name = name + (".fifo" if fifo else "")
        self.url = f"https://sqs.eu-west-1.amazonaws.com/123456789012/{self.name}"
        self.calls: list[Call] = []
        self.dead_letters: list[Message] = []
        self.messages: dict[str, Message] = {}
        self.in_flight_calls = 0
        self.most_in_flight_calls = 0
        self._receipts: dict[str, str] = {}
        self._attempts: dict[str, list[Message]] = {}
        self._script: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._numbers = count(1)
        self._changed = anyio.Event()

    # --- for tests ------------------------------------------------------------------------------------------------------

    def send(self, body: str, group: str | None = None, attributes: Mapping[str, Any] | None = None) -> str:
        number = next(self._numbers)
        message_id = f"message-{number}"
        self.messages[message_id] = Message(
            message_id, body, group, number, attributes or {}, anyio.current_time()
        )
        self._stir()
        return message_id

    def script(self, operation: str, *faults: Fault) -> None:
        """The next calls of `operation` go wrong like this, one after the other."""
        self._script[operation] += faults

    def always(self, operation: str, fault: Fault) -> None:
        """Every call of `operation` that is not scripted goes wrong like this."""
        self._always[operation] = fault

    def calls_of(self, operation: str) -> list[Call]:
        return [call for call in self.calls if call.operation == operation]

    @property
    def deletions(self) -> list[Call]:
        return self.calls_of("DeleteMessageBatch")

    @property
    def changes(self) -> list[Call]:
        return self.calls_of("ChangeMessageVisibilityBatch")

    @property
    def visible(self) -> list[str]:
        return [message.body for message in self._visible()]

    # --- the API --------------------------------------------------------------------------------------------------------

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.in_flight_calls += 1
        self.most_in_flight_calls = max(self.most_in_flight_calls, self.in_flight_calls)
        try:
            with anyio.move_on_after(timeout):
                return await self._call(operation, params)
        finally:
            self.in_flight_calls -= 1
        raise Unreachable(f"{operation}: no answer", code="Timeout", operation=operation)

    async def _call(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(Call(anyio.current_time(), operation, params))
        script = self._script[operation]
        fault = script.popleft() if script else self._always.get(operation, Fault())
        await anyio.sleep(fault.before)
        if fault.error and not fault.lost:
            raise fault.error
        reply = fault.reply
        if reply is None:
            reply = await self._answer(operation, params, fault)
        await anyio.sleep(fault.after)
        if fault.error:
            raise fault.error
        return reply  # type: ignore[no-any-return]

    async def _answer(self, operation: str, params: dict[str, Any], fault: Fault) -> dict[str, Any]:
        match operation:
            case "GetQueueUrl":
                return self._get_queue_url(params)
            case "GetQueueAttributes":
                return {"Attributes": self._attributes(params["AttributeNames"])}
            case "ReceiveMessage":
                return await self._receive(params)
            case "DeleteMessageBatch":
                return self._entries(params, fault, self._delete)
            case "ChangeMessageVisibilityBatch":
                return self._entries(params, fault, self._change)
        raise AssertionError(f"nobody should call {operation}")

    def _attributes(self, names: Sequence[str]) -> dict[str, str]:
        hidden = [one for one in self.messages.values() if one.visible_at > anyio.current_time()]
        known = {
            "VisibilityTimeout": self.visibility_timeout,
            "ApproximateNumberOfMessages": len(self.messages) - len(hidden),
            "ApproximateNumberOfMessagesNotVisible": len(hidden),
        }
        return {name: str(known[name]) for name in names}

    def _get_queue_url(self, params: dict[str, Any]) -> dict[str, Any]:
        if params["QueueName"] != self.name:
            raise ResourceNotFound("The specified queue does not exist.", operation="GetQueueUrl")
        return {"QueueUrl": self.url}

    # --- receiving ------------------------------------------------------------------------------------------------------

    async def _receive(self, params: dict[str, Any]) -> dict[str, Any]:
        assert 1 <= params["MaxNumberOfMessages"] <= 10
        assert 0 <= params["WaitTimeSeconds"] <= 20
        assert params["QueueUrl"] == self.url
        attempt = params.get("ReceiveRequestAttemptId")
        taken = self._replay(attempt) or self._take(params["MaxNumberOfMessages"])
        with anyio.move_on_after(params["WaitTimeSeconds"]):
            while not taken:
                await self._wait_for_change()
                taken = self._take(params["MaxNumberOfMessages"])
        if attempt is not None:
            self._attempts[attempt] = taken
        # SQS leaves the member out when there is nothing.
        return {"Messages": [self._on_the_wire(message) for message in taken]} if taken else {}

    def _replay(self, attempt: str | None) -> list[Message]:
        taken = self._attempts.get(attempt, []) if attempt else []
        if not all(self._in_flight(message) for message in taken):
            return []
        for message in taken:
            message.visible_at = anyio.current_time() + self.visibility_timeout
        return taken

    def _take(self, limit: int) -> list[Message]:
        taken = self._visible()[:limit]
        for message in taken:
            self._hand_out(message)
        return taken

    def _visible(self) -> list[Message]:
        now = anyio.current_time()
        self._redrive(now)
        locked = {message.group for message in self.messages.values() if message.visible_at > now}
        return [
            message
            for message in self.messages.values()
            if message.visible_at <= now and not (self.fifo and message.group in locked)
        ]

    def _redrive(self, now: float) -> None:
        for message in list(self.messages.values()):
            spent = self.max_receive_count is not None and message.receives >= self.max_receive_count
            if spent and message.visible_at <= now:
                self.dead_letters.append(self.messages.pop(message.id))

    def _hand_out(self, message: Message) -> None:
        now = anyio.current_time()
        message.receives += 1
        message.received_at = now
        message.first_received_at = now if message.first_received_at is None else message.first_received_at
        message.visible_at = now + self.visibility_timeout
        message.receipt = f"{message.id}/{message.receives}"
        self._receipts[message.receipt] = message.id

    async def _wait_for_change(self) -> None:
        now = anyio.current_time()
        hidden = [
            message.visible_at for message in self.messages.values() if now < message.visible_at < math.inf
        ]
        with anyio.CancelScope(deadline=min(hidden, default=math.inf)):
            await self._changed.wait()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _on_the_wire(self, message: Message) -> dict[str, Any]:
        attributes = {
            "ApproximateReceiveCount": str(message.receives),
            "SentTimestamp": "1700000000000",
            "SenderId": "AIDAEXAMPLE",
            "ApproximateFirstReceiveTimestamp": "1700000000001",
        }
        if self.fifo:
            attributes["MessageGroupId"] = str(message.group)
            attributes["SequenceNumber"] = f"{message.number:020}"
            attributes["MessageDeduplicationId"] = message.id
        wire = {
            "MessageId": message.id,
            "ReceiptHandle": message.receipt,
            "Body": message.body,
            "MD5OfBody": md5(message.body.encode()).hexdigest(),
            "Attributes": attributes,
        }
        if message.attributes:
            wire["MessageAttributes"] = {
                name: _in_base64(value) for name, value in message.attributes.items()
            }
            wire["MD5OfMessageAttributes"] = _digest(message.attributes)
        return wire

    # --- settling -------------------------------------------------------------------------------------------------------

    def _entries(self, params: dict[str, Any], fault: Fault, settle: Any) -> dict[str, Any]:
        entries: Sequence[dict[str, Any]] = params["Entries"]
        assert 1 <= len(entries) <= 10
        assert len({entry["Id"] for entry in entries}) == len(entries)
        reply: dict[str, list[dict[str, Any]]] = {"Successful": [], "Failed": []}
        for at, entry in enumerate(entries):
            code, sender_fault = fault.entries.get(at), fault.sender_fault
            if code is None:
                code, sender_fault = settle(entry), True
            if code is None:
                reply["Successful"].append({"Id": entry["Id"]})
            else:
                failed = {"Id": entry["Id"], "Code": code, "SenderFault": sender_fault, "Message": "scripted"}
                reply["Failed"].append(failed)
        self._stir()
        return reply

    def _delete(self, entry: dict[str, Any]) -> str | None:
        receipt = entry["ReceiptHandle"]
        if receipt not in self._receipts:
            return "ReceiptHandleIsInvalid"
        message = self.messages.get(self._receipts[receipt])
        if message is None:
            return None
        if self.fifo and (message.receipt != receipt or not self._in_flight(message)):
            return INVALID
        del self.messages[message.id]
        return None

    def _change(self, entry: dict[str, Any]) -> str | None:
        receipt, timeout = entry["ReceiptHandle"], entry["VisibilityTimeout"]
        if receipt not in self._receipts:
            return "ReceiptHandleIsInvalid"
        message = self.messages.get(self._receipts[receipt])
        if message is None:
            return INVALID
        if message.receipt != receipt:
            return "MessageNotInflight"
        now = anyio.current_time()
        if now + timeout > message.received_at + LONGEST_HOLD:
            return INVALID
        message.visible_at = now + timeout
        return None

    def _in_flight(self, message: Message) -> bool:
        return message.id in self.messages and message.visible_at > anyio.current_time()


def _in_base64(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: b64encode(item).decode() if isinstance(item, bytes) else item for name, item in value.items()
    }


def _digest(attributes: Mapping[str, Any]) -> str:
    """What SQS's developer guide says: each part with its length in front, sorted by name."""
    encoded = b""
    for name, value in sorted(attributes.items()):
        binary = value.get("BinaryValue")
        kind = b"\x01" if binary is None else b"\x02"
        content = value["StringValue"].encode() if binary is None else binary
        encoded += _sized(name.encode()) + _sized(value["DataType"].encode()) + kind + _sized(content)
    return md5(encoded).hexdigest()


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part
