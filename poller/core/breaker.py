"""Whether a mapping calls its function at the moment: a circuit breaker, which Lambda has not.

Each receive of a message counts towards its queue's dead-letter queue, each attempt at a stream's batch towards its retries.
While a function fails whatever it is given, both are burnt for nothing. So after so many failures in a row the mapping stops,
and asks again with one batch at a time::

    closed --so many failures in a row--> open --the pause is over--> half-open --the probe succeeds--> ramping --> closed
                                          ^  ^----the probe fails---------'                                |
                                          '------as many failures in a row as may be in flight-------------'

* *closed*: everything runs. Failures are counted over all workers or lanes, in the order in which they end.
* *open*: nothing is received and nothing invoked. Each opening without a closing in between doubles the pause, to a maximum.
* *half-open*: one invocation, the probe. A batch that was not invoked (throttled, no worker) or a receive that brought nothing
  says nothing about the function: the circuit stays half-open.
* *ramping*: 2 invocations in flight, then 4, 8, ...: each time as many have succeeded as are allowed, twice as many are. A full
  round at the mapping's ceiling closes the circuit. One failure does not open it again: a poison record among good ones would,
  at every try, and a mapping that has one would never get out. As many in a row as are allowed do, or as many as opened it at
  first if that is less.

A failure is an invocation that has finished nothing of its batch: an error, a time-out, a partial response that leaves nothing
done. Anything else that ran ends the row. What was in flight when the circuit opened is older than the opening and is heard no
more: `generation` tells it from what came later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.core.retry import backoff
from poller.model import CircuitState, Failed, NotInvoked, PartlyFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.model import Outcome, Record

#: Characters of a function's error message that a status shows.
SHOWN = 200


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """What a mapping says about its circuit breaker; times in seconds."""

    consecutive_failures: int
    pause: float
    maximum_pause: float


class Circuit:
    """The circuit of one mapping; closed at first."""

    def __init__(self, policy: CircuitPolicy) -> None:
        self.policy = policy
        self.state = CircuitState.CLOSED
        self.generation = 0
        """Grows each time that the circuit opens."""
        self.failures = 0
        """In a row, up to now."""
        self.error = ""
        """The last one, in a line."""
        self.probe_at = math.inf
        """When an open circuit is to be probed; infinite in every other state."""
        self.allowed: float = math.inf
        """Invocations that may be in flight."""
        self._openings = 0
        self._succeeded = 0

    def __repr__(self) -> str:
        return f"<Circuit {self.state}, {self.failures} failures in a row, {self.allowed} allowed>"

    def heard(self, done: bool, error: str, *, now: float, chance: float, ceiling: int) -> None:
        """Learn from an invocation that began in this generation: whether any of its batch is `done`, else the `error`.

        `ceiling` is the most invocations that the mapping can have in flight; `chance` in [0, 1) spreads the probes of many
        mappings.
        """
        if not done:
            self.failures += 1
            self.error = error
            if self.failures >= self._bearable:
                self._open(now, chance)
            return
        self.failures = 0
        if self.state is not CircuitState.CLOSED:
            self._ramp(ceiling)

    @property
    def _bearable(self) -> float:
        """Failures in a row that open the circuit. When it is half-open, those of before it opened count on."""
        return min(self.policy.consecutive_failures, self.allowed)

    def _open(self, now: float, chance: float) -> None:
        policy = self.policy
        self.state = CircuitState.OPEN
        self.probe_at = now + backoff(self._openings, chance, policy.pause, policy.maximum_pause)
        self.allowed = 0
        self.generation += 1
        self._openings += 1

    def probe(self) -> None:
        """Let an open circuit's probe through, now."""
        self.state, self.allowed, self.probe_at = CircuitState.HALF_OPEN, 1, math.inf
        self._succeeded = 0

    def _ramp(self, ceiling: int) -> None:
        self.state = CircuitState.RAMPING
        self._succeeded += 1
        if self._succeeded < self.allowed:
            return
        self._succeeded = 0
        if self.allowed >= ceiling:
            self.state, self.allowed = CircuitState.CLOSED, math.inf
        else:
            self.allowed = min(2 * self.allowed, ceiling)
        if self.allowed >= self.policy.consecutive_failures:
            # As hard to open as a closed one: the outage that made the pauses long is over.
            self._openings = 0

    def describe(self, now: float) -> str:
        """What a status says of it; empty while it is no trouble."""
        failed = (
            f"{self.failures} invocation{'' if self.failures == 1 else 's'} in a row failed ({self.error})"
        )
        match self.state:
            case CircuitState.OPEN:
                return f"circuit open: {failed}; next probe in {max(0.0, self.probe_at - now):.0f} s"
            case CircuitState.HALF_OPEN:
                return f"circuit half-open: probing with one batch, since {failed}"
            case _:
                return ""


def verdict(outcome: Outcome, records: Sequence[Record], *, ordered: bool) -> tuple[bool, str] | None:
    """Whether anything of a batch is done, and the error in a line if not; None when no handler saw it.

    With `ordered`, as in a stream, nothing counts as done behind the first record that failed.
    """
    match outcome:
        case NotInvoked():
            return None
        case Failed(error):
            return False, _line(f"{error.error_type}: {error.error_message}")
        case PartlyFailed(ids):
            first = records[:1] if ordered else records
            return any(record.id not in ids for record in first), "no record of the batch was finished"
        case _:
            return True, ""


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
