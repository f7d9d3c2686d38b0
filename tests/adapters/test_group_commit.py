"""One thread for one blocking medium: groups, cancellation, closing, and a medium that hangs or fails."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from poller.errors import StoreError
from poller.stores import _group_commit
from poller.stores._group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio


class Disk:
    """A medium that does nothing until it is let go."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.groups: list[Sequence[int]] = []
        self.closed = False

    def answer(self, requests: Sequence[int]) -> Sequence[object]:
        self.goes_on.wait(10)
        self.groups.append(requests)
        if -1 in requests:
            raise RuntimeError("no luck")
        return requests

    def close(self) -> None:
        self.closed = True


async def test_closing_finishes_what_was_asked_and_takes_nothing_more():
    disk = Disk()
    commits = GroupCommit("disk", lambda: disk)
    await commits.open()
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.append(await commits.ask(number))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, number)
        await anyio.lowlevel.checkpoint()
        tasks.start_soon(commits.aclose)
        await anyio.lowlevel.checkpoint()
        disk.goes_on.set()
    assert answers == [0, 1, 2, 3, 4]
    assert disk.closed
    with pytest.raises(StoreError, match="disk is closed"):
        await commits.ask(5)
    await commits.aclose()


async def test_closing_waits_for_a_disk_that_hangs_only_so_long(monkeypatch: pytest.MonkeyPatch):
    disk = Disk()
    commits = GroupCommit("disk", lambda: disk)
    await commits.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commits.ask, 1)
        await anyio.lowlevel.checkpoint()
        with monkeypatch.context() as patched:
            patched.setattr(_group_commit, "CLOSE_TIMEOUT", 0.01)
            with pytest.raises(StoreError, match="disk did not finish within"):
                await commits.aclose()
        tasks.cancel_scope.cancel()
    disk.goes_on.set()
    await commits.aclose()
    assert disk.closed


async def test_a_group_has_a_size_and_so_has_the_queue_before_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_group_commit, "MAX_GROUP", 3)
    monkeypatch.setattr(_group_commit, "MAX_WAITING", 7)
    disk = Disk()
    commits = GroupCommit("disk", lambda: disk)
    await commits.open()
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(commits.ask, number)
        await anyio.lowlevel.checkpoint()
        assert commits._inbox.qsize() <= 7
        disk.goes_on.set()
    await commits.aclose()
    assert [number for group in disk.groups for number in group] == list(range(20))
    assert max(map(len, disk.groups)) == 3


async def test_a_bug_in_a_group_is_answered_and_the_thread_lives_on():
    disk = Disk()
    disk.goes_on.set()
    commits = GroupCommit("disk", lambda: disk)
    await commits.open()
    with pytest.raises(StoreError, match="the state store failed: RuntimeError: no luck"):
        await commits.ask(-1)
    assert await commits.ask(1) == 1
    await commits.aclose()


async def test_a_medium_that_cannot_be_opened_says_so_and_takes_nothing():
    def open_disk() -> Disk:
        raise OSError("no disk")

    commits = GroupCommit("disk", open_disk)
    with pytest.raises(StoreError, match="the state store failed: OSError: no disk"):
        await commits.open()
    with pytest.raises(StoreError, match="disk is closed"):
        await commits.ask(1)
    await commits.aclose()


async def test_an_opening_that_is_cancelled_leaves_the_medium_closed():
    disk, may_open = Disk(), threading.Event()

    def open_disk() -> Disk:
        may_open.wait(10)
        return disk

    commits = GroupCommit("disk", open_disk)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commits.open)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    may_open.set()
    await commits.aclose()
    assert disk.closed


def test_a_loop_that_ends_early_leaves_the_thread_to_end_by_itself():
    disk = Disk()
    closed = threading.Event()
    disk.close = closed.set  # type: ignore[method-assign]

    async def leave() -> None:
        commits = GroupCommit("disk", lambda: disk)
        await commits.open()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(commits.ask, 1)
                await anyio.lowlevel.checkpoint()
                commits._close()
                scope.cancel()

    asyncio.run(leave())
    disk.goes_on.set()
    assert closed.wait(10)
