from __future__ import annotations

import random
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest
from aiohttp import ClientPayloadError

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.core.stream_envelope import SUB_SEQUENCE_NUMBER, KinesisEnvelope
from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    RequestRefused,
    ResourceNotFound,
    ShardGone,
    Throttled,
    Unreachable,
)
from poller.model import ApiRequest, Record, Shard, StartAt, Trimmed
from poller.sources._subscription import ensure_consumer
from poller.sources.fan_out import FanOutReader, FanOutSource
from poller.sources.kinesis import KinesisStream
from tests.adapters.aggregates import packed
from tests.adapters.pushed_shard import (
    ARN,
    END,
    SHARD,
    Script,
    event,
    fan_out,
    in_use,
    kinesis_api,
    sent_error,
    wire_record,
)
from tests.adapters.stream_reading import Listener
from tests.engine.fakes import EPOCH, Recorder, settle_down, virtual
from tests.fake_streams import DAY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from poller.demo.emulator import Emulator
    from poller.sources._subscription import Api


# --- the laws -----------------------------------------------------------------------------------------------------------


class Pushing:
    """A shard that records are put to all the time, behind an endpoint with AWS's rules and a bad connection."""

    def __init__(self, chance: random.Random, records: int) -> None:
        self.chance = chance
        self.records = records
        self.subscribed_at = -100.0
        self.refused = self.broken = 0

    def arrived(self) -> int:
        """One record a second."""
        return min(self.records, int(anyio.current_time() - self.began))

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        now = anyio.current_time()
        if now - self.subscribed_at < 5:
            self.refused += 1
            raise in_use()
        self.subscribed_at = now
        last = int(params["StartingPosition"].get("SequenceNumber", 0))
        return {"EventStream": self.Events(self, last)}

    @dataclass
    class Events:
        shard: Pushing
        last: int

        def close(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
            shard, last, until = self.shard, self.last, anyio.current_time() + 300
            while anyio.current_time() < until:
                upto = min(shard.arrived(), last + shard.chance.randint(0, 10))
                if shard.chance.random() < 0.1:
                    shard.broken += 1
                    raise ClientPayloadError("cut off")
                yield event(*range(last + 1, upto + 1), after=last)
                last = upto
                if last == shard.records:
                    yield event(after=last, children=["shardId-1"])
                    return
                await anyio.sleep(shard.chance.choice([0.2, 5]))

    async def read(self) -> list[int]:
        self.began = anyio.current_time()
        consumer = fan_out(self.api)
        numbers: list[int] = []
        async with consumer.open(SHARD, StartAt()) as reader:
            while not reader.ended:
                try:
                    records = await reader.receive(
                        self.chance.randint(1, 30), self.chance.choice([0, 0.1, 20])
                    )
                except (BadReply, Throttled, Unreachable):
                    await anyio.sleep(1)
                    continue
                numbers += [int(record.id) for record in records]
                if self.chance.random() < 0.05:
                    await anyio.sleep(self.chance.choice([1, 400]))
        assert reader.children == (Shard("shardId-1", (SHARD.id,), hash_range=(0, 9)),)
        return numbers


@pytest.mark.parametrize("seed", range(5))
@virtual
async def test_every_record_comes_once_and_in_order_over_any_breaks(seed: int) -> None:
    shard = Pushing(random.Random(seed), records=1500)
    assert await shard.read() == list(range(1, 1501))
    assert shard.broken
    assert shard.refused


# --- the reader ---------------------------------------------------------------------------------------------------------


def numbers(records: Sequence[Record]) -> list[int]:
    return [int(record.id) for record in records]


@virtual
async def test_the_next_event_is_read_when_the_last_one_is_handed_out_and_more_is_asked_for() -> None:
    script = Script([[event(1, 2, 3), event(4), END]])
    async with script.consumer().open(SHARD, StartAt()) as reader:
        await settle_down()
        (stream,) = script.streams
        assert stream.taken == 0
        assert numbers(await reader.receive(2, 1)) == [1, 2]
        assert numbers(await reader.receive(2, 1)) == [3]
        await settle_down()
        assert stream.taken == 1
        assert numbers(await reader.receive(2, 1)) == [4]
        assert not reader.ended
        assert await reader.receive(2, 1) == []
        assert reader.ended
        assert await reader.receive(2, 1) == []
    assert stream.closed


@virtual
async def test_a_receive_returns_empty_after_its_wait_and_loses_nothing() -> None:
    script = Script([[event(behind=1500), 20.0, event(1), END]])
    async with script.consumer().open(SHARD, StartAt()) as reader:
        began = anyio.current_time()
        assert await reader.receive(10, 3) == []
        assert anyio.current_time() - began == 3
        assert (reader.behind, reader.doing) == (1.5, "reading")
        with anyio.move_on_after(5):
            await reader.receive(10, 1000)
        assert numbers(await reader.receive(10, 1000)) == [1]
        assert (reader.behind, reader.doing) == (0, "idle")
        assert repr(reader) == f"<FanOutReader {SHARD.id}: idle, 0 records ready>"


@virtual
async def test_a_timestamp_is_exact_though_a_request_says_whole_seconds() -> None:
    script = Script([[event(1, 2), event(3, 4), event(1), END]])
    async with script.consumer().open(SHARD, StartAt("AT_TIMESTAMP", timestamp=EPOCH + 3.5)) as reader:
        assert numbers(await reader.receive(10, 1)) == [4]
        # What follows is later, whatever the clocks of AWS's machines say.
        assert numbers(await reader.receive(10, 1)) == [1]


@virtual
async def test_two_receives_at_a_time_get_each_record_once() -> None:
    script = Script([[1.0, event(1, 2, 3), 1.0, event(4), END]])
    got: list[list[int]] = []
    async with script.consumer().open(SHARD, StartAt()) as reader:

        async def receive() -> None:
            while not reader.ended:
                got.append(numbers(await reader.receive(2, 10)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(receive)
    assert sorted(number for part in got for number in part) == [1, 2, 3, 4]


@virtual
async def test_an_error_is_told_to_one_receive_and_the_next_one_tries_again() -> None:
    script = Script([[event(1), sent_error("KMSAccessDeniedException")], [event(2), END]])
    async with script.consumer().open(SHARD, StartAt()) as reader:
        assert numbers(await reader.receive(1, 1)) == [1]
        with pytest.raises(AccessDenied):
            await reader.receive(1, 1)
        await settle_down()
        assert len(script.asked) == 1
        assert numbers(await reader.receive(1, 1)) == [2]


@virtual
async def test_a_reader_waits_for_its_subscription_and_says_so() -> None:
    script = Script([[event(1)], in_use(), [END]])
    async with script.consumer().open(SHARD, StartAt()) as reader:
        await reader.receive(1, 1)
        assert await reader.receive(1, 0.1) == []
        assert reader.doing == "waiting for its subscription"
        await reader.receive(1, 60)
        assert reader.ended


@virtual
async def test_settling_is_nothing_and_records_are_as_the_envelope_makes_them() -> None:
    script = Script([[event(1, 2), END]])
    async with script.consumer().open(SHARD, StartAt()) as reader:
        records = await reader.receive(10, 1)
        assert await reader.ack(records[:1]) == 1
        await reader.release(records[1:], 0)
        assert not reader.redelivers
    assert records[0] == Record(
        "001",
        "k",
        1,
        {
            "shard": SHARD.id,
            "SequenceNumber": "001",
            "ApproximateArrivalTimestamp": EPOCH + 1,
            "Data": b64encode(b"x").decode(),
            "PartitionKey": "k",
        },
        records[0].receipt,
    )


# --- what is gone -------------------------------------------------------------------------------------------------------


def shard_listed(*shards: str) -> dict[str, Any]:
    return {"Shards": [{"ShardId": shard, "SequenceNumberRange": {}} for shard in shards]}


class Polled:
    """What polling the stream answers."""

    def __init__(self, *shards: str, oldest: int | AwsError | None = None) -> None:
        self.shards = shards
        self.oldest = oldest
        self.asked: list[str] = []

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.asked.append(operation)
        if operation == "ListShards":
            return shard_listed(*self.shards)
        if isinstance(self.oldest, AwsError):
            raise self.oldest
        if operation == "GetShardIterator":
            assert params["ShardIteratorType"] == "TRIM_HORIZON"
            return {"ShardIterator": "oldest"}
        assert params["Limit"] == 1
        records = [] if self.oldest is None else [{"SequenceNumber": f"{self.oldest:03d}"}]
        return {"Records": records, "NextShardIterator": "x"}


@virtual
async def test_a_shard_that_is_gone_is_told_from_what_else_may_be_missing() -> None:
    gone = Polled("shardId-another")
    with pytest.raises(ShardGone, match=f"{SHARD.id} of arn:.*stream/s is gone"):
        async with fan_out(Script([ResourceNotFound("no")]).api, listing=gone.api).open(SHARD, StartAt()):
            pass
    script = Script([ResourceNotFound("no such consumer")])
    with pytest.raises(ResourceNotFound, match="no such consumer") as caught:
        async with fan_out(script.api, listing=Polled(SHARD.id).api).open(SHARD, StartAt()):
            pass
    assert type(caught.value) is ResourceNotFound


@virtual
async def test_a_shard_that_vanishes_while_it_is_read_is_said_to_be_gone() -> None:
    script = Script([[event(1)], ResourceNotFound("no")])
    async with fan_out(script.api, listing=Polled("shardId-another").api).open(SHARD, StartAt()) as reader:
        assert numbers(await reader.receive(1, 1)) == [1]
        with pytest.raises(ShardGone):
            await reader.receive(1, 1)


@pytest.mark.parametrize(
    ("start", "oldest", "told"),
    [
        (StartAt("AFTER_SEQUENCE_NUMBER", "003"), 5, ["003"]),
        (StartAt("AFTER_SEQUENCE_NUMBER", "003", 7), 5, ["003"]),
        (StartAt("AFTER_SEQUENCE_NUMBER", "004"), 4, []),
        (StartAt("AFTER_SEQUENCE_NUMBER", "004"), None, []),
        (StartAt("AFTER_SEQUENCE_NUMBER", "004"), Throttled("slower"), []),
        (StartAt("AFTER_SEQUENCE_NUMBER", "005", 7), 5, []),
        (StartAt(), 5, []),
    ],
)
@virtual
async def test_records_that_were_trimmed_before_they_were_read_are_told_and_the_others_received(
    start: StartAt, oldest: Any, told: list[str]
) -> None:
    await anyio.sleep(DAY - 60)
    listener = Listener()
    polled = Polled(SHARD.id, oldest=oldest)
    script = Script([[event(5), event(6), END]])
    async with fan_out(script.api, listing=polled.api, observer=listener).open(SHARD, start) as reader:
        assert numbers(await reader.receive(1, 1)) == [5]
        assert numbers(await reader.receive(1, 1)) == [6]
        await settle_down()
    assert listener.of(Trimmed) == [Trimmed("clicks", SHARD.id, number, None) for number in told]
    assert len(polled.asked) <= 2


@virtual
async def test_for_young_records_nobody_asks_what_was_trimmed() -> None:
    script = Script([[event(5), END]])
    async with script.consumer().open(SHARD, StartAt("AFTER_SEQUENCE_NUMBER", "003")) as reader:
        assert numbers(await reader.receive(1, 1)) == [5]
        await settle_down()


@virtual
async def test_the_shards_are_listed_anew_once_one_has_ended() -> None:
    polled = Polled(SHARD.id)
    source = fan_out(Script([[END]]).api, listing=polled.api)
    assert [shard.id for shard in await source.shards()] == [SHARD.id]
    polled.shards = (SHARD.id, "shardId-1", "shardId-2")
    async with source.open(SHARD, StartAt()) as reader:
        await reader.receive(1, 1)
        assert reader.ended
        await settle_down()
    assert len(await source.shards()) == 3


# --- aggregates ---------------------------------------------------------------------------------------------------------


def with_aggregate() -> Script:
    told = event(1, 2, 3)
    told["SubscribeToShardEvent"]["Records"][1] = wire_record(2, packed("a", "b", "c"))
    return Script([[told, END]])


def told_of(records: Sequence[Record]) -> list[tuple[str, str | None, bytes, Any]]:
    return [
        (one.id, one.key, b64decode(one.event["Data"]), one.receipt.get(SUB_SEQUENCE_NUMBER))
        for one in records
    ]


@virtual
async def test_inner_records_carry_the_sub_sequence_number_of_the_checkpoint_behind_them() -> None:
    async with with_aggregate().consumer(deaggregate=True).open(SHARD, StartAt()) as reader:
        assert told_of(await reader.receive(10, 1)) == [
            ("001", "k", b"x", None),
            ("002", "inner", b"a", 0),
            ("002", "inner", b"b", 1),
            ("002", "inner", b"c", None),
            ("003", "k", b"x", None),
        ]


@virtual
async def test_a_restart_inside_an_aggregate_begins_behind_what_is_done() -> None:
    script = with_aggregate()
    async with script.consumer(deaggregate=True).open(
        SHARD, StartAt("AFTER_SEQUENCE_NUMBER", "002", 0)
    ) as reader:
        records = await reader.receive(10, 1)
    assert told_of(records)[1:3] == [("002", "inner", b"b", 1), ("002", "inner", b"c", None)]


@virtual
async def test_without_deaggregation_an_aggregate_is_one_record() -> None:
    async with with_aggregate().consumer().open(SHARD, StartAt()) as reader:
        assert numbers(await reader.receive(10, 1)) == [1, 2, 3]


# --- over a server ------------------------------------------------------------------------------------------------------


async def make_stream(api: Api) -> str:
    """Returns its ARN."""
    name = f"stream-{uuid4()}"
    await api("CreateStream", {"StreamName": name, "ShardCount": 1}, 10)
    summary = (await api("DescribeStreamSummary", {"StreamName": name}, 10))["StreamDescriptionSummary"]
    return str(summary["StreamARN"])


async def polled(emulator: Emulator, arn: str) -> list[dict[str, Any]]:
    config = Aws(region="eu-west-1", endpoint_url=emulator.endpoint_url)
    async with AwsSession(config, Recorder()) as session:
        start = {"StreamARN": arn, "ShardId": SHARD.id, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = (await session.call("kinesis", "GetShardIterator", start))["ShardIterator"]
        hot = await session.hot("kinesis")
        reply = await hot.call("GetRecords", {"ShardIterator": iterator}, timeout=10)
        records: list[dict[str, Any]] = reply["Records"]
        return records


@pytest.mark.anyio
@pytest.mark.slow
async def test_over_a_server_the_records_are_those_of_polling(emulator: Emulator) -> None:
    async with kinesis_api(emulator.endpoint_url) as api:
        arn = await make_stream(api)
        consumer_arn = await ensure_consumer(api, arn, "c")
        assert await ensure_consumer(api, arn, "c") == consumer_arn

        async def put(*texts: bytes) -> None:
            records = [{"Data": text, "PartitionKey": "k"} for text in texts]
            await api("PutRecords", {"StreamARN": arn, "Records": records}, 10)

        await put(b"1", b"\x00\xff")
        async with fan_out(api, consumer_arn).open(SHARD, StartAt()) as reader:
            read = [*await reader.receive(10, 10)]
            await put(b"3")
            read += await reader.receive(10, 10)
        by_polling = await polled(emulator, arn)
        pushed = [{name: record.event[name] for name in record.event if name != "shard"} for record in read]
        # The emulator names the encryption in one of the two only.
        encryption = {"EncryptionType": "NONE"}
        assert [one | encryption for one in pushed] == [one | encryption for one in by_polling]
        assert [b64decode(one["Data"]) for one in pushed] == [b"1", b"\x00\xff", b"3"]


@pytest.mark.anyio
@pytest.mark.slow
async def test_over_a_server_a_second_subscription_is_refused_and_errors_among_the_events_are_told(
    emulator: Emulator,
) -> None:
    async with kinesis_api(emulator.endpoint_url) as api:
        arn = await make_stream(api)
        consumer_arn = await ensure_consumer(api, arn, "c")
        async with fan_out(api, consumer_arn).open(SHARD, StartAt()) as reader:
            assert await reader.receive(10, 0) == []
            start = {"ConsumerARN": consumer_arn, "ShardId": SHARD.id, "StartingPosition": {"Type": "LATEST"}}
            with pytest.raises(RequestRefused) as caught:
                await api("SubscribeToShard", start, 10)
            assert caught.value.code == in_use().code
            await api("DeregisterStreamConsumer", {"ConsumerARN": consumer_arn}, 10)
            with pytest.raises(ResourceNotFound):
                await reader.receive(10, 10)


@pytest.mark.anyio
@pytest.mark.slow
async def test_over_a_server_a_missing_stream_consumer_and_shard_are_told_apart(emulator: Emulator) -> None:
    async with kinesis_api(emulator.endpoint_url) as api:
        arn = await make_stream(api)
        missing = [
            (ARN, SHARD, ResourceNotFound),
            (f"{arn}/consumer/c:1", SHARD, ResourceNotFound),
            (await ensure_consumer(api, arn, "c"), Shard("shardId-000000009999"), ShardGone),
        ]
        for consumer_arn, shard, kind in missing:
            with pytest.raises(ResourceNotFound) as caught:
                async with fan_out(api, consumer_arn, listing=api).open(shard, StartAt()):
                    pass
            assert type(caught.value) is kind
            assert caught.value.operation in ("SubscribeToShard", "ListShards")


@pytest.mark.anyio
@pytest.mark.slow
async def test_over_a_server_and_the_session_a_consumer_is_registered_and_its_records_are_pushed(
    emulator: Emulator,
) -> None:
    facts = Recorder()
    config = Aws(region="eu-west-1", endpoint_url=emulator.endpoint_url)
    async with AwsSession(config, facts) as session:
        api = await session.api("kinesis")
        arn = await make_stream(api)
        consumer_arn = await ensure_consumer(api, arn, "poller")
        stream = KinesisStream(arn, partial(session.api, "kinesis"))
        envelope = KinesisEnvelope(consumer_arn, "eu-west-1", "arn:aws:iam::123456789012:role/poller")

        async def put(*texts: str | bytes) -> None:
            raw = [text.encode() if isinstance(text, str) else text for text in texts]
            records = [{"Data": one, "PartitionKey": "k"} for one in raw]
            await api("PutRecords", {"StreamARN": arn, "Records": records}, 10)

        async def received(reader: FanOutReader, count: int) -> list[Record]:
            got: list[Record] = []
            while len(got) < count:
                got += await reader.receive(count - len(got), 10)
            return got

        def source() -> FanOutSource:
            connect = partial(session.streaming, "kinesis")
            return FanOutSource("clicks", stream, consumer_arn, connect, envelope, facts)

        (shard,) = await source().shards()
        await put("before")
        async with source().open(shard, StartAt("LATEST")) as reader:
            await put("one", packed("two", "three"))
            records = await received(reader, 2)
        assert texts_of(records) == ["one", "two"]
        assert records[0].event["eventSourceARN"] == consumer_arn
        done = envelope.checkpoint(records[-1])
        assert done.sub_sequence_number == 0
        await put("four")
        start = StartAt("AFTER_SEQUENCE_NUMBER", done.sequence_number, done.sub_sequence_number)
        async with source().open(shard, start) as reader:
            records = await received(reader, 2)
            assert texts_of(records) == ["three", "four"]
        assert envelope.checkpoint(records[0]).sub_sequence_number is None
    told = {(fact.service, fact.operation, fact.outcome) for fact in facts.of(ApiRequest)}
    assert {("kinesis", "SubscribeToShard", "ok"), ("kinesis", "ListShards", "ok")} <= told


def texts_of(records: Sequence[Record]) -> list[str]:
    return [b64decode(record.event["kinesis"]["data"]).decode() for record in records]
