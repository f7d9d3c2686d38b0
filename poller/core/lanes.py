"""Lanes: how the keys of one shard are spread over batches that run at the same time.

Records of one key keep their order because they share a lane and a lane has one batch in flight. Which lane a key goes to is
the CRC-32 of its UTF-8 text modulo the number of lanes: the same in every process and release, so a record that is read again
meets the lane that it met before. The number of lanes may change between two starts only, when no batch is in flight.
Records without a key share lane 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poller.model import Record


def lane_of(key: str | None, lanes: int) -> int:
    """The lane of a key, from 0 to `lanes` - 1."""
    # Half of a surrogate pair is a legal character of a JSON string, and no legal UTF-8.
    return crc32(key.encode("utf-8", "surrogatepass")) % lanes if key is not None else 0


def split(records: Iterable[Record], lanes: int) -> list[list[Record]]:
    """Share records out to `lanes` lists, each in the order of `records`."""
    if lanes == 1:
        return [list(records)]
    shares: list[list[Record]] = [[] for _ in range(lanes)]
    for record in records:
        shares[lane_of(record.key, lanes)].append(record)
    return shares
