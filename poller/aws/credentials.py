"""The credentials of a session: shared, cheap to ask for, and loaded afresh when AWS refuses them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Seconds for which a key is used without asking whether it expires. Refreshing begins 15 minutes ahead, so
#: this is no risk.
CHECK_EVERY = 10.0
#: Seconds between two loads from scratch, which read files and may ask STS or the instance.
RENEW_EVERY = 5.0
#: Seconds for which a failed load is told to all who ask: it costs as much as one that succeeds, and a thousand queues ask.
FAILED_FOR = 1.0
#: What botocore lets through when a file, a program or a server is not there, or says what makes no sense.
_UNFIT = (AttributeError, LookupError, OSError, TypeError, ValueError)


class Frozen(NamedTuple):
    """One consistent set of credentials, with the fields that botocore's signers read."""

    access_key: str
    secret_key: str
    token: str | None = None
    account_id: str | None = None

    def __repr__(self) -> str:
        return f"<Frozen {self.access_key}>"


class Credentials:
    """Credentials as aiobotocore's clients and our wires ask for them; also a session's provider of them.

    `load` finds credentials from scratch and returns an aiobotocore credentials object, which refreshes
    itself when it can.
    """

    method = "poller"

    def __init__(
        self, load: Callable[[], Awaitable[Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._clock = clock
        self._lock = asyncio.Lock()
        self._source: Any = None
        self._frozen: Frozen | None = None
        self._checked = float("-inf")
        self._renewed = float("-inf")
        self._changed = False
        self._failure: Exception | None = None
        self._failed = float("-inf")

    async def load_credentials(self) -> Credentials:
        """Be the credential provider of a session."""
        return self

    async def get_account_id(self) -> str | None:
        """Return the account, where the credentials name it."""
        return (await self.get_frozen_credentials()).account_id

    def get_deferred_property(self, _name: str) -> Callable[[], Awaitable[str | None]]:
        """Return what gives the account id: the one property that botocore asks for in this way."""
        return self.get_account_id

    async def get_frozen_credentials(self) -> Frozen:
        """Return credentials that are good now. Raises botocore's errors when there are none."""
        if frozen := self.cached():
            return frozen
        async with self._lock:
            if frozen := self.cached():
                return frozen
            if self._failure is not None and self._clock() - self._failed < FAILED_FOR:
                raise self._failure.with_traceback(None)
            return await self._check()

    def cached(self) -> Frozen | None:
        """Return credentials that were good a moment ago, or None when it takes waiting to know."""
        return self._frozen if self._clock() - self._checked < CHECK_EVERY else None

    async def renew(self, begun: float) -> bool:
        """Load the credentials from scratch, unless that was done after `begun`; True when they changed.

        For static keys this reads the files again, so keys that are rotated on disk come into use. Where
        nobody rotates them, the many readers that ask do not make it happen all the time.
        """
        async with self._lock:
            if self._renewed >= begun:
                return self._changed
            if self._clock() - self._renewed < RENEW_EVERY:
                return False
            self._renewed, self._changed = self._clock(), False
            before, self._source = self._frozen, None
            self._changed = await self._check() != before
            return self._changed

    async def _check(self) -> Frozen:
        try:
            self._source, found = await self._ask()
        except Exception as error:
            self._failure, self._failed = error, self._clock()
            raise
        self._checked = self._clock()
        frozen = Frozen(found.access_key, found.secret_key, found.token, getattr(found, "account_id", None))
        # The same object while nothing changes: signers keep what they derived from it.
        if self._frozen is None or frozen != self._frozen:
            self._frozen = frozen
        return self._frozen

    async def _ask(self) -> tuple[Any, Any]:
        """Return a source, and what it says now."""
        from botocore.exceptions import BotoCoreError, CredentialRetrievalError

        try:
            source = self._source or await self._load()
            return source, await source.get_frozen_credentials()
        except BotoCoreError:  # of which some are OSErrors
            raise
        except RuntimeError as error:  # botocore's word for "refreshed, and expired even so"
            raise CredentialRetrievalError(provider="refresh", error_msg=str(error)) from error
        except _UNFIT as error:
            said = f"{type(error).__name__}: {error}"
            raise CredentialRetrievalError(provider="their source", error_msg=said) from error
