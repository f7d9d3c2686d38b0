"""What the one on call meets with streams: wrong names, wrong state files, shards that are gone, handlers that are confused."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import ACCOUNT, REGION, Daemon, running, until
from tests.e2e.stream_harness import DataStream, Ledger, all_done, all_saved, mapping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow


def errors(daemon: Daemon) -> list[str]:
    """The messages of all that was logged at ERROR."""
    lines = [json.loads(line) for line in daemon.logs if line.startswith("{")]
    assert len(lines) == len(daemon.logs), "nothing but log lines, so no traceback"
    return [line["message"] for line in lines if line["level"].lower() == "error"]


def test_a_missing_stream_is_one_clear_line_and_the_others_run(emulator: Emulator, tmp_path: Path) -> None:
    stream = DataStream(emulator.endpoint_url)
    name = f"later-{time.time_ns()}"
    missing = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{name}"
    config = mapping(stream.arn, "record") + mapping(missing, "record", name="second")
    daemon, ledger = Daemon(tmp_path, emulator.endpoint_url, config), Ledger(tmp_path / "ledger")
    with running(daemon):
        stream.put(["a-1"])
        until(lambda: "a-1" in ledger.look().records, "the other mapping works")
        status = daemon.status()["second"]
        assert status["state"] == "failed"
        assert name in status["reason"]
        assert "\n" not in status["reason"]
        assert daemon.metric('poller_mapping_state{mapping="second",state="failed"}') == 1
        later = DataStream(emulator.endpoint_url, name=name)
        later.put(["b-1"])
        until(lambda: "b-1" in ledger.look().records, "it is read once it exists")
        assert daemon.stop() == 0


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    file.write_bytes(content)


def make_foreign(file: Path) -> None:
    file.write_text("not a database, and of nobody's business\n" * 50)


def make_newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(damage, "damaged"), (make_foreign, "not a state file"), (make_newer, "written by a newer poller")],
)
def test_a_state_file_that_cannot_be_used_ends_the_start_with_one_line_and_is_left_alone(
    emulator: Emulator, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    stream = DataStream(emulator.endpoint_url)
    daemon = Daemon(tmp_path, emulator.endpoint_url, mapping(stream.arn, "record"))
    with running(daemon):
        assert daemon.stop() == 0
    file = tmp_path / "poller.db"
    spoil(file)
    spoiled = file.read_bytes()
    daemon.logs.clear()
    try:
        assert daemon.start().wait() == 1
    finally:
        daemon.kill()
    until(lambda: errors(daemon), "the error is logged")
    (line,) = errors(daemon)
    assert said in line
    assert str(file) in line
    assert "\n" not in line
    assert file.read_bytes() == spoiled


def test_the_checkpoint_of_a_shard_that_is_gone_keeps_nobody_from_working(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=2)
    stream.put(f"k{number}-1" for number in range(10))
    config = mapping(stream.arn, "record")
    daemon, ledger = Daemon(tmp_path, emulator.endpoint_url, config), Ledger(tmp_path / "ledger")
    with running(daemon):
        until(lambda: len(ledger.look().records) == 10 and all_saved(daemon), "all is handled")
        assert daemon.stop() == 0
    gone = "shardId-000000000077"
    with closing(sqlite3.connect(tmp_path / "poller.db")) as connection, connection:
        kept = "mapping, position, sequence_number, sub_sequence_number, since, window, finished"
        connection.execute(
            f"INSERT INTO checkpoints (shard, {kept}) SELECT ?, {kept} FROM checkpoints LIMIT 1", (gone,)
        )
    with running(daemon):
        stream.put(f"k{number}-2" for number in range(10))
        until(lambda: len(ledger.look().records) == 20, "the other shards go on")
        until(
            lambda: gone not in {one["shard"] for one in daemon.status()["work"]["shards"]}, "it is finished"
        )
        assert daemon.status()["work"]["state"] == "running"
        assert ledger.repeats == 0
        assert daemon.stop() == 0


def test_a_sequence_number_that_is_not_of_the_batch_fails_all_of_it(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url)
    stream.put(["a-1", "a-2", "a-3"])
    config = mapping(stream.arn, "confused", function_response_types='["ReportBatchItemFailures"]')
    daemon = Daemon(tmp_path, emulator.endpoint_url, config)
    with running(daemon):
        until(lambda: all_done(daemon), "the batch is done")
        assert daemon.metric('poller_failed_invoke_events_total{mapping="work"}') == 6
        assert daemon.stop() == 0
    assert [line.partition(" ")[2] for line in daemon.handled()] == ["a-1", "a-2", "a-3"] * 3


def test_two_mappings_on_a_stream_share_its_reads(emulator: Emulator, tmp_path: Path) -> None:
    stream = DataStream(emulator.endpoint_url, shards=2)
    config = mapping(stream.arn, "record", "first") + mapping(stream.arn, "record", "second")
    daemon, put = Daemon(tmp_path, emulator.endpoint_url, config), 0
    begun = time.monotonic()
    with running(daemon):
        # A trickle that lets either mapping read as often as it may.
        while put < 20:
            stream.put(f"k{key}-{put}" for key in range(10))
            put += 1
            until(lambda goal=20 * put: len(daemon.handled()) >= goal, "both have handled it")
        took = time.monotonic() - begun
        reads = daemon.metric(
            'poller_api_requests_total{operation="GetRecords",outcome="ok",service="kinesis"}'
        )
        assert daemon.stop() == 0
    # Five a second are what one reader does at most; two that did not share would do ten.
    assert reads <= 2 * 5 * (took + 1)
    assert len(daemon.handled()) == 20 * put
