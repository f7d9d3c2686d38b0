"""Tumbling windows: what a window's end gets is the sum of what was put in it, also when the daemon stops in between."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Daemon, running, until
from tests.e2e.stream_harness import DataStream, mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

LENGTH = 2


@contextmanager
def numbers_put(stream: DataStream) -> Iterator[None]:
    """Put one number after the other, some each second."""
    stopped = threading.Event()

    def put() -> None:
        for number in count(1):
            if stopped.wait(0.02):
                return
            stream.client.put_record(StreamName=stream.name, Data=str(number).encode(), PartitionKey="k")

    thread = threading.Thread(target=put)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def sums(stream: DataStream) -> dict[str, int]:
    """What each window should come to, by the arrival of its records."""
    found: Counter[str] = Counter()
    for record in stream.everything(stream.shards()[0]["ShardId"]):
        arrived = record["ApproximateArrivalTimestamp"].timestamp()
        begin = datetime.fromtimestamp(arrived // LENGTH * LENGTH, UTC)
        found[begin.strftime("%Y-%m-%dT%H:%M:%SZ")] += int(record["Data"])
    return dict(found)


def test_windows_add_up_over_a_restart_while_one_is_open(emulator: Emulator, tmp_path: Path) -> None:
    stream = DataStream(emulator.endpoint_url)
    config = mapping(stream.arn, "add_up", tumbling_window_in_seconds=str(LENGTH))
    daemon = Daemon(tmp_path, emulator.endpoint_url, config)
    with numbers_put(stream):
        with running(daemon):
            until(lambda: len(daemon.handled()) >= 1, "a window has ended")
            # Records of the next one have been handled, so it is open.
            committed = daemon.status()["work"]["totals"]["committed"]
            until(lambda: daemon.status()["work"]["totals"]["committed"] > committed, "another has begun")
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
            ended = len(daemon.handled())
        with running(daemon):
            until(lambda: len(daemon.handled()) >= ended + 2, "the open window and another have ended")
            assert daemon.stop() == 0
    with running(daemon):
        # The last window with numbers ends when something comes after it.
        expected = sums(stream)

        def last_has_ended() -> bool:
            stream.client.put_record(StreamName=stream.name, Data=b"0", PartitionKey="k")
            return any(line.startswith(max(expected)) for line in daemon.handled())

        until(last_has_ended, "the last window has ended")
        assert daemon.stop() == 0
    windows = [line.split() for line in daemon.handled()]
    assert len({window for window, _ in windows}) == len(windows), "each window ends once"
    assert {window: int(total) for window, total in windows if int(total)} == expected
