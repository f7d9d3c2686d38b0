from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import aiohttp
import pytest

from poller.demo import emulator as module
from poller.demo.child import stop_child
from poller.demo.emulator import Emulator, EmulatorError, find_ministack

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def a_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- finding it ---------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No ministack on the path, and an empty cache folder, which is returned."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("POLLER_MINISTACK", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "poller"


class Install:
    """Stands in for `python -m venv` and `pip install`; the environment has an empty program in the end."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.failing in command:
            return subprocess.CompletedProcess(command, 1, "", f"no {self.failing} here\n")
        return subprocess.CompletedProcess(command, 0, "", "")


def test_the_program_on_the_path_is_used(nowhere: Path, tmp_path: Path) -> None:
    program = a_program(tmp_path / "bin" / "ministack", "")

    assert find_ministack() == program


def test_a_program_that_is_named_goes_before_the_path(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_program(tmp_path / "bin" / "ministack", "")
    program = a_program(tmp_path / "mine", "")
    monkeypatch.setenv("POLLER_MINISTACK", str(program))

    assert find_ministack() == program


def test_a_named_program_that_is_none_is_an_error(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLER_MINISTACK", "/no/such/program")

    with pytest.raises(EmulatorError, match="POLLER_MINISTACK is /no/such/program, which is not a program"):
        find_ministack()


def test_an_environment_is_made_once_even_by_several_at_a_time(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install, said, found = Install(), [], []
    monkeypatch.setattr(module.subprocess, "run", install)
    makers = [threading.Thread(target=lambda: found.append(find_ministack(said.append))) for _ in range(4)]
    (nowhere / "ministack-1.5.33").mkdir(parents=True)
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    find_ministack(said.append)

    assert found == [nowhere / "ministack-1.5.33" / "bin" / "ministack"] * 4
    assert said == [f"Installing the AWS emulator ministack once, into {nowhere}/ministack-1.5.33 ..."]
    assert [command[1:3] for command in install.commands] == [["-m", "venv"], ["-m", "pip"]]
    assert install.commands[1][-1] == "ministack>=1.5.33"


@pytest.mark.parametrize("failing", ["venv", "pip"])
def test_an_environment_that_cannot_be_made_leaves_nothing_and_names_the_cure(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(module.subprocess, "run", Install(failing))

    with pytest.raises(EmulatorError) as caught:
        find_ministack(lambda line: None)

    assert str(caught.value).startswith(f"no {failing} here\nThe AWS emulator could not be installed: `")
    assert str(caught.value).endswith("(`pipx install ministack`) or set POLLER_MINISTACK to its program.")
    assert not (nowhere / "ministack-1.5.33").exists()


def test_a_cache_folder_that_cannot_be_written_names_the_cure(
    tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")

    with pytest.raises(EmulatorError, match=r"cannot write to .*; set XDG_CACHE_HOME"):
        find_ministack()


def test_the_cache_folder_is_the_users_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")

    assert str(module._cache_folder()) == "/home/me/.cache/poller"


# --- running it ---------------------------------------------------------------------------------------------


async def test_the_emulator_answers_and_tells_its_version(emulator: Emulator) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{emulator.endpoint_url}/_ministack/health") as reply,
    ):
        health = await reply.json()

    assert emulator.endpoint_url.startswith("http://127.0.0.1:")
    assert emulator.version == health["version"]
    assert emulator.log.exists()


@pytest.mark.slow
async def test_the_emulator_is_gone_after_its_context() -> None:
    async with Emulator() as running:
        pid, folder = running.pid, running.log.parent
        assert pid is not None
        assert is_running(pid)

    assert not is_running(pid)
    assert not folder.exists()
    assert running.pid is None


async def test_an_emulator_that_ends_at_once_shows_its_last_words(tmp_path: Path) -> None:
    broken = a_program(tmp_path / "ministack", "#!/bin/sh\necho the port is taken\nexit 3\n")

    with pytest.raises(EmulatorError, match="did not start; its last words:\nthe port is taken"):
        async with Emulator(broken):
            pass


async def test_an_emulator_that_is_no_program_shows_why(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="No such file or directory"):
        async with Emulator(tmp_path / "ministack"):
            pass


async def test_an_emulator_that_never_answers_is_given_up_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READY_WITHIN", 0.1)
    silent = a_program(tmp_path / "ministack", "#!/bin/sh\nexec tail -f /dev/null\n")
    emulator = Emulator(silent)

    with pytest.raises(EmulatorError, match="did not start"):
        async with emulator:
            pass
    assert emulator.pid is None


def test_a_child_that_does_not_end_is_killed() -> None:
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        assert stop_child(process, 0.05) == -signal.SIGKILL


PARENT = """
import sys
from pathlib import Path
from poller.demo.child import start_child
script = "exec 3> $0; exec tail -f /dev/null"
start_child(["/bin/sh", "-c", script, sys.argv[1]], env={}, cwd=None, log=Path(sys.argv[2])).wait()
"""


def test_a_child_dies_with_its_parent_however_that_ended(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    with (
        subprocess.Popen([sys.executable, "-c", PARENT, str(alive), str(tmp_path / "log")]) as parent,
        alive.open("rb") as line,  # opens when the child does, and ends with it
    ):
        parent.kill()
        assert line.read() == b""
