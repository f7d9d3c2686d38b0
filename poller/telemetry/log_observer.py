"""Writes the facts that an operator has to know to the log."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from poller.model import CircuitState, Failed, LeaseEvent, MappingState, NotInvoked, PartlyFailed
from poller.telemetry.log_format import clip

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from poller.model import (
        ApiRequest,
        CircuitChanged,
        Delivered,
        DeliveryFailed,
        Dropped,
        FilteredOut,
        Invoked,
        LeaseChanged,
        Parked,
        Received,
        Settled,
        Spooled,
        StaleReceipts,
        StateChanged,
        Trimmed,
        Trouble,
        Unparked,
    )

#: Seconds for which the same trouble is not said again.
QUIET = 60.0
#: Kinds of trouble that are remembered; the oldest is forgotten first.
MAX_KINDS = 256
#: Characters of a key that are logged: it may be anything, a person's address too.
KEY_LENGTH = 64

# A refusal of AWS may quote the request that it refused, headers and all.
_SECRET = re.compile(
    r"(?i)((?:security[-_]?token|session[-_]?token|secret\w*key|authorization)\W{1,5})[^\s,;'\"&]+"
)
_log = logging.getLogger("poller")


class LogObserver:
    """Writes to the log what an operator has to know; everyday facts at level debug only.

    It names records by number, never by receipt handle or body.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._recent = _Recent(clock)

    def received(self, fact: Received) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("received %d records", fact.records, extra={"mapping": fact.mapping})

    def filtered_out(self, fact: FilteredOut) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("filtered out %d records", fact.records, extra={"mapping": fact.mapping})

    def invoked(self, fact: Invoked) -> None:
        outcome = fact.outcome
        if isinstance(outcome, Failed):
            self._failed(fact, outcome)
        elif isinstance(outcome, PartlyFailed):
            _log.info(
                "%s did not finish %d of %d records; %s",
                fact.function,
                fact.failed,
                fact.records,
                _what_next(fact, "these"),
                extra=_invocation(fact),
            )
        elif isinstance(outcome, NotInvoked):
            reason = _redacted(outcome.reason)
            self._once(
                (fact.mapping, reason), f"{fact.function} was not invoked: {reason}", _invocation(fact)
            )
        elif _log.isEnabledFor(logging.DEBUG):
            message = "%s finished %d records in %.3f s"
            _log.debug(message, fact.function, fact.records, fact.duration, extra=_invocation(fact))

    def settled(self, fact: Settled) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            message = "deleted %d records, left %d, released %d, committed %d"
            counts = (fact.deleted, fact.left, fact.released, fact.committed)
            _log.debug(message, *counts, extra={"mapping": fact.mapping})

    def stale_receipts(self, fact: StaleReceipts) -> None:
        _log.warning(
            "%d messages were processed but not deleted, because their receipts had expired: they come back. "
            "Compare the queue's visibility timeout with the function's timeout",
            fact.records,
            extra={"mapping": fact.mapping, "records": fact.records, "message_id": fact.example},
        )

    def trimmed(self, fact: Trimmed) -> None:
        lost = "" if fact.lost_seconds is None else f", about {fact.lost_seconds:.0f} s of them"
        _log.error(
            "%s removed records before they were read%s: reading goes on with the oldest that are left",
            fact.shard,
            lost,
            extra={"mapping": fact.mapping, "shard": fact.shard, "after": fact.after},
        )

    def dropped(self, fact: Dropped) -> None:
        _log.error(
            "%s: %d records are given up and dropped: %s; an on-failure destination that takes them would keep them",
            fact.shard,
            fact.records,
            fact.condition,
            extra={"mapping": fact.mapping, "shard": fact.shard, "first": fact.first, "last": fact.last},
        )

    def delivered(self, fact: Delivered) -> None:
        if fact.succeeded:
            if _log.isEnabledFor(logging.DEBUG):
                message = "%s: %d records sent to the on-success destination"
                _log.debug(message, _place(fact), fact.records, extra=_delivery(fact))
            return
        _log.warning(
            "%s: %d records are given up and sent to the on-failure destination: %s",
            _place(fact),
            fact.records,
            fact.condition,
            extra=_delivery(fact),
        )

    def spooled(self, fact: Spooled) -> None:
        _log.warning(
            "%s: %d records are given up and spooled until their destination takes them: %s%s",
            _place(fact),
            fact.records,
            fact.condition,
            f"; it says: {_redacted(fact.error)}" if fact.error else "",
            extra=_delivery(fact),
        )

    def delivery_failed(self, fact: DeliveryFailed) -> None:
        error = _redacted(fact.error)
        kind = "on-success" if fact.succeeded else "on-failure"
        if fact.retry_in is None:
            stays = "; it stays in the spool" if fact.spooled and not fact.succeeded else ""
            message = "%s: the %s destination never takes this%s: %s"
            _log.error(message, _place(fact), kind, stays, error, extra=_delivery(fact))
            return
        if fact.spooled:
            message = f"what is spooled waits for its destination: {error}; next try in {fact.retry_in:.1f} s"
            self._once(("spool", fact.mapping, error), message, {"mapping": fact.mapping})
            return
        self._once(
            (fact.mapping, error),
            f"{_place(fact)} waits for its {kind} destination: {error}; next try in {fact.retry_in:.1f} s",
            _delivery(fact),
        )

    def parked(self, fact: Parked) -> None:
        key = clip(fact.key, KEY_LENGTH)
        extra = {"mapping": fact.mapping, "shard": fact.shard, "key": key}
        if fact.error_type or fact.error_message:
            error = fact.error_type and f"{fact.error_type}: "
            _log.warning(
                "%s: the key %s is parked: %s%s; its records wait in the spool, poller resume takes them up",
                fact.shard,
                key,
                error,
                clip(fact.error_message, 1000),
                extra=extra,
            )
        elif _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: %d records follow their parked key", fact.shard, fact.records, extra=extra)

    def unparked(self, fact: Unparked) -> None:
        key = clip(fact.key, KEY_LENGTH)
        extra = {"mapping": fact.mapping, "key": key}
        if fact.free:
            _log.info(
                "nothing of the key %s is parked any more: its records are live again", key, extra=extra
            )
        elif _log.isEnabledFor(logging.DEBUG):
            _log.debug("%d parked records of the key %s are handled", fact.records, key, extra=extra)

    def state_changed(self, fact: StateChanged) -> None:
        _log.log(
            logging.ERROR if fact.state is MappingState.FAILED or fact.error else logging.INFO,
            "%s is %s%s",
            fact.mapping,
            fact.state.value,
            f": {_redacted(fact.reason)}" if fact.reason else "",
            extra={"mapping": fact.mapping, "state": fact.state.value},
            exc_info=fact.error,
        )

    def circuit_changed(self, fact: CircuitChanged) -> None:
        _log.log(
            logging.WARNING if fact.state is CircuitState.OPEN else logging.INFO,
            "%s: %s",
            fact.mapping,
            _circuit(fact),
            extra={"mapping": fact.mapping, "circuit": fact.state.value},
        )

    def lease_changed(self, fact: LeaseChanged) -> None:
        details = {"mapping": fact.mapping, "shard": fact.shard}
        if fact.event is LeaseEvent.RENEWAL_FAILED:
            # A table that is down fails for a thousand leases at a time, which is one thing to tell.
            text = f"leases cannot be renewed: {_redacted(fact.reason)}"
            self._once((fact.mapping, text), f"trouble: {text}", {"mapping": fact.mapping})
            return
        lost = fact.event is LeaseEvent.LOST
        _log.log(
            logging.WARNING if lost else logging.INFO,
            "%s: lease of %s %s",
            fact.mapping,
            fact.shard,
            _lease(fact),
            extra=details,
        )

    def trouble(self, fact: Trouble) -> None:
        error = _redacted(fact.error)
        again = f"; next try in {fact.retry_in:.1f} s" if fact.retry_in else ""
        self._once((fact.mapping, error), f"trouble: {error}{again}", {"mapping": fact.mapping})

    def api_request(self, fact: ApiRequest) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s %s: %s in %.3f s", fact.service, fact.operation, fact.outcome, fact.duration)

    def _failed(self, fact: Invoked, outcome: Failed) -> None:
        error = outcome.error
        _log.warning(
            "%s %s: %s: %s; %s",
            fact.function,
            "timed out" if error.timed_out else "failed",
            error.error_type,
            clip(error.error_message, 1000),
            _what_next(fact, f"its {fact.failed} records"),
            extra={**_invocation(fact), "error_type": error.error_type, "stack_trace": error.stack_trace},
        )

    def _once(self, key: Hashable, message: str, extra: Mapping[str, object]) -> None:
        """Warn unless the same was said within the last minute."""
        suppressed = self._recent.note(key)
        if suppressed is None:
            return
        again = f" (and {suppressed} times more since this was last said)" if suppressed else ""
        _log.warning("%s%s", message, again, extra=extra)


