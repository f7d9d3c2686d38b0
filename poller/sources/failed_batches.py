"""The failed batches of a stream, from letters that tell of them: one source, whose shards are those that the letters name.

It goes part by part: as many letters as a part may have are taken and sorted by shard, and each shard's are replayed in the
order of the stream::

    letters --> shards() --> open(shard) --> records stored in the letter, or read again from the stream
       ^                                                |
       '--- done, or kept <--- passed(record) <---------'   everything handed out up to this record is done

Reading again is one walk over the shard, from the first sequence number that a letter names to the last. Where nothing is
wanted for long the walk skips to the next letter, with a new iterator, at most once in `SEEK_PAUSE` seconds: a shard allows
five reads a second, and a mapping lives on them.

A letter is kept when a record of it fails again, or is gone from the stream. What its batch did not hold is left out: records
that the mapping's filters drop, and those of other lanes.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from poller.core.replay import FailedBatch, Pick, Span, read, same_source
from poller.errors import AwsError, RequestRefused, ShardGone
from poller.model import Shard, StartAt
from poller.sources._replayed import Course, Replayed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from poller.core.pace import Allowance
    from poller.core.replay import ReplayEnvelope, Tally
    from poller.model import Record
    from poller.ports import Reader, Source
    from poller.sources._letters import Box, Letter

#: Letters of one part, and bytes of their bodies.
PART_LETTERS = 1_000
PART_BYTES = 32 * 2**20
#: Letters that are asked for at a time.
TAKEN_AT_ONCE = 4
#: Records that one look brings, and seconds that it waits.
LOOK = 500
LOOK_WAIT = 2.0
#: Records that are read over before the walk skips.
SKIP = 1_000
#: Seconds between two iterators of one shard.
SEEK_PAUSE = 0.5
#: Looks that find nothing, in a row, at the end of a shard that is open: one may be empty although more is to come.
EMPTY_LOOKS = 3


@dataclass(frozen=True, slots=True)
class Replaying:
    """What the replays of one mapping's records are made with."""

    source_arn: str
    envelope: ReplayEnvelope
    lanes: int
    """Of the mapping: its parallelization factor."""
    passes: Callable[[Record], bool]
    """Whether the mapping's filters, and those of the replay, let a record pass."""
    group: int
    """Records that are handed out together at most."""


@dataclass(slots=True, eq=False)
class _Failure:
    """A letter while its records are replayed."""

    letter: Letter
    batch: FailedBatch
    ids: set[str] = field(default_factory=set)
    """Of its records that were handed out."""
    found: int = 0
    ends: set[str] = field(default_factory=set)
    """The first and the last of its records, as far as they were seen."""
    last: int = 0
    """The place of its last record in the course of the shard."""
    read: bool = False
    bad: bool = False


class _Part:
    """The letters of one shard in one part."""

    def __init__(self, shard: str, tally: Tally) -> None:
        self.shard = shard
        self.course = Course(tally)
        self.failures: list[_Failure] = []

    def pop_complete(self) -> list[_Failure]:
        """Those of which everything is done."""
        complete = [one for one in self.failures if one.read and one.last <= self.course.done]
        if complete:
            self.failures = [one for one in self.failures if one not in complete]
        return complete


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
        self._parts: dict[str, _Part] = {}

    @property
    def note(self) -> str:
        """What there is to say of it now."""
        return self._box.note

    @property
    def ended(self) -> bool:
        """True when all letters were taken."""
        return self._box.ended

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
            part = self._parts.setdefault(shard, _Part(shard, self._tally))
            part.failures.append(_Failure(letter, batch))
        if refused:
            await self._box.keep(refused)

    def _read(self, letter: Letter) -> FailedBatch:
        batch = read(letter.body)
        if not same_source(batch.source_arn, self._replaying.source_arn):
            raise ValueError(f"it is about {batch.source_arn or 'another source'}")
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

    async def _supply(self, part: _Part, reader: Replayed) -> None:
        # By their places in the stream: the names of objects tell the second in which each was written.
        stored = sorted((one for one in part.failures if one.batch.records is not None), key=_place)
        spans = [
            (one, one.batch.span) for one in part.failures if one.batch.records is None and one.batch.span
        ]
        for failure in stored:
            await self._supply_stored(part, failure, reader)
        if spans:
            await _Walk(self, part, spans, reader).to_its_end()
        reader.finish()

    async def _supply_stored(self, part: _Part, failure: _Failure, reader: Replayed) -> None:
        group: list[Record] = []
        for event in failure.batch.records or ():
            record = self._replaying.envelope.record(event)
            if self._replaying.passes(record):
                self.note_record(part, failure, record)
                group.append(record)
            else:
                self._tally.filtered += 1
        failure.read = True
        if group:
            await reader.put(group)
        else:
            await self._settle(part)

    def note_record(self, part: _Part, failure: _Failure, record: Record) -> None:
        """A record of a letter is about to be put in."""
        part.course.add(record)
        failure.ids.add(record.id)
        failure.found += 1
        failure.last = part.course.put

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

    async def _settle(self, part: _Part) -> None:
        complete = part.pop_complete()
        kept = [one.letter for one in complete if one.bad]
        done = [one.letter for one in complete if not one.bad]
        if done:
            await self._box.done(done)
        if kept:
            await self._box.keep(kept)
        self._tally.messages += len(done)
        self._tally.kept += len(kept)

    async def complete(self, part: _Part, failure: _Failure, span: Span) -> None:
        """All of a letter's records that there are have been put in."""
        failure.read = True
        missing = span.records - failure.found
        if missing > 0 and failure.ends != {span.first, span.last}:
            self._tally.gone += missing
            failure.bad = True
        elif missing > 0:
            # Both ends are there, so nothing was trimmed: the filters are not what they were.
            self._tally.filtered += missing
        if failure.last <= part.course.done:
            await self._settle(part)

    @property
    def stream(self) -> Source:
        """Where records are read again."""
        return self._stream

    @property
    def replaying(self) -> Replaying:
        """How."""
        return self._replaying


