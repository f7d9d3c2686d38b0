"""Workers of a fleet over one memory store, in virtual time: how leases are held, handed over and lost."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio

from poller.core.leases import FAILOVER_TIME
from poller.engine.lease_keeper import BURIED, CLAIMING, SHUNNED, LeaseKeeper
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Listing, Worker
from poller.stores.memory import MemoryStore
from tests.engine.fakes import Recorder, settle_down, virtual, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CLICKS = frozenset({"clicks"})


class Table(MemoryStore):
    """A memory store that can be down, hang, or lose the answer of what it has done, for one worker or for all."""

    def __init__(self, shards: int = 0) -> None:
        super().__init__()
        self.down: set[str] = set()
        self.hangs: set[str] = set()
        self.loses: set[str] = set()
        self.calls: list[str] = []
        self._leases = {("clicks", f"s{at}"): Lease("clicks", f"s{at}") for at in range(shards)}

    async def _before(self, verb: str) -> None:
        self.calls.append(verb)
        if verb in self.hangs:
            await anyio.sleep_forever()
        if verb in self.down:
            raise StoreError("the table is down")

    def _after(self, verb: str) -> None:
        if verb in self.loses:
            self.loses.discard(verb)
            raise StoreError("the answer is lost")

    async def list(self) -> Listing:
        await self._before("list")
        return await super().list()

    async def beat(self, worker: Worker) -> None:
        await self._before("beat")
        await super().beat(worker)

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        await self._before("claim")
        row = await super().claim(lease, worker)
        self._after("claim")
        return row

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        await self._before("renew")
        row = await super().renew(lease, checkpoint, load)
        self._after("renew")
        return row

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        await self._before("release")
        released = await super().release(lease, checkpoint, to)
        self._after("release")
        return released

    def owners(self) -> dict[str, str]:
        return {lease.shard: lease.owner for lease in self._leases.values()}

    def steal(self, shard: str, owner: str) -> None:
        lease = self._leases["clicks", shard]
        self._put(Lease("clicks", shard, owner=owner, counter=lease.counter + 1, checkpoint=lease.checkpoint))


@dataclass(eq=False)
class Reading:
    """A tenant that does a record a second, unless it is idle."""

    lease: Lease
    began: float = field(default_factory=anyio.current_time)
    stuck: bool = False
    idle: bool = False
    batch: float = 0.0
    """Seconds that what is in flight takes."""
    drained: float | None = None
    evicted: float | None = None

    def checkpoint(self) -> Checkpoint:
        end = anyio.current_time() if self.drained is None else self.drained
        if self.idle:
            return self.lease.checkpoint
        start = int(self.lease.checkpoint.sequence_number or 0)
        return Checkpoint(str(start + int(end - self.began)))

    def load(self) -> float | None:
        return 1.0

    def lag(self) -> float | None:
        return None if self.idle else 7.0

    def progresses(self) -> bool:
        return not self.stuck

    async def drain(self) -> None:
        await anyio.sleep(self.batch)
        self.drained = anyio.current_time()

    def evict(self) -> None:
        assert self.evicted is None, "once"
        self.evicted = anyio.current_time()


class Member:
    """A keeper and what it has opened."""

    def __init__(self, name: str, table: Table) -> None:
        self.readings: list[Reading] = []
        self.observer = Recorder()
        self.keeper = LeaseKeeper(Worker(name, frozenset()), table, self.observer, world())
        self.keeper.enlist("clicks", self._open)
        self.batch = 0.0
        self.idle = False

    def _open(self, lease: Lease) -> Reading:
        reading = Reading(lease, batch=self.batch, idle=self.idle)
        self.readings.append(reading)
        return reading

    @property
    def shards(self) -> set[str]:
        return {lease.shard for lease in self.keeper.leases}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Member]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.keeper.run)
            yield self
            tasks.cancel_scope.cancel()


# --- taking -------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_worker_takes_everything_there_is_when_it_has_seen_nobody_else():
    table = Table(3)
    async with Member("w1", table).running() as one:
        await anyio.sleep(0.5)
        assert not one.shards, "somebody may come at the same time"
        await anyio.sleep(1.0)
        assert one.shards == {"s0", "s1", "s2"}
        assert repr(one.keeper) == "<LeaseKeeper w1: 3 leases>"
        assert [worker.id for worker in (await table.list()).workers] == ["w1"]


@virtual
async def test_workers_that_come_together_share_at_once():
    table = Table(12)
    async with Member("w1", table).running() as one, Member("w2", table).running() as two:
        await anyio.sleep(2.0)
        assert one.shards | two.shards == set(table.owners())
        assert len(table.calls) < 30
        assert abs(len(one.shards) - len(two.shards)) <= 2


@virtual
async def test_an_idle_lease_is_written_once_in_five_seconds():
    table = Table(1)
    one = Member("w1", table)
    one.idle = True
    async with one.running():
        await anyio.sleep(101.5)
        assert 18 <= table.calls.count("renew") <= 20
        (lease,) = (await table.list()).leases
        assert lease.load == 1.0


@virtual
async def test_a_busy_lease_is_written_once_a_second_with_its_checkpoint():
    table = Table(1)
    async with Member("w1", table).running() as one:
        await anyio.sleep(101.2)
        assert 90 <= table.calls.count("renew") <= 100
        (lease,) = (await table.list()).leases
        assert int(lease.checkpoint.sequence_number) >= 98
        assert one.keeper.unwritten(lease.key) <= 1.5
        assert one.keeper.unwritten(("clicks", "s9")) == 0.0


@virtual
async def test_a_mapping_that_is_withdrawn_is_handed_back_at_once_and_may_be_enlisted_again():
    table = Table(2)
    async with Member("w1", table).running() as one:
        await anyio.sleep(5.0)
        one.keeper.withdraw("clicks")
        with anyio.fail_after(0.1):
            await one.keeper.vacated("clicks")
        assert table.owners() == {"s0": "", "s1": ""}
        (worker,) = (await table.list()).workers
        assert worker.mappings == frozenset(), "the others learn of it at once"
        one.keeper.enlist("clicks", one._open)
        await anyio.sleep(2.2)
        assert one.shards == {"s0", "s1"}


@virtual
async def test_what_is_claimed_for_a_mapping_that_is_withdrawn_meanwhile_is_given_back():
    table = Table(1)
    async with Member("w1", table).running() as one:
        await anyio.sleep(0.9)
        slow(table, "claim", 1.0)
        await anyio.sleep(0.3)
        assert table.owners() == {"s0": "w1"}
        one.keeper.withdraw("clicks")
        await anyio.sleep(1.0)
        assert table.owners() == {"s0": ""}
        assert not one.readings


@virtual
async def test_a_lease_whose_shard_is_done_is_finished_for_all():
    table = Table(2)
    async with Member("w1", table).running() as one:
        await anyio.sleep(2.0)
        (reading,) = (reading for reading in one.readings if reading.lease.shard == "s0")
        reading.checkpoint = lambda: Checkpoint("9", finished=True)  # type: ignore[method-assign]
        table.down.add("release")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.keeper.complete, ("clicks", "s0"))
            await anyio.sleep(1.2)
            table.down.clear()
        assert table._leases["clicks", "s0"].checkpoint.finished
        assert one.observer.facts[-1].event == "finished"
        await anyio.sleep(60.0)
        assert one.shards == {"s1"}
        table.steal("s1", "w9")
        assert not await one.keeper.complete(("clicks", "s1"))
        assert not await one.keeper.complete(("clicks", "s1")), "there is nothing left of it"


@virtual
async def test_what_happens_to_leases_is_told_and_remembered():
    table = Table(2)
    async with Member("w1", table).running() as one, Member("w2", table).running():
        await anyio.sleep(30.0)
        table.down.add("renew")
        await anyio.sleep(6.0)
        table.down.clear()
        await anyio.sleep(1.0)
        table.steal("s0" if "s0" in one.shards else "s1", "w9")
        await anyio.sleep(3.0)
        events = [fact.event for fact in one.observer.facts]
        assert events[0] == "claimed"
        assert "renewal failed" in events
        assert events[-1] == "lost"
        assert [fact.event for _, fact in one.keeper.history] == [
            event for event in events if event != "renewal failed"
        ]


@virtual
async def test_a_claim_whose_answer_was_lost_is_made_good_at_the_next_look():
    table = Table(1)
    async with Member("w1", table).running() as one:
        table.loses.add("claim")
        await anyio.sleep(1.2)
        assert table.owners() == {"s0": "w1"}
        assert not one.shards
        assert one.keeper.trouble == "the answer is lost"
        await anyio.sleep(1.0)
        assert one.shards == {"s0"}, "it is claimed once more"
        assert one.keeper.trouble is None


def slow(table: Table, verb: str, seconds: float) -> None:
    """Let the answers of a verb take their time from now on."""
    quick = getattr(table, verb)

    async def call(*arguments: Any) -> Any:
        answer = await quick(*arguments)
        await anyio.sleep(seconds)
        return answer

    setattr(table, verb, call)


@virtual
async def test_a_claim_that_is_answered_too_late_is_not_taken():
    table = Table(1)
    slow(table, "claim", FAILOVER_TIME)
    async with Member("w1", table).running() as one:
        await anyio.sleep(40.0)
        assert not one.readings
        assert table.owners() == {"s0": "w1"}


@virtual
async def test_looks_during_a_slow_claim_open_one_tenant():
    table = Table(1)
    slow(table, "claim", 3.5)
    async with Member("w1", table).running() as one:
        await anyio.sleep(20.0)
        assert len(one.readings) == 1
        assert one.shards == {"s0"}


@virtual
async def test_a_claim_that_took_two_attempts_counts_from_the_first():
    table = Table(1)
    table.down.add("claim")
    async with Member("w1", table).running() as one:
        await anyio.sleep(3.2)
        table.down.clear()
        await anyio.sleep(0.9)
        table.hangs |= {"renew", "list"}
        await anyio.sleep(FAILOVER_TIME)
        (reading,) = one.readings
        assert reading.evicted is not None
        assert reading.evicted - reading.began <= FAILOVER_TIME - 2.0, (
            "the first may be the one that has happened"
        )


@virtual
async def test_claims_that_wait_for_a_place_are_not_made_after_a_stop():
    table = Table(CLAIMING + 50)
    slow(table, "claim", 1.0)
    one = Member("w1", table)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(1.5)
        one.keeper.quiet()
    assert table.calls.count("claim") == CLAIMING
    assert set(table.owners().values()) == {""}


# --- handing over -------------------------------------------------------------------------------------------------------


@virtual
async def test_who_joins_is_given_its_part_after_the_batches_in_flight_and_nothing_is_done_twice():
    table = Table(10)
    one, two = Member("w1", table), Member("w2", table)
    one.batch = 0.7
    async with one.running():
        await anyio.sleep(30.0)
        async with two.running():
            await anyio.sleep(10.0)
            assert len(two.shards) == len(one.shards) == 5
            for taken in two.readings:
                former = next(reading for reading in one.readings if reading.lease.shard == taken.lease.shard)
                assert former.drained is not None
                assert former.drained <= taken.began <= former.drained + 2.0
                assert taken.lease.checkpoint == former.checkpoint(), "zero repeats"
            await anyio.sleep(100.0)
            assert len(two.readings) == 5, "no thrash"


@virtual
async def test_a_wish_is_learned_from_a_renewal_as_well():
    table = Table(1)
    async with Member("w1", table).running() as one, Member("w2", table).running() as two:
        await anyio.sleep(3.0)
        owner, other = (one, two) if one.shards else (two, one)
        table.hangs.add("list")
        (lease,) = owner.keeper.leases
        assert await table.want(lease, other.keeper.worker.id)
        await anyio.sleep(FAILOVER_TIME / 2 + 1)
        assert table.owners() == {"s0": other.keeper.worker.id}


class Joint(Table):
    """A table that another program has leases in too; it says who of that is to be handed what."""

    def ask(self, shard: str, heir: str) -> None:
        self._put(replace(self._leases["clicks", shard], wanted_by=heir))

    async def list(self) -> Listing:
        listing = await super().list()
        asking = {lease.wanted_by for lease in listing.leases if lease.wanted_by.startswith("other-")}
        return replace(listing, foreign_heirs=frozenset(("clicks", name) for name in asking))


@virtual
async def test_a_worker_of_another_program_is_handed_what_it_asks_for_and_keeps_it_while_it_renews():
    table = Joint(4)
    async with Member("w1", table).running(), Member("w2", table).running():
        await anyio.sleep(30.0)
        table.ask("s0", "other-1")
        await anyio.sleep(2.0)
        assert table.owners()["s0"] == "other-1"
        for _ in range(20):
            table.steal("s0", "other-1")
            await anyio.sleep(3.0)
            assert table.owners()["s0"] == "other-1"
        await anyio.sleep(FAILOVER_TIME)
        assert table.owners()["s0"] in {"w1", "w2"}


@virtual
async def test_a_stop_hands_everything_back_with_its_checkpoint_and_the_others_go_on_within_two_seconds():
    table = Table(4)
    one, two = Member("w1", table), Member("w2", table)
    async with two.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(20.0)
        mine = set(one.shards)
        assert mine
        one.batch = 1.0
        one.keeper.quiet()
        stopped = anyio.current_time()
        await anyio.sleep(2.0)
        assert two.shards == set(table.owners())
        assert all(reading.evicted == stopped for reading in one.readings)
        assert [worker.id for worker in (await table.list()).workers] == ["w2"]


@virtual
async def test_a_worker_that_is_told_to_stop_takes_nothing_and_gives_back_what_it_just_took():
    table = Table(1)
    one = Member("w1", table)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(0.9)
        slow(table, "claim", 1.0)
        await anyio.sleep(0.3)
        assert table.owners() == {"s0": "w1"}
        one.keeper.quiet()
    assert table.owners() == {"s0": ""}


@virtual
async def test_a_release_that_fails_is_tried_again_and_one_that_has_happened_is_recognised():
    table = Table(2)
    one = Member("w1", table)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(2.0)
        table.down.add("release")
        one.keeper.quiet()
        await anyio.sleep(1.2)
        assert table.owners() == {"s0": "w1", "s1": "w1"}
        table.down.clear()
        table.loses.add("release")
    assert table.owners() == {"s0": "", "s1": ""}


@virtual
async def test_a_mapping_that_is_no_longer_run_is_given_up():
    table = Table(1)
    async with Member("w1", table).running() as one:
        await anyio.sleep(2.0)
        one.keeper._presence.worker = Worker("w1", frozenset(), one.keeper.worker.counter)
        await anyio.sleep(2.0)
        assert table.owners() == {"s0": ""}


@virtual
async def test_a_lease_of_a_mapping_that_is_not_run_is_left_to_expire_when_it_is_not_even_read():
    table = Table(1)
    async with Member("w1", table).running() as one:
        one.keeper._presence.worker = Worker("w1", frozenset(), 1)
        table.steal("s0", "w1")
        await anyio.sleep(5.0)
        assert table.owners() == {"s0": "w1"}
        assert not {"claim", "release"} & set(table.calls)


@virtual
async def test_nothing_is_renewed_behind_a_release():
    table = Table(1)
    one = Member("w1", table)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(2.0)
        slow(table, "release", 6.0)
        one.keeper.quiet()
    assert table.owners() == {"s0": ""}
    assert "renew" not in table.calls


# --- losing -------------------------------------------------------------------------------------------------------------


@virtual
async def test_shards_of_a_dead_worker_are_read_by_another_within_the_failover_time_and_a_look():
    table = Table(4)
    async with Member("w2", table).running() as two:
        async with Member("w1", table).running():
            await anyio.sleep(20.0)
            assert len(two.shards) == 2
        await anyio.sleep(FAILOVER_TIME + 1.5)
        assert two.shards == set(table.owners())
        await anyio.sleep((BURIED + 1) * FAILOVER_TIME)
        assert [worker.id for worker in (await table.list()).workers] == ["w2"], "the dead are buried"


@virtual
async def test_a_worker_that_cannot_renew_stops_reading_before_anybody_can_take_over():
    table = Table(1)
    for trouble in (table.down, table.hangs):
        async with Member(f"w{len(trouble)}", table).running() as one:
            await anyio.sleep(25.0)
            (reading,) = one.readings
            began = anyio.current_time()
            trouble |= {"renew", "list", "beat"}
            await anyio.sleep(FAILOVER_TIME)
            assert reading.evicted is not None
            assert began + 3.0 <= reading.evicted <= began + 0.95 * FAILOVER_TIME
            trouble.clear()
            await anyio.sleep(30.0)


@virtual
async def test_a_renewal_whose_answer_was_lost_goes_on_as_if_it_had_come():
    table = Table(1)
    async with Member("w1", table).running() as one:
        await anyio.sleep(3.0)
        table.loses.add("renew")
        await anyio.sleep(20.0)
        (reading,) = one.readings
        assert reading.evicted is None
        (lease,) = one.keeper.leases
        assert table._leases[lease.key] == lease


@virtual
async def test_a_lease_that_another_has_is_dropped_at_the_next_look_or_renewal():
    table = Table(2)
    async with Member("w1", table).running() as one:
        await anyio.sleep(2.0)
        table.steal("s0", "w9")
        await anyio.sleep(1.5)
        assert one.shards == {"s1"}
        table.hangs.add("list")
        table.steal("s1", "w9")
        await anyio.sleep(FAILOVER_TIME / 2 + 1)
        assert not one.shards
        assert all(reading.evicted for reading in one.readings)


@virtual
async def test_who_was_to_have_a_lease_that_is_lost_meanwhile_is_not_who_has_it_the_next_time():
    table = Table(2)
    async with Member("w1", table).running() as one:
        await anyio.sleep(5.0)
        async with Member("w2", table).running():
            await anyio.sleep(1.0)
            for reading in one.readings:
                reading.batch = 3.0 if reading.lease.shard == "s0" else 0.0
            one.keeper.withdraw("clicks")
            await anyio.sleep(2.0)
            table.steal("s0", "w9")
            await anyio.sleep(2.0)
            assert one.shards == set()
        one.keeper.enlist("clicks", one._open)
        await anyio.sleep(4 * FAILOVER_TIME)
        table.steal("s1", "w9")
        await anyio.sleep(2.0)
        assert one.shards == {"s0"}
        one.keeper.withdraw("clicks")
        await anyio.sleep(3.0)
        assert table.owners() == {"s0": "", "s1": "w9"}, "w2 has gone"


@virtual
async def test_a_lease_that_is_lost_while_it_is_drained_is_not_released():
    table = Table(1)
    one = Member("w1", table)
    one.batch = 1_000.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(2.0)
        one.keeper.quiet()
        await anyio.sleep(30.0)
        assert table.owners() == {"s0": "w1"}, "it is kept while it drains"
        table.steal("s0", "w9")
    assert table.owners() == {"s0": "w9"}
    assert "release" not in table.calls


@virtual
async def test_a_stuck_reader_loses_its_lease_to_another_and_the_same_worker_tries_again_later():
    table = Table(1)
    async with Member("w1", table).running() as one:
        await anyio.sleep(2.0)
        one.readings[0].stuck = True
        await anyio.sleep(FAILOVER_TIME + 2)
        assert not one.shards
        await anyio.sleep(FAILOVER_TIME)
        assert len(one.readings) == 1
        await anyio.sleep(SHUNNED * FAILOVER_TIME)
        assert len(one.readings) == 2


@virtual
async def test_a_renewal_that_is_answered_after_the_lease_was_given_up_changes_nothing():
    table = Table(1)
    answers: list[anyio.Event] = []
    async with Member("w1", table).running() as one:
        await anyio.sleep(2.0)
        quick = table.renew

        async def renew(lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
            answers.append(anyio.Event())
            await answers[-1].wait()
            return await quick(lease, checkpoint, load)

        table.renew = renew  # type: ignore[method-assign]
        await anyio.sleep(FAILOVER_TIME)
        assert one.readings[0].evicted is not None
        for answer in answers:
            answer.set()
        await settle_down()
        assert one.readings[0].evicted is not None


@virtual
async def test_a_release_that_comes_to_its_end_after_the_lease_was_given_up_changes_nothing():
    table = Table(1)
    slow(table, "release", 3.0)
    one = Member("w1", table)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.keeper.run)
        await anyio.sleep(2.0)
        tasks.start_soon(one.keeper.complete, ("clicks", "s0"))
        await anyio.sleep(4.0)
        events = [fact.event for fact in one.observer.facts]
        assert events[:2] == ["claimed", "lost"], "a look has shown it"
        assert "released" not in events
        one.keeper.quiet()


# --- what it tells ------------------------------------------------------------------------------------------------------


@virtual
async def test_the_status_shows_workers_leases_and_what_has_happened():
    table = Table(4)
    async with Member("w1", table).running() as one:
        before = one.keeper.status()
        assert (before.worker, before.workers, before.leases) == ("w1", (), ())
        async with Member("w2", table).running() as two:
            await anyio.sleep(20.0)
            status = one.keeper.status()
            assert [(worker.id, worker.leases, worker.present) for worker in status.workers] == [
                ("w1", len(one.shards), True),
                ("w2", len(two.shards), True),
            ]
            assert [worker.load for worker in status.workers] == [len(one.shards), len(two.shards)]
            assert [worker.mappings for worker in status.workers] == [("clicks",)] * 2
            assert [worker.lag for worker in status.workers] == [7.0, 7.0]
            assert [lease.shard for lease in status.leases] == ["s0", "s1", "s2", "s3"]
            assert {lease.owner for lease in status.leases} == {"w1", "w2"}
            assert max(lease.age for lease in status.leases) <= FAILOVER_TIME / 2 + 1
            assert [note.event for note in status.history] == ["claimed"] * len(one.shards)
        await anyio.sleep(2 * FAILOVER_TIME)
        assert [worker.present for worker in one.keeper.status().workers] == [True, False]
        lease = table._leases["clicks", "s0"]
        table._put(
            Lease("clicks", "s0", owner="w1", checkpoint=Checkpoint(finished=True), counter=lease.counter)
        )
        await anyio.sleep(1.1)
        assert [lease.shard for lease in one.keeper.status().leases] == ["s1", "s2", "s3"]
        await table.add(Lease("clicks", "s4", ("s0", "s1", "trimmed away")))
        await anyio.sleep(1.1)
        assert [lease.waits_for for lease in one.keeper.status().leases] == [(), (), (), ("s1",)]


@virtual
async def test_a_table_of_which_one_use_fails_is_in_trouble_until_that_works_again():
    for verb in ("list", "beat", "renew"):
        table = Table(2)
        async with Member("w1", table).running() as one:
            await anyio.sleep(20.0)
            assert one.keeper.trouble is None
            table.down = {verb}
            await anyio.sleep(6.0)
            for _ in range(12):
                assert one.keeper.trouble == "the table is down"
                await anyio.sleep(0.2)
            table.down = set()
            await anyio.sleep(FAILOVER_TIME)
            assert one.keeper.trouble is None


@virtual
async def test_leases_that_are_shown_as_they_were_last_are_a_trouble():
    table = Table(2)
    quick = table.list

    async def part() -> Listing:
        return replace(await quick(), stale={"clicks": "lease_table = app: denied"})

    async with Member("w1", table).running() as one:
        await anyio.sleep(5.0)
        table.list = part  # type: ignore[method-assign]
        await anyio.sleep(5.0)
        assert one.keeper.status().trouble == "lease_table = app: denied"
        assert one.keeper.trouble_of("clicks") == "lease_table = app: denied"
        assert one.keeper.trouble_of("orders") is None
        table.list = quick  # type: ignore[method-assign]
        await anyio.sleep(2.0)
        assert one.keeper.status().trouble is None


# --- what queues may do -------------------------------------------------------------------------------------------------


class Polling(Member):
    """A keeper of a daemon that polls a queue, and its part of ten invocations at each look."""

    def __init__(self, name: str, table: Table) -> None:
        super().__init__(name, table)
        self.part = -1
        self.keeper.divide("orders", self._looked)

    def _looked(self) -> None:
        self.part = self.keeper.portion("orders", 10)


@virtual
async def test_nothing_is_anybodys_part_before_the_table_was_looked_at():
    one = Polling("w1", Table())
    assert one.keeper.portion("orders", 10) == 0
    async with one.running():
        await settle_down()
        assert one.part == 10


@virtual
async def test_workers_that_poll_a_queue_divide_what_it_may_do_as_they_come_stop_and_die():
    table = Table()
    async with Polling("w1", table).running() as one, Member("w2", table).running():
        await anyio.sleep(3.0)
        assert one.part == 10, "the other one does not poll it"
        async with Polling("w3", table).running() as three:
            async with Polling("w4", table).running() as four:
                await anyio.sleep(3.0)
                assert [one.part, three.part, four.part] == [4, 3, 3]
                four.keeper.withdraw("orders")
                await anyio.sleep(3.0)
                assert [one.part, three.part] == [5, 5]
            await anyio.sleep(3.0)
        await anyio.sleep(FAILOVER_TIME - 5.0)
        assert one.part == 5, "it may still be at work"
        await anyio.sleep(4.0)
        assert one.part == 10
