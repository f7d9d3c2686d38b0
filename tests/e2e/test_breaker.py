"""A function that is down for a while, and records that would be dead letters, or given up, by the end of it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e import stream_harness
from tests.e2e.harness import Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, Ledger, all_done, in_order
from tests.e2e.test_nothing_is_lost import mapping

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

#: Seconds in which, without a breaker, a visibility timeout of 3 has a failing message received more than 3 times, and
#: a stream's batch with 3 retries is given up.
OUTAGE = 11.0


@pytest.fixture
def queues(emulator: Emulator) -> Queues:
    return Queues(emulator.endpoint_url)


def noted(daemon: Daemon, what: str) -> dict[str, int]:
    """Message -> its highest receive count, of those of which the handler noted `what`."""
    lines = [line.split() for line in daemon.handled()]
    found: dict[str, int] = {}
    for word, body, receives in lines:
        if word == what:
            found[body] = max(found.get(body, 0), int(receives))
    return found


def test_an_outage_of_the_function_makes_no_dead_letters(queues: Queues, tmp_path: Path) -> None:
    dead = queues.create()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "3"})
    work = queues.create(VisibilityTimeout="3", RedrivePolicy=policy)
    bodies = [f"m{number}" for number in range(1000)]
    work.send(bodies)
    config = mapping(
        work.arn,
        "down_while_flagged",
        scaling_config__maximum_concurrency="10",
        circuit_breaker="{ consecutive_failures = 5 }",
    )
    flag = tmp_path / "outage"
    flag.touch()
    daemon = Daemon(tmp_path, queues.endpoint_url, config, OUTAGE=str(flag))
    with running(daemon):
        until(lambda: daemon.status()["work"]["circuit"] == "open", "the circuit opens")
        opened = time.monotonic()
        status = daemon.status()["work"]
        assert status["state"] == "degraded"
        assert (
            "invocations in a row failed (ConnectionError: the database does not answer)" in status["reason"]
        )
        assert daemon.metric('poller_circuit_breaker_state{mapping="work",state="open"}') == 1
        at_first = len(noted(daemon, "failed"))
        # One probe is due after 5 to 10 seconds, the next 10 to 20 seconds later.
        until(lambda: any("the probe failed" in line for line in daemon.logs), "a probe has failed")
        until(lambda: time.monotonic() - opened > OUTAGE, "the outage has lasted long enough")
        failed = noted(daemon, "failed")
        assert len(failed) <= at_first + 10
        assert len(failed) <= 10 * (10 + 5 + 1)
        flag.unlink()
        daemon.command("work", "resume")
        until(work.empty, "the queue is empty")
        assert daemon.metric('poller_circuit_breaker_trips_total{mapping="work"}') == 1
        status = daemon.status()["work"]
        assert (status["state"], status["circuit"]) == ("running", "closed")
        assert daemon.stop() == 0
    handled = noted(daemon, "handled")
    assert set(handled) == set(bodies)
    assert dead.counts() == (0, 0)
    assert max(receives for body, receives in handled.items() if body not in failed) <= 2


def test_an_outage_of_the_function_gives_no_batch_of_a_stream_up(emulator: Emulator, tmp_path: Path) -> None:
    stream = DataStream(emulator.endpoint_url, shards=2)
    texts = [f"k{number % 16}-{number:05}" for number in range(800)]
    stream.put(texts)
    config = stream_harness.mapping(
        stream.arn,
        "down_while_flagged",
        batch_size="10",
        parallelization_factor="4",
        maximum_retry_attempts="3",
        circuit_breaker="{ consecutive_failures = 3 }",
    )
    flag = tmp_path / "outage"
    flag.touch()
    daemon = Daemon(tmp_path, emulator.endpoint_url, config, OUTAGE=str(flag))
    ledger = Ledger(daemon.ledger)
    with running(daemon):
        until(lambda: daemon.status()["work"]["circuit"] == "open", "the circuit opens")
        opened = time.monotonic()
        assert {one["doing"] for one in daemon.status()["work"]["shards"]} == {"circuit open"}
        until(lambda: time.monotonic() - opened > OUTAGE, "the outage has lasted long enough")
        flag.unlink()
        daemon.command("work", "resume")
        until(lambda: all_done(daemon), "all is done")
        assert daemon.metric('poller_dropped_events_total{mapping="work"}') == 0
        assert daemon.status()["work"]["circuit"] in ("ramping", "closed")
        assert daemon.stop() == 0
    records = ledger.look().records
    assert sorted(records) == sorted(texts)
    assert in_order(records)
    assert ledger.repeats == 0
