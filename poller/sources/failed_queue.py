"""A queue of failed records as a box of letters: an on-failure destination, or a dead-letter queue.

What is done with is deleted. What is kept is hidden from this replay for `HIDDEN` seconds, again if need be, and shown again
when the replay ends; a daemon that is killed leaves it hidden for that long. A queue has no end, so it ends here when a receive
brings nothing and nobody else holds messages that may come back: those that a daemon which was killed had received do, when the
queue's visibility timeout has run out.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from poller.errors import BadReply
from poller.model import Record
from poller.sources._letters import Letter
from poller.sources._sqs_batch import API_BATCH, CALL_TIMEOUT
from poller.sources.sqs import SqsSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from poller.ports import Observer
    from poller.sources.sqs import Api, QueueId, SqsReader

COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
#: Seconds for which a message that is kept is hidden.
HIDDEN = 900.0
#: Messages that are kept at most: with so many failures a replay does no good, and SQS hides no more than 120,000.
KEPT = 10_000
#: Seconds that a receive waits.
WAIT = 2.0
#: Seconds beyond the visibility timeout in which messages of others have to come back.
GRACE = 3.0


class FailedQueue:
    """The messages of one queue; see `poller.sources._letters.Box`."""

    def __init__(self, reader: SqsReader, counted: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """`counted` says how many messages can be received, and how many are received by whomever and not settled."""
        self.ended = False
        self.cut_short = False
        self.note = ""
        self._reader = reader
        self._counted = counted
        self._held: dict[str, Record] = {}
        self._kept: dict[str, Record] = {}
        self._empty_since: float | None = None

    def __repr__(self) -> str:
        return f"<FailedQueue {len(self._held)} held, {len(self._kept)} kept>"

    async def take(self, limit: int) -> Sequence[Letter]:
        records = await self._reader.receive(min(limit, API_BATCH), WAIT)
        if not records:
            await self._check_end()
            return ()
        self._empty_since, self.note = None, ""
        again = [record for record in records if record.id in self._kept]
        if again:
            await self._hide(again)
        fresh = [record for record in records if record.id not in self._kept]
        self._held.update({record.id: record for record in fresh})
        return [Letter(record.id, record.event["body"], record) for record in fresh]

    async def _check_end(self) -> None:
        now = anyio.current_time()
        since = self._empty_since = now if self._empty_since is None else self._empty_since
        visible, hidden = await self._counted()
        others = hidden - len(self._held) - len(self._kept)
        if others <= 0 or now - since > self._reader.visibility_timeout + GRACE:
            # What we hold ourselves comes to an end in our own hands.
            self.ended = not self._held
            self.note = (
                f"{others} messages that somebody else has received did not come back" if others > 0 else ""
            )
            if visible and self._kept:
                self.note = f"{visible} messages wait behind those that stay, in their groups"
            return
        self.note = f"waiting for {others} messages that somebody else has received"

    async def done(self, letters: Sequence[Letter]) -> int:
        await self._reader.ack([letter.handle for letter in letters])
        for letter in letters:
            self._held.pop(letter.id, None)
        return 0  # what SQS has not confirmed comes again

    async def keep(self, letters: Sequence[Letter]) -> None:
        await self._hide([letter.handle for letter in letters])
        for letter in letters:
            self._held.pop(letter.id, None)
        if len(self._kept) >= KEPT:
            self.ended = self.cut_short = True
            self.note = f"{KEPT} messages failed again: it went no further"

    async def again(self, letter: Letter, delay: float) -> None:
        """Let the queue bring this one again after `delay` seconds."""
        self._held.pop(letter.id, None)
        await self._reader.release([letter.handle], max(1.0, delay))

    async def _hide(self, records: Sequence[Record]) -> None:
        await self._reader.release(records, HIDDEN)
        # Only what shows them again later: their bodies may be large.
        self._kept.update({one.id: Record(one.id, one.key, 0, {}, one.receipt) for one in records})

    async def show(self) -> None:
        """Show again what was kept."""
        await self._reader.release(list(self._kept.values()), 0.0)
        self._kept.clear()


@asynccontextmanager
async def open_failed_queue(
    queue: QueueId, connect: Callable[[], Awaitable[Api]], observer: Observer
) -> AsyncIterator[FailedQueue]:
    """Open the queue; on leaving, what is not settled and what was kept is shown again. Raises PollerError."""
    source = SqsSource(queue, connect, observer)
    (shard,) = await source.shards()
    async with source.open(shard) as reader:

        async def counted() -> tuple[int, int]:
            return await counts(await connect(), reader.url)

        box = FailedQueue(reader, counted)
        try:
            yield box
        finally:
            with anyio.move_on_after(queue.close_timeout, shield=True):
                await box.show()


async def counts(api: Api, url: str) -> tuple[int, int]:
    """Messages that can be received, and messages that are received and not settled; about. Raises AwsError."""
    reply = await api("GetQueueAttributes", {"QueueUrl": url, "AttributeNames": list(COUNTS)}, CALL_TIMEOUT)
    try:
        visible, hidden = (int(reply["Attributes"][name]) for name in COUNTS)
    except (KeyError, TypeError, ValueError) as error:
        raise BadReply(
            "GetQueueAttributes: a reply without counts", operation="GetQueueAttributes"
        ) from error
    return visible, hidden


async def attributes(api: Api, name: str, account: str) -> dict[str, str]:
    """All attributes of a queue. Raises AwsError."""
    found = await api("GetQueueUrl", {"QueueName": name, "QueueOwnerAWSAccountId": account}, CALL_TIMEOUT)
    wanted = {"QueueUrl": found.get("QueueUrl", ""), "AttributeNames": ["All"]}
    reply = await api("GetQueueAttributes", wanted, CALL_TIMEOUT)
    known: dict[str, str] = reply.get("Attributes") or {}
    return known
