"""The laws of the engine over a fleet: workers that come, go, die and are cut off, while shards split and functions fail.

Nothing is lost. A key is handled in its order. A checkpoint passes nothing that is open. And no worker begins an invocation of
a shard whose lease another one has, whatever became of its way to the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import anyio
import pytest
import trio
from hypothesis import HealthCheck, given, register_random, settings
from hypothesis import strategies as st

from poller.errors import Unreachable
from poller.stores.memory import MemoryStore
from tests.engine.fakes import ERROR, OK, in_virtual_time
from tests.engine.fleet import Fleet, Member
from tests.engine.stream_fakes import Stream

if TYPE_CHECKING:
    from poller.model import Checkpoint, Lease

register_random(trio._core._run._r)

KEYS = "abcdefgh"
ACTS = [
    "join",
    "join",
    "stop",
    "kill",
    "cut",
    "mend",
    "pause",
    "resume",
    "lose",
    "refuse",
    "late",
    "slow",
    "unlisted",
]


@dataclass(frozen=True)
class Put:
    keys: str


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Reshard:
    kind: str
    which: int


@dataclass(frozen=True)
class Act:
    """Something that happens to one of the workers; a new one joins where there is none."""

    name: str
    which: int


steps = st.lists(
    st.one_of(
        st.builds(Put, st.text(KEYS, min_size=1, max_size=12)),
        st.builds(Wait, st.sampled_from([0.0, 0.3, 1.0, 3.0, 7.0, 12.0, 30.0])),
        st.builds(Reshard, st.sampled_from(["split", "merge"]), st.integers(0, 10)),
        st.builds(
            Act,
            st.sampled_from(ACTS),
            st.integers(0, 5),
        ),
    ),
    max_size=18,
)


class WatchedTable(MemoryStore):
    """Tells the trial of every checkpoint before it is taken."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        self.trial.check_checkpoint(lease, checkpoint)
        return await super().renew(lease, checkpoint, load)

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        self.trial.check_checkpoint(lease, checkpoint)
        return await super().release(lease, checkpoint, to)


