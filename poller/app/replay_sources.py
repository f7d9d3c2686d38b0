"""What a replay is made of: its wish and its mapping become a source, and the engine's parts around it.

The function, its slots, its batches and its policy are the mapping's. A replay has half of the function's places at most, so
that live records find one, and its facts are told to observers only as far as they are facts about the function: a replayed
record is not one that the mapping has received.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from poller.app import functions, streams
from poller.config.arn import parse_arn
from poller.core.batch import BatchLimits
from poller.core.filters import compile_filters
from poller.core.pace import Allowance
from poller.core.replay import DEFAULT_RETRIES, ReplayEnvelope, Tally, sequence_number
from poller.core.replay_wish import bucket, key_of, places
from poller.core.retry import StreamPolicy
from poller.engine import parts
from poller.engine.invoker import Call, FunctionPlan, Invoker
from poller.engine.pipeline import Pipeline, Plan
from poller.engine.replay import Replay, ReplayPlan
from poller.engine.slots import Places, Slots
from poller.engine.work import QueueWork
from poller.errors import ReplayRefused
from poller.model import Failed, PartlyFailed
from poller.runtimes.redrive import Redrive
from poller.sources._walk import Replaying
from poller.sources.failed_batches import FailedBatches
from poller.sources.failed_messages import Attempts, FailedMessages
from poller.sources.failed_objects import FailedObjects
from poller.sources.failed_queue import open_failed_queue
from poller.sources.sqs import QueueId
from poller.sources.stream_range import Range, StreamRange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from poller.app.functions import Loaded
    from poller.app.mappings import Surroundings
    from poller.aws.session import Api
    from poller.config import Config, Mapping
    from poller.core.replay_wish import ReplayWish
    from poller.model import ApiRequest, Checkpoint, Delivery, Invoked, Record, StaleReceipts
    from poller.ports import Observer, Source
    from poller.sources._letters import Box

#: Seconds of a look for failed messages.
LOOK_WAIT = 2.0
#: Batches of a queue's messages in flight: as many as Lambda begins with.
QUEUE_CONCURRENCY = 5
PARTIAL = "ReportBatchItemFailures"
TOO_LARGE = "PayloadTooLarge"

_last_failure: ContextVar[tuple[str, str]] = ContextVar("_last_failure", default=("", ""))


@dataclass(frozen=True, slots=True)
class Setting:
    """What a replay works with."""

    wish: ReplayWish
    mapping: Mapping
    config: Config
    function: Loaded
    around: Surroundings


@dataclass(slots=True)
class Progress:
    """How far a replay is; kept over a stop."""

    tally: Tally
    key: str = ""
    """The last key up to which every object is done with, for objects."""
    shards: dict[str, Checkpoint] | None = None
    """By shard, what is done of a range."""
    began: float = 0.0
    """Unix time of its very beginning: the end of a range that names none."""


class Runner(Protocol):
    """A replay that is ready to run."""

    async def run(self) -> None:
        """Work until all is done, or until quiet and drained."""
        ...

    def quiet(self) -> None:
        """Take up nothing more."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A replay, and what can be asked of it while it runs."""

    runner: Runner
    note: Callable[[], str]
    exhausted: Callable[[], bool]
    """Whether nothing is left to take up."""
    noted: Callable[[], None]
    """Brings the progress up to date before it is saved."""


class ReplayObserver:
    """Lets observers hear of invocations and requests, and remembers how the last invocation of a task failed."""

    def __init__(self, observer: Observer, *, moves: bool) -> None:
        """A replay that only `moves` messages invokes no function that anybody knows."""
        self._observer = observer
        self._moves = moves

    def invoked(self, fact: Invoked) -> None:
        match fact.outcome:
            case Failed(error):
                _last_failure.set((error.error_type, error.error_message))
            case PartlyFailed():
                _last_failure.set((PARTIAL, ""))
        if not self._moves:
            self._observer.invoked(fact)

    def api_request(self, fact: ApiRequest) -> None:
        self._observer.api_request(fact)

    def stale_receipts(self, fact: StaleReceipts) -> None:
        self._observer.stale_receipts(fact)

    def _not_of_the_mapping(self, fact: object) -> None:
        """Nothing: it is told by the replay itself."""

    received = filtered_out = settled = trimmed = dropped = delivered = _not_of_the_mapping
    spooled = delivery_failed = state_changed = circuit_changed = trouble = _not_of_the_mapping
    parked = unparked = lease_changed = _not_of_the_mapping


