"""Kinesis and DynamoDB Streams as the canned endpoint speaks them: shards that never end, or that are always empty.

A stream's name says what it is: `busy-4` has four shards and brings 1,000 records a read; `full-1` has one and brings as many
as the reader allows, `overfull-1` 10,000 whatever it allows; `idle-1000` has a thousand shards and never anything, `once-1000`
one record in one of them. The records of `busy-4-100` are of 100 bytes, and as many as fit the 10 MB of a reply.

An iterator is the number of a page. All pages of a kind are the same but for the page's number in sequence numbers and event
ids, so a reply is a copy of a template with that number filled in, and whatever reads a shard twice gets the same twice.
"""

from __future__ import annotations

import base64
import time
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from tests.bench.canned_reply import NOT_CANNED, http

if TYPE_CHECKING:
    from collections import Counter

#: Records of a reply, and of the largest that there can be.
USUAL = 1000
MOST = 10_000
#: Bytes of data that a reply may bring.
LARGEST = 10_000_000
#: Bytes of a Kinesis record before base64.
DATA_SIZE = 1024
KEYS = 997
#: What a template has in the place of the page's number and of the next one's.
_PAGE, _NEXT = b"PPPPPPPPPPPP", b"NNNNNNNNNNNN"
_NUMBER = b"%012d"
#: So far behind is every reader of a stream that brings something.
_BEHIND = 60_000


def order(place: int, size: int) -> bytes:
    """JSON of `size` bytes, a number if there is no room for more; every other order is paid: a filter can pass half."""
    found = {
        "order": f"{10_000_000 + place}",
        "status": "open" if place % 2 else "paid",
        "total": 4200 + place,
        "customer": {"name": "Jürgen Groß", "city": "Köln", "since": 2019},
        "lines": [
            {"sku": f"A-{place % 83:04}-{line}", "count": line + 1, "price": 1999} for line in range(3)
        ],
        "note": "",
    }
    room = size - len(orjson.dumps(found))
    if room < 0:
        return b"%0*d" % (size, place)
    found["note"] = "x" * room
    return orjson.dumps(found)


