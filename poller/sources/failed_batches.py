"""The failed batches of a stream, from letters that tell of them: one source, whose shards are those that the letters name.

It goes part by part: as many letters as a part may have are taken and sorted by shard, and each shard's are replayed in the
order of the stream::

    letters --> shards() --> open(shard) --> records stored in the letter, or read again from the stream
       ^                                                |
       '--- done, or kept <--- passed(record) <---------'   everything handed out up to this record is done

Reading again is one walk over each shard, see `_walk`. A letter is kept when a record of it fails again, is gone from the
stream, or was not asked for.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from poller.core.replay import check_failed, read
from poller.errors import AwsError
from poller.model import Shard
from poller.sources._replayed import Replayed
from poller.sources._walk import Failure, Part, Walk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from poller.core.pace import Allowance
    from poller.core.replay import FailedBatch, Tally
    from poller.model import Record, StartAt
    from poller.ports import Source
    from poller.sources._letters import Box, Letter
    from poller.sources._walk import Replaying

#: Letters of one part, and bytes of their bodies.
PART_LETTERS = 1_000
PART_BYTES = 32 * 2**20
#: Letters that are asked for at a time.
TAKEN_AT_ONCE = 4


class FailedBatches:
    """See the module; a `poller.ports.Source` that tells of its end by naming no shards."""

    def __init__(
        self, box: Box, stream: Source, replaying: Replaying, allowance: Allowance, tally: Tally
    ) -> None:
        self._box = box
        self._stream = stream
        self._replaying = replaying
        self._allowance = allowance
        self._tally = tally
        self._parts: dict[str, Part] = {}

    @property
    def note(self) -> str:
        """What there is to say of it now."""
        return self._box.note

    @property
    def exhausted(self) -> bool:
        """True when all letters were taken."""
        return self._box.ended and not self._box.cut_short

    # --- letters --------------------------------------------------------------------------------------------------------

    async def shards(self) -> Sequence[Shard]:
        """The shards of the next part; none when there are no letters left."""
        self._parts = {}
        while not self._box.ended:
            letters = await self._gather()
            await self._sort(letters)
            if self._parts:
                return [Shard(name) for name in sorted(self._parts)]
        return ()

    async def _gather(self) -> list[Letter]:
        letters: list[Letter] = []
        errors: list[AwsError] = []

        async def gather() -> None:
            while not (self._box.ended or errors) and len(letters) < PART_LETTERS:
                if sum(len(letter.body) for letter in letters) >= PART_BYTES:
                    return
                try:
                    taken = await self._box.take(PART_LETTERS - len(letters))
                except AwsError as error:
                    errors.append(error)
                    return
                if not taken:
                    return
                letters.extend(taken)

        async with anyio.create_task_group() as tasks:
            for _ in range(TAKEN_AT_ONCE):
                tasks.start_soon(gather)
        if errors and not letters:
            raise errors[0]
        return letters

    async def _sort(self, letters: Iterable[Letter]) -> None:
        refused: list[Letter] = []
        for letter in letters:
            try:
                batch = self._read(letter)
            except ValueError as error:
                self._tally.refuse(str(error))
                refused.append(letter)
                continue
            shard = batch.span.shard if batch.span else ""
            part = self._parts.setdefault(shard, Part(shard, self._tally, self._settle))
            part.failures.append(Failure(letter, batch))
        if refused:
            await self._box.keep(refused)

    def _read(self, letter: Letter) -> FailedBatch:
        batch = read(letter.body)
        check_failed(batch, self._replaying.source_arn)
        if batch.span is None and not batch.records:
            raise ValueError("it names no records")
        return batch

    # --- the records of one shard ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt) -> AsyncIterator[Replayed]:
        """The records of the part's letters of this shard, in their order."""
        part, reader = self._parts[shard.id], Replayed(self._allowance)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._supply, part, reader)
            try:
                yield reader
            finally:
                tasks.cancel_scope.cancel()

    async def _supply(self, part: Part, reader: Replayed) -> None:
        # By their places in the stream: the names of objects tell the second in which each was written.
        stored = sorted((one for one in part.failures if one.batch.records is not None), key=_place)
        spans = [
            (one, one.batch.span) for one in part.failures if one.batch.records is None and one.batch.span
        ]
        for failure in stored:
            await self._supply_stored(part, failure, reader)
        if spans:
            await Walk(self._stream, self._replaying, part, spans, reader).to_its_end()
        reader.finish()

    async def _supply_stored(self, part: Part, failure: Failure, reader: Replayed) -> None:
        group: list[Record] = []
        for event in failure.batch.records or ():
            record = self._replaying.envelope.record(event)
            if not self._replaying.passes(record):
                self._tally.filtered += 1
            elif not self._replaying.wants(record):
                part.leave_out([failure])
            else:
                part.note(failure, record)
                group.append(record)
        failure.read = True
        if group:
            await reader.put(group)
        else:
            await self._settle(part)

    # --- what became of them --------------------------------------------------------------------------------------------

    def failed(self, shard: str, ids: Sequence[str]) -> None:
        """Records have failed for good; told before they are passed."""
        part = self._parts[shard]
        part.course.failed(ids)
        for failure in part.failures:
            if not failure.ids.isdisjoint(ids):
                failure.bad = True

    async def passed(self, shard: str, record: Record) -> None:
        """Everything of the shard that was handed out up to `record`, the very object, is done."""
        part = self._parts[shard]
        part.course.passed(record)
        await self._settle(part)

    async def _settle(self, part: Part) -> None:
        complete = part.pop_complete()
        kept = [one.letter for one in complete if one.bad or one.partial]
        done = [one.letter for one in complete if not (one.bad or one.partial)]
        stay = await self._box.done(done) if done else 0
        if kept:
            await self._box.keep(kept)
        self._tally.messages += len(done) - stay
        self._tally.kept += len(kept) + stay
        self._tally.passed_over += sum(not one.bad for one in complete if one.partial)


def _place(failure: Failure) -> int:
    return int(failure.batch.span.first) if failure.batch.span else 0
