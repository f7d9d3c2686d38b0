"""One event source mapping: the parameters of Lambda's CreateEventSourceMapping in snake_case."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from poller.config.arn import Arn, SourceKind, check_destination, check_key, check_source, parse_arn
from poller.config.section import Mistakes, Seconds, Section, Whole

if TYPE_CHECKING:
    from poller.core.breaker import CircuitPolicy

#: Filters that Lambda allows once its quota of 5 was raised.
MAXIMUM_FILTERS = 10
#: Invocations that one provisioned poller of Lambda keeps in flight.
INVOCATIONS_PER_POLLER = 10

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONSUMER = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_FUNCTION = re.compile(
    r"(?:arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:|(?P<account>\d{12}):function:)?"
    r"(?P<name>[A-Za-z0-9_-]{1,64})(?::(?P<qualifier>\$LATEST|[A-Za-z0-9_-]{1,128}))?"
)


_PATTERN_SCHEMA = WithJsonSchema(
    {
        "title": "Pattern",
        "anyOf": [{"type": "object", "minProperties": 1}, {"type": "string", "maxLength": 4096}],
    }
)
_TIMESTAMP_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "format": "date-time"}]}
)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def _function(text: str) -> str:
    if not _FUNCTION.fullmatch(text):
        raise ValueError("must be NAME, NAME:QUALIFIER, ACCOUNT:function:NAME or the ARN of a function")
    return text


def function_part(text: str, part: Literal["name", "qualifier", "account"]) -> str | None:
    """What is named of a function: its name, the version or alias, or the account in front of it when it is no ARN."""
    found = _FUNCTION.fullmatch(text)
    return found and found[part]


def _consumer(text: str) -> str:
    if not _CONSUMER.fullmatch(text):
        raise ValueError("must be 1 to 128 letters, digits, dots, dashes or underscores")
    return text


def _table(text: str) -> str:
    if not _TABLE.fullmatch(text):
        raise ValueError(
            "must be the name of a DynamoDB table: 3 to 255 letters, digits, dots, dashes or underscores"
        )
    return text


def _pattern(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be a table or a string of JSON")  # noqa: TRY004
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("must hold what JSON can say: no dates, no nan, no inf") from None


def _timestamp(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        raise ValueError("must name its offset from UTC, like 2026-01-31T12:00:00Z")
    return value.astimezone(UTC).timestamp()


def _default_batch_size(validated: dict[str, Any]) -> int:
    return 10 if parse_arn(validated["event_source_arn"]).service == "sqs" else 100


class Filter(Section):
    """One pattern. A record is processed when any pattern of the mapping matches it."""

    pattern: Annotated[str, Field(max_length=4096), BeforeValidator(_pattern), _PATTERN_SCHEMA] = Field(
        description="The pattern, as a table or as a string of JSON as in Lambda. TOML has no null: a pattern"
        " that needs one is written as a string. At most 4096 characters."
    )


class FilterCriteria(Section):
    """Which records are processed; the others count as done."""

    filters: tuple[Filter, ...] = Field(
        default=(),
        max_length=MAXIMUM_FILTERS,
        description="At most 10 (Lambda: 5, or 10 after a quota increase). Empty means every record.",
    )


class ScalingConfig(Section):
    """How far a queue's mapping may scale."""

    maximum_concurrency: Whole | None = Field(
        default=None,
        ge=2,
        le=1000,
        description="Invocations of this mapping in flight, 2 to 1000. Default: as many as Lambda would"
        " run, within the function's and the daemon's own limits.",
    )
    fleet_concurrency: bool = Field(
        default=False,
        description="Beyond Lambda: whether the daemons that share [daemon] state divide maximum_concurrency among them, as"
        " many as there are at the moment. Default false: each has all of it.",
    )


class ProvisionedPollerConfig(Section):
    """Lambda's provisioned mode. Here pollers cost nothing, so only the ceiling has an effect."""

    minimum_pollers: Whole | None = Field(
        default=None, ge=2, le=200, description="2 to 200; checked, and without effect here. Default 2."
    )
    maximum_pollers: Whole | None = Field(
        default=None,
        ge=2,
        le=10_000,
        description="2 to 10000: ten times this number bounds the invocations in flight. Default 200.",
    )

    @property
    def minimum(self) -> int:
        """Pollers at least, the default resolved."""
        return self.minimum_pollers or 2

    @property
    def maximum(self) -> int:
        """Pollers at most, the default resolved."""
        return self.maximum_pollers or 200


