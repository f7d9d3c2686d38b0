"""A storm of poison with each destination, which is down in the middle of it, and two kills: all of it arrives.

The destinations' services are reached through a cable that is cut; the sources are not. 30 seconds are the whole promise,
which takes a minute: `POLLER_E2E_OUTAGE=30`.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal

from tests.cable import Cable
from tests.core.test_failure import order
from tests.e2e.destination_ends import ENDS
from tests.e2e.harness import REGION, Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, all_done, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poller.demo.emulator import Emulator
    from tests.e2e.destination_ends import End

pytestmark = pytest.mark.slow

#: Seconds for which the destinations are down.
OUTAGE = float(os.environ.get("POLLER_E2E_OUTAGE", "5"))
EXAMPLES = Path(__file__).parent.parent / "core" / "event-examples"
#: The services that destinations are of; a daemon that reads queues cannot have SQS among them.
SERVICES = ("SNS", "S3", "EVENTBRIDGE", "LAMBDA")

FUNCTIONS = """
[daemon]
shutdown_timeout = 5
[aws]
region = "{region}"
[functions.work]
handler = "destination_handlers:{handler}"
timeout = 2
[functions.keep]
handler = "destination_handlers:keep"
"""
MAPPING = """
[[mappings]]
name = "{kind}"
event_source_arn = "{source}"
function_name = "work:{kind}"
{more}
destination_config.on_failure.destination = "{end}"
"""


class Outage:
    """What is in front of the destinations, all of which it takes down and brings back."""

    def __init__(self, portal: Any, cable: Cable, folder: Path) -> None:
        self.endpoint_url = cable.endpoint_url
        self._portal, self._cable, self._flag = portal, cable, folder / "end-is-down"

    def begin(self) -> None:
        self._portal.call(self._cable.cut)
        self._flag.touch()

    def end(self) -> None:
        self._flag.unlink()
        self._portal.call(self._cable.mend)

    def environment(self, emulator: str, *services: str) -> dict[str, str]:
        """What lets a daemon reach `services` through the cable and everything else directly."""
        through = {f"AWS_ENDPOINT_URL_{service}": self.endpoint_url for service in services}
        return {"AWS_ENDPOINT_URL": emulator} | through


@contextmanager
def outage_of(endpoint_url: str, folder: Path) -> Iterator[Outage]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Cable(endpoint_url)) as cable,
    ):
        yield Outage(portal, cable, folder)


def handled(daemon: Daemon, kind: str) -> set[str]:
    return {line.partition(" ")[2] for line in daemon.handled() if line.startswith(f"{kind} ")}


def config(handler: str, sources: dict[str, str], ends: dict[str, End], more: str) -> str:
    mappings = (
        MAPPING.format(kind=kind, source=source, end=ends[kind].name, more=more)
        for kind, source in sources.items()
    )
    return FUNCTIONS.format(region=REGION, handler=handler) + "".join(mappings)


def failures(daemon: Daemon, kind: str) -> float:
    return daemon.metric(f'poller_destination_delivery_failures_total{{mapping="{kind}"}}')


def waiting(daemon: Daemon) -> dict[str, int]:
    """How many shards of each mapping wait for their destination."""
    wait = "waiting for the on-failure destination: "
    return {
        kind: sum(one["doing"].startswith(wait) for one in status["shards"])
        for kind, status in daemon.status().items()
    }


# --- streams ------------------------------------------------------------------------------------------------------------


class Storm:
    """Records of which each fifth on the first two shards is poison; the others have none."""

    def __init__(self, stream: DataStream) -> None:
        self._stream = stream
        shards = [one["ShardId"] for one in stream.shards()]
        found: dict[str, str] = {}
        number = 0
        while len(found) < len(shards):
            key = f"k{number}"
            found.setdefault(self._shard_of(key), key)
            number += 1
        self.ill = [found[shard] for shard in shards[:2]]
        self.well = [found[shard] for shard in shards[2:]]
        self.good: set[str] = set()
        self.poison: set[str] = set()

    def _shard_of(self, key: str) -> str:
        reply = self._stream.client.put_record(
            StreamName=self._stream.name, PartitionKey=key, Data=f"{key}-probe".encode()
        )
        return str(reply["ShardId"])

    def blow(self, part: str, number: int) -> None:
        texts = []
        for place in range(number):
            texts += [f"{key}-{part}{place:04}" for key in self.well]
            texts += [f"{key}-{part}{place:04}{'' if place % 5 else '!'}" for key in self.ill]
        self._stream.put(texts)
        self.poison |= {text for text in texts if text.endswith("!")}
        self.good |= {text for text in texts if not text.endswith("!")}


def check_stream_document(document: dict[str, Any], stream: DataStream, kind: str) -> str:
    """The text of the one record that the document is about, which must be as Lambda would write it."""
    example = json.loads((EXAMPLES / "dest-kinesis-retries-exhausted.json").read_text())
    payload = document.pop("payload", None)
    assert list(order(document)) == list(order(example))
    context, info = document["requestContext"], document["KinesisBatchInfo"]
    assert context["condition"] == "RetryAttemptsExhausted"
    assert context["approximateInvokeCount"] == 1
    assert context["functionArn"].endswith(f":function:work:{kind}")
    assert document["responseContext"] == example["responseContext"]
    assert (info["batchSize"], info["streamArn"]) == (1, stream.arn)
    assert info["startSequenceNumber"] == info["endSequenceNumber"]
    (record,) = stream.between(info["shardId"], info["startSequenceNumber"], info["endSequenceNumber"])
    text: str = record["Data"].decode()
    assert (payload is not None) == (kind == "s3")
    if payload is not None:
        (event,) = json.loads(payload)["Records"]
        assert b64decode(event["kinesis"]["data"]).decode() == text
        assert event["eventID"] == f"{info['shardId']}:{info['startSequenceNumber']}"
    return text


def test_poison_of_a_stream_arrives_everywhere_though_every_destination_is_down_and_the_daemon_killed_twice(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=4)
    storm = Storm(stream)
    ends = {kind: make(emulator.endpoint_url, tmp_path) for kind, make in ENDS.items()}
    more = 'starting_position = "TRIM_HORIZON"\nbatch_size = 20\nmaximum_retry_attempts = 0\n'
    text = config(
        "refuse", dict.fromkeys(ENDS, stream.arn), ends, more + "bisect_batch_on_function_error = true"
    )

    def all_handled(daemon: Daemon, part: str) -> bool:
        wanted = {one for one in storm.good if key_of(one) in storm.well and f"-{part}" in one}
        return all(wanted <= handled(daemon, kind) for kind in ENDS)

    with outage_of(emulator.endpoint_url, tmp_path) as outage:
        environment = outage.environment(emulator.endpoint_url, "SQS", *SERVICES)
        daemon = Daemon(tmp_path, emulator.endpoint_url, text, **environment)
        with running(daemon):
            storm.blow("a", 100)
            until(lambda: all(end.documents() for end in ends.values()), "each destination gets something")
            outage.begin()
            began = time.monotonic()
            storm.blow("b", 100)
            until(lambda: all_handled(daemon, "b"), "shards without poison go on")
            until(lambda: all(failures(daemon, kind) for kind in ENDS), "each says that it is down")
            until(lambda: waiting(daemon) == dict.fromkeys(ENDS, 2), "just the shards with poison wait")
            daemon.kill()
        with running(daemon):
            storm.blow("c", 100)
            until(lambda: all_handled(daemon, "c"), "shards without poison go on after the kill too")
            until(lambda: time.monotonic() - began > OUTAGE, "the outage has lasted", patience=OUTAGE + 60)
            before = {kind: len(end.documents()) for kind, end in ends.items()}
            outage.end()
            until(
                lambda: any(len(end.documents()) > before[kind] for kind, end in ends.items()),
                "the first document arrives after the outage",
            )
            daemon.kill()
        with running(daemon):
            until(
                lambda: all(all_done(daemon, kind) for kind in ENDS), "the stream is done with", patience=180
            )
            assert daemon.stop() == 0
    for kind, end in ends.items():
        arrived = [check_stream_document(document, stream, kind) for document in end.documents()]
        assert storm.good <= handled(daemon, kind), kind
        assert storm.poison - set(arrived) == set(), kind
        assert set(arrived) <= storm.poison, kind
        again = len(arrived) - len(set(arrived))
        assert not (end.once and again), kind
        print(f"{kind}: {len(set(arrived))} poison records, {again} told again")


# --- queues -------------------------------------------------------------------------------------------------------------


def check_queue_document(document: dict[str, Any], source: str, kind: str) -> list[str]:
    """The bodies of the messages that the document is about."""
    example = json.loads((EXAMPLES / "async-on-failure-retries-exhausted.json").read_text())
    assert list(document) == list(example)
    assert list(document["requestContext"]) == list(example["requestContext"])
    assert document["requestContext"]["condition"] == "RetriesExhausted"
    assert document["requestContext"]["approximateInvokeCount"] > 1
    assert document["requestContext"]["functionArn"].endswith(f":function:work:{kind}")
    assert document["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}
    records = document["requestPayload"]["Records"]
    named = {one["itemIdentifier"] for one in document["responsePayload"]["batchItemFailures"]}
    assert {one["messageId"] for one in records} <= named
    assert {one["eventSourceARN"] for one in records} == {source}
    return [one["body"] for one in records]


def test_poison_of_queues_arrives_everywhere_though_destinations_are_down_and_the_daemon_killed_twice(
    emulator: Emulator, tmp_path: Path
) -> None:
    queues = Queues(emulator.endpoint_url)
    ends = {kind: make(emulator.endpoint_url, tmp_path) for kind, make in ENDS.items()}
    sources = {kind: queues.create(VisibilityTimeout="2") for kind in ENDS}
    bodies = {
        part: [f"{part}{number:03}{'' if number % 5 else '!'}" for number in range(60)] for part in "abc"
    }
    good = {body for part in bodies.values() for body in part if not body.endswith("!")}
    poison = {body for part in bodies.values() for body in part if body.endswith("!")}
    more = 'function_response_types = ["ReportBatchItemFailures"]\nmaximum_retry_attempts = 1'
    text = config("sort_out", {kind: queue.arn for kind, queue in sources.items()}, ends, more)
    #: Those whose service is down, when it is.
    down = set(ENDS) - {"sqs", "fifo"}

    def send(part: str) -> None:
        for queue in sources.values():
            queue.send(bodies[part])

    with outage_of(emulator.endpoint_url, tmp_path) as outage:
        environment = outage.environment(emulator.endpoint_url, *SERVICES)
        daemon = Daemon(tmp_path, emulator.endpoint_url, text, **environment)
        with running(daemon):
            send("a")
            until(lambda: all(end.documents() for end in ends.values()), "each destination gets something")
            outage.begin()
            began = time.monotonic()
            send("b")
            until(lambda: all(failures(daemon, kind) for kind in down), "each says that it is down")
            status = daemon.status()["sns"]
            assert status["state"] == "degraded"
            assert status["reason"].startswith("waiting for the on-failure destination: ")
            daemon.kill()
        with running(daemon):
            send("c")
            until(lambda: all(good <= handled(daemon, kind) for kind in ENDS), "what is good is handled")
            until(lambda: time.monotonic() - began > OUTAGE, "the outage has lasted", patience=OUTAGE + 60)
            assert not any(sources[kind].empty() for kind in down), "nothing is deleted while nobody has it"
            before = {kind: len(ends[kind].documents()) for kind in down}
            outage.end()
            until(
                lambda: any(len(ends[kind].documents()) > before[kind] for kind in down),
                "the first document arrives after the outage",
            )
            daemon.kill()
        with running(daemon):
            until(lambda: all(queue.empty() for queue in sources.values()), "the queues are empty")
            assert daemon.status()["sns"]["state"] == "running"
            assert daemon.stop() == 0
    for kind, end in ends.items():
        documents = end.documents()
        arrived = [
            body for document in documents for body in check_queue_document(document, sources[kind].arn, kind)
        ]
        assert poison - set(arrived) == set(), kind
        assert set(arrived) <= poison, kind
        print(f"{kind}: {len(set(arrived))} poison messages in {len(documents)} documents")