class _Streams(ABC):
    """The operations that both services have. Each takes the parameters and returns a whole HTTP reply."""

    most: ClassVar[int]
    """Records that one read may bring."""
    shard_id: ClassVar[str]
    """With a hole for its number."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        # One a shard, and a handful more until the limit of a reader of `full` has settled.
        self._template = lru_cache(maxsize=16)(self._made)

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[bytes, float]:
        """The reply, and the seconds to wait before it is sent."""
        if operation == "GetRecords":
            return self._get(params["ShardIterator"], params.get("Limit", self.most)), 0.0
        if operation == "GetShardIterator":
            return self._seek(params), 0.0
        return NOT_CANNED, 0.0

    def shards(self, stream: str) -> list[dict[str, Any]]:
        """All shards of a stream, as both services describe them."""
        count = int(stream.split("-")[1])
        first = {"StartingSequenceNumber": "49590338271490256608559692538361571095000000000000000000"}
        names = map(self.shard_id.format, range(count))
        return [{"ShardId": name, "SequenceNumberRange": first} for name in names]

    def _seek(self, params: dict[str, Any]) -> bytes:
        page = 0
        if "SEQUENCE_NUMBER" in params["ShardIteratorType"]:
            # As if the page had been done to its end; nobody in the bench begins in the middle of one.
            page = self.page_of(params.get("StartingSequenceNumber") or params["SequenceNumber"]) + 1
        return http(orjson.dumps({"ShardIterator": f"{_stream(params)}/{params['ShardId']}/{page:012}"}))

    def _get(self, iterator: str, limit: int) -> bytes:
        stream, shard, page = iterator.split("/")
        number = int(page)
        kind, _, *size = stream.split("-")
        data_size = int(size[0]) if size else DATA_SIZE
        count = {
            "idle": 0,
            "once": int(number == 0 and shard == self.shard_id.format(0)),
            "busy": min(limit, USUAL, LARGEST // data_size),
            "full": min(limit, self.most),
            "overfull": MOST,
        }[kind]
        self._counts["read"] += count
        reply = self._template(f"{stream}/{shard}", count, data_size)
        return reply.replace(_PAGE, _NUMBER % number).replace(_NEXT, _NUMBER % (number + 1))

    def _made(self, shard: str, count: int, data_size: int) -> bytes:
        records = [self.record(place, data_size) for place in range(count)]
        reply = {"Records": records, "NextShardIterator": f"{shard}/{_NEXT.decode()}"}
        return http(orjson.dumps({**reply, **self.beside(count)}))

    @abstractmethod
    def page_of(self, sequence_number: str) -> int:
        """The page that a record is in."""

    @abstractmethod
    def record(self, place: int, data_size: int) -> dict[str, Any]:
        """The record at `place` of a page; its data is of so many bytes, if the service leaves that open."""

    @abstractmethod
    def beside(self, count: int) -> dict[str, Any]:
        """Other members of a GetRecords reply with `count` records."""


class Kinesis(_Streams):
    """Kinesis data streams."""

    most = 10_000
    shard_id = "shardId-{:012}"

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[bytes, float]:
        if operation == "ListShards":
            return http(orjson.dumps({"Shards": self.shards(_stream(params))})), 0.0
        if operation == "DescribeStream":  # async-kinesis wants its status
            described = {
                "StreamStatus": "ACTIVE",
                "HasMoreShards": False,
                "Shards": self.shards(_stream(params)),
            }
            return http(orjson.dumps({"StreamDescription": described})), 0.0
        return super().answer(operation, params)

    def page_of(self, sequence_number: str) -> int:
        return int(sequence_number[38:50])

    def record(self, place: int, data_size: int) -> dict[str, Any]:
        return {
            "SequenceNumber": f"49590338271490256608559692538361571095{_PAGE.decode()}{place:06}",
            "ApproximateArrivalTimestamp": round(time.time(), 3),
            "Data": base64.b64encode(order(place, data_size)).decode(),
            "PartitionKey": f"customer-{place * 31 % KEYS:05}",
        }

    def beside(self, count: int) -> dict[str, Any]:
        return {"MillisBehindLatest": _BEHIND if count else 0}


class DynamoDbStreams(_Streams):
    """The streams of DynamoDB tables. A record has both images, about 1.5 KB of JSON in all."""

    most = 1000
    shard_id = "shardId-{:020}-5d8b8a2e"

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[bytes, float]:
        if operation == "DescribeStream":
            return http(orjson.dumps({"StreamDescription": {"Shards": self.shards(_stream(params))}})), 0.0
        return super().answer(operation, params)

    def page_of(self, sequence_number: str) -> int:
        return int(sequence_number[3:15])

    def record(self, place: int, data_size: int) -> dict[str, Any]:
        key = {"pk": {"S": f"customer-{place * 31 % KEYS:05}"}, "sk": {"N": str(place)}}
        status = {"S": "open" if place % 2 else "paid"}
        return {
            "eventID": f"{_PAGE.decode()}{place:020x}",
            "eventName": "MODIFY",
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-west-1",
            "dynamodb": {
                "ApproximateCreationDateTime": int(time.time()),
                "Keys": key,
                "NewImage": {**key, **_item(place), "status": status},
                "OldImage": {**key, **_item(place), "status": {"S": "new"}},
                "SequenceNumber": f"100{_PAGE.decode()}{place:010}",
                "SizeBytes": 1000,
                "StreamViewType": "NEW_AND_OLD_IMAGES",
            },
        }

    def beside(self, count: int) -> dict[str, Any]:
        return {}


def _item(place: int) -> dict[str, Any]:
    """An order as an item: strings, numbers, a map, a list."""
    return {
        "total": {"N": str(4200 + place)},
        "customer": {"M": {"name": {"S": "Jürgen Groß"}, "city": {"S": "Köln"}, "since": {"N": "2019"}}},
        "lines": {"L": [{"M": {"sku": {"S": f"A-{place % 83:04}"}, "count": {"N": "1"}}} for _ in range(2)]},
        "paid": {"BOOL": True},
        "note": {"S": "x" * 240},
    }


def _stream(params: dict[str, Any]) -> str:
    """The stream's name, which the ARN of a table's stream has too."""
    arn = params.get("StreamArn")
    return str(arn.split("/")[1] if arn else params["StreamName"])
