"""State in memory: for tests, and for mappings that may begin anew with the process."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from poller.core.positions import position
from poller.stores._memory_spool import MemorySpool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.model import Checkpoint


class MemoryStore:
    """A `poller.ports.CheckpointStore` that ends with the process."""

    def __init__(self) -> None:
        self.spool = self.jobs = MemorySpool()
        """What waits, and the jobs."""
        self._checkpoints: defaultdict[str, dict[str, Checkpoint]] = defaultdict(dict)

    def __repr__(self) -> str:
        return f"<MemoryStore of {sum(map(len, self._checkpoints.values()))} checkpoints>"

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        return dict(self._checkpoints.get(mapping, {}))

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        ours = position(checkpoint)
        stored = self._checkpoints[mapping].get(shard)
        if stored is not None and ours < position(stored):
            return False
        self._checkpoints[mapping][shard] = checkpoint
        return True

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._checkpoints[mapping].pop(shard, None)
            return
        position(checkpoint)
        self._checkpoints[mapping][shard] = checkpoint

    async def aclose(self) -> None:
        """Nothing to let go of."""
