"""Each mistake in a mapping and the one line that the reader gets for it."""

from __future__ import annotations

import json

import pytest

from poller.config import parse, warnings
from poller.core.breaker import CircuitPolicy
from tests.config.writing import DYNAMODB, KINESIS, NOW, SQS, only_problem, problems, whole

PARKING = 'on_poison = "park"\nmaximum_retry_attempts = 3\n'
#: What nothing can be sent to.
NO_DESTINATIONS = (
    DYNAMODB,
    KINESIS,
    "https://sqs.eu-west-1.amazonaws.com/123456789012/failed",
    "arn:aws:s3:::Bucket",
    "arn:aws:sqs:eu-west-1::failed",
    "arn:aws:sns::123456789012:failed",
    "arn:aws:sns:eu-west-1:123456789012:failed:subscription",
    "arn:aws:events:eu-west-1:123456789012:rule/failed",
    "arn:aws:lambda:eu-west-1:123456789012:layer:failed",
    "a function",
    "",
)


def _no_destination(key: str, text: str) -> str:
    shown = f"{text[:58]}…" if len(text) > 58 else f'{text}"'
    return (
        f'destination_config.{key}.destination = "{shown}: must be the ARN of an SQS queue, an SNS topic, an S3 bucket, an'
        " EventBridge event bus or a Lambda function, or a key of [functions]"
    )


