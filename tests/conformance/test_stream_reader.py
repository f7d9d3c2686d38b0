"""What every stream and its reader promise (`poller.ports`), run over each of them: the fakes and a real server.

The fakes are verified by this: what other tests learn from them holds for the server too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64decode
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import orjson
import pytest
from trio.testing import MockClock

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.core.stream_envelope import DynamoDbEnvelope, KinesisEnvelope
from poller.errors import ResourceNotFound, ShardGone
from poller.model import Shard, StartAt
from poller.sources.dynamodb_streams import DynamoDbSource, DynamoDbStream
from poller.sources.fan_out import FanOutSource, ensure_consumer
from poller.sources.kinesis import KinesisSource, KinesisStream
from tests.engine.fakes import Recorder
from tests.fake_streams import FakeDynamoDbStream, FakeKinesis, wall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from poller.model import Record
    from poller.ports import Reader, Source
    from poller.sources._stream_api import Api

pytestmark = pytest.mark.anyio

ACCOUNT = "000000000000"
REGION = "eu-west-1"
MAPPINGS = ["orders", "one", "other"]
ROLE = "arn:aws:iam::123456789012:role/poller"
TRIM_HORIZON = StartAt("TRIM_HORIZON")
LATEST = StartAt("LATEST")


# --- the places ---------------------------------------------------------------------------------------------------------


class Place(ABC):
    """Somewhere to put records, and the mappings that read it."""

    arn: str
    missing_arn: str
    service: str

    def __init__(self, connect: Callable[[], Awaitable[Api]], **settings: Any) -> None:
        self.connect = connect
        self.settings = settings

    def begin(self) -> None:
        """Called once the stream is there."""
        self.stream = self._stream(self.arn)

    @abstractmethod
    async def put(self, *data: str, key: str = "customer 1") -> None:
        """Add records to the first shard."""

    @abstractmethod
    def _stream(self, arn: str) -> Any: ...

    @abstractmethod
    def _source(self, mapping: str, stream: Any) -> Source: ...

    @property
    def missing(self) -> Source:
        return self._source("orders", self._stream(self.missing_arn))

    def source(self, mapping: str = "orders") -> Source:
        return self._source(mapping, self.stream)

    async def shard(self) -> Shard:
        return (await self.source().shards())[0]


class Kinesis(Place):
    service = "kinesis"
    arn = FakeKinesis.arn
    missing_arn = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/missing"

    def _stream(self, arn: str) -> KinesisStream:
        return KinesisStream(arn, self.connect, **self.settings)

    def _source(self, mapping: str, stream: Any) -> KinesisSource:
        return KinesisSource(mapping, stream, KinesisEnvelope(stream.arn, REGION, ROLE), Recorder())


class FanOut(Kinesis):
    """Every mapping has its own consumer."""

    consumers: dict[str, str]
    connect_streaming: Callable[[], Awaitable[Api]]

    def _source(self, mapping: str, stream: Any) -> FanOutSource:
        consumer_arn = f"{stream.arn}/consumer/missing:1"
        if stream.arn == self.arn:
            consumer_arn = self.consumers[mapping]
        envelope = KinesisEnvelope(consumer_arn, REGION, ROLE)
        return FanOutSource(mapping, stream, consumer_arn, self.connect_streaming, envelope, Recorder())


class DynamoDb(Place):
    service = "dynamodbstreams"
    arn = FakeDynamoDbStream.arn
    missing_arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/missing/stream/2026-01-01T00:00:00.000"

    def _stream(self, arn: str) -> DynamoDbStream:
        return DynamoDbStream(arn, self.connect, **self.settings)

    def _source(self, mapping: str, stream: Any) -> DynamoDbSource:
        return DynamoDbSource(mapping, stream, DynamoDbEnvelope(stream.arn, REGION), Recorder())


class FakeKinesisPlace(Kinesis):
    def __init__(self) -> None:
        self.fake = FakeKinesis()
        super().__init__(_only(self.fake.api, self.arn), wall=wall)

    async def put(self, *data: str, key: str = "customer 1") -> None:
        self.fake.put(*data, key=key)


class FakeFanOutPlace(FanOut, FakeKinesisPlace):
    def __init__(self) -> None:
        super().__init__()
        self.connect_streaming = self.connect
        self.consumers = {name: f"{self.arn}/consumer/{name}:1" for name in MAPPINGS}


class FakeDynamoDbPlace(DynamoDb):
    def __init__(self) -> None:
        self.fake = FakeDynamoDbStream()
        super().__init__(_only(self.fake.api, self.arn), wall=wall)

    async def put(self, *data: str, key: str = "customer 1") -> None:
        self.fake.put(*data, key=key)


def _only(api: Api, arn: str) -> Callable[[], Awaitable[Api]]:
    """A fake knows one stream; this knows that others do not exist."""

    async def call(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        consumed = params.get("ConsumerARN", arn).partition("/consumer/")[0]
        if (params.get("StreamARN") or params.get("StreamArn") or consumed) != arn:
            raise ResourceNotFound("Stream not found", operation=operation)
        return await api(operation, params, timeout)

    async def connect() -> Api:
        return call

    return connect


class EmulatedKinesis(Kinesis):
    def __init__(self, session: AwsSession) -> None:
        super().__init__(partial(session.api, self.service))
        self.name = f"clicks-{uuid4().hex}"
        self.session = session

    async def create(self) -> None:
        await self._call("CreateStream", StreamName=self.name, ShardCount=1)
        described = await self._call("DescribeStream", StreamName=self.name)
        self.arn = described["StreamDescription"]["StreamARN"]

    async def put(self, *data: str, key: str = "customer 1") -> None:
        records = [{"Data": item.encode(), "PartitionKey": key} for item in data]
        await self._call("PutRecords", StreamName=self.name, Records=records)

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        return await self.session.call("kinesis", operation, params, region=REGION)


class EmulatedFanOut(FanOut, EmulatedKinesis):
    async def create(self) -> None:
        await super().create()
        self.connect_streaming = partial(self.session.streaming, "kinesis")
        api = await self.connect()
        self.consumers = {name: await ensure_consumer(api, self.arn, name) for name in MAPPINGS}


class EmulatedDynamoDb(DynamoDb):
    def __init__(self, session: AwsSession) -> None:
        super().__init__(partial(session.api, self.service))
        self.name = f"orders-{uuid4().hex}"
        self.session = session

    async def create(self) -> None:
        made = await self._call(
            "CreateTable",
            TableName=self.name,
            AttributeDefinitions=[
                {"AttributeName": "id", "AttributeType": "S"},
                {"AttributeName": "data", "AttributeType": "S"},
            ],
            KeySchema=[
                {"AttributeName": "id", "KeyType": "HASH"},
                {"AttributeName": "data", "KeyType": "RANGE"},
            ],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        self.arn = made["TableDescription"]["LatestStreamArn"]

    async def put(self, *data: str, key: str = "customer 1") -> None:
        for item in data:
            await self._call("PutItem", TableName=self.name, Item={"id": {"S": key}, "data": {"S": item}})

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        return await self.session.call("dynamodb", operation, params, region=REGION)


PLACES: dict[str, Any] = {
    "fake kinesis": FakeKinesisPlace,
    "fake fan-out": FakeFanOutPlace,
    "fake dynamodb": FakeDynamoDbPlace,
    "emulator kinesis": EmulatedKinesis,
    "emulator fan-out": EmulatedFanOut,
    "emulator dynamodb": EmulatedDynamoDb,
}
#: A consumer's next subscription has to wait until the server has missed the last one.
SLOW = {"emulator fan-out"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PLACES],
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def anyio_backend(kind: str) -> Any:
    return ("trio", {"clock": MockClock(autojump_threshold=0)}) if "fake" in kind else "asyncio"


@pytest.fixture(scope="module")
async def session(
    kind: str, anyio_backend: Any, request: pytest.FixtureRequest
) -> AsyncIterator[AwsSession | None]:
    if "fake" in kind:
        yield None
        return
    endpoint = request.getfixturevalue("emulator").endpoint_url
    async with AwsSession(Aws(region=REGION, endpoint_url=endpoint), Recorder()) as session:
        yield session


@pytest.fixture
async def place(kind: str, session: AwsSession | None) -> Place:
    place: Place = PLACES[kind](*() if session is None else (session,))
    if isinstance(place, EmulatedKinesis | EmulatedDynamoDb):
        await place.create()
    place.begin()
    return place


# --- small things -------------------------------------------------------------------------------------------------------


async def receive(reader: Reader, count: int, limit: int = 10_000) -> list[Record]:
    """Receive until there are so many."""
    records: list[Record] = []
    with anyio.fail_after(30):
        while len(records) < count:
            records += await reader.receive(min(limit, count - len(records)), 5)
    return records


def data(records: Sequence[Record]) -> list[str]:
    return [_data(record.event) for record in records]


def _data(event: dict[str, Any]) -> str:
    if "kinesis" in event:
        return b64decode(event["kinesis"]["data"]).decode()
    return str(event["dynamodb"]["NewImage"]["data"]["S"])


def numbered(count: int) -> list[str]:
    return [f"{number:04}" for number in range(count)]


# --- receiving ----------------------------------------------------------------------------------------------------------


async def test_a_stream_names_its_shards(place: Place) -> None:
    (shard,) = await place.source().shards()
    assert shard.id.startswith("shardId-")
    assert shard.parents == ()
    assert not shard.closed


async def test_a_missing_stream_is_said_so(place: Place) -> None:
    with pytest.raises(ResourceNotFound):
        await place.missing.shards()
    with pytest.raises(ResourceNotFound) as raised:
        async with place.missing.open(await place.shard(), TRIM_HORIZON):
            pass
    assert not isinstance(raised.value, ShardGone)


async def test_a_shard_that_is_not_there_is_told_from_a_stream_that_is_not(place: Place) -> None:
    with pytest.raises(ShardGone):
        async with place.source().open(Shard("shardId-00000000000000099999-00000099"), TRIM_HORIZON):
            pass


async def test_every_record_is_received_once_and_in_order(place: Place) -> None:
    await place.put(*numbered(50))
    async with place.source().open(await place.shard(), TRIM_HORIZON) as reader:
        records = await receive(reader, 50, limit=7)
        assert data(records) == numbered(50)
        assert [record.id for record in records] == sorted({record.id for record in records}, key=int)
        assert await reader.ack(records) == 50
        assert not await reader.receive(10, 0.2)
        assert not reader.ended


@pytest.mark.slow
async def test_records_that_come_later_are_received_within_a_quarter_of_a_second(place: Place) -> None:
    delays: list[float] = []
    async with place.source().open(await place.shard(), LATEST) as reader:
        for number in numbered(9):
            began = anyio.current_time()
            await place.put(number)
            assert data(await receive(reader, 1)) == [number]
            delays.append(anyio.current_time() - began)
    assert sorted(delays)[4] < 0.25


async def test_a_receive_of_nothing_ends_in_time(place: Place) -> None:
    async with place.source().open(await place.shard(), TRIM_HORIZON) as reader:
        began = anyio.current_time()
        assert not await reader.receive(10, 0.3)
        assert anyio.current_time() - began < 2


async def test_the_size_of_a_record_is_that_of_its_encoded_event_and_it_has_a_key_and_a_time(
    place: Place,
) -> None:
    await place.put("ångström")
    async with place.source().open(await place.shard(), TRIM_HORIZON) as reader:
        (record,) = await receive(reader, 1)
    assert record.size == len(orjson.dumps(record.event)) + 1
    assert "customer 1" in str(record.key)
    assert abs(record.arrived - place.stream.wall()) < 60


async def test_several_tasks_may_receive_at_the_same_time(place: Place) -> None:
    got: list[str] = []
    async with place.source().open(await place.shard(), TRIM_HORIZON) as reader:

        async def work(scope: anyio.CancelScope) -> None:
            while len(got) < 60:
                got.extend(data(await reader.receive(7, 1)))
            scope.cancel()

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(work, tasks.cancel_scope)
                await place.put(*numbered(60))
    assert sorted(got) == numbered(60)


# --- starting -----------------------------------------------------------------------------------------------------------


async def test_a_mapping_goes_on_behind_its_checkpoint(place: Place) -> None:
    await place.put(*numbered(10))
    shard = await place.shard()
    async with place.source().open(shard, TRIM_HORIZON) as reader:
        done = (await receive(reader, 4))[-1]
    async with place.source().open(shard, StartAt("AFTER_SEQUENCE_NUMBER", done.id)) as reader:
        assert data(await receive(reader, 6)) == numbered(10)[4:]
    inside = StartAt("AFTER_SEQUENCE_NUMBER", done.id, sub_sequence_number=1)
    async with place.source().open(shard, inside) as reader:
        assert data(await receive(reader, 7)) == numbered(10)[3:]


async def test_the_latest_is_what_comes_after_opening(place: Place) -> None:
    await place.put("before")
    async with place.source().open(await place.shard(), LATEST) as reader:
        await place.put("after")
        assert data(await receive(reader, 1)) == ["after"]


async def test_a_time_brings_what_came_since(place: Place) -> None:
    await place.put("one")
    since = StartAt("AT_TIMESTAMP", timestamp=place.stream.wall() - 60)
    async with place.source().open(await place.shard(), since) as reader:
        assert data(await receive(reader, 1)) == ["one"]


# --- one read, many functions -------------------------------------------------------------------------------------------


async def test_two_mappings_each_get_everything(place: Place) -> None:
    shard = await place.shard()
    one, other = place.source("one"), place.source("other")
    async with one.open(shard, TRIM_HORIZON) as first, other.open(shard, TRIM_HORIZON) as second:
        await place.put(*numbered(20))
        assert data(await receive(first, 20)) == numbered(20)
        await place.put("last")
        assert data(await receive(second, 21, limit=3)) == [*numbered(20), "last"]
        assert data(await receive(first, 1)) == ["last"]
