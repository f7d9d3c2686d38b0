"""What commands ask the daemon about replays and failures, answered with what the daemon works with at that moment."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.app import failing, functions, spooling
from poller.app.replay_counts import count, estimate
from poller.app.replay_sources import Setting, open_replay
from poller.core import replay_wish
from poller.errors import ReplayRefused
from poller.web.failures import FailureSurface
from poller.web.replays import ReplaySurface

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from poller.app.functions import Loaded
    from poller.app.mappings import Surroundings
    from poller.app.replay_sources import Opened, Progress
    from poller.app.replaying import Replays
    from poller.config import Config, Mapping
    from poller.core.replay_wish import ReplayWish

    #: As `poller.engine.supervisor.Supervisor.put_down`.
    PutDown = Callable[[str], AbstractAsyncContextManager[None]]

_log = logging.getLogger("poller")


@dataclass(frozen=True, slots=True)
class Present:
    """What the daemon works with now; a reload replaces it."""

    config: Config
    functions: dict[str, Loaded]
    around: Surroundings


class Inquiry:
    """Answers with what is `present` when it is asked."""

    def __init__(self, present: Callable[[], Present]) -> None:
        self._present = present

    def failures(self, put_down: PutDown) -> FailureSurface:
        """The pages of failures. `put_down` ends the work of a paused mapping for a while."""

        async def discard(id_: str) -> object:
            name = failing.mapping_of(id_)
            self._named(name)
            async with put_down(name):
                discarded = await failing.discard(id_, self._looking())
            _log.warning("%s: %s is discarded by command", name, id_)
            return discarded

        return FailureSurface(self._look, self._show, discard)

    def replays(self, replays: Replays) -> ReplaySurface:
        """The pages of replays."""

        async def start(body: object, dry_run: bool) -> object:
            wish = replay_wish.parse(body)
            setting, now = self._setting(wish), time.time()
            if dry_run:
                return await estimate(setting, now)
            return await replays.start(wish, await count(setting, now))

        return ReplaySurface(start, replays.shown, replays.one, replays.stop_one, replays.resume)

    def open(self, wish: ReplayWish, progress: Progress) -> AbstractAsyncContextManager[Opened]:
        """A replay, ready to run; raises ReplayRefused."""
        return open_replay(self._setting(wish), progress)

    def _setting(self, wish: ReplayWish) -> Setting:
        present = self._present()
        (mapping,) = self._named(wish.mapping)
        windows = bool(mapping.tumbling_window_in_seconds)
        replay_wish.check(wish, mapping.source, time.time(), windows=windows, fifo=mapping.fifo)
        function = present.functions[mapping.function]
        return Setting(wish, mapping, present.config, function, present.around)

    def _named(self, name: str) -> Sequence[Mapping]:
        mappings = self._present().config.mappings
        found = tuple(mapping for mapping in mappings if mapping.name == name)
        if not found:
            known = ", ".join(mapping.name for mapping in mappings)
            raise ReplayRefused(f"no mapping is named {name!r} (there are: {known})")
        return found

    def _looking(self) -> failing.Looking:
        present = self._present()
        return failing.Looking(
            present.around,
            lambda mapping: functions.arn(mapping, present.config.functions[mapping.function]),
            spools=present.config.daemon.keeps_spool and spooling.uses_state(present.config),
        )

    async def _look(self, name: str | None) -> object:
        mappings = self._present().config.mappings if name is None else self._named(name)
        return await failing.look(mappings, self._looking())

    async def _show(self, id_: str) -> object:
        return await failing.show(id_, self._present().config.mappings, self._looking())
