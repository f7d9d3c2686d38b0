"""The replays of the daemon: begun by command, followed, stopped, and gone on with where they were.

A replay is a job in the state store: what was asked for, how far it is, and what has become of the records. It is saved about
once a second and at its end::

    running --> done          nothing was left
       |  '---> stopped       by command
       |  '---> interrupted   the daemon ended, or was killed, or the function was replaced
       '------> failed        it cannot be read, or a bug; the reason is shown

All but a done one go on when they are resumed, and not by themselves: whoever began it may have had a reason to be there. What
was at work when the daemon was killed is repeated.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from poller.app.replay_sources import Progress
from poller.core import replay_wish
from poller.core.failure import encoded
from poller.core.replay import Tally
from poller.engine.child import leaf
from poller.errors import PollerError, ReplayRefused, StoreError
from poller.model import Checkpoint, Job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import TaskGroup

    from poller.app.replay_counts import Count
    from poller.app.replay_sources import Opened
    from poller.core.replay import State
    from poller.core.replay_wish import ReplayWish
    from poller.ports import Jobs

    #: Opens a replay; raises PollerError, KeyError for a mapping that is not there.
    Open = Callable[[ReplayWish, Progress], AbstractAsyncContextManager[Opened]]

_log = logging.getLogger("poller.replay")
#: Seconds between two writes of a job.
INTERVAL = 1.0
#: Replays that have ended and are still listed.
REMEMBERED = 20
#: What a job in the store begins with: there may be jobs of other kinds.
PREFIX = "replay-"


@dataclass(slots=True, eq=False)
class Running:
    """One replay."""

    id: str
    wish: ReplayWish
    progress: Progress
    state: State
    reason: str = ""
    total: int | None = None
    """Messages or objects that there were when it began, about."""
    unit: str = "records"
    ended: float = 0.0
    """Unix time; 0 while it runs."""
    began_again: float = 0.0
    """Unix time at which it was begun or resumed last."""
    opened: Opened | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)
    wanted: State = "done"
    """What it becomes when it is quiet before it has done all."""

    def quiet(self, wanted: State) -> None:
        """Take up nothing more, and end as `wanted`."""
        self.wanted = wanted
        if self.opened is not None:
            self.opened.runner.quiet()

    def dump(self) -> bytes:
        """As the store keeps it."""
        progress = self.progress
        shards = {name: asdict(one) for name, one in (progress.shards or {}).items()}
        return encoded(
            {
                "wish": self.wish.dump(),
                "state": self.state,
                "reason": self.reason,
                "total": self.total,
                "unit": self.unit,
                "ended": self.ended,
                "began_again": self.began_again,
                "progress": {
                    "tally": progress.tally.dump(),
                    "key": progress.key,
                    "shards": shards,
                    "began": progress.began,
                },
            }
        )

    def shown(self) -> dict[str, Any]:
        """As commands see it."""
        tally = self.progress.tally
        return {
            "id": self.id,
            "mapping": self.wish.mapping,
            "wish": self.wish.dump(),
            "state": self.state,
            "reason": self.reason,
            "note": self.opened.note() if self.opened else "",
            "total": self.total,
            "unit": self.unit,
            "done": tally.done if self.unit == "records" else tally.messages + tally.kept,
            "began": self.progress.began,
            "began_again": self.began_again,
            "ended": self.ended,
            "counts": tally.dump(),
        }


def load(job: Job) -> Running:
    """A replay from the store. One that ran when its daemon ended is interrupted.

    Raises KeyError, TypeError, ValueError or ReplayRefused for what makes no sense.
    """
    stored = json.loads(job.state)
    kept = stored["progress"]
    progress = Progress(
        Tally.load(kept["tally"]),
        kept["key"],
        {name: Checkpoint(**one) for name, one in kept["shards"].items()},
        kept["began"],
    )
    running = Running(
        job.id.removeprefix(PREFIX),
        replay_wish.parse(stored["wish"]),
        progress,
        stored["state"],
        stored["reason"],
        stored["total"],
        stored["unit"],
        stored["ended"],
        stored["began_again"],
    )
    if running.state == "running":
        running.state, running.reason = "interrupted", "the daemon ended while it ran"
    return running


class Replays:
    """All replays of the daemon; its `run` owns those that run."""

    def __init__(self, open_: Open, store: Callable[[], Awaitable[Jobs]], wall: Callable[[], float]) -> None:
        self._open = open_
        self._store = store
        self._wall = wall
        self._known: dict[str, Running] | None = None
        self._loading = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._stopping = False
        self._stopped = anyio.Event()

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run what is begun, until `stop` has ended."""
        async with anyio.create_task_group() as self._tasks:
            await self._stopped.wait()

    async def stop(self, timeout: float) -> None:
        """End all within `timeout` seconds; they can be resumed."""
        self._stopping = True
        try:
            await self.interrupt("the daemon was stopped", timeout)
        finally:
            self._stopped.set()

    def stop_now(self) -> None:
        """Cut short whatever still runs."""
        for one in self._running():
            one.scope.cancel()

    async def interrupt(self, reason: str, timeout: float, mappings: set[str] | None = None) -> None:
        """End those of `mappings`, or all, within `timeout` seconds."""
        ending = [one for one in self._running() if mappings is None or one.wish.mapping in mappings]
        for one in ending:
            one.reason = reason
            one.quiet("interrupted")
        with anyio.move_on_after(timeout):
            await _all_done(ending)
        for one in ending:
            one.scope.cancel()
        await _all_done(ending)

    def _running(self) -> list[Running]:
        return [one for one in (self._known or {}).values() if one.state == "running"]

    async def _jobs(self) -> dict[str, Running]:
        """All by their ids, loaded at the first look. Raises StoreError."""
        async with self._loading:
            if self._known is None:
                stored = await (await self._store()).jobs()
                mine = filter(None, (_loaded(job) for job in stored if job.id.startswith(PREFIX)))
                self._known = {one.id: one for one in mine}
            return self._known

    # --- commands -------------------------------------------------------------------------------------------------------

    async def start(self, wish: ReplayWish, count: Count) -> dict[str, Any]:
        """Begin a replay; raises PollerError when one of its mapping runs."""
        known = await self._jobs()
        self._check_free(wish.mapping)
        now = self._wall()
        one = Running(
            uuid4().hex[:8], wish, Progress(Tally(), began=now), "running", "", count.total, count.unit
        )
        known[one.id] = one
        await self._begin(one)
        await self._forget_old(known)
        return one.shown()

    async def resume(self, replay_id: str) -> dict[str, Any]:
        """Go on with a replay where it was; raises KeyError for none, PollerError for one that is done or runs."""
        one = (await self._jobs())[replay_id]
        if one.state in ("running", "done"):
            raise PollerError(f"replay {replay_id} is {one.state}: there is nothing to resume")
        self._check_free(one.wish.mapping)
        one.state, one.reason, one.ended, one.wanted = "running", "", 0.0, "done"
        one.scope, one.done = anyio.CancelScope(), anyio.Event()
        await self._begin(one)
        return one.shown()

    async def stop_one(self, replay_id: str) -> dict[str, Any]:
        """Let a replay end when what it has at work is done, which may take as long as a function may; raises KeyError."""
        one = (await self._jobs())[replay_id]
        if one.state == "running":
            one.quiet("stopped")
        return one.shown()

    async def shown(self) -> list[dict[str, Any]]:
        """All, the oldest first."""
        return [one.shown() for one in (await self._jobs()).values()]

    async def one(self, replay_id: str) -> dict[str, Any]:
        """One; raises KeyError."""
        return (await self._jobs())[replay_id].shown()

    def _check_free(self, mapping: str) -> None:
        if self._stopping or self._tasks is None:
            raise PollerError("the daemon is stopping")
        for one in self._running():
            if one.wish.mapping == mapping:
                raise PollerError(f"replay {one.id} of {mapping} runs: wait for it, or stop it first")

    async def _begin(self, one: Running) -> None:
        assert self._tasks is not None
        one.began_again = self._wall()
        self._tasks.start_soon(self._work, one)
        await self._save(one)

    async def _forget_old(self, known: dict[str, Running]) -> None:
        over = [one for one in known.values() if one.state != "running"][:-REMEMBERED]
        for one in over:
            del known[one.id]
            await (await self._store()).remove_job(PREFIX + one.id)

    # --- one of them ----------------------------------------------------------------------------------------------------

    async def _work(self, one: Running) -> None:
        _log.info("%s: replay %s begins: %s", one.wish.mapping, one.id, one.wish.kind)
        try:
            with one.scope:
                await self._replay(one)
            if one.state == "running":
                one.state = "interrupted"
        except Exception as error:
            self._failed(one, leaf(error))
        finally:
            one.opened = None
            one.ended = self._wall()
            with anyio.CancelScope(shield=True):
                await self._save(one)
            one.done.set()
        tally = one.progress.tally
        _log.info(
            "%s: replay %s %s: %d succeeded, %d failed again, %d gone",
            one.wish.mapping,
            one.id,
            one.state,
            tally.succeeded,
            tally.failed,
            tally.gone,
        )

    async def _replay(self, one: Running) -> None:
        exhausted = False
        async with self._open(one.wish, one.progress) as opened:
            one.opened = opened
            if one.wanted != "done":
                opened.runner.quiet()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_saving, one, opened)
                await opened.runner.run()
                tasks.cancel_scope.cancel()
            opened.noted()
            exhausted, one.reason = opened.exhausted(), one.reason or opened.note()
        cut_short: State = "stopped" if one.wanted == "done" else one.wanted
        one.state = "done" if exhausted else cut_short

    def _failed(self, one: Running, error: BaseException) -> None:
        one.state, one.reason = "failed", str(error)
        if not isinstance(error, PollerError):
            one.reason = f"crashed: {type(error).__name__}: {error}"
            _log.error("a bug in poller: replay %s crashed", one.id, exc_info=error)

    async def _keep_saving(self, one: Running, opened: Opened) -> None:
        before = b""
        while True:
            await anyio.sleep(INTERVAL)
            opened.noted()
            if (now := one.dump()) != before:
                await self._save(one)
                before = now

    async def _save(self, one: Running) -> None:
        try:
            await (await self._store()).save_job(Job(PREFIX + one.id, one.dump()))
        except StoreError as error:
            # It goes on: what is not written is repeated at worst, and only after a kill.
            _log.warning("replay %s cannot be saved: %s", one.id, error)


def _loaded(job: Job) -> Running | None:
    """A replay from the store; None for one that makes no sense, which keeps no other from being run."""
    try:
        return load(job)
    except (KeyError, TypeError, ValueError, ReplayRefused) as error:
        _log.warning("%s cannot be read and is left alone: %r", job.id, error)
        return None


async def _all_done(running: list[Running]) -> None:
    for one in running:
        await one.done.wait()
