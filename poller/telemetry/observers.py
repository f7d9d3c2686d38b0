"""Hands each fact to several observers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

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
    from poller.ports import Observer

_log = logging.getLogger(__name__)
_Fact = TypeVar("_Fact")


class Fanout:
    """An observer made of `observers`, told in this order.

    One that raises is logged once for each kind of fact; the caller and the others never notice.
    """

    def __init__(self, *observers: Observer) -> None:
        # Bound once: the engine tells thousands of facts a second.
        self._received = tuple(observer.received for observer in observers)
        self._filtered_out = tuple(observer.filtered_out for observer in observers)
        self._invoked = tuple(observer.invoked for observer in observers)
        self._settled = tuple(observer.settled for observer in observers)
        self._stale_receipts = tuple(observer.stale_receipts for observer in observers)
        self._trimmed = tuple(observer.trimmed for observer in observers)
        self._dropped = tuple(observer.dropped for observer in observers)
        self._delivered = tuple(observer.delivered for observer in observers)
        self._spooled = tuple(observer.spooled for observer in observers)
        self._delivery_failed = tuple(observer.delivery_failed for observer in observers)
        self._parked = tuple(observer.parked for observer in observers)
        self._unparked = tuple(observer.unparked for observer in observers)
        self._state_changed = tuple(observer.state_changed for observer in observers)
        self._circuit_changed = tuple(observer.circuit_changed for observer in observers)
        self._lease_changed = tuple(observer.lease_changed for observer in observers)
        self._trouble = tuple(observer.trouble for observer in observers)
        self._api_request = tuple(observer.api_request for observer in observers)
        self._broken: set[Callable[..., None]] = set()

    def received(self, fact: Received) -> None:
        self._tell(self._received, fact)

    def filtered_out(self, fact: FilteredOut) -> None:
        self._tell(self._filtered_out, fact)

    def invoked(self, fact: Invoked) -> None:
        self._tell(self._invoked, fact)

    def settled(self, fact: Settled) -> None:
        self._tell(self._settled, fact)

    def stale_receipts(self, fact: StaleReceipts) -> None:
        self._tell(self._stale_receipts, fact)

    def trimmed(self, fact: Trimmed) -> None:
        self._tell(self._trimmed, fact)

    def dropped(self, fact: Dropped) -> None:
        self._tell(self._dropped, fact)

    def delivered(self, fact: Delivered) -> None:
        self._tell(self._delivered, fact)

    def spooled(self, fact: Spooled) -> None:
        self._tell(self._spooled, fact)

    def delivery_failed(self, fact: DeliveryFailed) -> None:
        self._tell(self._delivery_failed, fact)

    def parked(self, fact: Parked) -> None:
        self._tell(self._parked, fact)

    def unparked(self, fact: Unparked) -> None:
        self._tell(self._unparked, fact)

    def state_changed(self, fact: StateChanged) -> None:
        self._tell(self._state_changed, fact)

    def circuit_changed(self, fact: CircuitChanged) -> None:
        self._tell(self._circuit_changed, fact)

    def lease_changed(self, fact: LeaseChanged) -> None:
        self._tell(self._lease_changed, fact)

    def trouble(self, fact: Trouble) -> None:
        self._tell(self._trouble, fact)

    def api_request(self, fact: ApiRequest) -> None:
        self._tell(self._api_request, fact)

    def _tell(self, listeners: tuple[Callable[[_Fact], None], ...], fact: _Fact) -> None:
        for listener in listeners:
            try:
                listener(fact)
            except Exception:
                self._complain(listener, fact)

    def _complain(self, listener: Callable[[_Fact], None], fact: _Fact) -> None:
        if listener in self._broken:
            return
        self._broken.add(listener)
        _log.exception(
            "a bug in poller: an observer cannot take this kind of fact; said once",
            extra={
                "observer": getattr(listener, "__qualname__", repr(listener)),
                "fact": type(fact).__name__,
            },
        )
