"""Splits and merges under load: kinesis-local keeps closed shards and names their children, as AWS does."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests import servers
from tests.e2e.harness import Daemon, running, until
from tests.e2e.stream_harness import DataStream, Ledger, in_order, mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

KEYS = 40


@pytest.fixture(scope="module")
def kinesis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.kinesis_local(tmp_path_factory.mktemp("kinesis-local")) as server:
        yield server


class Producer:
    """Puts one record of each key in turn, round by round, some rounds a second."""

    def __init__(self, stream: DataStream) -> None:
        self.put: list[str] = []
        self._stream = stream
        self._stopped = threading.Event()

    def produce(self) -> None:
        for number in count():
            if self._stopped.wait(0.03):
                return
            # A round is one request, so the order of a key does not rest on the order within one.
            texts = [f"k{key}-{number:06}" for key in range(KEYS)]
            self._stream.put(texts)
            self.put += texts

    @contextmanager
    def at_work(self) -> Iterator[Producer]:
        thread = threading.Thread(target=self.produce)
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            thread.join()


def open_shards(stream: DataStream) -> dict[str, tuple[int, int]]:
    """The hash keys of each open shard, in the order of the keys."""
    found = {
        shard["ShardId"]: (
            int(shard["HashKeyRange"]["StartingHashKey"]),
            int(shard["HashKeyRange"]["EndingHashKey"]),
        )
        for shard in stream.shards()
        if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
    }
    return dict(sorted(found.items(), key=lambda shard: shard[1]))


def split(stream: DataStream, shard: str) -> None:
    first, last = open_shards(stream)[shard]
    middle = str((first + last) // 2)
    stream.client.split_shard(StreamName=stream.name, ShardToSplit=shard, NewStartingHashKey=middle)
    until(lambda: shard not in open_shards(stream), "the shard is split")


def merge(stream: DataStream, left: str, right: str) -> None:
    stream.client.merge_shards(StreamName=stream.name, ShardToMerge=left, AdjacentShardToMerge=right)
    until(lambda: left not in open_shards(stream), "the shards are merged")


def test_no_record_is_lost_or_overtaken_by_a_childs_while_shards_split_and_merge(
    kinesis: servers.Server, tmp_path: Path
) -> None:
    stream = DataStream(kinesis.endpoint_url, shards=2)
    config = mapping(stream.arn, "steady", parallelization_factor="2", batch_size="10")
    daemon = Daemon(tmp_path, kinesis.endpoint_url, config, WORK_SECONDS="0.02")
    ledger, producer = Ledger(tmp_path / "ledger"), Producer(stream)

    def more_is_put() -> None:
        goal = len(producer.put) + 5 * KEYS
        until(lambda: len(producer.put) >= goal, "more is put")

    def newest_are_handled() -> None:
        newest = set(open_shards(stream))
        until(lambda: newest <= {line.partition(" ")[0] for line in ledger.look().lines}, "they are read")

    with running(daemon), producer.at_work():
        newest_are_handled()
        split(stream, next(iter(open_shards(stream))))
        newest_are_handled()
        # Two generations at once: grandchildren wait for children.
        left, right, *_ = open_shards(stream)
        merge(stream, left, right)
        split(stream, next(iter(open_shards(stream))))
        newest_are_handled()
        daemon.kill()
        # Three generations of which the first listing tells, and each has something that nobody has read.
        more_is_put()
        left, right, *_ = open_shards(stream)
        merge(stream, left, right)
        more_is_put()
        split(stream, next(iter(open_shards(stream))))
        more_is_put()
        daemon.start().ready()
        newest_are_handled()
    with running(daemon):
        until(lambda: len(ledger.look().records) >= len(producer.put), "all is handled")
        assert daemon.stop() == 0
    assert sorted(ledger.look().records) == sorted(producer.put)
    assert in_order(ledger.records)
    assert_parents_come_first(stream, ledger.lines)


def assert_parents_come_first(stream: DataStream, lines: list[str]) -> None:
    """No record of a child is handled before the last one of its parents is, for the first time."""
    first_time = list(dict.fromkeys(lines))
    shard_at = {shard: [] for shard in (line.partition(" ")[0] for line in first_time)}
    for at, line in enumerate(first_time):
        shard_at[line.partition(" ")[0]].append(at)
    descents = [
        (shard["ShardId"], parent)
        for shard in stream.shards()
        for parent in (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
        if parent in shard_at and shard["ShardId"] in shard_at
    ]
    assert len(descents) >= 6, "some shards may have lived too briefly for a record"
    for child, parent in descents:
        assert shard_at[child][0] > shard_at[parent][-1], f"{child} before the end of {parent}"
