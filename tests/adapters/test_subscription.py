from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from zlib import crc32

import anyio
import orjson
import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from botocore.eventstream import ChecksumMismatch

from poller.aws.session import COLD_CONNECTIONS, AwsSession
from poller.config import Aws
from poller.errors import AccessDenied, AwsError, BadReply, ResourceNotFound, Throttled, Unreachable
from poller.model import StartAt
from poller.sources._subscription import SKEW, Subscription, ensure_consumer
from tests.adapters.pushed_shard import (
    ARN,
    END,
    SHARD,
    Script,
    Step,
    event,
    in_use,
    kinesis_api,
    numbers_of,
    sent_error,
)
from tests.engine.fakes import EPOCH, Recorder, settle_down, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import SocketStream

    from poller.sources._subscription import Api

# --- where a subscription begins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "position"),
    [
        (StartAt(), {"Type": "TRIM_HORIZON"}),
        (StartAt("LATEST"), {"Type": "LATEST"}),
        (StartAt("AT_TIMESTAMP", timestamp=5.5), {"Type": "AT_TIMESTAMP", "Timestamp": 5.5}),
        (StartAt("AFTER_SEQUENCE_NUMBER", "7"), {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "7"}),
        (StartAt("AFTER_SEQUENCE_NUMBER", "7", 0), {"Type": "AT_SEQUENCE_NUMBER", "SequenceNumber": "7"}),
    ],
)
@virtual
async def test_a_subscription_starts_where_the_mapping_does(start: StartAt, position: dict[str, Any]) -> None:
    script = Script([[END]])
    async with script.subscribe(start) as subscription:
        assert await numbers_of(subscription) == []
    assert script.asked == [position]


@virtual
async def test_the_end_of_the_shard_stays_where_it_was_when_it_was_first_asked_for() -> None:
    script = Script([in_use(), [ServerDisconnectedError()], [event(1), END]])
    async with script.subscribe(StartAt("LATEST")) as subscription:
        with pytest.raises(Unreachable):
            await anext(subscription)
        assert await numbers_of(subscription) == [1]
    began = {"Type": "AT_TIMESTAMP", "Timestamp": EPOCH + script.at[0] - SKEW}
    assert script.asked == [{"Type": "LATEST"}, began, began]


@virtual
async def test_latest_of_an_earlier_moment_is_asked_for_again_at_that_moment() -> None:
    script = Script([in_use(), [END]])
    async with script.subscribe(StartAt("LATEST", timestamp=500.0)):
        assert script.asked == [{"Type": "LATEST"}, {"Type": "AT_TIMESTAMP", "Timestamp": 500.0 - SKEW}]


