"""What the one on call meets: wrong files, missing queues, reloads, and a daemon that says what it does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import ACCOUNT, HERE, REGION, Daemon, Queues, free_port, running, until
from tests.e2e.test_nothing_is_lost import mapping

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

TWO = """
[functions.one]
handler = "ledger_handlers:record"
timeout = 3
[[mappings]]
name = "first"
event_source_arn = "{first}"
function_name = "one"
[[mappings]]
name = "second"
event_source_arn = "{second}"
function_name = "one"
"""


@pytest.fixture
def queues(emulator: Emulator) -> Queues:
    return Queues(emulator.endpoint_url)


def poller(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poller", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}", "COLUMNS": "160"},
    )


def test_a_missing_queue_is_shown_and_read_once_it_exists_while_others_run(
    queues: Queues, tmp_path: Path
) -> None:
    there = queues.create()
    name = f"later-{time.time_ns()}"
    config = TWO.format(first=there.arn, second=f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
    daemon = Daemon(tmp_path, queues.endpoint_url, config)
    with running(daemon):
        there.send(["a"])
        until(lambda: daemon.handled() == ["a"], "the other mapping works")
        status = daemon.status()["second"]
        assert status["state"] == "failed"
        assert "check the queue's name" in status["reason"]
        assert daemon.metric('poller_mapping_state{mapping="second",state="failed"}') == 1
        queues.client.create_queue(QueueName=name)
        until(lambda: daemon.status()["second"]["state"] == "running", "it is read")
        daemon.stop()


def test_a_good_reload_leaves_unchanged_mappings_alone_and_a_bad_one_changes_nothing(
    queues: Queues, tmp_path: Path
) -> None:
    first, second, third = queues.create(), queues.create(), queues.create()
    daemon = Daemon(tmp_path, queues.endpoint_url, TWO.format(first=first.arn, second=second.arn))
    with running(daemon):
        first.send(["one"])
        until(lambda: daemon.handled() == ["one"], "the first mapping works")
        daemon.write("[daemon]\nshutdown_timeout = 3\n" + TWO.format(first=first.arn, second="arn:nothing"))
        daemon.signal(signal.SIGHUP)
        until(lambda: any("reload refused" in line for line in daemon.logs), "the file is refused")
        since = daemon.status()["first"]["since"]
        daemon.write("[daemon]\nshutdown_timeout = 3\n" + TWO.format(first=first.arn, second=third.arn))
        daemon.signal(signal.SIGHUP)
        until(lambda: daemon.status()["second"]["state"] == "draining", "the changed mapping ends")
        second.send(["wake"])  # else its long poll is waited for
        until(lambda: any('"reloaded' in line for line in daemon.logs), "the file is taken")
        third.send(["three"])
        until(lambda: daemon.handled()[-1] == "three", "the new queue is read")
        first.send(["one again"])
        until(lambda: daemon.handled()[-1] == "one again", "the unchanged mapping goes on")
        assert daemon.status()["first"]["since"] == since
        assert daemon.status()["second"]["source"] == third.arn
        daemon.stop()


def test_a_queue_that_hides_messages_for_less_than_the_function_takes_is_refused(
    queues: Queues, tmp_path: Path
) -> None:
    work = queues.create(VisibilityTimeout="2")
    daemon = Daemon(tmp_path, queues.endpoint_url, mapping(work.arn, "record"))
    with running(daemon):
        status = daemon.status()["work"]
        assert status["state"] == "failed"
        assert (
            "Queue visibility timeout: 2 seconds is less than Function timeout: 3 seconds" in status["reason"]
        )
        daemon.stop()


def test_the_status_command_pause_and_resume_talk_to_the_daemon(queues: Queues, tmp_path: Path) -> None:
    work = queues.create()
    daemon = Daemon(tmp_path, queues.endpoint_url, mapping(work.arn, "record"))
    with running(daemon):
        assert "running" in poller(tmp_path, "status").stdout
        assert poller(tmp_path, "pause", "work").stdout == "work: paused\n"
        assert daemon.status()["work"]["state"] == "paused"
        assert poller(tmp_path, "resume", "work").returncode == 0
        wrong = poller(tmp_path, "pause", "wrok")
        assert wrong.returncode == 1
        assert "there are: work" in wrong.stderr
        daemon.stop()
    gone = poller(tmp_path, "status")
    assert gone.returncode == 1
    assert "no daemon answers" in gone.stderr


def test_an_endpoint_out_of_reach_is_named_in_one_line_and_tried_again(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    daemon = Daemon(tmp_path, endpoint, mapping(f"arn:aws:sqs:{REGION}:{ACCOUNT}:orders", "record"))
    with running(daemon):
        status = daemon.status()["work"]
        assert status["state"] == "failed"
        assert "127.0.0.1" in status["reason"]
        assert daemon.stop() == 0


def test_a_wrong_file_is_refused_with_all_its_mistakes_and_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "poller.toml").write_text(
        '[functions.f]\nhandler = "a:b"\ntimeout = 9999\n'
        '[[mappings]]\nname = "m"\nevent_source_arn = "x"\nfunction_name = "g"\n'
    )
    for command in ("run", "check"):
        result = poller(tmp_path, command)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) >= 3
        assert "Traceback" not in result.stderr


def test_a_handler_that_cannot_be_imported_is_named_with_its_mapping(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    config = mapping(f"arn:aws:sqs:{REGION}:{ACCOUNT}:orders", "record").replace(
        "ledger_handlers:record", "broken:handler"
    )
    (tmp_path / "poller.toml").write_text(config)
    result = poller(tmp_path, "run")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert 'mapping "work"' in line
    assert "nothing_of_that_name" in line


def test_a_hangup_while_functions_are_loaded_is_a_reload_once_they_are(
    queues: Queues, tmp_path: Path
) -> None:
    (tmp_path / "slow_start.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\ndef handler(event, context): pass\n"
    )
    config = mapping(queues.create().arn, "record").replace("ledger_handlers:record", "slow_start:handler")
    with running(Daemon(tmp_path, queues.endpoint_url, config)) as daemon:
        until(lambda: any("reloaded: 1 mappings" in line for line in daemon.logs), "it is loaded again")
        until(lambda: daemon.status()["work"]["state"] == "running", "the mapping runs")
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("state", "function"),
    [
        ("dynamodb:state", ""),
        ("memory:", 'runtime = "python"\nrole_arn = "arn:aws:iam::123456789012:role/work"\n'),
    ],
    ids=["state", "role"],
)
def test_a_stop_does_not_wait_for_a_state_or_a_role_that_cannot_be_reached(
    state: str, function: str, tmp_path: Path
) -> None:
    stream = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/clicks"
    work = mapping(stream, "record", starting_position='"LATEST"')
    config = f'[daemon]\nstate = "{state}"\nshutdown_timeout = 5\n' + work.replace("timeout = 3\n", function)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        daemon = Daemon(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", config).start()
        try:
            connection, _ = silent.accept()  # the table, or the role, is asked for
            daemon.signal(signal.SIGTERM)
            assert daemon.wait(5) == 0
            connection.close()
            assert not [line for line in daemon.logs if "ready:" in line]
        finally:
            daemon.kill()


def test_a_taken_port_ends_the_start_with_one_line(queues: Queues, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, queues.endpoint_url, mapping(queues.create().arn, "record"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", daemon.port))
        taken.listen()
        daemon.start()
        assert daemon.wait() == 1
    until(lambda: any("cannot listen on" in line for line in daemon.logs), "the address is named")
