"""Functions behind a URL and in Lambda: each mistake has its line, and no secret is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from poller.app import fitness, functions
from poller.config import Config, Function, Mapping, parse
from tests.config.writing import NOW, SQS, only_problem, problems

if TYPE_CHECKING:
    from pathlib import Path

HTTP = 'runtime = "http"\nurl = "https://orders.example/invoke"\n'
LAMBDA = "arn:aws:lambda:us-east-1:210987654321:function:orders"


def file(function: str, function_name: str = "f") -> str:
    return (
        f"[functions.f]\n{function}\n"
        f'[[mappings]]\nname = "m"\nevent_source_arn = "{SQS}"\nfunction_name = "{function_name}"\n'
    )


def read(text: str, **environ: str) -> Config:
    return parse(text, where="f.toml", environ=environ, now=NOW)


def function(**keys: Any) -> Function:
    return Function.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ('runtime = "http"', "functions.f.url: is required: where the event is posted to"),
        (HTTP + "connect_timeout = 0", "functions.f.connect_timeout = 0: must be more than 0"),
        (HTTP + "connect_timeout = 61", "functions.f.connect_timeout = 61: must be at most 60"),
        (HTTP + "headers = { X = 1 }", "functions.f.headers.X = ***: must be a string"),
        (
            HTTP + 'headers = { "X Y" = "1" }',
            'functions.f.headers."X Y" = ***: must be named as HTTP allows: letters, digits and dashes',
        ),
        (
            HTTP + 'headers = { lambda-runtime-trace-id = "1" }',
            "functions.f.headers.lambda-runtime-trace-id = ***: is reserved: poller sets this header",
        ),
        (
            HTTP + 'headers = { X-A = "1", x-a = "2" }',
            "functions.f.headers.x-a = ***: must be there once: upper and lower case make no difference",
        ),
        (
            HTTP + f'headers = {{ X = "{"x" * 6144}" }}',
            "functions.f.headers = ***: must take at most 6144 bytes in all; it takes 6145",
        ),
        (
            HTTP + 'handler = "m:f"',
            'functions.f.handler = "m:f": goes only with runtime = "inline", "python" or "command"',
        ),
        (
            HTTP + "environment = { TABLE = 'orders' }",
            'functions.f.environment = ***: goes only with runtime = "inline", "python" or "command"',
        ),
        (
            HTTP + "minimum_workers = 1",
            'functions.f.minimum_workers = 1: goes only with runtime = "python" or "command"',
        ),
        (
            HTTP + f'function_arn = "{LAMBDA}"',
            f'functions.f.function_arn = "{LAMBDA}": goes only with runtime = "lambda"',
        ),
        (
            'runtime = "lambda"\nurl = "http://a"',
            'functions.f.url = "http://a": goes only with runtime = "http"',
        ),
        (
            'runtime = "lambda"\nmemory_size = 512',
            'functions.f.memory_size = 512: goes only with runtime = "inline", "python" or "command"',
        ),
        (
            f'runtime = "lambda"\nfunction_arn = "{SQS}"',
            (
                f'functions.f.function_arn = "{SQS}": must be the ARN of a Lambda function,'
                " like arn:aws:lambda:eu-west-1:123456789012:function:orders"
            ),
        ),
    ],
)
def test_a_mistake_has_its_line(keys: str, line: str) -> None:
    assert only_problem(file(keys)) == line


@pytest.mark.parametrize(
    "url",
    ["", "orders.example", "ftp://a", "http://", "http:///x", "http://a:b", "http://a b", "http://a..b/"],
)
def test_a_url_is_one_that_a_request_can_be_sent_to(url: str) -> None:
    found = only_problem(file(f'runtime = "http"\nurl = "{url}"'))
    assert found == f'functions.f.url = "{url}": must be a URL that begins with http:// or https://'


def test_a_url_holds_no_password_and_the_message_does_not_either() -> None:
    found = only_problem(file('runtime = "http"\nurl = "https://me:secret@a/"'))
    wants = "must hold no user name and no password: put an Authorization into headers"
    assert found == f'functions.f.url = "https://***@a/": {wants}'


def test_a_header_from_the_environment_has_no_line_breaks_and_is_not_shown() -> None:
    text = file(HTTP + 'headers.Authorization = "Bearer ${TOKEN}"')
    assert read(text, TOKEN="secret").functions["f"].headers == {"Authorization": "Bearer secret"}
    assert only_problem(text, TOKEN="secret\n") == (
        "functions.f.headers.Authorization = ***: must be one line of printable ASCII characters"
    )


@pytest.mark.parametrize(
    ("function_arn", "function_name", "wants"),
    [
        (LAMBDA + ":live", "f:test", "must name no other qualifier than functions.f.function_arn"),
        (
            LAMBDA,
            "arn:aws:lambda:us-east-1:210987654321:function:f",
            "must be as in functions.f.function_arn, or just f",
        ),
    ],
)
def test_a_mapping_and_its_function_may_not_name_two_functions_of_lambda(
    function_arn: str, function_name: str, wants: str
) -> None:
    found = only_problem(file(f'runtime = "lambda"\nfunction_arn = "{function_arn}"', function_name))
    assert found == f'mappings[0] "m" function_name = "{function_name}": {wants}'


@pytest.mark.parametrize(
    ("function_name", "keys", "arn"),
    [
        ("f", {}, "arn:aws:lambda:eu-west-1:123456789012:function:f"),
        ("f:live", {}, "arn:aws:lambda:eu-west-1:123456789012:function:f:live"),
        ("210987654321:function:f:7", {}, "arn:aws:lambda:eu-west-1:210987654321:function:f:7"),
        (f"{LAMBDA[:-6]}f:live", {}, f"{LAMBDA[:-6]}f:live"),
        ("f", {"function_arn": LAMBDA}, LAMBDA),
        ("f:live", {"function_arn": LAMBDA}, f"{LAMBDA}:live"),
        ("f", {"function_arn": f"{LAMBDA}:live"}, f"{LAMBDA}:live"),
        ("f:live", {"function_arn": f"{LAMBDA}:live"}, f"{LAMBDA}:live"),
    ],
)
def test_lambda_invokes_the_function_of_its_name_beside_the_source_unless_an_arn_says_otherwise(
    function_name: str, keys: dict[str, Any], arn: str
) -> None:
    mapping = Mapping.model_validate({"name": "m", "event_source_arn": SQS, "function_name": function_name})
    assert functions.arn(mapping, function(runtime="lambda", **keys)) == arn


def test_a_wrong_bundle_of_certificates_is_found_by_a_check(tmp_path: Path) -> None:
    rubbish = tmp_path / "ca.pem"
    rubbish.write_text("no certificate")
    missing = tmp_path / "missing.pem"

    def found(path: Path) -> tuple[str, ...]:
        return fitness.problems("f", function(runtime="http", url="https://a", ca_bundle=path))

    assert found(rubbish) == (f"functions.f.ca_bundle: {rubbish} holds no certificates in PEM form",)
    assert found(missing) == (f"functions.f.ca_bundle: {missing} cannot be read: No such file or directory",)
    assert fitness.problems("f", function(runtime="http", url="https://a")) == ()


def test_all_mistakes_of_a_function_are_named_at_once() -> None:
    found = problems(file('runtime = "http"\nhandler = "m:f"\nnice = 3\nfunction_arn = "x"'))
    assert len(found) == 1  # pydantic looks at rules between keys once each key by itself is right
    found = problems(file(f'runtime = "http"\nhandler = "m:f"\nnice = 3\nfunction_arn = "{LAMBDA}"'))
    assert len(found) == 4
