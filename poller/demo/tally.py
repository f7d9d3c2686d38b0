"""Where every order went: the account that the demo closes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.demo.traffic import Sent


@dataclass(frozen=True)
class Tally:
    """Each order that was sent is counted once; `repeated` counts the times that one was handled again."""

    sent: int
    handled: int
    filtered: int
    dead_lettered: int
    left: int
    lost: int
    repeated: int

    def __str__(self) -> str:
        text = (
            f"demo: sent {self.sent}, handled {self.handled}, filtered {self.filtered}, "
            f"dead-lettered {self.dead_lettered}, lost {self.lost}"
        )
        if self.left:
            text += f"; {self.left} still queued"
        if self.repeated:
            text += f"; {self.repeated} handled more than once, as at-least-once allows"
        return text


def settle(sent: Sent, ledger: Sequence[str], dead: set[str], left: set[str]) -> Tally:
    """Account for all of `sent`: `ledger` names the handled orders, `dead` and `left` what the queues hold.

    A draft that is nowhere was filtered out, as it was to be. Any other order that is nowhere is lost.
    """
    handled = sent.all & set(ledger)
    open_ = sent.all - handled
    dead_lettered = open_ & dead
    queued = (open_ - dead_lettered) & left
    nowhere = open_ - dead_lettered - queued
    return Tally(
        sent=len(sent.all),
        handled=len(handled),
        filtered=len(nowhere & sent.drafts),
        dead_lettered=len(dead_lettered),
        left=len(queued),
        lost=len(nowhere - sent.drafts),
        repeated=len(ledger) - len(set(ledger)),
    )