class FailedAgain:
    """Takes batches of a stream that were given up again; see `poller.ports.Destination`."""

    def __init__(self, failed: Callable[[str, Sequence[str]], None], tally: Tally) -> None:
        self.limit: int | None = None
        self._failed = failed
        self._tally = tally

    async def send(self, delivery: Delivery) -> None:
        ids = [sequence_number(event) for event in (delivery.event or {}).get("Records", ())]
        responded = "responseContext" in delivery.document
        kind = delivery.error_type or (PARTIAL if responded else TOO_LARGE)
        self._tally.fail(ids, kind, delivery.error_message)
        self._failed(delivery.shard, ids)


# --- opening ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_replay(setting: Setting, progress: Progress) -> AsyncIterator[Opened]:
    """The replay, ready to run; raises PollerError when what it reads cannot be opened."""
    observer = ReplayObserver(setting.around.observer, moves=setting.wish.to_source)
    if setting.wish.kind == "range":
        source = await stream_range(setting, progress, observer)
        yield _stream_replay(setting, source, progress.tally, observer, _nothing)
        return
    async with open_box(setting, progress, observer) as (box, noted):
        if setting.mapping.source == "sqs":
            yield await _queue_replay(setting, box, progress.tally, observer, noted)
        else:
            batches = FailedBatches(
                box, _stream(setting, observer), _replaying(setting), _allowance(setting), progress.tally
            )
            yield _stream_replay(setting, batches, progress.tally, observer, noted)


def _nothing() -> None:
    pass


@asynccontextmanager
async def open_box(
    setting: Setting, progress: Progress, observer: Observer
) -> AsyncIterator[tuple[Box, Callable[[], None]]]:
    """What holds the failed records, and what notes how far it is; raises PollerError."""
    wish, session = setting.wish, setting.around.session
    if wish.kind == "objects":
        api = s3_calls(setting)
        objects = FailedObjects(bucket(wish.target), api, progress.key, delete=wish.delete)

        def note_key() -> None:
            progress.key = objects.position

        yield objects, note_key
        return
    queue = queue_id(setting)
    async with open_failed_queue(queue, partial(session.api, "sqs", queue.region), observer) as failed:
        yield failed, _nothing


def queue_id(setting: Setting) -> QueueId:
    """The queue that the wish names, by its ARN or its URL; raises ReplayRefused."""
    mapping, target = setting.mapping, setting.wish.target
    try:
        if target.startswith(("http://", "https://")):
            url = urlsplit(target)
            account, name = url.path.strip("/").split("/")[-2:]
            host = (url.hostname or "").split(".")
            region = host[1] if host[0] == "sqs" and len(host) > 2 else mapping.region
        else:
            arn = parse_arn(target)
            region, account, name = arn.region, arn.account, arn.resource
            if arn.service != "sqs":
                raise ValueError
    except ValueError as error:
        raise ReplayRefused(f"{target}: must be the ARN or the URL of an SQS queue") from error
    if mapping.source == "sqs" and (region, account, name) == (
        mapping.region,
        mapping.arn.account,
        mapping.queue_name,
    ):
        raise ReplayRefused(f"{target}: that is the queue that the mapping reads anyway")
    # What a function is given of a dead letter is the message as its own queue would have brought it.
    source = mapping.event_source_arn if mapping.source == "sqs" else target
    return QueueId(
        mapping=mapping.name,
        arn=source,
        region=region,
        account=account,
        name=name,
        fifo=name.endswith(".fifo"),
        function_timeout=0.0,
        close_timeout=setting.around.close_timeout,
    )


def s3_calls(setting: Setting) -> Api:
    """The calls of S3 where the mapping is."""
    return setting.around.session.cold("s3", setting.mapping.region)


def _allowance(setting: Setting) -> Allowance:
    return Allowance(setting.wish.rate)


def _passes(setting: Setting) -> Callable[[Record], bool]:
    """Whether the mapping's filters let a record pass; what goes back to its queue meets them there."""
    its_own = compile_filters(
        () if setting.wish.to_source else setting.mapping.patterns, setting.mapping.source
    )
    return lambda record: its_own.match(record.event)


def _wants(setting: Setting) -> Callable[[Record], bool]:
    """Whether a record is one of those that were asked for."""
    source, wish = setting.mapping.source, setting.wish
    asked, key = compile_filters(wish.filters, source), key_of(wish, source)
    return lambda record: key in ("", record.key) and asked.match(record.event)


def _batch_size(setting: Setting) -> int:
    return setting.wish.batch_size or setting.mapping.batch_size


def _retries(mapping: Mapping) -> int:
    retries = mapping.maximum_retry_attempts
    return DEFAULT_RETRIES if retries < 0 else retries


