"""Settling: each of the three ways, and what is told of it."""

from __future__ import annotations

from poller.engine.settle import Settler
from poller.model import Settled, Shard
from tests.engine.fakes import Queue, Recorder, virtual


@virtual
async def test_nothing_is_asked_and_nothing_told_about_no_records():
    observer = Recorder()
    async with Queue().open(Shard("queue")) as reader:
        settler = Settler("orders", reader, observer)
        await settler.done([])
        await settler.leave([])
        await settler.give_back([])
    assert observer.facts == []


@virtual
async def test_only_what_the_source_confirms_counts_as_deleted():
    observer, queue = Recorder(), Queue(visibility=5, extends=False)
    queue.send(2)
    async with queue.open(Shard("queue")) as reader:
        records = await reader.receive(10, 0)
        # Somebody else deletes one of the two.
        queue.delete(queue.messages[0])
        await Settler("orders", reader, observer).done(records)
    assert observer.facts == [Settled("orders", deleted=1)]


@virtual
async def test_records_are_left_or_given_back():
    observer, queue = Recorder(), Queue()
    queue.send(2)
    async with queue.open(Shard("queue")) as reader:
        one, other = await reader.receive(10, 0)
        settler = Settler("orders", reader, observer)
        await settler.leave([one])
        await settler.give_back([other])
        assert queue.waiting == [other.id]
    assert observer.facts == [Settled("orders", left=1), Settled("orders", released=1)]