QUEUE = [
    ("batch_size = 0", "batch_size = 0: must be at least 1"),
    ("batch_size = 5000000", "batch_size = 5000000: must be at most 10000"),
    ('batch_size = "many"', 'batch_size = "many": must be a whole number'),
    ("batch_size = 1.5", "batch_size = 1.5: must be a whole number"),
    ("batch_size = true", "batch_size = true: must be a number"),
    ("batch_size = []", "batch_size = []: must be a whole number"),
    ("batch_size = {a = 1}", "batch_size = {…}: must be a whole number"),
    (
        "batch_size = 11",
        "batch_size = 11: must be at most 10 unless maximum_batching_window_in_seconds is at least 1",
    ),
    (
        "maximum_batching_window_in_seconds = 301",
        "maximum_batching_window_in_seconds = 301: must be at most 300",
    ),
    ("enabled = 7", "enabled = 7: must be true or false"),
    ("enabled = []", "enabled = []: must be true or false"),
    (
        'function_response_types = ["Other"]',
        'function_response_types[0] = "Other": must be "ReportBatchItemFailures"',
    ),
    ("function_response_types = 1", "function_response_types = 1: must be a list"),
    (
        'function_response_types = ["ReportBatchItemFailures", "ReportBatchItemFailures"]',
        (
            'function_response_types = ["ReportBatchItemFailures", "ReportBatchItemFailures"]:'
            " must have at most 1 entries"
        ),
    ),
    ("scaling_config = 5", "scaling_config = 5: must be a table"),
    (
        "scaling_config.maximum_concurrency = 1",
        "scaling_config.maximum_concurrency = 1: must be at least 2",
    ),
    (
        "scaling_config.maximum_concurrency = 1001",
        "scaling_config.maximum_concurrency = 1001: must be at most 1000",
    ),
    (
        "provisioned_poller_config = {}",
        "provisioned_poller_config = {…}: must have minimum_pollers, maximum_pollers or both",
    ),
    (
        "provisioned_poller_config.minimum_pollers = 201",
        "provisioned_poller_config.minimum_pollers = 201: must be at most 200",
    ),
    (
        "provisioned_poller_config.maximum_pollers = 1",
        "provisioned_poller_config.maximum_pollers = 1: must be at least 2",
    ),
    (
        "provisioned_poller_config = { minimum_pollers = 5, maximum_pollers = 4 }",
        "provisioned_poller_config.maximum_pollers = 4: must be at least minimum_pollers",
    ),
    (
        "scaling_config.maximum_concurrency = 2\nprovisioned_poller_config.maximum_pollers = 4",
        "provisioned_poller_config = {…}: excludes scaling_config.maximum_concurrency: keep one of them",
    ),
    (
        'starting_position = "LATEST"',
        (
            'starting_position = "LATEST": does not apply to this source:'
            " it is for Kinesis and DynamoDB streams only"
        ),
    ),
    (
        "starting_position_timestamp = 1",
        "starting_position_timestamp = 1: does not apply to this source: it is for Kinesis streams only",
    ),
    (
        "idle_interval_in_seconds = 1",
        (
            "idle_interval_in_seconds = 1: does not apply to this source:"
            " it is for Kinesis and DynamoDB streams only"
        ),
    ),
    (
        "deaggregate = true",
        "deaggregate = true: does not apply to this source: it is for Kinesis streams only",
    ),
    (
        'lease_table = "app"',
        'lease_table = "app": does not apply to this source: it is for Kinesis streams only',
    ),
    (
        'destination_config.on_failure.destination = "arn:aws:s3:::bucket"',
        ("maximum_retry_attempts: is required with destination_config.on_failure for a queue: 0 to 10000"),
    ),
    (
        "maximum_retry_attempts = 3",
        (
            "maximum_retry_attempts = 3: goes only with destination_config.on_failure for a queue:"
            " without, its redrive policy gives up"
        ),
    ),
    (
        f'maximum_retry_attempts = 3\ndestination_config.on_failure.destination = "{SQS}"',
        (
            f'destination_config.on_failure.destination = "{SQS}": must be another queue than the source:'
            " what goes there would come back from it"
        ),
    ),
    (
        "circuit_breaker.consecutive_failures = 0",
        "circuit_breaker.consecutive_failures = 0: must be at least 1",
    ),
    ("circuit_breaker.pause_in_seconds = 0.5", "circuit_breaker.pause_in_seconds = 0.5: must be at least 1"),
    (
        "circuit_breaker.pause_in_seconds = 400",
        ("circuit_breaker.pause_in_seconds = 400: must be at most maximum_pause_in_seconds, which is 300"),
    ),
    (
        "circuit_breaker.maximum_pause_in_seconds = 5",
        "circuit_breaker.maximum_pause_in_seconds = 5: must be at least pause_in_seconds, which is 10",
    ),
    (
        "circuit_breaker.failures = 5",
        (
            "circuit_breaker.failures: unknown key;"
            " known are consecutive_failures, pause_in_seconds, maximum_pause_in_seconds"
        ),
    ),
    (
        'on_delivery_failure = "drop"',
        'on_delivery_failure = "drop": must be "retry" or "spool"',
    ),
    (
        'on_delivery_failure = "spool"',
        'on_delivery_failure = "spool": goes only with a destination in destination_config',
    ),
    (
        "maximum_delivery_attempts = 3",
        'maximum_delivery_attempts = 3: goes only with on_delivery_failure = "spool"',
    ),
    ("maximum_delivery_attempts = 0", "maximum_delivery_attempts = 0: must be at least 1"),
    (
        "spool.maximum_entries = 3",
        'spool = {…}: goes only with on_delivery_failure = "spool"',
    ),
    (
        'on_poison = "park"',
        'on_poison = "park": does not apply to this source: it is for Kinesis and DynamoDB streams only',
    ),
    ("spool.maximum_megabytes = 0", "spool.maximum_megabytes = 0: must be at least 1"),
    (
        'metrics_config.metrics = ["ErrorCount"]',
        'metrics_config.metrics[0] = "ErrorCount": must be "EventCount"',
    ),
    (
        f'kms_key_arn = "{SQS}"',
        f'kms_key_arn = "{SQS}": must be the ARN of a KMS key, like arn:aws:kms:eu-west-1:123456789012:key/…',
    ),
    ("tags = { a = 1 }", "tags.a = 1: must be a string"),
    ("BatchSize = 1", "BatchSize: unknown key: BatchSize is written batch_size here"),
    ("batchsize = 1", "batchsize: unknown key: batchsize is written batch_size here"),
    ("batch_sice = 1", "batch_sice: unknown key; did you mean batch_size?"),
    (
        'scaling_config."a\\nb" = 1',
        'scaling_config."a\\nb": unknown key; known are maximum_concurrency, fleet_concurrency',
    ),
    (
        "filter_criteria.filters = [{ Pattern = {} }]",
        "filter_criteria.filters[0].pattern: is required",
    ),
    (
        "filter_criteria.filters = [{ pattern = 1 }]",
        "filter_criteria.filters[0].pattern = 1: must be a table or a string of JSON",
    ),
    (
        "filter_criteria.filters = [{ pattern = { body = [2026-01-01] } }]",
        "filter_criteria.filters[0].pattern = {…}: must hold what JSON can say: no dates, no nan, no inf",
    ),
    (
        "filter_criteria.filters = [{ pattern = { body = [nan] } }]",
        "filter_criteria.filters[0].pattern = {…}: must hold what JSON can say: no dates, no nan, no inf",
    ),
    (
        f"filter_criteria.filters = [{{ pattern = '{'x' * 4097}' }}]",
        f'filter_criteria.filters[0].pattern = "{"x" * 58}…: must have at most 4096 characters',
    ),
    (
        "filter_criteria.filters = [" + "{ pattern = { body = ['a'] } }," * 11 + "]",
        "filter_criteria.filters = […]: must have at most 10 entries",
    ),
]