@dataclass
class Trial:
    """A fleet through a random course."""

    settings: dict
    seconds: float
    failing: list[bool]
    broken: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.fleet = Fleet(Stream(2), WatchedTable(self), self.seconds, self.settings)
        self.homes = dict.fromkeys(KEYS[::2], "shard-000") | dict.fromkeys(KEYS[1::2], "shard-001")
        self.put: dict[str, list[str]] = {}
        self.shard_of: dict[str, str] = {}
        self.alive: list[Member] = []
        self.names = count(1)

    # --- the course -----------------------------------------------------------------------------------------------------

    async def run(self, course):
        async with anyio.create_task_group() as self.tasks:
            self.join()
            for step in course:
                match step:
                    case Put(keys):
                        self.send(keys)
                    case Wait(seconds):
                        await anyio.sleep(seconds)
                    case Reshard(kind, which):
                        self.reshard(kind, which)
                    case Act(name, which):
                        await self.act(name, which)
            await self.finish()

    def join(self):
        member = self.fleet.member(f"w{next(self.names)}")
        member.reply = self.reply
        member.began = lambda ids: self.check_owner(member, ids)
        self.alive.append(member)
        self.tasks.start_soon(member.live)

    async def reply(self, call):
        return ERROR if self.failing and self.failing.pop() else OK

    async def act(self, name, which):
        if name == "join" or not self.alive:
            if len(self.alive) < 4:
                self.join()
            return
        member = self.alive[which % len(self.alive)]
        match name:
            case "kill":
                self.alive.remove(member)
                member.kill()
            case "stop" if member.keeper:
                self.alive.remove(member)
                member.keeper.quiet()
            case "cut":
                member.way.cut = True
            case "mend":
                member.way.mend()
            case "refuse":
                # Of shards that are there and have no rows, each other one.
                member.way.unwritten |= set(self.without_rows()[which % 2 :: 2])
            case "late":
                member.way.late |= set(self.without_rows())
            case "slow":
                member.way.slow = {"add": 2.0, "list": 0.5 * which, "release": 1.0, "claim": 0.3 * which}
            case "unlisted":
                self.fleet.stream.listing_failures += [Unreachable("down")] * which
            case "lose":
                member.way.loses |= {"claim", "renew", "release"}
            case "pause" if member.keeper:
                member.keeper.close()
            case "resume" if member.keeper:
                member.keeper.open()

    def without_rows(self):
        """Shards that the table does not have yet, and some that come later."""
        names = (f"shard-{number:03}" for number in range(2 * len(self.fleet.stream.listed) + 4))
        return [name for name in names if ("clicks", name) not in self.fleet.table._leases]

    def send(self, keys):
        for key in keys:
            (number,) = self.fleet.stream.put(shard=self.homes[key], key=key)
            self.put.setdefault(key, []).append(number)
            self.shard_of[number] = self.homes[key]

    def reshard(self, kind, which):
        homes = sorted(set(self.homes.values()))
        home = homes[which % len(homes)]
        if kind == "split":
            one, other = self.fleet.stream.split(home)
            keys = [key for key in KEYS if self.homes[key] == home]
            for index, key in enumerate(keys):
                self.homes[key] = one if index < len(keys) // 2 else other
        elif len(homes) > 1:
            neighbour = homes[(which + 1) % len(homes)]
            merged = self.fleet.stream.merge(home, neighbour)
            self.homes = {key: merged if at in (home, neighbour) else at for key, at in self.homes.items()}

    async def finish(self):
        """From here on all is well: whatever is left must be handled."""
        for member in self.alive:
            member.way.mend()
            if member.keeper:
                member.keeper.open()
        self.failing.clear()
        self.fleet.stream.listing_failures.clear()
        if not self.alive:
            self.join()
        for _ in range(60):
            await anyio.sleep(20.0)
            if not self.missing() and all(member.keeper for member in self.alive):
                break
        await anyio.sleep(5.0)
        for member in self.alive:
            if member.keeper:
                member.keeper.quiet()
        with anyio.fail_after(60.0):
            for member in self.alive:
                await member.ended.wait()
        self.tasks.cancel_scope.cancel()

    # --- the laws -------------------------------------------------------------------------------------------------------

    def missing(self):
        handled = set(self.fleet.handled)
        return [number for numbers in self.put.values() for number in numbers if number not in handled]

    def check_owner(self, member, ids):
        for shard in {self.shard_of[id_] for id_ in ids}:
            row = self.fleet.table._leases["clicks", shard]
            if row.owner != member.name:
                self.broken.append(
                    f"{member.name} begins {ids} of {shard}, which {row.owner or 'nobody'} has"
                )

    def check_checkpoint(self, lease, checkpoint):
        handled = set(self.fleet.handled)
        for record in self.fleet.stream.records[lease.shard]:
            behind = checkpoint.finished or int(record.id) <= int(checkpoint.sequence_number or 0)
            if behind and record.id not in handled:
                self.broken.append(f"the checkpoint of {lease.shard} is at {checkpoint}: {record.id} is open")

    def check(self):
        assert self.broken == []
        assert self.missing() == []
        first = list(dict.fromkeys(self.fleet.handled))
        for numbers in self.put.values():
            assert [number for number in first if number in numbers] == numbers
        assert all(not number for number in self.fleet.stream.reading.values())
        owners = {lease.owner for lease in self.fleet.table._leases.values() if not lease.checkpoint.finished}
        assert owners <= {"", *self.fleet.members.keys() - {member.name for member in self.alive}}


def run_trial(settings_of_mapping, course, seconds, failing):
    async def body():
        trial = Trial(settings_of_mapping, seconds, list(failing))
        await trial.run(course)
        trial.check()

    in_virtual_time(body)


COURSES = {
    "settings_of_mapping": st.fixed_dictionaries(
        {"batch_size": st.sampled_from([1, 3, 100]), "lanes": st.sampled_from([1, 3])}
    ),
    "course": steps,
    "seconds": st.sampled_from([0.0, 0.2, 2.0]),
    "failing": st.lists(st.booleans(), max_size=20),
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**COURSES)
def test_the_laws_hold_over_a_fleet(settings_of_mapping, course, seconds, failing):
    run_trial(settings_of_mapping, course, seconds, failing)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**COURSES)
def test_the_laws_hold_over_many_more_courses_of_a_fleet(settings_of_mapping, course, seconds, failing):
    run_trial(settings_of_mapping, course, seconds, failing)
