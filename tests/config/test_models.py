from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from poller.config import Arn, Aws, Config, Daemon, Function, Mapping, parse
from poller.errors import ConfigError

SQS = "arn:aws:sqs:eu-west-1:123456789012:orders"
FIFO = SQS + ".fifo"
KINESIS = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
CONSUMER = KINESIS + "/consumer/c:1700000000"
DYNAMODB = "arn:aws:dynamodb:eu-west-1:123456789012:table/t-1/stream/2026-01-31T12:00:00.000"


def mapping(arn: str = SQS, **keys: Any) -> Mapping:
    start = {} if ":sqs:" in arn else {"starting_position": "LATEST"}
    return Mapping.model_validate({"name": "m", "event_source_arn": arn, "function_name": "f"} | start | keys)


@pytest.mark.parametrize(("arn", "size"), [(SQS, 10), (FIFO, 10), (KINESIS, 100), (DYNAMODB, 100)])
def test_the_default_batch_size_depends_on_the_source(arn: str, size: int) -> None:
    assert mapping(arn).batch_size == size


def test_a_mapping_knows_its_source_from_the_arn() -> None:
    one = mapping(FIFO)
    assert (one.source, one.region, one.queue_name, one.fifo) == ("sqs", "eu-west-1", "orders.fifo", True)
    assert one.arn == Arn("aws", "sqs", "eu-west-1", "123456789012", "orders.fifo")
    assert str(one.arn) == FIFO
    assert [mapping(arn).source for arn in (SQS, KINESIS, DYNAMODB)] == ["sqs", "kinesis", "dynamodb"]
    assert not mapping(KINESIS).fifo


@pytest.mark.parametrize(
    ("arn", "keys", "consumer", "fans_out", "deaggregates"),
    [
        (KINESIS, {}, None, False, False),
        (KINESIS, {"deaggregate": True}, None, False, True),
        (KINESIS, {"enhanced_fan_out": "c"}, None, True, True),
        (KINESIS, {"enhanced_fan_out": "c", "deaggregate": False}, None, True, False),
        (CONSUMER, {}, CONSUMER, True, True),
        (DYNAMODB, {}, None, False, False),
    ],
)
def test_fan_out_takes_aggregates_apart_unless_the_file_says_otherwise(
    arn: str, keys: dict[str, Any], consumer: str | None, fans_out: bool, deaggregates: bool
) -> None:
    one = mapping(arn, **keys)
    assert (one.arn.consumer, one.fans_out, one.deaggregates) == (consumer, fans_out, deaggregates)
    assert one.arn.stream == (KINESIS if arn == CONSUMER else arn)


@pytest.mark.parametrize(
    ("text", "function", "qualifier"),
    [
        ("orders", "orders", None),
        ("orders:live", "orders", "live"),
        ("orders:$LATEST", "orders", "$LATEST"),
        ("123456789012:function:orders:7", "orders", "7"),
        ("arn:aws:lambda:eu-west-1:123456789012:function:orders", "orders", None),
        ("arn:aws-cn:lambda:cn-north-1:123456789012:function:orders:live", "orders", "live"),
    ],
)
def test_a_function_may_be_named_in_each_of_lambdas_forms(
    text: str, function: str, qualifier: str | None
) -> None:
    one = mapping(function_name=text)
    assert (one.function, one.qualifier) == (function, qualifier)


def test_patterns_are_json_texts_whichever_way_they_were_written() -> None:
    table, text = {"body": {"é": [1, True]}}, '{"body": ["x", null]}'
    one = mapping(filter_criteria={"filters": [{"pattern": table}, {"pattern": text}]})
    assert one.patterns == ('{"body":{"é":[1,true]}}', text)
    assert mapping().patterns == ()


def test_the_file_says_whether_a_function_reports_failed_records() -> None:
    assert mapping(function_response_types=["ReportBatchItemFailures"]).reports_batch_item_failures
    assert not mapping(function_response_types=[]).reports_batch_item_failures


