"""Reading failed batches again: one walk over a shard, from the first sequence number that a letter names to the last.

Where nothing is wanted for long the walk skips to the next letter, with a new iterator, at most once in `SEEK_PAUSE` seconds: a
shard allows five reads a second, and a mapping lives on them. What a batch did not hold is left out: records that the mapping's
filters drop, and those of other lanes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from poller.core.replay import Pick
from poller.errors import AwsError, RequestRefused, ShardGone
from poller.model import StartAt
from poller.sources._replayed import Course

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from poller.core.replay import FailedBatch, ReplayEnvelope, Span, Tally
    from poller.model import Record, Shard
    from poller.ports import Reader, Source
    from poller.sources._letters import Letter
    from poller.sources._replayed import Replayed

#: Records that one look brings, and seconds that it waits.
LOOK = 500
LOOK_WAIT = 2.0
#: Records that are read over before the walk skips.
SKIP = 1_000
#: Seconds between two iterators of one shard.
SEEK_PAUSE = 0.5
#: Looks that find nothing, in a row, at the end of a shard that is open: one may be empty although more is to come. One that is
#: closed says itself where it ends.
EMPTY_LOOKS = 3


@dataclass(frozen=True, slots=True)
class Replaying:
    """What the replays of one mapping's records are made with."""

    source_arn: str
    envelope: ReplayEnvelope
    lanes: int
    """Of the mapping: its parallelization factor."""
    passes: Callable[[Record], bool]
    """Whether the mapping's filters let a record pass. One that they drop is done with, as it is when it is live."""
    wants: Callable[[Record], bool]
    """Whether the replay was asked for a record. One that it was not asked for stays where it is kept."""
    group: int
    """Records that are handed out together at most."""


@dataclass(slots=True, eq=False)
class Failure:
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
    partial: bool = False
    """Whether it holds records that the replay was not asked for."""


class Part:
    """The letters of one shard in one part."""

    def __init__(self, shard: str, tally: Tally, settle: Callable[[Part], Awaitable[None]]) -> None:
        """`settle` does what is due with letters of which everything is done."""
        self.shard = shard
        self.course = Course(tally)
        self.failures: list[Failure] = []
        self._tally = tally
        self._settle = settle

    def note(self, failure: Failure, record: Record) -> None:
        """A record of a letter is about to be put in."""
        self.course.add(record)
        failure.ids.add(record.id)
        failure.found += 1
        failure.last = self.course.put

    def leave_out(self, failures: Iterable[Failure]) -> None:
        """A record of letters was not asked for."""
        self._tally.filtered += 1
        for failure in failures:
            failure.found += 1
            failure.partial = True

    async def complete(self, failure: Failure, span: Span) -> None:
        """All of a letter's records that there are have been put in."""
        failure.read = True
        missing = span.records - failure.found
        if lost := {span.first, span.last} - failure.ends:
            # Without the first one, records of other lanes were taken too: their number says nothing.
            self._tally.gone += max(missing, len(lost))
            failure.bad = True
        elif missing > 0:
            # Both ends are there, so nothing was trimmed: the filters are not what they were.
            self._tally.filtered += missing
        if failure.last <= self.course.done:
            await self._settle(self)

    def pop_complete(self) -> list[Failure]:
        """Those of which everything is done."""
        complete = [one for one in self.failures if one.read and one.last <= self.course.done]
        if complete:
            self.failures = [one for one in self.failures if one not in complete]
        return complete


class Walk:
    """Reads the records of one shard's letters again, in one walk."""

    def __init__(
        self,
        stream: Source,
        replaying: Replaying,
        part: Part,
        spans: Sequence[tuple[Failure, Span]],
        reader: Replayed,
    ) -> None:
        self._stream = stream
        self._replaying = replaying
        self._part = part
        self._reader = reader
        self._lanes = replaying.lanes
        self._ahead = deque(sorted(spans, key=lambda one: (int(one[1].first), int(one[1].last))))
        self._begun: list[tuple[Failure, Span, Pick]] = []
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
        for shard in await self._stream.shards():
            if shard.id == self._part.shard:
                return shard
        raise ShardGone(code=ShardGone.CODE)

    async def _read_on(self, shard: Shard) -> AwsError | None:
        """Read from where it stopped, or from the next letter; return when that is not the way any more, and why."""
        start = self._at
        if start is None or not self._begun:
            start = StartAt("AT_SEQUENCE_NUMBER", self._ahead[0][1].first)
        async with self._stream.open(shard, start) as source:
            # Not raised in here: the source's own tasks would make a group of it.
            return await self._follow(source, closed=shard.closed)

    async def _follow(self, source: Reader, *, closed: bool) -> AwsError | None:
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
            at_end = not closed and source.behind == 0 and empty >= EMPTY_LOOKS
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
        if wanting and self._replaying.passes(record):
            failures = [failure for failure, _, _ in wanting]
            if self._replaying.wants(record):
                await self._take(record, failures)
            else:
                self._part.leave_out(failures)
        whole = self._at.sub_sequence_number is None
        await self._end_before(number + 1 if whole else number)
        return True

    async def _take(self, record: Record, wanting: Sequence[Failure]) -> None:
        first, *others = wanting
        self._part.note(first, record)
        for other in others:
            # Two letters about one record: it is replayed once, for both.
            other.ids.add(record.id)
            other.found += 1
            other.last = self._part.course.put
        self._group.append(record)
        if len(self._group) >= self._replaying.group:
            await self._put()

    async def _end_before(self, number: int) -> None:
        """Those whose last record comes before `number` have all that there is."""
        ended = [one for one in self._begun if int(one[1].last) < number]
        if ended:
            await self._put()
            self._begun = [one for one in self._begun if one not in ended]
            for failure, span, _ in ended:
                await self._part.complete(failure, span)

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
            await self._part.complete(failure, span)

    async def _lose_next(self) -> None:
        await self._put()
        if self._begun:
            failure, span, _ = self._begun.pop(0)
        else:
            failure, span = self._ahead.popleft()
        await self._part.complete(failure, span)

    def _after(self, record: Record) -> StartAt:
        checkpoint = self._replaying.envelope.checkpoint(record)
        return StartAt("AFTER_SEQUENCE_NUMBER", checkpoint.sequence_number, checkpoint.sub_sequence_number)