# --- one after the other ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param([], id="ended by AWS"),
        pytest.param([ClientPayloadError("cut off")], id="cut off"),
        pytest.param([ServerDisconnectedError()], id="connection lost"),
        pytest.param([ChecksumMismatch(1, 2)], id="damaged"),
        pytest.param([{"SubscribeToShardEvent": {"Records": [{"Data": b"x"}]}}], id="incomplete"),
        pytest.param([{"SomethingNew": {}}], id="unknown"),
        pytest.param([sent_error("InternalFailureException")], id="fault of AWS"),
        pytest.param([36.0, event(3)], id="silent"),
    ],
)
@virtual
async def test_after_a_break_the_next_subscription_goes_on_from_the_last_whole_event(
    broken: list[Step],
) -> None:
    script = Script([[event(1, 2), *broken], [event(3), END]])
    async with script.subscribe() as subscription:
        assert await numbers_of(subscription) == [1, 2, 3]
    assert script.asked[1:] == [{"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "002"}]


@virtual
async def test_an_event_without_records_moves_the_position_too() -> None:
    script = Script([[event(1), event(after=5)], [END]])
    async with script.subscribe() as subscription:
        assert await numbers_of(subscription) == [1]
    assert script.asked[1]["SequenceNumber"] == "005"


@virtual
async def test_an_event_that_leads_nowhere_is_the_last_one_of_the_shard() -> None:
    last = event(1)
    last["SubscribeToShardEvent"]["ContinuationSequenceNumber"] = None
    async with Script([[last]]).subscribe() as subscription:
        assert await numbers_of(subscription) == [1]
        assert subscription.ended


@virtual
async def test_a_subscription_is_replaced_before_its_five_minutes_end() -> None:
    beats: list[Step] = [step for _ in range(100) for step in (5.0, event(after=1))]
    script = Script([beats, [END]])
    async with script.subscribe() as subscription:
        assert await numbers_of(subscription) == []
    assert 280 < script.at[1] - script.at[0] < 300


@virtual
async def test_a_reader_that_asks_too_late_finds_a_new_subscription() -> None:
    script = Script([[event(1), event(2)], [event(1), END]])
    async with script.subscribe() as subscription:
        await anyio.sleep(400)
        assert await numbers_of(subscription) == [1]
    assert [stream.taken for stream in script.streams] == [0, 2]


@virtual
async def test_while_another_subscription_is_in_use_it_is_asked_again_with_growing_pauses() -> None:
    script = Script([*[in_use()] * 4, [END]])
    waiting: list[bool] = []
    subscription = script.subscribe()
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await settle_down()
            waiting.append(subscription.waiting)

        tasks.start_soon(watch)
        async with subscription:
            waiting.append(subscription.waiting)
    assert waiting == [True, False]
    assert len(script.asked) == 5
    assert 2 <= script.at[-1] - script.at[0] <= 20


@virtual
async def test_a_subscription_that_stays_in_use_is_an_error_that_passes() -> None:
    script = Script([in_use() for _ in range(10)])
    with pytest.raises(Throttled, match="another reader of this consumer") as caught:
        async with script.subscribe():
            pass
    assert caught.value.code == "ResourceInUseException"
    assert not script.answers


@virtual
async def test_a_subscription_that_another_reader_takes_over_is_told() -> None:
    script = Script([[event(1), sent_error("ResourceInUseException")], [event(2), END]])
    async with script.subscribe() as subscription:
        assert len((await anext(subscription))["Records"]) == 1
        with pytest.raises(Throttled, match="another reader of this consumer"):
            await anext(subscription)
        assert await numbers_of(subscription) == [2]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([ResourceNotFound("gone")], ResourceNotFound),
        ([[]], BadReply),
        ([[ServerDisconnectedError()]], Unreachable),
        ([[event(1), sent_error("KMSAccessDeniedException")]], AccessDenied),
        ([[event(1), sent_error("ResourceNotFoundException")]], ResourceNotFound),
    ],
)
@virtual
async def test_what_does_not_pass_or_fails_at_once_is_for_the_caller(
    answers: list[Any], kind: type[AwsError]
) -> None:
    script = Script(answers)
    with pytest.raises(kind):
        async with script.subscribe() as subscription:
            await numbers_of(subscription)
    assert all(stream.closed for stream in script.streams)
    assert not script.answers


# --- the consumer -------------------------------------------------------------------------------------------------------


class Registry:
    """Answers DescribeStreamConsumer with one status after the other; None for a consumer that is not there."""

    def __init__(self, *statuses: str | None, refusal: AwsError | None = None) -> None:
        self.statuses = list(statuses)
        self.refusal = refusal
        self.registered = 0

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert params == {"StreamARN": "stream", "ConsumerName": "c"}
        if operation == "RegisterStreamConsumer":
            self.registered += 1
            if self.refusal:
                raise self.refusal
            return {}
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status is None:
            raise ResourceNotFound("no such consumer")
        return {"ConsumerDescription": {"ConsumerARN": ARN, "ConsumerStatus": status}} if status else {}


@virtual
async def test_a_consumer_that_is_active_is_reused() -> None:
    registry = Registry("ACTIVE")
    assert await ensure_consumer(registry.api, "stream", "c") == ARN
    assert registry.registered == 0


@virtual
async def test_a_consumer_that_is_missing_is_registered_and_waited_for() -> None:
    registry = Registry(None, "CREATING", "CREATING", "ACTIVE")
    assert await ensure_consumer(registry.api, "stream", "c") == ARN
    assert registry.registered == 1


@virtual
async def test_a_consumer_that_is_being_deleted_is_registered_again_when_it_is_gone() -> None:
    registry = Registry("DELETING", None, None, "ACTIVE", refusal=in_use())
    assert await ensure_consumer(registry.api, "stream", "c") == ARN
    assert registry.registered == 2


@virtual
async def test_a_consumer_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(AccessDenied):
        await ensure_consumer(Registry(None, refusal=AccessDenied("no")).api, "stream", "c")
    with pytest.raises(Throttled, match="still CREATING after 120 s"):
        await ensure_consumer(Registry("CREATING").api, "stream", "c")
    with pytest.raises(BadReply):
        await ensure_consumer(Registry("").api, "stream", "c")


