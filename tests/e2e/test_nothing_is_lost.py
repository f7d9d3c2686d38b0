"""The promise of the product, kept by the real process against a real queue."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Daemon, Queues, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow


@pytest.fixture
def queues(emulator: Emulator) -> Queues:
    return Queues(emulator.endpoint_url)


def mapping(arn: str, handler: str, **more: str) -> str:
    """A config of one mapping, whose function has the mapping's name."""
    extra = "".join(f"{key.replace('__', '.')} = {value}\n" for key, value in more.items())
    return (
        f'[functions.work]\nhandler = "ledger_handlers:{handler}"\ntimeout = 3\n'
        f'[[mappings]]\nname = "work"\nevent_source_arn = "{arn}"\nfunction_name = "work"\n{extra}'
    )


def test_every_message_is_handled_or_dead_lettered_through_five_kills(queues: Queues, tmp_path: Path) -> None:
    total = 20_000
    dead = queues.create()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "5"})
    work = queues.create(VisibilityTimeout="6", RedrivePolicy=policy)
    bodies = [f"m{number}" for number in range(total)]
    work.send(bodies)
    config = mapping(work.arn, "sometimes", function_response_types='["ReportBatchItemFailures"]')
    daemon = Daemon(tmp_path, queues.endpoint_url, config)
    for kills in range(1, 6):
        with running(daemon):
            goal = total * kills // 6
            until(lambda goal=goal: len(daemon.handled()) >= goal, f"{goal} messages are handled")
            daemon.kill()
    with running(daemon):
        until(work.empty, "the queue is empty", patience=120)
        assert daemon.stop() == 0
    handled, dead_lettered = set(daemon.handled()), set(dead.take_all())
    lost = set(bodies) - handled - dead_lettered
    assert not lost, f"{len(lost)} lost, such as {sorted(lost)[:5]}"
    assert len(dead_lettered) < total / 100


def test_a_fifo_group_keeps_its_order_through_a_kill(queues: Queues, tmp_path: Path) -> None:
    work = queues.create(fifo=True, VisibilityTimeout="3")
    bodies = [f"g{number % 5}-{number:04}" for number in range(300)]
    work.send(bodies, group=lambda body: body[:2])
    daemon = Daemon(tmp_path, queues.endpoint_url, mapping(work.arn, "record", batch_size="3"))
    with running(daemon):
        until(lambda: len(daemon.handled()) >= 100, "a third is handled")
        daemon.kill()
    with running(daemon):
        until(work.empty, "the queue is empty")
        assert daemon.stop() == 0
    first_time = list(dict.fromkeys(daemon.handled()))
    assert sorted(first_time) == sorted(bodies)
    for group in range(5):
        own = [body for body in first_time if body.startswith(f"g{group}")]
        assert own == sorted(own)


def test_sigterm_under_load_ends_in_time_and_gives_unfinished_messages_back(
    queues: Queues, tmp_path: Path
) -> None:
    work = queues.create(VisibilityTimeout="300")
    bodies = [f"m{number}" for number in range(400)]
    work.send(bodies)
    config = "[daemon]\nshutdown_timeout = 4\n" + mapping(
        work.arn, "slow", batch_size="10", scaling_config__maximum_concurrency="3"
    ).replace("timeout = 3", "timeout = 60")
    daemon = Daemon(tmp_path, queues.endpoint_url, config, WORK_SECONDS="30")
    with running(daemon):
        until(lambda: len(daemon.handled()) == 30, "three invocations run")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(patience=4.5) == 0
    after = daemon.handled()
    left = work.take_all()
    assert sorted(left) == sorted(bodies), "all are visible at once, those in a handler too"
    assert max(left.values()) <= 2, "one receive by the daemon, one by this test"
    assert daemon.handled() == after


def test_what_a_handler_can_finish_in_time_is_finished_and_deleted_at_sigterm(
    queues: Queues, tmp_path: Path
) -> None:
    work = queues.create(VisibilityTimeout="300")
    work.send([f"m{number}" for number in range(10)])
    config = "[daemon]\nshutdown_timeout = 20\n" + mapping(work.arn, "slow")
    daemon = Daemon(tmp_path, queues.endpoint_url, config, WORK_SECONDS="1.5")
    with running(daemon):
        until(lambda: len(daemon.handled()) == 10, "the invocation runs")
        daemon.signal(signal.SIGTERM)
        until(lambda: len(daemon.handled()) == 20, "the invocation ends")
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0
    assert work.counts() == (0, 0)


def test_poison_goes_to_the_dead_letter_queue_by_the_queues_own_policy(
    queues: Queues, tmp_path: Path
) -> None:
    dead = queues.create()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "2"})
    work = queues.create(VisibilityTimeout="3", RedrivePolicy=policy)
    work.send(["bad"])
    daemon = Daemon(tmp_path, queues.endpoint_url, mapping(work.arn, "poisoned"))
    with running(daemon):
        until(lambda: dead.counts()[0] == 1, "the message is dead-lettered")
        assert daemon.metric('poller_invocations_total{function="work"}') == 2
        assert daemon.metric('poller_errors_total{function="work"}') == 2
        assert daemon.stop() == 0
    assert any('"error_type":"ValueError"' in line and '"request_id"' in line for line in daemon.logs)


def test_pausing_burns_no_receive_counts(queues: Queues, tmp_path: Path) -> None:
    work = queues.create(VisibilityTimeout="60")
    config = mapping(work.arn, "record")
    daemon = Daemon(tmp_path, queues.endpoint_url, config)
    with running(daemon):
        # A burst leaves several long polls in flight, each of which may answer once more.
        work.send([f"burst{number}" for number in range(300)])
        until(lambda: len(daemon.handled()) == 300, "the burst is handled")
        daemon.command("work", "pause")
        work.send([f"late{number}" for number in range(20)])
        until(lambda: daemon.status()["work"]["receivers"] == 0, "the long polls have returned")
        assert len(daemon.handled()) == 300
        left = work.take_all()
        assert len(left) == 20
        assert max(left.values()) <= 2
        daemon.stop()
