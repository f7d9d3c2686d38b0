"""Turns the mappings of a config into what the supervisor runs."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from poller.app import destinations, functions, spooling, streams
from poller.core.batch import BatchLimits
from poller.core.filters import compile_filters
from poller.engine import parts
from poller.engine.accounts import QueueEnds
from poller.engine.breaker import Breaker, guarded
from poller.engine.child import MappingSpec
from poller.engine.door import Door
from poller.engine.invoker import Call, FunctionPlan, Invoker
from poller.engine.pipeline import Pipeline, Plan
from poller.engine.work import QueueWork
from poller.model import StartAt
from poller.sources.sqs import API_BATCH, QueueId, SqsSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from poller.app.functions import Loaded
    from poller.app.state import State
    from poller.app.streams import Streams
    from poller.aws.session import AwsSession
    from poller.config import Config, Mapping
    from poller.engine.child import Runner
    from poller.engine.invoker import World
    from poller.ports import Observer

#: Seconds of a long poll, the longest that SQS knows: an idle queue costs three requests a minute.
LONG_POLL = 20.0
#: Lambda's own ceiling of a queue's mapping without scaling_config (spec 4.4).
DEFAULT_CONCURRENCY = 1250


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every mapping shares."""

    session: AwsSession
    observer: Observer
    world: World
    close_timeout: float
    """Seconds that a reader has for giving its records back at the deadline of a stop, and a stream for its checkpoints."""
    state: State
    known_streams: Streams
    functions: Callable[[], dict[str, Loaded]]
    """Those in use at the moment: a reload replaces them."""

    @property
    def shared(self) -> streams.Shared:
        """What a stream's mapping needs of it."""
        return streams.Shared(self.session, self.observer, self.state, self.known_streams, self.close_timeout)


def specs(config: Config, loaded: dict[str, Loaded], around: Surroundings) -> list[MappingSpec]:
    """One spec a mapping. A mapping's fingerprint holds all that it was made from."""
    return [_spec(mapping, config, loaded, around) for mapping in config.mappings]


def _spec(mapping: Mapping, config: Config, loaded: dict[str, Loaded], around: Surroundings) -> MappingSpec:
    function = loaded[mapping.function]
    outside = destinations.Outside(loaded, around.session, around.observer, around.world)
    named = partial(destinations.former, mapping=mapping, outside=outside, present=around.functions)
    spooler = spooling.spooler(mapping, config, around.state, named, around.observer, around.world)

    @asynccontextmanager
    async def open_mapping() -> AsyncIterator[Runner]:
        invoker = Invoker(
            FunctionPlan(function.name, functions.arn(mapping, function.config), function.config.timeout),
            function.runtime,
            function.slots,
            around.observer,
            around.world,
        )
        ends = destinations.ends(mapping, outside, spooler)
        opened: AbstractAsyncContextManager[Runner] = (
            _open_queue(mapping, function, invoker, ends, around)
            if mapping.source == "sqs"
            else streams.open_stream(mapping, config, invoker, ends, around.shared)
        )
        async with spooler.working() if spooler else nullcontext(), opened as runner:
            yield runner

    return MappingSpec(
        name=mapping.name,
        source=mapping.event_source_arn,
        function=mapping.function,
        enabled=mapping.enabled,
        fingerprint=(
            mapping.model_dump_json(),
            id(function.runtime),  # what changes of a function makes another one, but for its code
            *(id(one.runtime) for one in destinations.functions_of(mapping, loaded)),
            config.aws.model_dump_json(),
            None if mapping.source == "sqs" else streams.idle_interval(mapping, config),
            spooler is None,
        ),
        open=open_mapping,
        spool=spooler.status if spooler else tuple,
    )


@asynccontextmanager
async def _open_queue(
    mapping: Mapping, function: Loaded, invoker: Invoker, ends: destinations.Ends, around: Surroundings
) -> AsyncIterator[Runner]:
    source = _source(mapping, function, around)
    (shard,) = await source.shards()
    async with source.open(shard, StartAt()) as reader:
        maximum = mapping.concurrency or DEFAULT_CONCURRENCY
        policy = mapping.circuit
        breaker = Breaker(mapping.name, policy, Door(), invoker) if policy else None
        shared = parts.build(mapping.name, reader, invoker, maximum, breaker=breaker)
        call = Call(mapping.name, mapping.source, mapping.reports_batch_item_failures)
        told = QueueEnds(
            mapping.event_source_arn,
            invoker.function.arn,
            ends.on_failure,
            ends.on_success,
            mapping.maximum_retry_attempts,
        )
        work = QueueWork(
            call,
            shared,
            ordered=mapping.fifo,
            patience=reader.visibility_timeout,
            ends=told if mapping.destinations else None,
        )
        pipeline = Pipeline(_plan(mapping), shared, work)
        async with _divided(mapping, maximum, pipeline, around.state):
            yield guarded(pipeline, breaker, lambda: pipeline.dispatch.maximum or maximum)


@asynccontextmanager
async def _divided(mapping: Mapping, maximum: int, pipeline: Pipeline, state: State) -> AsyncIterator[None]:
    """With `fleet_concurrency`, keep the pipeline to this daemon's part of `maximum`."""
    if mapping.scaling_config.fleet_concurrency:
        await state.store()
    leases = state.leases
    if leases is None or not mapping.scaling_config.fleet_concurrency:
        yield
        return

    def fit() -> None:
        pipeline.fit(leases.portion(mapping.name, maximum))

    leases.divide(mapping.name, fit)
    fit()
    try:
        yield
    finally:
        leases.withdraw(mapping.name)


def _source(mapping: Mapping, function: Loaded, around: Surroundings) -> SqsSource:
    queue = QueueId(
        mapping=mapping.name,
        arn=mapping.event_source_arn,
        region=mapping.region,
        account=mapping.arn.account,
        name=mapping.queue_name,
        fifo=mapping.fifo,
        function_timeout=function.config.timeout,
        close_timeout=around.close_timeout,
    )

    connect = partial(around.session.api, "sqs", mapping.region)
    return SqsSource(queue, connect, around.observer, clock=around.world.clock)


def _plan(mapping: Mapping) -> Plan:
    return Plan(
        name=mapping.name,
        limits=BatchLimits(count=mapping.batch_size, window=mapping.maximum_batching_window_in_seconds),
        receive_limit=API_BATCH,
        receive_wait=LONG_POLL,
        filters=compile_filters(mapping.patterns, mapping.source) if mapping.patterns else None,
    )
