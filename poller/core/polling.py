"""How many receives a queue deserves at the same time.

Every receive is a request that costs money and, when the queue is empty, brings nothing: an idle queue gets one long poll
at a time. A receive that comes back full says that there is a backlog, so one more may be in flight; since each of them
says so, the number doubles with each round trip until the functions are busy. An empty one takes a receive away again.
In between (a few messages each time) the number is right and stays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Polling:
    """The number of receives allowed in flight, between 1 and `ceiling`."""

    ceiling: int
    allowed: int = 1

    def came_back(self, *, asked: int, got: int) -> None:
        """Learn from one receive that asked for `asked` records and got `got`."""
        if got == 0:
            self.allowed = max(1, self.allowed - 1)
        elif got >= asked:
            self.allowed = min(self.ceiling, self.allowed + 1)

    def failed(self) -> None:
        """Learn from a receive that failed: one at a time until the source answers again."""
        self.allowed = 1
