"""An SQS queue as a source of one shard, whose position SQS keeps.

A message that was received is hidden from others for the queue's visibility timeout. As long as poller has it (in a batch that
fills, waiting for a worker, in a handler) its timeout is extended when half of it has passed, up to the 12 hours that SQS
allows; Lambda does not do this. A message leaves in one of three ways: deleted; left, so that it comes back when its timeout
has run out, which is how a failed one is retried and in the end dead-lettered by the queue's redrive policy; or given back
with a timeout of 0, when no handler has seen it.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from poller.core.envelope import SqsEnvelope
from poller.errors import AwsError, BadReply, SourceUnfit
from poller.model import Shard, StaleReceipts, Trouble
from poller.sources._sqs_batch import API_BATCH, CALL_TIMEOUT, Api, BatchRequests
from poller.sources._sqs_visibility import Visibility

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from poller.model import Record, StartAt
    from poller.ports import Observer
    from poller.sources._sqs_batch import Answers

__all__ = ["API_BATCH", "Api", "QueueId", "SqsReader", "SqsSource"]

#: Seconds; what SQS allows for a long poll.
LONGEST_POLL = 20


@dataclass(frozen=True, slots=True)
class QueueId:
    """Which queue a mapping reads, and what its function needs of it."""

    mapping: str
    arn: str
    region: str
    account: str
    name: str
    fifo: bool
    function_timeout: float
    """Seconds."""
    close_timeout: float = 3.0
    """Seconds for giving everything back when the reader is closed."""


class SqsSource:
    """One queue."""

    def __init__(
        self,
        queue: QueueId,
        connect: Callable[[], Awaitable[Api]],
        observer: Observer,
        *,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        """`clock` tells the seconds that the loop's timers go by."""
        self._queue = queue
        self._connect = connect
        self._observer = observer
        self._clock = clock

    async def shards(self) -> Sequence[Shard]:
        """A queue is read as a whole."""
        return (Shard(self._queue.arn),)

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt | None = None) -> AsyncIterator[SqsReader]:
        """Find the queue, check that it fits, and read it from where SQS has it; see `poller.ports.Source`."""
        api = await self._connect()
        url = await self._find(api)
        visibility_timeout = await _visibility_timeout(api, url, CALL_TIMEOUT)
        self._check(visibility_timeout)
        reader = SqsReader(self._queue, url, visibility_timeout, api, self._observer, clock=self._clock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.keep_hidden)
            try:
                yield reader
            finally:
                tasks.cancel_scope.cancel()
                await reader.aclose()

    async def _find(self, api: Api) -> str:
        named = {"QueueName": self._queue.name, "QueueOwnerAWSAccountId": self._queue.account}
        reply = await api("GetQueueUrl", named, CALL_TIMEOUT)
        try:
            return str(reply["QueueUrl"])
        except (KeyError, TypeError) as error:
            raise BadReply("GetQueueUrl: a reply without QueueUrl", operation="GetQueueUrl") from error

    def _check(self, visibility_timeout: float) -> None:
        timeout = self._queue.function_timeout
        if visibility_timeout < timeout:
            raise SourceUnfit(
                f"Queue visibility timeout: {visibility_timeout:.0f} seconds is less than Function timeout: {timeout:.0f} "
                f"seconds; raise VisibilityTimeout of queue {self._queue.name} (six times the function's timeout is advised) "
                "or lower the function's timeout"
            )


