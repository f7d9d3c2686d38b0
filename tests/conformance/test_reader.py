"""What every source and its reader promise (`poller.ports`), run over each of them.

A new adapter adds a `Place` to `PLACES`. What one cannot do (keep keys in order, offer a record again by itself) is data of
the place or of its reader, and the tests ask it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import orjson
import pytest
from trio.testing import MockClock

from poller.aws.calls import HOT_OPERATIONS
from poller.aws.session import AwsSession
from poller.config import Aws
from poller.errors import ResourceNotFound
from poller.model import StartAt
from poller.sources.sqs import Api, QueueId, SqsSource
from tests.engine.fakes import Recorder
from tests.fake_sqs import FakeSqs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from poller.model import Record
    from poller.ports import Reader, Source

    #: Message attributes as an SDK sends them, binary values as bytes.
    Attributes = dict[str, dict[str, str | bytes]]

pytestmark = pytest.mark.anyio

ACCOUNT = "000000000000"
REGION = "eu-west-1"
#: Seconds; the shortest that SQS knows, since some tests wait for it in earnest.
VISIBILITY_TIMEOUT = 1


# --- the places ---------------------------------------------------------------------------------------------------------


class Place(ABC):
    """Somewhere to put records, and the source that reads them."""

    ordered: bool
    """Records of one key keep their order, and no two receives have some of it at the same time."""
    source: Source
    missing: Source
    """Of the same kind, but not there."""

    @abstractmethod
    async def put(self, body: str, key: str, attributes: Attributes | None = None) -> None:
        """Add a record."""

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Reader]:
        (shard,) = await self.source.shards()
        async with self.source.open(shard, StartAt()) as reader:
            yield reader


class Queue(Place):
    """A queue of SQS behind any API."""

    def __init__(self, api: Api, name: str, *, fifo: bool) -> None:
        self.ordered = fifo
        self.api = api
        self.name = name
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
        self.source = self._source(name)
        self.missing = self._source("missing-" + name)

    def _source(self, name: str) -> Source:
        async def connect() -> Api:
            return self.api

        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
        identity = QueueId("orders", arn, REGION, ACCOUNT, name, self.ordered, function_timeout=1)
        return SqsSource(identity, connect, Recorder())


class FakeQueue(Queue):
    def __init__(self, *, fifo: bool) -> None:
        self.fake = FakeSqs(fifo=fifo, visibility_timeout=VISIBILITY_TIMEOUT)
        super().__init__(self.fake.api, self.fake.name, fifo=fifo)

    async def put(self, body: str, key: str, attributes: Attributes | None = None) -> None:
        self.fake.send(body, key, attributes)


class EmulatedQueue(Queue):
    def __init__(self, session: AwsSession, api: Api, *, fifo: bool) -> None:
        super().__init__(api, f"orders-{uuid4().hex}" + (".fifo" if fifo else ""), fifo=fifo)
        self._session = session
        self._url = ""

    async def create(self) -> None:
        attributes = {"VisibilityTimeout": str(VISIBILITY_TIMEOUT)}
        if self.ordered:
            attributes["FifoQueue"] = "true"
        created = await self._call("CreateQueue", QueueName=self.name, Attributes=attributes)
        self._url = created["QueueUrl"]

    async def put(self, body: str, key: str, attributes: Attributes | None = None) -> None:
        order = {"MessageGroupId": key, "MessageDeduplicationId": uuid4().hex} if self.ordered else {}
        named = {"MessageAttributes": attributes} if attributes else {}
        await self._call("SendMessage", QueueUrl=self._url, MessageBody=body, **order, **named)

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        return await self._session.call("sqs", operation, params, region=REGION)


PLACES = ["fake", "fake fifo", "emulator", "emulator fifo"]


@pytest.fixture(scope="module", params=PLACES)
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
    fifo = "fifo" in kind
    if session is None:
        return FakeQueue(fifo=fifo)
    queue = EmulatedQueue(session, await sqs_api(session), fifo=fifo)
    await queue.create()
    return queue


async def sqs_api(session: AwsSession) -> Api:
    hot = await session.hot("sqs", REGION)

    async def call(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation in HOT_OPERATIONS["sqs"]:
            return await hot.call(operation, params, timeout=timeout)
        return await session.call("sqs", operation, params, region=REGION, timeout=timeout)

    return call


# --- small things -------------------------------------------------------------------------------------------------------


async def put(place: Place, *bodies: str) -> None:
    """Each with a key of its own."""
    for body in bodies:
        await place.put(body, key=body)


async def receive(reader: Reader, count: int) -> list[Record]:
    """Receive until there are so many."""
    records: list[Record] = []
    with anyio.fail_after(30):
        while len(records) < count:
            records += await reader.receive(count - len(records), 5)
    return records


def bodies(records: Sequence[Record]) -> list[str]:
    return [record.event["body"] for record in records]


# --- receiving ----------------------------------------------------------------------------------------------------------


async def test_a_source_names_its_shards(place: Place) -> None:
    shards = await place.source.shards()
    assert len({shard.id for shard in shards}) == len(shards) > 0


async def test_a_missing_source_is_said_so_on_entering(place: Place) -> None:
    (shard,) = await place.missing.shards()
    with pytest.raises(ResourceNotFound):
        async with place.missing.open(shard, StartAt()):
            pass


async def test_every_record_is_received(place: Place) -> None:
    await put(place, "one", "two", "three")
    async with place.reading() as reader:
        records = await receive(reader, 3)
        assert sorted(bodies(records)) == ["one", "three", "two"]
        assert len({record.id for record in records}) == 3
        assert await reader.ack(records) == 3


async def test_a_receive_brings_no_more_than_its_limit(place: Place) -> None:
    await put(place, "one", "two", "three")
    async with place.reading() as reader:
        assert len(await reader.receive(2, 5)) <= 2


async def test_a_long_receive_returns_as_soon_as_a_record_comes(place: Place) -> None:
    received: list[Record] = []
    async with place.reading() as reader:

        async def poll() -> None:
            received.extend(await reader.receive(10, 20))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                await put(place, "one")
        assert bodies(received) == ["one"]


async def test_the_size_of_a_record_is_that_of_its_encoded_event(place: Place) -> None:
    await put(place, "ångström")
    async with place.reading() as reader:
        for record in await receive(reader, 1):
            assert record.size == len(orjson.dumps(record.event)) + 1


async def test_records_have_a_key_exactly_where_order_matters(place: Place) -> None:
    await place.put("body", key="customer 1")
    async with place.reading() as reader:
        (record,) = await receive(reader, 1)
        assert record.key == ("customer 1" if place.ordered else None)


async def test_records_of_one_key_arrive_in_order(place: Place) -> None:
    sent = [f"{number}" for number in range(12)]
    for body in sent:
        await place.put(body, key="customer 1")
    received: list[str] = []
    async with place.reading() as reader:
        while len(received) < len(sent):
            records = await reader.receive(10, 5)
            received += bodies(records)
            assert await reader.ack(records) == len(records)
    assert (received if place.ordered else sorted(received, key=int)) == sent


# --- settling -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_acked_records_do_not_come_back_and_a_receive_of_nothing_is_empty(place: Place) -> None:
    await put(place, "one", "two")
    async with place.reading() as reader:
        records = await receive(reader, 2)
        assert await reader.ack(records) == 2
    async with place.reading() as reader:
        begun = anyio.current_time()
        assert list(await reader.receive(10, 1)) == []
        assert 0.9 < anyio.current_time() - begun < 5


async def test_nothing_is_settled_when_there_is_nothing_to_settle(place: Place) -> None:
    async with place.reading() as reader:
        assert await reader.ack([]) == 0
        await reader.release([], 0.0)
        await reader.release([], None)


async def test_many_records_are_settled_in_one_go(place: Place) -> None:
    sent = [f"{number}" for number in range(45)]
    await put(place, *sent)
    async with place.reading() as reader:
        records = await receive(reader, 45)
        assert sorted(bodies(records), key=int) == sent
        assert await reader.ack(records) == 45


async def test_several_tasks_may_receive_and_settle_at_the_same_time(place: Place) -> None:
    sent = [f"{number}" for number in range(40)]
    await put(place, *sent)
    acked: list[str] = []
    async with place.reading() as reader, anyio.create_task_group() as tasks:

        async def work() -> None:
            while len(acked) < len(sent):
                records = await reader.receive(3, 20)
                assert await reader.ack(records) == len(records)
                acked.extend(bodies(records))
            tasks.cancel_scope.cancel()

        for _ in range(4):
            tasks.start_soon(work)
    assert sorted(acked, key=int) == sent


async def test_records_given_back_come_again_at_once(place: Place) -> None:
    await put(place, "one", "two")
    async with place.reading() as reader:
        if not reader.redelivers:
            return
        first = await receive(reader, 2)
        await reader.release(first, 0.0)
        again = await receive(reader, 2)
        assert sorted(record.id for record in again) == sorted(record.id for record in first)
        assert await reader.ack(again) == 2


@pytest.mark.slow
async def test_a_record_is_the_readers_for_as_long_as_it_is_not_settled(place: Place) -> None:
    await put(place, "one", "two")
    async with place.reading() as reader:
        records = await receive(reader, 2)
        assert list(await reader.receive(10, VISIBILITY_TIMEOUT + 1)) == []
        assert await reader.ack(records) == 2


@pytest.mark.slow
async def test_a_record_that_is_left_comes_again_and_its_old_receipt_does_no_harm(place: Place) -> None:
    await put(place, "one")
    async with place.reading() as reader:
        if not reader.redelivers:
            return
        left = await receive(reader, 1)
        await reader.release(left, None)
        again = await receive(reader, 1)
        assert bodies(again) == ["one"]
        assert await reader.ack(again) == 1
        assert await reader.ack(left) <= 1
        await reader.release(left, 0.0)


# --- leaving ------------------------------------------------------------------------------------------------------------


async def test_leaving_gives_back_what_is_not_settled(place: Place) -> None:
    await put(place, "one", "two", "three")
    async with place.reading() as reader:
        records = await receive(reader, 3)
        await reader.ack(records[:1])
    async with place.reading() as reader:
        again = await receive(reader, 2)
        assert sorted(record.id for record in again) == sorted(record.id for record in records[1:])
        await reader.ack(again)


async def test_leaving_gives_back_what_is_not_settled_even_when_cancelled(place: Place) -> None:
    await put(place, "one", "two")
    with anyio.CancelScope() as scope:
        async with place.reading() as reader:
            await receive(reader, 2)
            scope.cancel()
            await anyio.sleep_forever()
    async with place.reading() as reader:
        assert sorted(bodies(await receive(reader, 2))) == ["one", "two"]


# --- the event of a queue --------------------------------------------------------------------------------------------


ALWAYS = {"ApproximateReceiveCount", "SentTimestamp", "SenderId", "ApproximateFirstReceiveTimestamp"}
ORDERED = {"MessageGroupId", "SequenceNumber", "MessageDeduplicationId"}
LISTS: dict[str, list[str]] = {"stringListValues": [], "binaryListValues": []}


async def test_a_message_becomes_lambdas_event(place: Queue) -> None:
    attributes: Attributes = {
        "amount": {"DataType": "Number.int", "StringValue": "12"},
        "blob": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    await place.put("{}", "customer 1", attributes)
    async with place.reading() as reader:
        (record,) = await receive(reader, 1)
        await reader.ack([record])
    event = dict(record.event)
    assert event.pop("receiptHandle") == record.receipt
    system = event.pop("attributes")
    assert all(isinstance(value, str) for value in system.values())
    assert set(system) >= ALWAYS | (ORDERED if place.ordered else set())
    assert event == {
        "messageId": record.id,
        "body": "{}",
        "md5OfBody": "99914b932bd37a50b983c5e7c90ae93b",
        "messageAttributes": {
            "amount": {"stringValue": "12", "dataType": "Number.int", **LISTS},
            "blob": {"binaryValue": "AP8=", "dataType": "Binary", **LISTS},
        },
        "md5OfMessageAttributes": "e9f6e71e79c27032013454c461f801ec",
        "eventSource": "aws:sqs",
        "eventSourceARN": place.arn,
        "awsRegion": REGION,
    }


async def test_a_message_without_attributes_has_no_digest_of_them(place: Queue) -> None:
    await put(place, "{}")
    async with place.reading() as reader:
        (record,) = await receive(reader, 1)
        await reader.ack([record])
    assert record.event["messageAttributes"] == {}
    assert "md5OfMessageAttributes" not in record.event
