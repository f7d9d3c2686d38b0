"""The table of leases as one worker uses it, and why it cannot at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from poller.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poller.ports import LeaseStore

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class LeaseTable:
    """Keeps, by what fails, why it did last: a table that can be written says nothing of whether it can be read."""

    def __init__(self, store: LeaseStore) -> None:
        self.store = store
        self._troubles: dict[str, str] = {}

    @property
    def trouble(self) -> str | None:
        """Why the table cannot be used at the moment."""
        return next(iter(self._troubles.values()), None)

    def fails(self, use: str, error: StoreError) -> None:
        """`use` of it has failed, and what was wanted will be wanted again."""
        self._troubles[use] = str(error)

    def works(self, *uses: str) -> None:
        """These uses work again, or are not wanted any more."""
        for use in uses:
            self._troubles.pop(use, None)

    async def attempt(self, call: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T | None:
        """Ask the table; None when it cannot be used now: whoever asks, asks again."""
        try:
            answer = await call(*arguments)
        except StoreError as error:
            self.fails("other", error)
            return None
        self.works("other")
        return answer
