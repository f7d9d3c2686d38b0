"""How a lane of a shard parts with records that are not done (spec 5.7).

A batch is given up only when its on-failure destination, or the spool, has taken it (law 1); until then the lane waits, and
says so; only what is too large for it is dropped. Where keys are parked, what failed to the end goes to the spool instead, and
so does all that follows it under its key (see `parking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.core import failure
from poller.engine.delivery import Outlet
from poller.engine.parking import why
from poller.errors import DocumentTooLarge
from poller.model import Delivery, Dropped, Failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.core.retry import GiveUp
    from poller.core.windows import Window
    from poller.engine.parking import Parking
    from poller.engine.parts import Parts
    from poller.engine.stream_work import Batches
    from poller.model import FunctionError, Record


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """The one that records are given up after."""

    request_id: str
    """Empty when they were not tried."""
    version: str
    """Of the function, where Lambda has said it."""
    window: Window | None


class Parting:
    """Parts with the records of one lane. `parking` is the mapping's, None where no key is ever parked."""

    def __init__(self, batches: Batches, parts: Parts, parking: Parking | None) -> None:
        self._batches = batches
        self._parts = parts
        self._parking = parking
        self._outlet = Outlet(batches.destination, parts) if batches.destination else None
        self._obstacle = ""
        # How often in a row nothing could be parked.
        self._full = 0
        self._mapping = batches.call.mapping
        self._shard = batches.origin.shard_id

    @property
    def doing(self) -> str:
        """What it waits for, for `/status`; empty for nothing."""
        return (self._outlet.waiting if self._outlet else "") or self._obstacle

    # --- giving up ------------------------------------------------------------------------------------------------------

    async def give_up(self, given_up: GiveUp, last: LastAttempt) -> bool:
        """Part with records once their destination has taken them, or without one; False when the door closed before."""
        if self._parking and self._parking.takes(given_up):
            return await self._park_key(given_up)
        if self._outlet is None:
            self._drop(given_up)
        elif not await self._deliver(given_up, last, self._outlet):
            return False
        await self._parts.settler.done(given_up.records)
        return True

    async def _deliver(self, given_up: GiveUp, last: LastAttempt, outlet: Outlet) -> bool:
        delivery = self._delivery(given_up, last)
        try:
            return await outlet.deliver(delivery)
        except DocumentTooLarge as error:
            # As on Lambda, that is the end of it: no other try can come to anything, and the shard must go on.
            outlet.tell_too_large(delivery, error)
            self._drop(given_up)
            return True

    async def _park_key(self, given_up: GiveUp) -> bool:
        parked: Sequence[Record] | None = ()
        while parked is not None and not parked:
            parked = await self.park(given_up.records, why(given_up.outcome))
        return parked is not None

    def _drop(self, given_up: GiveUp) -> None:
        records = given_up.records
        first, last = (records[0].id, records[-1].id) if records else ("", "")
        self._parts.observer.dropped(
            Dropped(self._mapping, self._shard, len(records), str(given_up.condition), first, last)
        )

    def _delivery(self, given_up: GiveUp, last: LastAttempt) -> Delivery:
        batches, world = self._batches, self._parts.world
        at, final = world.wall(), not given_up.records
        document = failure.document(
            given_up,
            batches.origin,
            failure.LastInvoke(
                last.request_id or world.request_id(),
                batches.function_arn,
                last.version or failure.executed_version(batches.function_arn),
            ),
            at,
            failure.WindowInvoke(last.window, final) if last.window else None,
        )
        error = given_up.outcome.error if isinstance(given_up.outcome, Failed) else None
        return Delivery(
            id=failure.delivery_id(self._mapping, document, self._within(given_up.records)),
            mapping=self._mapping,
            shard=self._shard,
            function_arn=batches.function_arn,
            document=document,
            event=batches.event(batches.fresh(given_up.records), last.window, final=final),
            at=at,
            records=len(given_up.records),
            condition=str(given_up.condition),
            error_type=error.error_type if error else "",
            error_message=error.error_message if error else "",
        )

    def _within(self, records: Sequence[Record]) -> tuple[int | None, int | None]:
        """The sub-sequence numbers behind the first and the last of `records`, where they have any."""
        if not records:
            return None, None
        checkpoint = self._batches.envelope.checkpoint
        return checkpoint(records[0]).sub_sequence_number, checkpoint(records[-1]).sub_sequence_number

    # --- parking --------------------------------------------------------------------------------------------------------

    def held(self, records: Sequence[Record]) -> Sequence[Record]:
        """Those of `records` whose keys are parked."""
        return self._parking.held(records) if self._parking else ()

    async def park(
        self, records: Sequence[Record], error: FunctionError | None = None
    ) -> Sequence[Record] | None:
        """Store as many of `records`, from the first on, as there is room for; none of them after a wait for some, and None
        when the door closed. Only where keys are parked."""
        parking = self._parking
        assert parking
        stored = await parking.put(self._shard, records, error)
        if stored:
            self._full = 0
            await self._parts.settler.done(records[:stored])
            return records[:stored]
        self._obstacle = parking.obstacle
        waited = await parking.wait(self._parts.door, self._full)
        self._obstacle = ""
        if not waited:
            return None
        self._full += 1
        return ()
