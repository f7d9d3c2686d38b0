"""A server that answers each request with bytes that a test chose, and a proxy in front of one."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True)
class Say:
    """Send these bytes, then leave the connection open, close it, or reset it."""

    data: bytes
    then: Literal["stay", "close", "reset"] = "stay"


def reply(body: bytes = b"{}", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A reply with a Content-Length and `headers`."""
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, b"", body])


class RawServer:
    """Answers with `answers` in order, whatever connection the request comes on; with the last one for ever."""

    def __init__(self, *answers: Say, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.resumed: list[bool] = []
        """For each TLS connection, whether it went on with an earlier session."""
        self.closed = asyncio.Event()
        """The client has closed a connection."""
        self.asked = asyncio.Event()
        self.address = ""
        self._answers = list(answers)
        self._tls = tls
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def say(self, data: bytes) -> None:
        """Send without being asked, on the last connection."""
        self._writers[-1].write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            self.closed.set()
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
        )
        self.requests.append(head + await reader.readexactly(size))
        self.asked.set()
        if self._tls is not None and len(self.resumed) < self.connections:
            self.resumed.append(bool(writer.get_extra_info("ssl_object").session_reused))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        writer.write(answer.data)
        await writer.drain()
        if answer.then == "reset":
            sock: Any = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return answer.then == "stay"


class RawProxy:
    """Answers CONNECT with `answer`, and leads to `address` when that is a 200."""

    def __init__(self, address: str, answer: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.address = ""
        self._to = address.rsplit(":", 1)
        self._answer = answer
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._answer)
            await writer.drain()
            if self._answer.startswith(b"HTTP/1.1 200"):
                there, back = await asyncio.open_connection(self._to[0], int(self._to[1]))
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(_copy(reader, back))
                    ways.create_task(_copy(there, writer))
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
