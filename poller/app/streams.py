"""Mappings on Kinesis and DynamoDB streams: what the supervisor runs for each, and what they share.

Mappings on one stream share its reads, so there is one `Stream` for each ARN, whoever needs it; it goes when the last of them
has gone.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from poller.app import spooling
from poller.core.batch import BatchLimits
from poller.core.failure import Origin
from poller.core.filters import compile_filters
from poller.core.retry import StreamPolicy
from poller.core.stream_envelope import DynamoDbEnvelope, KinesisEnvelope
from poller.engine.breaker import guarded
from poller.engine.delivery import Route
from poller.engine.invoker import Call
from poller.engine.leased_shards import LeasedShardKeeper
from poller.engine.parking import ParkingPlan
from poller.engine.pipeline import Plan
from poller.engine.shard_keeper import ShardKeeper, StreamPlan
from poller.engine.stream_work import Batches
from poller.errors import PollerError
from poller.sources import dynamodb_streams, kinesis
from poller.sources.dynamodb_streams import DynamoDbSource, DynamoDbStream
from poller.sources.fan_out import FanOutSource, ensure_consumer
from poller.sources.kinesis import KinesisSource, KinesisStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.app.destinations import Ends
    from poller.app.state import State
    from poller.aws.session import AwsSession
    from poller.config import Config, Mapping
    from poller.core.replay import ReplayEnvelope
    from poller.engine.child import Runner
    from poller.engine.invoker import Invoker
    from poller.ports import Destination, Observer, Source, Spool

#: Seconds that a receive waits; a shard is read as often as its own pace says, whatever this is.
RECEIVE_WAIT = 20.0
#: Records that one receive can bring: what GetRecords can.
RECEIVE_LIMIT = 10_000


class Streams:
    """The streams that are read at the moment."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[Any, ...], KinesisStream | DynamoDbStream] = (
            WeakValueDictionary()
        )

    def get(self, mapping: Mapping, config: Config, session: AwsSession) -> KinesisStream | DynamoDbStream:
        """The stream of `mapping`, read through `session`."""
        interval = idle_interval(mapping, config)
        key = (mapping.arn.stream, session, interval)
        stream = self._known.get(key)
        if stream is None:
            service, make = _STREAMS[mapping.source]
            connect = partial(session.api, service, mapping.region)
            stream = self._known[key] = make(mapping.arn.stream, connect, idle_interval=interval)
        return stream


_STREAMS: dict[str, tuple[str, type[KinesisStream | DynamoDbStream]]] = {
    "kinesis": ("kinesis", KinesisStream),
    "dynamodb": ("dynamodbstreams", DynamoDbStream),
}


@dataclass(frozen=True, slots=True)
class Shared:
    """What the mappings on streams of one configuration share."""

    session: AwsSession
    observer: Observer
    state: State
    streams: Streams
    flush_timeout: float
    """Seconds for writing the last checkpoints at a stop."""


def idle_interval(mapping: Mapping, config: Config) -> float:
    """Seconds between the reads of an idle shard: the least that a mapping on this stream wants."""
    default = kinesis.IDLE_INTERVAL if mapping.source == "kinesis" else dynamodb_streams.IDLE_INTERVAL
    return min(
        other.idle_interval_in_seconds or default
        for other in config.mappings
        if other.arn.stream == mapping.arn.stream
    )


@asynccontextmanager
async def open_stream(
    mapping: Mapping, config: Config, invoker: Invoker, ends: Ends, around: Shared
) -> AsyncIterator[Runner]:
    """The mapping opened on its stream, to be run; raises PollerError."""
    own = envelope(mapping, config)
    source = await _source(mapping, config, own, around)
    plan = _plan(mapping, own, around, invoker.function.arn, ends)
    store = await around.state.store()
    if leases := around.state.leases:
        leased = LeasedShardKeeper(plan, source, store, invoker, leases)
        async with leased.opened():
            yield guarded(leased, leased.breaker, leased.lanes, leased.hold)
        return
    spool = await _parked_in(mapping, config, around.state)
    keeper = ShardKeeper(plan, source, store, invoker, spool)
    async with keeper.opened():
        yield guarded(keeper, keeper.breaker, keeper.lanes)


async def _parked_in(mapping: Mapping, config: Config, state: State) -> Spool | None:
    """Where keys of `mapping` are parked, or were before its file said otherwise; None when there are none."""
    if not config.daemon.keeps_spool:
        return None
    spool = await state.spool()
    if mapping.parks:
        return spool
    if not (left := (await spool.totals(mapping.name, "parked")).get(mapping.name)):
        return None
    if mapping.tumbling_window_in_seconds:
        raise PollerError(
            f"records of {len(left)} parked keys wait, which go into no window: take tumbling_window_in_seconds away"
            f" until poller resume {mapping.name} --all-keys has come to its end"
        )
    return spool


