"""Records of the wire -> the event that Lambda sends (spec 2).

The members come in the order seen on AWS. Nothing is decoded: the wire's JSON is the event's JSON with other names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from poller.model import Record

if TYPE_CHECKING:
    from collections.abc import Sequence


def event(records: Sequence[Record]) -> dict[str, Any]:
    """The event of a batch without a window."""
    return {"Records": [record.event for record in records]}


class SqsEnvelope:
    """Builds records from the messages of one queue (spec 2.1)."""

    def __init__(self, arn: str, region: str, *, fifo: bool) -> None:
        self._arn = arn
        self._region = region
        self._fifo = fifo

    def record(self, message: dict[str, Any]) -> Record:
        """One message of a ReceiveMessage reply. Raises KeyError or ValueError without what every message has."""
        attributes = message.get("Attributes") or {}
        built: dict[str, Any] = {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": attributes,
            "messageAttributes": {},
        }
        if named := message.get("MessageAttributes"):
            built["messageAttributes"] = {name: _attribute(value) for name, value in named.items()}
            built["md5OfMessageAttributes"] = message.get("MD5OfMessageAttributes", "")
        built["md5OfBody"] = message.get("MD5OfBody", "")
        built["eventSource"] = "aws:sqs"
        built["eventSourceARN"] = self._arn
        built["awsRegion"] = self._region
        # A standard queue may carry a group id too (fair queues); it says nothing about order there.
        key = attributes["MessageGroupId"] if self._fifo else None
        receives = int(attributes.get("ApproximateReceiveCount", 0))
        size = len(orjson.dumps(built)) + 1
        return Record(message["MessageId"], key, size, built, message["ReceiptHandle"], 0.0, receives)


def _attribute(value: dict[str, Any]) -> dict[str, Any]:
    built: dict[str, Any] = {}
    if "StringValue" in value:
        built["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        built["binaryValue"] = value["BinaryValue"]
    built["stringListValues"] = []
    built["binaryListValues"] = []
    built["dataType"] = value["DataType"]
    return built