# --- over a bad connection ----------------------------------------------------------------------------------------------


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of an event stream, as AWS sends it."""
    head = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2, "big") + value.encode()
        for name, value in headers.items()
    )
    prelude = (16 + len(head) + len(payload)).to_bytes(4, "big") + len(head).to_bytes(4, "big")
    begun = prelude + crc32(prelude).to_bytes(4, "big") + head + payload
    return begun + crc32(begun).to_bytes(4, "big")


def sent(number: int) -> bytes:
    """An event with one record."""
    record = {
        "SequenceNumber": str(number),
        "ApproximateArrivalTimestamp": 1.5,
        "Data": "eA==",
        "PartitionKey": "k",
    }
    told = {"Records": [record], "ContinuationSequenceNumber": str(number), "MillisBehindLatest": 0}
    headers = {
        ":message-type": "event",
        ":event-type": "SubscribeToShardEvent",
        ":content-type": "application/json",
    }
    return message(headers, orjson.dumps(told))


INITIAL = message({":message-type": "event", ":event-type": "initial-response"}, b"{}")
BEGUN = INITIAL + sent(1)
DAMAGED = sent(2)[:-1] + bytes([sent(2)[-1] ^ 1])


def chunk(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


class Endpoint:
    """Sends the given bytes as the body of one reply after the other, and closes the connection after each."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = list(bodies)
        self.lasting = False
        """True to leave connections open."""
        self.asked: list[dict[str, Any]] = []

    async def serve(self, connection: SocketStream) -> None:
        async with connection:
            request = BufferedByteReceiveStream(connection)
            head = (await request.receive_until(b"\r\n\r\n", 65536)).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            self.asked.append(orjson.loads(await request.receive_exactly(length))["StartingPosition"])
            await connection.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n"
                b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + self.bodies.pop(0)
            )
            if self.lasting:
                await anyio.sleep_forever()

    @asynccontextmanager
    async def api(self) -> AsyncIterator[Api]:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self.serve)
            port = listener.extra(SocketAttribute.local_port)
            async with kinesis_api(f"http://127.0.0.1:{port}") as api:
                yield api
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(chunk(BEGUN) + b"0\r\n\r\n", id="ended"),
        pytest.param(chunk(BEGUN), id="closed between events"),
        pytest.param(chunk(BEGUN + sent(2)[:40]), id="closed inside an event"),
        pytest.param(chunk(BEGUN) + chunk(sent(2))[:40], id="closed inside a chunk"),
        pytest.param(chunk(BEGUN + sent(2)[:40]) + b"0\r\n\r\n", id="ended inside an event"),
        pytest.param(chunk(BEGUN + DAMAGED) + b"0\r\n\r\n", id="damaged"),
    ],
)
async def test_over_a_bad_connection_nothing_is_missed_and_nothing_repeated(
    broken: bytes, fake_credentials: None
) -> None:
    endpoint = Endpoint(broken, chunk(INITIAL + sent(2) + sent(3)))
    async with endpoint.api() as api, Subscription(api, ARN, SHARD.id, StartAt()) as subscription:
        records = [(await anext(subscription))["Records"] for _ in range(3)]
    assert [record["SequenceNumber"] for page in records for record in page] == ["1", "2", "3"]
    assert endpoint.asked == [
        {"Type": "TRIM_HORIZON"},
        {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "1"},
    ]


@pytest.mark.anyio
@pytest.mark.slow
async def test_open_subscriptions_leave_the_other_calls_their_connections(fake_credentials: None) -> None:
    count = COLD_CONNECTIONS + 1
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        endpoint = Endpoint(*[chunk(INITIAL + sent(1))] * count)
        endpoint.lasting = True
        tasks.start_soon(listener.serve, endpoint.serve)
        port = listener.extra(SocketAttribute.local_port)
        config = Aws(region="eu-west-1", endpoint_url=f"http://127.0.0.1:{port}")
        async with AwsSession(config, Recorder()) as session, AsyncExitStack() as opened:
            api = await session.streaming("kinesis")
            with anyio.fail_after(20):
                for _ in range(count):
                    subscribed = Subscription(api, ARN, SHARD.id, StartAt())
                    subscription = await opened.enter_async_context(subscribed)
                    assert len((await anext(subscription))["Records"]) == 1
        tasks.cancel_scope.cancel()
