"""What a pipeline does with a batch that it has gathered, and how a queue's is worked on; a stream's is in `stream_work`.

A queue offers a failed message again by itself, so each batch is invoked once, settled, and forgotten. It is tried again here
only while no handler has seen it. What succeeded, or failed for the last time, is told to a destination first, if the mapping
has one.

A function that refuses a batch would refuse the next one too, and each receive counts on the way to the dead-letter queue. So
nothing is received while several refused batches wait for their next try.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from poller.core import envelope
from poller.core.retry import Attempt, Settle, decide
from poller.engine.accounts import Accounts
from poller.engine.keys import KeyGate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.engine.accounts import QueueEnds, Witness
    from poller.engine.invoker import Call
    from poller.engine.parts import Parts
    from poller.model import Outcome, Record


@dataclass(frozen=True, slots=True)
class Worked:
    """What became of a batch, as far as the pipeline must know."""

    unfinished: Sequence[Record] = ()
    """Records, in their order, that the door's closing kept from being finished and that may be worked on later."""
    failed_keys: frozenset[str | None] = frozenset()
    """Keys of which a record has failed and will be back: nothing of them may overtake it."""


DONE = Worked()
#: Times that a refused batch is tried before its time because a handler has ended: others may have been quicker. After so many
#: it is refused for what is in it, and would be with every handler that ends.
CALLS = 8


class Work(Protocol):
    """Takes batches to their end, one at a time for each caller."""

    async def process(self, batch: Sequence[Record], dropped: Sequence[Record]) -> Worked:
        """Invoke, settle, and retry as the source's policy says; acknowledge `dropped`, which were filtered out of what was
        received with the batch, whatever becomes of it."""
        ...

    async def fresh(self, filling: Sequence[Record]) -> tuple[Sequence[Record], float]:
        """Part with what is too old of a batch that is filling, and not empty. Returns the others, and the seconds until one of
        them will be."""
        ...

    async def idle(self) -> None:
        """Do what is due without a batch; called when a receive has brought nothing, and at the end of a shard."""
        ...


class QueueWork:
    """Works on the batches of a queue."""

    def __init__(
        self, call: Call, parts: Parts, *, ordered: bool, patience: float, ends: QueueEnds | None = None
    ) -> None:
        """`call` is what is asked of the function, for no records yet. `ordered` allows one batch in flight for each key.
        `patience` is for how many seconds a batch that no handler could take is tried again.
        """
        self._call = call
        self._accounts = Accounts(ends, call.mapping, parts) if ends else None
        self._maximum_retry_attempts = ends.maximum_retry_attempts if ends else -1
        self._dispatch = parts.dispatch
        self._settler = parts.settler
        self._door = parts.door
        self._world = parts.world
        self._patience = patience
        self._gate = KeyGate() if ordered else None

    async def process(self, batch: Sequence[Record], dropped: Sequence[Record]) -> Worked:
        if self._gate is None:
            left = await self._attempts(batch, dropped)
        else:
            left = await self._in_order(batch, dropped, self._gate)
        if left is None:
            return Worked(unfinished=batch)
        if self._gate is None or not left:
            return DONE
        return Worked(failed_keys=frozenset(record.key for record in left))

    async def fresh(self, filling: Sequence[Record]) -> tuple[Sequence[Record], float]:
        """A queue knows how old its messages may be by itself."""
        return filling, math.inf

    async def idle(self) -> None:
        """Nothing is ever due."""

    async def _in_order(
        self, batch: Sequence[Record], dropped: Sequence[Record], gate: KeyGate
    ) -> Sequence[Record] | None:
        # Not with the batch: a message in flight locks its group, which need not be one of the batch.
        await self._settler.done(dropped)
        keys = {record.key for record in batch if record.key is not None}
        if not await self._door.unless_closed(partial(gate.enter, keys)):
            return None
        try:
            return await self._attempts(batch, ())
        finally:
            gate.leave(keys)

    async def _attempts(self, batch: Sequence[Record], dropped: Sequence[Record]) -> Sequence[Record] | None:
        """Invoke until something is decided, and settle; returns what is left to the queue, None when the door closed before a
        handler saw the batch. `dropped` is settled either way."""
        attempt = Attempt(refusals=0, since=self._world.clock())
        called = 0
        while True:
            call = self._call.of(batch, envelope.event(batch))
            witness = self._accounts.witness(batch, call.event) if self._accounts else None
            invoke = self._dispatch.invoke_again if attempt.refusals else self._dispatch.invoke
            outcome = await invoke(witness.of(call) if witness else call)
            if outcome is None:
                break
            decision = decide(
                outcome,
                batch,
                attempt,
                patience=self._patience,
                now=self._world.clock(),
                chance=self._world.chance(),
                maximum_retry_attempts=self._maximum_retry_attempts,
            )
            if isinstance(decision, Settle):
                return await self._settle(decision, dropped, witness, outcome)
            pause = partial(self._dispatch.wait_refused, decision.at, in_vain=called >= CALLS)
            if not await self._door.unless_closed(pause):
                break
            called += self._world.clock() < decision.at
            attempt = Attempt(attempt.refusals + 1, attempt.since)
        await self._settler.done(dropped)
        return None

    async def _settle(
        self, decision: Settle, dropped: Sequence[Record], witness: Witness | None, outcome: Outcome
    ) -> Sequence[Record]:
        """Returns what is left to the queue."""
        if self._accounts is None or witness is None:
            await self._settler.done([*decision.done, *dropped])
            await self._settler.leave(decision.failed)
            return decision.failed
        await self._settler.done(dropped)
        await self._settler.leave(decision.failed)
        unsaid = await self._accounts.finish(decision.done, witness, outcome)
        kept = await self._accounts.give_up(decision.given_up, witness, outcome)
        return [*decision.failed, *unsaid, *kept]
