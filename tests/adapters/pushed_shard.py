"""A shard that is pushed to a consumer, by script."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
from aiobotocore.session import get_session
from botocore import xform_name
from botocore.exceptions import EventStreamError

from poller.aws.errors import foreign, translate
from poller.errors import AwsError, RequestRefused
from poller.model import Record, Shard, StartAt
from poller.sources._subscription import Subscription
from poller.sources.fan_out import FanOutSource
from poller.sources.kinesis import KinesisStream
from tests.engine.fakes import EPOCH, Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from poller.sources._subscription import Api

SHARD = Shard("shardId-000000000000")
ARN = "arn:aws:kinesis:eu-west-1:000000000000:stream/s/consumer/c:1"


def wall() -> float:
    return EPOCH + anyio.current_time()


class Envelope:
    def records(self, shard_id: str, wires: Iterable[dict[str, Any]]) -> list[Record]:
        return [
            Record(wire["SequenceNumber"], wire["PartitionKey"], 1, {"shard": shard_id, **wire}, wire)
            for wire in wires
        ]


# --- a scripted shard ---------------------------------------------------------------------------------------------------


def wire_record(number: int, data: bytes = b"x") -> dict[str, Any]:
    """As botocore hands it out."""
    return {
        "SequenceNumber": f"{number:03d}",
        "ApproximateArrivalTimestamp": datetime.fromtimestamp(EPOCH + number, UTC),
        "Data": data,
        "PartitionKey": "k",
    }


def event(*numbers: int, after: int = 0, behind: int = 0, children: Sequence[str] = ()) -> dict[str, Any]:
    told: dict[str, Any] = {
        "Records": [wire_record(number) for number in numbers],
        "ContinuationSequenceNumber": f"{max((*numbers, after)):03d}",
        "MillisBehindLatest": behind,
    }
    if children:
        keys = {"StartingHashKey": "0", "EndingHashKey": "9"}
        told["ChildShards"] = [
            {"ShardId": child, "ParentShards": [SHARD.id], "HashKeyRange": keys} for child in children
        ]
    return {"SubscribeToShardEvent": told}


def in_use() -> AwsError:
    return RequestRefused("in use", code="ResourceInUseException", operation="SubscribeToShard")


def sent_error(code: str) -> EventStreamError:
    return EventStreamError({"Error": {"Code": code, "Message": "so it is"}}, "SubscribeToShard")


#: One step of a subscription: an event, seconds of silence, or what breaks it. Its end is the end of the stream.
Step = dict[str, Any] | float | Exception


class Stream:
    """The events of one subscription, as aiobotocore hands them out."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.taken = 0
        self.closed = False

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._events()

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        for step in self.steps:
            self.taken += 1
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await anyio.sleep(step)
            else:
                yield step

    def close(self) -> None:
        self.closed = True


@dataclass
class Script:
    """What each SubscribeToShard is answered with: the steps of a subscription, or a refusal."""

    answers: list[Sequence[Step] | Exception]
    asked: list[dict[str, Any]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    async def api(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert operation == "SubscribeToShard"
        assert (params["ConsumerARN"], params["ShardId"]) == (ARN, SHARD.id)
        assert all(stream.closed for stream in self.streams), "the last subscription is still open"
        self.asked.append(params["StartingPosition"])
        self.at.append(anyio.current_time())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.streams.append(Stream(answer))
        return {"EventStream": self.streams[-1]}

    def subscribe(self, start: StartAt = StartAt()) -> Subscription:  # noqa: B008  (frozen)
        return Subscription(self.api, ARN, SHARD.id, start, clock=wall)

    def consumer(self, *, deaggregate: bool = False) -> FanOutSource:
        return fan_out(self.api, deaggregate=deaggregate)


def fan_out(
    api: Api,
    arn: str = ARN,
    *,
    listing: Api | None = None,
    observer: Recorder | None = None,
    deaggregate: bool = False,
) -> FanOutSource:
    """One mapping; without a `listing` nothing should ask for the shards."""

    async def connect() -> Api:
        return api

    async def listed(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert listing, f"nobody should call {operation}"
        return await listing(operation, params, timeout)

    async def connect_listing() -> Api:
        return listed

    stream = KinesisStream(arn.partition("/consumer/")[0], connect_listing, wall=wall)
    return FanOutSource(
        "clicks", stream, arn, connect, Envelope(), observer or Recorder(), deaggregate=deaggregate
    )


END = event(after=900, children=["shardId-1", "shardId-2"])


async def numbers_of(subscription: Subscription) -> list[int]:
    """The sequence numbers of all records until the shard ends."""
    return [int(record["SequenceNumber"]) async for page in subscription for record in page["Records"]]


# --- a server -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kinesis_api(endpoint_url: str) -> AsyncIterator[Api]:
    create = get_session().create_client
    async with create("kinesis", region_name="eu-west-1", endpoint_url=endpoint_url) as client:

        async def api(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
            try:
                reply: dict[str, Any] = await getattr(client, xform_name(operation))(**params)
            except foreign() as error:
                raise translate(error, service="kinesis", operation=operation) from error
            return reply

        yield api
