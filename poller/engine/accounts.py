"""What destinations are told of invocations; and telling it of a queue's, whose messages are settled after that.

Law 1: what a handler is done with, or has failed on for the last time, is deleted only when its destination has taken the
account of it. An account holds the event of just the records that it is about, as the handler got it. One that is too large for
its destination is told in halves, down to one record; what is too large even then stays in the queue or, if it succeeded, is
deleted without. While a destination is down the worker waits, its messages kept invisible, and receives no more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from poller.core.failure import SUCCESS, encoded
from poller.core.invocation_record import (
    RETRIES_EXHAUSTED,
    Ran,
    invocation_record,
    invoke_count,
    record_id,
)
from poller.engine.delivery import Outlet
from poller.errors import DocumentTooLarge
from poller.model import Delivery, Failed, Returned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.engine.delivery import Route
    from poller.engine.invoker import Call, Judge
    from poller.engine.parts import Parts
    from poller.model import Outcome, Record, Reply


@dataclass(frozen=True, slots=True)
class QueueEnds:
    """Where the outcome of a queue's batches goes."""

    source_arn: str
    function_arn: str
    """As mapped."""
    on_failure: Route | None = None
    on_success: Route | None = None
    maximum_retry_attempts: int = -1
    """With `on_failure`: a message that fails is given up when it was received more often than this; -1 for never."""


class Witness:
    """Remembers one invocation for the account of it."""

    def __init__(self, batch: Sequence[Record], event: dict[str, Any], request_id: str) -> None:
        self.request_id = request_id
        self.reply: Reply = Returned()
        self._places = {id(record): place for place, record in enumerate(batch)}
        # The handler may change what it gets.
        self._event = encoded(event)

    def of(self, call: Call) -> Call:
        """The same call, watched."""
        return replace(call, request_id=self.request_id, judge=partial(self._hear, call.judge))

    def event_of(self, records: Sequence[Record]) -> dict[str, Any]:
        """The event as if the batch had been `records`."""
        event: dict[str, Any] = json.loads(self._event)
        event["Records"] = [event["Records"][self._places[id(record)]] for record in records]
        return event

    def _hear(self, judge: Judge | None, reply: Reply, outcome: Outcome) -> Outcome:
        self.reply = reply
        return judge(reply, outcome) if judge else outcome


@dataclass(frozen=True, slots=True)
class Account:
    """How a mapping tells of invocations."""

    mapping: str
    source_arn: str
    shard: str
    """Empty for a queue."""
    function_arn: str
    """As mapped."""
    place: Callable[[Record], str] = attrgetter("id")
    """What tells a record from all others of its shard."""

    def of(
        self, records: Sequence[Record], witness: Witness, outcome: Outcome, condition: str, at: float
    ) -> Delivery:
        """What is told of `records`, which have the invocation in common that `witness` saw."""
        ran = Ran(witness.request_id, self.function_arn, witness.reply, outcome)
        count = invoke_count(records, condition)
        error = outcome.error if isinstance(outcome, Failed) else None
        # The end of a window has no records: its request tells it from others.
        ids = [self.place(record) for record in records] or [witness.request_id]
        return Delivery(
            id=record_id(self.mapping, self.source_arn, self.shard, ids, condition),
            mapping=self.mapping,
            shard=self.shard,
            function_arn=self.function_arn,
            document=invocation_record(ran, condition, count, witness.event_of(records), at),
            event=None,
            at=at,
            records=len(records),
            condition=condition,
            succeeded=condition == SUCCESS,
            error_type=error.error_type if error else "",
            error_message=error.error_message if error else "",
        )


class Accounts:
    """What one mapping tells; used by all of its workers at the same time."""

    def __init__(self, ends: QueueEnds, mapping: str, parts: Parts) -> None:
        self._ends = ends
        self._account = Account(mapping, ends.source_arn, "", ends.function_arn)
        self._parts = parts

    def witness(self, batch: Sequence[Record], event: dict[str, Any]) -> Witness | None:
        """Watch an invocation of which there may be something to tell; None when there will be nothing."""
        last = self._ends.maximum_retry_attempts
        if self._ends.on_success or (last >= 0 and any(record.receives > last for record in batch)):
            return Witness(batch, event, self._parts.world.request_id())
        return None

    async def finish(self, done: Sequence[Record], witness: Witness | None, outcome: Outcome) -> list[Record]:
        """Delete what succeeded once that is told; returns what was left to the queue because the door closed before."""
        route = self._ends.on_success
        if route is None or witness is None:
            await self._parts.settler.done(done)
            return []
        return await self._tell(done, SUCCESS, witness, outcome, route)

    async def give_up(
        self, records: Sequence[Record], witness: Witness | None, outcome: Outcome
    ) -> list[Record]:
        """Delete what failed for the last time once that is told; returns what was left to the queue instead."""
        route = self._ends.on_failure
        if route is None or witness is None:
            await self._parts.settler.leave(records)
            return [*records]
        return await self._tell(records, RETRIES_EXHAUSTED, witness, outcome, route)

    async def _tell(
        self,
        records: Sequence[Record],
        condition: str,
        witness: Witness,
        outcome: Outcome,
        route: Route,
    ) -> list[Record]:
        outlet = Outlet(route, self._parts, degrades=True)
        settler = self._parts.settler
        pending = [records] if records else []
        left: list[Record] = []
        while pending:
            part = pending.pop()
            at = self._parts.world.wall()
            delivery = self._account.of(part, witness, outcome, condition, at)
            try:
                taken = await outlet.deliver(delivery)
            except DocumentTooLarge as error:
                if len(part) > 1:
                    half = len(part) // 2
                    pending += [part[half:], part[:half]]
                    continue
                outlet.tell_too_large(delivery, error)
                taken = delivery.succeeded
            if taken:
                await settler.done(part)
            else:
                left += part
                await settler.leave(part)
        return left
