"""How much passes a second, smoothed: what is worth moving shards for is what stays so for a while."""

from __future__ import annotations

from math import exp

#: Seconds after which what was before counts a third.
SMOOTHING = 60.0
#: Seconds from the beginning to the first rate.
WARM_UP = 10.0
#: Bytes a second that a shard costs in any case: idle ones weigh the same, whatever trickles.
LEAST = 1024.0


class Meter:
    """The bytes a second of one shard. `rate` is that of who read it before; None for nobody."""

    def __init__(self, rate: float | None, now: float) -> None:
        self._rate = rate
        self._began = self._read = now
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Meter {self._rate}>"

    def count(self, size: int) -> None:
        """Count bytes that have passed."""
        self._bytes += size

    def rate(self, now: float) -> float | None:
        """Bytes a second, never less than `LEAST`; None before that is known."""
        passed = now - self._read
        if now - self._began >= WARM_UP and passed > 0:
            rate = self._bytes / passed
            weight = 1.0 if self._rate is None else 1.0 - exp(-passed / SMOOTHING)
            self._rate = max(LEAST, (self._rate or 0.0) * (1.0 - weight) + rate * weight)
            self._read, self._bytes = now, 0
        return self._rate
