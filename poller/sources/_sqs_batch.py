"""Batch requests of SQS: ten entries each, and an answer for every entry.

A batch request can succeed as a whole while some of its entries fail. A failed entry is one of three things: *stale* (its
receipt no longer counts, so the message comes back or is gone), *refused* (sending it again cannot help), or *undone*, which
also holds for one that the reply forgot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_random_exponential

from poller.errors import AwsError, BadReply

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poller.model import Record

#: One call of the SQS API: operation, parameters, seconds until it is given up. Raises AwsError.
Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: The most messages that one request of the API takes or brings.
API_BATCH = 10
#: Seconds for a call that does not wait for messages.
CALL_TIMEOUT = 10.0
#: Requests in flight for one large batch.
CONCURRENCY = 8
#: Times that undone entries are sent again.
RETRIES = 5
_IDS = tuple(map(str, range(API_BATCH)))
#: SQS's codes for a receipt that no longer counts: expired, held for 12 hours, or the message is gone.
STALE_CODES = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight"})


@dataclass(slots=True)
class Answers:
    """What SQS said about the entries of one or more requests."""

    confirmed: int = 0
    stale: list[Record] = field(default_factory=list)
    undone: Sequence[Record] = ()
    problem: str = ""
    """Why the last of them were undone."""
    refusal: str = ""
    """Why some were refused."""

    @property
    def complaint(self) -> str:
        """What there is to tell about them. It is free of counts, so that equal troubles look equal."""
        return self.refusal or (self.problem if self.undone else "")

    def add(self, more: Answers) -> None:
        """Count those of other entries too."""
        self.confirmed += more.confirmed
        self.stale += more.stale
        self.undone = [*self.undone, *more.undone]
        self.problem = more.problem or self.problem
        self.refusal = more.refusal or self.refusal


class BatchRequests:
    """The batch operations of one queue."""

    def __init__(self, api: Api, url: str) -> None:
        self._api = api
        self._url = url

    async def settle(
        self,
        operation: str,
        records: Sequence[Record],
        extra: dict[str, Any],
        begun: Callable[[Sequence[Record]], None] = lambda _: None,
    ) -> Answers:
        """Send any number of entries, a few requests at the same time, undone ones again. Never raises AwsError.

        `begun` is called with the records of a request before it is sent for the first time.
        """
        if len(records) <= API_BATCH:
            begun(records)
            return await self._settle_few(operation, records, extra) if records else Answers()
        answers = Answers()

        async def settle_chunk(chunk: Sequence[Record]) -> None:
            begun(chunk)
            answers.add(await self._settle_few(operation, chunk, extra))

        await in_parallel(settle_chunk, records)
        return answers

    async def _settle_few(self, operation: str, records: Sequence[Record], extra: dict[str, Any]) -> Answers:
        try:
            answers = await self.once(operation, records, extra, CALL_TIMEOUT)
        except AwsError as error:
            return Answers(undone=records, problem=str(error))
        if answers.undone:
            await self._again(operation, answers, extra)
        return answers

    async def _again(self, operation: str, answers: Answers, extra: dict[str, Any]) -> None:
        async def once() -> bool:
            undone, answers.undone = answers.undone, ()
            try:
                answers.add(await self.once(operation, undone, extra, CALL_TIMEOUT))
            except AwsError as error:
                answers.undone, answers.problem = undone, str(error)
                return False
            return bool(answers.undone)

        await _patiently(once)

    async def once(
        self, operation: str, records: Sequence[Record], extra: dict[str, Any], timeout: float
    ) -> Answers:
        """Send at most ten entries, once. Raises AwsError when the request as a whole failed."""
        entries = [
            {"Id": id_, "ReceiptHandle": record.receipt, **extra}
            for id_, record in zip(_IDS, records, strict=False)
        ]
        reply = await self._api(operation, {"QueueUrl": self._url, "Entries": entries}, timeout)
        try:
            successful = reply.get("Successful")
            if successful and len(successful) == len(entries):
                return Answers(len(entries))
            return _read(operation, records, reply)
        except (AttributeError, KeyError, TypeError) as error:
            raise BadReply(f"{operation}: a reply that makes no sense", operation=operation) from error


def _read(operation: str, records: Sequence[Record], reply: dict[str, Any]) -> Answers:
    done = {entry["Id"] for entry in reply.get("Successful") or ()}
    failed = {entry["Id"]: entry for entry in reply.get("Failed") or ()}
    answers = Answers()
    undone: list[Record] = []
    for at, record in enumerate(records):
        entry = failed.get(str(at), {})
        code = str(entry.get("Code", "")).rpartition(".")[2]
        if str(at) in done:
            answers.confirmed += 1
        elif code in STALE_CODES:
            answers.stale.append(record)
        elif entry.get("SenderFault") and "Throttl" not in code:
            answers.refusal = f"{operation}: SQS refused single messages: {code}; they come back"
        else:
            answers.problem = (
                f"{operation}: SQS failed single messages: {code or 'no answer'}; they come back"
            )
            undone.append(record)
    answers.undone = undone
    return answers


async def in_parallel(call: Callable[[Sequence[Record]], Awaitable[None]], records: Sequence[Record]) -> None:
    """`call` for tens of `records`, a few at the same time."""
    chunks = iter([records[at : at + API_BATCH] for at in range(0, len(records), API_BATCH)])
    if len(records) <= API_BATCH:
        for chunk in chunks:
            await call(chunk)
        return

    async def work(chunks: Iterator[Sequence[Record]]) -> None:
        for chunk in chunks:
            await call(chunk)

    async with anyio.create_task_group() as tasks:
        for _ in range(min(CONCURRENCY, -(-len(records) // API_BATCH))):
            tasks.start_soon(work, chunks)


async def _patiently(once: Callable[[], Awaitable[bool]]) -> None:
    """Call `once` until it returns False, a few times, with growing pauses left to chance."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(RETRIES),
        wait=wait_random_exponential(multiplier=0.2, max=2.0),
        retry=retry_if_result(bool),
        retry_error_callback=lambda _: None,
        sleep=anyio.sleep,
    )
    await anyio.sleep(0.1)
    await retrying(once)
