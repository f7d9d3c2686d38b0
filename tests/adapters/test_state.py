"""What `[daemon] state` is opened as, and what it has."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from poller.app import lease_tables
from poller.app.state import State, worker_id
from poller.config import parse
from poller.errors import StoreError
from poller.stores.memory import MemoryStore
from poller.stores.sqlite import SqliteStore
from tests.engine.fakes import Recorder, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


MAPPING = """
[functions.f]
handler = "handlers.echo:handler"
[[mappings]]
name = "clicks"
event_source_arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
function_name = "f"
starting_position = "LATEST"
"""


@asynccontextmanager
async def state(daemon: str) -> AsyncIterator[State]:
    config = parse(f"[daemon]\n{daemon}\n{MAPPING}", where="f", environ={}, now=0)
    one = State(config, Recorder(), world())
    try:
        yield one
    finally:
        await one.aclose()


async def test_a_state_of_one_daemon_has_no_leases(tmp_path: Path) -> None:
    for where, kind in (("memory:", MemoryStore), (f"sqlite:{tmp_path / 'poller.db'}", SqliteStore)):
        async with state(f'state = "{where}"') as one, anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            assert isinstance(await one.store(), kind)
            assert one.leases is None
            assert await one.spool() is (await one.store()).spool
            assert await one.jobs() is (await one.store()).jobs
            one.quiet()


async def test_a_file_that_is_shared_is_opened_twice_and_has_leases(tmp_path: Path) -> None:
    daemon = f'state = "sqlite:{tmp_path / "poller.db"}"\nfleet = true\nfailover_time = 30'
    async with state(daemon) as one, state(daemon) as two, anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        store = await one.store()
        assert await one.store() is store, "it is opened once"
        await two.store()
        assert one.leases
        assert two.leases
        assert one.leases.failover_time == 30
        assert one.leases.worker.id != two.leases.worker.id
        one.quiet()


@pytest.mark.parametrize("daemon", ['state = "dynamodb:leases"', 'state = "sqlite:poller.db"\nfleet = true'])
async def test_what_waits_and_replays_are_refused_where_the_state_is_shared(daemon: str) -> None:
    async with state(daemon) as one:
        for ask in (one.spool, one.jobs):
            with pytest.raises(
                StoreError, match="is shared by several daemons and has neither a spool nor replays"
            ):
                await ask()


async def test_a_store_is_not_given_out_before_its_leases_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def beside(*_: object) -> None:
        raise StoreError("a table of another application")

    daemon = f'state = "sqlite:{tmp_path / "poller.db"}"\nfleet = true'
    async with state(daemon) as one:
        with monkeypatch.context() as patch:
            patch.setattr(lease_tables, "beside", beside)
            for _ in range(2):
                with pytest.raises(StoreError, match="of another application"):
                    await one.store()
        await one.store()
        assert one.leases


def test_a_worker_has_another_name_in_each_life() -> None:
    assert worker_id() != worker_id()
