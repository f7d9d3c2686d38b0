"""Streams for the real daemon: what producers do, and what the daemon says about its shards."""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from tests.e2e.harness import REGION

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.e2e.harness import Daemon

#: Records of one PutRecords.
PUT_AT_ONCE = 500


def client(service: str, endpoint_url: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 5}, read_timeout=30),
    )


class DataStream:
    """One Kinesis data stream of the server at `endpoint_url`."""

    def __init__(self, endpoint_url: str, shards: int = 1, name: str = "") -> None:
        self.client = client("kinesis", endpoint_url)
        self.name = name or f"s-{uuid.uuid4().hex[:12]}"
        self.client.create_stream(StreamName=self.name, ShardCount=shards)
        self.client.get_waiter("stream_exists").wait(
            StreamName=self.name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
        )
        summary = self.client.describe_stream_summary(StreamName=self.name)["StreamDescriptionSummary"]
        self.arn: str = summary["StreamARN"]

    def put(self, records: Iterable[str]) -> None:
        """Put texts of the form KEY-ANYTHING, in order, each under its key."""
        entries = [{"Data": text.encode(), "PartitionKey": key_of(text)} for text in records]
        for at in range(0, len(entries), PUT_AT_ONCE):
            reply = self.client.put_records(StreamName=self.name, Records=entries[at : at + PUT_AT_ONCE])
            assert not reply.get("FailedRecordCount"), reply

    def shards(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.list_shards(StreamName=self.name)["Shards"]
        return found

    def shard_of(self, key: str) -> str:
        """Where a partition key goes."""
        place = int.from_bytes(hashlib.md5(key.encode()).digest())
        for shard in self.shards():
            if (
                int(shard["HashKeyRange"]["StartingHashKey"])
                <= place
                <= int(shard["HashKeyRange"]["EndingHashKey"])
            ):
                return str(shard["ShardId"])
        raise AssertionError(f"no shard takes {key}")

    def between(self, shard: str, first: str, last: str) -> list[dict[str, Any]]:
        """The records of a shard from one sequence number to another, both included."""
        iterator = self.client.get_shard_iterator(
            StreamName=self.name,
            ShardId=shard,
            ShardIteratorType="AT_SEQUENCE_NUMBER",
            StartingSequenceNumber=first,
        )["ShardIterator"]
        found: list[dict[str, Any]] = []
        while not (found and int(found[-1]["SequenceNumber"]) >= int(last)):
            reply = self.client.get_records(ShardIterator=iterator, Limit=1 if first == last else 1000)
            assert reply["Records"], f"{shard} has no record {last}"
            found += reply["Records"]
            iterator = reply["NextShardIterator"]
        return [one for one in found if int(one["SequenceNumber"]) <= int(last)]

    def everything(self, shard: str) -> list[dict[str, Any]]:
        """All records of a shard."""
        iterator = self.client.get_shard_iterator(
            StreamName=self.name, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        found: list[dict[str, Any]] = []
        while True:
            reply = self.client.get_records(ShardIterator=iterator)
            found += reply["Records"]
            iterator = reply.get("NextShardIterator")
            if not (iterator and (reply["Records"] or reply["MillisBehindLatest"])):
                return found


def mapping(arn: str, handler: str, name: str = "work", **more: str) -> str:
    """A config of one mapping on a stream, from its beginning, whose function has the mapping's name."""
    more = {"starting_position": '"TRIM_HORIZON"'} | more
    extra = "".join(f"{key.replace('__', '.')} = {value}\n" for key, value in more.items())
    return (
        f'[functions.{name}]\nhandler = "stream_handlers:{handler}"\ntimeout = 10\n'
        f'[[mappings]]\nname = "{name}"\nevent_source_arn = "{arn}"\nfunction_name = "{name}"\n{extra}'
    )


def key_of(text: str) -> str:
    return text.partition("-")[0]


class Ledger:
    """What handlers have noted, read on where the last look ended."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self.lines: list[str] = []
        self.records: dict[str, None] = {}
        """What producers wrote, without repeats, in the order in which it was handled first."""

    def look(self) -> Ledger:
        with self._file.open("rb") as file:
            file.seek(self._at)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._at += len(whole)
        lines = whole.decode().splitlines()
        self.lines += lines
        self.records.update(dict.fromkeys(line.partition(" ")[2] for line in lines))
        return self

    @property
    def repeats(self) -> int:
        return len(self.lines) - len(self.records)


def in_order(records: Iterable[str]) -> bool:
    """Whether the records of each key, which end in numbers of one width, come in ascending order."""
    of_key: dict[str, list[str]] = defaultdict(list)
    for text in records:
        of_key[key_of(text)].append(text)
    return all(own == sorted(own) for own in of_key.values())


def all_done(daemon: Daemon, name: str = "work") -> bool:
    """Whether every shard is read to its end, and all of it is done."""
    shards = daemon.status().get(name, {}).get("shards", ())
    return bool(shards) and all(
        one["open_records"] == 0 and one["iterator_age"] is not None and one["iterator_age"] <= 0
        for one in shards
    )


def all_saved(daemon: Daemon, name: str = "work") -> bool:
    """Whether the checkpoints of all that is done are written."""
    shards = daemon.status()[name]["shards"]
    return all(one["open_records"] == 0 and one["checkpoint_age"] == 0 for one in shards)
