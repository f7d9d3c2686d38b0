"""A function that sends the messages of its event to a queue: how dead letters go back to where they came from.

As a function it has all that functions have here: batches, retries, and a message is deleted from the dead-letter queue only
when it has succeeded, which is when the queue has taken it.

A message keeps its body, its attributes and its group. Its deduplication id gets an end that tells that it is sent once more:
the queue would swallow, without a word, a message whose id it has seen in the last five minutes. The same message gets the same
end, so one that is sent twice because the daemon was killed in between arrives once in a FIFO queue.
"""

from __future__ import annotations

from base64 import b64decode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from poller.errors import AwsError, BadReply
from poller.model import FunctionError, Refused, Returned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from poller.model import Invocation, Reply

    #: One call of the SQS API: operation, parameters, seconds until it is given up. Raises AwsError.
    Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: Seconds for one call.
CALL_TIMEOUT = 10.0
#: What one SendMessageBatch takes: entries, and bytes of all their bodies and attributes.
ENTRIES = 10
BATCH_BYTES = 1024 * 1024 - 64 * 1024
#: Characters of a deduplication id.
LONGEST_ID = 128
AGAIN = "-again"


class Redrive:
    """Sends to one queue; see `poller.ports.Runtime`."""

    keeps_time = False

    def __init__(self, name: str, account: str, api: Api, *, fifo: bool) -> None:
        self._name = name
        self._account = account
        self._api = api
        self._fifo = fifo
        self._url = ""

    def open(self) -> None:
        """Nothing is kept warm."""

    async def ready(self, request_id: str) -> None:
        """Always."""

    async def invoke(self, invocation: Invocation) -> Reply:
        """Send every message; names those that the queue has not taken, and of their groups those behind them."""
        try:
            self._url = self._url or await self._find()
            refused = await self._send(invocation.event["Records"])
        except AwsError as error:
            if error.transient:
                return Refused(str(error))
            return FunctionError(error.code or type(error).__name__, str(error))
        return Returned({"batchItemFailures": [{"itemIdentifier": one} for one in refused]})

    def workers(self) -> None:
        """None."""

    async def aclose(self) -> None:
        """The connections belong to the session."""

    async def _find(self) -> str:
        wanted = {"QueueName": self._name, "QueueOwnerAWSAccountId": self._account}
        reply = await self._api("GetQueueUrl", wanted, CALL_TIMEOUT)
        if not (url := reply.get("QueueUrl")):
            raise BadReply("GetQueueUrl: a reply without QueueUrl", operation="GetQueueUrl")
        return str(url)

    async def _send(self, messages: Sequence[dict[str, Any]]) -> list[str]:
        refused: list[str] = []
        stopped: set[str | None] = set()
        taken = False
        # One by one where order matters: a batch may take the second of a group and not the first.
        for chunk in _chunks(messages, 1 if self._fifo else ENTRIES):
            group = _group(chunk[0]) if self._fifo else None
            if group is not None and group in stopped:
                refused += [str(message["messageId"]) for message in chunk]
                continue
            try:
                failed = await self._send_few(chunk)
            except AwsError:
                # With nothing sent, what went wrong can be told, or waited for, without sending anything twice.
                if not taken:
                    raise
                failed = [str(message["messageId"]) for message in chunk]
            taken = taken or len(failed) < len(chunk)
            refused += failed
            if failed:
                stopped.add(group)
        return refused

    async def _send_few(self, chunk: Sequence[dict[str, Any]]) -> list[str]:
        entries = [{"Id": str(at), **_sent(message, fifo=self._fifo)} for at, message in enumerate(chunk)]
        reply = await self._api("SendMessageBatch", {"QueueUrl": self._url, "Entries": entries}, CALL_TIMEOUT)
        taken = {entry.get("Id") for entry in reply.get("Successful") or ()}
        return [str(message["messageId"]) for at, message in enumerate(chunk) if str(at) not in taken]


def _chunks(messages: Sequence[dict[str, Any]], entries: int) -> list[list[dict[str, Any]]]:
    chunks: list[list[dict[str, Any]]] = []
    size = 0
    for message in messages:
        own = len(message["body"].encode(errors="replace")) + 1024 * len(message["messageAttributes"])
        if not chunks or len(chunks[-1]) >= entries or size + own > BATCH_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(message)
        size += own
    return chunks


def _group(message: dict[str, Any]) -> str | None:
    group = message["attributes"].get("MessageGroupId")
    return None if group is None else str(group)


def _sent(message: dict[str, Any], *, fifo: bool) -> dict[str, Any]:
    """A message of the event as SendMessageBatch takes it."""
    entry: dict[str, Any] = {"MessageBody": message["body"]}
    if attributes := message["messageAttributes"]:
        entry["MessageAttributes"] = {name: _attribute(value) for name, value in attributes.items()}
    if trace := message["attributes"].get("AWSTraceHeader"):
        entry["MessageSystemAttributes"] = {"AWSTraceHeader": {"StringValue": trace, "DataType": "String"}}
    if (group := _group(message)) is not None:
        entry["MessageGroupId"] = group
    if fifo:
        entry["MessageDeduplicationId"] = _deduplication_id(message)
    return entry


def _deduplication_id(message: dict[str, Any]) -> str:
    before = str(message["attributes"].get("MessageDeduplicationId") or message["messageId"])
    again = before + AGAIN
    return again if len(again) <= LONGEST_ID else sha256(again.encode()).hexdigest()


def _attribute(value: dict[str, Any]) -> dict[str, Any]:
    sent: dict[str, Any] = {"DataType": value["dataType"]}
    if "stringValue" in value:
        sent["StringValue"] = value["stringValue"]
    if "binaryValue" in value:
        sent["BinaryValue"] = b64decode(value["binaryValue"])
    return sent
