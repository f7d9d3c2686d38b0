from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from poller.cli.filter import filter_command

if TYPE_CHECKING:
    from typer.testing import Result

PAID = '{"body":{"status":["paid"]}}'
MATCH = "match: filter 1 of 1"


def run(stdin: str | bytes, *patterns: str, source: str = "sqs", options: tuple[str, ...] = ()) -> Result:
    app = typer.Typer()
    app.command("filter")(filter_command)
    arguments = ["--source", source, *options]
    for pattern in patterns:
        arguments += ["--pattern", pattern]
    return CliRunner().invoke(app, arguments, stdin)


def message(status: str) -> dict[str, Any]:
    return {"messageId": "m", "body": json.dumps({"status": status})}


def test_each_record_gets_a_line_that_says_why() -> None:
    stdin = "\n".join(json.dumps(message(status)) for status in ("paid", "open"))
    result = run(stdin, PAID)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [MATCH, 'no match: body.status: "open" does not match "paid"']
    assert result.stderr == ""


def test_several_patterns_are_alternatives() -> None:
    result = run(json.dumps(message("open")), PAID, '{"body":{"status":["open"]}}')
    assert result.stdout == "match: filter 2 of 2\n"


def test_a_pattern_that_lambda_would_refuse_stops_it_at_once() -> None:
    result = run(json.dumps(message("paid")), '{"body":{"status":"paid"}}')
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == 'body.status: "paid" stands alone; write it in an array: ["paid"]\n'


def test_strict_refuses_what_only_eventbridge_knows() -> None:
    pattern = '{"body":{"status":[{"wildcard":"p*"}]}}'
    assert run(json.dumps(message("paid")), pattern).stdout == f"{MATCH}\n"
    assert run("", pattern, options=("--strict",)).exit_code == 2


def test_a_pattern_and_a_known_source_are_required() -> None:
    assert run("").exit_code == 2
    assert run("", PAID, source="kafka").exit_code == 2


def test_warnings_go_to_standard_error() -> None:
    result = run("", '{"messageId":["m"]}')
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: messageId: ")


def test_a_bad_line_is_named_and_the_others_are_judged() -> None:
    lines = [json.dumps(message("paid")), "{'body': 1}", "", "text", "5", json.dumps(message("open"))]
    result = run("\n".join(lines), PAID)
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [MATCH, 'no match: body.status: "open" does not match "paid"']
    bad, text, number = result.stderr.splitlines()
    assert bad.startswith("line 2: not JSON: ")
    assert text.startswith("line 4: not JSON: ")
    assert number == "line 5: not a record but 5; write a JSON object"


@pytest.mark.parametrize("broken", ['{"body": "x', '{"body": "x"', '{"body": ["x"'])
def test_a_line_that_breaks_off_does_not_swallow_the_next_one(broken: str) -> None:
    result = run("\n".join([broken, json.dumps(message("paid")), broken]), PAID)
    assert result.exit_code == 2
    assert result.stdout == f"{MATCH}\n"
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["line 1", "line 3"]


def test_bytes_that_are_not_utf8_are_a_bad_line() -> None:
    result = run(b'{"body": "\xff"}\n{"body": "{}"}\n', PAID)
    assert result.exit_code == 2
    assert result.stderr.startswith("line 1: not JSON: ")
    assert result.stdout.startswith("no match: ")


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_whole_event_is_judged_record_by_record(indent: int | None) -> None:
    event = {"Records": [message("paid"), message("open"), message("paid")]}
    result = run(json.dumps(event, indent=indent) + "\n" + json.dumps(message("paid")), PAID)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "match",
        "no match",
        "match",
        "match",
    ]


def test_records_may_be_pretty_printed_one_after_the_other_or_in_an_array() -> None:
    pretty = json.dumps(message("paid"), indent=4)
    stdin = f"{pretty}\n\n{pretty}\n[\n{json.dumps(message('paid'))},\n{json.dumps(message('paid'))}\n]\n"
    assert run(stdin, PAID).stdout.splitlines() == [MATCH] * 4


def test_a_broken_event_is_reported_once() -> None:
    broken = json.dumps({"Records": [message("paid")]}, indent=2).replace('"body"', "body")
    result = run(f"{broken}\n{json.dumps(message('paid'))}\n", PAID)
    assert result.exit_code == 2
    assert result.stdout == f"{MATCH}\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("line 1: not JSON: ")
    assert "column" not in line


def test_a_body_may_be_given_as_json() -> None:
    assert run('{"body": {"status": "paid"}}', PAID).stdout == f"{MATCH}\n"


ENCODED = base64.b64encode(b'{"status":"paid"}').decode()


@pytest.mark.parametrize("data", [ENCODED, {"status": "paid"}, '{"status":"paid"}', [{"status": "paid"}]])
@pytest.mark.parametrize("nested", [True, False])
def test_kinesis_data_may_be_given_on_either_level_encoded_or_not(data: Any, nested: bool) -> None:
    record = {"kinesis": {"data": data}} if nested else {"data": data}
    result = run(json.dumps(record), '{"data":{"status":["paid"]}}', source="kinesis")
    assert result.stdout == f"{MATCH}\n"


@pytest.mark.parametrize("record", [{}, {"kinesis": {}}, {"kinesis": 5}, {"data": 5}, {"data": "plain"}])
def test_a_kinesis_record_without_json_data_does_not_match(record: Any) -> None:
    result = run(json.dumps(record), '{"data":{"status":["paid"]}}', source="kinesis")
    assert result.exit_code == 0
    assert result.stdout.startswith("no match: data: ")


def test_dynamodb_records_are_taken_as_they_are() -> None:
    record = {"eventName": "INSERT", "dynamodb": {"NewImage": {"status": {"S": "paid"}}}}
    pattern = '{"eventName":["INSERT"],"dynamodb":{"NewImage":{"status":{"S":["paid"]}}}}'
    assert run(json.dumps(record), pattern, source="dynamodb").stdout == f"{MATCH}\n"
