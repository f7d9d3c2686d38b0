"""An SqsSource over a fake queue, in few words."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from poller.model import StartAt
from poller.sources.sqs import QueueId, SqsSource
from tests.engine.fakes import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from poller.model import Record
    from poller.sources.sqs import Api, SqsReader
    from tests.fake_sqs import FakeSqs


def source(
    queue: FakeSqs, observer: Recorder | None = None, *, function_timeout: float = 1, api: Api | None = None
) -> SqsSource:
    identity = QueueId(
        mapping="orders",
        arn=f"arn:aws:sqs:eu-west-1:123456789012:{queue.name}",
        region="eu-west-1",
        account="123456789012",
        name=queue.name,
        fifo=queue.fifo,
        function_timeout=function_timeout,
    )

    async def connect() -> Api:
        return api or queue.api

    return SqsSource(identity, connect, observer or Recorder())


@asynccontextmanager
async def reading(queue: FakeSqs, observer: Recorder | None = None) -> AsyncIterator[SqsReader]:
    opened = source(queue, observer)
    (shard,) = await opened.shards()
    async with opened.open(shard, StartAt()) as reader:
        yield reader


async def received(reader: SqsReader, queue: FakeSqs, messages: int) -> list[Record]:
    """Send so many messages and receive them all, ten at a time."""
    for number in range(messages):
        queue.send(f"body {number}", group=f"group {number}")
    records: list[Record] = []
    while len(records) < messages:
        records += await reader.receive(10, 1)
    return records


def bodies(records: Sequence[Record]) -> list[str]:
    return [record.event["body"] for record in records]


async def elapsed(work: Callable[[], Awaitable[object]]) -> float:
    begun = anyio.current_time()
    await work()
    return anyio.current_time() - begun
