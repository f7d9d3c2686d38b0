"""A box of letters in memory, and what reads through it, in few words."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poller.core.pace import Allowance
from poller.core.replay import ReplayEnvelope, Tally
from poller.core.stream_envelope import DynamoDbEnvelope, KinesisEnvelope
from poller.model import StartAt
from poller.sources._letters import Letter
from poller.sources._walk import Replaying
from poller.sources.failed_batches import FailedBatches
from tests.adapters.stream_reading import REGION, ROLE, Rig, data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.model import Record, Shard


class Box:
    """Letters in memory; `broken` is raised while it is set."""

    def __init__(self, *bodies: Any) -> None:
        self.note = ""
        self.cut_short = False
        self.waiting = deque(
            Letter(f"m{at}", body if isinstance(body, bytes) else json.dumps(body), at)
            for at, body in enumerate(bodies, 1)
        )
        self.finished: list[str] = []
        self.kept: list[str] = []
        self.broken: list[Exception] = []
        #: Those that stay whatever is done.
        self.stubborn: set[str] = set()

    @property
    def ended(self) -> bool:
        return not self.waiting

    async def take(self, limit: int) -> Sequence[Letter]:
        if self.broken:
            raise self.broken.pop(0)
        return [self.waiting.popleft() for _ in range(min(limit, 10, len(self.waiting)))]

    async def done(self, letters: Sequence[Letter]) -> int:
        gone = [letter.id for letter in letters if letter.id not in self.stubborn]
        self.finished += gone
        return len(letters) - len(gone)

    async def keep(self, letters: Sequence[Letter]) -> None:
        self.kept += [letter.id for letter in letters]


def document(stream: str, shard: str, numbers: Sequence[str], count: int | None = None) -> dict[str, Any]:
    """What is said of a batch from the first to the last of `numbers`."""
    kind = "KinesisBatchInfo" if ":kinesis:" in stream else "DDBStreamBatchInfo"
    return {
        "requestContext": {"condition": "RetryAttemptsExhausted"},
        kind: {
            "shardId": shard,
            "startSequenceNumber": numbers[0],
            "endSequenceNumber": numbers[-1],
            "batchSize": len(numbers) if count is None else count,
            "streamArn": stream,
        },
    }


@dataclass
class Reading:
    """Failed batches of one stream."""

    rig: Rig
    box: Box
    lanes: int = 1
    passes: Callable[[Record], bool] = lambda record: True
    wants: Callable[[Record], bool] = lambda record: True
    group: int = 100
    rate: float | None = None
    deaggregate: bool = False
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        fake = self.rig.fake
        kinesis, table = KinesisEnvelope(self.arn, REGION, ROLE), DynamoDbEnvelope(self.arn, REGION)
        envelope = kinesis if ":kinesis:" in self.arn else table
        replaying = Replaying(
            self.arn, ReplayEnvelope(envelope), self.lanes, self.passes, self.wants, self.group
        )
        self.source = FailedBatches(
            self.box,
            self.rig.source(deaggregate=self.deaggregate),
            replaying,
            Allowance(self.rate),
            self.tally,
        )
        self.shard = next(iter(fake.shards))

    @property
    def arn(self) -> str:
        return str(self.rig.fake.arn)  # type: ignore[attr-defined]

    async def part(self, shard: Shard, failing: Sequence[str] = (), limit: int = 100) -> list[list[str]]:
        """The groups that come of one shard of a part; records with data in `failing` fail for good."""
        groups: list[list[str]] = []
        async with self.source.open(shard, StartAt()) as reader:
            while not reader.ended:
                records = await reader.receive(limit, 5.0)
                if not records:
                    continue
                groups.append(data(records))
                bad = [record.id for record, text in zip(records, groups[-1], strict=True) if text in failing]
                if bad:
                    self.source.failed(shard.id, bad)
                assert await reader.ack(records) == len(records)
                await self.source.passed(shard.id, records[-1])
        return groups

    async def all(self, failing: Sequence[str] = (), limit: int = 100) -> list[list[str]]:
        """The groups of all parts, shard by shard."""
        groups: list[list[str]] = []
        while shards := await self.source.shards():
            for shard in shards:
                groups += await self.part(shard, failing, limit)
        return groups
