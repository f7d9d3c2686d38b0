"""An unchanged handler that reports partial failures with Powertools' BatchProcessor, in workers of the real daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import HERE, Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, all_done
from tests.e2e.test_streams_dynamodb import Table

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow


@pytest.fixture
def daemon(emulator: Emulator, tmp_path: Path) -> Daemon:
    return Daemon(tmp_path, emulator.endpoint_url, "")


def config(daemon: Daemon, handler: str, arn: str, more: str = "") -> str:
    return (
        f'[functions.work]\nruntime = "python"\ncode = "{HERE / "powertools_app"}"\nhandler = "app.{handler}"\n'
        f'timeout = 3\nenvironment = {{ LEDGER = "{daemon.ledger}" }}\n'
        f'[[mappings]]\nname = "work"\nevent_source_arn = "{arn}"\nfunction_name = "work"\n'
        f'function_response_types = ["ReportBatchItemFailures"]\n{more}'
    )


def attempts(*texts: str) -> list[str]:
    """What a batch leaves in the ledger: a record fails that is marked with ?."""
    return [f"failed {text[:-1]}" if text.endswith("?") else f"done {text}" for text in texts]


def test_a_fifo_queue_stays_in_order_behind_a_message_that_fails(daemon: Daemon, emulator: Emulator) -> None:
    queue = Queues(emulator.endpoint_url).create(fifo=True, VisibilityTimeout="3")
    queue.send(["a", "b!", "c"], group=lambda _: "one")
    daemon.write(config(daemon, "fifo_handler", queue.arn))
    with running(daemon):
        until(lambda: "done c" in daemon.handled(), "all is done")
        until(queue.empty, "the queue is empty")
        assert daemon.handled() == attempts("a", "b!?", "b!?", "b!", "c")
        assert daemon.stop() == 0


def test_a_message_that_fails_holds_back_its_own_group_only(daemon: Daemon, emulator: Emulator) -> None:
    queue = Queues(emulator.endpoint_url).create(fifo=True, VisibilityTimeout="3")
    queue.send(["x1!", "y1", "x2", "y2"], group=lambda body: body[0])
    daemon.write(config(daemon, "fifo_groups_handler", queue.arn))
    with running(daemon):
        until(lambda: {"done x2", "done y2"} <= set(daemon.handled()), "all is done")
        until(queue.empty, "the queue is empty")
        lines = daemon.handled()
        of_group = {name: [line for line in lines if f" {name}" in line] for name in "xy"}
        assert of_group == {"x": attempts("x1!?", "x1!?", "x1!", "x2"), "y": attempts("y1", "y2")}
        assert daemon.stop() == 0


BATCH = ("0", "1", "2!?", "3", "4")
#: What is before the first failure is behind the checkpoint; the rest of the batch is sent again.
STREAM_ATTEMPTS = attempts(*BATCH, *BATCH[2:], "2!", *BATCH[3:])


def test_a_data_stream_goes_on_from_the_first_record_that_failed(daemon: Daemon, emulator: Emulator) -> None:
    stream = DataStream(emulator.endpoint_url)
    stream.put(text.rstrip("?") for text in BATCH)
    daemon.write(config(daemon, "kinesis_handler", stream.arn, 'starting_position = "TRIM_HORIZON"\n'))
    with running(daemon):
        until(lambda: all_done(daemon), "all is done")
        assert daemon.handled() == STREAM_ATTEMPTS
        assert daemon.stop() == 0


def test_the_changes_of_a_table_go_on_from_the_first_one_that_failed(
    daemon: Daemon, emulator: Emulator
) -> None:
    table = Table(emulator.endpoint_url)
    for text in BATCH:
        table.put(text.rstrip("?"))
    daemon.write(config(daemon, "dynamodb_handler", table.stream_arn, 'starting_position = "TRIM_HORIZON"\n'))
    with running(daemon):
        until(lambda: all_done(daemon), "all is done")
        assert daemon.handled() == STREAM_ATTEMPTS
        assert daemon.stop() == 0
