"""The promise of the product on streams, kept by the real process: nothing lost, and each key in order."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, Ledger, all_done, in_order, mapping

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

#: 100,000 for the whole promise, which takes some minutes.
RECORDS = int(os.environ.get("POLLER_E2E_RECORDS", "8000"))
KILLS = 5


def test_every_record_is_handled_or_at_the_destination_through_five_kills(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=8)
    failed = Queues(emulator.endpoint_url).create()
    poison = set(random.Random(1).sample(range(RECORDS), RECORDS // 100))
    texts = [f"k{number % 97}-{number:06}{'!' if number in poison else ''}" for number in range(RECORDS)]
    good, bad = [one for one in texts if not one.endswith("!")], {one for one in texts if one.endswith("!")}
    stream.put(texts)
    config = mapping(
        stream.arn,
        "picky",
        parallelization_factor="2",
        bisect_batch_on_function_error="true",
        maximum_retry_attempts="1",
        destination_config__on_failure__destination=f'"{failed.arn}"',
    )
    daemon, ledger = Daemon(tmp_path, emulator.endpoint_url, config), Ledger(tmp_path / "ledger")
    began, memory = time.monotonic(), 0.0
    for kills in range(1, KILLS + 1):
        with running(daemon):
            goal = len(good) * kills // (KILLS + 1)
            until(lambda goal=goal: len(ledger.look().records) >= goal, f"{goal} are handled", patience=600)
            memory = max(memory, daemon.metric("process_resident_memory_bytes"))
            daemon.kill()
    with running(daemon):
        until(lambda: all_done(daemon), "the stream is done with", patience=600)
        memory = max(memory, daemon.metric("process_resident_memory_bytes"))
        took = time.monotonic() - began
        assert daemon.stop() == 0
    handled = ledger.look().records
    documents = [json.loads(body)["KinesisBatchInfo"] for body in failed.take_all()]
    delivered = [
        record["Data"].decode()
        for info in documents
        for record in stream.between(info["shardId"], info["startSequenceNumber"], info["endSequenceNumber"])
    ]
    print(
        f"{RECORDS} records in {took:.1f} s with {KILLS} kills: {ledger.repeats} handled again, "
        f"{len(delivered) - len(set(delivered))} delivered again, at most {memory / 2**20:.0f} MiB resident"
    )
    lost = set(good) - handled.keys()
    assert not lost, f"{len(lost)} lost, such as {sorted(lost)[:5]}"
    assert handled.keys() == set(good)
    assert set(delivered) == bad, "each poison record is at the destination, and no other"
    assert in_order(handled)


@pytest.mark.parametrize("lanes", [1, 3])
def test_sigterm_under_load_ends_in_time_and_the_next_start_goes_on_from_there(
    emulator: Emulator, tmp_path: Path, lanes: int
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=4)
    texts = [f"k{number % 31}-{number:06}" for number in range(2000 * lanes)]
    stream.put(texts)
    config = "[daemon]\nshutdown_timeout = 10\n" + mapping(
        stream.arn, "steady", batch_size="20", parallelization_factor=str(lanes)
    )
    daemon = Daemon(tmp_path, emulator.endpoint_url, config, WORK_SECONDS="0.05")
    ledger = Ledger(tmp_path / "ledger")
    for part in (1, 2):
        with running(daemon):
            goal = len(texts) * part // 3
            until(lambda goal=goal: len(ledger.look().records) >= goal, "a part is handled")
            daemon.signal(signal.SIGTERM)
            assert daemon.wait(patience=10.5) == 0
        assert len(ledger.look().records) < len(texts), "the stop came under load"
    with running(daemon):
        until(lambda: all_done(daemon), "the stream is done with")
        assert daemon.stop() == 0
    assert sorted(ledger.look().records) == sorted(texts)
    assert in_order(ledger.records)
    # Lanes that were ahead of the slowest one of their shard are behind its checkpoint.
    assert ledger.repeats == 0 or lanes > 1
    print(f"{lanes} lanes: {ledger.repeats} of {len(texts)} handled again after two stops")
