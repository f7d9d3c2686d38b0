"""Several daemons of one command, as far as their processes go; what they do together is tested end to end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.app import processes
from poller.app.processes import Processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

#: Ends when its standard input does, or by a signal, as a daemon.
SCRIPT = "#!/bin/sh\nexec cat >/dev/null\n"


class Told:
    """The signals, told by the test."""

    def __init__(self) -> None:
        self.stop = anyio.Event()

    def catch(self) -> None:
        """Nothing: those of the test stay its own."""

    async def __aiter__(self) -> AsyncIterator[signal.Signals]:
        await self.stop.wait()
        yield signal.SIGTERM


class Watched(Processes):
    """Tells when all of them run."""

    def __init__(self, script: Path, count: int) -> None:
        super().__init__([str(script)], count)
        self.all_run = anyio.Event()
        self._running = Counted(self)


class Counted(dict[int, Any]):
    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched

    def __setitem__(self, number: int, process: Any) -> None:
        super().__setitem__(number, process)
        if len(self) == 2:
            self._watched.all_run.set()


async def test_a_process_that_cannot_be_started_again_now_is_tried_later_and_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script, elsewhere = tmp_path / "daemon", tmp_path / "elsewhere"

    def pause(tries: int, _: float) -> float:
        if tries == 1:
            script.rename(elsewhere)
        else:
            elsewhere.rename(script)
        return 0.0

    told = Told()
    monkeypatch.setattr(processes, "Signals", lambda: told)
    monkeypatch.setattr(processes, "backoff", pause)
    script.write_text(SCRIPT)
    script.chmod(0o755)
    both = Watched(script, 2)
    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.run)
            await both.all_run.wait()
            other, both.all_run = both._running[0].pid, anyio.Event()
            both._running[1].kill()
            await both.all_run.wait()
            assert both._running[0].pid == other
            told.stop.set()
    assert "process 1 ended with -9; started again" in caplog.text
    assert "process 1 cannot be started: " in caplog.text
