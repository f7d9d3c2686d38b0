"""Each mistake outside a mapping, and between sections, and the one line that the reader gets for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poller.config import load, parse
from poller.config.lines import Lines
from poller.errors import ConfigError
from tests.config.writing import KINESIS, NOW, SQS, only_problem, problems, whole

# --- functions, daemon, aws -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("timeout = 0", "functions.f.timeout = 0: must be at least 1"),
        ("timeout = 901", "functions.f.timeout = 901: must be at most 900"),
        (
            "reserved_concurrent_executions = -1",
            "functions.f.reserved_concurrent_executions = -1: must be at least 0",
        ),
        ("memory_size = 64", "functions.f.memory_size = 64: must be at least 128"),
        (
            'runtime = "java"',
            'functions.f.runtime = "java": must be "inline", "python", "command", "http" or "lambda"',
        ),
        ('runtime = "command"', 'functions.f.command: is required: a list such as ["./bootstrap"]'),
        ('command = ["true"]', 'functions.f.command = ["true"]: goes only with runtime = "command"'),
        ("nice = 3", 'functions.f.nice = 3: goes only with runtime = "python" or "command"'),
        ('runtime = "python"\nnice = 20', "functions.f.nice = 20: must be at most 19"),
        (
            'runtime = "python"\nrole_arn = "arn:aws:iam::123456789012:role/orders"\npass_credentials = true',
            "functions.f.pass_credentials = ***: excludes role_arn: keep one of them",
        ),
        (
            'runtime = "python"\ncode = "orders"\nworking_directory = "."',
            'functions.f.working_directory = ".": excludes code: workers run where their code is',
        ),
        (
            'runtime = "python"\nwatch = true',
            "functions.f.watch = true: goes only with code: the directory or zip file to look at",
        ),
        ('code = "orders"', 'functions.f.code = "orders": goes only with runtime = "python" or "command"'),
        (
            'role_arn = "poller"',
            'functions.f.role_arn = "poller": must be an ARN, like arn:aws:sqs:eu-west-1:123456789012:orders',
        ),
        (
            f'role_arn = "{SQS}"',
            (
                f'functions.f.role_arn = "{SQS}": must be the ARN of an IAM role,'
                " like arn:aws:iam::123456789012:role/poller"
            ),
        ),
        ("environment = { PORT = 1 }", "functions.f.environment.PORT = ***: must be a string"),
        ("environment = 1", "functions.f.environment = ***: must be a table"),
        (
            'environment = { AWS_REGION = "x" }',
            "functions.f.environment.AWS_REGION = ***: is reserved: the runtime sets this variable",
        ),
        (
            'environment = { "1A" = "x" }',
            (
                "functions.f.environment.1A = ***:"
                " must be named by a letter followed by letters, digits or underscores"
            ),
        ),
        (
            'environment = { KEY = "a\\u0000b" }',
            "functions.f.environment.KEY = ***: must hold no NUL character",
        ),
        (
            f'environment = {{ BIG = "{"x" * 4096}" }}',
            "functions.f.environment = ***: must take at most 4096 bytes in all; it takes 4099",
        ),
        ("Timeout = 3", "functions.f.Timeout: unknown key: Timeout is written timeout here"),
    ],
)
def test_a_mistake_in_a_function_has_its_line(keys: str, line: str) -> None:
    assert only_problem(whole(function=keys)) == line


@pytest.mark.parametrize("handler", ["", "module", "module:", ":f", "a b:c", "m:f:g", "1m:f"])
def test_a_handler_names_a_module_and_a_function(handler: str) -> None:
    found = only_problem(whole().replace("m:f", handler))
    assert found == f'functions.f.handler = "{handler}": must be MODULE:FUNCTION or MODULE.FUNCTION'


def test_an_inline_function_needs_a_handler() -> None:
    found = only_problem(whole().replace('handler = "m:f"', ""))
    assert found == "functions.f.handler: is required: MODULE:FUNCTION"


def test_a_function_has_a_name_that_lambda_would_take() -> None:
    found = only_problem(whole(top='[functions."a b"]\nhandler = "m:f"'))
    assert found == ('functions."a b" = {…}: must be named by 1 to 64 letters, digits, dashes or underscores')


@pytest.mark.parametrize(
    ("top", "line"),
    [
        (
            '[daemon]\nstate = "redis:x"',
            'daemon.state = "redis:x": must be memory:, sqlite:PATH or dynamodb:TABLE',
        ),
        ("[daemon]\nconcurrency = 0", "daemon.concurrency = 0: must be at least 1"),
        ("[daemon]\nconcurrency = 100001", "daemon.concurrency = 100001: must be at most 100000"),
        ("[daemon]\nshutdown_timeout = 0", "daemon.shutdown_timeout = 0: must be more than 0"),
        ("[daemon]\nshutdown_timeout = 901", "daemon.shutdown_timeout = 901: must be at most 900"),
        ("[daemon]\nshutdown_timeout = inf", "daemon.shutdown_timeout = Infinity: must be a finite number"),
        ("[daemon]\nshutdown_timeout = []", "daemon.shutdown_timeout = []: must be a number"),
        ("daemon = 1", "daemon = 1: must be a table"),
        ("[aws]\nregion = 1", "aws.region = 1: must be a string"),
        ('[aws]\nwire = "slow"', 'aws.wire = "slow": must be "fast" or "sdk"'),
        ("[aws]\nca_bundle = 1", "aws.ca_bundle = 1: must be a string"),
        (
            '[aws]\nendpoint_url = "http://me:hush@host"',
            'aws.endpoint_url = "http://***@host": must hold no user name and no password: requests are signed',
        ),
        (
            '[aws]\nendpoint_url = "localhost:4566"',
            'aws.endpoint_url = "localhost:4566": must be a URL that begins with http:// or https://',
        ),
        (
            '[aws]\nendpoint_url = "http://user:word@[x"',
            'aws.endpoint_url = "http://***@[x": must be a URL that begins with http:// or https://',
        ),
        (
            '[aws]\nsecret_key = "x"',
            "aws.secret_key: unknown key; known are region, profile, endpoint_url, role_arn, wire, ca_bundle",
        ),
        (
            "[function.g]",
            "function: unknown key; did you mean functions?",
        ),
    ],
)
def test_a_mistake_in_the_rest_of_the_file_has_its_line(top: str, line: str) -> None:
    assert only_problem(whole(top=top)) == line


@pytest.mark.parametrize("listen", ["9464", "localhost", "::1:80", "[::1]", "a:b", "a:65536"])
def test_the_address_to_listen_on_is_host_and_port(listen: str) -> None:
    assert only_problem(whole(top=f'[daemon]\nlisten = "{listen}"')) == (
        f'daemon.listen = "{listen}": must be HOST:PORT, with an IPv6 address in brackets,'
        ' or "" for no HTTP surface'
    )


# --- across sections ------------------------------------------------------------------------------------------


def second(**keys: str) -> str:
    keys = {"name": "n", "event_source_arn": SQS, "function_name": "f"} | keys
    return "[[mappings]]\n" + "\n".join(f'{key} = "{value}"' for key, value in keys.items()) + "\n"


def test_two_mappings_do_not_share_a_name() -> None:
    found = only_problem(whole() + second(name="m", event_source_arn=KINESIS, starting_position="LATEST"))
    assert found == 'mappings[1] "m" name = "m": must be unique: mappings[0] has the same name'


def test_a_source_feeds_a_function_once() -> None:
    found = only_problem(whole() + second(function_name="123456789012:function:f"))
    assert found == (
        f'mappings[1] "n" event_source_arn = "{SQS}": must differ from mappings[0],'
        " which has the same source and function"
    )


def test_a_consumer_of_a_stream_has_one_mapping() -> None:
    consumer = f"{KINESIS}/consumer/fast:1700000000"
    one = second(name="one", event_source_arn=consumer, starting_position="LATEST")
    keys = {"function_name": "f:live", "starting_position": "LATEST"}
    by_arn = second(name="two", event_source_arn=consumer, **keys)
    by_name = second(name="two", event_source_arn=KINESIS, enhanced_fan_out="fast", **keys)
    other = second(name="two", event_source_arn=KINESIS, enhanced_fan_out="slow", **keys)
    wanted = "must be another consumer than that of mappings[1]: a consumer has one reader a shard"
    assert only_problem(whole() + one + by_arn).endswith(f": {wanted}")
    assert only_problem(whole() + one + by_name).endswith(f'enhanced_fan_out = "fast": {wanted}')
    assert len(parse(whole() + one + other, where="f.toml", environ={}, now=NOW).mappings) == 3


def test_a_table_of_the_kcl_has_one_mapping_and_no_rows_of_ours() -> None:
    table = {"lease_table": "app", "lease_format": "kcl", "starting_position": "LATEST"}
    one = second(name="one", event_source_arn=KINESIS, **table)
    two = second(name="two", event_source_arn=KINESIS, function_name="f:live", **table)
    elsewhere = two.replace("eu-west-1", "eu-central-1")
    ours = two.replace('"kcl"', '"poller"')
    fleet = whole(top="[daemon]\nfleet = true")
    wanted = "must be another table than that of mappings[1]: the KCL has one for each application"
    assert only_problem(fleet + one + two) == f'mappings[2] "two" lease_table = "app": {wanted}'
    for other in (elsewhere, ours):
        assert len(parse(fleet + one + other, where="f.toml", environ={}, now=NOW).mappings) == 3
    wanted = "needs fleet = true, or a state of dynamodb:TABLE, in [daemon]: it is read under leases"
    for alone in (one, ours.replace("two", "one")):
        assert only_problem(whole() + alone) == f'mappings[1] "one" lease_table = "app": {wanted}'
    state = whole(top='[daemon]\nstate = "dynamodb:app"')
    wanted = "must be another table than that of [daemon] state, whose rows the KCL cannot read"
    assert only_problem(state + one) == f'mappings[1] "one" lease_table = "app": {wanted}'


def test_what_daemons_divide_needs_a_number_and_a_state_that_they_share() -> None:
    divided = "scaling_config.fleet_concurrency = true"
    number = "\nscaling_config.maximum_concurrency = 4"
    at = 'mappings[0] "m" scaling_config.fleet_concurrency = true: '
    fleet = "[daemon]\nfleet = true"
    wanted = "goes only with maximum_concurrency: what the daemons divide"
    assert only_problem(whole(divided, top=fleet)) == at + wanted
    wanted = "needs fleet = true, or a state of dynamodb:TABLE, in [daemon]"
    assert only_problem(whole(divided + number)) == at + wanted
    for shared in (fleet, '[daemon]\nstate = "dynamodb:leases"'):
        text = whole(divided + number, top=shared)
        assert parse(text, where="f.toml", environ={}, now=NOW).mappings[0].scaling_config.fleet_concurrency


def test_a_source_may_feed_a_function_and_its_alias() -> None:
    config = parse(whole() + second(function_name="f:live"), where="f.toml", environ={}, now=NOW)
    assert len(config.mappings) == 2


@pytest.mark.parametrize(
    ("functions", "name", "wants"),
    [
        (
            "[functions.orders]\nhandler = 'm:f'\n",
            "order:live",
            "must be a key of [functions]; did you mean orders?",
        ),
        (
            "[functions.a]\nhandler = 'm:f'\n[functions.b]\nhandler = 'm:f'\n",
            "zzz",
            "must be a key of [functions], such as a, b",
        ),
        ("", "f", "must be a key of [functions], and there is none"),
    ],
)
def test_a_function_that_is_not_in_the_file_is_named_with_the_nearest(
    functions: str, name: str, wants: str
) -> None:
    found = only_problem(functions + second(function_name=name))
    assert found == f'mappings[0] "n" function_name = "{name}": {wants}'


def test_inline_functions_do_not_differ_about_a_variable() -> None:
    top = "[functions.e]\nhandler = 'm:e'\nenvironment = { AB = 'one', CD = 'same' }"
    found = only_problem(whole(top=top, function="environment = { AB = 'two', CD = 'same' }"))
    assert found == (
        "functions.f.environment.AB = ***: must be as in functions.e: inline functions share one environment"
    )


def test_a_function_of_another_runtime_has_an_environment_of_its_own() -> None:
    top = "[functions.e]\nruntime = 'command'\ncommand = ['e']\nenvironment = { AB = 'one' }"
    text = whole(top=top, function="environment = { AB = 'two' }")
    assert len(parse(text, where="f.toml", environ={}, now=NOW).functions) == 2


@pytest.mark.parametrize("text", ["", "[functions]\n", "mappings = []"])
def test_a_file_without_mappings_has_nothing_to_do(text: str) -> None:
    assert problems(text) == ["f.toml: nothing to do: there is no [[mappings]]"]


def test_sections_of_the_wrong_kind_are_named() -> None:
    assert problems("functions = 1\n[mappings]\na = 1") == [
        "f.toml:1: functions = 1: must be a table",
        "f.toml:2: mappings = {…}: must be a list of tables, each under [[mappings]]",
    ]
    assert problems('mappings = ["x"]') == ['f.toml:1: mappings[0] = "x": must be a table']


def test_a_missing_module_is_found_when_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(whole(), where="f.toml", environ={}, now=NOW, importable=lambda module: module != "m")
    assert caught.value.problems == (
        'f.toml:3: functions.f.handler = "m:f": names a module that is neither here nor on Python\'s path',
    )


def test_every_mistake_is_named_in_one_run_in_the_order_of_the_file() -> None:
    text = Path("tests/config/wrong.toml").read_text()
    assert problems(text) == [
        (
            'f.toml:4: daemon.listen = "nowhere": must be HOST:PORT, with an IPv6 address in brackets,'
            ' or "" for no HTTP surface'
        ),
        "f.toml:5: daemon.concurency: unknown key; did you mean concurrency?",
        (
            'f.toml:10: functions.orders.description = "${ABOUT}": needs the environment variable ABOUT,'
            " which is not set"
        ),
        "f.toml:11: functions.orders.timeout = 1000: must be at most 900",
        (
            'f.toml:17: mappings[0] "orders" function_name = "order": must be a key of [functions];'
            " did you mean orders?"
        ),
        'f.toml:18: mappings[0] "orders" batch_size = 5000000: must be at most 10000',
        'f.toml:19: mappings[0] "orders" scaling_config.maximum_concurrency = 1: must be at least 2',
        'f.toml:22: mappings[1] "orders" name = "orders": must be unique: mappings[0] has the same name',
        'f.toml:25: mappings[1] "orders" batch_size = 100: must be at most 10 for a FIFO queue',
        (
            'f.toml:26: mappings[1] "orders" maximum_batching_window_in_seconds = 5: must be 0: FIFO queues have'
            " no batching window"
        ),
        (
            'f.toml:28: mappings[2] "clicks" starting_position: is required for a stream: TRIM_HORIZON, LATEST or'
            " AT_TIMESTAMP"
        ),
    ]


# --- the file -------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ={}, now=NOW)
    (line,) = caught.value.problems
    return line.removeprefix(f"{path}: ")


def test_a_file_that_is_not_there_or_not_a_file_is_one_problem(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == "there is no such file"
    assert refusal(tmp_path) == "must be a file; it is a directory"


def test_a_file_that_may_not_be_read_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert refusal(tmp_path / "f.toml") == "cannot be read: Permission denied"


def test_a_file_in_another_encoding_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes("# é".encode("latin-1"))
    assert refusal(path) == "must be UTF-8 text; byte 2 is not"


def test_a_file_that_is_valid_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(whole())
    assert load(path, environ={}, now=NOW).mappings[0].name == "m"


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(whole(), encoding="utf-8-sig")
    assert load(path, environ={}, now=NOW).mappings[0].name == "m"


def test_what_is_not_toml_is_one_problem_with_its_place() -> None:
    (line,) = problems("[daemon\n")
    assert line.startswith("f.toml: must be TOML: ")
    assert "line 1" in line


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a = " + "[" * 250 + "]" * 250, ".".join("a" * 999) + " = 1"]
)
def test_a_file_too_deep_for_any_stack_is_one_problem(text: str) -> None:
    assert problems(text) == ["f.toml: must not nest tables and lists deeper than 200"]


def test_lines_are_found_in_every_way_to_write_toml() -> None:
    lines = Lines(
        'a.b = 1\n[c]\n"d e" = """\nx = 1\n"""\nf = \'\'\'\n"""\n\'\'\'\n[[g]]\nh = 1\n[g.i]\nj = 1\n[[g]]\nh = 2\n'
        "[[g.k]]\nl = 1\n"
    )
    found: dict[tuple[str | int, ...], int] = {
        ("a", "b"): 1,
        ("c",): 2,
        ("c", "d e"): 3,
        ("c", "f"): 6,
        ("c", "x"): 2,
        ("g", 0): 9,
        ("g", 0, "h"): 10,
        ("g", 0, "i", "j"): 12,
        ("g", 1, "h"): 14,
        ("g", 1, "k", 0, "l"): 16,
        ("g", 1, "k", 0, "m"): 15,
    }
    assert {at: lines.of(at) for at in found} == found
    assert lines.of(("z",)) is None
