"""What keeps a mapping from its work at the moment, over all of its parts.

A thousand shards of one stream fail together when the network does: that is one mapping that is degraded, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.model import MappingState, StateChanged, Trouble

if TYPE_CHECKING:
    from collections.abc import Hashable

    from poller.ports import Observer


class Health:
    """The troubles of one mapping, one for each part that has any."""

    def __init__(self, mapping: str, observer: Observer) -> None:
        self._mapping = mapping
        self._observer = observer
        self._troubles: dict[Hashable, str] = {}

    def __repr__(self) -> str:
        return f"<Health {self._mapping}: {len(self._troubles)} parts in trouble>"

    @property
    def trouble(self) -> str | None:
        """The oldest trouble that is still there."""
        return next(iter(self._troubles.values()), None)

    def of(self, part: Hashable) -> str:
        """The trouble of one part; empty for none."""
        return self._troubles.get(part, "")

    def failed(self, part: Hashable, error: str, pause: float) -> None:
        """Tell that `part` is in trouble, and tries again in `pause` seconds."""
        self._observer.trouble(Trouble(self._mapping, error, pause))
        self.waits(part, error)

    def waits(self, part: Hashable, error: str) -> None:
        """Note that `part` is in trouble of which others tell."""
        well = not self._troubles
        self._troubles[part] = error
        if well:
            self._observer.state_changed(StateChanged(self._mapping, MappingState.DEGRADED, error))

    def recovered(self, part: Hashable) -> None:
        """Tell that `part` is out of trouble, if it was in any."""
        if self._troubles.pop(part, None) is not None and not self._troubles:
            self._observer.state_changed(StateChanged(self._mapping, MappingState.RUNNING))

    def forget(self, part: Hashable) -> None:
        """Drop the trouble of a part that no longer tries."""
        self._troubles.pop(part, None)
