"""An application of the KCL moves over: a daemon goes on in its lease table, and leaves it so that the KCL can go on."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Daemon, running, until
from tests.e2e.stream_harness import DataStream, Ledger, client, mapping

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow


class LeaseTable:
    """The table of an application, as the KCL makes it."""

    def __init__(self, endpoint_url: str) -> None:
        self.name = f"application-{uuid.uuid4().hex[:8]}"
        self._dynamodb = client("dynamodb", endpoint_url)
        self._dynamodb.create_table(
            TableName=self.name,
            KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def put(self, shard: str, checkpoint: str) -> None:
        """A row that a worker of the KCL has left when it was shut down."""
        self._dynamodb.put_item(
            TableName=self.name,
            Item={
                "leaseKey": {"S": shard},
                "leaseCounter": {"N": "17"},
                "ownerSwitchesSinceCheckpoint": {"N": "0"},
                "checkpoint": {"S": checkpoint},
                "checkpointSubSequenceNumber": {"N": "0"},
            },
        )

    def rows(self) -> dict[str, dict[str, Any]]:
        found = self._dynamodb.scan(TableName=self.name, ConsistentRead=True)["Items"]
        return {row["leaseKey"]["S"]: row for row in found}


def test_a_daemon_goes_on_in_the_table_of_an_application_and_leaves_its_place_there(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=2)
    stream.put(f"k{number}-{number:04}" for number in range(200))
    table = LeaseTable(emulator.endpoint_url)
    left: set[str] = set()
    for shard in stream.shards():
        records = stream.everything(shard["ShardId"])
        half = len(records) // 2
        assert half > 10
        table.put(shard["ShardId"], records[half - 1]["SequenceNumber"])
        left |= {record["Data"].decode() for record in records[half:]}
    config = f'[daemon]\nstate = "sqlite:{tmp_path / "poller.db"}"\nfleet = true\n' + mapping(
        stream.arn, "record", lease_table=f'"{table.name}"', lease_format='"kcl"'
    )
    daemon = Daemon(tmp_path, emulator.endpoint_url, config)
    ledger = Ledger(daemon.ledger)
    with running(daemon):
        until(lambda: left <= ledger.look().records.keys(), "what the application has left is handled")
        owners = {row["leaseOwner"]["S"] for row in table.rows().values()}
        assert len(owners) == 1
        fresh = [f"k{number}-new{number:04}" for number in range(50)]
        stream.put(fresh)
        until(lambda: set(fresh) <= ledger.look().records.keys(), "what comes later is handled")
        assert daemon.stop() == 0
    assert ledger.look().records.keys() == left | set(fresh)
    assert ledger.repeats == 0
    for shard, row in table.rows().items():
        assert row["checkpoint"]["S"] == stream.everything(shard)[-1]["SequenceNumber"]
        assert "leaseOwner" not in row
        assert int(row["leaseCounter"]["N"]) > 17
