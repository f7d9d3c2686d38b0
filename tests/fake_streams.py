"""A Kinesis data stream and the stream of a DynamoDB table in memory, on anyio's clock, as their APIs behave on AWS.

Both keep records in shards with sequence numbers that grow with time, hand out iterators that expire, drop what is older than
the retention, refuse the sixth read of a shard within a second (Kinesis), and end a closed shard with a null iterator. Kinesis
pushes records to consumers too. What
else goes wrong is scripted, call by call, with `script`.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import orjson

from poller.errors import AwsError, RequestRefused, ResourceNotFound, Throttled, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

#: Unix time at which the fakes' clock begins.
EPOCH = 1_700_000_000.0
DAY = 24 * 3600.0


def wall() -> float:
    """The fakes' Unix time."""
    return EPOCH + anyio.current_time()


def refused(code: str, operation: str = "") -> RequestRefused:
    return RequestRefused(f"{operation}: refused ({code})", code=code, operation=operation)


def throttled(operation: str = "GetRecords") -> Throttled:
    return Throttled(
        f"{operation}: slow down", code="ProvisionedThroughputExceededException", operation=operation
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the stream."""

    at: float
    operation: str
    params: dict[str, Any]


@dataclass(slots=True)
class FakeShard:
    id: str
    parents: tuple[str, ...] = ()
    children: list[str] = field(default_factory=list)
    closed: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    """Of the wire, in order."""
    dropped: int = 0
    """Records that were there once, in front of the first of `records`."""
    reads: deque[float] = field(default_factory=deque)
    hash_range: tuple[int, int] = (0, 2**128 - 1)


class FakeStream:
    """What both have in common. `api` is what a stream is given."""

    missing = "Stream not found"
    iterator_life = 300.0
    reads_per_second = math.inf
    page = 100
    """Shards that one call of a listing brings."""

    def __init__(self, shards: int = 1, *, latency: float = 0.0) -> None:
        self.shards: dict[str, FakeShard] = {}
        self.calls: list[Call] = []
        self.latency = latency
        self.retention = DAY
        self.exists = True
        self.refusals = 0
        """Reads that were refused because there were too many."""
        self._ids = count()
        self._numbers = count(1)
        self._iterators: dict[str, tuple[str, int, float]] = {}
        self._script: dict[str, deque[Any]] = defaultdict(deque)
        for _ in range(shards):
            self.add()

    # --- for tests ------------------------------------------------------------------------------------------------------

    def add(self, *parents: str) -> str:
        """A new shard; its parents are closed."""
        shard = FakeShard(self.shard_id(next(self._ids)), parents)
        self.shards[shard.id] = shard
        for parent in parents:
            self.shards[parent].closed = True
            self.shards[parent].children.append(shard.id)
        return shard.id

    def put(self, *data: str | bytes, shard: str | None = None, key: str = "customer 1") -> list[str]:
        """Add records and return their sequence numbers."""
        into = self.shards[shard or next(iter(self.shards))]
        assert not into.closed
        raw = [item.encode() if isinstance(item, str) else item for item in data]
        made = [self.record(self._number(), item, key) for item in raw]
        into.records += made
        return [self.number(record) for record in made]

    def _number(self) -> str:
        return f"{4957 * 10**50 + next(self._numbers) * 10**6}"

    def trim(self, records: int, shard: str | None = None) -> None:
        """Drop the oldest records now."""
        of = self.shards[shard or next(iter(self.shards))]
        del of.records[:records]
        of.dropped += records

    def script(self, operation: str, *failures: AwsError | dict[str, Any] | None) -> None:
        """What the next calls of `operation` do: raise, answer with this, or (None) work."""
        self._script[operation] += failures

    def calls_of(self, operation: str) -> list[Call]:
        return [call for call in self.calls if call.operation == operation]

    @property
    def reads(self) -> list[float]:
        return [call.at for call in self.calls_of("GetRecords")]

    # --- what differs ---------------------------------------------------------------------------------------------------

    def shard_id(self, number: int) -> str:
        raise NotImplementedError

    def record(self, number: str, data: bytes, key: str) -> dict[str, Any]:
        raise NotImplementedError

    def number(self, record: dict[str, Any]) -> str:
        raise NotImplementedError

    def arrived(self, record: dict[str, Any]) -> float:
        raise NotImplementedError

    def answer(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    # --- the API --------------------------------------------------------------------------------------------------------

    async def connect(self) -> Any:
        return self.api

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        with anyio.move_on_after(timeout):
            self.calls.append(Call(anyio.current_time(), operation, params))
            await anyio.sleep(self.latency)
            script = self._script[operation]
            scripted = script.popleft() if script else None
            if isinstance(scripted, AwsError):
                raise scripted
            if not self.exists:
                raise ResourceNotFound(self.missing, code="ResourceNotFoundException", operation=operation)
            return self.answer(operation, params) if scripted is None else scripted
        raise Unreachable(f"{operation}: no answer", code="Timeout", operation=operation)

    def _shard(self, shard_id: str) -> FakeShard:
        if shard_id not in self.shards:
            raise ResourceNotFound(
                f"Shard {shard_id} does not exist",
                code="ResourceNotFoundException",
                operation="GetShardIterator",
            )
        self._expire_records(self.shards[shard_id])
        return self.shards[shard_id]

    def _expire_records(self, shard: FakeShard) -> None:
        old = sum(1 for record in shard.records if self.arrived(record) < wall() - self.retention)
        if old:
            self.trim(old, shard.id)

    def iterator(self, shard_id: str, index: int) -> str:
        name = f"iterator-{len(self._iterators)}"
        self._iterators[name] = (shard_id, index, anyio.current_time())
        return name

    def seek(self, params: dict[str, Any], number: str | None) -> str:
        shard = self._shard(params["ShardId"])
        match params["ShardIteratorType"]:
            case "TRIM_HORIZON":
                index = shard.dropped
            case "LATEST":
                index = shard.dropped + len(shard.records)
            case "AT_TIMESTAMP":
                at = params["Timestamp"]
                if at > wall():
                    raise refused("InvalidArgumentException", "GetShardIterator")
                index = shard.dropped + self._count(shard.records, lambda record: self.arrived(record) < at)
            case "AFTER_SEQUENCE_NUMBER":
                assert number
                self.check(shard, int(number))
                index = shard.dropped + self._count(
                    shard.records, lambda record: int(self.number(record)) <= int(number)
                )
            case "AT_SEQUENCE_NUMBER":
                assert number
                self.check(shard, int(number))
                index = shard.dropped + self._count(
                    shard.records, lambda record: int(self.number(record)) < int(number)
                )
        return self.iterator(shard.id, index)

    @staticmethod
    def _count(records: Iterable[dict[str, Any]], condition: Any) -> int:
        return sum(1 for record in records if condition(record))

    def check(self, shard: FakeShard, number: int) -> None:
        """Refuse to seek a number that is gone, if that is what the service does."""

    def read(self, params: dict[str, Any], most: int) -> tuple[FakeShard, list[dict[str, Any]], str | None]:
        assert 1 <= params["Limit"] <= most
        name = params["ShardIterator"]
        shard_id, index, taken_at = self._iterators[name]
        shard = self._shard(shard_id)
        now = anyio.current_time()
        self._meter(shard, now)
        if now - taken_at > self.iterator_life:
            raise refused("ExpiredIteratorException", "GetRecords")
        if index < shard.dropped:
            index = self.overtaken(shard)
        records = shard.records[index - shard.dropped :][: params["Limit"]]
        index += len(records)
        at_end = index == shard.dropped + len(shard.records)
        return shard, records, None if shard.closed and at_end else self.iterator(shard_id, index)

    def overtaken(self, shard: FakeShard) -> int:
        """Where an iterator goes on whose records are gone."""
        return shard.dropped

    def _meter(self, shard: FakeShard, now: float) -> None:
        # A hair less than a second, for the rounding of floats.
        while shard.reads and shard.reads[0] <= now - 0.9999:
            shard.reads.popleft()
        if len(shard.reads) >= self.reads_per_second:
            self.refusals += 1
            raise throttled()
        shard.reads.append(now)


class FakeKinesis(FakeStream):
    """A data stream, with `split` and `merge`."""

    arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
    reads_per_second = 5
    tokens = True
    """False for an emulator that does not know its own NextToken."""

    def __init__(self, shards: int = 1, **more: Any) -> None:
        super().__init__(shards, **more)
        for number, shard in enumerate(self.shards.values()):
            shard.hash_range = (number * 2**128 // shards, (number + 1) * 2**128 // shards - 1)

    def split(self, shard: str) -> tuple[str, str]:
        """Into two halves of its hash keys."""
        left, right = self.add(shard), self.add(shard)
        low, high = self.shards[shard].hash_range
        middle = (low + high) // 2
        self.shards[left].hash_range, self.shards[right].hash_range = (low, middle), (middle + 1, high)
        return left, right

    def merge(self, one: str, other: str) -> str:
        """Two neighbours."""
        merged = self.add(one, other)
        low, high = sorted((self.shards[one].hash_range, self.shards[other].hash_range))
        self.shards[merged].hash_range = (low[0], high[1])
        return merged

    def shard_id(self, number: int) -> str:
        return f"shardId-{number:012}"

    def record(self, number: str, data: bytes, key: str) -> dict[str, Any]:
        return {
            "SequenceNumber": number,
            "ApproximateArrivalTimestamp": round(wall(), 3),
            "Data": b64encode(data).decode(),
            "PartitionKey": key,
        }

    def number(self, record: dict[str, Any]) -> str:
        return str(record["SequenceNumber"])

    def arrived(self, record: dict[str, Any]) -> float:
        return float(record["ApproximateArrivalTimestamp"])

    def answer(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "ListShards":
                return self._list(params)
            case "DescribeStream":
                listed, more = self._listed(params.get("ExclusiveStartShardId"))
                return {"StreamDescription": {"Shards": listed, "HasMoreShards": more}}
            case "GetShardIterator":
                return {"ShardIterator": self.seek(params, params.get("StartingSequenceNumber"))}
            case "GetRecords":
                return self._get(params)
            case "SubscribeToShard":
                return {"EventStream": Pushed(self, params)}
        raise AssertionError(f"nobody should call {operation}")

    def _list(self, params: dict[str, Any]) -> dict[str, Any]:
        token = params.get("NextToken")
        assert not (token and "StreamName" in params)
        if token and not self.tokens:
            raise ResourceNotFound("Stream None not found", operation="ListShards")
        listed, more = self._listed(token)
        return {"Shards": listed, **({"NextToken": listed[-1]["ShardId"]} if more else {})}

    def _listed(self, behind: str | None) -> tuple[list[dict[str, Any]], bool]:
        names = [name for name in self.shards if behind is None or name > behind]
        return [self._described(self.shards[name]) for name in names[: self.page]], len(names) > self.page

    def _described(self, shard: FakeShard) -> dict[str, Any]:
        lineage = dict(zip(("ParentShardId", "AdjacentParentShardId"), shard.parents, strict=False))
        numbers = {"StartingSequenceNumber": "1"} | ({"EndingSequenceNumber": "9"} if shard.closed else {})
        return {"ShardId": shard.id, "SequenceNumberRange": numbers, "HashKeyRange": _keys(shard), **lineage}

    def _get(self, params: dict[str, Any]) -> dict[str, Any]:
        shard, records, onward = self.read(params, 10_000)
        rest = shard.records[shard.records.index(records[-1]) + 1 :] if records else []
        behind = (self.arrived(shard.records[-1]) - self.arrived(records[-1])) if rest else 0
        reply: dict[str, Any] = {
            "Records": records,
            "NextShardIterator": onward,
            "MillisBehindLatest": round(behind * 1000),
        }
        if onward is None:
            reply["ChildShards"] = self.children(shard)
        return reply

    def children(self, shard: FakeShard) -> list[dict[str, Any]]:
        """What the end of a shard says of those that follow it."""
        return [
            {"ShardId": child.id, "ParentShards": list(child.parents), "HashKeyRange": _keys(child)}
            for child in map(self.shards.__getitem__, shard.children)
        ]


class Pushed:
    """The events of one subscription, as botocore hands them out: what is there, then what comes, and a beat every 5 s."""

    def __init__(self, fake: FakeKinesis, params: dict[str, Any]) -> None:
        position = params["StartingPosition"]
        where = {**position, "ShardId": params["ShardId"], "ShardIteratorType": position["Type"]}
        self._fake = fake
        self._at = fake._iterators[fake.seek(where, position.get("SequenceNumber"))]

    def close(self) -> None:
        """Nothing to close."""

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        fake, (shard_id, index, began) = self._fake, self._at
        told_at = -math.inf
        while anyio.current_time() < began + 300:
            shard = fake._shard(shard_id)
            records = shard.records[max(0, index - shard.dropped) :]
            if records or shard.closed or anyio.current_time() - told_at >= 5:
                index = shard.dropped + len(shard.records)
                told_at = anyio.current_time()
                yield {"SubscribeToShardEvent": self._told(shard, records)}
                if shard.closed:
                    return
            await anyio.sleep(0.07)

    def _told(self, shard: FakeShard, records: list[dict[str, Any]]) -> dict[str, Any]:
        told = {
            "Records": [_as_botocore_has_it(record) for record in records],
            "ContinuationSequenceNumber": self._fake.number(shard.records[-1]) if shard.records else "1",
            "MillisBehindLatest": 0,
        }
        return told | ({"ChildShards": self._fake.children(shard)} if shard.closed else {})


def _as_botocore_has_it(record: dict[str, Any]) -> dict[str, Any]:
    arrived = datetime.fromtimestamp(record["ApproximateArrivalTimestamp"], UTC)
    return {**record, "Data": b64decode(record["Data"]), "ApproximateArrivalTimestamp": arrived}


def _keys(shard: FakeShard) -> dict[str, str]:
    return dict(zip(("StartingHashKey", "EndingHashKey"), map(str, shard.hash_range), strict=True))


class FakeDynamoDbStream(FakeStream):
    """The stream of a table, with `roll_over`."""

    arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-01-01T00:00:00.000"
    iterator_life = 900.0

    def roll_over(self) -> str:
        """Close the youngest shard and go on in a new one."""
        return self.add(list(self.shards)[-1])

    def shard_id(self, number: int) -> str:
        return f"shardId-{number:020}-00000000"

    def record(self, number: str, data: bytes, key: str) -> dict[str, Any]:
        return {
            "eventID": f"{int(number) % 10**32:032x}",
            "eventName": "INSERT",
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-west-1",
            "dynamodb": {
                "ApproximateCreationDateTime": math.floor(wall()),
                "Keys": {"id": {"S": key}},
                "NewImage": {"id": {"S": key}, "data": {"S": data.decode()}},
                "SequenceNumber": number[-40:],
                "SizeBytes": len(data) + len(key) + 6,
                "StreamViewType": "NEW_AND_OLD_IMAGES",
            },
        }

    def _number(self) -> str:
        return f"{10**20 + next(self._numbers) * 1000}"

    def number(self, record: dict[str, Any]) -> str:
        return str(record["dynamodb"]["SequenceNumber"])

    def arrived(self, record: dict[str, Any]) -> float:
        return float(record["dynamodb"]["ApproximateCreationDateTime"])

    def check(self, shard: FakeShard, number: int) -> None:
        if not shard.records or number < int(self.number(shard.records[0])):
            gone = shard.dropped > 0
            if gone:
                raise refused("TrimmedDataAccessException", "GetShardIterator")

    def overtaken(self, shard: FakeShard) -> int:
        raise refused("TrimmedDataAccessException", "GetRecords")

    def answer(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "DescribeStream":
                return {"StreamDescription": self._describe(params.get("ExclusiveStartShardId"))}
            case "GetShardIterator":
                assert params["ShardIteratorType"] != "AT_TIMESTAMP"
                return {"ShardIterator": self.seek(params, params.get("SequenceNumber"))}
            case "GetRecords":
                _, records, onward = self.read(params, 1000)
                return {"Records": list(map(orjson.dumps, records))} | (
                    {"NextShardIterator": onward} if onward else {}
                )
        raise AssertionError(f"nobody should call {operation}")

    def _describe(self, behind: str | None) -> dict[str, Any]:
        names = [name for name in self.shards if behind is None or name > behind]
        listed = [self._described(self.shards[name]) for name in names[: self.page]]
        more = {"LastEvaluatedShardId": listed[-1]["ShardId"]} if len(names) > self.page else {}
        return {"StreamArn": self.arn, "StreamStatus": "ENABLED", "Shards": listed, **more}

    def _described(self, shard: FakeShard) -> dict[str, Any]:
        numbers = {"StartingSequenceNumber": "1"} | ({"EndingSequenceNumber": "9"} if shard.closed else {})
        lineage = {"ParentShardId": shard.parents[0]} if shard.parents else {}
        return {"ShardId": shard.id, "SequenceNumberRange": numbers, **lineage}
