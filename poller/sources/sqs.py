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
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_random_exponential

from poller.core.envelope import SqsEnvelope
from poller.errors import AwsError, BadReply, SourceUnfit
from poller.model import Shard, StaleReceipts, Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from poller.model import Record
    from poller.ports import Observer

    #: One call of the SQS API: operation, parameters, seconds until it is given up. Raises AwsError.
    Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: The most messages that one request of the API takes or brings.
API_BATCH = 10
#: Seconds; the longest that SQS lets one receive of a message last.
LONGEST_HOLD = 12 * 3600.0
#: Seconds for a call that does not wait for messages.
CALL_TIMEOUT = 10.0
#: Seconds after which a busy reader reads the queue's visibility timeout again.
ATTRIBUTES_AGE = 60.0
#: Seconds for giving everything back when the reader is closed.
CLOSE_TIMEOUT = 3.0
#: Requests in flight to settle one large batch.
SETTLE_CONCURRENCY = 8
#: SQS's codes for a receipt that no longer counts: expired, or the message is gone.
STALE_CODES = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight"})


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


class SqsSource:
    """One queue."""

    def __init__(self, queue: QueueId, connect: Callable[[], Awaitable[Api]], observer: Observer) -> None:
        self._queue = queue
        self._connect = connect
        self._observer = observer

    async def shards(self) -> Sequence[Shard]:
        """A queue is read as a whole."""
        return (Shard(self._queue.arn),)

    @asynccontextmanager
    async def open(self, shard: Shard) -> AsyncIterator[SqsReader]:
        """Find the queue, check that it fits, and read it; see `poller.ports.Source`."""
        api = await self._connect()
        found = await api(
            "GetQueueUrl",
            {"QueueName": self._queue.name, "QueueOwnerAWSAccountId": self._queue.account},
            CALL_TIMEOUT,
        )
        reader = SqsReader(self._queue, found["QueueUrl"], api, self._observer)
        await reader.read_attributes()
        self._check(reader.visibility_timeout)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.keep_hidden)
            try:
                yield reader
            finally:
                tasks.cancel_scope.cancel()
                await reader.aclose()

    def _check(self, visibility_timeout: float) -> None:
        timeout = self._queue.function_timeout
        if visibility_timeout < timeout:
            raise SourceUnfit(
                f"Queue visibility timeout: {visibility_timeout:.0f} seconds is less than Function timeout: {timeout:.0f} "
                f"seconds; raise VisibilityTimeout of queue {self._queue.name} (six times the function's timeout is advised) "
                "or lower the function's timeout"
            )


@dataclass(slots=True, eq=False)
class Hold:
    """The messages of one receive that are not settled yet. Times are of the loop's clock, in seconds."""

    since: float
    due: float
    """When the visibility timeout must be extended."""
    records: dict[str, Record]
    """By receipt handle."""


