"""A queue of failed records: what is taken, deleted, kept out of the way and shown again; and when it has come to its end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.errors import AwsError
from poller.sources import failed_queue
from poller.sources.failed_queue import HIDDEN, counts, open_failed_queue
from poller.sources.sqs import QueueId
from tests.engine.fakes import Recorder, virtual
from tests.fake_sqs import FakeSqs, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from poller.sources._letters import Letter
    from poller.sources.failed_queue import FailedQueue


@asynccontextmanager
async def opened(queue: FakeSqs) -> AsyncIterator[FailedQueue]:
    identity = QueueId(
        mapping="clicks",
        arn="arn:aws:sqs:eu-west-1:123456789012:failed",
        region="eu-west-1",
        account="123456789012",
        name=queue.name,
        fifo=queue.fifo,
        function_timeout=0,
    )

    async def connect() -> Any:
        return queue.api

    async with open_failed_queue(identity, connect, Recorder()) as box:
        yield box


async def taken(box: FailedQueue) -> list[Letter]:
    """All letters, until it has ended."""
    letters: list[Letter] = []
    while not box.ended:
        found: Sequence[Letter] = await box.take(10)
        letters += found
        if not found and letters:
            break
    return letters


@virtual
async def test_what_is_done_with_is_deleted_and_what_is_kept_is_shown_again_at_the_end():
    queue = FakeSqs()
    for body in ("a", "b", "c", "d"):
        queue.send(body)
    async with opened(queue) as box:
        one, two, three, four = await taken(box)
        assert [letter.body for letter in (one, two, three, four)] == ["a", "b", "c", "d"]
        assert "4 held, 0 kept" in repr(box)
        await box.done([one])
        await box.keep([two, three])
        assert queue.visible == []
    # The last was taken and not settled.
    assert queue.visible == ["b", "c", "d"]


@virtual
async def test_an_empty_queue_ends_at_once():
    queue = FakeSqs()
    async with opened(queue) as box:
        began = anyio.current_time()
        assert await taken(box) == []
        assert box.ended
        assert anyio.current_time() - began < 5


@virtual
async def test_it_has_not_ended_while_letters_are_in_hand():
    queue = FakeSqs()
    queue.send("a")
    async with opened(queue) as box:
        (letter,) = await box.take(10)
        assert await box.take(10) == ()
        assert not box.ended
        await box.done([letter])
        assert await box.take(10) == ()
        assert box.ended


@virtual
async def test_messages_that_somebody_else_has_received_are_waited_for():
    queue = FakeSqs(visibility_timeout=20)
    queue.send("a")
    received = {"QueueUrl": queue.url, "MaxNumberOfMessages": 1, "WaitTimeSeconds": 0}
    await queue.api("ReceiveMessage", received, 10)
    async with opened(queue) as box:
        assert await box.take(10) == ()
        assert not box.ended
        assert box.note == "waiting for 1 messages that somebody else has received"
        letters: Sequence[Letter] = ()
        while not letters:
            letters = await box.take(10)
        assert [letter.body for letter in letters] == ["a"]
        assert box.note == ""


@virtual
async def test_they_are_not_waited_for_longer_than_the_queue_hides_them():
    queue = FakeSqs(visibility_timeout=20)
    queue.send("a")
    await queue.api(
        "ReceiveMessage", {"QueueUrl": queue.url, "MaxNumberOfMessages": 1, "WaitTimeSeconds": 0}, 10
    )
    next(iter(queue.messages.values())).visible_at = 10_000.0
    async with opened(queue) as box:
        began = anyio.current_time()
        while not box.ended:
            assert await box.take(10) == ()
        assert 20 < anyio.current_time() - began < 30
        assert box.note == "1 messages that somebody else has received did not come back"


@virtual
async def test_a_letter_that_is_kept_is_taken_once_however_long_the_replay_lasts():
    queue = FakeSqs()
    queue.send("a")
    async with opened(queue) as box:
        await box.keep(await box.take(10))
        await anyio.sleep(HIDDEN - 10)
        assert queue.visible == []
        await anyio.sleep(20)
        assert queue.visible == ["a"]
        queue.send("b")
        assert [letter.body for letter in await box.take(10)] == ["b"]
        assert queue.visible == []


@virtual
async def test_with_too_many_failures_it_goes_no_further(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failed_queue, "KEPT", 2)
    queue = FakeSqs()
    for body in ("a", "b", "c"):
        queue.send(body)
    async with opened(queue) as box:
        letters = await box.take(10)
        await box.keep(letters[:1])
        assert not box.ended
        await box.keep(letters[1:2])
        assert box.ended
        assert box.cut_short
        assert box.note == "2 messages failed again: it went no further"


@virtual
async def test_what_waits_behind_a_failure_of_its_group_is_told_of():
    queue = FakeSqs(fifo=True)
    for body in ("a", "b", "c"):
        queue.send(body, group="g")
    async with opened(queue) as box:
        (first,) = await box.take(1)
        await box.keep([first])
        while not box.ended:
            assert await box.take(10) == ()
        assert box.note == "2 messages wait behind those that stay, in their groups"
        assert not box.cut_short


@virtual
async def test_what_is_given_back_comes_again():
    queue = FakeSqs()
    queue.send("a")
    async with opened(queue) as box:
        (letter,) = await box.take(10)
        await box.again(letter, 5.0)
        assert queue.visible == []
        await anyio.sleep(5.5)
        (again,) = await box.take(10)
        assert (again.body, again.handle.event["attributes"]["ApproximateReceiveCount"]) == ("a", "2")


@virtual
async def test_a_reply_without_counts_is_an_error():
    queue = FakeSqs()
    queue.script("GetQueueAttributes", Fault(reply={"Attributes": {}}))
    with pytest.raises(AwsError, match="a reply without counts"):
        await counts(queue.api, queue.url)
