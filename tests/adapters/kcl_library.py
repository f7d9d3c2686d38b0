"""What the Kinesis Client Library does with its lease table and its checkpoints, in its own requests and conditions.

Written from its sources: DynamoDBLeaseSerializer, DynamoDBLeaseRefresher, DynamoDBCheckpointer, LeaseCleanupManager,
ExtendedSequenceNumber and ProcessTask of 2.x and 3.x. It speaks DynamoDB's older parameters (Expected and AttributeUpdates), as
the library does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from poller.errors import AwsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poller.aws.session import AwsSession

Row = dict[str, dict[str, Any]]
Extended = tuple[str, int]

SENTINELS = {"AT_TIMESTAMP": -3, "TRIM_HORIZON": -2, "LATEST": -1}


# --- checkpoints --------------------------------------------------------------------------------------------------------


def rank(number: Extended) -> tuple[int, int, int]:
    """Sorts as ExtendedSequenceNumber.compareTo does; raises ValueError where that throws."""
    text, sub = number
    if text == "SHARD_END":
        return (1, 0, 0)
    if text in SENTINELS:
        return (0, SENTINELS[text], sub)
    if not text.isdigit():
        raise ValueError(f"Expected a string of digits or a sentinel but received {text}")
    return (0, int(text), sub)


def delivered(records: Iterable[Extended], checkpoint: Extended) -> list[Extended]:
    """What a processor gets that is initialized at `checkpoint`, of all user records of a shard.

    The shard is read AT the sequence number, and what is not behind the checkpoint is dropped.
    """
    if checkpoint[0] == "SHARD_END":
        return []
    if checkpoint[0] == "TRIM_HORIZON":
        return list(records)
    return [one for one in records if rank(one) > rank(checkpoint)]


# --- leases -------------------------------------------------------------------------------------------------------------


@dataclass
class KclLease:
    """software.amazon.kinesis.leases.Lease."""

    key: str
    counter: int
    switches: int
    checkpoint: Extended
    owner: str | None = None
    former: str | None = None
    parents: frozenset[str] = frozenset()
    children: frozenset[str] = frozenset()
    pending: Extended | None = None
    hash_range: tuple[str, str] | None = None
    throughput: float | None = None
    others: Row = field(default_factory=dict)


_READ = {
    "leaseKey", "leaseOwner", "leaseCounter", "ownerSwitchesSinceCheckpoint", "checkpoint", "checkpointSubSequenceNumber",
    "parentShardId", "childShardIds", "pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState",
    "startingHashKey", "endingHashKey", "throughputKBps", "checkpointOwner",
}  # fmt: skip


def from_record(row: Row, version: str = "3.0") -> KclLease | None:
    """fromDynamoRecord; raises where the library throws. From 3.5 on a row of another kind is None."""
    if version >= "3.5" and row.get("entityType", {"S": "LEASE"})["S"] != "LEASE":
        return None

    def text(name: str) -> str | None:
        return row[name]["S"] if name in row else None

    def number(name: str) -> int | None:
        return int(row[name]["N"]) if name in row else None

    key, counter, switches = text("leaseKey"), number("leaseCounter"), number("ownerSwitchesSinceCheckpoint")
    if key is None or counter is None or switches is None:
        raise ValueError(f"NullPointerException: {row}")
    checkpoint = text("checkpoint")
    rank((str(checkpoint), 0))
    pending, starting, ending = text("pendingCheckpoint"), text("startingHashKey"), text("endingHashKey")
    throughput = row.get("throughputKBps")
    return KclLease(
        key,
        counter,
        switches,
        (str(checkpoint), number("checkpointSubSequenceNumber") or 0),
        text("leaseOwner"),
        text("checkpointOwner") if version >= "3.0" else None,
        frozenset(row.get("parentShardId", {"SS": ()})["SS"]),
        frozenset(row.get("childShardIds", {"SS": ()})["SS"]),
        (pending, number("pendingCheckpointSubSequenceNumber") or 0) if pending else None,
        (starting, ending) if starting and ending else None,
        float(throughput["N"]) if throughput and version >= "3.0" else None,
        {name: value for name, value in row.items() if name not in _READ},
    )


def to_record(lease: KclLease, version: str = "3.0") -> Row:
    """toDynamoRecord: the row of a lease that the library creates."""
    row: Row = {
        "leaseKey": {"S": lease.key},
        "leaseCounter": {"N": str(lease.counter)},
        "ownerSwitchesSinceCheckpoint": {"N": str(lease.switches)},
        "checkpoint": {"S": lease.checkpoint[0]},
        "checkpointSubSequenceNumber": {"N": str(lease.checkpoint[1])},
    }
    if lease.owner:
        row["leaseOwner"] = {"S": lease.owner}
    if lease.former:
        row["checkpointOwner"] = {"S": lease.former}
    if lease.parents:
        row["parentShardId"] = {"SS": sorted(lease.parents)}
    if lease.children:
        row["childShardIds"] = {"SS": sorted(lease.children)}
    if lease.pending:
        row["pendingCheckpoint"] = {"S": lease.pending[0]}
        row["pendingCheckpointSubSequenceNumber"] = {"N": str(lease.pending[1])}
    if lease.hash_range:
        row["startingHashKey"], row["endingHashKey"] = ({"S": one} for one in lease.hash_range)
    if lease.throughput is not None:
        row["throughputKBps"] = {"N": str(lease.throughput)}
    if version >= "3.5":
        row["entityType"] = {"S": "LEASE"}
    return row


def put(**value: str) -> dict[str, Any]:
    return {"Action": "PUT", "Value": value}


def add_one() -> dict[str, Any]:
    return {"Action": "ADD", "Value": {"N": "1"}}


DELETE = {"Action": "DELETE"}
ABSENT = {"Exists": False}


class Kcl:
    """One worker of an application, and its leader from 3.0 on."""

    def __init__(self, session: AwsSession, table: str, worker: str, version: str = "3.0") -> None:
        self.worker = worker
        self._session = session
        self._table = table
        self._version = version

    async def create_table(self) -> None:
        """createLeaseTableIfNotExists, and from 3.0 on the index of owners."""
        definitions = [{"AttributeName": "leaseKey", "AttributeType": "S"}]
        params: dict[str, Any] = {
            "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
            "AttributeDefinitions": definitions,
            "BillingMode": "PAY_PER_REQUEST",
        }
        if self._version >= "3.0":
            definitions.append({"AttributeName": "leaseOwner", "AttributeType": "S"})
            params["GlobalSecondaryIndexes"] = [
                {
                    "IndexName": "LeaseOwnerToLeaseKeyIndex",
                    "KeySchema": [
                        {"AttributeName": "leaseOwner", "KeyType": "HASH"},
                        {"AttributeName": "leaseKey", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
            ]
        await self.call("CreateTable", params)

    async def call(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        return await self._session.call("dynamodb", operation, {"TableName": self._table, **params})

    async def put_row(self, row: Row) -> None:
        await self.call("PutItem", {"Item": row})

    async def create(self, lease: KclLease) -> bool:
        params = {"Item": to_record(lease, self._version), "Expected": {"leaseKey": ABSENT}}
        return await self._if_holds("PutItem", params)

    async def list(self) -> dict[str, KclLease]:
        """listLeases: one row that cannot be read ends it."""
        rows = (await self.call("Scan", {}))["Items"]
        leases = [from_record(row, self._version) for row in rows]
        return {lease.key: lease for lease in leases if lease}

    async def get(self, key: str) -> KclLease:
        row = (await self.call("GetItem", {"Key": {"leaseKey": {"S": key}}, "ConsistentRead": True}))["Item"]
        lease = from_record(row, self._version)
        assert lease
        return lease

    # --- what a worker does ---------------------------------------------------------------------------------------------

    async def take(self, lease: KclLease) -> KclLease | None:
        """takeLease: what a worker of 2.x does with a lease that is expired, or that it steals."""
        updates = {"leaseCounter": put(N=str(lease.counter + 1)), "leaseOwner": put(S=self.worker)}
        if self._version >= "3.0":
            updates["checkpointOwner"] = DELETE
        if lease.owner is not None and lease.owner != self.worker:
            updates["ownerSwitchesSinceCheckpoint"] = add_one()
        if not await self._update(lease, updates, _counter(lease)):
            return None
        return await self.get(lease.key)

    async def renew(self, lease: KclLease) -> KclLease | None:
        """renewLease; from 3.0 on a lease that is asked for meanwhile is renewed once more as that."""
        updates = {"leaseCounter": put(N=str(lease.counter + 1))}
        expected = _counter(lease)
        if self._version >= "3.0" and lease.former is None:
            expected["checkpointOwner"] = ABSENT
        if await self._update(lease, updates, expected):
            return replace(lease, counter=lease.counter + 1)
        row = await self.get(lease.key)
        if lease.former is None and row.former == self.worker:
            return await self.renew(replace(lease, owner=row.owner, former=row.former))
        return None

    async def checkpoint(self, lease: KclLease, checkpoint: Extended) -> KclLease | None:
        """setCheckpoint: updateLease with no pending checkpoint and no owner switches."""
        updates = {
            "leaseCounter": put(N=str(lease.counter + 1)),
            "checkpoint": put(S=checkpoint[0]),
            "checkpointSubSequenceNumber": put(N=str(checkpoint[1])),
            "ownerSwitchesSinceCheckpoint": put(N="0"),
            "pendingCheckpoint": DELETE,
            "pendingCheckpointSubSequenceNumber": DELETE,
            "pendingCheckpointState": DELETE,
        }
        if not await self._update(lease, updates, _counter(lease)):
            return None
        return replace(lease, counter=lease.counter + 1, checkpoint=checkpoint, switches=0)

    async def evict(self, lease: KclLease) -> bool:
        """evictLease: gives a lease back, or to its heir."""
        updates = {"checkpointOwner": DELETE, "leaseCounter": add_one()}
        if lease.former is None:
            updates["leaseOwner"] = DELETE
        return await self._update(lease, updates, _owners(lease))

    async def remove_parent(self, key: str) -> bool:
        """cleanupLeaseForCompletedShard: once all children are begun, and the parents before it are gone."""
        leases = await self.list()
        lease = leases[key]
        begun = all(
            leases[child].checkpoint[0] not in ("TRIM_HORIZON", "AT_TIMESTAMP") for child in lease.children
        )
        if not begun or lease.parents & leases.keys():
            return False
        await self.call("DeleteItem", {"Key": {"leaseKey": {"S": key}}})
        return True

    # --- what the leader does -------------------------------------------------------------------------------------------

    async def ask_for(self, lease: KclLease, heir: str) -> bool:
        """initiateGracefulLeaseHandoff."""
        assert lease.owner
        updates = {"leaseOwner": put(S=heir), "checkpointOwner": put(S=lease.owner)}
        return await self._update(lease, updates, _owners(replace(lease, former=None)))

    async def assign(self, lease: KclLease, worker: str) -> bool:
        """assignLease: by force."""
        updates = {"leaseOwner": put(S=worker), "checkpointOwner": DELETE, "leaseCounter": add_one()}
        if (lease.owner is not None and lease.owner != worker) or lease.former == worker:
            updates["ownerSwitchesSinceCheckpoint"] = add_one()
        return await self._update(lease, updates, _owners(lease))

    async def _update(self, lease: KclLease, updates: dict[str, Any], expected: dict[str, Any]) -> bool:
        key = {"leaseKey": {"S": lease.key}}
        return await self._if_holds(
            "UpdateItem", {"Key": key, "AttributeUpdates": updates, "Expected": expected}
        )

    async def _if_holds(self, operation: str, params: dict[str, Any]) -> bool:
        try:
            await self.call(operation, params)
        except AwsError as error:
            if error.code == "ConditionalCheckFailedException":
                return False
            raise
        return True


def _counter(lease: KclLease) -> dict[str, Any]:
    return {"leaseCounter": {"Value": {"N": str(lease.counter)}}}


def _owners(lease: KclLease) -> dict[str, Any]:
    expected: dict[str, Any] = {"leaseKey": {"Value": {"S": lease.key}}}
    for name, value in (("leaseOwner", lease.owner), ("checkpointOwner", lease.former)):
        expected[name] = ABSENT if value is None else {"Value": {"S": value}}
    return expected