class MetricsConfig(Section):
    """Lambda's opt-in metrics. Here they are always on."""

    metrics: tuple[Literal["EventCount"], ...] = Field(
        default=(), max_length=3, description='["EventCount"] is accepted and without effect.'
    )


class OnFailure(Section):
    """Where batches go that are given up."""

    destination: Annotated[str, AfterValidator(check_destination)] = Field(
        description="ARN of a standard SQS queue, a standard SNS topic or an S3 bucket, which also gets the event. Beyond"
        " Lambda: of a FIFO queue or topic, an EventBridge event bus or a Lambda function, or a key of [functions]. A"
        " function's ARN whose name is such a key means that function.",
    )


class OnSuccess(Section):
    """Where the outcome of what succeeded goes."""

    destination: Annotated[str, AfterValidator(check_destination)] = Field(
        description="As that of on_failure. An S3 bucket is beyond Lambda here.",
    )


class DestinationConfig(Section):
    """Where the outcome of batches goes."""

    on_failure: OnFailure | None = Field(
        default=None,
        description="Takes what failed for good. Default: batches of a stream are dropped and counted, messages stay in their"
        " queue. For a queue it is beyond Lambda and needs maximum_retry_attempts.",
    )
    on_success: OnSuccess | None = Field(
        default=None,
        description="Beyond Lambda: takes the record of each invocation for what succeeded of it, before that is deleted or"
        " the checkpoint passes. Default: nobody is told.",
    )


class CircuitBreaker(Section):
    """When a mapping stops asking a function that fails whatever it is given."""

    consecutive_failures: Whole = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Invocations in a row that finished nothing of their batch, over all workers or lanes, after"
        " which nothing is received or invoked. 1 to 10000; default 10.",
    )
    pause_in_seconds: Seconds = Field(
        default=10,
        ge=1,
        le=43_200,
        description="Seconds from there to the probe, which is one batch; up to half of them is left to chance."
        " Each probe that fails doubles the pause. 1 to 43200; default 10.",
    )
    maximum_pause_in_seconds: Seconds = Field(
        default=300,
        ge=1,
        le=43_200,
        description="Seconds that the pause grows to at most. 1 to 43200, at least pause_in_seconds; default 300.",
    )


class SpoolConfig(Section):
    """How much of a mapping may wait in the state store, whatever it waits for."""

    maximum_entries: Whole = Field(
        default=10_000, ge=1, le=1_000_000, description="Batches or records, 1 to 1000000. Default 10000."
    )
    maximum_megabytes: Whole = Field(
        default=256, ge=1, le=65_536, description="Their size in all, 1 to 65536 MB. Default 256."
    )


