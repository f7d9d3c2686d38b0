"""The connections to one endpoint: kept open between requests, as many as are asked at the same time.

Who asks takes the connection that was used last, so that those which are not needed grow old and are closed, before the server
would. One timer serves all requests and all idle connections: it is set for the earliest of what may be due, and looks at all
when it rings, which is far more rarely than there are requests.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from typing import TYPE_CHECKING, Self

from poller import __version__
from poller.aws.connection import Connection

if TYPE_CHECKING:
    from poller.aws.connection import Reply
    from poller.aws.dial import Route

#: Requests at the same time. The mappings' own limits are what bounds them; this is for mistakes.
MOST_CONNECTIONS = 10_000
#: Seconds for which an idle connection is kept: load balancers close theirs after 60. A server that says what it does
#: (Keep-Alive: timeout=5) is believed, less the second that a request may be on its way.
KEEP_ALIVE = 50.0
ON_ITS_WAY = 1.0
_KEEP_ALIVE = re.compile(r"\btimeout=(\d{1,6})\b")


def _start_of(route: Route) -> bytes:
    headers = {"User-Agent": f"poller/{__version__}", **route.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {route.request_target} HTTP/1.1\r\n{lines}".replace("%", "%%").encode()


class Pool:
    """Connections over `route`. An async context manager; leaving it closes them, and whoever still waits hears of it."""

    def __init__(self, route: Route, most: int = MOST_CONNECTIONS) -> None:
        self._route = route
        # As one write, so that it leaves in one packet if it can.
        self._request = _start_of(route) + b"%bContent-Length: %d\r\n\r\n%b"
        self._loop = asyncio.get_running_loop()
        self._most = most
        self._taken = 0
        self._turns: deque[asyncio.Future[None]] = deque()
        self._idle: list[Connection] = []
        self._asked: dict[Connection, float] = {}
        self._open: set[Connection] = set()
        self._closed: asyncio.Future[None] | None = None
        self._keep_alive = KEEP_ALIVE
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pool {len(self._asked)} connections asked, {len(self._idle)} idle>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = self._loop.create_future()
        self.forget()
        for connection in list(self._open):
            connection.end()
        if self._timer is not None:
            self._timer.cancel()
        if self._open:
            await self._closed

    async def post(self, headers: bytes, body: bytes, timeout: float) -> Reply:
        """Send one request with these header lines and return its reply, within `timeout` seconds.

        Raises what `Route.connect` and `Connection.ask` do, and TimeoutError.
        """
        now = self._loop.time()
        deadline = now + timeout
        if self._taken < self._most:
            self._taken += 1
        else:
            await self._turn(timeout)
        try:
            connection = self._take(now) or await self._connect(deadline)
            self._asked[connection] = deadline
            if deadline < self._rings_at:
                self._ring_at(deadline)
            try:
                reply = await connection.ask(self._request % (headers, len(body), body))
            except BaseException:
                connection.end()
                raise
            finally:
                del self._asked[connection]
        finally:
            self._leave()
        if connection.replies == 1:
            self._learn(connection, reply)
        if connection.is_idle:
            self._keep(connection)
        return reply

    def forget(self) -> None:
        """Close the idle connections: one of them turned out to be gone, so the others may be too."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.end()

    async def _turn(self, timeout: float) -> None:
        """Wait for the place of somebody who leaves; who came first is served first."""
        turn = self._loop.create_future()
        self._turns.append(turn)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _take(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_idle and now < connection.idle_until:
                return connection
            connection.end()
        return None

    async def _connect(self, deadline: float) -> Connection:
        if self._closed is not None:
            raise ConnectionAbortedError("poller is closing its connections")
        connection = Connection(self._loop, self._ended)
        self._open.add(connection)
        try:
            await self._route.connect(connection, deadline - self._loop.time())
        except BaseException:
            connection.end()
            self._ended(connection)
            raise
        return connection

    def _learn(self, connection: Connection, reply: Reply) -> None:
        self._route.remember(connection)
        if found := _KEEP_ALIVE.search(reply.header("Keep-Alive")):
            self._keep_alive = min(KEEP_ALIVE, int(found[1]) - ON_ITS_WAY)

    def _keep(self, connection: Connection) -> None:
        connection.idle_until = until = self._loop.time() + self._keep_alive
        self._idle.append(connection)
        if until < self._rings_at:
            self._ring_at(until)

    def _ended(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._closed is not None and not self._open and not self._closed.done():
            self._closed.set_result(None)

    # --- the timer ------------------------------------------------------------------------------------------------------

    def _ring_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        # Timers count in milliseconds, so this one may be a moment early.
        now = self._loop.time() + 0.001
        for connection, deadline in list(self._asked.items()):
            if deadline <= now:
                connection.end(TimeoutError("the endpoint did not answer in time"))
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.idle_until <= now:
                connection.end()
            elif connection.is_idle:
                self._idle.append(connection)
        self._timer, self._rings_at = None, math.inf
        waiting = [deadline for deadline in self._asked.values() if deadline > now]
        if times := [*waiting, *(connection.idle_until for connection in self._idle)]:
            self._ring_at(min(times))
