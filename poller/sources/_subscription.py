"""Enhanced fan-out: a registered consumer gets the records of a shard pushed, with a throughput of its own.

A subscription is one long reply of SubscribeToShard. It ends after five minutes, with its connection, or when the shard ends.
Each of its events says where the next subscription has to go on, so one follows the other without a gap or a repeat: the
position moves with whole events only, and an event that was cut off comes again. AWS refuses a second subscription of the
same consumer and shard within five seconds; it is asked again until then.
"""

from __future__ import annotations

import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Self

import anyio
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from poller.aws.errors import foreign, translate
from poller.errors import AwsError, BadReply, ResourceNotFound, Throttled
from poller.sources._stream_api import SENSELESS
from poller.sources.kinesis import child_shard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poller.model import StartAt

    #: One call of the Kinesis API: operation, parameters, seconds until it is given up. Raises AwsError.
    Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]
    #: One event, its records as plain JSON: Records, ContinuationSequenceNumber, MillisBehindLatest, ChildShards.
    Page = dict[str, Any]

#: Seconds for a call, the stream of events excepted.
CALL_TIMEOUT = 10.0
#: Seconds after which a subscription is replaced; AWS ends it after 300.
SUBSCRIPTION = 290.0
#: Seconds without an event after which the connection is taken for dead; an idle shard sends one every five.
SILENCE = 35.0
#: Times that a subscription is asked for while AWS still has another one; their pauses make about 25 seconds.
BUSY_ATTEMPTS = 10
#: Seconds for a consumer to become active.
ACTIVE_WITHIN = 120.0
#: Seconds by which this machine's clock may be ahead of AWS's. LATEST asked for again may bring records of so long before.
SKEW = 10.0
_IN_USE = "ResourceInUseException"
_SUBSCRIBE = "SubscribeToShard"


# --- the consumer -------------------------------------------------------------------------------------------------------


async def ensure_consumer(api: Api, stream_arn: str, name: str) -> str:
    """Return the ARN of the stream's consumer `name` when it is active; one that does not exist is registered.

    Raises AwsError, for one that does not become active too.
    """
    named = {"StreamARN": stream_arn, "ConsumerName": name}
    status, pause, until = "missing", 0.1, anyio.current_time() + ACTIVE_WITHIN
    while anyio.current_time() < until:
        status, arn = await _describe_or_register(api, named)
        if status == "ACTIVE":
            return arn
        await anyio.sleep(pause)
        pause = min(pause * 2, 2.0)
    raise Throttled(
        f"kinesis: consumer {name} of {stream_arn} is still {status} after {ACTIVE_WITHIN:.0f} s; it is tried again",
        code=_IN_USE,
        operation="DescribeStreamConsumer",
    )


async def _describe_or_register(api: Api, named: dict[str, str]) -> tuple[str, str]:
    try:
        described = (await api("DescribeStreamConsumer", named, CALL_TIMEOUT))["ConsumerDescription"]
    except ResourceNotFound:
        return await _register(api, named), ""
    except KeyError as error:
        raise _unreadable("DescribeStreamConsumer") from error
    return str(described["ConsumerStatus"]), str(described["ConsumerARN"])


async def _register(api: Api, named: dict[str, str]) -> str:
    try:
        await api("RegisterStreamConsumer", named, CALL_TIMEOUT)
    except AwsError as error:
        # Somebody else has just registered it, or one of this name is still being deleted.
        if not _in_use(error):
            raise
        return "in use"
    return "CREATING"


# --- the events of a shard ----------------------------------------------------------------------------------------------


