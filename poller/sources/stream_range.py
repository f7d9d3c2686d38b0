"""The records of a stream from one place to another, as a source of a replay.

A range ends at a sequence number, at a time, or at the end of the shard: a stream goes on while it is replayed, so a range
without an end is closed at the moment at which the replay begins. Records of one shard come in the order of their sequence
numbers and about in that of their times, so the first record behind the end ends the shard's part. Shards are named by
generations: a key whose shard was split or merged keeps its order, as it does live.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from poller.errors import AwsError, ReplayRefused, ShardGone
from poller.model import StartAt
from poller.sources._replayed import Course, Replayed
from poller.sources._walk import EMPTY_LOOKS, LOOK, LOOK_WAIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from poller.core.pace import Allowance
    from poller.core.replay import Tally
    from poller.core.seek import Target
    from poller.model import Checkpoint, Record, Shard
    from poller.ports import Reader, Source
    from poller.sources._walk import Replaying


@dataclass(frozen=True, slots=True)
class Range:
    """From where to where."""

    start: Target
    end: Target
    shard: str = ""
    """Only this one; all when it is empty."""

    def first(self) -> StartAt:
        """Where a shard's part begins."""
        if self.start.kind == "SEQUENCE_NUMBER":
            return StartAt("AT_SEQUENCE_NUMBER", self.start.sequence_number)
        if self.start.kind == "TIME":
            return StartAt("AT_TIMESTAMP", timestamp=self.start.time)
        return StartAt("TRIM_HORIZON")

    def is_behind(self, record: Record) -> bool:
        """Whether the record comes after the end."""
        if self.end.kind == "SEQUENCE_NUMBER":
            return int(record.id) > int(self.end.sequence_number)
        return record.arrived > self.end.time


class StreamRange:
    """See the module. `done` is how far each shard is, and is kept up to date: a replay that goes on begins there."""

    note = ""

    def __init__(
        self,
        wanted: Range,
        stream: Source,
        replaying: Replaying,
        allowance: Allowance,
        tally: Tally,
        done: dict[str, Checkpoint],
    ) -> None:
        self.done = done
        self.exhausted = False
        """True when all shards were named."""
        self._range = wanted
        self._stream = stream
        self._replaying = replaying
        self._allowance = allowance
        self._tally = tally
        self._courses: dict[str, Course] = {}
        # Still to be named; None until the stream was asked.
        self._left: dict[str, Shard] | None = None

    async def shards(self) -> Sequence[Shard]:
        """The shards of which all parents were named before; each once."""
        if self._left is None:
            found = [shard for shard in await self._stream.shards() if self._range.shard in ("", shard.id)]
            if not found:
                raise ReplayRefused(f"the stream has no shard {self._range.shard}")
            self._left = {shard.id: shard for shard in found}
            self._courses = {shard.id: Course(self._tally) for shard in found}
        part = [shard for shard in self._left.values() if self._left.keys().isdisjoint(shard.parents)]
        for shard in part:
            del self._left[shard.id]
        self.exhausted = not self._left
        return part

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt) -> AsyncIterator[Replayed]:
        """The part of this shard, from where it was done up to."""
        reader = Replayed(self._allowance)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._supply, shard, reader)
            try:
                yield reader
            finally:
                tasks.cancel_scope.cancel()

    async def _supply(self, shard: Shard, reader: Replayed) -> None:
        at = self._begin(shard.id)
        while True:
            try:
                async with self._stream.open(shard, at) as source:
                    # An error is not raised in here: the source's own tasks would make a group of it.
                    error, at = await self._follow(shard, source, reader, at)
            except ShardGone:
                break
            except AwsError as raised:
                error = raised
            if error is None:
                break
            await reader.fail(error)
        reader.finish()

    def _begin(self, shard: str) -> StartAt:
        done = self.done.get(shard)
        if done is None or not done.sequence_number:
            return self._range.first()
        return StartAt("AFTER_SEQUENCE_NUMBER", done.sequence_number, done.sub_sequence_number)

    async def _follow(
        self, shard: Shard, source: Reader, reader: Replayed, at: StartAt
    ) -> tuple[AwsError | None, StartAt]:
        """Read on to the end of the range; or to an error, and where it came."""
        empty = 0
        while True:
            try:
                records = await source.receive(LOOK, LOOK_WAIT)
            except ShardGone:
                return None, at
            except AwsError as error:
                return error, at
            wanted: list[Record] = []
            for record in records:
                if self._range.is_behind(record):
                    await self._offer(shard.id, wanted, reader)
                    return None, at
                checkpoint = self._replaying.envelope.checkpoint(record)
                at = StartAt(
                    "AFTER_SEQUENCE_NUMBER", checkpoint.sequence_number, checkpoint.sub_sequence_number
                )
                if self._replaying.passes(record) and self._replaying.wants(record):
                    wanted.append(record)
                else:
                    self._tally.filtered += 1
            await self._offer(shard.id, wanted, reader)
            empty = 0 if records else empty + 1
            at_end = not shard.closed and source.behind == 0 and empty >= EMPTY_LOOKS
            if not records and (source.ended or at_end):
                return None, at

    async def _offer(self, shard: str, wanted: Sequence[Record], reader: Replayed) -> None:
        course, group = self._courses[shard], self._replaying.group
        for first in range(0, len(wanted), group):
            for record in wanted[first : first + group]:
                course.add(record)
            await reader.put(wanted[first : first + group])

    # --- what became of them --------------------------------------------------------------------------------------------

    def failed(self, shard: str, ids: Sequence[str]) -> None:
        """Records have failed for good; told before they are passed."""
        self._courses[shard].failed(ids)

    async def passed(self, shard: str, record: Record) -> None:
        """Everything of the shard that was handed out up to `record`, the very object, is done."""
        self._courses[shard].passed(record)
        self.done[shard] = self._replaying.envelope.checkpoint(record)
