from __future__ import annotations

import subprocess
import sys
from base64 import b64decode, b64encode
from hashlib import md5
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.core.stream_envelope import SUB_SEQUENCE_NUMBER
from poller.sources._deaggregate import aggregated_record, deaggregate, numbered, skip_done

#: Made with aws-kinesis-agg 1.2.3, an implementation that shares nothing with ours: three records, the first with the explicit
#: hash key 2**127 - 1, the second with none, the third with 2**128 - 1.
AGGREGATE = (
    "84mawgoKY3VzdG9tZXItMQoKY3VzdG9tZXItMhInMTcwMTQxMTgzNDYwNDY5MjMxNzMxNjg3MzAzNzE1ODg0MTA1NzI3EiczNDAyODIzNjY5MjA5Mzg0NjM0"
    "NjMzNzQ2MDc0MzE3NjgyMTE0NTUaDQgAEAAaB3sibiI6MX0aCwgBGgd7Im4iOjJ9GggIABABGgIA/0qWXq4X/bUO0jQuRZ/Wptw="
)
MAGIC = b"\xf3\x89\x9a\xc2"
LOWER_HALF = (0, 2**127 - 1)
UPPER_HALF = (2**127, 2**128 - 1)


def wire(data: Any) -> dict[str, Any]:
    return {
        "SequenceNumber": "4966",
        "ApproximateArrivalTimestamp": 1768552801.204,
        "Data": data,
        "PartitionKey": "a",
        "EncryptionType": "NONE",
    }


def packed(message: bytes) -> dict[str, Any]:
    return wire(b64encode(MAGIC + message + md5(message).digest()).decode())


def aggregate(
    *records: dict[str, Any], keys: tuple[str, ...] = ("k",), hash_keys: tuple[str, ...] = ()
) -> bytes:
    kind = aggregated_record()
    tables = {
        "partition_key_table": [key.encode() for key in keys],
        "explicit_hash_key_table": [key.encode() for key in hash_keys],
    }
    built = kind(**tables, records=records)
    return bytes(built.SerializeToString())


def text(inner: list[Any]) -> list[tuple[int | None, bytes]]:
    return [(sub, b64decode(record["Data"])) for sub, record in inner]


# --- aggregates ---------------------------------------------------------------------------------------------------------


def test_an_aggregate_becomes_the_records_inside_it_with_the_outer_members() -> None:
    outer = {name: value for name, value in wire("").items() if name not in ("PartitionKey", "Data")}
    assert deaggregate(wire(AGGREGATE)) == [
        (0, {**outer, "PartitionKey": "customer-1", "Data": b64encode(b'{"n":1}').decode()}),
        (1, {**outer, "PartitionKey": "customer-2", "Data": b64encode(b'{"n":2}').decode()}),
        (2, {**outer, "PartitionKey": "customer-1", "Data": b64encode(b"\x00\xff").decode()}),
    ]


def test_inner_records_with_a_hash_key_of_another_shard_are_dropped_one_by_one_and_keep_their_numbers() -> (
    None
):
    assert text(deaggregate(wire(AGGREGATE), LOWER_HALF)) == [(0, b'{"n":1}'), (1, b'{"n":2}')]
    assert text(deaggregate(wire(AGGREGATE), UPPER_HALF)) == [(1, b'{"n":2}'), (2, b"\x00\xff")]
    elsewhere = packed(
        aggregate({"partition_key_index": 0, "explicit_hash_key_index": 0, "data": b""}, hash_keys=("7",))
    )
    assert deaggregate(elsewhere, UPPER_HALF) == []


def test_a_hash_key_that_is_no_number_drops_nothing() -> None:
    odd = packed(
        aggregate({"partition_key_index": 0, "explicit_hash_key_index": 0, "data": b"x"}, hash_keys=("?",))
    )
    assert text(deaggregate(odd, UPPER_HALF)) == [(0, b"x")]


def test_an_inner_record_may_be_empty_and_tagged() -> None:
    tagged = {"partition_key_index": 0, "data": b"", "tags": [{"key": "t", "value": "v"}]}
    assert text(deaggregate(packed(aggregate(tagged)))) == [(0, b"")]


def test_the_class_of_the_message_does_not_depend_on_another_package_that_brings_the_same_names() -> None:
    assert aggregated_record() is not aggregated_record()


