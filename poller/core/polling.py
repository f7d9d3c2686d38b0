"""How many receives a queue deserves at the same time.

Every receive is a request that costs money and, when the queue is empty, brings nothing: an idle queue gets one long poll
at a time. Receives that come back full and at once say that there is a backlog: when as many in a row did as may be in
flight, one more may. An empty one halves the number. In between (a few messages each time, or full ones that had to wait) the
number is right and stays.

What "at once" means depends on the way to the queue, so it is taken from the fastest full receive. One that took more than
twice as long waited for its messages to be sent, or for its turn: more of them would wait longer and bring nothing more. One
that was alone had nobody to wait for, though: when a few of these in a row took so long, the way has become longer (messages
are larger, the network is another), and the fastest of them is the measure from then on.

How many batches are in functions at the same time is another matter: a worker that has its batch lets the next one receive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Seconds by which two receives may differ for no reason.
JITTER = 0.005
#: Full receives in a row, each alone, after which they are the measure.
ALONE = 10


@dataclass(slots=True)
class Polling:
    """The number of receives allowed in flight, between 1 and `ceiling`."""

    ceiling: int
    allowed: int = 1
    _full: int = 0
    _fastest: float = math.inf
    _alone: int = 0
    _fastest_alone: float = math.inf

    def came_back(self, *, asked: int, got: int, after: float) -> None:
        """Learn from one receive that asked for `asked` records and got `got` after so many seconds."""
        if got == 0:
            self.allowed = max(1, self.allowed // 2)
            self._full = 0
        elif got >= asked:
            self._fastest = min(self._fastest, after)
            if after <= 2 * self._fastest + JITTER:
                self._came_back_at_once()
            elif self.allowed == 1:
                self._came_back_alone(after)

    def _came_back_alone(self, after: float) -> None:
        self._alone += 1
        self._fastest_alone = min(self._fastest_alone, after)
        if self._alone == ALONE:
            self._fastest = self._fastest_alone
            self._forget_alone()

    def _forget_alone(self) -> None:
        self._alone, self._fastest_alone = 0, math.inf

    def _came_back_at_once(self) -> None:
        self._forget_alone()
        self._full += 1
        if self._full >= self.allowed:
            self.allowed = min(self.ceiling, self.allowed + 1)
            self._full = 0

    def failed(self) -> None:
        """Learn from a receive that failed, or brought what the function did not take: one at a time until that is over."""
        self.allowed = 1
        self._full = 0