@pytest.mark.parametrize(
    ("keys", "ceiling"),
    [
        ({}, None),
        ({"scaling_config": {}}, None),
        ({"scaling_config": {"maximum_concurrency": 7}}, 7),
        ({"provisioned_poller_config": {"maximum_pollers": 3}}, 30),
        ({"provisioned_poller_config": {"minimum_pollers": 3}}, 2000),
    ],
)
def test_the_ceiling_of_a_mapping_comes_from_either_scaling_table(
    keys: dict[str, Any], ceiling: int | None
) -> None:
    assert mapping(**keys).concurrency == ceiling


def test_a_timestamp_is_kept_as_unix_time() -> None:
    text = mapping_text(
        KINESIS, starting_position="AT_TIMESTAMP", starting_position_timestamp="2026-01-31T13:00:00+01:00"
    ).replace('"2026-01-31T13:00:00+01:00"', "2026-01-31T13:00:00+01:00")
    config = parse(text, where="f", environ={}, now=2e9)
    assert config.mappings[0].starting_position_timestamp == 1_769_860_800


def test_a_mapping_made_without_a_clock_takes_any_timestamp() -> None:
    one = mapping(KINESIS, starting_position="AT_TIMESTAMP", starting_position_timestamp=9e9)
    assert one.starting_position_timestamp == 9e9


def test_a_mapping_made_in_code_names_all_its_mistakes() -> None:
    with pytest.raises(ValidationError, match=r"batch_size must be at most 10.*; maximum_batching_window"):
        mapping(FIFO, batch_size=11, maximum_batching_window_in_seconds=1)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9464", "127.0.0.1", 9464),
        ("[::1]:0", "::1", 0),
        ("localhost:65535", "localhost", 65535),
        ("", "", 0),
    ],
)
def test_the_address_to_listen_on_has_a_host_and_a_port(text: str, host: str, port: int) -> None:
    daemon = Daemon(listen=text)
    assert (daemon.host, daemon.port) == (host, port)


@pytest.mark.parametrize("text", ["a.b:c", "a.b.c", "a/b.c"])
def test_a_handler_is_kept_as_module_colon_function(text: str) -> None:
    assert Function(handler=text).handler == "a.b:c"


@pytest.mark.parametrize("runtime", ["command", "http", "lambda"])
def test_only_python_runtimes_need_a_handler(runtime: str) -> None:
    needed = {"command": {"command": ["./bootstrap"]}, "http": {"url": "http://a"}, "lambda": {}}[runtime]
    assert Function.model_validate({"runtime": runtime, **needed}).handler is None


@pytest.mark.parametrize(("section", "keys"), [(Aws, {}), (Function, {"handler": "m:f"})])
def test_a_role_is_named_by_its_arn(section: type[Aws | Function], keys: dict[str, str]) -> None:
    arn = "arn:aws:iam::123456789012:role/service/poller"
    assert section.model_validate({"role_arn": arn, **keys}).role_arn == arn


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError):
        mapping().name = "other"


def test_the_defaults_are_those_of_lambda_and_of_the_manual() -> None:
    config = parse(mapping_text(SQS), where="f", environ={}, now=0)
    assert config.daemon.model_dump() == {
        "state": "sqlite:poller.db",
        "listen": "127.0.0.1:9464",
        "concurrency": 1000,
        "shutdown_timeout": 30,
        "fleet": False,
        "failover_time": 10,
        "checkpoint_interval": 1,
    }
    assert config.aws.wire == "fast"
    assert not config.aws.model_fields_set
    function = config.functions["f"]
    assert (function.runtime, function.timeout, function.memory_size) == ("inline", 3, 128)
    one = config.mappings[0]
    assert (one.enabled, one.maximum_batching_window_in_seconds, one.parallelization_factor) == (True, 0, 1)
    assert (one.maximum_record_age_in_seconds, one.maximum_retry_attempts) == (-1, -1)
    assert (one.on_poison, one.park_probe_interval_in_seconds, one.parks) == ("give_up", 60, False)
    assert one.destination_config.on_failure is None


# --- any valid mapping ----------------------------------------------------------------------------------------


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("\x7f", "\\u007f")


