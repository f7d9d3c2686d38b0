"""The credentials of the role that a function works with: assumed by the daemon, given to workers as they start.

Credentials are replaced a margin before they expire, and with them the workers: none is given work that its credentials
might not outlast. While STS refuses, the present ones are used to their end; after that, and before the first have come, no
worker is started: invocations are throttled, as they are when there is no place for them, and nothing is lost.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from poller.errors import AwsError
from poller.runtimes.process import NotNow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from poller.aws.session import AwsSession

#: Seconds before their end at which credentials are replaced; more for a function that may run for longer.
MARGIN = 300.0
#: Seconds between tries, the first and the longest.
PAUSES = (1.0, 60.0)
#: Seconds after which the wall clock is looked at again: a machine that slept has lost that time.
LOOK_EVERY = 30.0
#: Seconds that a start waits for credentials.
PATIENCE = 10.0
#: Characters of a session's name.
_NAME_LENGTH = 64

_log = logging.getLogger("poller")


@dataclass(frozen=True, slots=True)
class Lease:
    """Credentials for a time."""

    variables: Mapping[str, str]
    expires: float
    """Unix time."""

    def __repr__(self) -> str:
        return f"<Lease until {self.expires}>"


async def assume(session: AwsSession, role_arn: str, function: str, region: str) -> Lease:
    """Ask STS; raises AwsError."""
    name = re.sub(r"[^\w+=,.@-]", "-", f"poller-{function}")[:_NAME_LENGTH]
    params = {"RoleArn": role_arn, "RoleSessionName": name}
    reply: dict[str, Any] = await session.call("sts", "AssumeRole", params, region=region)
    found = reply["Credentials"]
    variables = {
        "AWS_ACCESS_KEY_ID": found["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
        "AWS_SESSION_TOKEN": found["SessionToken"],
    }
    return Lease(variables, found["Expiration"].timestamp())


class Role:
    """The role of one function; `keep` is its life, until `close`."""

    def __init__(
        self,
        function: str,
        arn: str,
        region: str,
        timeout: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settled = anyio.Event()
        """Set when STS was asked once, whatever it said."""
        self._function = function
        self._arn = arn
        self._region = region
        self._wall = wall
        self._margin = max(MARGIN, timeout + 60)
        self._lease: Lease | None = None
        self._reason = "STS has not answered yet"
        self._closed = anyio.Event()

    def variables(self) -> Mapping[str, str]:
        """What a worker that starts now finds in its environment; raises NotNow."""
        if self._lease is None or self._lease.expires <= self._wall():
            raise NotNow(f"there are no credentials of {self._arn}: {self._reason}")
        return self._lease.variables

    async def keep(self, session: Callable[[], AwsSession], renewed: Callable[[], None]) -> None:
        """Keep credentials that are good; `renewed` is called when workers that have older ones are to go."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep, session, renewed)
            await self._closed.wait()
            tasks.cancel_scope.cancel()

    def close(self) -> None:
        """End `keep`."""
        self._closed.set()

    async def _keep(self, session: Callable[[], AwsSession], renewed: Callable[[], None]) -> None:
        pause = PAUSES[0]
        while True:
            try:
                lease = await assume(session(), self._arn, self._function, self._region)
            except Exception as error:
                # What has no name of ours may hold anything, secrets too.
                self._failed(str(error) if isinstance(error, AwsError) else type(error).__name__, renewed)
                again = self._retry_at(pause)
                pause = min(2 * pause, PAUSES[1])
            else:
                self._lease, self._reason = lease, "they are out of date as they come: is the clock right?"
                renewed()
                again = self._renew_at(lease)
                pause = PAUSES[0]
            self.settled.set()
            await self._wait(again)

    def _failed(self, reason: str, renewed: Callable[[], None]) -> None:
        self._reason = reason
        if self._lease is not None and self._lease.expires <= self._wall():
            self._lease = None
            renewed()
        kept = (
            "no worker starts until it can" if self._lease is None else "present credentials are still good"
        )
        extra = {"function": self._function}
        _log.error(
            "function %s: %s cannot be assumed: %s; %s", self._function, self._arn, reason, kept, extra=extra
        )

    def _renew_at(self, lease: Lease) -> float:
        # Of short-lived ones half of the time is used.
        now = self._wall()
        return max(now + PAUSES[0], lease.expires - min(self._margin, (lease.expires - now) / 2))

    def _retry_at(self, pause: float) -> float:
        again = self._wall() + pause
        return again if self._lease is None else min(again, self._lease.expires)

    async def _wait(self, until: float) -> None:
        while (left := until - self._wall()) > 0:  # noqa: ASYNC110  (no event tells that a machine slept)
            await anyio.sleep(min(left, LOOK_EVERY))
