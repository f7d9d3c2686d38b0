"""A TCP proxy in front of an endpoint that can be cut and mended: what a destination looks like that is down for a while.

async with Cable(endpoint_url) as cable:
    ...                      # a client of cable.endpoint_url
    cable.cut()              # connections break; new ones are accepted and broken at once
    cable.mend()
"""

from __future__ import annotations

import asyncio
from typing import Self
from urllib.parse import urlsplit


class Cable:
    """The proxy. An async context manager."""

    def __init__(self, endpoint_url: str) -> None:
        parts = urlsplit(endpoint_url)
        self._to = parts.hostname, parts.port
        self._writers: set[asyncio.StreamWriter] = set()
        self.refused = 0
        """Connections that came while it was cut."""
        self.is_cut = False
        self.endpoint_url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._break()
        await self._server.wait_closed()

    def cut(self) -> None:
        self.is_cut = True
        self._break()

    def mend(self) -> None:
        self.is_cut = False

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            self.refused += 1
            writer.transport.abort()
            return
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, to_writer))
                tasks.create_task(_pump(to_reader, writer))
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(2**16):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        # The other direction has nobody to answer any more.
        writer.close()
