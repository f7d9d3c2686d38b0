"""Kinesis data streams, read by polling.

A shard allows five reads and 2 MB a second, shared with every other consumer of it, Lambda's own included. An iterator lives
five minutes. A position that the retention has overtaken is read from the trim horizon without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poller.errors import RequestRefused, ResourceNotFound
from poller.model import Shard
from poller.sources._deaggregate import Unpack
from poller.sources._stream import Stream, StreamSource
from poller.sources._stream_api import READ_TIMEOUT, SENSELESS, Reply, senseless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from poller.model import StartAt
    from poller.ports import Observer
    from poller.sources._deaggregate import HashRange
    from poller.sources._stream import Envelope
    from poller.sources._stream_api import Api
    from poller.sources._stream_page import Position, Wire

__all__ = ["IDLE_INTERVAL", "KinesisSource", "KinesisStream"]

#: Seconds between the reads of an idle shard: Lambda's own pace. They cost nothing but their share of the five.
IDLE_INTERVAL = 1.0


class KinesisStream(Stream):
    """One data stream."""

    iterator_life = 300.0
    retention = 24 * 3600.0
    trims_silently = True
    seeks_time = True
    page_records = 10_000
    reads_per_second = 5.0
    bytes_per_second = 2e6

    def __init__(
        self,
        arn: str,
        connect: Callable[[], Awaitable[Api]],
        *,
        idle_interval: float = IDLE_INTERVAL,
        **clock: Callable[[], float],
    ) -> None:
        super().__init__(arn, connect, idle_interval=idle_interval, **clock)
        # Emulators know streams by name, AWS asks for the ARN; it takes both.
        self._named = {"StreamName": arn.rpartition("/")[2], "StreamARN": arn}

    # --- shards ---------------------------------------------------------------------------------------------------------

    async def list_shards(self) -> list[Shard]:
        """ListShards to its end, or DescribeStream where the second page of that cannot be had."""
        shards: list[Shard] = []
        params: dict[str, Any] = self._named
        while True:
            try:
                reply = await self.call("ListShards", params)
            except (RequestRefused, ResourceNotFound):
                # A token lives five minutes on AWS; some emulators do not know what to do with one at all.
                if not shards:
                    raise
                return await self._describe()
            shards += _shards("ListShards", reply)
            token = reply.get("NextToken")
            if not token:
                return shards
            params = {"NextToken": token, "StreamARN": self.arn}

    async def _describe(self) -> list[Shard]:
        shards: list[Shard] = []
        params: dict[str, Any] = self._named
        while True:
            reply = await self.call("DescribeStream", params)
            try:
                described = reply["StreamDescription"]
                shards += _shards("DescribeStream", described)
                if not (described["HasMoreShards"] and shards):
                    return shards
            except SENSELESS as error:
                raise senseless("DescribeStream", error) from error
            params = {**self._named, "ExclusiveStartShardId": shards[-1].id}

    # --- records --------------------------------------------------------------------------------------------------------

    async def seek(self, shard_id: str, position: Position) -> str:
        """GetShardIterator."""
        params: dict[str, Any] = {**self._named, "ShardId": shard_id, "ShardIteratorType": position.kind}
        if position.sequence_number:
            params["StartingSequenceNumber"] = position.sequence_number
        if position.kind == "AT_TIMESTAMP":
            params["Timestamp"] = position.timestamp
        reply = await self.call("GetShardIterator", params)
        try:
            return str(reply["ShardIterator"])
        except SENSELESS as error:
            raise senseless("GetShardIterator", error) from error

    async def get(self, iterator: str, limit: int) -> Reply:
        """GetRecords."""
        params = {"ShardIterator": iterator, "Limit": limit, "StreamARN": self.arn}
        reply = await self.call("GetRecords", params, READ_TIMEOUT)
        try:
            behind = reply.get("MillisBehindLatest")
            return Reply(
                reply["Records"],
                reply.get("NextShardIterator"),
                None if behind is None else behind / 1000,
                tuple(child_shard(child) for child in reply.get("ChildShards") or ()),
            )
        except SENSELESS as error:
            raise senseless("GetRecords", error) from error

    def number(self, wire: Wire) -> str:
        return str(wire["SequenceNumber"])

    def arrived(self, wire: Wire) -> float:
        return float(wire["ApproximateArrivalTimestamp"])

    def size(self, wires: Sequence[Wire]) -> int:
        return sum([len(wire["Data"]) for wire in wires]) * 3 // 4


class KinesisSource(StreamSource[KinesisStream]):
    """One data stream as one mapping sees it.

    With `deaggregate` the records inside an aggregate of the Kinesis Producer Library are records of their own, which Lambda
    does with enhanced fan-out only.
    """

    def __init__(
        self,
        mapping: str,
        stream: KinesisStream,
        envelope: Envelope,
        observer: Observer,
        *,
        deaggregate: bool = False,
    ) -> None:
        super().__init__(mapping, stream, envelope, observer)
        self._deaggregate = deaggregate

    def _unpack(self, shard: Shard, start: StartAt) -> Unpack | None:
        return Unpack.wanted(start, shard.hash_range, apart=self._deaggregate)


def _shards(operation: str, reply: dict[str, Any]) -> list[Shard]:
    try:
        return [_shard(shard) for shard in reply["Shards"]]
    except SENSELESS as error:
        raise senseless(operation, error) from error


def _shard(shard: dict[str, Any]) -> Shard:
    parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
    closed = shard["SequenceNumberRange"].get("EndingSequenceNumber") is not None
    lineage = tuple(parent for parent in parents if parent)
    return Shard(shard["ShardId"], lineage, closed, _hash_range(shard))


def child_shard(child: dict[str, Any]) -> Shard:
    """One of the ChildShards that a closed shard ends with."""
    return Shard(child["ShardId"], tuple(child.get("ParentShards") or ()), hash_range=_hash_range(child))


def _hash_range(shard: dict[str, Any]) -> HashRange | None:
    keys = shard.get("HashKeyRange")
    return keys and (int(keys["StartingHashKey"]), int(keys["EndingHashKey"]))
