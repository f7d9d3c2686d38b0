"""Rules between keys: within one mapping, and across the file. The service's own behaviour is the measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.config.arn import destination_function
from poller.config.remote import split_function_arn
from poller.config.section import Mistake

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poller.config.arn import SourceKind
    from poller.config.mapping import Mapping
    from poller.config.model import Daemon, Function

#: Functions that a message lists.
NAMED = 8

_STREAMS: tuple[SourceKind, ...] = ("kinesis", "dynamodb")
_APPLIES: dict[str, tuple[SourceKind, ...]] = {
    "scaling_config": ("sqs",),
    "provisioned_poller_config": ("sqs",),
    "starting_position": _STREAMS,
    "starting_position_timestamp": ("kinesis",),
    "parallelization_factor": _STREAMS,
    "bisect_batch_on_function_error": _STREAMS,
    "maximum_record_age_in_seconds": _STREAMS,
    "tumbling_window_in_seconds": _STREAMS,
    "deaggregate": ("kinesis",),
    "enhanced_fan_out": ("kinesis",),
    "lease_table": ("kinesis",),
    "lease_format": ("kinesis",),
    "idle_interval_in_seconds": _STREAMS,
    "on_poison": _STREAMS,
    "park_probe_interval_in_seconds": _STREAMS,
}
_CALLED = {
    ("sqs",): "SQS queues",
    ("kinesis",): "Kinesis streams",
    _STREAMS: "Kinesis and DynamoDB streams",
}


def within(mapping: Mapping, now: float) -> Iterator[Mistake]:
    """Find what is wrong between the keys of one mapping."""
    yield from _applicability(mapping)
    yield from _queue(mapping) if mapping.source == "sqs" else _stream(mapping, now)
    yield from _filters(mapping)
    yield from _destinations(mapping)
    yield from _circuit(mapping)
    yield from _spool(mapping)
    yield from _leases(mapping)


def _applicability(mapping: Mapping) -> Iterator[Mistake]:
    for key, sources in _APPLIES.items():
        if key in mapping.model_fields_set and mapping.source not in sources:
            yield Mistake((key,), f"does not apply to this source: it is for {_CALLED[sources]} only")


def _queue(mapping: Mapping) -> Iterator[Mistake]:
    window = mapping.maximum_batching_window_in_seconds
    if mapping.fifo and mapping.batch_size > 10:
        yield Mistake(("batch_size",), "must be at most 10 for a FIFO queue")
    if mapping.fifo and window > 0:
        yield Mistake(
            ("maximum_batching_window_in_seconds",), "must be 0: FIFO queues have no batching window"
        )
    if not mapping.fifo and mapping.batch_size > 10 and window == 0:
        yield Mistake(
            ("batch_size",), "must be at most 10 unless maximum_batching_window_in_seconds is at least 1"
        )
    yield from _pollers(mapping)
    yield from _retries_of_queue(mapping)


def _retries_of_queue(mapping: Mapping) -> Iterator[Mistake]:
    at = ("maximum_retry_attempts",)
    if mapping.destination_config.on_failure is None:
        if "maximum_retry_attempts" in mapping.model_fields_set:
            wants = "goes only with destination_config.on_failure for a queue: without, its redrive policy gives up"
            yield Mistake(at, wants)
    elif mapping.maximum_retry_attempts < 0:
        yield Mistake(at, "is required with destination_config.on_failure for a queue: 0 to 10000")


def _pollers(mapping: Mapping) -> Iterator[Mistake]:
    at, pollers = ("provisioned_poller_config",), mapping.provisioned_poller_config
    if pollers is None:
        return
    if mapping.scaling_config.maximum_concurrency is not None:
        yield Mistake(at, "excludes scaling_config.maximum_concurrency: keep one of them")
    if pollers.minimum_pollers is None and pollers.maximum_pollers is None:
        yield Mistake(at, "must have minimum_pollers, maximum_pollers or both")
    elif pollers.maximum < pollers.minimum:
        yield Mistake((*at, "maximum_pollers"), "must be at least minimum_pollers")


def _stream(mapping: Mapping, now: float) -> Iterator[Mistake]:
    yield from _position(mapping, now)
    if 0 <= mapping.maximum_record_age_in_seconds < 60:
        yield Mistake(("maximum_record_age_in_seconds",), "must be -1 (no limit) or 60 to 604800")
    if mapping.tumbling_window_in_seconds and mapping.patterns:
        yield Mistake(("tumbling_window_in_seconds",), "excludes filter_criteria: keep one of them")
    if mapping.tumbling_window_in_seconds and mapping.parallelization_factor > 1:
        yield Mistake(("tumbling_window_in_seconds",), "excludes a parallelization_factor above 1")
    yield from _parking(mapping)
    if mapping.enhanced_fan_out and mapping.arn.consumer:
        yield Mistake(("enhanced_fan_out",), "excludes an event_source_arn that names a consumer already")


def _parking(mapping: Mapping) -> Iterator[Mistake]:
    given = mapping.model_fields_set
    if not mapping.parks:
        if "park_probe_interval_in_seconds" in given:
            yield Mistake(("park_probe_interval_in_seconds",), 'goes only with on_poison = "park"')
        return
    if mapping.maximum_retry_attempts < 0:
        yield Mistake(
            ("on_poison",),
            "needs maximum_retry_attempts, 0 or more: without an end of them nothing is parked",
        )
    if mapping.tumbling_window_in_seconds:
        yield Mistake(
            ("on_poison",), "excludes tumbling_window_in_seconds: a window has no room for what comes later"
        )
    if "bisect_batch_on_function_error" in given and not mapping.bisect_batch_on_function_error:
        yield Mistake(
            ("bisect_batch_on_function_error",),
            'must be true, or left out, with on_poison = "park", which bisects',
        )


def _position(mapping: Mapping, now: float) -> Iterator[Mistake]:
    position, timestamp = mapping.starting_position, mapping.starting_position_timestamp
    if position is None:
        choices = (
            "TRIM_HORIZON or LATEST"
            if mapping.source == "dynamodb"
            else "TRIM_HORIZON, LATEST or AT_TIMESTAMP"
        )
        yield Mistake(("starting_position",), f"is required for a stream: {choices}")
    if position == "AT_TIMESTAMP" and mapping.source == "dynamodb":
        yield Mistake(("starting_position",), "must be TRIM_HORIZON or LATEST for a DynamoDB stream")
    if mapping.source == "dynamodb":
        return
    if position == "AT_TIMESTAMP" and timestamp is None:
        yield Mistake(("starting_position_timestamp",), "is required with AT_TIMESTAMP")
    if position != "AT_TIMESTAMP" and timestamp is not None:
        yield Mistake(("starting_position_timestamp",), 'goes only with starting_position = "AT_TIMESTAMP"')
    if timestamp is not None and timestamp > now:
        yield Mistake(("starting_position_timestamp",), "must not lie in the future")


def _filters(mapping: Mapping) -> Iterator[Mistake]:
    # Imported here, because a file without filters should not pay for the engine that matches them.
    if not mapping.patterns:
        return
    from poller.core.filters import PatternError, compile_filters

    for index, pattern in enumerate(mapping.patterns):
        try:
            compile_filters([pattern], mapping.source)
        except PatternError as error:
            at = ("filter_criteria", "filters", index, "pattern")
            yield Mistake(at, "must be a filter pattern that Lambda accepts", detail=str(error))


def _destinations(mapping: Mapping) -> Iterator[Mistake]:
    for key, destination in mapping.destinations.items():
        at = ("destination_config", key, "destination")
        if destination == mapping.event_source_arn:
            yield Mistake(
                at, "must be another queue than the source: what goes there would come back from it"
            )
        elif destination_function(destination) == mapping.function:
            yield Mistake(at, "must be another function than that of the mapping")


def _circuit(mapping: Mapping) -> Iterator[Mistake]:
    breaker = mapping.circuit_breaker
    if breaker is None or breaker.pause_in_seconds <= breaker.maximum_pause_in_seconds:
        return
    if "pause_in_seconds" in breaker.model_fields_set:
        wants = f"must be at most maximum_pause_in_seconds, which is {breaker.maximum_pause_in_seconds:g}"
        yield Mistake(("circuit_breaker", "pause_in_seconds"), wants)
    else:
        wants = f"must be at least pause_in_seconds, which is {breaker.pause_in_seconds:g}"
        yield Mistake(("circuit_breaker", "maximum_pause_in_seconds"), wants)


def _spool(mapping: Mapping) -> Iterator[Mistake]:
    if mapping.spools and not mapping.destinations:
        yield Mistake(("on_delivery_failure",), "goes only with a destination in destination_config")
    given = mapping.model_fields_set
    if "maximum_delivery_attempts" in given and not mapping.spools:
        yield Mistake(("maximum_delivery_attempts",), 'goes only with on_delivery_failure = "spool"')
    if "spool" in given and not (mapping.spools or mapping.parks):
        also = "" if mapping.source == "sqs" else ' or on_poison = "park"'
        yield Mistake(("spool",), f'goes only with on_delivery_failure = "spool"{also}')


def _leases(mapping: Mapping) -> Iterator[Mistake]:
    if mapping.lease_table is None:
        if "lease_format" in mapping.model_fields_set:
            yield Mistake(("lease_format",), "goes only with lease_table")
    elif mapping.lease_format == "kcl" and mapping.tumbling_window_in_seconds:
        wants = (
            "excludes tumbling_window_in_seconds: a table of the KCL has no room for the state of a window"
        )
        yield Mistake(("lease_format",), wants)


# --- across the file --------------------------------------------------------------------------------------


def across(
    daemon: Daemon, names: Iterable[str], functions: dict[str, Function], mappings: dict[int, Mapping]
) -> Iterator[Mistake]:
    """Find what is wrong between sections. `names` are all functions that the file has, valid or not."""
    known = tuple(names)
    for index, mapping in mappings.items():
        if mapping.function not in known:
            yield Mistake(("mappings", index, "function_name"), _unknown_function(mapping.function, known))
        for key, destination in mapping.destinations.items():
            if destination == destination_function(destination) and destination not in known:
                at = ("mappings", index, "destination_config", key, "destination")
                yield Mistake(at, _unknown_function(destination, known, "an ARN or a key of [functions]"))
    yield from _duplicates(mappings)
    yield from _shared_consumers(mappings)
    yield from _shared_tables(daemon, mappings)
    yield from _divided(daemon, mappings)
    yield from _shared_environment(functions)
    yield from _other_functions(functions, mappings)
    if daemon.fleet and daemon.state == "memory:":
        wants = "needs [daemon] state = sqlite:PATH or dynamodb:TABLE: nobody else sees what is in memory"
        yield Mistake(("daemon", "fleet"), wants)
    if not daemon.keeps_spool:
        for index, mapping in mappings.items():
            for key, keeps, what in (
                ("on_delivery_failure", mapping.spools, "spooled"),
                ("on_poison", mapping.parks, "parked"),
            ):
                if keeps:
                    wants = (
                        f"needs [daemon] state = sqlite:PATH of one daemon alone: what is {what} is not shared by several"
                        if daemon.fleet
                        else f"needs [daemon] state = sqlite:PATH: a table of DynamoDB has no room for what is {what}"
                    )
                    yield Mistake(("mappings", index, key), wants)


def _unknown_function(name: str, known: tuple[str, ...], wanted: str = "a key of [functions]") -> str:
    import difflib

    if near := difflib.get_close_matches(name, known, n=1):
        return f"must be {wanted}; did you mean {near[0]}?"
    if not known:
        return f"must be {wanted}, and there is none"
    return f"must be {wanted}, such as {', '.join(known[:NAMED])}"


def _duplicates(mappings: dict[int, Mapping]) -> Iterator[Mistake]:
    names: dict[str, int] = {}
    routes: dict[tuple[str, str, str | None], int] = {}
    for index, mapping in mappings.items():
        first = names.setdefault(mapping.name, index)
        if first != index:
            yield Mistake(("mappings", index, "name"), f"must be unique: mappings[{first}] has the same name")
        first = routes.setdefault((mapping.event_source_arn, mapping.function, mapping.qualifier), index)
        if first != index:
            wants = f"must differ from mappings[{first}], which has the same source and function"
            yield Mistake(("mappings", index, "event_source_arn"), wants)


def _shared_consumers(mappings: dict[int, Mapping]) -> Iterator[Mistake]:
    owners: dict[str, int] = {}
    for index, mapping in mappings.items():
        # By its text: here an ARN may still be wrong.
        arn, name = mapping.event_source_arn, mapping.enhanced_fan_out
        named = "/consumer/" in arn
        if not (named or name):
            continue
        consumer = arn.rpartition(":")[0] if named else f"{arn}/consumer/{name}"
        first = owners.setdefault(consumer, index)
        if first != index:
            key = "event_source_arn" if named else "enhanced_fan_out"
            wants = (
                f"must be another consumer than that of mappings[{first}]: a consumer has one reader a shard"
            )
            yield Mistake(("mappings", index, key), wants)


def _shared_tables(daemon: Daemon, mappings: dict[int, Mapping]) -> Iterator[Mistake]:
    """A table of the KCL has the shards of one application, and nothing that says of which."""
    owners: dict[tuple[str, str], int] = {}
    for index, mapping in mappings.items():
        if mapping.lease_table is None:
            continue
        at = ("mappings", index, "lease_table")
        if not daemon.shares:
            yield Mistake(
                at, "needs fleet = true, or a state of dynamodb:TABLE, in [daemon]: it is read under leases"
            )
        if mapping.lease_format != "kcl":
            continue
        # By its text: here an ARN may still be wrong.
        region = "".join(mapping.event_source_arn.split(":")[3:4])
        first = owners.setdefault((region, mapping.lease_table), index)
        if first != index:
            wants = (
                f"must be another table than that of mappings[{first}]: the KCL has one for each application"
            )
            yield Mistake(at, wants)
        if daemon.state == f"dynamodb:{mapping.lease_table}":
            yield Mistake(
                at, "must be another table than that of [daemon] state, whose rows the KCL cannot read"
            )


def _divided(daemon: Daemon, mappings: dict[int, Mapping]) -> Iterator[Mistake]:
    for index, mapping in mappings.items():
        if not mapping.scaling_config.fleet_concurrency:
            continue
        at = ("mappings", index, "scaling_config", "fleet_concurrency")
        if mapping.scaling_config.maximum_concurrency is None:
            yield Mistake(at, "goes only with maximum_concurrency: what the daemons divide")
        if not daemon.shares:
            yield Mistake(at, "needs fleet = true, or a state of dynamodb:TABLE, in [daemon]")


def _shared_environment(functions: dict[str, Function]) -> Iterator[Mistake]:
    owners: dict[str, str] = {}
    for name, function in functions.items():
        if function.runtime != "inline":
            continue
        for variable, value in function.environment.items():
            owner = owners.setdefault(variable, name)
            if functions[owner].environment[variable] != value:
                wants = f"must be as in functions.{owner}: inline functions share one environment"
                yield Mistake(("functions", name, "environment", variable), wants)


def _other_functions(functions: dict[str, Function], mappings: dict[int, Mapping]) -> Iterator[Mistake]:
    for index, mapping in mappings.items():
        arn = functions[mapping.function].function_arn if mapping.function in functions else None
        if arn is None:
            continue
        function, qualifier = split_function_arn(arn)
        whole = mapping.function_name.startswith("arn:")
        if whole and split_function_arn(mapping.function_name)[0] != function:
            wants = f"must be as in functions.{mapping.function}.function_arn, or just {mapping.function}"
            yield Mistake(("mappings", index, "function_name"), wants)
        elif qualifier and mapping.qualifier and qualifier != mapping.qualifier:
            wants = f"must name no other qualifier than functions.{mapping.function}.function_arn"
            yield Mistake(("mappings", index, "function_name"), wants)