FIFO = [
    ("batch_size = 11", "batch_size = 11: must be at most 10 for a FIFO queue"),
    (
        "maximum_batching_window_in_seconds = 1",
        "maximum_batching_window_in_seconds = 1: must be 0: FIFO queues have no batching window",
    ),
]

STREAM = [
    ("parallelization_factor = 0", "parallelization_factor = 0: must be at least 1"),
    ("parallelization_factor = 1001", "parallelization_factor = 1001: must be at most 1000"),
    ("idle_interval_in_seconds = 0.1", "idle_interval_in_seconds = 0.1: must be at least 0.2"),
    ("idle_interval_in_seconds = 61", "idle_interval_in_seconds = 61: must be at most 60"),
    ("idle_interval_in_seconds = true", "idle_interval_in_seconds = true: must be a number"),
    ("deaggregate = 3", "deaggregate = 3: must be true or false"),
    ("maximum_retry_attempts = -2", "maximum_retry_attempts = -2: must be at least -1"),
    ("maximum_record_age_in_seconds = -2", "maximum_record_age_in_seconds = -2: must be at least -1"),
    (
        "maximum_record_age_in_seconds = 59",
        "maximum_record_age_in_seconds = 59: must be -1 (no limit) or 60 to 604800",
    ),
    (
        "maximum_record_age_in_seconds = 604801",
        "maximum_record_age_in_seconds = 604801: must be at most 604800",
    ),
    ("tumbling_window_in_seconds = 901", "tumbling_window_in_seconds = 901: must be at most 900"),
    (
        "tumbling_window_in_seconds = 5\nparallelization_factor = 2",
        "tumbling_window_in_seconds = 5: excludes a parallelization_factor above 1",
    ),
    ('on_poison = "drop"', 'on_poison = "drop": must be "give_up" or "park"'),
    (
        'on_poison = "park"',
        'on_poison = "park": needs maximum_retry_attempts, 0 or more: without an end of them nothing is parked',
    ),
    (
        f"{PARKING}tumbling_window_in_seconds = 5",
        'on_poison = "park": excludes tumbling_window_in_seconds: a window has no room for what comes later',
    ),
    (
        f"{PARKING}bisect_batch_on_function_error = false",
        (
            "bisect_batch_on_function_error = false:"
            ' must be true, or left out, with on_poison = "park", which bisects'
        ),
    ),
    (
        f"{PARKING}park_probe_interval_in_seconds = -1",
        "park_probe_interval_in_seconds = -1: must be at least 0",
    ),
    (
        f"{PARKING}park_probe_interval_in_seconds = 86401",
        "park_probe_interval_in_seconds = 86401: must be at most 86400",
    ),
    (
        "park_probe_interval_in_seconds = 60",
        'park_probe_interval_in_seconds = 60: goes only with on_poison = "park"',
    ),
    (
        "spool.maximum_entries = 3",
        'spool = {…}: goes only with on_delivery_failure = "spool" or on_poison = "park"',
    ),
    (
        (
            "tumbling_window_in_seconds = 5\n"
            "filter_criteria.filters = [{ pattern = { eventName = ['INSERT'] } }]"
        ),
        "tumbling_window_in_seconds = 5: excludes filter_criteria: keep one of them",
    ),
    (
        "scaling_config.maximum_concurrency = 2",
        "scaling_config = {…}: does not apply to this source: it is for SQS queues only",
    ),
    (
        f'destination_config.on_failures.destination = "{SQS}"',
        "destination_config.on_failures: unknown key; did you mean on_failure?",
    ),
    *(
        (f'destination_config.{key}.destination = "{text}"', _no_destination(key, text))
        for key in ("on_failure", "on_success")
        for text in NO_DESTINATIONS
    ),
    (
        'destination_config.on_failure.destination = "f"',
        'destination_config.on_failure.destination = "f": must be another function than that of the mapping',
    ),
    (
        'destination_config.on_success.destination = "arn:aws:lambda:eu-west-1:123456789012:function:f:live"',
        (
            'destination_config.on_success.destination = "arn:aws:lambda:eu-west-1:123456789012:function:f:live":'
            " must be another function than that of the mapping"
        ),
    ),
    (
        'destination_config.on_failure.destination = "ff"',
        (
            'destination_config.on_failure.destination = "ff":'
            " must be an ARN or a key of [functions]; did you mean f?"
        ),
    ),
    (
        'destination_config.on_failure.destination = "undo"',
        (
            'destination_config.on_failure.destination = "undo":'
            " must be an ARN or a key of [functions], such as f"
        ),
    ),
]

