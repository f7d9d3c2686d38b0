"""Tumbling windows: which window a record belongs to, what its state is, when it ends (spec 5.9).

A window is a stretch of `length` seconds, from floor(t / length) * length up to but excluding its end. A shard has one window
at a time; each invocation gets the state that the one before it returned. The life of a window:

    none --(a record)--> open --(each invocation: the state it returned)--> open --(it is due)--> final invoke --> none

An open window is due when

* the next record arrived at or after its end; or
* its shard has ended; or
* its shard is read up to the tip and has brought nothing for `QUIET` seconds, and `GRACE` seconds have passed since the end of
  the window; or
* its state has outgrown `STATE_LIMIT`: the end is early then, and the final invoke carries that state.

The final invoke has no records and its state is dropped. After it the next record opens the window it belongs to, with an
empty state; after an early end that may be the same window again.

A record that arrived before the open window began (arrival times are approximate) is late: it joins the open window, since its
own has been closed. A batch never mixes windows otherwise.

The state is kept as JSON text, because a handler may change what it is given and then fail. With the bounds of its window
it is part of the shard's checkpoint, so it survives a restart together with the position that it belongs to.

Where Lambda's behaviour is not known: after a partial response the state that came with it is carried on; a `state` of null
is an empty one; a final invoke may leave `state` out, as nothing reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from poller.core.quoting import quote
from poller.model import Failed, FunctionError, PartlyFailed, Returned, Succeeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.model import Outcome, Record, Reply

#: Bytes of a state as JSON; a window whose state is longer ends early.
STATE_LIMIT = 1024 * 1024
#: Bytes of a state in a response: less than Lambda allows a response in all, so that its window's last event can hold it.
RESPONSE_LIMIT = 5 * 1024 * 1024
#: Seconds after its end at which the window of a shard that brings nothing more is closed.
GRACE = 120.0
#: Seconds for which a shard has to bring nothing until it counts as read up to the tip. A single read of DynamoDB may be empty
#: although more is to come, and what comes after a pause or a restart can be of a window that ended long ago.
QUIET = 30.0


@dataclass(frozen=True, slots=True)
class Window:
    """An open window: its bounds in Unix seconds, and its state as JSON text."""

    start: int
    end: int
    state: str = "{}"

    @property
    def outgrown(self) -> bool:
        """The state is too large for the window to go on."""
        # A character is at least one byte and at most four: most states need not be encoded to know.
        limit = STATE_LIMIT
        return len(self.state) > limit or (len(self.state) > limit // 4 and len(self.state.encode()) > limit)

    @property
    def bounds(self) -> dict[str, str]:
        """The member `window` of an event."""
        return {"start": _iso(self.start), "end": _iso(self.end)}


def window_of(arrived: float, length: int) -> Window:
    """The window that a record belongs to by its arrival, with an empty state."""
    start = int(arrived // length) * length
    return Window(start, start + length)


def cut(window: Window | None, records: Sequence[Record], length: int) -> tuple[Window, int]:
    """The window of the next batch, and how many of `records` (at least one) are the most it can hold.

    That is none when the open window has to be closed first.
    """
    if window is None:
        window = window_of(records[0].arrived, length)
    for index, record in enumerate(records):
        if record.arrived >= window.end:
            return window, index
    return window, len(records)


def is_due(
    window: Window, following: Record | None, now: float, *, ended: bool, at_tip: bool, grace: float = GRACE
) -> bool:
    """Whether the final invoke of an open window comes next.

    `following` is the next record, None when there is none at hand; `ended` says that the shard has no more, `at_tip` that
    the shard has been read up to its newest record.
    """
    if window.outgrown:
        return True
    if following is not None:
        return following.arrived >= window.end
    return ended or (at_tip and now > window.end + grace)


def carry(window: Window, reply: Reply, outcome: Outcome) -> tuple[Outcome, Window]:
    """What an invocation with records means for its window: the outcome, and the window with its new state.

    `outcome` is what the reply means for the records. An invocation that gives no state has failed, and changes nothing.
    """
    if not isinstance(reply, Returned) or not isinstance(outcome, Succeeded | PartlyFailed):
        return outcome, window
    payload = reply.payload
    if not isinstance(payload, dict) or "state" not in payload:
        return _failed(
            f"The function returned {quote(payload)} where an object with state is expected"
        ), window
    state = payload["state"]
    if not isinstance(state, dict | None):
        return _failed(f"The function returned the state {quote(state)} where an object is expected"), window
    try:
        encoded = orjson.dumps(state or {})
    except TypeError as error:
        return _failed(f"The function returned a state that is not JSON: {error}"), window
    if len(encoded) > RESPONSE_LIMIT:
        # Taken, it would make an event that no function can get, for ever.
        return _failed(
            f"The function returned a state of {len(encoded)} bytes; {RESPONSE_LIMIT} are allowed"
        ), window
    return outcome, replace(window, state=encoded.decode())


def members(window: Window, *, final: bool) -> dict[str, Any]:
    """The members of an event that every window has (spec 2.4); the state is a fresh object each time."""
    return {
        "window": window.bounds,
        "state": orjson.loads(window.state),
        "isFinalInvokeForWindow": final,
        "isWindowTerminatedEarly": final and window.outgrown,
    }


def dump(window: Window | None) -> str:
    """A window as `Checkpoint.window` keeps it."""
    if window is None:
        return ""
    return orjson.dumps(
        {"start": window.start, "end": window.end, "state": orjson.Fragment(window.state)}
    ).decode()


def load(text: str) -> Window | None:
    """Bring back what `dump` made. Raises ValueError for anything else."""
    if not text:
        return None
    try:
        kept = orjson.loads(text)
        return Window(int(kept["start"]), int(kept["end"]), orjson.dumps(kept["state"]).decode())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{quote(text)} is not the state of a window") from error


def _failed(message: str) -> Failed:
    return Failed(FunctionError("Poller.InvalidWindowResponse", message), returned=True)


def _iso(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
