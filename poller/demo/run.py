"""`poller demo`: a real daemon, real HTTP, an emulator of AWS, and an account of every order at the end."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import anyio.to_thread

import poller
from poller.demo.child import free_port, start_child, stop_child, tail
from poller.demo.emulator import Emulator, find_ministack
from poller.demo.show import Counters, Screen
from poller.demo.streams import CLICKS, CUSTOMERS
from poller.demo.tally import settle
from poller.demo.traffic import (
    CREDENTIALS,
    DEAD_LETTER_QUEUES,
    FAILED_QUEUE,
    MAX_RECEIVE_COUNT,
    QUEUES,
    VISIBILITY_TIMEOUT,
    Traffic,
)
from poller.errors import PollerError
from poller.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

    from poller.demo.tally import Tally

#: Seconds until a broken order has failed often enough to be dead-lettered, and a few to spare.
DRAIN_WITHIN = VISIBILITY_TIMEOUT * (MAX_RECEIVE_COUNT + 1) + 5
#: Seconds for the daemon to end; its own limit in `demo.toml` is 5.
STOP_WITHIN = 10.0
#: Seconds until the daemon answers for the first time.
START_WITHIN = 20.0
PERIOD = 1.0


class DemoError(PollerError):
    """The demo cannot go on."""


def find_config() -> Path:
    """Return the path of demo.toml: inside the package once installed, in `config/` in a checkout."""
    package = Path(poller.__file__).parent
    for path in (package / "demo" / "demo.toml", package.parent / "config" / "demo.toml"):
        if path.exists():
            return path
    raise DemoError("demo.toml is missing: install poller anew")


async def run_demo(seconds: float | None, *, rate: float = 50, screen: Screen | None = None) -> int:
    """Run for `seconds`, or until SIGINT or SIGTERM; return the exit code: 0 when no order was lost, else 1.

    A second signal ends the drain. Raises PollerError, possibly in a group, when something cannot start or dies.
    """
    screen = screen or Screen()
    wish = _Wish()
    async with anyio.create_task_group() as tasks:
        await tasks.start(wish.hear_signals)
        with TemporaryDirectory(prefix="poller-demo-") as folder:
            tally = await _run(Path(folder), seconds, rate, screen, wish)
        tasks.cancel_scope.cancel()
    screen.say(str(tally))
    return 1 if tally.lost else 0


@dataclass
class _Wish:
    """What the user wants: to stop, and then not to wait any longer."""

    stop: anyio.Event = field(default_factory=anyio.Event)
    hurry: anyio.Event = field(default_factory=anyio.Event)

    async def hear_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                (self.hurry if self.stop.is_set() else self.stop).set()


async def _run(folder: Path, seconds: float | None, rate: float, screen: Screen, wish: _Wish) -> Tally:
    screen.say("demo: starting the emulator and the daemon; Ctrl-C ends the demo")
    program = await anyio.to_thread.run_sync(find_ministack, screen.say)
    async with Emulator(program) as emulator, Traffic(emulator.endpoint_url, rate=rate) as traffic:
        screen.say(f"demo: ministack {emulator.version} at {emulator.endpoint_url}")
        daemon = _Daemon(folder, emulator.endpoint_url, traffic.streams.customers_arn)
        with daemon.running(), screen:
            stage = _Stage(daemon, traffic, screen)
            await stage.play(seconds, wish)
            await stage.drain(wish)
            code = await daemon.stop()
        if code:
            raise DemoError(f"the daemon ended with status {code}; its last words:\n{tail(daemon.log)}")
        left = await _take_all(traffic) | await _behind(traffic, daemon.state)
        dead = {order for queue in DEAD_LETTER_QUEUES for order in await traffic.take(queue)}
        dead |= await traffic.take_given_up()
    return settle(traffic.sent, daemon.ledger(), dead, left)


async def _take_all(traffic: Traffic) -> set[str]:
    """Empty the queues. What a killed daemon left invisible comes back within the visibility timeout."""
    left: set[str] = set()
    with anyio.move_on_after(VISIBILITY_TIMEOUT + 2):
        while await traffic.waiting(*QUEUES):
            for queue in QUEUES:
                left |= await traffic.take(queue)
            await anyio.sleep(0.1)
    return left


async def _behind(traffic: Traffic, state: Path) -> set[str]:
    """What the streams hold behind the checkpoints that the daemon has left."""
    store = await SqliteStore.open(state)
    try:
        return await traffic.streams.behind(await store.load(CLICKS), await store.load(CUSTOMERS))
    finally:
        await store.aclose()


class _Daemon:
    """`poller run` as a process, with the demo's config."""

    def __init__(self, folder: Path, endpoint_url: str, table_stream: str) -> None:
        self.log = folder / "daemon.log"
        self.state = folder / "poller.db"
        self._ledger = folder / "ledger"
        self._ledger.touch()
        self._listen = f"127.0.0.1:{free_port()}"
        self._endpoint_url = endpoint_url
        self._table_stream = table_stream
        self._process: Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it; on the way out it is killed if nobody has stopped it."""
        command = [sys.executable, "-m", "poller", "run", "-c", str(find_config())]
        self._process = start_child(command, env=self._environment(), cwd=None, log=self.log)
        try:
            yield
        finally:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, as systemd does it; return the exit status."""
        assert self._process is not None
        return await anyio.to_thread.run_sync(stop_child, self._process, STOP_WITHIN)

    def check(self) -> None:
        """Raise DemoError when it has ended by itself."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise DemoError(f"the daemon ended with status {code}; its last words:\n{tail(self.log)}")

    async def status(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        """Return what /status says; empty while it does not answer."""
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with http.get(f"http://{self._listen}/status") as reply:
                if reply.status == 200:
                    found: dict[str, Any] = await reply.json()
                    return found
        return {}

    def ledger(self) -> list[str]:
        """Return the ids of the handled orders, in order."""
        return self._ledger.read_text().splitlines()

    def _environment(self) -> dict[str, str]:
        # None of the user's AWS settings: the demo must not reach a real account.
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        paths = [str(Path(poller.__file__).parents[1]), own.get("PYTHONPATH", "")]
        return (
            own
            | CREDENTIALS
            | {
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "POLLER_DEMO_ENDPOINT": self._endpoint_url,
                "POLLER_DEMO_LISTEN": self._listen,
                "POLLER_DEMO_LEDGER": str(self._ledger),
                "POLLER_DEMO_STATE": str(self.state),
                "POLLER_DEMO_TABLE_STREAM": self._table_stream,
            }
        )


class _Stage:
    """What is seen while the demo runs."""

    def __init__(self, daemon: _Daemon, traffic: Traffic, screen: Screen) -> None:
        self._daemon = daemon
        self._traffic = traffic
        self._screen = screen

    async def play(self, seconds: float | None, wish: _Wish) -> None:
        """Send orders until the time is up or the user wants to stop."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._show, "running")
            tasks.start_soon(self._traffic.run)
            with anyio.move_on_after(seconds):
                await wish.stop.wait()
            tasks.cancel_scope.cancel()

    async def drain(self, wish: _Wish) -> None:
        """Wait until queues and streams are empty, the time is up or the user is in a hurry."""
        wish.stop.set()  # from now on a signal means hurry
        with anyio.move_on_after(DRAIN_WITHIN):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._show, "draining")
                tasks.start_soon(self._cancel_when_empty, tasks.cancel_scope)
                await wish.hurry.wait()
                tasks.cancel_scope.cancel()

    async def _cancel_when_empty(self, scope: anyio.CancelScope) -> None:
        # What is asked is on the other side of a socket.
        while await self._traffic.waiting(*QUEUES) or await self._streams_wait():  # noqa: ASYNC110
            await anyio.sleep(0.2)
        scope.cancel()

    async def _streams_wait(self) -> bool:
        """Tell whether something in a stream is neither handled nor filtered nor given up."""
        sent = self._traffic.sent
        broken = sent.poison & sent.streamed
        open_ = sent.streamed - sent.drafts - broken - set(self._daemon.ledger())
        return bool(open_) or await self._traffic.waiting(FAILED_QUEUE) < len(broken)

    async def _show(self, phase: str) -> None:
        timeout = aiohttp.ClientTimeout(total=PERIOD)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                self._daemon.check()
                status = await self._daemon.status(http)
                self._screen.show(status, await self._counters(phase))
                await anyio.sleep(PERIOD)

    async def _counters(self, phase: str) -> Counters:
        dead = await self._traffic.waiting(*DEAD_LETTER_QUEUES, FAILED_QUEUE)
        handled = len(set(self._daemon.ledger()))
        return Counters(phase, len(self._traffic.sent.all), handled, dead)
