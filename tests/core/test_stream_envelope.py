from __future__ import annotations

import base64
import copy
import json
from pathlib import Path

import orjson
import pytest
from aws_lambda_powertools.utilities.parser.models import DynamoDBStreamModel, KinesisDataStreamModel
from hypothesis import given
from hypothesis import strategies as st

from poller.core import envelope
from poller.core.stream_envelope import SUB_SEQUENCE_NUMBER, DynamoDbEnvelope, KinesisEnvelope
from poller.core.windows import Window
from poller.model import Checkpoint

EXAMPLES = Path(__file__).parent / "event-examples"
KINESIS = ["kinesis-standard.json", "kinesis-enhanced-fanout.json"]
DYNAMODB = ["dynamodb-stream.json"]
WINDOWS = ["kinesis-window.json", "kinesis-window-final.json", "dynamodb-window.json"]
REGION = "eu-west-1"
ROLE = "arn:aws:iam::123456789012:role/orders-worker-role"
STREAM = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
TABLE = "arn:aws:dynamodb:eu-west-1:123456789012:table/Basket/stream/2026-01-15T08:30:00.123"
SHARD = "shardId-000000000003"
SHARDS = {"kinesis": SHARD, "dynamodb": "shardId-00000001768465800123-1f2e3d4c"}
CLICKS = KinesisEnvelope(STREAM, REGION, ROLE)
BASKETS = DynamoDbEnvelope(TABLE, REGION)
HELLO = {
    "ApproximateArrivalTimestamp": 1768552801.204,
    "Data": "aGVsbG8=",
    "PartitionKey": "user-17",
    "SequenceNumber": "4967",
}


def example(name):
    return json.loads((EXAMPLES / name).read_text())


def kinesis_wire(record):
    """The record of a GetRecords reply that a record of an event comes from, in the order of the API."""
    inner = record["kinesis"]
    return {
        "ApproximateArrivalTimestamp": inner["approximateArrivalTimestamp"],
        "Data": inner["data"],
        "EncryptionType": "KMS",
        "PartitionKey": inner["partitionKey"],
        "SequenceNumber": inner["sequenceNumber"],
    }


def dynamodb_wire(record):
    """The same, as the JSON that it comes in; it is taken from another region."""
    return orjson.dumps(dynamodb_change(record))


def dynamodb_change(record):
    wire = {
        "awsRegion": "ddblocal",
        "dynamodb": copy.deepcopy(record["dynamodb"]),
        "eventID": record["eventID"],
        "eventName": record["eventName"],
        "eventSource": "aws:dynamodb",
        "eventVersion": "1.1",
    }
    wire["dynamodb"]["ApproximateCreationDateTime"] += 0.25  # a fraction that is not delivered
    if identity := record.get("userIdentity"):
        wire["userIdentity"] = {"PrincipalId": identity["principalId"], "Type": identity["type"]}
    return wire


def source_of(name):
    return name.partition("-")[0]


def envelope_for(name):
    if source_of(name) == "dynamodb":
        return BASKETS
    records = example(name)["Records"]
    return KinesisEnvelope(records[0]["eventSourceARN"] if records else STREAM, REGION, ROLE)


def build(name):
    """The records that the wire's records of an example become."""
    wire = kinesis_wire if source_of(name) == "kinesis" else dynamodb_wire
    stream, shard = envelope_for(name), SHARDS[source_of(name)]
    return [stream.record(shard, wire(record)) for record in example(name)["Records"]]


def paths(value, at=""):
    """Every place of a JSON value with the type of what is there, in order."""
    yield at, type(value).__name__
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from paths(each, f"{at}.{name}")


def spoil(value):
    """Change every part of an event that can be changed, as a handler may."""
    inner = (
        list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
    )
    for each in inner:
        spoil(each)
    if isinstance(value, dict | list):
        value.clear()


