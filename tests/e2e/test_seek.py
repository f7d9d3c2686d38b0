"""A mapping on a stream is moved to another place: while the daemon runs, and while it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.e2e.harness import ACCOUNT, HERE, REGION, Daemon, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

CONFIG = """
[daemon]
state = "sqlite:poller.db"
[functions.one]
handler = "ledger_handlers:record_stream"
timeout = 3
[[mappings]]
name = "clicks"
event_source_arn = "{arn}"
function_name = "one"
starting_position = "TRIM_HORIZON"
idle_interval_in_seconds = 0.2
"""


class Clicks:
    def __init__(self, endpoint_url: str) -> None:
        self.name = f"clicks-{uuid.uuid4().hex[:12]}"
        self.arn = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{self.name}"
        self.client: Any = boto3.client(
            "kinesis",
            endpoint_url=endpoint_url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.client.create_stream(StreamName=self.name, ShardCount=1)

    def put(self, *texts: str) -> list[str]:
        """The sequence numbers of the records."""
        return [
            self.client.put_record(StreamName=self.name, Data=text.encode(), PartitionKey="k")[
                "SequenceNumber"
            ]
            for text in texts
        ]


@pytest.fixture
def clicks(emulator: Emulator) -> Iterator[Clicks]:
    stream = Clicks(emulator.endpoint_url)
    yield stream
    stream.client.delete_stream(StreamName=stream.name)


def seek(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poller", "seek", "clicks", *words, "--yes"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}"},
    )


def saved(daemon: Daemon, number: str) -> bool:
    """Whether everything up to this record is done, and that is written."""
    (shard,) = daemon.status()["clicks"]["shards"]
    return bool(shard["sequence_number"] == number and shard["checkpoint_age"] == 0)


def test_a_mapping_is_moved_back_and_forth(clicks: Clicks, emulator: Emulator, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, emulator.endpoint_url, CONFIG.format(arn=clicks.arn))
    with running(daemon):
        until(lambda: daemon.status()["clicks"]["state"] == "running", "it runs")
        first, _, last = clicks.put("a", "b", "c")
        until(lambda: daemon.handled() == ["a", "b", "c"], "they are handled")
        until(lambda: saved(daemon, last), "they are done")

        refused = seek(tmp_path, "--to", "TRIM_HORIZON")
        assert refused.returncode == 1
        assert refused.stderr == "poller seek: it is running, not paused: poller pause clicks\n"

        daemon.command("clicks", "pause")
        moved = seek(tmp_path, "--to", "trim_horizon")
        assert moved.returncode == 0, moved.stderr
        assert f": from record {last} to its beginning: repeats " in moved.stdout
        assert "moved; poller resume clicks goes on from there" in moved.stdout
        assert daemon.status()["clicks"]["state"] == "paused"
        daemon.command("clicks", "resume")
        until(lambda: daemon.handled() == [*"abcabc"], "they are handled again")
        daemon.stop()

    shard = "shardId-000000000000"
    moved = seek(tmp_path, "--to", first, "--shard", shard)
    assert moved.returncode == 0, moved.stderr
    assert "when its daemon is started" in moved.stdout
    with running(daemon):
        until(lambda: daemon.handled() == [*"abcabcbc"], "what came after the first one is")
        daemon.stop()

    clicks.put("skipped")
    with running(daemon):
        until(lambda: daemon.handled()[-1] == "skipped", "nothing is skipped without a wish")
        daemon.command("clicks", "pause")
        clicks.put("more")
        assert seek(tmp_path, "--to", "1").returncode == 0  # a time, as seconds
        daemon.command("clicks", "resume")
        until(lambda: daemon.handled()[-5:] == ["a", "b", "c", "skipped", "more"], "all since then")
        daemon.stop()