class SqsReader:
    """Receives from and settles at one queue; see `poller.ports.Reader`."""

    redelivers = True
    ended = False
    full = False
    behind: float | None = None
    doing = "reading"
    children: tuple[Shard, ...] = ()

    def __init__(
        self,
        queue: QueueId,
        url: str,
        visibility_timeout: float,
        api: Api,
        observer: Observer,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._url = url
        self._api = api
        self._observer = observer
        self._clock = clock
        self._envelope = SqsEnvelope(queue.arn, queue.region, fifo=queue.fifo)
        self._batch = BatchRequests(api, url)
        read_timeout = partial(_visibility_timeout, api, url)
        self._visibility = Visibility(visibility_timeout, self._batch, read_timeout, self._trouble, clock)
        self._unanswered: deque[str] = deque(maxlen=API_BATCH)
        self._cut_off_acks: list[Record] = []
        self._cut_off_releases: list[Record] = []

    def __repr__(self) -> str:
        return f"<SqsReader {self._queue.name}: {len(self._visibility)} messages held>"

    @property
    def url(self) -> str:
        """The queue's."""
        return self._url

    @property
    def visibility_timeout(self) -> float:
        """The queue's, in seconds, as last read."""
        return self._visibility.timeout

    # --- receiving ------------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """One ReceiveMessage. `wait` is rounded to whole seconds, upwards below one: a loop of empty short polls costs."""
        params: dict[str, Any] = {
            "QueueUrl": self._url,
            "MaxNumberOfMessages": min(limit, API_BATCH),
            "WaitTimeSeconds": max(1, min(LONGEST_POLL, round(wait))),
            "MessageSystemAttributeNames": ["All"],
            "MessageAttributeNames": ["All"],
        }
        asked_at = self._clock()
        reply = await (self._receive_fifo(params) if self._queue.fifo else self._receive(params))
        messages = reply.get("Messages")
        if not messages:
            return ()
        records = self._records(messages)
        self._visibility.hold(records, asked_at)
        return records

    async def _receive(self, params: dict[str, Any]) -> dict[str, Any]:
        return await self._api("ReceiveMessage", params, params["WaitTimeSeconds"] + CALL_TIMEOUT)

    async def _receive_fifo(self, params: dict[str, Any]) -> dict[str, Any]:
        """A receive whose answer got lost has locked its groups; the same attempt id asks for the same answer again."""
        attempt = self._unanswered.popleft() if self._unanswered else str(uuid4())
        try:
            return await self._receive({**params, "ReceiveRequestAttemptId": attempt})
        except AwsError as error:
            if error.transient:
                self._unanswered.append(attempt)
            raise

    def _records(self, messages: list[dict[str, Any]]) -> list[Record]:
        try:
            return [self._envelope.record(message) for message in messages]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            missing = f" without {error}" if isinstance(error, KeyError) else " that makes no sense"
            raise BadReply(f"ReceiveMessage: a message{missing}", operation="ReceiveMessage") from error

    # --- settling -------------------------------------------------------------------------------------------------------

    async def ack(self, records: Sequence[Record]) -> int:
        """DeleteMessageBatch; returns how many are gone for good."""
        try:
            # What waits for its turn is kept hidden: the last of ten thousand waits long where the queue is far away.
            answers = await self._batch.settle("DeleteMessageBatch", records, {}, self._visibility.let_go)
        except anyio.get_cancelled_exc_class():
            self._visibility.let_go(records)
            self._cut_off_acks.extend(records)
            raise
        self._tell(answers)
        if answers.stale:
            stale = StaleReceipts(self._queue.mapping, len(answers.stale), answers.stale[0].id)
            self._observer.stale_receipts(stale)
        return answers.confirmed

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Leave the messages to their visibility timeout (`delay` None), or set it to `delay` seconds from now."""
        self._visibility.let_go(records)
        if delay is None:
            return
        try:
            await self._visibility.landed(records)
            shown = {"VisibilityTimeout": round(delay)}
            self._tell(await self._batch.settle("ChangeMessageVisibilityBatch", records, shown))
        except anyio.get_cancelled_exc_class():
            self._cut_off_releases.extend(records)
            raise

    def _tell(self, answers: Answers) -> None:
        if complaint := answers.complaint:
            self._trouble(complaint)

    def _trouble(self, problem: str) -> None:
        self._observer.trouble(Trouble(self._queue.mapping, problem, 0.0))

    # --- life -----------------------------------------------------------------------------------------------------------

    async def keep_hidden(self) -> None:
        """Extend the visibility timeout of what is held, for ever."""
        await self._visibility.keep()

    async def aclose(self) -> None:
        """Finish the settling that a cancellation cut off and give back all that is held, within `close_timeout` seconds,
        even while the caller is being cancelled.
        """
        with anyio.move_on_after(self._queue.close_timeout, shield=True) as closing:
            await self._visibility.stop()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.ack, self._cut_off_acks[:])
                tasks.start_soon(self.release, [*self._visibility.records, *self._cut_off_releases], 0.0)
        if closing.cancelled_caught:
            self._trouble("closed before every message was given back; the others come back in time")


async def _visibility_timeout(api: Api, url: str, timeout: float) -> float:
    wanted = {"QueueUrl": url, "AttributeNames": ["VisibilityTimeout"]}
    reply = await api("GetQueueAttributes", wanted, timeout)
    try:
        return float(reply["Attributes"]["VisibilityTimeout"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadReply(
            "GetQueueAttributes: a reply without VisibilityTimeout", operation="GetQueueAttributes"
        ) from error
