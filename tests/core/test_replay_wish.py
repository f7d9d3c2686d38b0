from __future__ import annotations

from typing import Any

import pytest

from poller.core.replay_wish import ReplayWish, bucket, check, key_of, parse, places
from poller.core.seek import Target
from poller.errors import ReplayRefused

NOW = 1_800_000_000.0
QUEUE = {"mapping": "clicks", "kind": "queue", "target": "arn:aws:sqs:eu-west-1:123456789012:failed"}
RANGE = {"mapping": "clicks", "kind": "range", "start": "TRIM_HORIZON"}
LOW, HIGH = "1" * 21, "9" * 21


def test_a_wish_survives_being_kept():
    wish = parse(QUEUE | {"rate": 500, "batch_size": 10, "filters": ['{"data": {"a": [1]}}'], "key": "k"})
    assert parse(wish.dump()) == wish
    assert parse({**QUEUE, "filters": None}).filters == ()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ([], "send a JSON object of batch_size, "),
        (QUEUE | {"speed": 1}, "; nobody knows speed"),
        (QUEUE | {"target": 1}, "mapping, kind, target, start, end, shard, key: must be strings"),
        (QUEUE | {"delete": 1}, "to_source, delete: must be true or false"),
        (QUEUE | {"filters": "x"}, "filters: must be a list of patterns"),
        (QUEUE | {"filters": [{}]}, "filters: must be a list of patterns"),
        (QUEUE | {"rate": 0}, "rate: must be a number of records a second above 0"),
        (QUEUE | {"rate": float("nan")}, "rate: must be"),
        (QUEUE | {"rate": True}, "rate: must be"),
        (QUEUE | {"rate": "10"}, "rate: must be"),
        (QUEUE | {"batch_size": 0}, "batch_size: must be a whole number from 1 to 10000"),
        (QUEUE | {"batch_size": 1.5}, "batch_size: must be"),
        (QUEUE | {"kind": "file"}, "kind: must be one of queue, objects, dead_letters, range"),
        (QUEUE | {"target": ""}, "it must say where the failed records are"),
        (QUEUE | {"to_source": True}, "only dead letters can go back to their source"),
        (QUEUE | {"delete": True}, "--delete is for objects"),
        (QUEUE | {"start": "1"}, "a start, an end or a shard belong to a range"),
        (RANGE | {"start": ""}, "it must say where the range begins"),
        ({"kind": "objects", "target": "bucket"}, "bucket: must be s3://BUCKET or s3://BUCKET/PREFIX"),
        (QUEUE | {"filters": ["{}"] * 11}, "at most 10 filters of 4096 characters"),
        (QUEUE | {"filters": ["x" * 4097]}, "at most 10 filters of 4096 characters"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_in_one_line(body: Any, line: str):
    with pytest.raises(ReplayRefused) as caught:
        parse(body)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("s3://failed", ("failed", "")),
        ("s3://failed/", ("failed", "")),
        ("s3://failed/a/b", ("failed", "a/b")),
    ],
)
def test_a_bucket_and_its_prefix(target: str, place: tuple[str, str]):
    assert bucket(target) == place


def test_what_is_no_bucket_is_refused():
    with pytest.raises(ReplayRefused):
        bucket("failed")


@pytest.mark.parametrize(
    ("start", "end", "shard", "expected"),
    [
        ("TRIM_HORIZON", "", "", (Target("TRIM_HORIZON"), Target("TIME", time=NOW))),
        ("1000", "2000", "", (Target("TIME", time=1000.0), Target("TIME", time=2000.0))),
        (LOW, HIGH, "s", (Target("SEQUENCE_NUMBER", LOW), Target("SEQUENCE_NUMBER", HIGH))),
        (LOW, "2000", "s", (Target("SEQUENCE_NUMBER", LOW), Target("TIME", time=2000.0))),
    ],
)
def test_a_range_has_two_places(start: str, end: str, shard: str, expected: tuple[Target, Target]):
    assert places(ReplayWish("clicks", "range", start=start, end=end, shard=shard), NOW) == expected


@pytest.mark.parametrize(
    ("start", "end", "shard", "line"),
    [
        ("soon", "", "", "soon: must be TRIM_HORIZON"),
        ("LATEST", "", "", "a range goes from"),
        ("1000", "TRIM_HORIZON", "", "a range goes from"),
        ("1000", "LATEST", "", "a range goes from"),
        (LOW, "", "", "name it with --shard"),
        ("1000", LOW, "", "name it with --shard"),
        ("2000", "1000", "", "the range ends before it begins"),
        (HIGH, LOW, "s", "the range ends before it begins"),
    ],
)
def test_a_range_that_is_none_is_refused(start: str, end: str, shard: str, line: str):
    with pytest.raises(ReplayRefused, match=line):
        places(ReplayWish("clicks", "range", start=start, end=end, shard=shard), NOW)


@pytest.mark.parametrize(
    ("wish", "source", "more", "line"),
    [
        (RANGE, "kinesis", {"windows": True}, "its records are not replayed"),
        (RANGE, "sqs", {}, "a queue keeps no records"),
        (RANGE | {"start": "soon"}, "kinesis", {}, "soon: must be"),
        (QUEUE | {"kind": "dead_letters"}, "kinesis", {}, "a stream has no dead-letter queue"),
        (QUEUE | {"key": "k"}, "sqs", {}, "have no partition key"),
        (QUEUE | {"batch_size": 11}, "sqs", {"fifo": True}, "batch_size: at most 10 here"),
        (
            QUEUE | {"kind": "dead_letters", "to_source": True, "batch_size": 11},
            "sqs",
            {},
            "batch_size: at most 10 here",
        ),
        (QUEUE | {"filters": ["["]}, "kinesis", {}, "JSON"),
    ],
)
def test_a_wish_that_does_not_go_with_the_mapping_is_refused(
    wish: dict[str, Any], source: Any, more: dict[str, bool], line: str
):
    with pytest.raises(ReplayRefused, match=line):
        check(parse(wish), source, NOW, **({"windows": False, "fifo": False} | more))


@pytest.mark.parametrize(
    ("wish", "source"),
    [(QUEUE, "kinesis"), (QUEUE, "sqs"), (RANGE, "dynamodb"), (QUEUE | {"kind": "dead_letters"}, "sqs")],
)
def test_a_wish_that_goes_with_the_mapping_passes(wish: dict[str, Any], source: Any):
    check(parse(wish), source, NOW, windows=False, fifo=False)


@pytest.mark.parametrize(
    ("key", "source", "wanted"),
    [
        ("", "dynamodb", ""),
        ("", "sqs", ""),
        ('{"k"', "kinesis", '{"k"'),
        ('{"sk": {"N": "3"}, "pk":{"S":"basket#7"}}', "dynamodb", '{"pk":{"S":"basket#7"},"sk":{"N":"3"}}'),
    ],
)
def test_a_key_is_compared_as_records_have_it(key: str, source: Any, wanted: str):
    assert key_of(parse(RANGE | {"key": key}), source) == wanted


@pytest.mark.parametrize("key", ["basket#7", "[]", '{"pk"'])
def test_a_key_of_a_table_must_be_json(key: str):
    with pytest.raises(ReplayRefused, match="key: must be the Keys of an item as JSON"):
        check(parse(RANGE | {"key": key}), "dynamodb", NOW, windows=False, fifo=False)
