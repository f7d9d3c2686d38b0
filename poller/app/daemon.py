"""The daemon: one event loop, its signals, and the order in which things start and end.

Start: load the file and the functions, listen, open the mappings, say READY. SIGHUP: load anew; a bad file is refused and
the old one keeps running. SIGTERM or SIGINT: stop in two steps within `shutdown_timeout`; a second one cuts it short.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from poller import __version__
from poller.app import deploy, fitness, functions, scaling, seeking, spooling
from poller.app.inquiry import Inquiry, Present
from poller.app.mappings import Surroundings, specs
from poller.app.replaying import Replays
from poller.app.signals import Signals
from poller.app.state import State, worker_id
from poller.app.streams import Streams
from poller.aws.session import AwsSession
from poller.config import volatile_spools
from poller.core.request_ids import request_id
from poller.engine.invoker import World
from poller.engine.slots import Places
from poller.engine.status import Board, DaemonStatus, FunctionStatus
from poller.engine.supervisor import PUT_DOWN_WITHIN, Supervisor, give_back_reserve
from poller.errors import ConfigError
from poller.runtimes.code import Store
from poller.telemetry.log_observer import LogObserver
from poller.telemetry.metrics import Metrics
from poller.telemetry.observers import Fanout
from poller.telemetry.systemd import Systemd
from poller.web.server import Surface, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from poller.app.functions import Loaded
    from poller.config import Config, Mapping

_log = logging.getLogger("poller")
#: Seconds that a worker has for saying that it goes, when all of its leases are given back.
LEAVE_WITHIN = 2.0


class Daemon:
    """All that runs in the process. Built outside the loop; `run` is its whole life."""

    def __init__(self, load: Callable[[], Config]) -> None:
        """Load everything that can be wrong; raises ConfigError."""
        self._signals = Signals()
        self._signals.keep_hangups()
        self._load = load
        self._config = self._read()
        self._places = Places(self._config.daemon.concurrency)
        self._unpacked = Store()
        codes = deploy.survey(self._config, {}, self._unpacked)
        self._functions = functions.load(self._config, self._places, {}, codes, self._current_session)
        self._systemd = Systemd()
        self._board = Board()
        self._metrics = Metrics(self.status)
        self._observer = Fanout(self._board, self._metrics, LogObserver())
        self._session = AwsSession(self._config.aws, self._observer)
        self._streams = Streams()
        # asyncio's timers and uvloop's go by this clock; anyio's way to it costs twenty times as much.
        self._world = World(
            time.time, random.random, lambda: request_id(random.getrandbits(128)), clock=time.monotonic
        )
        self._state = State(self._config, self._observer, self._world)
        self._started = time.time()
        self._ready = False
        self._stopping = False
        self._opening: anyio.CancelScope | None = None
        self._reloading = anyio.Lock()
        self._supervisor = Supervisor(
            self._observer, self._board, self._world, self._config.daemon.shutdown_timeout
        )
        self._inquiry = Inquiry(self._present)
        self._replays = Replays(self._inquiry.open, self._state.jobs, time.time)

    def _read(self) -> Config:
        config = self._load()
        if lines := fitness.of_aws(config.aws):
            raise ConfigError(lines)
        return config

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until stopped by a signal."""
        self._signals.catch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._obey, tasks)
            await self._listen(tasks)
            tasks.start_soon(self._systemd.watchdog, lambda: True)
            tasks.start_soon(self._announce)
            tasks.start_soon(self._keep_code)
            try:
                with anyio.CancelScope() as self._opening:
                    if not self._stopping:
                        await functions.start(self._functions.values(), tasks, lambda: self._session)
                        await self._open_state()
                async with anyio.create_task_group() as keeping:
                    keeping.start_soon(self._state.run)
                    async with anyio.create_task_group() as work:
                        work.start_soon(self._replays.run)
                        await self._supervisor.run(self._specs(self._config, self._functions, self._session))
                    self._state.quiet()
                    keeping.cancel_scope.deadline = anyio.current_time() + LEAVE_WITHIN
            finally:
                with anyio.CancelScope(shield=True):
                    await self._close(self._functions, self._session)
                    await self._state.aclose()
                    self._unpacked.close()
            tasks.cancel_scope.cancel()
        _log.info("stopped")

    async def _open_state(self) -> None:
        """A state that cannot be used ends a start at once, rather than every mapping on a stream by and by."""
        if not spooling.uses_state(self._config):
            return
        await self._state.store()
        for warning in volatile_spools(self._config):
            _log.warning("%s", warning)
        if self._config.daemon.keeps_spool:
            known = {mapping.name for mapping in self._config.mappings}
            for name in (await (await self._state.spool()).totals()).keys() - known:
                _log.warning(
                    "what is spooled of mapping %s waits until the file has a mapping of that name again",
                    name,
                )

    def _specs(self, config: Config, loaded: dict[str, Loaded], session: AwsSession) -> Any:
        return specs(config, loaded, self._around(config, session))

    def _around(self, config: Config, session: AwsSession) -> Surroundings:
        close_timeout = give_back_reserve(config.daemon.shutdown_timeout)
        return Surroundings(
            session,
            self._observer,
            self._world,
            close_timeout,
            self._state,
            self._streams,
            lambda: self._functions,
        )

    async def _listen(self, tasks: TaskGroup) -> None:
        daemon = self._config.daemon
        if not daemon.listen:
            return
        surface = Surface(
            metrics=self._metrics.render,
            healthy=lambda: (True, "ok"),
            ready=self._is_ready,
            status=self._told,
            scale=self._scale,
            mappings=lambda: self._supervisor.names,
            pause=self._pause,
            resume=self._resume,
            resume_keys=self._resume_keys,
            seek=self._seek,
            replays=self._inquiry.replays(self._replays),
            failures=self._inquiry.failures(self._supervisor.put_down),
        )
        port = await tasks.start(serve, daemon.host, daemon.port, surface)
        host = f"[{daemon.host}]" if ":" in daemon.host else daemon.host
        _log.info("listening on http://%s:%d", host, port)

    async def _announce(self) -> None:
        await self._supervisor.ready()
        if self._stopping:
            return
        # What is there now stays until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # A busy daemon makes many objects and few cycles: with the defaults it would be looked through far too often. One page
        # of a DynamoDB stream is fifty thousand objects of the kind that is counted, a few pages are worked on at a time, and
        # they are gone before there are twice as many.
        gc.set_threshold(400_000, 20, 50)
        self._ready = True
        self._systemd.ready()
        down = self._supervisor.down()
        count = len(self._supervisor.names)
        failed = f", failed at the moment: {', '.join(down)}" if down else ""
        _log.info("ready: %d %s%s", count, "mapping" if count == 1 else "mappings", failed)

    async def _close(self, loaded: dict[str, Loaded], session: AwsSession) -> None:
        for function in loaded.values():
            await functions.close(function)
        await session.__aexit__(None, None, None)

    # --- signals --------------------------------------------------------------------------------------------------------

    async def _obey(self, tasks: TaskGroup) -> None:
        async for received in self._signals:
            if received is signal.SIGHUP:
                tasks.start_soon(self._reload, tasks)
            elif self._stopping:
                _log.warning("second %s: stopping now", received.name)
                self._supervisor.stop_now()
                self._replays.stop_now()
            else:
                self._stopping = True
                tasks.start_soon(self._stop, received)

    async def _stop(self, received: signal.Signals) -> None:
        status = self.status()
        _log.info(
            "%s: stopping within %g s; %d invocations in flight, long polls in flight may return",
            received.name,
            self._supervisor.stop_timeout,
            status.in_flight,
        )
        self._systemd.stopping()
        # A table or STS out of reach may keep a start waiting for longer than a stop may take, and nothing has begun yet.
        if self._opening:
            self._opening.cancel()
        timeout = self._supervisor.stop_timeout
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(self._replays.stop, timeout - give_back_reserve(timeout))
            stopping.start_soon(self._supervisor.stop)

    async def _reload(self, tasks: TaskGroup) -> None:
        async with self._reloading:
            if self._stopping:
                return
            self._systemd.reloading()
            try:
                config = self._read()
                codes = await to_thread.run_sync(deploy.survey, config, self._functions, self._unpacked)
                loaded = functions.load(config, self._places, self._functions, codes, self._current_session)
            except ConfigError as error:
                for problem in error.problems:
                    _log.error("reload refused, the old configuration keeps running: %s", problem)
            except Exception:
                _log.exception(
                    "a bug in poller: the file cannot be loaded; the old configuration keeps running"
                )
            else:
                await self._go_over(config, loaded, tasks)
            # One that comes during the start is no end of that.
            if self._ready:
                self._systemd.ready()

    async def _go_over(self, config: Config, loaded: dict[str, Loaded], tasks: TaskGroup) -> None:
        old, old_functions, old_session = self._config, self._functions, self._session
        for key in ("listen", "state", "fleet", "failover_time", "checkpoint_interval"):
            if getattr(config.daemon, key) != getattr(old.daemon, key):
                _log.warning("[daemon] %s takes effect at the next start", key)
        if config.aws != old.aws:
            self._session = AwsSession(config.aws, self._observer)
        both = [(old_functions[name], one) for name, one in loaded.items() if name in old_functions]
        for before, after in both:
            await to_thread.run_sync(deploy.forget_bytecode, before, after)
        self._config, self._functions = config, loaded
        for before, after in both:
            if _continues(after, before):
                deploy.switch(before, after)
        fresh = [one for name, one in loaded.items() if not _continues(one, old_functions.get(name))]
        await functions.start(fresh, tasks, lambda: self._session)
        await self._interrupt_replays(old, old_functions, loaded, same_session=old_session is self._session)
        self._places.resize(config.daemon.concurrency)
        functions.fit(loaded.values())
        self._supervisor.stop_timeout = config.daemon.shutdown_timeout
        await self._supervisor.reload(self._specs(config, loaded, self._session))
        for name in {mapping.name for mapping in old.mappings} - {
            mapping.name for mapping in config.mappings
        }:
            self._metrics.forget(name)
        gone = {name: one for name, one in old_functions.items() if not _continues(one, loaded.get(name))}
        await self._close(
            gone, old_session if old_session is not self._session else AwsSession(config.aws, self._observer)
        )
        _log.info("reloaded: %d mappings", len(config.mappings))

    async def _interrupt_replays(
        self, old: Config, before: dict[str, Loaded], after: dict[str, Loaded], *, same_session: bool
    ) -> None:
        """End the replays whose function, or whose way to AWS, does not go on."""
        gone = {
            mapping.name
            for mapping in old.mappings
            if not (same_session and _continues(before[mapping.function], after.get(mapping.function)))
        }
        await self._replays.interrupt("the configuration has changed", PUT_DOWN_WITHIN, gone)

    async def _keep_code(self) -> None:
        watch = deploy.Watch(self._unpacked)
        took = 0.0
        while True:
            await watch.pause(took)
            began = time.perf_counter()
            watched = tuple(one for one in self._functions.values() if one.config.watch)
            due = await to_thread.run_sync(watch.look, watched) if watched else ()
            took = time.perf_counter() - began
            if not due and not self._unpacked.unpacked:
                continue
            async with self._reloading:
                if self._stopping:
                    return
                for one in due:
                    await self._redeploy(watch, one.name)
                if self._unpacked.unpacked:
                    wanted = deploy.folders(self._functions.values())
                    await to_thread.run_sync(self._unpacked.keep_only, wanted)

    async def _redeploy(self, watch: deploy.Watch, name: str) -> None:
        before = self._functions.get(name)
        if before is None or before.code is None:
            return
        try:
            after = await to_thread.run_sync(watch.deployable, before)
        except Exception:
            _log.exception(
                "a bug in poller: the code of %s cannot be looked at; the old code keeps running", name
            )
            return
        if after is not None:
            self._functions = {**self._functions, name: after}
            deploy.switch(before, after)

    # --- what the outside asks ------------------------------------------------------------------------------------------

    async def _pause(self, name: str) -> None:
        self._supervisor.pause(name)

    async def _resume(self, name: str) -> None:
        self._supervisor.resume(name)

    async def _resume_keys(self, name: str, key: str | None) -> object:
        return [asdict(one) for one in await self._supervisor.resume_keys(name, key)]

    async def _seek(self, name: str, to: str, shard: str | None, dry_run: bool) -> object:
        wish = seeking.Wish(to, shard)
        seeking.check(self._mapping(name), wish, time.time())
        if dry_run:
            self._supervisor.check_paused(name)
            moves = await seeking.planned(await self._state.store(), self._mapping(name), wish, time.time())
        else:
            async with self._supervisor.put_down(name):
                store = await self._state.store()
                shared = self._state.leases
                taking = seeking.Taking(worker_id(), shared.failover_time) if shared else None
                moves = await seeking.carry_out(store, self._mapping(name), wish, time.time(), taking)
            _log.info("%s: moved to %s by command, %d shards", name, to, len(moves))
        return seeking.told(moves)

    def _mapping(self, name: str) -> Mapping:
        for mapping in self._config.mappings:
            if mapping.name == name:
                return mapping
        raise KeyError(name)

    def _present(self) -> Present:
        return Present(self._config, self._functions, self._around(self._config, self._session))

    def _current_session(self) -> AwsSession:
        return self._session

    def _told(self) -> object:
        fleet = self._state.leases
        return {**asdict(self.status()), "fleet": asdict(fleet.status()) if fleet else None}

    def _scale(self) -> object:
        fleet = self._state.leases
        return asdict(scaling.scale(self.status(), fleet.status() if fleet else None))

    def _is_ready(self) -> tuple[bool, str]:
        if self._stopping:
            return False, "stopping"
        if not self._ready:
            return False, "starting"
        down = self._supervisor.down()
        return True, f"ready; failed mappings, tried again: {', '.join(down)}" if down else "ready"

    def status(self) -> DaemonStatus:
        """A snapshot of all that runs."""
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            stopping=self._stopping,
            concurrency=self._places.total,
            in_flight=self._places.taken,
            mappings=self._supervisor.status(),
            functions=tuple(
                FunctionStatus(
                    one.name,
                    one.slots.taken,
                    one.slots.total,
                    one.slots.waiting,
                    one.runtime.workers(),
                    one.code.version if one.code else "",
                )
                for one in self._functions.values()
            ),
        )


def _continues(one: Loaded, other: Loaded | None) -> bool:
    return other is not None and one.runtime is other.runtime
