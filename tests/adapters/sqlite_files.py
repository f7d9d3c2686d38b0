"""State files for tests: made, opened, spoiled, refused."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import anyio
import pytest

from poller.errors import StoreError
from poller.model import Checkpoint
from poller.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, patience=0)
    try:
        yield store
    finally:
        await store.aclose()


async def refusal(path: Path) -> str:
    """The one line with which `path` is refused; nothing of what is there may change."""
    before = contents(path)
    with pytest.raises(StoreError) as caught:
        await SqliteStore.open(path, patience=0)
    assert contents(path) == before
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.glob("*") if file.is_file()}


async def a_state_file(path: Path, shards: int = 1) -> None:
    async with opened(path) as store, anyio.create_task_group() as tasks:
        for number in range(shards):
            tasks.start_soon(store.save, "clicks", f"shard-{number}", Checkpoint("1"))


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def names(place: Path) -> list[str]:
    return [file.name for file in place.iterdir()]


def statement(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(sql)
