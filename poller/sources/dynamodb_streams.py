"""The stream of a DynamoDB table, read by polling.

A shard lives about four hours and is then continued by another, even where nothing happens. AWS advises no more than two
readers for each shard; however many mappings there are, poller is one. An iterator lives fifteen minutes, a record 24 hours.
A position cannot be sought by time, and an empty reply does not mean that the end has been reached.

A record is handled as the JSON that came, and every mapping parses its own (see `poller.core.stream_envelope`). Its number and
its time are found in there without that: only its own members are strings and numbers, the attributes of an item are objects.

Reads cost money here: one a second and shard is 2.6 million a month. So an idle shard is read every five seconds (half a
million a month); the first record brings five a second at once.
"""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Any

from poller.model import Shard
from poller.sources._stream import Stream, StreamSource
from poller.sources._stream_api import READ_TIMEOUT, SENSELESS, Reply, senseless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from poller.sources._stream_api import Api
    from poller.sources._stream_page import Position

__all__ = ["IDLE_INTERVAL", "DynamoDbSource", "DynamoDbStream"]

_NUMBER = re.compile(rb'"SequenceNumber":"([^"]+)"')
_TIME = re.compile(rb'"ApproximateCreationDateTime":([^{",}]+)')
#: Seconds between the reads of an idle shard.
IDLE_INTERVAL = 5.0


class DynamoDbStream(Stream):
    """The stream of one table."""

    iterator_life = 900.0
    retention = 24 * 3600.0
    trims_silently = False
    seeks_time = False
    page_records = 1000
    reads_per_second = 5.0
    bytes_per_second = inf

    def __init__(
        self,
        arn: str,
        connect: Callable[[], Awaitable[Api]],
        *,
        idle_interval: float = IDLE_INTERVAL,
        **clock: Callable[[], float],
    ) -> None:
        super().__init__(arn, connect, idle_interval=idle_interval, **clock)

    # --- shards ---------------------------------------------------------------------------------------------------------

    async def list_shards(self) -> list[Shard]:
        """DescribeStream to its end."""
        shards: list[Shard] = []
        params: dict[str, Any] = {"StreamArn": self.arn}
        while True:
            reply = await self.call("DescribeStream", params)
            try:
                described = reply["StreamDescription"]
                shards += [_shard(shard) for shard in described.get("Shards") or ()]
                last = described.get("LastEvaluatedShardId")
            except SENSELESS as error:
                raise senseless("DescribeStream", error) from error
            if not last:
                return shards
            params = {"StreamArn": self.arn, "ExclusiveStartShardId": last}

    # --- records --------------------------------------------------------------------------------------------------------

    async def seek(self, shard_id: str, position: Position) -> str:
        """GetShardIterator."""
        params = {"StreamArn": self.arn, "ShardId": shard_id, "ShardIteratorType": position.kind}
        if position.sequence_number:
            params["SequenceNumber"] = position.sequence_number
        reply = await self.call("GetShardIterator", params)
        try:
            return str(reply["ShardIterator"])
        except SENSELESS as error:
            raise senseless("GetShardIterator", error) from error

    async def get(self, iterator: str, limit: int) -> Reply:
        """GetRecords."""
        reply = await self.call("GetRecords", {"ShardIterator": iterator, "Limit": limit}, READ_TIMEOUT)
        try:
            return Reply(reply["Records"], reply.get("NextShardIterator"))
        except SENSELESS as error:
            raise senseless("GetRecords", error) from error

    def number(self, wire: bytes) -> str:
        return _found(_NUMBER, wire, "SequenceNumber").decode()

    def arrived(self, wire: bytes) -> float:
        return float(_found(_TIME, wire, "ApproximateCreationDateTime"))

    def size(self, wires: Sequence[bytes]) -> int:
        return sum(map(len, wires))


class DynamoDbSource(StreamSource[DynamoDbStream]):
    """The stream of one table as one mapping sees it."""


def _found(pattern: re.Pattern[bytes], wire: bytes, name: str) -> bytes:
    found = pattern.search(wire)
    if found is None:
        raise KeyError(name)
    return found[1]


def _shard(shard: dict[str, Any]) -> Shard:
    parent = shard.get("ParentShardId")
    closed = shard["SequenceNumberRange"].get("EndingSequenceNumber") is not None
    return Shard(shard["ShardId"], (parent,) if parent else (), closed)
