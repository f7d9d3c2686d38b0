"""A fake stream, the source over it, and mappings that read it."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

import anyio

from poller.core.stream_envelope import DynamoDbEnvelope, KinesisEnvelope
from poller.model import Shard, StartAt, Trimmed
from poller.sources.dynamodb_streams import DynamoDbSource, DynamoDbStream
from poller.sources.kinesis import KinesisSource, KinesisStream
from tests.engine.fakes import Recorder
from tests.fake_streams import FakeDynamoDbStream, FakeKinesis, FakeStream, wall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from poller.model import Record
    from poller.sources._stream import Stream, StreamReader, StreamSource

KINDS = ["kinesis", "dynamodb"]
REGION = "eu-west-1"
LATEST = StartAt("LATEST")
TRIM_HORIZON = StartAt("TRIM_HORIZON")
ROLE = "arn:aws:iam::123456789012:role/poller"


class Listener(Recorder):
    """An observer that also hears of what is lost."""

    trimmed = Recorder._note


def after(sequence_number: str) -> StartAt:
    return StartAt("AFTER_SEQUENCE_NUMBER", sequence_number)


def make_fake(kind: str, shards: int = 1, **more: Any) -> FakeStream:
    return (FakeKinesis if kind == "kinesis" else FakeDynamoDbStream)(shards, **more)


class Rig:
    """One stream and any number of mappings on it."""

    def __init__(self, fake: FakeStream, **settings: Any) -> None:
        self.fake = fake
        self.listener = Listener()
        settings = {"wall": wall, "chance": lambda: 0.0} | settings
        self.stream: Stream
        if isinstance(fake, FakeKinesis):
            self.stream = KinesisStream(fake.arn, fake.connect, **settings)
        else:
            assert isinstance(fake, FakeDynamoDbStream)
            self.stream = DynamoDbStream(fake.arn, fake.connect, **settings)

    @classmethod
    def of(cls, kind: str, **settings: Any) -> Rig:
        return cls(make_fake(kind), **settings)

    def source(self, mapping: str = "clicks", *, deaggregate: bool = False) -> StreamSource[Any]:
        if isinstance(self.stream, KinesisStream):
            envelope = KinesisEnvelope(self.stream.arn, REGION, ROLE)
            return KinesisSource(mapping, self.stream, envelope, self.listener, deaggregate=deaggregate)
        assert isinstance(self.stream, DynamoDbStream)
        return DynamoDbSource(mapping, self.stream, DynamoDbEnvelope(self.stream.arn, REGION), self.listener)

    def open(
        self, start: StartAt = TRIM_HORIZON, *, mapping: str = "clicks", shard: str | None = None
    ) -> AbstractAsyncContextManager[StreamReader]:
        wanted = shard or next(iter(self.fake.shards))
        known = self.fake.shards.get(wanted)
        return self.source(mapping).open(Shard(wanted, closed=known is not None and known.closed), start)

    @property
    def trimmed(self) -> list[Trimmed]:
        return self.listener.of(Trimmed)


def data(records: Sequence[Record]) -> list[str]:
    return [_data(record.event) for record in records]


def _data(event: dict[str, Any]) -> str:
    if "kinesis" in event:
        return b64decode(event["kinesis"]["data"]).decode()
    return str(event["dynamodb"]["NewImage"]["data"]["S"])


async def receive(reader: StreamReader, count: int, limit: int = 10_000) -> list[str]:
    """What comes until there are `count` records."""
    got: list[str] = []
    while len(got) < count:
        got += data(await reader.receive(min(limit, count - len(got)), 20))
    return got


async def drain(reader: StreamReader, limit: int = 100) -> list[str]:
    """What comes until the shard ends."""
    got: list[str] = []
    while not reader.ended:
        got += data(await reader.receive(limit, 20))
    return got


async def follow(reader: StreamReader, got: list[str], limit: int = 100) -> None:
    """Receive for ever."""
    while True:
        got += data(await reader.receive(limit, 20))


async def idle(reader: StreamReader, seconds: float) -> None:
    """Receive nothing for so long."""
    with anyio.move_on_after(seconds):
        while True:
            assert not await reader.receive(100, 20)