POSITION = [
    (KINESIS, "", "starting_position: is required for a stream: TRIM_HORIZON, LATEST or AT_TIMESTAMP"),
    (DYNAMODB, "", "starting_position: is required for a stream: TRIM_HORIZON or LATEST"),
    (
        KINESIS,
        'starting_position = "latest"',
        'starting_position = "latest": must be "TRIM_HORIZON", "LATEST" or "AT_TIMESTAMP"',
    ),
    (
        DYNAMODB,
        'starting_position = "AT_TIMESTAMP"',
        'starting_position = "AT_TIMESTAMP": must be TRIM_HORIZON or LATEST for a DynamoDB stream',
    ),
    (
        KINESIS,
        'starting_position = "AT_TIMESTAMP"',
        "starting_position_timestamp: is required with AT_TIMESTAMP",
    ),
    (
        KINESIS,
        'starting_position = "LATEST"\nstarting_position_timestamp = 1',
        'starting_position_timestamp = 1: goes only with starting_position = "AT_TIMESTAMP"',
    ),
    (
        KINESIS,
        'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = 1800000001',
        "starting_position_timestamp = 1800000001: must not lie in the future",
    ),
    (
        KINESIS,
        'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = 2026-01-31T12:00:00',
        (
            'starting_position_timestamp = "2026-01-31 12:00:00":'
            " must name its offset from UTC, like 2026-01-31T12:00:00Z"
        ),
    ),
    (
        KINESIS,
        'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = "soon"',
        'starting_position_timestamp = "soon": must be a number',
    ),
    (
        KINESIS,
        'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = nan',
        "starting_position_timestamp = NaN: must be a finite number",
    ),
    (
        KINESIS,
        'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = -1',
        "starting_position_timestamp = -1: must be at least 0",
    ),
]


FAN_OUT = [
    (
        KINESIS,
        'enhanced_fan_out = "a b"',
        'enhanced_fan_out = "a b": must be 1 to 128 letters, digits, dots, dashes or underscores',
    ),
    (
        f"{KINESIS}/consumer/c:1",
        'enhanced_fan_out = "c"',
        'enhanced_fan_out = "c": excludes an event_source_arn that names a consumer already',
    ),
    (
        DYNAMODB,
        'enhanced_fan_out = "c"',
        'enhanced_fan_out = "c": does not apply to this source: it is for Kinesis streams only',
    ),
    (
        DYNAMODB,
        "deaggregate = false",
        "deaggregate = false: does not apply to this source: it is for Kinesis streams only",
    ),
]


LEASES = [
    (
        KINESIS,
        'lease_table = "a b"',
        (
            'lease_table = "a b": must be the name of a DynamoDB table: 3 to 255 letters, digits, dots, dashes or'
            " underscores"
        ),
    ),
    (KINESIS, 'lease_format = "kcl"', 'lease_format = "kcl": goes only with lease_table'),
    (
        KINESIS,
        'lease_table = "app"\nlease_format = "kcl"\ntumbling_window_in_seconds = 60',
        (
            'lease_format = "kcl": excludes tumbling_window_in_seconds: a table of the KCL has no room for the state of a'
            " window"
        ),
    ),
    (
        DYNAMODB,
        'lease_table = "app"',
        'lease_table = "app": does not apply to this source: it is for Kinesis streams only',
    ),
]


