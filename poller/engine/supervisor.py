"""All mappings of the daemon: started, reloaded, paused, and stopped in two steps with one deadline (law 6).

`stop` first tells every mapping to be quiet: no new receive, a long poll in flight may return, work at hand is finished.
Shortly before the deadline what is still running is cancelled; the readers then give back what is unfinished within the rest
of it.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from poller.engine.child import Child
from poller.model import MappingState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from anyio.abc import TaskGroup

    from poller.engine.child import MappingSpec
    from poller.engine.invoker import World
    from poller.engine.status import Board, MappingStatus
    from poller.engine.unparking import Resumed
    from poller.ports import Observer


#: Seconds that the work at hand of a paused mapping has before it is cut short to move the mapping's checkpoints.
PUT_DOWN_WITHIN = 5.0


def give_back_reserve(timeout: float) -> float:
    """Seconds of a stop's `timeout` that are kept for giving records back."""
    return min(3.0, timeout * 0.2)


class Supervisor:
    """Owns one guarded child a mapping."""

    def __init__(self, observer: Observer, board: Board, world: World, stop_timeout: float) -> None:
        self.stop_timeout = stop_timeout
        self._observer = observer
        self._board = board
        self._world = world
        self._children: dict[str, Child] = {}
        self._leaving: set[Child] = set()
        self._begun = anyio.Event()
        self._reloading = anyio.Lock()
        self._stopping = False
        self._stopped = anyio.Event()
        self._tasks: TaskGroup | None = None

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self, specs: Sequence[MappingSpec]) -> None:
        """Run the mappings until `stop` has ended."""
        async with anyio.create_task_group() as self._tasks:
            for spec in specs:
                self._start(spec)
            self._begun.set()
            await self._stopped.wait()

    def _start(self, spec: MappingSpec, *, paused: bool = False) -> None:
        if self._stopping or self._tasks is None:
            return
        child = self._children[spec.name] = Child(spec, self._observer, self._world, paused=paused)
        self._tasks.start_soon(child.run)

    async def ready(self) -> None:
        """Return when `run` has begun and every mapping has started, or has shown that it cannot at the moment."""
        await self._begun.wait()
        for child in list(self._children.values()):
            await child.started.wait()

    async def stop(self, timeout: float | None = None) -> None:
        """End all mappings within `timeout` seconds (`stop_timeout` by default)."""
        self._stopping = True
        await self._end(
            [*self._children.values(), *self._leaving], self.stop_timeout if timeout is None else timeout
        )
        self._stopped.set()

    def stop_now(self) -> None:
        """Cut short whatever still runs; records that are not settled are given back."""
        for child in [*self._children.values(), *self._leaving]:
            child.scope.cancel()

    async def _end(self, children: Iterable[Child], timeout: float) -> None:
        children = list(children)
        for child in children:
            child.quiet()
        with anyio.move_on_after(timeout - give_back_reserve(timeout)):
            await _all_done(children)
        for child in children:
            child.scope.cancel()
        await _all_done(children)

    # --- commands -------------------------------------------------------------------------------------------------------

    async def reload(self, specs: Sequence[MappingSpec]) -> None:
        """Go over to `specs`: unchanged mappings go on undisturbed; changed ones are drained, then started anew, or stay paused
        if they were by command.

        A reload that comes during another one begins when that has ended.
        """
        async with self._reloading:
            await self._go_over(specs)

    async def _go_over(self, specs: Sequence[MappingSpec]) -> None:
        wanted = {spec.name: spec for spec in specs}
        for name, child in self._children.items():
            if name in wanted and wanted[name].fingerprint == child.spec.fingerprint:
                del wanted[name]
        kept = {spec.name for spec in specs} - wanted.keys()
        leaving = {child for name, child in self._children.items() if name not in kept}
        for child in leaving:
            del self._children[child.spec.name]
        self._leaving |= leaving
        async with anyio.create_task_group() as replacing:
            for child in leaving:
                replacing.start_soon(self._replace, child, wanted.pop(child.spec.name, None))
            for spec in wanted.values():
                self._start(spec)

    async def _replace(self, child: Child, spec: MappingSpec | None) -> None:
        # A handler may take its time, which its function's timeout bounds; only a stop is in a hurry.
        await self._end([child], math.inf)
        self._leaving.discard(child)
        if spec:
            self._start(spec, paused=child.paused_by_command)
        else:
            self._board.forget(child.spec.name)

    def pause(self, name: str) -> None:
        """Stop receiving for mapping `name`; raises KeyError for a name that does not exist."""
        self._children[name].pause()

    def resume(self, name: str) -> None:
        """Go on with mapping `name`; raises KeyError for a name that does not exist."""
        self._children[name].resume()

    async def resume_keys(self, name: str, key: str | None) -> tuple[Resumed, ...]:
        """Take up one parked key of mapping `name`, or all; raises KeyError for a name that does not exist, and PollerError."""
        return await self._children[name].resume_keys(key)

    @asynccontextmanager
    async def put_down(self, name: str) -> AsyncIterator[None]:
        """Mapping `name`, which is paused, with its source closed, so that its checkpoints may be moved.

        No reload comes between. Raises KeyError for a name that does not exist, PollerError when it is not paused.
        """
        async with self._reloading, self._children[name].put_down(PUT_DOWN_WITHIN):
            yield

    def check_paused(self, name: str) -> None:
        """Raise what `put_down` would raise now."""
        self._children[name].check_paused()

    # --- what it is doing -----------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The mappings that are wanted now."""
        return list(self._children)

    def status(self) -> tuple[MappingStatus, ...]:
        """A snapshot of every mapping, those that are being replaced included."""
        children = [*self._children.values(), *self._leaving]
        return tuple(child.status(self._board.of(child.spec.name)) for child in children)

    def down(self) -> list[str]:
        """The mappings that are failed at the moment."""
        return [name for name, child in self._children.items() if child.state is MappingState.FAILED]


async def _all_done(children: Iterable[Child]) -> None:
    for child in children:
        await child.done.wait()
