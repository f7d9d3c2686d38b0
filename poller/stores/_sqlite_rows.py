"""A checkpoint as a row of the state file."""

from __future__ import annotations

from poller.core.positions import position
from poller.model import Checkpoint

#: For the values of `checkpoint_row`.
ROW = "(?, ?, ?, ?, ?, ?, ?, ?)"
KEEP_THE_FURTHEST = """
    ON CONFLICT (mapping, shard) DO UPDATE SET
        position = excluded.position, sequence_number = excluded.sequence_number,
        sub_sequence_number = excluded.sub_sequence_number, since = excluded.since, window = excluded.window,
        finished = excluded.finished
    WHERE excluded.position >= checkpoints.position
"""
#: For the arguments of `checkpoint_of`.
COLUMNS = "position, sequence_number, sub_sequence_number, since, window, finished"


def checkpoint_row(mapping: str, shard: str, where: str, at: Checkpoint) -> tuple[object, ...]:
    """All columns; `where` is the position of `at`."""
    return (
        mapping,
        shard,
        where,
        at.sequence_number,
        at.sub_sequence_number,
        at.since,
        at.window,
        at.finished,
    )


def checkpoint_of(
    stored: str, sequence_number: str, sub: int | None, since: float, window: str, finished: int
) -> Checkpoint:
    """The checkpoint of a row; raises StoreError, TypeError or ValueError for one that makes no sense."""
    checkpoint = Checkpoint(sequence_number, sub, since, window, bool(finished))
    if position(checkpoint) != stored:
        raise ValueError(f"{sequence_number} is not at {stored}")
    return checkpoint