@pytest.mark.parametrize(("keys", "line"), QUEUE)
def test_a_mistake_in_a_queues_mapping_has_its_line(keys: str, line: str) -> None:
    if "Pattern" in keys:
        return check_two_lines(keys, line)
    assert only_problem(whole(keys)) == f'mappings[0] "m" {line}'
    return None


def check_two_lines(keys: str, line: str) -> None:
    first, second = problems(whole(keys))
    assert first.endswith(line)
    assert second.endswith("filters[0].Pattern: unknown key: Pattern is written pattern here")


@pytest.mark.parametrize(("keys", "line"), FIFO)
def test_a_mistake_in_a_fifo_queues_mapping_has_its_line(keys: str, line: str) -> None:
    found = only_problem(whole(keys, arn=SQS + ".fifo"))
    assert found == f'mappings[0] "m" {line}'


@pytest.mark.parametrize("arn", [KINESIS, DYNAMODB])
@pytest.mark.parametrize(("keys", "line"), STREAM)
def test_a_mistake_in_a_streams_mapping_has_its_line(arn: str, keys: str, line: str) -> None:
    if arn == KINESIS:
        keys = keys.replace("eventName", "partitionKey")
    found = only_problem(whole(f'starting_position = "LATEST"\n{keys}', arn=arn))
    assert found == f'mappings[0] "m" {line}'


@pytest.mark.parametrize(("arn", "keys", "line"), POSITION)
def test_a_wrong_starting_position_has_its_line(arn: str, keys: str, line: str) -> None:
    assert only_problem(whole(keys, arn=arn)) == f'mappings[0] "m" {line}'


@pytest.mark.parametrize(("arn", "keys", "line"), LEASES)
def test_a_mistake_about_lease_tables_has_its_line(arn: str, keys: str, line: str) -> None:
    found = only_problem(whole(f'starting_position = "LATEST"\n{keys}', arn=arn))
    assert found == f'mappings[0] "m" {line}'


@pytest.mark.parametrize(("arn", "keys", "line"), FAN_OUT)
def test_a_mistake_about_fan_out_has_its_line(arn: str, keys: str, line: str) -> None:
    found = only_problem(whole(f'starting_position = "LATEST"\n{keys}', arn=arn))
    assert found == f'mappings[0] "m" {line}'


@pytest.mark.parametrize(
    ("arn", "wants"),
    [
        ("orders", "must be an ARN, like arn:aws:sqs:eu-west-1:123456789012:orders"),
        ("https://sqs.eu-west-1.amazonaws.com/1/orders", "must be the ARN of the source, not its URL"),
        (
            "arn:aws:dynamodb:eu-west-1:123456789012:table/orders",
            "must be the ARN of the table's stream, which ends in /stream/ and a time",
        ),
        (
            "arn:aws:s3:::bucket",
            "must be the ARN of an SQS queue, a Kinesis stream or its consumer, or a DynamoDB stream",
        ),
        (
            "arn:aws:sqs:::orders",
            "must be the ARN of an SQS queue, a Kinesis stream or its consumer, or a DynamoDB stream",
        ),
    ],
)
def test_a_source_that_no_mapping_can_read_has_its_line(arn: str, wants: str) -> None:
    assert only_problem(whole(arn=arn)) == f'mappings[0] "m" event_source_arn = "{arn}": {wants}'


def test_keys_that_must_be_there_are_named() -> None:
    assert problems("[[mappings]]") == [
        "f.toml:1: mappings[0] name: is required",
        "f.toml:1: mappings[0] event_source_arn: is required",
        "f.toml:1: mappings[0] function_name: is required",
    ]


@pytest.mark.parametrize("name", ["", "a b", "x" * 65])
def test_a_mapping_has_a_plain_name(name: str) -> None:
    found = only_problem(whole().replace('name = "m"', f'name = "{name}"', 1))
    assert found.endswith(": must be 1 to 64 letters, digits, dots, dashes or underscores")


def test_a_function_name_has_one_of_lambdas_forms() -> None:
    assert only_problem(whole().replace('function_name = "f"', 'function_name = "f:g:h:i"')) == (
        'mappings[0] "m" function_name = "f:g:h:i": must be NAME, NAME:QUALIFIER,'
        " ACCOUNT:function:NAME or the ARN of a function"
    )


