"""Which of two checkpoints of one shard is further on.

Stores compare text more readily than numbers of 56 digits, so a position is written as text that sorts as the shard is read.
A store then needs one condition, `new >= stored`, and can leave it to its database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.errors import StoreError

if TYPE_CHECKING:
    from poller.model import Checkpoint

#: Digits of the longest sequence number; AWS stays below 130.
LONGEST = 999
#: What the integers of every database hold.
_SUB_SEQUENCE_LIMIT = 2**63
#: Sorts after every digit.
_WHOLE_RECORD = "~"


def position(checkpoint: Checkpoint) -> str:
    """Text that sorts as checkpoints of one shard follow each other.

    First what is finished, which is final; then the sequence number as a number, none being the lowest; then the
    sub-sequence number, the whole record being the highest. Time and window are no part of it. Raises
    `poller.errors.StoreError` for what no source gives out.
    """
    digits = _digits(checkpoint.sequence_number)
    return f"{checkpoint.finished:d}.{len(digits):03d}.{digits}.{_sub(checkpoint.sub_sequence_number)}"


def _digits(number: str) -> str:
    if not number:
        return ""
    if not (number.isascii() and number.isdigit() and len(number) <= LONGEST):
        raise StoreError(f"{number[:60]!r} is not a sequence number")
    return number.lstrip("0") or "0"


def _sub(number: int | None) -> str:
    if number is None:
        return _WHOLE_RECORD
    if not 0 <= number < _SUB_SEQUENCE_LIMIT:
        raise StoreError(f"{number} is not a sub-sequence number")
    return f"{number:019d}"
