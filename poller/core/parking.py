"""Keys that are parked: what their records are called where they wait, and when which key is tried again.

The first probe of a key comes one interval after it was parked. Each one that fails doubles the pause, up to sixteen intervals
or an hour; one that got on with some records begins anew. An interval of 0 is no probe at all: such a key waits for a command.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poller.model import Checkpoint

#: Doublings of the pause between two probes of one key.
DOUBLINGS = 4
#: Seconds that the pause grows to at most, unless the interval itself is longer.
LONGEST_PAUSE = 3600.0


def entry_id(shard_id: str, position: Checkpoint) -> str:
    """The id of a record's entry: the same each time that the record is read. `position` is that behind the record."""
    return f"{shard_id}:{place(position)}"


def place(position: Checkpoint) -> str:
    """What tells a record from all others of its shard: those of one aggregate share a sequence number."""
    sub = position.sub_sequence_number
    return f"{position.sequence_number}{'' if sub is None else f'.{sub}'}"


def probe_pause(failures: int, interval: float) -> float:
    """Seconds to the next probe of a key of which `failures` in a row have failed; infinite for no probes."""
    if not interval:
        return math.inf
    grown = interval * 2.0 ** min(failures, DOUBLINGS)
    return max(interval, min(grown, LONGEST_PAUSE))


class Schedule:
    """Which key is due when, on any monotonic clock. A key that was popped is set again when it is to come again."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        # What was set before is still in here, and passed over when its time comes.
        self._queue: list[tuple[float, int, str]] = []
        self._order = count()

    def __repr__(self) -> str:
        return f"<Schedule of {len(self._due)} keys>"

    def set(self, key: str, due: float) -> None:
        """Let `key` be due at `due`, whatever was set before; infinite for never by itself."""
        if due == math.inf:
            self._due.pop(key, None)
            return
        self._due[key] = due
        heappush(self._queue, (due, next(self._order), key))
        if len(self._queue) > 2 * len(self._due) + 16:
            self._queue = [(due, next(self._order), key) for key, due in self._due.items()]
            heapify(self._queue)

    def due(self, key: str) -> float | None:
        """When `key` is due; None for never by itself."""
        return self._due.get(key)

    @property
    def next(self) -> float:
        """When the next key is due; infinite for none."""
        while self._queue:
            due, _, key = self._queue[0]
            if self._due.get(key) == due:
                return due
            heappop(self._queue)
        return math.inf

    def pop(self, now: float) -> str | None:
        """The key that has been due for longest; None when none is."""
        if self.next > now:
            return None
        key = heappop(self._queue)[2]
        del self._due[key]
        return key