class _Recent:
    """Which kinds of trouble were said lately, and how often each was kept quiet since."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[Hashable, tuple[float, int]] = {}

    def note(self, key: Hashable) -> int | None:
        """Return how many were kept quiet when `key` may be said now, None when it may not."""
        now = self._clock()
        said, suppressed = self._said.get(key, (now - QUIET, 0))
        if now - said < QUIET:
            self._said[key] = said, suppressed + 1
            return None
        self._said.pop(key, None)
        if len(self._said) >= MAX_KINDS:
            del self._said[next(iter(self._said))]
        self._said[key] = now, 0
        return suppressed


def _invocation(fact: Invoked) -> dict[str, object]:
    extra: dict[str, object] = {
        "mapping": fact.mapping,
        "function": fact.function,
        "request_id": fact.request_id,
        "records": fact.records,
    }
    return {**extra, "shard": fact.shard} if fact.shard else extra


def _place(fact: Delivered | Spooled | DeliveryFailed) -> str:
    return fact.shard or fact.mapping


def _delivery(fact: Delivered | Spooled | DeliveryFailed) -> dict[str, object]:
    return {"mapping": fact.mapping, "shard": fact.shard} if fact.shard else {"mapping": fact.mapping}


def _what_next(fact: Invoked, records: str) -> str:
    if fact.shard:
        return f"{records} are tried again or given up, as the mapping's policy says"
    if not fact.records:
        return "what it was sent as a destination is sent again"
    return f"{records} come back after the queue's visibility timeout, unless that was their last try"


def _circuit(fact: CircuitChanged) -> str:
    match fact.state:
        case CircuitState.OPEN:
            what = "circuit open" if fact.tripped else "the probe failed, so the circuit stays open"
            return (
                f"{what}: {fact.failures} invocations in a row failed ({_redacted(fact.error)});"
                f" next probe in {fact.probe_in:.0f} s"
            )
        case CircuitState.HALF_OPEN:
            return "circuit half-open: probing with one batch"
        case CircuitState.RAMPING:
            return "the probe succeeded: circuit ramping up"
        case _:
            return "circuit closed"


def _lease(fact: LeaseChanged) -> str:
    match fact.event:
        case LeaseEvent.CLAIMED:
            return f"claimed, {fact.other} had it before" if fact.other else "claimed"
        case LeaseEvent.HANDED_OVER:
            return f"handed over to {fact.other}"
        case LeaseEvent.LOST:
            return f"lost: {fact.reason}"
        case _:
            return fact.event.value


def _redacted(error: str) -> str:
    return clip(_SECRET.sub(r"\1***", error), 1000)