# --- filters --------------------------------------------------------------------------------------------------

REFUSED = [
    "null",
    '"text"',
    "text",
    "{",
    "{}",
    '{"eventSource": "aws:sqs"}',
    '{"a": []}',
    '{"a": [{"no": 1}]}',
]


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_that_lambda_refuses_is_refused_here_with_the_reason(pattern: str) -> None:
    found = only_problem(whole(f"filter_criteria.filters = [{{ pattern = '{pattern}' }}]"))
    start = f'mappings[0] "m" filter_criteria.filters[0].pattern = {json.dumps(pattern)}: '
    assert found.startswith(start + "must be a filter pattern that Lambda accepts: ")


def test_each_bad_pattern_has_its_own_line() -> None:
    text = whole(
        "filter_criteria.filters = [{ pattern = 'x' }, { pattern = { body = ['a'] } }, { pattern = 'y' }]"
    )
    first, second = problems(text)
    assert "filters[0].pattern" in first
    assert "filters[2].pattern" in second


def test_a_pattern_that_aws_does_not_document_is_allowed_with_a_warning() -> None:
    text = whole("filter_criteria.filters = [{ pattern = { messageId = ['a'] } }]")
    (warning,) = warnings(parse(text, where="f.toml", environ={}, now=NOW))
    assert warning.startswith('mapping "m": messageId: ')


def test_a_function_that_throttles_its_own_mappings_is_worth_a_warning() -> None:
    text = whole("scaling_config.maximum_concurrency = 5", function="reserved_concurrent_executions = 4")
    assert warnings(parse(text, where="f.toml", environ={}, now=NOW)) == (
        (
            "functions.f: reserved_concurrent_executions is below the concurrency of its mappings, 5 in all,"
            " so it will throttle them"
        ),
    )


@pytest.mark.parametrize(("retries", "warned"), [(-1, False), (4, True), (5, False)])
def test_a_circuit_breaker_that_opens_after_batches_are_given_up_is_worth_a_warning(
    retries: int, warned: bool
) -> None:
    keys = f"""
        starting_position = "LATEST"
        maximum_retry_attempts = {retries}
        circuit_breaker.consecutive_failures = 5
    """
    found = warnings(parse(whole(keys, arn=KINESIS), where="f.toml", environ={}, now=NOW))
    line = (
        'mapping "m": circuit_breaker.consecutive_failures, 5, is above maximum_retry_attempts, 4,'
        " so a batch may be given up before the circuit opens"
    )
    assert found == ((line,) if warned else ())


def test_a_circuit_breaker_is_off_unless_it_is_asked_for() -> None:
    without = parse(whole(""), where="f.toml", environ={}, now=NOW).mappings[0]
    assert without.circuit is None
    defaults = parse(whole("circuit_breaker = {}"), where="f.toml", environ={}, now=NOW).mappings[0]
    assert defaults.circuit == CircuitPolicy(consecutive_failures=10, pause=10, maximum_pause=300)


SPOOLING = f'on_delivery_failure = "spool"\ndestination_config.on_failure.destination = "{SQS}"\n'


@pytest.mark.parametrize(
    ("keys", "at", "what"),
    [
        (SPOOLING, 'on_delivery_failure = "spool"', "spooled"),
        (PARKING, 'on_poison = "park"', "parked"),
        (SPOOLING + PARKING, "", "spooled and parked"),
    ],
)
@pytest.mark.parametrize("state", ["sqlite:x.db", "memory:", "dynamodb:leases"])
def test_what_waits_needs_a_state_that_has_a_place_for_it_and_one_that_lasts(
    state: str, keys: str, at: str, what: str
) -> None:
    top = f'[daemon]\nstate = "{state}"'
    text = whole(f'starting_position = "LATEST"\n{keys}', arn=KINESIS, top=top)
    if state != "dynamodb:leases":
        said = f'mapping "m": what is {what} ends with the process, as [daemon] state is memory:'
        found = warnings(parse(text, where="f.toml", environ={}, now=NOW))
        assert found == ((said,) if state == "memory:" else ())
    elif at:
        assert only_problem(text) == (
            f'mappings[0] "m" {at}: needs [daemon] state = sqlite:PATH:'
            f" a table of DynamoDB has no room for what is {what}"
        )
    else:
        assert len(problems(text)) == 2
