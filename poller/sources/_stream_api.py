"""What the two streams have in common as far as their APIs go: shards are listed, iterators sought, records read.

A subclass makes the calls and names the limits; who reads what and when is decided in `_stream_shard`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from poller.errors import BadReply

if TYPE_CHECKING:
    from poller.model import Shard
    from poller.sources._stream_page import Position, Wire

#: One call of a stream's API: operation, parameters, seconds until it is given up. Raises AwsError.
Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: Seconds for a call that brings no records.
CALL_TIMEOUT = 10.0
#: Seconds for one that may bring 10 MB.
READ_TIMEOUT = 30.0

EXPIRED = "ExpiredIteratorException"
TRIMMED = "TrimmedDataAccessException"


@dataclass(frozen=True, slots=True)
class Reply:
    """What one GetRecords brought."""

    records: list[Wire]
    next_iterator: str | None
    """None at the end of a closed shard."""
    behind: float | None = None
    """Seconds to the end of the shard; None when the source does not say."""
    children: tuple[Shard, ...] = ()


class StreamApi(ABC):
    """The API of one stream."""

    iterator_life: ClassVar[float]
    """Seconds for which an iterator may be used."""
    retention: ClassVar[float]
    """Seconds that records are kept at least."""
    trims_silently: ClassVar[bool]
    """True when a position whose record is gone is read from the trim horizon without a word."""
    seeks_time: ClassVar[bool]
    """True when the API finds a position by its time; otherwise such a shard is read from its beginning, and what is older
    is skipped."""
    page_records: ClassVar[int]
    """The most records that one read brings."""

    def __init__(self, arn: str, connect: Callable[[], Awaitable[Api]]) -> None:
        self.arn = arn
        self._connect = connect
        self._api: Api | None = None

    async def call(
        self, operation: str, params: dict[str, Any], timeout: float = CALL_TIMEOUT
    ) -> dict[str, Any]:
        """Call the API, connecting first if that has not been done."""
        if self._api is None:
            self._api = await self._connect()
        return await self._api(operation, params, timeout)

    @abstractmethod
    async def list_shards(self) -> list[Shard]:
        """All shards with records in them or to come."""

    @abstractmethod
    async def shards(self, age: float) -> Sequence[Shard]:
        """The same, of a listing that was begun not more than `age` seconds before this was asked."""

    @abstractmethod
    async def seek(self, shard_id: str, position: Position) -> str:
        """The iterator for a position. Not for AT_TIMESTAMP where the source does not seek by time."""

    @abstractmethod
    async def get(self, iterator: str, limit: int) -> Reply:
        """Read up to `limit` records."""

    @abstractmethod
    def number(self, wire: Wire) -> str:
        """The sequence number of a record."""

    @abstractmethod
    def arrived(self, wire: Wire) -> float:
        """The Unix time at which the stream took a record."""

    @abstractmethod
    def size(self, wires: Sequence[Wire]) -> int:
        """The bytes of the data of records, about."""


def senseless(operation: str, error: Exception) -> BadReply:
    """The error for a reply that lacks what every reply has, or has it in a shape that makes no sense."""
    missing = f"a reply without {error}" if isinstance(error, KeyError) else "a reply that makes no sense"
    return BadReply(f"{operation}: {missing}", operation=operation)


#: What reading a reply of another shape than expected raises.
SENSELESS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
