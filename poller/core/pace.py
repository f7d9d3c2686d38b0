"""So many records a second, as an allowance that fills with time.

Whoever hands out records may go into debt for as many as one batch holds, and then waits until the debt is paid: so the rate
holds over any longer time, and no batch is cut to fit it. What is not used is kept for a second at most, so a pause is followed
by no burst beyond that.
"""

from __future__ import annotations


class Allowance:
    """`rate` records a second; None for as many as there are. All times are of one clock, in seconds."""

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._left = 0.0
        self._at: float | None = None

    def __repr__(self) -> str:
        return f"<Allowance {self.rate or 'no limit'}: {self._left:.1f} left>"

    def wait(self, now: float) -> float:
        """Seconds until the next records may be handed out; 0 for now."""
        if self.rate is None:
            return 0.0
        self._fill(now, self.rate)
        return max(0.0, -self._left / self.rate)

    def spend(self, records: int, now: float) -> None:
        """So many are handed out."""
        if self.rate is not None:
            self._fill(now, self.rate)
            self._left -= records

    def _fill(self, now: float, rate: float) -> None:
        if self._at is not None:
            self._left = min(rate, self._left + (now - self._at) * rate)
        self._at = now