def _half(setting: Setting) -> int:
    return max(1, setting.function.slots.total // 2)


def _invoker(setting: Setting, observer: Observer) -> Invoker:
    function = setting.function
    plan = FunctionPlan(
        function.name, functions.arn(setting.mapping, function.config), function.config.timeout
    )
    return Invoker(plan, function.runtime, function.slots, observer, setting.around.world)


# --- streams ------------------------------------------------------------------------------------------------------------


def _stream(setting: Setting, observer: Observer) -> Source:
    return streams.polled(setting.mapping, setting.config, replace(setting.around.shared, observer=observer))


def _replaying(setting: Setting) -> Replaying:
    mapping = setting.mapping
    return Replaying(
        source_arn=mapping.event_source_arn,
        envelope=ReplayEnvelope(streams.envelope(mapping, setting.config)),
        lanes=mapping.parallelization_factor,
        passes=_passes(setting),
        wants=_wants(setting),
        group=_batch_size(setting),
    )


async def stream_range(setting: Setting, progress: Progress, observer: Observer) -> StreamRange:
    """The records of the mapping's stream that the wish names."""
    start, end = places(setting.wish, progress.began)
    progress.shards = progress.shards or {}
    return StreamRange(
        Range(start, end, setting.wish.shard),
        _stream(setting, observer),
        _replaying(setting),
        _allowance(setting),
        progress.tally,
        progress.shards,
    )


def _stream_replay(
    setting: Setting,
    source: FailedBatches | StreamRange,
    tally: Tally,
    observer: ReplayObserver,
    noted: Callable[[], None],
) -> Opened:
    mapping, invoker = setting.mapping, _invoker(setting, observer)
    envelope = ReplayEnvelope(streams.envelope(mapping, setting.config))
    policy = StreamPolicy(
        maximum_retry_attempts=_retries(mapping),
        bisect_batch_on_function_error=mapping.bisect_batch_on_function_error,
    )
    again = FailedAgain(source.failed, tally)
    plan = ReplayPlan(
        plan=Plan(mapping.name, BatchLimits(_batch_size(setting)), streams.RECEIVE_LIMIT, LOOK_WAIT),
        batches=lambda shard: streams.replayed(mapping, shard, envelope, policy, again, invoker.function.arn),
        lanes=mapping.parallelization_factor,
        concurrency=_half(setting),
    )
    replay = Replay(plan, source, invoker)
    return Opened(
        replay,
        note=lambda: replay.doing or source.note,
        exhausted=lambda: replay.door.is_open and source.exhausted,
        noted=noted,
    )


# --- queues -------------------------------------------------------------------------------------------------------------


async def _queue_replay(
    setting: Setting, box: Box, tally: Tally, observer: ReplayObserver, noted: Callable[[], None]
) -> Opened:
    mapping, wish, world = setting.mapping, setting.wish, setting.around.world
    invoker = await _mover(setting, observer) if wish.to_source else _invoker(setting, observer)
    reader = FailedMessages(
        box,
        mapping.event_source_arn,
        _passes(setting),
        _wants(setting),
        Attempts(1 + _retries(mapping), _last_failure.get, world.chance),
        _allowance(setting),
        tally,
        dead_letters=wish.kind == "dead_letters",
        fifo=mapping.fifo,
    )
    size = min(10, _batch_size(setting)) if wish.to_source else _batch_size(setting)
    concurrency = invoker.slots.total if wish.to_source else min(_half(setting), QUEUE_CONCURRENCY)
    shared = parts.build(mapping.name, reader, invoker, concurrency)
    call = Call(mapping.name, mapping.source, wish.to_source or mapping.reports_batch_item_failures)
    # What no handler takes is waited for, whatever time that needs: nothing of it is lost meanwhile.
    work = QueueWork(call, shared, ordered=mapping.fifo, patience=math.inf)
    pipeline = Pipeline(Plan(mapping.name, BatchLimits(size), size, LOOK_WAIT), shared, work)
    return Opened(
        pipeline,
        note=lambda: pipeline.trouble or reader.note,
        exhausted=lambda: reader.exhausted,
        noted=noted,
    )


async def _mover(setting: Setting, observer: ReplayObserver) -> Invoker:
    mapping, around = setting.mapping, setting.around
    api: Api = await around.session.api("sqs", mapping.region)
    redrive = Redrive(mapping.queue_name, mapping.arn.account, api, fifo=mapping.fifo)
    plan = FunctionPlan("redrive", mapping.event_source_arn, 60.0)
    return Invoker(plan, redrive, Slots(Places(QUEUE_CONCURRENCY), None), observer, around.world)