def envelope(mapping: Mapping, config: Config) -> KinesisEnvelope | DynamoDbEnvelope:
    """What builds the mapping's records."""
    if mapping.source == "dynamodb":
        return DynamoDbEnvelope(mapping.event_source_arn, mapping.region)
    function = config.functions[mapping.function]
    identity = function.role_arn or f"arn:{mapping.arn.partition}:iam::{mapping.arn.account}:role/poller"
    return KinesisEnvelope(mapping.event_source_arn, mapping.region, identity)


def polled(mapping: Mapping, config: Config, around: Shared) -> Source:
    """The mapping's stream, read by polling whatever the mapping does: a consumer has one subscription, and that is live."""
    own = envelope(mapping, config)
    return _polled(mapping, around.streams.get(mapping, config, around.session), own, around)


def _polled(
    mapping: Mapping,
    stream: KinesisStream | DynamoDbStream,
    envelope: KinesisEnvelope | DynamoDbEnvelope,
    around: Shared,
) -> Source:
    if isinstance(stream, DynamoDbStream):
        return DynamoDbSource(mapping.name, stream, envelope, around.observer)
    return KinesisSource(mapping.name, stream, envelope, around.observer, deaggregate=mapping.deaggregates)


async def _source(
    mapping: Mapping, config: Config, envelope: KinesisEnvelope | DynamoDbEnvelope, around: Shared
) -> Source:
    stream = around.streams.get(mapping, config, around.session)
    if isinstance(stream, DynamoDbStream) or isinstance(envelope, DynamoDbEnvelope) or not mapping.fans_out:
        return _polled(mapping, stream, envelope, around)
    return FanOutSource(
        mapping.name,
        stream,
        mapping.arn.consumer or await _consumer(mapping, around.session),
        partial(around.session.streaming, "kinesis", mapping.region),
        envelope,
        around.observer,
        deaggregate=mapping.deaggregates,
    )


async def _consumer(mapping: Mapping, session: AwsSession) -> str:
    api = await session.api("kinesis", mapping.region)
    return await ensure_consumer(api, mapping.arn.stream, mapping.enhanced_fan_out or "")


def _plan(
    mapping: Mapping,
    envelope: KinesisEnvelope | DynamoDbEnvelope,
    around: Shared,
    function_arn: str,
    ends: Ends,
) -> StreamPlan:
    call = Call(mapping.name, mapping.source, mapping.reports_batch_item_failures)
    policy = StreamPolicy(
        mapping.maximum_retry_attempts,
        mapping.maximum_record_age_in_seconds,
        # It takes a single record to know which key to park.
        mapping.bisect_batch_on_function_error or mapping.parks,
    )

    def batches(shard_id: str) -> Batches:
        return Batches(
            call=call,
            function_arn=function_arn,
            origin=_origin(mapping, shard_id),
            envelope=envelope,
            policy=policy,
            window_length=mapping.tumbling_window_in_seconds,
            destination=ends.on_failure,
            on_success=ends.on_success,
        )

    gather = Plan(
        name=mapping.name,
        limits=BatchLimits(count=mapping.batch_size, window=mapping.maximum_batching_window_in_seconds),
        receive_limit=RECEIVE_LIMIT,
        receive_wait=RECEIVE_WAIT,
        filters=compile_filters(mapping.patterns, mapping.source) if mapping.patterns else None,
    )
    return StreamPlan(
        plan=gather,
        batches=batches,
        lanes=mapping.parallelization_factor,
        position=mapping.starting_position or "TRIM_HORIZON",
        timestamp=mapping.starting_position_timestamp or 0.0,
        flush_timeout=around.flush_timeout,
        circuit=mapping.circuit,
        parking=ParkingPlan(
            mapping.name,
            envelope,
            spooling.limits(mapping),
            mapping.park_probe_interval_in_seconds,
            mapping.parks,
        ),
    )


def _origin(mapping: Mapping, shard_id: str) -> Origin:
    source: Literal["kinesis", "dynamodb"] = "kinesis" if mapping.source == "kinesis" else "dynamodb"
    return Origin(source, shard_id, mapping.event_source_arn)


def replayed(
    mapping: Mapping,
    shard_id: str,
    envelope: ReplayEnvelope,
    policy: StreamPolicy,
    destination: Destination,
    function_arn: str,
) -> Batches:
    """What a replay does with the batches of a shard."""
    call = Call(mapping.name, mapping.source, mapping.reports_batch_item_failures)
    return Batches(
        call=call,
        function_arn=function_arn,
        origin=_origin(mapping, shard_id),
        envelope=envelope,
        policy=policy,
        destination=Route(destination),
    )