def _place(failure: _Failure) -> int:
    return int(failure.batch.span.first) if failure.batch.span else 0


class _Walk:
    """Reads the records of one shard's letters again, in one walk."""

    def __init__(
        self,
        batches: FailedBatches,
        part: _Part,
        spans: Sequence[tuple[_Failure, Span]],
        reader: Replayed,
    ) -> None:
        self._batches = batches
        self._part = part
        self._reader = reader
        self._lanes = batches.replaying.lanes
        self._ahead = deque(sorted(spans, key=lambda one: (int(one[1].first), int(one[1].last))))
        self._begun: list[tuple[_Failure, Span, Pick]] = []
        self._group: list[Record] = []
        self._at: StartAt | None = None
        self._sought = 0.0

    async def to_its_end(self) -> None:
        """Walk until nothing is ahead."""
        shard: Shard | None = None
        while self._ahead or self._begun:
            await anyio.sleep_until(self._sought + SEEK_PAUSE)
            self._sought = anyio.current_time()
            try:
                shard = shard or await self._find()
                error = await self._read_on(shard)
            except ShardGone:
                await self._nothing_left()
                return
            except RequestRefused:
                # A number that this shard never gave: the stream is another one of the same name.
                await self._lose_next()
                continue
            except AwsError as raised:
                error = raised
            if error is not None:
                await self._put()
                await self._reader.fail(error)

    async def _find(self) -> Shard:
        for shard in await self._batches.stream.shards():
            if shard.id == self._part.shard:
                return shard
        raise ShardGone(code=ShardGone.CODE)

    async def _read_on(self, shard: Shard) -> AwsError | None:
        """Read from where it stopped, or from the next letter; return when that is not the way any more, and why."""
        start = self._at
        if start is None or not self._begun:
            start = StartAt("AT_SEQUENCE_NUMBER", self._ahead[0][1].first)
        async with self._batches.stream.open(shard, start) as source:
            # Not raised in here: the source's own tasks would make a group of it.
            return await self._follow(source)

    async def _follow(self, source: Reader) -> AwsError | None:
        empty = idle = 0
        while self._ahead or self._begun:
            try:
                records = await source.receive(LOOK, LOOK_WAIT)
            except ShardGone:
                await self._nothing_left()
                return None
            except AwsError as error:
                return error
            for record in records:
                idle = 0 if await self._look_at(record) else idle + 1
            await self._put()
            empty = 0 if records else empty + 1
            at_end = source.behind == 0 and empty >= EMPTY_LOOKS
            if not records and (source.ended or at_end):
                await self._nothing_left()
            if idle > SKIP and not self._begun:
                return None
        return None

    async def _look_at(self, record: Record) -> bool:
        """Take the record for those that want it; whether anybody may."""
        number = int(record.id)
        self._at = self._after(record)
        await self._end_before(number)
        while self._ahead and int(self._ahead[0][1].first) <= number:
            failure, span = self._ahead.popleft()
            self._begun.append((failure, span, Pick(span, self._lanes)))
        await self._end_before(number)
        if not self._begun:
            return False
        wanting = [one for one in self._begun if one[2].wants(record)]
        for failure, span, _ in self._begun:
            if record.id in (span.first, span.last):
                failure.ends.add(record.id)
        if wanting and self._batches.replaying.passes(record):
            await self._take(record, [failure for failure, _, _ in wanting])
        whole = self._at.sub_sequence_number is None
        await self._end_before(number + 1 if whole else number)
        return True

    async def _take(self, record: Record, wanting: Sequence[_Failure]) -> None:
        first, *others = wanting
        self._batches.note_record(self._part, first, record)
        for other in others:
            # Two letters about one record: it is replayed once, for both.
            other.ids.add(record.id)
            other.found += 1
            other.last = self._part.course.put
        self._group.append(record)
        if len(self._group) >= self._batches.replaying.group:
            await self._put()

    async def _end_before(self, number: int) -> None:
        """Those whose last record comes before `number` have all that there is."""
        ended = [one for one in self._begun if int(one[1].last) < number]
        if ended:
            await self._put()
            self._begun = [one for one in self._begun if one not in ended]
            for failure, span, _ in ended:
                await self._batches.complete(self._part, failure, span)

    async def _put(self) -> None:
        group, self._group = self._group, []
        await self._reader.put(group)

    async def _nothing_left(self) -> None:
        """The shard holds no record that is still wanted."""
        await self._put()
        left = [(failure, span) for failure, span, _ in self._begun]
        self._begun = []
        while self._ahead:
            left.append(self._ahead.popleft())
        for failure, span in left:
            await self._batches.complete(self._part, failure, span)

    async def _lose_next(self) -> None:
        await self._put()
        if self._begun:
            failure, span, _ = self._begun.pop(0)
        else:
            failure, span = self._ahead.popleft()
        await self._batches.complete(self._part, failure, span)

    def _after(self, record: Record) -> StartAt:
        checkpoint = self._batches.replaying.envelope.checkpoint(record)
        return StartAt("AFTER_SEQUENCE_NUMBER", checkpoint.sequence_number, checkpoint.sub_sequence_number)