# --- records --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINESIS + DYNAMODB)
def test_the_event_equals_what_lambda_sends_value_for_value(name):
    assert envelope.event(build(name)) == example(name)


@pytest.mark.parametrize("name", KINESIS + DYNAMODB)
def test_the_event_equals_what_lambda_sends_in_types_and_in_the_order_of_members(name):
    assert list(paths(envelope.event(build(name)))) == list(paths(example(name)))


@pytest.mark.parametrize("name", KINESIS)
def test_an_independent_model_accepts_a_kinesis_event(name):
    model = KinesisDataStreamModel.model_validate(envelope.event(build(name)))
    assert model.Records[0].kinesis.data == b'{"page": "/home", "ms": 312}'


def test_an_independent_model_accepts_a_dynamodb_event():
    model = DynamoDBStreamModel.model_validate(envelope.event(build("dynamodb-stream.json")))
    assert [record.eventName for record in model.Records] == ["INSERT", "MODIFY", "REMOVE"]
    assert model.Records[2].userIdentity.principalId == "dynamodb.amazonaws.com"


def test_a_kinesis_record_knows_its_number_its_key_and_when_it_arrived():
    record = CLICKS.record(SHARD, HELLO)
    assert (record.id, record.key, record.arrived) == ("4967", "user-17", 1768552801.204)


def test_a_dynamodb_record_knows_its_number_its_key_and_when_it_arrived():
    record = build("dynamodb-stream.json")[0]
    assert record.id == "100000000001234567890"
    assert record.key == '{"pk":{"S":"basket#7"},"sk":{"N":"3"}}'
    assert record.arrived == 1768552802.25


def test_behind_a_record_its_shard_is_done_up_to_it():
    assert CLICKS.checkpoint(CLICKS.record(SHARD, HELLO)) == Checkpoint("4967")
    record = build("dynamodb-stream.json")[0]
    assert BASKETS.checkpoint(record) == Checkpoint("100000000001234567890")


def test_behind_a_record_inside_an_aggregate_only_a_part_of_that_is_done():
    inner = CLICKS.record(SHARD, {**HELLO, SUB_SEQUENCE_NUMBER: 2})
    assert CLICKS.checkpoint(inner) == Checkpoint("4967", 2)
    assert CLICKS.checkpoint(CLICKS.rebuild(SHARD, inner)) == Checkpoint("4967", 2)
    assert inner.event == CLICKS.record(SHARD, HELLO).event


def test_the_key_of_an_item_does_not_depend_on_the_order_of_its_attributes():
    wire = dynamodb_change(example("dynamodb-stream.json")["Records"][0])
    wire["dynamodb"]["Keys"] = dict(reversed(wire["dynamodb"]["Keys"].items()))
    assert BASKETS.record(SHARD, orjson.dumps(wire)).key == build("dynamodb-stream.json")[0].key


@pytest.mark.parametrize("name", KINESIS + DYNAMODB)
def test_the_size_of_a_record_is_its_encoded_length_and_a_comma(name):
    for record in build(name):
        assert record.size == len(orjson.dumps(record.event)) + 1


@given(
    key=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    data=st.binary(max_size=50),
    arrived=st.integers(0, 4 * 10**9) | st.floats(0, 4e9),
    number=st.integers(0, 10**56),
)
def test_the_size_is_exact_whatever_the_key(key, data, arrived, number):
    wire = {
        "ApproximateArrivalTimestamp": arrived,
        "Data": base64.b64encode(data).decode(),
        "PartitionKey": key,
        "SequenceNumber": str(number),
    }
    record = CLICKS.record(SHARD, wire)
    assert record.size == len(orjson.dumps(record.event)) + 1


attributes = st.dictionaries(
    st.sampled_from(["id", "ApproximateCreationDateTime", "awsRegion"]) | st.text(max_size=5),
    st.fixed_dictionaries({"S": st.text(max_size=9)})
    | st.fixed_dictionaries({"NULL": st.just(True)})
    | st.fixed_dictionaries({"B": st.binary(max_size=9).map(lambda value: base64.b64encode(value).decode())}),
    max_size=3,
)


