"""Records of the two streams -> the events that Lambda sends (spec 2.2 to 2.4).

A batch can be tried again, and the handler of the attempt before may have changed what it was given. So a record keeps, as
its receipt, what a fresh event is built from, and `rebuild` does so: the wire's own record. For Kinesis that is an object whose
members are strings and numbers that nobody can change. For DynamoDB, whose images are nested, it is the JSON that came: each
mapping that reads a page parses its own, and a page that waits takes a fifth to two fifths of the memory of its objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from poller.core import windows
from poller.model import Checkpoint, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poller.core.windows import Window

#: A member of ours in records of the wire that come out of an aggregate: the sub-sequence number of the checkpoint behind them.
SUB_SEQUENCE_NUMBER = "SubSequenceNumber"
#: Members of a record of DynamoDB as it comes from the service, with no identity.
_MEMBERS = 6
#: Those of a change beside its images.
_ALWAYS = 5
#: As it is spelt without blanks.
_COMPACT = b'"dynamodb":{'
#: An attribute of that name would have an object.
_TIME = re.compile(rb'"ApproximateCreationDateTime":([\d.eE+-]+)')


class KinesisEnvelope:
    """Builds records from the records of one stream, or of one consumer of it with enhanced fan-out."""

    def __init__(self, arn: str, region: str, invoke_identity_arn: str) -> None:
        self._arn = arn
        self._template: dict[str, Any] = {
            "kinesis": None,
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": "",
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": invoke_identity_arn,
            "awsRegion": region,
            "eventSourceARN": arn,
        }
        self._fixed_size = 0
        empty = {"PartitionKey": "", "SequenceNumber": "", "Data": "", "ApproximateArrivalTimestamp": 0}
        built = self.record("", empty)
        self._fixed_size = len(orjson.dumps(built.event)) + 1 - built.size

    def record(self, shard_id: str, wire: dict[str, Any]) -> Record:
        """One record of a GetRecords reply, its data still in base64.

        Raises KeyError when the reply lacks what every record has.
        """
        return self.records(shard_id, (wire,))[0]

    def records(self, shard_id: str, wires: Iterable[dict[str, Any]]) -> list[Record]:
        """Many at once, each as `record` says; that takes a quarter less than one call for each."""
        template, prefix = self._template, f"{shard_id}:"
        fixed_size = self._fixed_size + len(shard_id)
        built: list[Record] = []
        for wire in wires:
            number, data, arrived = wire["SequenceNumber"], wire["Data"], wire["ApproximateArrivalTimestamp"]
            key = wire.get("PartitionKey")
            # A copy with two places filled in costs three quarters of a new dict of eight.
            event = template.copy()
            event["kinesis"] = kinesis = {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": key,
                "sequenceNumber": number,
                "data": data,
                "approximateArrivalTimestamp": arrived,
            }
            event["eventID"] = prefix + number
            # Shard id, sequence number (in two places) and base64 are ASCII without anything to escape, so their length is
            # their encoded length. Only the key can need escapes, and only the encoder knows the length of a float.
            size = fixed_size + 2 * len(number) + len(data) + len(orjson.dumps((key, arrived)))
            if key is None:
                # The API allows a record without a key; what Lambda sends then is not known (spec U19).
                del kinesis["partitionKey"]
                size = len(orjson.dumps(event)) + 1
            # `Record(...)` does the same and takes twice as long.
            built.append(tuple.__new__(Record, (number, key, size, event, wire, arrived, 0)))
        return built

    def rebuild(self, shard_id: str, record: Record) -> Record:
        """The record with a fresh event."""
        return self.record(shard_id, record.receipt)

    def pack(self, record: Record) -> bytes:
        """All that `unpack` needs to make the record again, in another process too, as JSON."""
        return orjson.dumps(record.receipt)

    def unpack(self, shard_id: str, packed: bytes) -> Record:
        """The record that was packed; raises KeyError, TypeError or ValueError for what makes no sense."""
        return self.record(shard_id, orjson.loads(packed))

    def checkpoint(self, record: Record) -> Checkpoint:
        """How far its shard is done behind this record; inside an aggregate up to here, after its last record all of it."""
        return Checkpoint(record.id, record.receipt.get(SUB_SEQUENCE_NUMBER))

    def window_event(
        self, shard_id: str, records: Sequence[Record], window: Window, *, final: bool
    ) -> dict[str, Any]:
        """The event of a batch in a tumbling window."""
        common = windows.members(window, final=final)
        return {
            "Records": [record.event for record in records],
            "window": common["window"],
            "state": common["state"],
            "shardId": shard_id,
            "eventSourceARN": self._arn,
            "isFinalInvokeForWindow": common["isFinalInvokeForWindow"],
            "isWindowTerminatedEarly": common["isWindowTerminatedEarly"],
        }


class DynamoDbEnvelope:
    """Builds records from the records of one table's stream, each as the JSON in which it came."""

    def __init__(self, arn: str, region: str) -> None:
        self._arn = arn
        self._region = region
        # What an event has beyond its wire, and the comma between two events.
        self._more = len(f',"eventSourceARN":"{arn}"') + 1

    def record(self, shard_id: str, wire: bytes) -> Record:
        """One record of a GetRecords reply; `shard_id` is not part of its event.

        Raises KeyError when the reply lacks what every record has, ValueError when it is no JSON.
        """
        return self.records(shard_id, (wire,))[0]

    def records(self, shard_id: str, wires: Iterable[bytes]) -> list[Record]:
        """Many, each as `record` says."""
        built: list[Record] = []
        for wire in wires:
            found = orjson.loads(wire)
            change = found["dynamodb"]
            time = change["ApproximateCreationDateTime"]
            event = self._event(found, change)
            number = change["SequenceNumber"]
            key = orjson.dumps(change["Keys"], option=orjson.OPT_SORT_KEYS).decode()
            size = self._size(wire, found, event, time)
            built.append(tuple.__new__(Record, (number, key, size, event, wire, float(time), 0)))
        return built

    def rebuild(self, shard_id: str, record: Record) -> Record:
        """The record with a fresh event."""
        return self.record(shard_id, record.receipt)

    def pack(self, record: Record) -> bytes:
        """All that `unpack` needs to make the record again, in another process too, as JSON."""
        wire: bytes = record.receipt
        return wire

    def unpack(self, shard_id: str, packed: bytes) -> Record:
        """The record that was packed; raises KeyError, TypeError or ValueError for what makes no sense."""
        return self.record(shard_id, packed)

    def checkpoint(self, record: Record) -> Checkpoint:
        """How far its shard is done behind this record."""
        return Checkpoint(record.id)

    def window_event(
        self, shard_id: str, records: Sequence[Record], window: Window, *, final: bool
    ) -> dict[str, Any]:
        """The event of a batch in a tumbling window."""
        return {
            "Records": [record.event for record in records],
            "shardId": shard_id,
            "eventSourceARN": self._arn,
            **windows.members(window, final=final),
        }

    def _event(self, wire: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        event = {
            "eventID": wire["eventID"],
            "eventName": wire["eventName"],
            "eventVersion": wire.get("eventVersion", "1.1"),
            "eventSource": "aws:dynamodb",
            "awsRegion": self._region,
            "dynamodb": _change(change),
        }
        # Only what the service itself does (expiry of items) has an identity.
        if identity := wire.get("userIdentity"):
            event["userIdentity"] = {"principalId": identity["PrincipalId"], "type": identity["Type"]}
        event["eventSourceARN"] = self._arn
        return event

    def _size(self, wire: bytes, found: dict[str, Any], event: dict[str, Any], time: float) -> int:
        """Bytes of the event in its array. Measured only where they do not follow from the wire's: encoding takes longer."""
        if (
            event["dynamodb"] is not found["dynamodb"]
            or len(found) != _MEMBERS
            or found.get("awsRegion") != self._region
            or found.get("eventSource") != "aws:dynamodb"
            or "eventVersion" not in found
            or _COMPACT not in wire
            or b"\\" in wire
        ):
            return len(orjson.dumps(event)) + 1
        if type(time) is int:
            return len(wire) + self._more
        # A fraction may be spelt in several ways.
        spelt = _TIME.search(wire)
        if spelt is None:
            return len(orjson.dumps(event)) + 1
        return len(wire) + self._more + len(str(int(time))) - len(spelt[1])


def _change(wire: dict[str, Any]) -> dict[str, Any]:
    """What an event tells of a change: the wire's own object where nothing is left out, as that is nobody else's."""
    # The wire may spell the time as a fraction, and Lambda delivers whole seconds.
    time = int(wire["ApproximateCreationDateTime"])
    members = _ALWAYS + ("NewImage" in wire) + ("OldImage" in wire)
    if len(wire) == members and "SizeBytes" in wire and "StreamViewType" in wire:
        wire["ApproximateCreationDateTime"] = time
        return wire
    change = {"ApproximateCreationDateTime": time, "Keys": wire["Keys"]}
    if "NewImage" in wire:
        change["NewImage"] = wire["NewImage"]
    if "OldImage" in wire:
        change["OldImage"] = wire["OldImage"]
    change["SequenceNumber"] = wire["SequenceNumber"]
    change["SizeBytes"] = wire["SizeBytes"]
    change["StreamViewType"] = wire["StreamViewType"]
    return change