# --- anything else ------------------------------------------------------------------------------------------------------


def encoded(raw: bytes) -> str:
    return b64encode(raw).decode()


MESSAGE = aggregate({"partition_key_index": 0, "data": b"x"})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param(None, id="no data"),
        pytest.param(encoded(b'{"plain": true}'), id="plain"),
        pytest.param(encoded(MAGIC), id="the magic bytes alone"),
        pytest.param(encoded(MAGIC + md5(b"").digest()), id="no message"),
        pytest.param(
            encoded(MAGIC[:3] + b"\xc3" + MESSAGE + md5(MESSAGE).digest()), id="almost the magic bytes"
        ),
        pytest.param(encoded(MAGIC + MESSAGE + bytes(16)), id="a wrong checksum"),
        pytest.param(AGGREGATE[:-1], id="base64 that is cut off"),
        pytest.param(packed(b"\xff\xff\xff")["Data"], id="no protobuf"),
        pytest.param(packed(b"\x1a\x02\x08\x00")["Data"], id="a record without data"),
        pytest.param(
            packed(aggregate({"partition_key_index": 5, "data": b"x"}))["Data"], id="a key that is not there"
        ),
        pytest.param(
            packed(aggregate({"partition_key_index": 2**64 - 1, "data": b"x"}))["Data"],
            id="a key beyond counting",
        ),
        pytest.param(packed(b"\x0a\x01\xff" + MESSAGE[3:])["Data"], id="a key that is not UTF-8"),
    ],
)
def test_what_is_no_aggregate_comes_back_as_it_is(data: str | None) -> None:
    record = wire(data)
    assert deaggregate(record) == [(None, record)]
    assert deaggregate(record)[0][1] is record


@given(st.binary(max_size=200))
def test_garbage_behind_the_magic_bytes_never_raises(garbage: bytes) -> None:
    for record in (wire(encoded(MAGIC + garbage)), packed(garbage)):
        inner = deaggregate(record)
        assert inner == [(None, record)] or all(sub is not None for sub, _ in inner)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=50)), min_size=1, max_size=20))
def test_what_was_packed_comes_out_in_its_order(records: list[tuple[int, bytes]]) -> None:
    keys = ("a", "é", "")
    message = aggregate(*({"partition_key_index": key, "data": data} for key, data in records), keys=keys)
    inner = deaggregate(packed(message))
    assert [sub for sub, _ in inner] == list(range(len(records)))
    assert [(one["PartitionKey"], b64decode(one["Data"])) for _, one in inner] == [
        (keys[key], data) for key, data in records
    ]


# --- checkpoints --------------------------------------------------------------------------------------------------------


def test_a_restart_inside_an_aggregate_skips_what_is_done_and_nothing_else() -> None:
    inner = deaggregate(wire(AGGREGATE))
    assert text(skip_done(inner, 0)) == [(1, b'{"n":2}'), (2, b"\x00\xff")]
    assert skip_done(inner, 2) == []
    plain = wire("eA==")
    assert skip_done([(None, plain)], 7) == [(None, plain)]


def test_a_record_that_is_no_aggregate_has_the_number_0_in_checkpoints_of_the_kcl() -> None:
    plain, looks_like_one, whole = wire("eA=="), wire(b64encode(MAGIC + b"x" * 40).decode()), wire(AGGREGATE)
    assert skip_done([(None, plain)], 0) == []
    assert skip_done([(None, looks_like_one)], 0) == []
    assert skip_done([(None, whole)], 0) == [(None, whole)], "inside it there is more than its first record"


def test_behind_the_last_inner_record_the_whole_record_is_done() -> None:
    inner = deaggregate(wire(AGGREGATE))
    assert [record.get(SUB_SEQUENCE_NUMBER) for record in numbered(inner)] == [0, 1, None]
    assert [record.get(SUB_SEQUENCE_NUMBER) for record in numbered(inner[:2])] == [0, None]
    assert numbered([(None, wire("eA=="))]) == [wire("eA==")]
    assert numbered([]) == []


@pytest.mark.slow
def test_protobuf_is_not_imported_before_the_first_aggregate() -> None:
    code = (
        "import sys; from poller.sources._deaggregate import deaggregate; deaggregate({'Data': 'eA=='});"
        "sys.exit(any(name.startswith('google') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