def mapping_text(arn: str, **keys: Any) -> str:
    keys = {"name": "m", "event_source_arn": arn, "function_name": "f"} | keys
    lines = "\n".join(f"{key} = {toml(value)}" for key, value in keys.items())
    return f'[functions.f]\nhandler = "m:f"\n[[mappings]]\n{lines}\n'


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


PATTERN = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1
)
FILTERS = st.lists(st.fixed_dictionaries({"pattern": PATTERN | PATTERN.map(json.dumps)}), max_size=10)
COMMON = {
    "name": st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    "enabled": st.booleans(),
    "function_response_types": st.sampled_from([[], ["ReportBatchItemFailures"]]),
    "filter_criteria": st.fixed_dictionaries({}, optional={"filters": FILTERS}),
    "metrics_config": st.just({"metrics": ["EventCount"]}),
    "tags": st.dictionaries(st.sampled_from("abc"), st.just("x")),
}
STANDARD = some(
    **COMMON,
    batch_size=st.integers(1, 10_000),
    scaling_config=st.fixed_dictionaries({"maximum_concurrency": st.integers(2, 1000)}),
).flatmap(
    lambda keys: st.integers(1, 300).map(lambda window: keys | {"maximum_batching_window_in_seconds": window})
)


def _spooling(keys: dict[str, Any]) -> dict[str, Any]:
    """What goes only with each other."""
    if "park_probe_interval_in_seconds" in keys:
        keys = keys | {
            "on_poison": "park",
            "maximum_retry_attempts": 3,
            "bisect_batch_on_function_error": True,
        }
    if not keys.keys() & {"spool", "maximum_delivery_attempts"}:
        return keys
    destination = {"on_failure": {"destination": SQS}}
    return keys | {"on_delivery_failure": "spool", "destination_config": destination}


ORDERED = some(**COMMON, batch_size=st.integers(1, 10))
DESTINATION = st.sampled_from(
    [
        "arn:aws:sqs:eu-west-1:123456789012:failed",
        "arn:aws-cn:sqs:cn-north-1:123456789012:failed.fifo",
        "arn:aws:sns:eu-west-1:123456789012:failed",
        "arn:aws:sns:eu-west-1:123456789012:failed.fifo",
        "arn:aws:s3:::bucket.of-failures",
        "arn:aws:events:eu-west-1:123456789012:event-bus/default",
        "arn:aws:events:eu-west-1:123456789012:event-bus/aws.partner/shop.example/orders",
        "arn:aws:lambda:eu-west-1:123456789012:function:undo",
        "arn:aws:lambda:eu-west-1:123456789012:function:undo:$LATEST",
    ]
)
STREAM = some(
    **COMMON,
    batch_size=st.integers(1, 10_000),
    maximum_batching_window_in_seconds=st.integers(0, 300),
    parallelization_factor=st.integers(1, 1000),
    idle_interval_in_seconds=st.floats(0.2, 60),
    bisect_batch_on_function_error=st.booleans(),
    maximum_record_age_in_seconds=st.just(-1) | st.integers(60, 604_800),
    maximum_retry_attempts=st.integers(-1, 10_000),
    destination_config=st.fixed_dictionaries(
        {},
        optional={
            key: st.fixed_dictionaries({"destination": DESTINATION}) for key in ("on_failure", "on_success")
        },
    ),
    spool=st.just({"maximum_entries": 5, "maximum_megabytes": 65_536}),
    maximum_delivery_attempts=st.integers(1, 1000),
    park_probe_interval_in_seconds=st.floats(0, 86_400),
).map(lambda keys: _spooling(keys) | {"starting_position": "TRIM_HORIZON"})


@given(
    st.tuples(st.just(SQS), STANDARD)
    | st.tuples(st.just(FIFO), ORDERED)
    | st.tuples(st.sampled_from([KINESIS, DYNAMODB]), STREAM)
)
def test_any_valid_mapping_survives_the_way_through_a_file(case: tuple[str, dict[str, Any]]) -> None:
    arn, keys = case
    config = parse(mapping_text(arn, **keys), where="f", environ={}, now=0)
    (one,) = config.mappings
    assert one.model_fields_set >= keys.keys()
    assert Mapping.model_validate(one.model_dump(exclude_unset=True)) == one
    again = parse(mapping_text(**_spread(one)), where="f", environ={}, now=0)
    assert again.mappings == config.mappings


