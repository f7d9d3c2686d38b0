"""The stream of a DynamoDB table: each item's changes in order, with both images, through a kill."""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from tests import servers
from tests.e2e.harness import Daemon, running, until
from tests.e2e.stream_harness import Ledger, all_done, all_saved, client, mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow


class Table:
    """A table whose stream has both images."""

    def __init__(self, endpoint_url: str) -> None:
        self._client = client("dynamodb", endpoint_url)
        self.name = f"t-{uuid.uuid4().hex[:12]}"
        made = self._client.create_table(
            TableName=self.name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        self.stream_arn: str = made["TableDescription"]["LatestStreamArn"]
        self.changes: dict[str, list[str]] = defaultdict(list)
        """What the function should see of each item."""

    def change(self, items: list[str], versions: list[int]) -> None:
        """Put each item and update it to each version, item by item for each; then delete it."""
        for version, item in ((version, item) for version in versions for item in items):
            old = str(version - 1) if version != versions[0] else "-"
            self._change(item, version, new=old == "-")
            kind = "INSERT" if old == "-" else "MODIFY"
            self.changes[item].append(f"{kind} {old} {version}")
        for item in items:
            self._client.delete_item(TableName=self.name, Key={"id": {"S": item}})
            self.changes[item].append(f"REMOVE {versions[-1]} -")

    def put(self, item: str, version: int = 0) -> None:
        self._client.put_item(TableName=self.name, Item={"id": {"S": item}, "version": {"N": str(version)}})

    def _change(self, item: str, version: int, *, new: bool) -> None:
        key: dict[str, Any] = {"id": {"S": item}}
        if new:
            self.put(item, version)
            return
        self._client.update_item(
            TableName=self.name,
            Key=key,
            UpdateExpression="SET version = :version",
            ExpressionAttributeValues={":version": {"N": str(version)}},
        )


@pytest.fixture(params=["ministack", "dynamodb-local"])
def endpoint_url(
    request: pytest.FixtureRequest, emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "ministack":
        yield emulator.endpoint_url
        return
    with servers.dynamodb_local(tmp_path_factory.mktemp("dynamodb-local")) as server:
        yield server.endpoint_url


def test_changes_of_each_item_come_in_order_and_a_kill_goes_on_from_the_checkpoint(
    endpoint_url: str, tmp_path: Path
) -> None:
    table = Table(endpoint_url)
    before, after = [f"a{number}" for number in range(10)], [f"b{number}" for number in range(40)]
    config = mapping(
        table.stream_arn,
        "changes",
        batch_size="10",
        parallelization_factor="2",
        idle_interval_in_seconds="0.2",
    )
    daemon, ledger = Daemon(tmp_path, endpoint_url, config), Ledger(tmp_path / "ledger")

    def expected() -> int:
        return sum(map(len, table.changes.values()))

    with running(daemon):
        table.change(before, [1, 2, 3])
        until(lambda: len(ledger.look().lines) >= expected(), "all is handled")
        until(lambda: all_saved(daemon), "the checkpoint is written")
        done = len(ledger.lines)
        table.change(after, [1, 2, 3])
        until(lambda: len(ledger.look().lines) > done, "something of what follows is handled")
        daemon.kill()
    with running(daemon):
        until(lambda: all_done(daemon), "the stream is done with")
        assert daemon.stop() == 0
    seen: dict[str, list[str]] = defaultdict(list)
    for line in dict.fromkeys(ledger.look().lines):
        item, _, change = line.partition(" ")
        seen[item].append(change)
    assert seen == table.changes
    assert sum(line.startswith("a") for line in ledger.lines) == done, (
        "nothing in front of the checkpoint again"
    )
