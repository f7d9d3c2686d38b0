"""Failed records of a queue's mapping: what is offered, how often, in which order, and what becomes of their letters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.core.pace import Allowance
from poller.core.replay import Tally
from poller.model import Record
from poller.sources._letters import Letter
from poller.sources.failed_messages import Attempts, FailedMessages
from tests.adapters.replay_reading import Box
from tests.engine.fakes import virtual

if TYPE_CHECKING:
    from collections.abc import Sequence

ARN = "arn:aws:sqs:eu-west-1:123456789012:orders"


def message(name: str, group: str | None = None) -> dict[str, Any]:
    attributes = {} if group is None else {"MessageGroupId": group}
    return {"messageId": name, "body": name, "attributes": attributes, "eventSourceARN": ARN}


def invocation(*names: str, arn: str = ARN) -> dict[str, Any]:
    return {
        "requestContext": {"condition": "RetriesExhausted"},
        "requestPayload": {"Records": [message(name) | {"eventSourceARN": arn} for name in names]},
    }


class Rig:
    def __init__(self, box: Box, *, allowed: int = 2, rate: float | None = None, **more: Any) -> None:
        self.box = box
        self.tally = Tally()
        self.error = ("ValueError", "no such order")
        attempts = Attempts(allowed, lambda: self.error, lambda: 0.0)
        settings = {"dead_letters": False, "fifo": False} | more
        self.reader = FailedMessages(
            box,
            ARN,
            settings.pop("passes", lambda record: True),
            settings.pop("wants", lambda record: True),
            attempts,
            Allowance(rate),
            self.tally,
            **settings,
        )

    async def receive(self, limit: int = 10, wait: float = 2.0) -> list[Record]:
        return list(await self.reader.receive(limit, wait))


def names(records: Sequence[Record]) -> list[str]:
    return [record.event["body"] for record in records]


def dead_letters(*messages: dict[str, Any]) -> Box:
    box = Box()
    for event in messages:
        record = Record(event["messageId"], None, 1, event, "receipt")
        box.waiting.append(Letter(record.id, event["body"], record))
    return box


@virtual
async def test_an_invocation_record_gives_its_records_and_is_done_with_when_all_of_them_are():
    rig = Rig(Box(invocation("a", "b", "c"), invocation("d")))
    first, second = await rig.receive(2), await rig.receive(2)
    assert (names(first), names(second)) == (["a", "b"], ["c", "d"])
    await rig.reader.ack(first)
    assert rig.box.finished == []
    assert not rig.reader.ended
    await rig.reader.ack(second)
    assert rig.box.finished == ["m1", "m2"]
    assert rig.tally == Tally(succeeded=4, messages=2)
    assert rig.reader.ended
    assert rig.reader.exhausted
    assert await rig.receive() == []
    assert "0 letters open" in repr(rig.reader)
    assert rig.reader.note == ""


@virtual
async def test_what_fails_is_offered_again_afresh_after_a_pause_and_then_kept():
    rig = Rig(Box(invocation("a", "b")))
    records = await rig.receive()
    records[0].event.clear()
    began = anyio.current_time()
    await rig.reader.ack(records[1:])
    await rig.reader.release(records[:1], None)
    again = await rig.receive()
    assert names(again) == ["a"]
    assert anyio.current_time() - began == 0.5
    await rig.reader.release(again, None)
    assert (rig.box.kept, rig.box.finished) == (["m1"], [])
    assert (rig.tally.succeeded, rig.tally.failed, rig.tally.kept) == (1, 1, 1)
    assert rig.tally.errors == {"ValueError": 1}
    assert rig.tally.failed_ids == ["a"]
    assert rig.reader.ended


@virtual
async def test_what_no_handler_saw_is_offered_first_and_has_lost_no_attempt():
    rig = Rig(Box(invocation("a", "b", "c")), allowed=1)
    records = await rig.receive(2)
    await rig.reader.release(records, 0.0)
    assert names(await rig.receive(3)) == ["a", "b", "c"]
    assert rig.tally.failed == 0


@virtual
async def test_a_dead_letter_is_the_record():
    rig = Rig(dead_letters(message("a"), message("b")), dead_letters=True)
    records = await rig.receive()
    assert names(records) == ["a", "b"]
    await rig.reader.ack(records)
    assert rig.box.finished == ["a", "b"]


@virtual
async def test_a_letter_that_does_not_go_is_counted_as_one_that_stays():
    rig = Rig(Box(invocation("a"), invocation("b")))
    rig.box.stubborn = {"m1"}
    await rig.reader.ack(await rig.receive())
    assert (rig.box.finished, rig.tally.messages, rig.tally.kept) == (["m2"], 1, 1)


@virtual
async def test_what_filters_drop_is_done_with():
    rig = Rig(Box(invocation("a", "b"), invocation("b")), passes=lambda record: record.id != "b")
    records = await rig.receive()
    assert names(records) == ["a"]
    assert rig.box.finished == ["m2"]
    assert rig.tally.filtered == 2


@virtual
async def test_a_letter_of_which_not_all_was_asked_for_stays_with_what_is_left_out():
    letters = Box(invocation("a", "b"), invocation("b"), invocation("a"), invocation("a", "b"))
    rig = Rig(letters, wants=lambda record: record.id == "a", allowed=1)
    one, two, three = await rig.receive()
    assert rig.box.kept == ["m2"]
    await rig.reader.ack([one, two])
    await rig.reader.release([three], None)
    assert (rig.box.finished, rig.box.kept) == (["m3"], ["m2", "m1", "m4"])
    assert (rig.tally.filtered, rig.tally.kept, rig.tally.passed_over) == (3, 3, 2)
    assert rig.reader.exhausted


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(invocation("a") | {"requestContext": {"condition": "Success"}}).encode(),
        b"what?",
        json.dumps(invocation("a", arn="arn:of:another")).encode(),
        json.dumps(invocation()).encode(),
    ],
)
@virtual
async def test_what_is_no_invocation_of_this_queue_is_kept(body: bytes):
    rig = Rig(Box(body, invocation("a")))
    assert names(await rig.receive()) == ["a"]
    assert rig.box.kept == ["m1"]
    assert rig.tally.unreadable == 1


@virtual
async def test_an_empty_box_is_waited_at_for_as_long_as_was_asked():
    rig = Rig(dead_letters(message("a")), dead_letters=True)
    await rig.receive()
    began = anyio.current_time()
    assert await rig.receive(wait=3.0) == []
    assert anyio.current_time() - began == 3.0
    assert not rig.reader.ended


@virtual
async def test_whoever_waits_hears_that_the_last_has_been_settled():
    rig = Rig(dead_letters(message("a")), dead_letters=True)
    records = await rig.receive()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            assert await rig.receive(wait=100.0) == []
            assert anyio.current_time() - began < 10

        began = anyio.current_time()
        tasks.start_soon(wait)
        await anyio.sleep(1)
        await rig.reader.ack(records)


@virtual
async def test_the_messages_of_a_group_keep_their_order_over_failures_and_workers():
    events = [message(f"{group}{number}", group) for number in (1, 2) for group in "ab"]
    rig = Rig(dead_letters(*events), dead_letters=True, fifo=True, allowed=3)
    (first,) = await rig.receive(1)
    (second,) = await rig.receive(1)
    assert names([first, second]) == ["a1", "b1"]
    assert await rig.receive(2, wait=0.1) == []
    await rig.reader.release([first], None)
    await rig.reader.ack([second])
    (third,) = await rig.receive(2, wait=0.1)
    assert names([third]) == ["b2"]
    again = await rig.receive(1)
    assert names(again) == ["a1"]
    await rig.reader.ack(again)
    assert names(await rig.receive(2)) == ["a2"]


@virtual
async def test_a_standard_queue_has_no_order_even_with_groups():
    rig = Rig(dead_letters(message("a", "g"), message("b", "g")), dead_letters=True)
    assert [names(await rig.receive(1)) for _ in range(2)] == [["a"], ["b"]]


@virtual
async def test_no_more_than_the_rate_is_handed_out():
    rig = Rig(Box(*(invocation(f"{number}") for number in range(30))), rate=10.0)
    began = anyio.current_time()
    while not rig.reader.ended:
        await rig.reader.ack(await rig.receive(5))
    assert 2.5 <= anyio.current_time() - began <= 4.0
    assert await rig.receive(wait=0.1) == []
