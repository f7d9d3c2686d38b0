"""When a shard may be read, and when it should be.

*May*: the source allows so many reads and bytes a second for each shard, all readers together. The reads are spread evenly
rather than let go in bursts, because others may read the same shard.

*Should*: a shard that had records is read again as soon as it may be. One that is quiet is read less and less often: the
pause is an eighth of the time for which nothing came, so whoever puts a record every second waits little, and a shard that
has been silent for a minute costs next to nothing. The first record brings the quick reads back.
"""

from __future__ import annotations

#: Seconds between two reads of a shard that has just become quiet.
SHORTEST_PAUSE = 0.2
#: The part of the quiet time that a pause lasts.
PART = 1 / 8
#: Seconds for which a shard counts as quiet when its first reader comes: a thousand of them should not all be read five times
#: a second because poller has started.
QUIET_AT_FIRST = 4.0
#: The part of a pause that is left to chance, so that shards opened together drift apart.
JITTER = 0.2


class Pace:
    """The reads of one shard. All times are of a monotonic clock."""

    def __init__(
        self, reads_per_second: float, bytes_per_second: float, idle_interval: float, now: float
    ) -> None:
        self.slot = now
        """The earliest time of the next read."""
        self._interval = 1 / reads_per_second
        self._bytes_per_second = bytes_per_second
        self._longest = max(SHORTEST_PAUSE, idle_interval)
        self._last_records = now - QUIET_AT_FIRST

    def sent(self, now: float) -> None:
        """A read goes out."""
        self.slot = now + self._interval

    def came(self, sent: float, now: float, size: int) -> None:
        """The read that was sent at `sent` brought records of `size` bytes."""
        self._last_records = now
        self.slot = max(self.slot, sent + size / self._bytes_per_second)

    def pause(self, now: float, chance: float) -> float:
        """Seconds to wait after a read that brought nothing; `chance` lies in [0, 1)."""
        pause = min(self._longest, max(SHORTEST_PAUSE, (now - self._last_records) * PART))
        return pause * (1 - JITTER * chance)
