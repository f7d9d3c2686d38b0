"""The pieces of the bench that a measured figure depends on: what the canned endpoint brings, what is counted, and what is
said of a curve.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from tests.bench import bends, processes, scale_report
from tests.bench.canned_sqs import Sqs
from tests.bench.canned_streams import LARGEST, Kinesis
from tests.bench.curves import CURVES, Point, Timing
from tests.bench.windows import Count


def at(x: int, cost: float, core: float = 0.1) -> Point:
    return Point(x, cost, mb=80 + x / 10, longest=0.0, core=core, rate=1.0, endpoint=0.1, ready=1.0)


# --- the endpoint -------------------------------------------------------------------------------------------------------


def received(sqs: Sqs, queue: str) -> tuple[list[str], float]:
    """Bodies, and seconds to wait."""
    params = {"QueueUrl": f"http://127.0.0.1/1/{queue}", "MaxNumberOfMessages": 10, "WaitTimeSeconds": 20}
    reply, wait = sqs.answer("ReceiveMessage", params)
    return [message["Body"] for message in orjson.loads(body(reply)).get("Messages", [])], wait


def body(reply: bytes) -> bytes:
    head, _, rest = reply.partition(b"\r\n\r\n")
    assert int(head.rpartition(b"Content-Length: ")[2]) == len(rest)
    return rest


@pytest.mark.parametrize("size", [10, 100, 262_144])
def test_a_queue_of_a_size_brings_messages_of_that_size(size: int) -> None:
    bodies, wait = received(Sqs(Counter()), f"size-{size}")
    assert [len(one) for one in bodies] == [size] * 10
    assert wait == 0


def test_a_queue_that_has_one_message_brings_it_once() -> None:
    sqs = Sqs(Counter())
    assert len(received(sqs, "once-1")[0]) == 1
    assert received(sqs, "once-1") == ([], 20)
    assert len(received(sqs, "once-2")[0]) == 1


def test_a_paced_queue_brings_a_batch_a_period_to_however_many_ask() -> None:
    sqs = Sqs(Counter())
    reads = [received(sqs, "paced-4000-1") for _ in range(7)]
    waits = [wait for _, wait in reads]
    assert 0 <= waits[0] <= 4
    assert [later - waits[0] for later in waits[1:4]] == pytest.approx([4, 8, 12], abs=0.5)
    assert [len(bodies) for bodies, _ in reads[:5]] == [10] * 5
    assert reads[6] == ([], 20), "it would come after the long poll"


@pytest.mark.parametrize(("size", "count"), [(10, 1000), (100_000, LARGEST // 100_000)])
def test_a_stream_of_a_size_brings_records_of_that_size_as_far_as_a_reply_has_room(
    size: int, count: int
) -> None:
    reply, _ = Kinesis(Counter()).answer("GetRecords", {"ShardIterator": f"busy-1-{size}/shardId-0/0"})
    records = orjson.loads(body(reply))["Records"]
    assert len(records) == count
    assert {len(record["Data"]) * 3 // 4 for record in records} <= set(range(size, size + 3))


def test_one_shard_of_a_stream_that_has_one_record_brings_it_once() -> None:
    kinesis = Kinesis(Counter())

    def read(shard: int, page: int) -> int:
        iterator = f"once-5000/{kinesis.shard_id.format(shard)}/{page:012}"
        return len(
            orjson.loads(body(kinesis.answer("GetRecords", {"ShardIterator": iterator})[0]))["Records"]
        )

    assert [read(0, 0), read(0, 1), read(1, 0)] == [1, 0, 0]
    assert len(kinesis.shards("once-5000")) == 5000


# --- what is counted ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_allocations_are_counted_gross_and_net() -> None:
    count, measured, kept = Count(), dict[str, float](), []
    with count.allocations(measured):
        for number in range(2000):
            object()
            kept.append([number, object()])
            count.messages += 1
    # Two objects, and a list with its items; the growing list and integers come on top. What goes at once is no net.
    assert 4 <= measured["allocations"] < 8
    assert 2 <= measured["kept"] < 5


@pytest.mark.slow
def test_cpu_and_memory_of_a_daemon_are_those_of_all_its_processes() -> None:
    burn = "import sys, time\nwhile time.process_time() < 0.1: pass\nprint('burnt', flush=True)\nsys.stdin.read()"
    start = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        daemon = processes.Daemon(process, 0, time.monotonic(), Path(os.devnull))
        assert len(daemon.workers()) == 1
        assert daemon.workers() != [process.pid]
        assert 0.1 <= daemon.cpu() < 30
        assert daemon.resident() > 5e6
        with suppress(BrokenPipeError):
            process.communicate(timeout=30)


# --- what is said -------------------------------------------------------------------------------------------------------


def test_a_flat_curve_has_no_bend() -> None:
    points = [at(1, 18.0), at(10, 17.0), at(100, 20.0)]
    assert bends.where(points, "queues", idle=False) == "No bend from 1 to 100 queues."


def test_a_curve_bends_where_its_cost_leaves_that_of_its_cheapest_point() -> None:
    points = [at(1, 120.0), at(10, 20.0), at(100, 18.0), at(1000, 60.0)]
    said = bends.where(points, "bytes", idle=False)
    assert "Flat from 10 on (at 1 it is not); dearer from 1,000 on (at 100 it is not)." in said
    assert "Dearest at 1 bytes: 6.7 times the least." in said


def test_an_idle_curve_is_judged_by_what_each_adds() -> None:
    straight = [at(1, 5.0), at(11, 15.0), at(101, 105.0)]
    assert bends.where(straight, "shards", idle=True) == "No bend from 11 to 101 shards."


def test_a_full_core_is_named() -> None:
    said = bends.where([at(1, 1.0), at(5000, 1.0, core=0.99)], "shards", idle=False)
    assert said.endswith("The core is full at 5,000 shards.")


def test_every_curve_has_its_reason() -> None:
    assert bends.WHY.keys() == {curve.name for curve in CURVES}


@pytest.mark.slow
def test_the_report_is_kept_as_tables_figures_and_one_drawing(tmp_path: Path) -> None:
    measured = {curve: [at(x, 10.0 + x) for x in curve.loads] for curve in CURVES[:2]}
    timing = Timing()
    text = scale_report.markdown(measured, timing, busy=0.5)
    file = scale_report.save(measured, timing, text, "scale", tmp_path)
    assert file.name.endswith("-scale.md")
    assert "Each shard: 100.0 KB of memory, 1,000.0 us of CPU a second" in file.read_text()
    drawn = file.with_suffix(".svg").read_text()
    assert f"]({file.stem}.svg)" in file.read_text()
    assert all(curve.name in drawn for curve in measured)
    kept = orjson.loads(file.with_suffix(".json").read_bytes())["curves"]
    assert kept["queues-idle"]["points"][-1]["x"] == 1000
