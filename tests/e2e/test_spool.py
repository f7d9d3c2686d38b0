"""A destination that is down, and a spool behind it: shards go on, and every document arrives, also after kills."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from poller.core.spooled import entry as spooled_entry
from poller.model import SpoolEntry, SpoolLimits
from poller.stores.sqlite import SqliteStore
from tests.cable import Cable
from tests.e2e.destination_ends import BucketEnd
from tests.e2e.harness import REGION, Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, Ledger, all_done, all_saved, in_order, mapping
from tests.engine.fakes import delivery_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

RECORDS = 120


@contextmanager
def cut_from(endpoint_url: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """An endpoint that is down until the function beside it is called."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Cable(endpoint_url)) as cable,
    ):
        cable.cut()
        yield cable.endpoint_url, partial(portal.call, cable.mend)


def spooled(daemon: Daemon) -> int:
    return sum(line["entries"] for line in daemon.status()["work"]["spool"])


def documented(stream: DataStream, document: dict[str, Any], function_arn: str) -> dict[str, Any]:
    """What a document must be, but for what only the daemon knows: a request id, and when."""
    info = document["KinesisBatchInfo"]
    first = info["startSequenceNumber"]
    (record,) = stream.between(info["shardId"], first, first)
    arrived = record["ApproximateArrivalTimestamp"].timestamp()
    return {
        "requestContext": {
            "requestId": document["requestContext"]["requestId"],
            "functionArn": function_arn,
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 1,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": document["timestamp"],
        "KinesisBatchInfo": {
            "shardId": info["shardId"],
            "startSequenceNumber": first,
            "endSequenceNumber": first,
            "approximateArrivalOfFirstRecord": pytest.approx(arrived, abs=0.002),
            "approximateArrivalOfLastRecord": pytest.approx(arrived, abs=0.002),
            "batchSize": 1,
            "streamArn": stream.arn,
        },
    }


def test_what_a_destination_that_is_down_does_not_take_arrives_when_it_is_up_through_two_kills(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=2)
    failed = Queues(emulator.endpoint_url).create()
    texts = [f"k{number % 7}-{number:04}{'!' if number % 6 == 0 else ''}" for number in range(RECORDS)]
    good = [text for text in texts if not text.endswith("!")]
    bad = {text for text in texts if text.endswith("!")}
    config = f'[aws]\nregion = "{REGION}"\n' + mapping(
        stream.arn,
        "picky",
        batch_size="1",
        maximum_retry_attempts="0",
        destination_config__on_failure__destination=f'"{failed.arn}"',
        on_delivery_failure='"spool"',
        maximum_delivery_attempts="2",
    )
    with cut_from(emulator.endpoint_url) as (endpoint_url, mend):
        daemon = Daemon(
            tmp_path,
            "",
            config,
            AWS_ENDPOINT_URL=emulator.endpoint_url,
            AWS_ENDPOINT_URL_SQS=endpoint_url,
        )
        ledger = Ledger(tmp_path / "ledger")
        stream.put(texts[: RECORDS // 2])
        with running(daemon):
            until(lambda: spooled(daemon), "something is spooled")
            until(lambda: len(ledger.look().records) >= len(good) // 4, "the shards go on")
            daemon.kill()
        stream.put(texts[RECORDS // 2 :])
        with running(daemon):
            until(lambda: all_done(daemon) and all_saved(daemon), "the stream is done with")
            assert ledger.look().records.keys() == set(good)
            assert spooled(daemon) == len(bad)
            assert daemon.metric('poller_spooled_batches{kind="delivery",mapping="work"}') == len(bad)
            until(lambda: daemon.status()["work"]["spool"][0]["why"], "it is known why")
            (line,) = daemon.status()["work"]["spool"]
            assert line["destination"] == failed.arn
            assert failed.empty()
            daemon.kill()
        with running(daemon):
            until(lambda: spooled(daemon) == len(bad), "what is spooled is still there")
            mend()
            until(lambda: spooled(daemon) == 0, "what was spooled is delivered", patience=90)
            assert daemon.metric('poller_spool_bytes{kind="delivery",mapping="work"}') == 0
            assert daemon.stop() == 0
    assert failed.counts() == (len(bad), 0), "each of them once"
    documents = [json.loads(body) for body in failed.take_all()]
    assert in_order(ledger.records)
    arrived = set()
    for document in documents:
        info = document["KinesisBatchInfo"]
        (record,) = stream.between(info["shardId"], info["startSequenceNumber"], info["startSequenceNumber"])
        arrived.add(record["Data"].decode())
        expected = documented(stream, document, "arn:aws:lambda:eu-west-1:000000000000:function:work")
        for name in ("approximateArrivalOfFirstRecord", "approximateArrivalOfLastRecord"):
            info[name] = timestamp(info[name])
        assert document == expected
        assert list(document) == list(expected), "in the order of the documentation"
    assert arrived == bad


def test_what_a_queue_cannot_tell_of_is_spooled_deleted_and_told_after_a_kill(
    emulator: Emulator, tmp_path: Path
) -> None:
    queue = Queues(emulator.endpoint_url).create()
    end = BucketEnd(emulator.endpoint_url, tmp_path)
    bodies = {f"m{number}" for number in range(30)}
    queue.send(sorted(bodies))
    config = (
        f'[aws]\nregion = "{REGION}"\n[functions.work]\nhandler = "ledger_handlers:poisoned"\n'
        f'[[mappings]]\nname = "work"\nevent_source_arn = "{queue.arn}"\nfunction_name = "work"\n'
        f'maximum_retry_attempts = 0\ndestination_config.on_failure.destination = "{end.name}"\n'
        'on_delivery_failure = "spool"\nmaximum_delivery_attempts = 1\n'
    )
    with cut_from(emulator.endpoint_url) as (endpoint_url, mend):
        daemon = Daemon(
            tmp_path,
            "",
            config,
            AWS_ENDPOINT_URL=emulator.endpoint_url,
            AWS_ENDPOINT_URL_S3=endpoint_url,
        )
        with running(daemon):
            until(queue.empty, "all of them are spooled and deleted")
            assert spooled(daemon)
            daemon.kill()
        assert end.documents() == []
        with running(daemon):
            mend()
            until(
                lambda: spooled(daemon) == 0 and end.documents(), "what was spooled is delivered", patience=90
            )
            assert daemon.stop() == 0
    told = [record["body"] for one in end.documents() for record in one["requestPayload"]["Records"]]
    assert sorted(told) == sorted(bodies)


def timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_what_is_spooled_of_a_mapping_or_for_a_function_that_is_gone_is_shown(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url)
    entry = SpoolEntry("delivery", "old", "1", "arn:failed", "", 1.0, b"{}")
    lost = replace(spooled_entry(delivery_of({}), "undo", 1.0), mapping="work")

    async def leave() -> None:
        store = await SqliteStore.open(tmp_path / "poller.db")
        await store.spool.put([entry], SpoolLimits(10, 1000))
        await store.spool.put([lost], SpoolLimits(10, 10_000))
        await store.aclose()

    anyio.run(leave)
    daemon = Daemon(tmp_path, emulator.endpoint_url, mapping(stream.arn, "record"))
    with running(daemon):
        until(lambda: daemon.status()["work"]["spool"][0]["why"], "it is tried")
        (line,) = daemon.status()["work"]["spool"]
        assert (line["destination"], line["entries"]) == ("undo", 1)
        assert line["why"] == "function undo is in use no more: name it in a destination_config again"
        assert daemon.stop() == 0
    said = "what is spooled of mapping old waits until the file has a mapping of that name again"
    until(lambda: said in "".join(daemon.logs), "it is said")


def test_a_spool_that_ends_with_the_process_is_said_to_at_the_start(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url)
    failed = Queues(emulator.endpoint_url).create()
    config = '[daemon]\nstate = "memory:"\n' + mapping(
        stream.arn,
        "picky",
        destination_config__on_failure__destination=f'"{failed.arn}"',
        on_delivery_failure='"spool"',
    )
    daemon = Daemon(tmp_path, emulator.endpoint_url, config)
    with running(daemon):
        assert daemon.stop() == 0
    said = "what is spooled ends with the process, as [daemon] state is memory:"
    until(lambda: said in "".join(daemon.logs), "it is said")
