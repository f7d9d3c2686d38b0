"""A TCP proxy that can be down: nobody listens, and what was connected is cut off."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from anyio.from_thread import start_blocking_portal

from tests.e2e.harness import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.from_thread import BlockingPortal


class Proxy:
    """In front of the server at `endpoint_url`; down at first."""

    def __init__(self, portal: BlockingPortal, endpoint_url: str) -> None:
        self.port = free_port()
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        self._portal = portal
        self._target = urlsplit(endpoint_url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def up(self) -> None:
        self._portal.call(self._up)

    def down(self) -> None:
        self._portal.call(self._down)

    async def _up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        both = {writer, their_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, their_writer))
                pumps.create_task(_pump(their_reader, writer))
        finally:
            self._writers -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def proxy(endpoint_url: str) -> Iterator[Proxy]:
    with start_blocking_portal() as portal:
        made = Proxy(portal, endpoint_url)
        try:
            yield made
        finally:
            made.down()
