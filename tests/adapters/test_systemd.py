from __future__ import annotations

import os
import socket
import uuid
from typing import TYPE_CHECKING

import anyio
import pytest
from trio.testing import MockClock

from poller.telemetry.systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """The socket that systemd listens on."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture
def name(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(name: str) -> Iterator[Manager]:
    manager = Manager(name)
    yield manager
    manager.socket.close()


def test_systemd_hears_each_step_of_a_life(manager: Manager, name: str) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": name})
    systemd.ready()
    systemd.reloading()
    systemd.status("2 mappings\nREADY=1 run")
    systemd.stopping()
    ready, reloading, status, stopping = manager.heard()
    assert (ready, status, stopping) == ("READY=1", "STATUS=2 mappings READY=1 run", "STOPPING=1")
    first, _, second = reloading.partition("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_an_abstract_socket_works() -> None:
    name = f"poller-{uuid.uuid4()}"
    manager = Manager(f"\0{name}")
    Systemd({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert manager.heard() == ["READY=1"]
    manager.socket.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_systemd_nothing_happens(environ: dict[str, str]) -> None:
    Systemd(environ).ready()


def test_a_socket_that_is_gone_harms_nobody(name: str) -> None:
    Systemd({"NOTIFY_SOCKET": name}).ready()


def test_a_manager_that_does_not_read_blocks_nobody(manager: Manager, name: str) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": name})
    for _ in range(2000):
        systemd.ready()
    assert 0 < len(manager.heard()) < 2000


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_beats_at_half_its_period_when_it_is_meant_for_us(
    name: str, environ: dict[str, str], interval: float | None
) -> None:
    assert Systemd({"NOTIFY_SOCKET": name, **environ}).watchdog_interval == interval


def test_without_a_socket_nobody_watches() -> None:
    assert Systemd({"WATCHDOG_USEC": "30000000"}).watchdog_interval is None


def run_watchdog(systemd: Systemd, seconds: float, health: list[bool]) -> None:
    async def main() -> None:
        with anyio.move_on_after(seconds) as scope:
            await systemd.watchdog(lambda: health.pop(0))
        assert scope.cancelled_caught

    anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


def test_a_sign_of_life_is_given_only_while_healthy(manager: Manager, name: str) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
    health = [True, False, True]
    run_watchdog(systemd, 44, health)
    assert health == []
    assert manager.heard() == ["WATCHDOG=1"] * 2


def test_a_watchdog_that_nobody_wants_waits_for_its_end(manager: Manager, name: str) -> None:
    run_watchdog(Systemd({"NOTIFY_SOCKET": name}), 3600, [])
    assert manager.heard() == []
