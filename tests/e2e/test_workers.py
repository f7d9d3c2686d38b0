"""Functions in worker processes under the real daemon: crashes, kills, reloads and stops."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import HERE, Daemon, Queues, running, until

if TYPE_CHECKING:
    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow


@pytest.fixture
def queues(emulator: Emulator) -> Queues:
    return Queues(emulator.endpoint_url)


def function(name: str, arn: str, handler: str, ledger: Path, **more: Any) -> str:
    """A function in workers, and the mapping that feeds it."""
    extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    return (
        f'[functions.{name}]\nruntime = "python"\nhandler = "ledger_handlers:{handler}"\ntimeout = 3\n'
        f'working_directory = "{HERE}"\nenvironment = {{ LEDGER = "{ledger}", WORK_SECONDS = "600" }}\n{extra}'
        f'[[mappings]]\nname = "{name}"\nevent_source_arn = "{arn}"\nfunction_name = "{name}"\n'
    )


def workers() -> set[int]:
    """The processes of workers, of whatever parent."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
            if b"python_worker" in b" ".join(command) and str(HERE).encode() in environment:
                found.add(int(entry.name))
    return found


def test_a_handler_that_segfaults_costs_its_own_invocations_only(queues: Queues, tmp_path: Path) -> None:
    dead = queues.create()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "20"})
    bad, good = queues.create(VisibilityTimeout="3", RedrivePolicy=policy), queues.create()
    daemon = Daemon(tmp_path, queues.endpoint_url, "")
    places = {"reserved_concurrent_executions": 8}
    daemon.write(
        function("bad", bad.arn, "segfaults_each_third", daemon.ledger, **places)
        + function("good", good.arn, "record", daemon.ledger, **places)
    )
    bodies = [f"bad{number}" for number in range(200)], [f"good{number}" for number in range(400)]
    bad.send(bodies[0])
    good.send(bodies[1])
    with running(daemon):
        until(good.empty, "the other function has all of its messages")
        until(lambda: set(bodies[0]) | set(bodies[1]) <= set(daemon.handled()), "everything is handled")
        until(bad.empty, "the queue is empty")
        assert daemon.metric('poller_errors_total{function="bad"}') > 0
        assert daemon.metric('poller_errors_total{function="good"}') == 0
        assert daemon.process is not None
        assert zombies(daemon.process.pid) == set()
        assert daemon.stop() == 0
    assert any("signal: segmentation fault" in line for line in daemon.logs)
    assert workers() == set()


def zombies(parent: int) -> set[str]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, ppid, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(ppid) == parent and state == "Z":
                found.add(entry.name)
    return found


def test_a_killed_daemon_leaves_no_worker_behind_even_a_busy_one(queues: Queues, tmp_path: Path) -> None:
    queue = queues.create()
    daemon = Daemon(tmp_path, queues.endpoint_url, "")
    daemon.write(function("work", queue.arn, "slow", daemon.ledger).replace("timeout = 3", "timeout = 30"))
    queue.send(["a"])
    with running(daemon):
        until(lambda: "begun a" in daemon.handled(), "a handler is at work")
        assert workers()
        daemon.kill()
        until(lambda: not workers(), "the workers are gone")


def test_a_reload_keeps_the_workers_of_an_unchanged_function_and_ends_those_of_a_changed_one(
    queues: Queues, tmp_path: Path
) -> None:
    first, second = queues.create(), queues.create()
    daemon = Daemon(tmp_path, queues.endpoint_url, "")
    keep = function("keep", first.arn, "record_with_pid", daemon.ledger)
    change = function("change", second.arn, "record_with_pid", daemon.ledger)
    daemon.write(keep + change)

    def pids() -> dict[str, str]:
        return dict(line.split(" ") for line in daemon.handled())

    with running(daemon):
        first.send(["keep1"])
        second.send(["change1"])
        until(lambda: {"keep1", "change1"} <= set(pids()), "both work")
        daemon.write(keep + change.replace("timeout = 3", "timeout = 4"))
        daemon.signal(signal.SIGHUP)
        second.send(["wake"])  # else a long poll of the changed mapping is waited for
        until(lambda: any("reloaded" in line for line in daemon.logs), "it has reloaded")
        first.send(["keep2"])
        second.send(["change2"])
        until(lambda: {"keep2", "change2"} <= set(pids()), "both work again")
        assert pids()["keep1"] == pids()["keep2"]
        assert pids()["change1"] != pids()["change2"]
        assert int(pids()["change1"]) not in workers()
        assert daemon.stop() == 0
    assert workers() == set()
