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
        self._fifo = fifo
        first = {"messageId": "", "receiptHandle": "", "body": "", "attributes": {}, "messageAttributes": {}}
        last = {"md5OfBody": "", "eventSource": "aws:sqs", "eventSourceARN": arn, "awsRegion": region}
        self._plain: dict[str, Any] = first | last
        self._with_attributes: dict[str, Any] = first | {"md5OfMessageAttributes": ""} | last

    def record(self, message: dict[str, Any]) -> Record:
        """One message of a ReceiveMessage reply. Raises KeyError or ValueError without what every message has."""
        attributes = message.get("Attributes") or {}
        # A copy with some places filled in costs half of a new dict.
        if named := message.get("MessageAttributes"):
            event = self._with_attributes.copy()
            event["messageAttributes"] = {name: _attribute(value) for name, value in named.items()}
            event["md5OfMessageAttributes"] = message.get("MD5OfMessageAttributes", "")
        else:
            event = self._plain.copy()
            event["messageAttributes"] = {}
        event["messageId"] = id_ = message["MessageId"]
        event["receiptHandle"] = receipt = message["ReceiptHandle"]
        event["body"] = message["Body"]
        event["attributes"] = attributes
        event["md5OfBody"] = message.get("MD5OfBody", "")
        # A standard queue may carry a group id too (fair queues); it says nothing about order there.
        key = attributes["MessageGroupId"] if self._fifo else None
        receives = int(attributes.get("ApproximateReceiveCount", 0))
        size = len(orjson.dumps(event)) + 1
        # `Record(...)` does the same and takes twice as long, and this is done for every message.
        return tuple.__new__(Record, (id_, key, size, event, receipt, 0.0, receives))


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
