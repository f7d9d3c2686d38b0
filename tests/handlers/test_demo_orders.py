import base64
import json

import pytest

from handlers import demo_orders


def message(number, order, group=None):
    attributes = {"MessageGroupId": group} if group else {}
    return {
        "eventSource": "aws:sqs",
        "messageId": f"m-{number}",
        "body": json.dumps(order),
        "attributes": attributes,
    }


def click(number, order):
    data = base64.b64encode(json.dumps(order).encode()).decode()
    return {"eventSource": "aws:kinesis", "kinesis": {"sequenceNumber": str(number), "data": data}}


def change(number, image):
    more = {} if image is None else {"NewImage": image}
    return {"eventSource": "aws:dynamodb", "dynamodb": {"SequenceNumber": str(number), **more}}


def failures(*messages):
    reply = demo_orders.handler({"Records": list(messages)}, None)
    return [entry["itemIdentifier"] for entry in reply["batchItemFailures"]]


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    path.touch()
    monkeypatch.setenv("POLLER_DEMO_LEDGER", str(path))
    return path


@pytest.mark.parametrize(
    "order",
    [
        [],
        {"amount": 1},
        {"id": 7, "amount": 1},
        {"id": "a"},
        {"id": "a", "amount": 0},
        {"id": "a", "amount": "1"},
    ],
)
def test_a_broken_order_fails_alone(order, ledger):
    assert failures(
        message(1, {"id": "one", "amount": 1}), message(2, order), message(3, {"id": "three", "amount": 0.5})
    ) == ["m-2"]
    assert ledger.read_text() == "one\nthree\n"


def test_a_body_that_is_not_json_fails_alone():
    assert failures(message(1, "") | {"body": "{"}, message(2, {"id": "a", "amount": 1})) == ["m-1"]


def test_a_broken_order_holds_back_the_rest_of_its_group_only(ledger):
    assert failures(
        message(1, {"id": "a1", "amount": 0}, "a"),
        message(2, {"id": "b1", "amount": 1}, "b"),
        message(3, {"id": "a2", "amount": 1}, "a"),
    ) == ["m-1", "m-3"]
    assert ledger.read_text() == "b1\n"


def test_a_broken_order_of_a_kinesis_stream_holds_back_what_comes_after_it(ledger):
    assert failures(
        click(1, {"id": "a", "amount": 1}),
        click(2, {"id": "b", "amount": -1}),
        click(3, {"id": "c", "amount": 1}),
    ) == ["2", "3"]
    assert ledger.read_text() == "a\n"


def test_a_tables_items_are_orders_and_what_was_removed_is_none(ledger):
    assert failures(
        change(1, {"id": {"S": "a"}, "amount": {"N": "1.5"}}),
        change(2, None),
    ) == ["2"]
    assert ledger.read_text() == "a\n"


def test_handled_orders_are_added_to_the_ledger_and_none_is_made_for_nothing(ledger):
    ledger.write_text("before\n")
    failures(message(1, {"id": "after", "amount": 1}))
    failures(message(2, {}))

    assert ledger.read_text() == "before\nafter\n"
