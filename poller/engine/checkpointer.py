"""Writes the checkpoints of one mapping: the newest of each shard, at most once a second, all shards together.

Batches settle hundreds of times a second, and only the last position matters: what is written less often costs at most repeats
after a crash, never a record. A checkpoint that cannot be written stays noted and is tried again until it is, so a store that
is down holds up nothing but itself, and says so. Nothing here waits for leases, and no lease waits for it (law 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from poller.core.retry import backoff
from poller.errors import StoreError
from poller.model import Trouble

if TYPE_CHECKING:
    from poller.engine.invoker import World
    from poller.model import Checkpoint
    from poller.ports import CheckpointStore, Observer

#: Seconds between two writes of one shard.
INTERVAL = 1.0


@dataclass(slots=True, eq=False)
class _Unsaved:
    """What is noted of one shard and not written yet."""

    checkpoint: Checkpoint
    since: float
    """When the oldest progress in it was noted, on the loop's clock."""
    failures: int = 0
    retry_at: float = 0.0
    writing: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while it is written: a shard's checkpoints are saved in order."""


class Checkpointer:
    """Saves what is noted. Its `run` is owned by whoever runs the mapping; `flush` comes after it, at a stop."""

    def __init__(self, mapping: str, store: CheckpointStore, observer: Observer, world: World) -> None:
        self.trouble: str | None = None
        """What keeps checkpoints from being written at the moment."""
        self._mapping = mapping
        self._store = store
        self._observer = observer
        self._world = world
        self._unsaved: dict[str, _Unsaved] = {}
        self._noted = anyio.Event()
        self._told: set[str] = set()
        self._failing = 0

    def __repr__(self) -> str:
        return f"<Checkpointer {self._mapping}: {len(self._unsaved)} shards unsaved>"

    def note(self, shard: str, checkpoint: Checkpoint) -> None:
        """Take `checkpoint` as the shard's newest; it must not lie before the one that was noted last."""
        entry = self._unsaved.get(shard)
        if entry is None:
            self._unsaved[shard] = _Unsaved(checkpoint, anyio.current_time())
            self._noted.set()
        else:
            entry.checkpoint = checkpoint

    def age(self, shard: str) -> float:
        """Seconds for which progress of `shard` has been waiting to be saved; 0 when all of it is."""
        entry = self._unsaved.get(shard)
        return anyio.current_time() - entry.since if entry else 0.0

    @property
    def unsaved(self) -> int:
        """How many shards have progress that is not saved."""
        return len(self._unsaved)

    # --- writing --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write for ever; cancelled in the middle, what it was writing is still noted."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._noted.wait()
                now = anyio.current_time()
                self._told.clear()
                for shard, entry in self._unsaved.items():
                    # A save that hangs holds up its own shard and no other.
                    if entry.retry_at <= now and not entry.writing.locked():
                        tasks.start_soon(self._save, shard, entry)
                await anyio.sleep_until(now + INTERVAL)
                if not self._unsaved:
                    self._noted = anyio.Event()

    async def flush(self) -> None:
        """Write all that is noted now, and try again what fails, until nothing is left. The caller bounds it in time."""
        while self._unsaved:
            self._told.clear()
            async with anyio.create_task_group() as tasks:
                for shard, entry in self._unsaved.items():
                    tasks.start_soon(self._save, shard, entry)
            await anyio.sleep_until(min((entry.retry_at for entry in self._unsaved.values()), default=0.0))

    async def _save(self, shard: str, entry: _Unsaved) -> None:
        async with entry.writing:
            if self._unsaved.get(shard) is not entry:
                return  # written while this one waited
            checkpoint, began = entry.checkpoint, anyio.current_time()
            try:
                # False means that the store is further on already, through another owner of the shard: just as good.
                await self._store.save(self._mapping, shard, checkpoint)
            except StoreError as error:
                self._failed(entry, error)
                return
            self._recovered(entry)
            if entry.checkpoint is checkpoint:
                del self._unsaved[shard]
            else:
                entry.since = began

    def _failed(self, entry: _Unsaved, error: StoreError) -> None:
        pause = backoff(entry.failures, self._world.chance())
        self._failing += not entry.failures
        entry.failures += 1
        entry.retry_at = anyio.current_time() + pause
        self.trouble = f"checkpoints cannot be saved: {error}"
        # A store that is down fails for a thousand shards at a time, which is one fact.
        if self.trouble not in self._told:
            self._told.add(self.trouble)
            self._observer.trouble(Trouble(self._mapping, self.trouble, pause))

    def _recovered(self, entry: _Unsaved) -> None:
        if entry.failures:
            entry.failures, entry.retry_at = 0, 0.0
            self._failing -= 1
            if not self._failing:
                self.trouble = None