class Mapping(Section):
    """One source feeding one function."""

    name: Annotated[str, AfterValidator(_name)] = Field(
        description="Beyond Lambda: our own name, used in metrics, status and commands. Unique; 1 to 64"
        " letters, digits, dots, dashes or underscores."
    )
    event_source_arn: Annotated[str, AfterValidator(check_source)] = Field(
        description="ARN of an SQS queue, a Kinesis stream (or its consumer, for enhanced fan-out), or a"
        " DynamoDB stream."
    )
    function_name: Annotated[str, AfterValidator(_function)] = Field(
        description="A key of [functions]. Lambda's other forms work too: NAME:QUALIFIER,"
        " ACCOUNT:function:NAME and the full ARN.",
    )
    enabled: bool = Field(default=True, description="false keeps the mapping in the file without polling.")
    batch_size: Whole = Field(
        default_factory=_default_batch_size,
        ge=1,
        le=10_000,
        description="Records in one invocation at most, 1 to 10000. FIFO queues: at most 10; standard queues:"
        " more than 10 needs a batching window. Default: 10 for queues, 100 for streams.",
    )
    maximum_batching_window_in_seconds: Whole = Field(
        default=0,
        ge=0,
        le=300,
        description="Seconds to gather records before invoking, 0 to 300. Not for FIFO queues. Default 0.",
    )
    function_response_types: tuple[Literal["ReportBatchItemFailures"], ...] = Field(
        default=(),
        max_length=1,
        description='["ReportBatchItemFailures"] lets the function name the records that failed.',
    )
    filter_criteria: FilterCriteria = Field(
        default_factory=FilterCriteria, description="Which records are processed. Default: every one."
    )
    kms_key_arn: Annotated[str, AfterValidator(check_key)] | None = Field(
        default=None, description="ARN of the key for Lambda's copy of the filters; without effect here."
    )
    metrics_config: MetricsConfig = Field(
        default_factory=MetricsConfig, description="Accepted as Lambda does; every metric is always on here."
    )
    tags: dict[str, str] = Field(default={}, description="Accepted as Lambda does; without effect here.")
    scaling_config: ScalingConfig = Field(
        default_factory=ScalingConfig, description="Queues only: how far the mapping may scale."
    )
    provisioned_poller_config: ProvisionedPollerConfig | None = Field(
        default=None, description="Queues only: Lambda's provisioned mode. Excludes scaling_config."
    )
    starting_position: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"] | None = Field(
        default=None,
        description="Streams only, required there: where to begin when there is no checkpoint."
        " AT_TIMESTAMP is for Kinesis only.",
    )
    starting_position_timestamp: Annotated[float, BeforeValidator(_timestamp), _TIMESTAMP_SCHEMA] | None = (
        Field(
            default=None,
            ge=0,
            description="Kinesis only, with AT_TIMESTAMP: a date and time with its offset, or seconds since"
            " 1970; not in the future.",
        )
    )
    parallelization_factor: Whole = Field(
        default=1,
        ge=1,
        le=1000,
        description="Streams only: batches in flight per shard, 1 to 10, beyond Lambda to 1000; the records of one"
        " key stay in order. Default 1.",
    )
    bisect_batch_on_function_error: bool = Field(
        default=False, description="Streams only: split a failed batch in two before it is tried again."
    )
    maximum_record_age_in_seconds: Whole = Field(
        default=-1,
        ge=-1,
        le=604_800,
        description="Streams only: give up records older than this, 60 to 604800 seconds; -1 (the default)"
        " for no limit.",
    )
    maximum_retry_attempts: Whole = Field(
        default=-1,
        ge=-1,
        le=10_000,
        description="Retries before a batch of a stream is given up, 0 to 10000; -1 (the default) until it succeeds or its"
        " records expire. Beyond Lambda, with an on_failure destination, for a queue: a message that fails is given up"
        " when it has been received more often than this.",
    )
    tumbling_window_in_seconds: Whole = Field(
        default=0,
        ge=0,
        le=900,
        description="Streams only: length of the windows over which the function carries a state, 0 to 900"
        " seconds; 0 (the default) is off. Excludes filters and a parallelization factor above 1.",
    )
    destination_config: DestinationConfig = Field(
        default_factory=DestinationConfig,
        description="Where the outcome of batches goes; in Lambda for streams only, and only what failed.",
    )
    circuit_breaker: CircuitBreaker | None = Field(
        default=None,
        description="Beyond Lambda: stop when the function fails whatever it is given, ask again with one batch at"
        " a time, and go on at growing concurrency; {} takes its defaults. Default: off, as on Lambda.",
    )
    on_poison: Literal["give_up", "park"] = Field(
        default="give_up",
        description="Streams only, beyond Lambda: what becomes of a record that failed in all of its attempts."
        ' "give_up", the default, is Lambda\'s way. "park" puts it into [daemon] state, with all that come after it'
        " under its key, while other keys go on; they are processed, in order, when the key is resumed. It needs"
        " maximum_retry_attempts, and finds the record by bisecting.",
    )
    park_probe_interval_in_seconds: Seconds = Field(
        default=60,
        ge=0,
        le=86_400,
        description="Beyond Lambda, with park: seconds until a parked key is tried again, 0 to 86400; the pauses grow to"
        " sixteen times that, or an hour. 0: only by poller resume. Default 60.",
    )
    on_delivery_failure: Literal["retry", "spool"] = Field(
        default="retry",
        description='Beyond Lambda: what becomes of a batch that its destination does not take. "retry", the default, tries'
        ' until it does, and what comes behind waits. "spool" keeps it in [daemon] state and goes on; it is delivered from'
        " there, in order, when the destination is back.",
    )
    maximum_delivery_attempts: Whole = Field(
        default=5,
        ge=1,
        le=1000,
        description="Beyond Lambda, with spool: tries to deliver a batch before it is spooled, 1 to 1000. Default 5. While"
        " anything is spooled for a destination, what comes for it goes behind that without a try.",
    )
    spool: SpoolConfig = Field(
        default_factory=SpoolConfig,
        description="Beyond Lambda: how much of this mapping may wait in [daemon] state. What finds it full waits, and what"
        " comes behind waits with it; nothing is dropped.",
    )
    deaggregate: bool | None = Field(
        default=None,
        description="Kinesis only: take apart what the Kinesis Producer Library has put together, so that the"
        " function sees its user records. Default as on Lambda: true with enhanced fan-out, false without.",
    )
    enhanced_fan_out: Annotated[str, AfterValidator(_consumer)] | None = Field(
        default=None,
        description="Kinesis only, beyond Lambda: the name of a consumer that is registered at the stream if it"
        " is not yet, and read by enhanced fan-out. It costs money as long as it is registered.",
    )
    lease_table: Annotated[str, AfterValidator(_table)] | None = Field(
        default=None,
        description="Kinesis only, beyond Lambda: the DynamoDB table, in the stream's region, that has the checkpoints and"
        " leases of this mapping. Default: [daemon] state.",
    )
    lease_format: Literal["poller", "kcl"] = Field(
        default="poller",
        description='Beyond Lambda, with lease_table: whose rows it has. "poller", the default, are our own. "kcl" are those of'
        " an application of the Kinesis Client Library, 2.x or 3.x, that moves over with its place in the stream, and may"
        " move back; excludes tumbling windows.",
    )
    idle_interval_in_seconds: Seconds | None = Field(
        default=None,
        ge=0.2,
        le=60,
        description="Streams only, beyond Lambda: seconds between the reads of a shard that has been silent for"
        " long, 0.2 to 60. The least of all mappings on a stream counts. Default: 1 for Kinesis, 5 for DynamoDB.",
    )

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> Self:
        from poller.config.rules import within  # it reads this class

        mistakes = tuple(within(self, now=(info.context or {}).get("now", math.inf)))
        if mistakes:
            raise Mistakes(mistakes)
        return self

    @cached_property
    def arn(self) -> Arn:
        """The source's ARN in its parts."""
        return parse_arn(self.event_source_arn)

    @property
    def source(self) -> SourceKind:
        """What kind of source is read."""
        return cast("SourceKind", self.arn.service)

    @property
    def region(self) -> str:
        """The region of the source."""
        return self.arn.region

    @property
    def queue_name(self) -> str:
        """The name of the queue; meaningless for a stream."""
        return self.arn.resource

    @property
    def fifo(self) -> bool:
        """True for a queue that keeps the order of its groups."""
        return self.source == "sqs" and self.arn.resource.endswith(".fifo")

    @property
    def function(self) -> str:
        """The key in [functions] that `function_name` means."""
        return function_part(self.function_name, "name") or ""

    @property
    def qualifier(self) -> str | None:
        """The version or alias that `function_name` names, if any."""
        return function_part(self.function_name, "qualifier")

    @property
    def fans_out(self) -> bool:
        """True when a Kinesis stream is read by enhanced fan-out."""
        return bool(self.arn.consumer or self.enhanced_fan_out)

    @property
    def deaggregates(self) -> bool:
        """Whether KPL aggregates are taken apart, the default resolved."""
        return self.fans_out if self.deaggregate is None else self.deaggregate

    @property
    def reports_batch_item_failures(self) -> bool:
        """True when the function may name the records that failed."""
        return "ReportBatchItemFailures" in self.function_response_types

    @property
    def destinations(self) -> dict[str, str]:
        """What the mapping sends to, by its key in destination_config."""
        config = self.destination_config
        both = {"on_failure": config.on_failure, "on_success": config.on_success}
        return {key: end.destination for key, end in both.items() if end}

    @property
    def spools(self) -> bool:
        """True when what a destination does not take is spooled."""
        return self.on_delivery_failure == "spool"

    @property
    def parks(self) -> bool:
        """True when a record that fails for good parks its key."""
        return self.on_poison == "park"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The filter patterns as JSON texts; empty for no filtering."""
        return tuple(one.pattern for one in self.filter_criteria.filters)

    @property
    def circuit(self) -> CircuitPolicy | None:
        """What the circuit breaker goes by; None when there is none."""
        from poller.core.breaker import CircuitPolicy  # only for files that have breakers

        wanted = self.circuit_breaker
        return (
            None
            if wanted is None
            else CircuitPolicy(
                wanted.consecutive_failures, wanted.pause_in_seconds, wanted.maximum_pause_in_seconds
            )
        )

    @property
    def concurrency(self) -> int | None:
        """The mapping's own ceiling of invocations in flight; None when the file sets none."""
        if self.provisioned_poller_config is not None:
            return INVOCATIONS_PER_POLLER * self.provisioned_poller_config.maximum
        return self.scaling_config.maximum_concurrency
