"""Failed records are run again beside live ones: once each, without a delay for these, across a stop and a kill."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import HERE, REGION, Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, client, in_order, mapping

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator
    from tests.e2e.harness import Queue

pytestmark = pytest.mark.slow

#: Failed records; the long run has 10,000.
RECORDS = int(os.environ.get("POLLER_E2E_REPLAY", "1500"))
BATCH = 50
RATE = 500 if RECORDS >= 10_000 else 150


class Live:
    """A producer that puts a record now and then, and says when."""

    def __init__(self, stream: DataStream) -> None:
        self._stream = stream
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def _run(self) -> None:
        while not self._stopping.wait(0.05):
            self._stream.put([f"live-{time.time()}"])
            self.sent += 1

    def begin(self) -> None:
        self._thread.start()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()


def lags(lines: list[str]) -> list[float]:
    """Seconds from a live record's production to its handling."""
    pairs = (line.split(" ", 1) for line in lines if " live-" in line)
    return [float(at) - float(text.removeprefix("live-")) for at, text in pairs]


def poison(lines: list[str]) -> Counter[str]:
    return Counter(line.partition(" ")[2] for line in lines if line.endswith("!"))


def replay(daemon: Daemon, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "poller", "replay", *words],
        cwd=daemon.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}", "COLUMNS": "200"},
        # What a shell has put into the background ignores Ctrl-C, and so does what that starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def jobs(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.page("/replays"))["answer"]
    return found


class Scene:
    """A stream with poison, all of it in the on-failure queue, and a function that has been repaired since."""

    def __init__(self, emulator: Emulator, folder: Path, destination: str = "") -> None:
        queues = Queues(emulator.endpoint_url)
        self.failed: Queue = queues.create(VisibilityTimeout="5")
        self.stream = DataStream(emulator.endpoint_url)
        self.repaired = folder / "repaired"
        config = mapping(
            self.stream.arn,
            "repairable",
            batch_size=str(BATCH),
            maximum_retry_attempts="0",
            idle_interval_in_seconds="0.2",
            destination_config__on_failure__destination=f'"{destination or self.failed.arn}"',
        )
        state = f'[daemon]\nstate = "sqlite:{folder / "state.db"}"\n'
        self.daemon = Daemon(folder, emulator.endpoint_url, state + config, REPAIRED=str(self.repaired))

    def poisoned(self, records: int) -> None:
        """Every poison record has failed, and what tells of it waits in the queue."""
        self.stream.put(f"k{number % 7}-{number:05}!" for number in range(records))
        last = self.stream.everything(self.stream.shards()[0]["ShardId"])[-1]["SequenceNumber"]

        def given_up() -> bool:
            (shard,) = self.daemon.status()["work"]["shards"]
            return bool(shard["sequence_number"] == last and shard["checkpoint_age"] == 0)

        until(given_up, "all have failed")
        assert not poison(self.daemon.handled())
        self.repaired.touch()


@pytest.fixture
def scene(emulator: Emulator, tmp_path: Path) -> Scene:
    return Scene(emulator, tmp_path)