class SqsReader:
    """Receives from and settles at one queue; see `poller.ports.Reader`."""

    redelivers = True

    def __init__(self, queue: QueueId, url: str, api: Api, observer: Observer) -> None:
        self.visibility_timeout = 0.0
        self._queue = queue
        self._url = url
        self._api = api
        self._observer = observer
        self._envelope = SqsEnvelope(queue.arn, queue.region, fifo=queue.fifo)
        self._holds: dict[str, Hold] = {}
        self._held = anyio.Event()
        self._attributes_read = 0.0
        self._unanswered: deque[str] = deque(maxlen=API_BATCH)

    def __repr__(self) -> str:
        return f"<SqsReader {self._queue.name}: {len(self._holds)} messages held>"

    # --- receiving ------------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """One ReceiveMessage. `wait` is rounded to SQS's whole seconds, upwards below one: a loop of empty short polls costs."""
        seconds = max(1, min(20, round(wait)))
        params: dict[str, Any] = {
            "QueueUrl": self._url,
            "MaxNumberOfMessages": min(limit, API_BATCH),
            "WaitTimeSeconds": seconds,
            "MessageSystemAttributeNames": ["All"],
            "MessageAttributeNames": ["All"],
        }
        reply = await (self._receive_fifo(params) if self._queue.fifo else self._receive(params))
        messages = reply.get("Messages")
        return self._hold(messages) if messages else ()

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

    def _hold(self, messages: list[dict[str, Any]]) -> list[Record]:
        try:
            records = [self._envelope.record(message) for message in messages]
        except (KeyError, TypeError) as error:
            raise BadReply(
                f"ReceiveMessage: a message without {error}", operation="ReceiveMessage"
            ) from error
        now = anyio.current_time()
        hold = Hold(now, now + self.visibility_timeout / 2, {record.receipt: record for record in records})
        for receipt in hold.records:
            self._holds[receipt] = hold
        if not self._held.is_set():
            self._held.set()
        return records

    # --- settling -------------------------------------------------------------------------------------------------------

    async def ack(self, records: Sequence[Record]) -> int:
        """DeleteMessageBatch; returns how many are gone for good."""
        self._let_go(records)
        outcomes = await self._for_chunks(records, partial(self._batch, "DeleteMessageBatch", {}))
        stale = [record for _, failed in outcomes for record, code in failed if code in STALE_CODES]
        if stale:
            self._observer.stale_receipts(StaleReceipts(self._queue.mapping, len(stale), stale[0].id))
        return sum(done for done, _ in outcomes)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Leave the messages to their visibility timeout (`delay` None), or set it to `delay` seconds from now."""
        self._let_go(records)
        if delay is not None:
            await self._change_visibility(records, round(delay))

    def _let_go(self, records: Iterable[Record]) -> None:
        for record in records:
            hold = self._holds.pop(record.receipt, None)
            if hold is not None:
                del hold.records[record.receipt]

    async def _change_visibility(self, records: Sequence[Record], seconds: int) -> list[Record]:
        """Returns the messages whose receipt no longer counts."""
        change = partial(self._batch, "ChangeMessageVisibilityBatch", {"VisibilityTimeout": seconds})
        outcomes = await self._for_chunks(records, change)
        return [record for _, failed in outcomes for record, code in failed if code in STALE_CODES]

    async def _for_chunks(
        self, records: Sequence[Record], call: Callable[[Sequence[Record]], Awaitable[_Outcome]]
    ) -> list[_Outcome]:
        """`call` for tens of records, a few at the same time."""
        if len(records) <= API_BATCH:
            return [await call(records)] if records else []
        outcomes: list[_Outcome] = []
        chunks = iter([records[at : at + API_BATCH] for at in range(0, len(records), API_BATCH)])

        async def work(chunks: Iterator[Sequence[Record]]) -> None:
            for chunk in chunks:
                outcomes.append(await call(chunk))  # noqa: PERF401 - it awaits between two

        async with anyio.create_task_group() as tasks:
            for _ in range(SETTLE_CONCURRENCY):
                tasks.start_soon(work, chunks)
        return outcomes

    async def _batch(self, operation: str, extra: dict[str, Any], records: Sequence[Record]) -> _Outcome:
        """One batch request; entries that failed at SQS's side are sent again a few times. Never raises AwsError."""
        left = list(records)
        failed: list[tuple[Record, str]] = []

        async def once() -> bool:
            entries = [
                {"Id": str(at), "ReceiptHandle": record.receipt, **extra} for at, record in enumerate(left)
            ]
            reply = await self._api(operation, {"QueueUrl": self._url, "Entries": entries}, CALL_TIMEOUT)
            wrong = [(left[int(entry["Id"])], entry) for entry in reply.get("Failed") or ()]
            failed.extend((record, entry.get("Code", "")) for record, entry in wrong if _final(entry))
            left[:] = [record for record, entry in wrong if not _final(entry)]
            return bool(left)

        try:
            if await once():
                await _patiently(once)
        except AwsError as error:
            self._trouble(error)
            return len(records) - len(failed) - len(left), failed
        if left:
            self._trouble(
                f"{operation}: SQS failed {len(left)} of {len(records)} entries again and again; they come back"
            )
        return len(records) - len(failed) - len(left), failed

    def _trouble(self, error: AwsError | str) -> None:
        self._observer.trouble(Trouble(self._queue.mapping, str(error), 0.0))

    # --- the visibility timeout -----------------------------------------------------------------------------------------

    async def read_attributes(self) -> None:
        """Read the queue's visibility timeout."""
        wanted = {"QueueUrl": self._url, "AttributeNames": ["VisibilityTimeout"]}
        reply = await self._api("GetQueueAttributes", wanted, CALL_TIMEOUT)
        self.visibility_timeout = float(reply["Attributes"]["VisibilityTimeout"])
        self._attributes_read = anyio.current_time()

    async def keep_hidden(self) -> None:
        """Extend what is held, for ever. One timer serves all messages, and none runs while nothing is held."""
        while True:
            await self._held.wait()
            await anyio.sleep_until(min((hold.due for hold in self._holds.values()), default=0.0))
            await self._extend_due()
            if not self._holds:
                self._held = anyio.Event()

    async def _extend_due(self) -> None:
        now = anyio.current_time()
        due = {hold for hold in self._holds.values() if hold.due <= now}
        if due and now - self._attributes_read > ATTRIBUTES_AGE:
            await self._read_attributes_again()
        extensions: dict[int, list[Record]] = {}
        for hold in due:
            seconds = int(min(self.visibility_timeout, hold.since + LONGEST_HOLD - now))
            hold.due = now + max(seconds / 2, 0.5)
            extensions.setdefault(seconds, []).extend(hold.records.values())
        for seconds, records in extensions.items():
            self._let_go(await self._change_visibility(records, seconds) if seconds > 0 else records)

    async def _read_attributes_again(self) -> None:
        try:
            await self.read_attributes()
        except AwsError as error:
            self._trouble(error)

    async def aclose(self) -> None:
        """Give back all that is held, within `CLOSE_TIMEOUT` seconds, even while the caller is being cancelled."""
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self.release(
                [record for hold in set(self._holds.values()) for record in hold.records.values()], 0.0
            )


#: How many entries were confirmed, and which failed for good with which code.
_Outcome = tuple[int, list[tuple["Record", str]]]


def _final(entry: dict[str, Any]) -> bool:
    """True when sending the entry again cannot help."""
    return bool(entry.get("SenderFault")) or entry.get("Code") in STALE_CODES


async def _patiently(once: Callable[[], Awaitable[bool]]) -> None:
    """Call `once` until it returns False, a few times, with growing pauses left to chance."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(5),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        retry=retry_if_result(bool),
        retry_error_callback=lambda _: None,
        sleep=anyio.sleep,
    )
    await anyio.sleep(0.1)
    await retrying(once)
