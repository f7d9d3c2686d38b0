"""How much there is to replay: said before a replay begins, and what its progress is measured by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio

from poller.app import streams
from poller.app.replay_sources import (
    LOOK_WAIT,
    Progress,
    ReplayObserver,
    open_box,
    queue_id,
    s3_calls,
    stream_range,
)
from poller.core.replay import Tally, check_failed, read
from poller.core.replay_wish import bucket
from poller.model import StartAt
from poller.sources import failed_objects
from poller.sources.failed_queue import attributes, counts

if TYPE_CHECKING:
    from poller.app.replay_sources import Setting
    from poller.model import Shard
    from poller.ports import Observer
    from poller.sources.stream_range import StreamRange

#: Objects that are counted before a replay.
COUNTED = 100_000
#: Seconds of a dry run over a range.
COUNTING = 15.0
#: Messages, or objects, that a dry run looks at.
SAMPLE = 10
#: What is said of a queue in which a look takes messages nearer to another queue.
COUNTED_ONLY = "it has a redrive policy, and to look counts as a receive: only counted"


@dataclass(frozen=True, slots=True)
class Count:
    """What there is to replay."""

    total: int | None
    """Messages or objects; None for what cannot be counted without reading it."""
    unit: str
    says: str
    """For a reader."""


async def count(setting: Setting, began: float) -> Count:
    """About how much there is, quickly; raises PollerError."""
    wish = setting.wish
    if wish.kind == "range":
        return Count(None, "records", "the records of a range are counted by reading them")
    if wish.kind == "objects":
        found = await failed_objects.count(bucket(wish.target), s3_calls(setting), COUNTED)
        more = " or more" if found >= COUNTED else ""
        return Count(found, "objects", f"{found}{more} objects under {wish.target}")
    queue = queue_id(setting)
    api = await setting.around.session.api("sqs", queue.region)
    reply = await api("GetQueueUrl", {"QueueName": queue.name, "QueueOwnerAWSAccountId": queue.account}, 10.0)
    visible, hidden = await counts(api, reply["QueueUrl"])
    others = f", {hidden} more are received by somebody" if hidden else ""
    return Count(visible, "messages", f"about {visible} messages in {queue.name}{others}")


async def estimate(setting: Setting, began: float) -> list[str]:
    """What a replay would do, in lines for a reader: nothing is invoked and nothing is deleted. Raises PollerError."""
    wish, tally = setting.wish, Tally()
    observer = ReplayObserver(setting.around.observer, moves=True)
    if wish.kind == "range":
        return [await _count_range(setting, Progress(tally, began=began), observer)]
    lines = [(await count(setting, began)).says]
    if wish.kind == "dead_letters":
        where = mapping_queue(setting) if wish.to_source else f"function {setting.function.name}"
        return [*lines, f"they go to {where}"]
    if wish.kind == "queue" and await _counts_receives(setting):
        return [*lines, COUNTED_ONLY]
    async with open_box(setting, Progress(tally), observer) as (box, _):
        letters: list[Any] = []
        while len(letters) < SAMPLE and (taken := await box.take(SAMPLE - len(letters))):
            letters.extend(taken)
        records = 0
        for letter in letters:
            try:
                batch = read(letter.body)
                check_failed(batch, setting.mapping.event_source_arn)
            except ValueError as error:
                tally.refuse(str(error))
                continue
            records += batch.span.records if batch.span else len(batch.records or ())
    if letters:
        lines.append(f"the first {len(letters)} of them tell of {records} records")
    if tally.unreadable:
        lines.append(f"{tally.unreadable} of these cannot be used: {tally.why_unreadable}")
    return lines


async def _counts_receives(setting: Setting) -> bool:
    """Whether a receive takes a message nearer to another dead-letter queue."""
    queue = queue_id(setting)
    api = await setting.around.session.api("sqs", queue.region)
    return bool((await attributes(api, queue.name, queue.account)).get("RedrivePolicy"))


def mapping_queue(setting: Setting) -> str:
    """The queue that the mapping reads, for a reader."""
    return f"queue {setting.mapping.queue_name}"


async def _count_range(setting: Setting, progress: Progress, observer: Observer) -> str:
    """Read a range for a while and say how many records it has."""
    source = await stream_range(replace(setting, wish=replace(setting.wish, rate=None)), progress, observer)
    found = 0
    with anyio.move_on_after(COUNTING) as counting:
        while shards := await source.shards():
            for shard in shards:
                found += await _count_shard(source, shard)
    so_far = f" in the first {COUNTING:.0f} s of reading" if counting.cancelled_caught else ""
    dropped = f", besides {progress.tally.filtered} that are filtered out" if progress.tally.filtered else ""
    return f"{found} records{so_far}{dropped}"


async def _count_shard(source: StreamRange, shard: Shard) -> int:
    found = 0
    async with source.open(shard, StartAt()) as reader:
        while not reader.ended:
            records = await reader.receive(streams.RECEIVE_LIMIT, LOOK_WAIT)
            found += len(records)
            if records:
                await source.passed(shard.id, records[-1])
    return found
