import json

import pytest

from handlers import demo_orders


def message(number, order, group=None):
    attributes = {"MessageGroupId": group} if group else {}
    return {"messageId": f"m-{number}", "body": json.dumps(order), "attributes": attributes}


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
    assert failures(
        {"messageId": "m-1", "body": "{", "attributes": {}}, message(2, {"id": "a", "amount": 1})
    ) == ["m-1"]


def test_a_broken_order_holds_back_the_rest_of_its_group_only(ledger):
    assert failures(
        message(1, {"id": "a1", "amount": 0}, "a"),
        message(2, {"id": "b1", "amount": 1}, "b"),
        message(3, {"id": "a2", "amount": 1}, "a"),
    ) == ["m-1", "m-3"]
    assert ledger.read_text() == "b1\n"


def test_handled_orders_are_added_to_the_ledger_and_none_is_made_for_nothing(ledger):
    ledger.write_text("before\n")
    failures(message(1, {"id": "after", "amount": 1}))
    failures(message(2, {}))

    assert ledger.read_text() == "before\nafter\n"
