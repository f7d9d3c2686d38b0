"""The replays of a daemon: begun, saved, stopped, interrupted, gone on with, forgotten."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.app import replaying
from poller.app.replay_counts import Count
from poller.app.replay_sources import Opened
from poller.app.replaying import PREFIX, Replays, load
from poller.core.replay_wish import ReplayWish
from poller.errors import PollerError, StoreError
from poller.model import Checkpoint, Job
from poller.stores.memory import MemoryStore
from tests.engine.fakes import EPOCH, settle_down, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.app.replay_sources import Progress
    from poller.ports import Jobs

WISH = ReplayWish("clicks", "queue", "arn:of:a:queue")
COUNT = Count(100, "messages", "about 100 messages")


class Work:
    """One replay at work: it does a record a second until it has done `records`, or is told to be quiet."""

    def __init__(self, progress: Progress, records: int) -> None:
        self.progress = progress
        self.records = records
        self.quieted = anyio.Event()
        self.error: Exception | None = None

    def quiet(self) -> None:
        self.quieted.set()

    async def run(self) -> None:
        while self.progress.tally.succeeded < self.records and not self.quieted.is_set():
            with anyio.move_on_after(1):
                await self.quieted.wait()
            if self.error:
                raise self.error
            self.progress.tally.succeeded += 1


class Rig:
    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.records = 10
        self.works: list[Work] = []
        self.broken: StoreError | None = None
        self.opening: Exception | None = None
        began = anyio.current_time()
        self.replays = Replays(self.open, self.jobs, lambda: EPOCH + anyio.current_time() - began)

    async def jobs(self) -> Jobs:
        if self.broken:
            raise self.broken
        return self.store.jobs

    @asynccontextmanager
    async def open(self, wish: ReplayWish, progress: Progress) -> AsyncIterator[Opened]:
        if self.opening:
            raise self.opening
        work = Work(progress, self.records)
        self.works.append(work)

        def noted() -> None:
            progress.key = f"key-{progress.tally.succeeded}"

        yield Opened(
            work,
            note=lambda: "waiting",
            exhausted=lambda: progress.tally.succeeded >= self.records,
            noted=noted,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Replays]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.replays.run)
            await settle_down()
            yield self.replays
            await self.replays.stop(5.0)

    async def saved(self) -> dict[str, Any]:
        jobs = await self.store.jobs.jobs()
        return {one.id: one for one in map(load, jobs)}


@virtual
async def test_a_replay_runs_to_its_end_and_is_listed() -> None:
    rig = Rig()
    async with rig.running() as replays:
        shown = await replays.start(WISH, COUNT)
        assert (shown["state"], shown["total"], shown["unit"]) == ("running", 100, "messages")
        await anyio.sleep(5.5)
        shown = await replays.one(shown["id"])
        assert (shown["state"], shown["counts"]["succeeded"], shown["note"]) == ("running", 5, "waiting")
        await anyio.sleep(10)
        (shown,) = await replays.shown()
        assert (shown["state"], shown["counts"]["succeeded"]) == ("done", 10)
        assert shown["ended"] == pytest.approx(EPOCH + 10, abs=1.0)
        (saved,) = (await rig.saved()).values()
        assert (saved.state, saved.progress.key) == ("done", "key-10")
        with pytest.raises(PollerError, match="is done: there is nothing to resume"):
            await replays.resume(shown["id"])


@virtual
async def test_it_is_saved_about_once_a_second_and_interrupted_when_the_daemon_was_killed() -> None:
    rig = Rig()
    async with rig.running() as replays:
        shown = await replays.start(WISH, COUNT)
        await anyio.sleep(4.5)
        killed = Rig(MemoryStore())
        for job in await rig.store.jobs.jobs():
            await killed.store.jobs.save_job(job)
        await killed.store.jobs.save_job(Job("other", b"{}"))
    async with killed.running() as replays:
        (after,) = await replays.shown()
        assert (after["id"], after["state"]) == (shown["id"], "interrupted")
        assert after["reason"] == "the daemon ended while it ran"
        assert after["counts"]["succeeded"] in (3, 4)
        assert (await replays.resume(shown["id"]))["state"] == "running"
        await anyio.sleep(20)
        assert (await replays.one(shown["id"]))["counts"]["succeeded"] == 10


@virtual
async def test_a_replay_is_stopped_and_goes_on_where_it_was() -> None:
    rig = Rig()
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        await anyio.sleep(3.5)
        await replays.stop_one(id_)
        await settle_down()
        assert (await replays.one(id_))["state"] == "stopped"
        done = (await replays.one(id_))["counts"]["succeeded"]
        assert (await replays.stop_one(id_))["state"] == "stopped"
        await anyio.sleep(100)
        assert (await replays.one(id_))["counts"]["succeeded"] == done
        await replays.resume(id_)
        with pytest.raises(PollerError, match="is running: there is nothing to resume"):
            await replays.resume(id_)
        await anyio.sleep(20)
        assert (await replays.one(id_))["state"] == "done"
        assert rig.works[0].progress is rig.works[1].progress


@virtual
async def test_a_replay_that_ends_before_all_is_done_is_stopped() -> None:
    rig = Rig()
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        await settle_down()
        rig.records, rig.works[0].records = 100, 3
        await anyio.sleep(10)
        shown = await replays.one(id_)
        assert (shown["state"], shown["reason"]) == ("stopped", "waiting")


@virtual
async def test_a_stop_while_it_is_opened_is_not_lost() -> None:
    rig = Rig()
    opening, opened = anyio.Event(), rig.open

    @asynccontextmanager
    async def slowly(wish: ReplayWish, progress: Progress) -> AsyncIterator[Opened]:
        await opening.wait()
        async with opened(wish, progress) as one:
            yield one

    rig.replays._open = slowly
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        await settle_down()
        await replays.stop_one(id_)
        opening.set()
        await settle_down()
        assert (await replays.one(id_))["state"] == "stopped"


@virtual
async def test_a_mapping_has_one_replay_at_a_time() -> None:
    rig = Rig()
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        with pytest.raises(PollerError, match=f"replay {id_} of clicks runs"):
            await replays.start(WISH, COUNT)
        await replays.start(ReplayWish("orders", "queue", "arn"), COUNT)
        await anyio.sleep(20)
        await replays.start(WISH, COUNT)


@virtual
async def test_the_daemons_stop_interrupts_all_and_begins_no_other() -> None:
    rig = Rig()
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        await anyio.sleep(2.5)
    shown = await replays.one(id_)
    assert (shown["state"], shown["reason"]) == ("interrupted", "the daemon was stopped")
    (saved,) = (await rig.saved()).values()
    assert saved.state == "interrupted"
    with pytest.raises(PollerError, match="the daemon is stopping"):
        await replays.start(WISH, COUNT)


@virtual
async def test_what_does_not_end_in_time_is_cut_short() -> None:
    rig = Rig()
    async with rig.running() as replays:
        first = (await replays.start(WISH, COUNT))["id"]
        second = (await replays.start(ReplayWish("orders", "queue", "arn"), COUNT))["id"]
        await anyio.sleep(1.5)
        for work in rig.works:
            work.quiet = lambda: None  # type: ignore[method-assign]
            work.records = 1000
        await replays.interrupt("the configuration has changed", 3.0, {"clicks"})
        shown = await replays.one(first)
        assert (shown["state"], shown["reason"]) == ("interrupted", "the configuration has changed")
        assert (await replays.one(second))["state"] == "running"
        replays.stop_now()
        await settle_down()
        assert (await replays.one(second))["state"] == "interrupted"


@virtual
async def test_a_replay_that_cannot_be_opened_says_why_and_can_be_resumed() -> None:
    rig = Rig()
    rig.opening = PollerError("no such queue")
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        await settle_down()
        shown = await replays.one(id_)
        assert (shown["state"], shown["reason"]) == ("failed", "no such queue")
        rig.opening = None
        await replays.resume(id_)
        await anyio.sleep(20)
        assert (await replays.one(id_))["state"] == "done"


@virtual
async def test_a_bug_ends_one_replay_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    async with rig.running() as replays:
        first = (await replays.start(WISH, COUNT))["id"]
        second = (await replays.start(ReplayWish("orders", "queue", "arn"), COUNT))["id"]
        await anyio.sleep(1.5)
        rig.works[0].error = ZeroDivisionError("oops")
        await anyio.sleep(3)
        assert (await replays.one(first))["reason"] == "crashed: ZeroDivisionError: oops"
        assert (await replays.one(second))["state"] == "running"
    assert any("a bug in poller" in record.message for record in caplog.records)


@virtual
async def test_a_store_that_cannot_be_written_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    async with rig.running() as replays:
        id_ = (await replays.start(WISH, COUNT))["id"]
        await settle_down()
        rig.broken = StoreError("the disk is full")
        await anyio.sleep(20)
        assert (await replays.one(id_))["state"] == "done"
    assert any("the disk is full" in record.message for record in caplog.records)


@virtual
async def test_only_the_last_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "REMEMBERED", 2)
    rig = Rig()
    rig.records = 0
    async with rig.running() as replays:
        ids = []
        for _ in range(5):
            ids.append((await replays.start(WISH, COUNT))["id"])
            await settle_down()
        assert [one["id"] for one in await replays.shown()] == ids[-3:]
        assert list(await rig.saved()) == ids[-3:]


@virtual
async def test_an_id_that_is_not_there_is_a_key_error() -> None:
    rig = Rig()
    async with rig.running() as replays:
        for command in (replays.one, replays.resume, replays.stop_one):
            with pytest.raises(KeyError):
                await command("nobody")


@virtual
async def test_how_far_a_range_is_survives_being_kept() -> None:
    rig = Rig()
    async with rig.running() as replays:
        await replays.start(ReplayWish("clicks", "range", start="TRIM_HORIZON"), Count(None, "records", ""))
        await settle_down()
        rig.works[0].progress.shards = {"s-1": Checkpoint("7", 3)}
    (job,) = await rig.store.jobs.jobs()
    assert job.id.startswith(PREFIX)
    kept = load(job)
    assert kept.progress.shards == {"s-1": Checkpoint("7", 3)}
    assert kept.shown()["done"] == kept.progress.tally.done


@virtual
async def test_what_makes_no_sense_in_the_store_keeps_no_replay_from_being_run() -> None:
    rig = Rig()
    for number, state in enumerate((b"{}", b"[]", b"what?", b'{"wish": {}, "progress": {}}')):
        await rig.store.jobs.save_job(Job(f"{PREFIX}{number}", state))
    async with rig.running() as replays:
        assert await replays.shown() == []
        await replays.start(WISH, COUNT)
        await anyio.sleep(20)
        assert [one["state"] for one in await replays.shown()] == ["done"]


@virtual
async def test_an_odd_reason_for_its_end_is_kept_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    # What is captured goes from one process of the tests to another, as UTF-8.
    caplog.set_level("CRITICAL", logger="poller.replay")
    rig = Rig()
    async with rig.running() as replays:
        await replays.start(WISH, COUNT)
        await settle_down()
        rig.works[0].error = ZeroDivisionError("half \ud83d")
        await anyio.sleep(5)
        (one,) = (await rig.saved()).values()
        assert (one.state, one.reason) == ("failed", "crashed: ZeroDivisionError: half \ud83d")
