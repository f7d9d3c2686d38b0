"""The calls for one shard: each at its time, throttling waited out, and what is not found told apart.

Quota and throttling are the shard's, so whoever calls waits for both here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from poller.errors import ResourceNotFound, ShardGone, Throttled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poller.sources._stream_api import Reply, StreamApi
    from poller.sources._stream_pace import Pace
    from poller.sources._stream_page import Position

_T = TypeVar("_T")

#: Times that a throttled call is tried before the mapping hears of it; about a minute.
PATIENCE = 10


async def check_shard(error: ResourceNotFound, shard_id: str, api: StreamApi) -> None:
    """Raise `ShardGone` when what `error` did not find is a shard that the stream has no more.

    AWS has one code for a stream and for a shard that is not there; the listing knows which. Raises AwsError when there is
    none, as for a stream that does not exist. A stream that lists no shards at all is just being made: none of them is gone.
    """
    # After a long downtime hundreds are gone, and to list a large stream takes many calls: so one listing does for all that
    # came before it.
    listed = await api.shards(0.0)
    if listed and all(shard.id != shard_id for shard in listed):
        gone = f"{shard_id} of {api.arn} is gone: {error}"
        raise ShardGone(gone, code=ShardGone.CODE, operation=error.operation) from error


class ShardCalls:
    """The API of one shard. `throttling` is told when it begins and when it ends."""

    def __init__(self, shard_id: str, api: StreamApi, pace: Pace, throttling: Callable[[bool], None]) -> None:
        self._shard_id = shard_id
        self._api = api
        self._pace = pace
        self._throttling = throttling

    async def seek(self, position: Position) -> str:
        """The iterator for a position. Raises `ShardGone` when the stream exists and the shard does not."""
        return await self._ask(partial(self._api.seek, self._shard_id, position))

    async def get(self, iterator: str, limit: int) -> tuple[Reply, float]:
        """Read as soon as the quota allows it; return when that was, too."""
        sent = 0.0

        async def get() -> Reply:
            nonlocal sent
            await anyio.sleep_until(self._pace.slot)
            # A loop that wakes a moment too early must not shorten the way to the next read as well.
            sent = max(anyio.current_time(), self._pace.slot)
            self._pace.sent(sent)
            return await self._api.get(iterator, limit)

        return await self._ask(get), sent

    async def _ask(self, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await self._patiently(call)
        except ResourceNotFound as error:
            await check_shard(error, self._shard_id, self._api)
            raise

    async def _patiently(self, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await call()
        except Throttled as error:
            first = [error]

        async def again() -> _T:
            # The policy has to see the refusal that brought us here, to wait after it.
            if first:
                raise first.pop()
            return await call()

        policy = AsyncRetrying(
            stop=stop_after_attempt(PATIENCE),
            wait=wait_exponential(multiplier=0.3, max=10.0) + wait_random(0, 0.5),
            retry=retry_if_exception_type(Throttled),
            reraise=True,
            sleep=anyio.sleep,
        )
        self._throttling(True)
        try:
            return await policy(again)
        finally:
            self._throttling(False)