def _spread(one: Mapping) -> dict[str, Any]:
    keys = one.model_dump(mode="json", exclude_unset=True)
    return {"arn": keys.pop("event_source_arn"), **keys}


# --- the schema -----------------------------------------------------------------------------------------------


def test_the_schema_describes_every_key() -> None:
    schema = Config.model_json_schema()
    bare = [
        f"{name}.{key}"
        for name, section in {"Config": schema, **schema["$defs"]}.items()
        for key, value in section["properties"].items()
        if not value.get("description")
    ]
    assert bare == []


# --- the state ------------------------------------------------------------------------------------------------


def written(arn: str, daemon: str, **more: Any) -> Config:
    keys: dict[str, Any] = {} if ":sqs:" in arn else {"starting_position": "LATEST"}
    return parse(f"[daemon]\n{daemon}\n{mapping_text(arn, **keys, **more)}", where="f", environ={}, now=0)


@pytest.mark.parametrize("arn", [KINESIS, CONSUMER, DYNAMODB, SQS])
@pytest.mark.parametrize(
    ("daemon", "shares"),
    [
        ('state = "memory:"', False),
        ('state = "sqlite:poller.db"', False),
        ('state = "sqlite:poller.db"\nfleet = true', True),
        ('state = "dynamodb:leases"', True),
        ('state = "dynamodb:leases"\nfleet = false', True),
    ],
)
def test_a_table_is_shared_and_a_file_where_the_file_says_so(arn: str, daemon: str, shares: bool) -> None:
    config = written(arn, daemon)
    assert config.daemon.shares is shares
    assert config.daemon.keeps_spool is not shares


def test_memory_is_not_shared() -> None:
    with pytest.raises(
        ConfigError, match=r"daemon\.fleet.* needs \[daemon\] state = sqlite:PATH or dynamodb:TABLE"
    ):
        written(KINESIS, 'state = "memory:"\nfleet = true')


def test_what_waits_needs_a_state_of_one_daemon() -> None:
    with pytest.raises(ConfigError, match="sqlite:PATH of one daemon alone: what is parked is not shared"):
        written(
            KINESIS, 'state = "sqlite:poller.db"\nfleet = true', on_poison="park", maximum_retry_attempts=1
        )


def test_a_queues_mapping_may_have_both_destinations_and_gives_up_after_its_retries() -> None:
    keys: dict[str, Any] = {
        "maximum_retry_attempts": 0,
        "destination_config": {
            "on_failure": {"destination": "arn:aws:s3:::failed"},
            "on_success": {"destination": "arn:aws:sns:eu-west-1:123456789012:done"},
        },
    }
    (one,) = parse(mapping_text(SQS, **keys), where="f", environ={}, now=0).mappings
    assert one.destinations == {
        "on_failure": "arn:aws:s3:::failed",
        "on_success": "arn:aws:sns:eu-west-1:123456789012:done",
    }


@pytest.mark.parametrize(
    ("destination", "used"),
    [
        ("undo", ["f", "undo"]),
        ("arn:aws:lambda:eu-west-1:123456789012:function:undo:live", ["f", "undo"]),
        ("arn:aws:lambda:eu-west-1:123456789012:function:elsewhere", ["f"]),
        ("arn:aws:sqs:eu-west-1:123456789012:undo", ["f"]),
    ],
)
def test_a_function_is_in_use_when_a_mapping_sends_to_it(destination: str, used: list[str]) -> None:
    text = mapping_text(
        KINESIS,
        starting_position="LATEST",
        destination_config={"on_failure": {"destination": destination}},
    )
    more = '[functions.undo]\nhandler = "m:undo"\n[functions.idle]\nhandler = "m:idle"\n'
    config = parse(more + text, where="f", environ={}, now=0)
    assert list(config.used_functions()) == used
    assert all(mapping is config.mappings[0] for mapping in config.used_functions().values())
