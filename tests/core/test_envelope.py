from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from aws_lambda_powertools.utilities.parser.models import SqsModel
from hypothesis import given
from hypothesis import strategies as st

from poller.core import envelope
from poller.core.envelope import SqsEnvelope

EXAMPLES = Path(__file__).parent / "event-examples"
NAMES = ["sqs-standard.json", "sqs-fifo.json", "sqs-redriven-from-dlq.json"]
ARN = "arn:aws:sqs:eu-west-1:123456789012:orders"


def example(name):
    return json.loads((EXAMPLES / name).read_text())


def wire_attribute(attribute):
    names = {"stringValue": "StringValue", "binaryValue": "BinaryValue", "dataType": "DataType"}
    return {names[name]: value for name, value in attribute.items() if name in names}


def message(record):
    """The message of a ReceiveMessage reply that a record of an event comes from, its members in SQS's order."""
    built = {
        "MessageId": record["messageId"],
        "ReceiptHandle": record["receiptHandle"],
        "MD5OfBody": record["md5OfBody"],
        "Body": record["body"],
        "Attributes": dict(record["attributes"]),
    }
    if record["messageAttributes"]:
        built["MD5OfMessageAttributes"] = record["md5OfMessageAttributes"]
        built["MessageAttributes"] = {
            name: wire_attribute(value) for name, value in record["messageAttributes"].items()
        }
    return built


def build(name):
    """The records that the messages of an example become."""
    expected = example(name)["Records"]
    arn = expected[0]["eventSourceARN"]
    queue = SqsEnvelope(arn, expected[0]["awsRegion"], fifo=arn.endswith(".fifo"))
    return [queue.record(message(record)) for record in expected]


def paths(value, at=""):
    """Every place of a JSON value with the type of what is there, in order."""
    yield at, type(value).__name__
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from paths(each, f"{at}.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_the_event_equals_what_lambda_sends_value_for_value(name):
    assert envelope.event(build(name)) == example(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_event_equals_what_lambda_sends_in_types_and_in_the_order_of_members(name):
    assert list(paths(envelope.event(build(name)))) == list(paths(example(name)))


@pytest.mark.parametrize("name", NAMES)
def test_an_independent_model_of_the_event_accepts_it(name):
    expected = example(name)["Records"]
    model = SqsModel.model_validate(envelope.event(build(name)))
    assert [record.messageId for record in model.Records] == [record["messageId"] for record in expected]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_knows_its_id_and_receipt(name):
    records = build(name)
    assert [(record.id, record.receipt) for record in records] == [
        (each["messageId"], each["receiptHandle"]) for each in example(name)["Records"]
    ]


def test_a_record_knows_how_often_it_was_received():
    sent = message(example("sqs-standard.json")["Records"][0])
    sent["Attributes"] |= {"ApproximateReceiveCount": "12"}
    assert SqsEnvelope(ARN, "eu-west-1", fifo=False).record(sent).receives == 12
    del sent["Attributes"]["ApproximateReceiveCount"]
    assert SqsEnvelope(ARN, "eu-west-1", fifo=False).record(sent).receives == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_record_is_its_encoded_length_and_a_comma(name):
    for record in build(name):
        assert record.size == len(orjson.dumps(record.event)) + 1


def test_the_key_of_a_fifo_record_is_its_group():
    assert [record.key for record in build("sqs-fifo.json")] == ["basket-7", "basket-7", "basket-9"]


def test_a_group_on_a_standard_queue_says_nothing_about_order():
    sent = message(example("sqs-fifo.json")["Records"][0])
    assert SqsEnvelope(ARN, "eu-west-1", fifo=False).record(sent).key is None


def test_members_that_a_message_may_lack_have_lambdas_default():
    record = SqsEnvelope(ARN, "eu-west-1", fifo=False).record(
        {"MessageId": "m", "ReceiptHandle": "r", "Body": ""}
    )
    assert record.event == {
        "messageId": "m",
        "receiptHandle": "r",
        "body": "",
        "attributes": {},
        "messageAttributes": {},
        "md5OfBody": "",
        "eventSource": "aws:sqs",
        "eventSourceARN": ARN,
        "awsRegion": "eu-west-1",
    }


@pytest.mark.parametrize("missing", ["MessageId", "ReceiptHandle", "Body"])
def test_a_message_without_what_every_message_has_is_refused(missing):
    sent = message(example("sqs-standard.json")["Records"][0])
    del sent[missing]
    with pytest.raises(KeyError, match=missing):
        SqsEnvelope(ARN, "eu-west-1", fifo=False).record(sent)


def test_a_fifo_message_without_a_group_is_refused():
    sent = message(example("sqs-standard.json")["Records"][0])
    with pytest.raises(KeyError, match="MessageGroupId"):
        SqsEnvelope(ARN, "eu-west-1", fifo=True).record(sent)


@given(body=st.text(), names=st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_bodies_and_attributes_pass_unchanged(body, names):
    sent = {
        "MessageId": "m",
        "ReceiptHandle": "r",
        "Body": body,
        "MD5OfMessageAttributes": "0",
        "MessageAttributes": {
            name: {"StringValue": value, "DataType": "String.custom"} for name, value in names.items()
        },
    }
    event = SqsEnvelope(ARN, "eu-west-1", fifo=False).record(sent).event
    assert event["body"] == body
    assert {name: value["stringValue"] for name, value in event["messageAttributes"].items()} == names
    assert all(value["dataType"] == "String.custom" for value in event["messageAttributes"].values())
    assert ("md5OfMessageAttributes" in event) == bool(names)