@given(
    arrived=st.integers(0, 4 * 10**9).map(str) | st.sampled_from(["1.7684688E9", "1768468800.123", "1e9"]),
    images=st.fixed_dictionaries({}, optional={"NewImage": attributes, "OldImage": attributes}),
    keys=attributes,
    more=st.dictionaries(st.sampled_from(["awsRegion", "eventSource", "eventVersion", "else"]), st.just("?"))
    | st.just({"userIdentity": {"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"}}),
    lacks=st.sets(st.sampled_from(["awsRegion", "eventSource", "eventVersion"])),
    inner=st.dictionaries(st.just("else"), st.just("?")),
    ascii_only=st.booleans(),
    region_first=st.booleans(),
)
def test_the_size_is_exact_whatever_the_change(
    arrived, images, keys, more, lacks, inner, ascii_only, region_first
):
    change = {"ApproximateCreationDateTime": "TIME", "Keys": keys, **images, "SequenceNumber": "1", **inner}
    wire = {
        "eventID": "1",
        "eventName": "MODIFY",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": REGION,
        "dynamodb": {**change, "SizeBytes": 7, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    }
    wire = {name: value for name, value in wire.items() if name not in lacks} | more
    if region_first:
        wire = dict(reversed(wire.items()))
    text = json.dumps(wire, ensure_ascii=ascii_only, separators=(",", ":"))
    text = text.replace('"ApproximateCreationDateTime":"TIME"', f'"ApproximateCreationDateTime":{arrived}')
    record = BASKETS.record(SHARD, text.encode())
    assert record.size == len(orjson.dumps(record.event)) + 1
    assert record.event["dynamodb"].get("NewImage") == images.get("NewImage")


@pytest.mark.parametrize(
    ("name", "time"), [("dynamodb", 1768468800), ("dynamodb", 1.5), ("ApproximateCreationDateTime", 1.5)]
)
def test_the_size_is_exact_where_the_wire_has_blanks(name, time):
    wire = dynamodb_change(example("dynamodb-stream.json")["Records"][0])
    wire["dynamodb"]["ApproximateCreationDateTime"] = time
    wire["awsRegion"] = REGION
    spaced = orjson.dumps(wire).replace(f'"{name}":'.encode(), f'"{name}": '.encode())
    record = BASKETS.record(SHARD, spaced)
    assert record.size == len(orjson.dumps(record.event)) + 1


@pytest.mark.parametrize("missing", ["SizeBytes", "StreamViewType"])
def test_no_member_of_a_dynamodb_record_stands_in_for_another(missing):
    wire = dynamodb_change(example("dynamodb-stream.json")["Records"][0])
    del wire["dynamodb"][missing]
    with pytest.raises(KeyError, match=missing):
        BASKETS.record(SHARD, orjson.dumps({**wire, "dynamodb": {**wire["dynamodb"], "else": "?"}}))


def test_a_kinesis_record_without_a_key_has_no_such_member():
    record = CLICKS.record(SHARD, {name: value for name, value in HELLO.items() if name != "PartitionKey"})
    assert record.key is None
    assert list(record.event["kinesis"]) == [
        "kinesisSchemaVersion",
        "sequenceNumber",
        "data",
        "approximateArrivalTimestamp",
    ]


def test_a_dynamodb_record_without_a_version_has_the_current_one():
    wire = dynamodb_change(example("dynamodb-stream.json")["Records"][0])
    del wire["eventVersion"]
    assert BASKETS.record(SHARD, orjson.dumps(wire)).event["eventVersion"] == "1.1"


@pytest.mark.parametrize("missing", ["ApproximateArrivalTimestamp", "Data", "SequenceNumber"])
def test_a_kinesis_record_without_what_every_record_has_is_refused(missing):
    with pytest.raises(KeyError, match=missing):
        CLICKS.record(SHARD, {name: value for name, value in HELLO.items() if name != missing})


@pytest.mark.parametrize(
    "missing",
    ["ApproximateCreationDateTime", "Keys", "SequenceNumber", "SizeBytes", "StreamViewType"],
)
def test_a_dynamodb_record_without_what_every_record_has_is_refused(missing):
    wire = dynamodb_change(example("dynamodb-stream.json")["Records"][0])
    del wire["dynamodb"][missing]
    with pytest.raises(KeyError, match=missing):
        BASKETS.record(SHARD, orjson.dumps(wire))


# --- a second attempt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINESIS + DYNAMODB)
def test_a_handler_that_changes_its_event_changes_nothing_of_the_next_attempt(name):
    stream, shard = envelope_for(name), SHARDS[source_of(name)]
    records = build(name)
    for _ in range(2):
        spoil(envelope.event(records))
        records = [stream.rebuild(shard, record) for record in records]
        assert list(paths(envelope.event(records))) == list(paths(example(name)))
        assert envelope.event(records) == example(name)
    assert [record[:3] for record in records] == [record[:3] for record in build(name)]


def test_a_handler_that_changes_its_event_changes_nothing_of_another_mapping_on_the_stream():
    """Both get the very same objects of one reply."""
    wire = dynamodb_wire(example("dynamodb-stream.json")["Records"][1])
    for stream, one in [(CLICKS, HELLO), (BASKETS, wire)]:
        before = copy.deepcopy(one)
        first = stream.record(SHARD, one)
        spoil(stream.record(SHARD, one).event)
        assert one == before
        assert first == stream.record(SHARD, before)


# --- windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWS)
def test_the_event_of_a_window_equals_what_lambda_sends(name):
    expected = example(name)
    length = 120 if source_of(name) == "kinesis" else 10
    window = Window(1768552800, 1768552800 + length, json.dumps(expected["state"]))
    final = expected["isFinalInvokeForWindow"]
    event = envelope_for(name).window_event(SHARDS[source_of(name)], build(name), window, final=final)
    assert event == expected
    assert list(paths(event)) == list(paths(expected))


def test_the_last_event_of_a_window_that_ends_early_says_so():
    expected = example("kinesis-window-terminated-early.json")
    expected["state"]["note"] = "x" * 1024 * 1024
    window = Window(1768552800, 1768552920, json.dumps(expected["state"]))
    assert CLICKS.window_event(SHARD, [], window, final=True) == expected


# --- parked records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINESIS + DYNAMODB)
def test_a_record_that_was_packed_is_the_same_record_again(name):
    stream, shard = envelope_for(name), SHARDS[source_of(name)]
    for record in build(name):
        expected = copy.deepcopy(record.event)
        spoil(record.event)
        again = stream.unpack(shard, stream.pack(record))
        assert json.dumps(again.event) == json.dumps(expected)
        assert (again.id, again.key, again.size, again.receipt) == (
            record.id,
            record.key,
            record.size,
            record.receipt,
        )
        assert again.arrived == pytest.approx(record.arrived, abs=1.0)
        assert stream.checkpoint(again) == stream.checkpoint(record)


def test_the_inner_record_of_an_aggregate_keeps_its_place_when_it_is_packed():
    inner = CLICKS.record(SHARD, {**HELLO, SUB_SEQUENCE_NUMBER: 3})
    assert CLICKS.checkpoint(CLICKS.unpack(SHARD, CLICKS.pack(inner))) == Checkpoint("4967", 3)


@pytest.mark.parametrize("stream", [CLICKS, BASKETS])
@pytest.mark.parametrize("packed", [b"", b"{}", b"[]", b'"x"', b"{", b"null"])
def test_what_makes_no_sense_cannot_be_unpacked(stream, packed):
    with pytest.raises((KeyError, TypeError, ValueError)):
        stream.unpack(SHARD, packed)
