from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest

from poller.aws.session import AwsSession
from poller.config import Aws
from tests.engine.fakes import Recorder
from tests.servers import NpmPackage, Server, ServerError, fetch, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

REGION = "eu-west-1"
HIGHEST = 2**128 - 1
#: Seconds until something that takes a moment is taken to have failed.
LONG = 20.0


@asynccontextmanager
async def session(server: Server) -> AsyncIterator[AwsSession]:
    config = Aws(region=REGION, endpoint_url=server.endpoint_url)
    async with AwsSession(config, Recorder()) as opened:
        yield opened


# --- kinesis-local ------------------------------------------------------------------------------------------------------


class Stream:
    """A stream on a server, by its API."""

    def __init__(self, aws: AwsSession) -> None:
        self.aws = aws
        self.name = f"stream-{uuid4()}"

    async def call(self, operation: str, **params: Any) -> dict[str, Any]:
        return await self.aws.call("kinesis", operation, {"StreamName": self.name, **params})

    async def active(self) -> None:
        """Return when the stream is not being changed."""
        with anyio.fail_after(LONG):
            while True:
                summary = (await self.call("DescribeStreamSummary"))["StreamDescriptionSummary"]
                if summary["StreamStatus"] == "ACTIVE":
                    return

    async def shards(self) -> dict[str, dict[str, Any]]:
        return {shard["ShardId"]: shard for shard in (await self.call("ListShards"))["Shards"]}

    async def put(self, text: str, hash_key: int) -> str:
        """Put a record; returns the shard it went to."""
        record = {"Data": text.encode(), "PartitionKey": "k", "ExplicitHashKey": str(hash_key)}
        return str((await self.call("PutRecord", **record))["ShardId"])

    async def read(self, shard: str) -> tuple[list[str], list[dict[str, Any]] | None]:
        """All records of a shard; and, when it is closed, the children that its end tells of."""
        start = {"ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = (await self.call("GetShardIterator", **start))["ShardIterator"]
        texts: list[str] = []
        while True:
            reply = await self.aws.call("kinesis", "GetRecords", {"ShardIterator": iterator})
            texts += [record["Data"].decode() for record in reply["Records"]]
            iterator = reply.get("NextShardIterator")
            if not iterator:
                return texts, reply["ChildShards"]
            if not reply["Records"]:
                return texts, None


@pytest.mark.slow
async def test_closed_shards_of_kinesis_local_end_with_their_children(kinesis_local: Server) -> None:
    async with session(kinesis_local) as aws:
        stream = Stream(aws)
        await stream.call("CreateStream", ShardCount=2)
        await stream.active()
        low, high = await stream.shards()
        assert await stream.put("before", 1) == low
        assert await stream.put("above", HIGHEST) == high

        await stream.call("SplitShard", ShardToSplit=low, NewStartingHashKey=str(2**126))
        await stream.active()
        texts, told = await stream.read(low)
        assert texts == ["before"]
        assert told is not None
        left, right = (child["ShardId"] for child in told)
        assert all(child["ParentShards"] == [low] for child in told)
        assert await stream.put("left", 1) == left
        assert await stream.put("right", 2**126) == right

        await stream.call("MergeShards", ShardToMerge=right, AdjacentShardToMerge=high)
        await stream.active()
        assert await stream.read(left) == (["left"], None)
        for parent, text in ((right, "right"), (high, "above")):
            texts, told = await stream.read(parent)
            assert texts == [text]
            assert told is not None
            assert [set(child["ParentShards"]) for child in told] == [{right, high}]

        shards = await stream.shards()
        closed = {
            name for name, shard in shards.items() if "EndingSequenceNumber" in shard["SequenceNumberRange"]
        }
        assert closed == {low, right, high}
        assert len(shards) == 5


# --- DynamoDB Local -----------------------------------------------------------------------------------------------------


async def make_table(aws: AwsSession, name: str) -> str:
    """Returns the ARN of its stream."""
    table = {
        "TableName": name,
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
        "BillingMode": "PAY_PER_REQUEST",
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    }
    made = await aws.call("dynamodb", "CreateTable", table)
    return str(made["TableDescription"]["LatestStreamArn"])


async def read_stream(aws: AwsSession, arn: str, records: int) -> list[dict[str, Any]]:
    async def call(operation: str, **params: Any) -> dict[str, Any]:
        return await aws.call("dynamodbstreams", operation, params)

    (shard,) = (await call("DescribeStream", StreamArn=arn))["StreamDescription"]["Shards"]
    start = {"StreamArn": arn, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
    iterator = (await call("GetShardIterator", **start))["ShardIterator"]
    read: list[dict[str, Any]] = []
    with anyio.fail_after(LONG):
        while len(read) < records:
            reply = await call("GetRecords", ShardIterator=iterator)
            read += reply["Records"]
            iterator = reply["NextShardIterator"]
    return read


@pytest.mark.slow
async def test_the_stream_of_a_table_of_dynamodb_local_tells_every_change(dynamodb_local: Server) -> None:
    async with session(dynamodb_local) as aws:
        name = f"table-{uuid4()}"
        arn = await make_table(aws, name)
        key, item, changed = (
            {"id": {"S": "1"}},
            {"id": {"S": "1"}, "n": {"N": "1"}},
            {"id": {"S": "1"}, "n": {"N": "2"}},
        )
        await aws.call("dynamodb", "PutItem", {"TableName": name, "Item": item})
        await aws.call(
            "dynamodb",
            "UpdateItem",
            {
                "TableName": name,
                "Key": key,
                "UpdateExpression": "SET n = :n",
                "ExpressionAttributeValues": {":n": {"N": "2"}},
            },
        )
        await aws.call("dynamodb", "DeleteItem", {"TableName": name, "Key": key})
        told = await read_stream(aws, arn, records=3)
        assert [record["eventName"] for record in told] == ["INSERT", "MODIFY", "REMOVE"]
        images = [(one["dynamodb"].get("OldImage"), one["dynamodb"].get("NewImage")) for one in told]
        assert images == [(None, item), (item, changed), (changed, None)]
        numbers = [int(record["dynamodb"]["SequenceNumber"]) for record in told]
        assert numbers == sorted(set(numbers))


# --- fetching and running them ------------------------------------------------------------------------------------------

PACKAGE = NpmPackage("some-server", "1.2.3")


class Registry:
    """Stands in for `npm pack`."""

    def __init__(self, folder: Path) -> None:
        self.commands: list[list[str]] = []
        self.main = folder / "main.js"
        self.main.write_text("// hello")

    def __call__(self, command: list[str]) -> None:
        self.commands.append(command)
        target = command[command.index("--pack-destination") + 1]
        with tarfile.open(f"{target}/some-server-1.2.3.tgz", "w:gz") as archive:
            archive.add(self.main, "package/main.js")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "poller"


def test_a_package_is_fetched_once_into_the_users_cache_folder(cache: Path, tmp_path: Path) -> None:
    npm = Registry(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: fetch(PACKAGE, npm), range(8)))
    assert folders == {cache / "some-server-1.2.3"}
    assert (cache / "some-server-1.2.3" / "main.js").read_text() == "// hello"
    assert len(npm.commands) == 1
    assert "some-server@1.2.3" in npm.commands[0]
    assert sorted(path.name for path in cache.iterdir()) == ["some-server-1.2.3", "some-server-1.2.3.lock"]


def test_a_fetch_that_fails_leaves_nothing_behind_and_is_tried_again(cache: Path, tmp_path: Path) -> None:
    def fail(command: list[str]) -> None:
        raise ServerError("no network")

    with pytest.raises(ServerError, match="no network"):
        fetch(PACKAGE, fail)
    assert [path.name for path in cache.iterdir()] == ["some-server-1.2.3.lock"]
    assert fetch(PACKAGE, Registry(tmp_path)).is_dir()


def test_a_package_with_what_it_needs_is_installed_once_and_none_of_it_is_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def npm(command: list[str]) -> None:
        commands.append(command)
        (Path(command[command.index("--prefix") + 1]) / "node_modules" / "some-server").mkdir(parents=True)

    monkeypatch.setattr("tests.servers._run", npm)
    for _ in range(2):
        assert (install(PACKAGE) / "node_modules" / "some-server").is_dir()
    (command,) = commands
    assert {"install", "some-server@1.2.3", "--ignore-scripts"} <= {*command}


def has_ended(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended, _, _ = select.select([process], [], [], LONG)
    os.close(process)
    return bool(ended)


_PARENT = """
import os, sys
from pathlib import Path
from tests.servers import kinesis_local
with kinesis_local(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_server_does_not_outlive_a_test_run_that_is_killed(kinesis_local: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -9
    assert has_ended(int(killed.stdout))


@pytest.mark.slow
def test_a_server_is_on_loopback_in_a_process_group_of_its_own_and_keeps_its_log(
    kinesis_local: Server,
) -> None:
    port = int(kinesis_local.endpoint_url.removeprefix("http://127.0.0.1:"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))
    assert os.getpgid(kinesis_local.pid) == kinesis_local.pid
    assert kinesis_local.log.exists()