class Subscription:
    """The events of one shard for one consumer, over as many subscriptions as it takes: a context and an async iterator.

    Both raise AwsError when there is nothing to be had now; iterating may go on after it, from where it was.
    """

    def __init__(
        self,
        api: Api,
        consumer_arn: str,
        shard_id: str,
        start: StartAt,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._target = {"ConsumerARN": consumer_arn, "ShardId": shard_id}
        self._position = _position(start)
        self._latest_at = start.timestamp
        self._clock = clock
        self._stream: Any = None
        self._events: Any = None
        self._until = 0.0
        self._fresh = True
        self.ended = False
        """True when the shard is closed and its last event has been handed out."""
        self.waiting = False
        """True while AWS keeps a new subscription waiting for the end of another one."""

    async def __aenter__(self) -> Self:
        await self._subscribe()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Page:
        while not self.ended:
            if self._events is None or anyio.current_time() >= self._until:
                await self._subscribe()
            if (page := await self._read()) is not None:
                return page
        raise StopAsyncIteration

    async def _read(self) -> Page | None:
        """The next event; None when the subscription is over after events came from it."""
        failed: AwsError = _unreadable(_SUBSCRIBE, "ended without an event")
        try:
            with anyio.CancelScope(deadline=min(self._until, anyio.current_time() + SILENCE)):
                if (event := await anext(self._events, None)) is not None:
                    return self._follow(_page(event))
        except _failures() as error:
            failed = _meaning(error)
        await self._close()
        if self._fresh or not failed.transient:
            # What fails before its first event would fail as fast again: the caller knows how to back off.
            raise _passing(failed) from failed.__cause__
        return None

    def _follow(self, page: Page) -> Page:
        continuation = page["ContinuationSequenceNumber"]
        if continuation:
            self._position = {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": continuation}
        self.ended = bool(page["ChildShards"]) or not continuation
        self._fresh = False
        return page

    async def _subscribe(self) -> None:
        await self._close()
        policy = AsyncRetrying(
            stop=stop_after_attempt(BUSY_ATTEMPTS),
            wait=wait_random_exponential(multiplier=1, min=0.5, max=6),
            retry=retry_if_exception(_in_use),
            sleep=self._wait,
            reraise=True,
        )
        try:
            reply: dict[str, Any] = await policy(self._request)
        except AwsError as error:
            raise _passing(error) from error.__cause__
        self._stream = reply["EventStream"]
        self._events = aiter(self._stream)
        self._until = anyio.current_time() + SUBSCRIPTION
        self._fresh = True

    async def _request(self) -> dict[str, Any]:
        position = self._position
        if position["Type"] == "LATEST":
            # The end of the shard is where it is now, not where it will be when this has to be asked again.
            moment = (self._latest_at or self._clock()) - SKEW
            self._position = {"Type": "AT_TIMESTAMP", "Timestamp": moment}
        return await self._api(_SUBSCRIBE, {**self._target, "StartingPosition": position}, CALL_TIMEOUT)

    async def _wait(self, seconds: float) -> None:
        self.waiting = True
        try:
            await anyio.sleep(seconds)
        finally:
            self.waiting = False

    async def _close(self) -> None:
        stream, events, self._stream, self._events = self._stream, self._events, None, None
        if stream is not None:
            stream.close()
            await events.aclose()


def _position(start: StartAt) -> dict[str, Any]:
    if start.kind == "AT_TIMESTAMP":
        return {"Type": start.kind, "Timestamp": start.timestamp}
    if start.kind != "AFTER_SEQUENCE_NUMBER":
        return {"Type": start.kind}
    # Inside an aggregate: that record once more.
    kind = start.kind if start.sub_sequence_number is None else "AT_SEQUENCE_NUMBER"
    return {"Type": kind, "SequenceNumber": start.sequence_number}


def _page(event: dict[str, Any]) -> Page:
    try:
        told = event["SubscribeToShardEvent"]
        return {
            "Records": [_wire(record) for record in told["Records"]],
            "ContinuationSequenceNumber": told.get("ContinuationSequenceNumber"),
            "MillisBehindLatest": told["MillisBehindLatest"],
            "ChildShards": [child_shard(child) for child in told.get("ChildShards") or ()],
        }
    except SENSELESS as error:
        raise _unreadable(_SUBSCRIBE) from error


def _wire(record: dict[str, Any]) -> dict[str, Any]:
    """A record of botocore as the wire of GetRecords has it; all that every record has is there."""
    arrived = record["ApproximateArrivalTimestamp"].timestamp()
    data = b64encode(record["Data"]).decode()
    return {
        **record,
        "SequenceNumber": record["SequenceNumber"],
        "ApproximateArrivalTimestamp": arrived,
        "Data": data,
    }


def _in_use(error: BaseException) -> bool:
    return isinstance(error, AwsError) and error.code == _IN_USE


def _passing(error: AwsError) -> AwsError:
    """A subscription in use passes by itself, which the code does not say of other things that are in use."""
    if not _in_use(error):
        return error
    said = f"{error}: another reader of this consumer has the shard; it is tried again"
    return Throttled(said, code=error.code, operation=error.operation)


def _unreadable(operation: str, what: str = "a reply that makes no sense") -> BadReply:
    return BadReply(f"kinesis {operation}: {what}; it is tried again", code="BadReply", operation=operation)


def _failures() -> tuple[type[Exception], ...]:
    """What ends a subscription: the connection, an error among the events, bytes that are no events."""
    from botocore.eventstream import ParserError

    return (AwsError, ParserError, *foreign())


def _meaning(error: Exception) -> AwsError:
    if isinstance(error, AwsError):
        return error
    known = isinstance(error, foreign())
    failed = translate(error, service="kinesis", operation=_SUBSCRIBE) if known else _unreadable(_SUBSCRIBE)
    failed.__cause__ = error
    return failed