def test_failed_records_are_run_again_once_beside_live_ones(scene: Scene) -> None:
    with running(scene.daemon) as daemon, Live(scene.stream) as live:
        scene.poisoned(RECORDS)
        live.begin()
        until(lambda: len(lags(daemon.handled())) >= 60, "live records are handled")
        before = lags(daemon.handled())

        looked = finished(replay(daemon, "work", "--from-queue", scene.failed.arn, "--dry-run"))
        assert looked[0] == 0, looked
        assert "messages in" in looked[1]
        assert not poison(daemon.handled())

        from_here = len(daemon.handled())
        began = time.monotonic()
        words = ("work", "--from-queue", scene.failed.arn, "--rate", str(RATE), "--yes")
        first = replay(daemon, *words)
        until(lambda: poison(daemon.handled()).total() > RECORDS // 10, "some of them are done")
        first.send_signal(signal.SIGINT)
        code, _, said = finished(first)
        assert code == 1, said
        assert said.count("goes on where it was") == 1
        stopped = poison(daemon.handled())
        assert stopped.total() < RECORDS
        (job,) = jobs(daemon)
        assert (job["state"], job["counts"]["succeeded"]) == ("stopped", stopped.total())

        code, report, said = finished(replay(daemon, "--resume", job["id"]))
        took = time.monotonic() - began
        assert code == 0, report + said
        assert "is done" in report
        done = poison(daemon.handled())
        assert len(done) == RECORDS
        assert done.total() - RECORDS <= BATCH
        assert took > (RECORDS - BATCH) / RATE * 0.9
        assert scene.failed.empty()
        during = lags(daemon.handled()[from_here:])
        assert len(during) > 20
        # Within what a busy machine does by itself to records that are read five times a second.
        assert statistics.median(during) < statistics.median(before) + 0.25
        assert daemon.status()["work"]["state"] == "running"
        print(
            f"live lag before {statistics.median(before):.3f} s, during {statistics.median(during):.3f} s; "
            f"{done.total() - RECORDS} repeated, {took:.1f} s"
        )
        seen = live.sent
        until(lambda: len(lags(daemon.handled())) >= seen, "every live record is handled")


def test_a_replay_goes_on_after_a_kill(scene: Scene) -> None:
    records = max(RECORDS // 3, 300)
    with running(scene.daemon) as daemon:
        scene.poisoned(records)
        words = ("work", "--from-queue", scene.failed.url, "--rate", "300", "--yes")
        first = replay(daemon, *words)
        until(lambda: poison(daemon.handled()).total() > records // 10, "some of them are done")
        daemon.kill()
        code, _, said = finished(first)
        assert code == 1
        assert "no daemon answers" in said
        daemon.start().ready()
        (job,) = jobs(daemon)
        assert (job["state"], job["reason"]) == ("interrupted", "the daemon ended while it ran")
        assert poison(daemon.handled()).total() < records

        code, report, said = finished(replay(daemon, "--resume", job["id"]))
        assert code == 0, report + said
        done = poison(daemon.handled())
        assert len(done) == records
        assert done.total() - records <= BATCH
        assert scene.failed.empty()


def test_what_fails_again_stays_in_the_queue(scene: Scene) -> None:
    with running(scene.daemon) as daemon:
        scene.poisoned(2 * BATCH)
        scene.repaired.unlink()
        messages = scene.failed.counts()[0]
        code, report, _ = finished(replay(daemon, "work", "--from-queue", scene.failed.arn, "--yes"))
        assert code == 1
        assert f"{2 * BATCH:>9,} failed again" in report
        assert f"{2 * BATCH} ValueError" in report
        assert "not repaired yet" in report
        until(lambda: scene.failed.counts() == (messages, 0), "they are there again")
        until(lambda: "work" in daemon.status(), "the daemon lives")


# --- objects, dead letters, ranges --------------------------------------------------------------------------------------


def replayed(daemon: Daemon, *words: str) -> str:
    """What a replay says in the end, in which everything succeeds."""
    code, report, said = finished(replay(daemon, *words, "--yes"))
    assert code == 0, report + said
    return report


def test_objects_are_run_again_from_what_they_hold_without_the_stream(
    emulator: Emulator, tmp_path: Path
) -> None:
    s3 = client("s3", emulator.endpoint_url)
    bucket = f"failed-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    scene = Scene(emulator, tmp_path, f"arn:aws:s3:::{bucket}")
    with running(scene.daemon) as daemon:
        scene.poisoned(4 * BATCH)
        scene.stream.client.delete_stream(StreamName=scene.stream.name)
        place = f"s3://{bucket}/aws/lambda"
        looked = finished(replay(daemon, "work", "--from-s3", place, "--dry-run"))
        assert "objects under" in looked[1]
        assert " of them tell of " in looked[1]
        assert f"{4 * BATCH:>9,} succeeded" in replayed(daemon, "work", "--from-s3", place)
        assert poison(daemon.handled()).total() == len(poison(daemon.handled())) == 4 * BATCH
        assert in_order([line.partition(" ")[2] for line in daemon.handled()])
        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] > 0
        replayed(daemon, "work", "--from-s3", place, "--delete")
        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
        assert poison(daemon.handled()).total() == 8 * BATCH


DEAD = """
[daemon]
state = "sqlite:poller.db"
[functions.one]
handler = "ledger_handlers:record"
timeout = 3
[[mappings]]
name = "orders"
event_source_arn = "{arn}"
function_name = "one"
"""


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("to", ["function", "source"])
def test_dead_letters_go_through_the_function_or_back_to_their_queue(
    emulator: Emulator, tmp_path: Path, to: str, fifo: bool
) -> None:
    queues = Queues(emulator.endpoint_url)
    source, dead = queues.create(fifo=fifo), queues.create(fifo=fifo)
    bodies = [f"{number % 5}-{number:03}" for number in range(60)]
    daemon = Daemon(tmp_path, emulator.endpoint_url, DEAD.format(arn=source.arn))
    with running(daemon):
        dead.send(bodies, group=(lambda body: body[0]) if fifo else None)
        report = replayed(daemon, "orders", "--from-dlq", dead.arn, "--to", to)
        assert f"{60:>9,} succeeded" in report
        assert "messages: 60 done, 0 stay where they are" in report
        until(lambda: sorted(daemon.handled()) == sorted(bodies), "each is handled once")
        if fifo:
            assert in_order(daemon.handled())
        until(lambda: dead.empty() and source.empty(), "nothing is left")


def test_records_of_a_stream_are_run_again_by_time_by_number_and_by_key(scene: Scene) -> None:
    scene.repaired.touch()
    texts = [f"k{number % 3}-{number:03}" for number in range(90)]
    with running(scene.daemon) as daemon:
        scene.stream.put(texts)

        def handled() -> list[str]:
            return [line.partition(" ")[2] for line in daemon.handled()]

        until(lambda: len(handled()) == 90, "they are handled")
        (shard,) = [one["ShardId"] for one in scene.stream.shards()]
        numbers = [one["SequenceNumber"] for one in scene.stream.everything(shard)]

        looked = finished(replay(daemon, "work", "--from", "TRIM_HORIZON", "--key", "k1", "--dry-run"))
        assert (looked[0], looked[1]) == (0, "work: 30 records, besides 60 that are filtered out\n")
        report = replayed(daemon, "work", "--from", "TRIM_HORIZON", "--key", "k1")
        assert f"{30:>9,} succeeded" in report
        assert handled()[90:] == [text for text in texts if text.startswith("k1")]

        words = ("--from-sequence", numbers[10], "--to-sequence", numbers[19], "--shard", shard)
        replayed(daemon, "work", *words, "--batch-size", "3")
        assert handled()[120:] == texts[10:20]

        replayed(daemon, "work", "--from", str(time.time() - 3600), "--to", str(time.time()))
        assert handled()[130:] == texts
        until(lambda: daemon.status()["work"]["shards"][0]["sequence_number"] == numbers[-1], "it stays")


def test_changes_of_a_table_are_run_again_from_a_queue_and_from_the_stream(
    emulator: Emulator, tmp_path: Path
) -> None:
    failed = Queues(emulator.endpoint_url).create(VisibilityTimeout="5")
    tables = client("dynamodb", emulator.endpoint_url)
    table = tables.create_table(
        TableName=f"t-{uuid.uuid4().hex[:12]}",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )["TableDescription"]
    repaired = tmp_path / "repaired"
    config = mapping(
        table["LatestStreamArn"],
        "repairable_changes",
        batch_size="7",
        parallelization_factor="3",
        maximum_retry_attempts="0",
        idle_interval_in_seconds="0.2",
        destination_config__on_failure__destination=f'"{failed.arn}"',
    )
    daemon = Daemon(tmp_path, emulator.endpoint_url, config, REPAIRED=str(repaired))
    with running(daemon):
        for number in range(60):
            tables.put_item(TableName=table["TableName"], Item={"id": {"S": f"i{number}"}})
        taken = 'poller_on_failure_destination_delivered_events_total{mapping="work"} 60.0'
        until(lambda: taken in daemon.page("/metrics"), "all have failed")
        repaired.touch()
        wanted = sorted(f"i{number} INSERT" for number in range(60))
        assert f"{60:>9,} succeeded" in replayed(daemon, "work", "--from-queue", failed.arn)
        assert sorted(daemon.handled()) == wanted
        assert failed.empty()
        assert f"{60:>9,} succeeded" in replayed(daemon, "work", "--from", "TRIM_HORIZON")
        assert sorted(daemon.handled()) == sorted(wanted * 2)


def test_a_reload_that_replaces_the_function_interrupts_its_replay(scene: Scene) -> None:
    with running(scene.daemon) as daemon:
        scene.poisoned(300)
        process = replay(daemon, "work", "--from-queue", scene.failed.arn, "--rate", "50", "--yes")
        until(lambda: poison(daemon.handled()).total() >= BATCH, "it has begun")
        daemon.file.write_text(daemon.file.read_text().replace("timeout = 10", "timeout = 11"))
        daemon.signal(signal.SIGHUP)
        code, report, _ = finished(process)
        assert code == 1
        assert "is interrupted: the configuration has changed" in report
        (job,) = jobs(daemon)
        assert f"{300:>9,} succeeded" in replayed(daemon, "--resume", job["id"])
        assert poison(daemon.handled()).total() == 300


QUEUED = """
[daemon]
state = "sqlite:poller.db"
[functions.one]
handler = "ledger_handlers:repairable"
timeout = 1
[[mappings]]
name = "orders"
event_source_arn = "{arn}"
function_name = "one"
maximum_retry_attempts = 0
destination_config.on_failure.destination = "{destination}"
"""


@pytest.mark.parametrize("where", ["queue", "bucket"])
def test_messages_that_were_given_up_are_run_again_from_their_invocation_records(
    emulator: Emulator, tmp_path: Path, where: str
) -> None:
    queues = Queues(emulator.endpoint_url)
    source, failed = queues.create(VisibilityTimeout="1"), queues.create()
    bucket = f"failed-{uuid.uuid4().hex[:12]}"
    s3 = client("s3", emulator.endpoint_url)
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    destination, words = {
        "queue": (failed.arn, ("--from-queue", failed.arn)),
        "bucket": (f"arn:aws:s3:::{bucket}", ("--from-s3", f"s3://{bucket}/aws/lambda/async/one/")),
    }[where]
    repaired = tmp_path / "repaired"
    config = QUEUED.format(arn=source.arn, destination=destination)
    daemon = Daemon(tmp_path, emulator.endpoint_url, config, REPAIRED=str(repaired))
    bodies = [f"{number:03}" for number in range(30)]
    with running(daemon):
        source.send(bodies)
        until(source.empty, "all are given up")
        (place,) = json.loads(failures(daemon, "--json").stdout)
        assert [(one["what"], one["message"]) for one in place["groups"]] == [
            ("ValueError", "not repaired yet")
        ]
        repaired.touch()
        assert f"{30:>9,} succeeded" in replayed(daemon, "orders", *words)
        assert sorted(daemon.handled()) == bodies
        assert failed.empty()


# --- seeing failures ----------------------------------------------------------------------------------------------------


def failures(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poller", "failures", *words],
        cwd=daemon.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}", "COLUMNS": "250"},
    )


def test_what_waits_in_a_queue_is_shown_grouped_and_one_in_full_and_stays_there(scene: Scene) -> None:
    with running(scene.daemon) as daemon:
        assert failures(daemon).stdout == "nothing waits\n"
        scene.poisoned(2 * BATCH)
        messages = scene.failed.counts()[0]
        shown = failures(daemon, "work")
        assert f"work: on-failure queue {scene.failed.arn}: {messages}" in shown.stdout
        assert "RetryAttemptsExhausted (Unhandled)" in shown.stdout
        until(lambda: scene.failed.counts() == (messages, 0), "they can be received again")

        (place,) = json.loads(failures(daemon, "--json").stdout)
        (group,) = place["groups"]
        assert (group["count"], group["records"]) == (messages, 2 * BATCH)
        one = json.loads(failures(daemon, "show", group["newest_id"]).stdout)
        assert one["body"]["KinesisBatchInfo"]["streamArn"] == scene.stream.arn
        gone = failures(daemon, "show", "queue:work:nobody")
        assert (gone.returncode, gone.stderr) == (1, "poller failures: there is no 'queue:work:nobody'\n")
        wrong = failures(daemon, "nobody")
        assert (wrong.returncode, wrong.stderr) == (
            2,
            "poller failures: no mapping is named 'nobody' (there are: work)\n",
        )


def test_what_waits_in_a_bucket_and_in_a_dead_letter_queue_is_shown(
    emulator: Emulator, tmp_path: Path
) -> None:
    s3 = client("s3", emulator.endpoint_url)
    bucket = f"failed-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    scene = Scene(emulator, tmp_path, f"arn:aws:s3:::{bucket}")
    queues = Queues(emulator.endpoint_url)
    dead = queues.create()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 5})
    source = queues.create(RedrivePolicy=policy)
    more = DEAD.format(arn=source.arn).replace('[daemon]\nstate = "sqlite:poller.db"\n', "")
    scene.daemon.file.write_text(scene.daemon.file.read_text() + more)
    with running(scene.daemon) as daemon:
        scene.poisoned(BATCH)
        dead.send(["a", "b", "c"])
        places = {one["where"]: one for one in json.loads(failures(daemon, "--json").stdout)}
        objects = places["objects"]
        assert sum(one["records"] for one in objects["groups"]) == BATCH
        assert objects["total"] == objects["looked_at"] == s3.list_objects_v2(Bucket=bucket)["KeyCount"]
        one = json.loads(failures(daemon, "show", objects["groups"][0]["newest_id"]).stdout)
        assert one["body"]["payload"]["Records"][0]["eventSource"] == "aws:kinesis"

        (letters,) = places["dead_letters"]["groups"]
        assert (places["dead_letters"]["name"], letters["count"]) == (dead.arn, 3)
        one = json.loads(failures(daemon, "show", letters["newest_id"]).stdout)
        assert one["body"] in ("a", "b", "c")
        until(lambda: dead.counts() == (3, 0), "they can be received again")
