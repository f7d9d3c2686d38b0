"""Concurrency limits: a function's places inside the daemon's places.

An invocation needs one place of its function and one of the daemon. Both are taken in one step or not at all, so nothing
holds one while it waits for the other. Who waits is served in turn within a function, and functions with waiters take turns,
so a function with a long queue cannot starve the others. A place that becomes free is handed to its next owner at once: a
newcomer never overtakes.
"""

from __future__ import annotations

from collections import deque

import anyio


class Places:
    """The daemon's places, shared by all functions."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._waiting: deque[Slots] = deque()

    def __repr__(self) -> str:
        return f"<Places {self.taken}/{self.total} taken, {len(self._waiting)} functions waiting>"

    def resize(self, total: int) -> None:
        """Change the number of places; more are handed out at once, fewer as they come free."""
        self.total = total
        before = -1
        while self.taken != before:
            before = self.taken
            self.hand_out()

    def enlist(self, slots: Slots) -> None:
        """Remember that `slots` has a waiter."""
        if slots not in self._waiting:
            self._waiting.append(slots)

    def hand_out(self) -> None:
        """Give free places to waiters, function by function."""
        for _ in range(len(self._waiting)):
            if self.taken >= self.total:
                # Whose turn it is stays where it is until the next place is free.
                break
            slots = self._waiting.popleft()
            if slots.serve():
                self._waiting.append(slots)


class Slots:
    """One function's places, at most `total`."""

    def __init__(self, places: Places, total: int | None) -> None:
        self._places = places
        self._own_total = total
        self.taken = 0
        self.refused: deque[anyio.Event] = deque()
        """Who wait with a batch that the function did not take although it had a place; set when they are to try again."""
        self._waiters: deque[anyio.Event] = deque()

    def __repr__(self) -> str:
        return f"<Slots {self.taken}/{self.total} taken, {len(self._waiters)} waiting>"

    @property
    def total(self) -> int:
        """The most invocations that this function can have in flight."""
        return self._places.total if self._own_total is None else min(self._own_total, self._places.total)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiters)

    def _free(self) -> bool:
        return self.taken < self.total and self._places.taken < self._places.total

    def _take(self) -> None:
        self.taken += 1
        self._places.taken += 1

    def try_acquire(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self._waiters or not self._free():
            return False
        self._take()
        return True

    async def acquire(self) -> None:
        """Take a place, waiting for it in turn."""
        if self.try_acquire():
            return
        served = anyio.Event()
        self._waiters.append(served)
        self._places.enlist(self)
        try:
            await served.wait()
        except BaseException:
            if served.is_set():
                self.release()
            else:
                self._waiters.remove(served)
            raise

    def release(self) -> None:
        """Give a place back."""
        self.taken -= 1
        self._places.taken -= 1
        self._places.hand_out()

    def serve(self) -> bool:
        """Hand a place to the next waiter if one is free; True while more wait."""
        if self._waiters and self._free():
            self._take()
            self._waiters.popleft().set()
        return bool(self._waiters)
