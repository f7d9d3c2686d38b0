"""What every spool promises, and the jobs beside it, run over each of them. A new one adds one entry to `STORES`."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from poller.errors import StoreError
from poller.model import Job, SpoolEntry, SpoolKind, SpoolLimits, SpoolTotals
from poller.stores.memory import MemoryStore
from poller.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from contextlib import AbstractAsyncContextManager

    from poller.ports import Spooling

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
ARN = "arn:aws:sqs:eu-west-1:123456789012:failed"
ROOMY = SpoolLimits(1_000_000, 2**40)


class Open(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[Spooling]: ...


class InMemory:
    """Opens the same store again and again, as the other media do."""

    def __init__(self, place: Path) -> None:
        self._store = MemoryStore()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[MemoryStore]:
        yield self._store


class InSqlite:
    def __init__(self, place: Path) -> None:
        self._path = place / "poller.db"

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[SqliteStore]:
        store = await SqliteStore.open(self._path, patience=0)
        try:
            yield store
        finally:
            await store.aclose()


STORES: dict[str, Any] = {"memory": InMemory, "sqlite": InSqlite}


@pytest.fixture(params=STORES)
def kind_of_store(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def open_store(kind_of_store: str, tmp_path: Path) -> Open:
    made: Open = STORES[kind_of_store](tmp_path)
    return made


def entry(number: int, *, kind: SpoolKind = "delivery", mapping: str = "clicks", **fields: Any) -> SpoolEntry:
    made = SpoolEntry(kind, mapping, f"id-{number}", ARN, "shard-1", 1000.0 + number, b"%d" % number)
    return replace(made, **fields)


def ids(entries: list[SpoolEntry]) -> list[str]:
    return [one.id for one in entries]


# --- order and identity -------------------------------------------------------------------------------------------------


async def test_an_entry_comes_back_as_it_was_put_with_its_place(open_store: Open):
    full = entry(
        1,
        key="ключ\x00'; --",
        shard="",
        at=1763889751.1234567,
        body=bytes(range(256)) * 4096,
        error_type="ValueError",
        error_message="ü\U0001f600\n" * 1000,
    )
    async with open_store() as store:
        assert await store.spool.put([full], ROOMY) is True
        (taken,) = await store.spool.take("clicks", "delivery")
        assert taken.number > 0
        assert replace(taken, number=0) == full


async def test_entries_come_out_in_the_order_in_which_they_went_in_and_stay_there(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(9), entry(3)], ROOMY)
        await store.spool.put([entry(5)], ROOMY)
        for _ in range(2):
            taken = await store.spool.take("clicks", "delivery")
            assert ids(taken) == ["id-9", "id-3", "id-5"]
            numbers = [one.number for one in taken]
            assert numbers == sorted(set(numbers))


async def test_take_goes_on_after_a_number_and_brings_no_more_than_asked(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(number) for number in range(5)], ROOMY)
        first = await store.spool.take("clicks", "delivery", limit=2)
        then = await store.spool.take("clicks", "delivery", after=first[-1].number, limit=2)
        last = await store.spool.take("clicks", "delivery", after=then[-1].number, limit=2)
        assert [ids(first), ids(then), ids(last)] == [["id-0", "id-1"], ["id-2", "id-3"], ["id-4"]]


async def test_take_tells_keys_kinds_and_mappings_apart(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1, key="a"), entry(2, key="b"), entry(3, key="a")], ROOMY)
        await store.spool.put([entry(1, kind="parked", key="a")], ROOMY)
        await store.spool.put([entry(1, mapping="orders", key="a")], ROOMY)
        assert ids(await store.spool.take("clicks", "delivery", key="a")) == ["id-1", "id-3"]
        assert ids(await store.spool.take("clicks", "delivery", key="b")) == ["id-2"]
        assert ids(await store.spool.take("clicks", "delivery", key="c")) == []
        assert ids(await store.spool.take("clicks", "parked")) == ["id-1"]
        assert ids(await store.spool.take("orders", "delivery")) == ["id-1"]
        assert ids(await store.spool.take("orders", "parked")) == []
        assert ids(await store.spool.take("never seen", "parked")) == []


async def test_what_is_put_a_second_time_stays_where_it_is_and_as_it_is(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1), entry(2)], ROOMY)
        again = [entry(1, body=b"other"), entry(4), entry(3), entry(4, body=b"other")]
        assert await store.spool.put(again, ROOMY) is True
        taken = await store.spool.take("clicks", "delivery")
        assert [one.id + one.body.decode() for one in taken] == ["id-11", "id-22", "id-44", "id-33"]
        assert await store.spool.totals() == {"clicks": [SpoolTotals("delivery", ARN, 4, 4, 1001.0, 1003.0)]}


async def test_a_number_is_never_given_twice(open_store: Open):
    seen: set[int] = set()
    for number in range(3):
        async with open_store() as store:
            await store.spool.put([entry(number)], ROOMY)
            (taken,) = await store.spool.take("clicks", "delivery")
            assert taken.number not in seen
            seen.add(taken.number)
            await store.spool.remove("clicks", [taken.number])


async def test_what_was_removed_may_be_put_again_and_is_the_last_then(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1), entry(2)], ROOMY)
        (first, _) = await store.spool.take("clicks", "delivery")
        await store.spool.remove("clicks", [first.number])
        await store.spool.put([entry(1)], ROOMY)
        assert ids(await store.spool.take("clicks", "delivery")) == ["id-2", "id-1"]


async def test_what_is_not_there_is_removed_without_a_word(open_store: Open):
    async with open_store() as store:
        await store.spool.remove("clicks", [1, 2])
        await store.spool.put([entry(1)], ROOMY)
        await store.spool.put([entry(1, mapping="orders")], ROOMY)
        (ours,) = await store.spool.take("clicks", "delivery")
        (theirs,) = await store.spool.take("orders", "delivery")
        await store.spool.remove("clicks", [theirs.number, ours.number + 1000])
        assert ids(await store.spool.take("clicks", "delivery")) == ["id-1"]
        assert ids(await store.spool.take("orders", "delivery")) == ["id-1"]
        await store.spool.remove("clicks", [ours.number])
        await store.spool.remove("clicks", [ours.number])
        assert await store.spool.take("clicks", "delivery") == []


# --- limits -------------------------------------------------------------------------------------------------------------


async def test_past_the_limits_nothing_of_a_put_is_taken(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1, body=b"x" * 50)], ROOMY)
        too_many, too_large = SpoolLimits(2, 1000), SpoolLimits(10, 99)
        assert await store.spool.put([entry(2), entry(3)], too_many) is False
        assert await store.spool.put([entry(2, body=b"x" * 25), entry(3, body=b"x" * 25)], too_large) is False
        assert ids(await store.spool.take("clicks", "delivery")) == ["id-1"]
        assert await store.spool.put([entry(2)], too_many) is True
        assert await store.spool.put([entry(3, body=b"x" * 48)], too_large) is True
        assert await store.spool.totals() == {"clicks": [SpoolTotals("delivery", ARN, 3, 99, 1001.0, 1003.0)]}


async def test_limits_count_all_kinds_and_keys_of_a_mapping_and_no_other(open_store: Open):
    limits = SpoolLimits(2, 1000)
    async with open_store() as store:
        assert await store.spool.put([entry(1, mapping="orders"), entry(2, mapping="orders")], limits)
        assert await store.spool.put([entry(1, key="a")], limits)
        assert await store.spool.put([entry(1, kind="parked", key="b")], limits)
        assert not await store.spool.put([entry(2, kind="parked", key="c")], limits)
        (first,) = await store.spool.take("clicks", "delivery")
        await store.spool.remove("clicks", [first.number])
        assert await store.spool.put([entry(2, kind="parked", key="c")], limits)


async def test_what_is_there_already_needs_no_room(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1), entry(2)], ROOMY)
        assert await store.spool.put([entry(2), entry(1)], SpoolLimits(1, 1)) is True
        assert await store.spool.put([entry(2), entry(3)], SpoolLimits(1, 1)) is False


async def test_an_empty_spool_takes_what_alone_passes_the_limits(open_store: Open):
    tight = SpoolLimits(1, 10)
    async with open_store() as store:
        assert await store.spool.put([entry(1, body=b"x" * 1000), entry(2)], tight) is True
        assert await store.spool.put([entry(3)], tight) is False
        assert await store.spool.put([entry(3, mapping="orders", body=b"x" * 11)], tight) is True


async def test_nothing_put_is_nothing_done(open_store: Open):
    async with open_store() as store:
        assert await store.spool.put([], SpoolLimits(1, 1)) is True
        assert await store.spool.totals() == {}


# --- totals -------------------------------------------------------------------------------------------------------------


async def test_totals_are_a_line_for_each_kind_and_key_oldest_first(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(5, key="b", body=b"xx"), entry(6, key="a"), entry(9, key="b")], ROOMY)
        await store.spool.put([entry(1, kind="parked", key="b")], ROOMY)
        await store.spool.put([entry(2, mapping="orders")], ROOMY)
        parked = SpoolTotals("parked", "b", 1, 1, 1001.0, 1001.0)
        deliveries = [
            SpoolTotals("delivery", "b", 2, 3, 1005.0, 1009.0),
            SpoolTotals("delivery", "a", 1, 1, 1006.0, 1006.0),
        ]
        orders = [SpoolTotals("delivery", ARN, 1, 1, 1002.0, 1002.0)]
        assert await store.spool.totals() == {"clicks": [parked, *deliveries], "orders": orders}
        assert await store.spool.totals("orders") == {"orders": orders}
        assert await store.spool.totals("clicks", "delivery") == {"clicks": deliveries}
        assert await store.spool.totals(kind="parked") == {"clicks": [parked]}
        assert await store.spool.totals("orders", "parked") == {}
        assert await store.spool.totals("never seen") == {}


async def test_totals_follow_what_is_removed_from_either_end(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(number) for number in range(4)], ROOMY)
        numbers = [one.number for one in await store.spool.take("clicks", "delivery")]
        await store.spool.remove("clicks", [numbers[0], numbers[3]])
        assert await store.spool.totals() == {"clicks": [SpoolTotals("delivery", ARN, 2, 2, 1001.0, 1002.0)]}
        await store.spool.remove("clicks", numbers)
        assert await store.spool.totals() == {}


@pytest.mark.slow
async def test_ten_thousand_keys_are_put_counted_and_looked_into_quickly(open_store: Open):
    async with open_store() as store:
        for start in range(0, 10_000, 500):
            entries = [
                entry(number, key=f"key-{number}", body=b"x" * 2000) for number in range(start, start + 500)
            ]
            assert await store.spool.put(entries, ROOMY)
        began = perf_counter()
        totals = await store.spool.totals()
        assert perf_counter() - began < 1
        assert [line.key for line in totals["clicks"]] == [f"key-{number}" for number in range(10_000)]
        began = perf_counter()
        for number in range(10_000, 10_100):
            assert await store.spool.put([entry(number, key="key-7")], ROOMY)
            assert not await store.spool.put([entry(number + 1, key="key-7")], SpoolLimits(10, 10))
            assert len(await store.spool.take("clicks", "delivery", key="key-7", limit=1)) == 1
        # A scan of what is there, for each of them, would take many times this.
        assert perf_counter() - began < 5


# --- jobs ---------------------------------------------------------------------------------------------------------------


async def test_jobs_are_kept_in_the_order_in_which_they_were_first_saved(open_store: Open):
    async with open_store() as store:
        assert await store.jobs.jobs() == []
        for job in (Job("b", b"1"), Job("a", b"\x00"), Job("c", b"{}"), Job("b", b"2")):
            await store.jobs.save_job(job)
        await store.jobs.remove_job("c")
        await store.jobs.remove_job("never seen")
    async with open_store() as store:
        assert await store.jobs.jobs() == [Job("b", b"2"), Job("a", b"\x00")]
        await store.jobs.remove_job("b")
        await store.jobs.save_job(Job("b", b"3"))
        assert await store.jobs.jobs() == [Job("a", b"\x00"), Job("b", b"3")]


# --- many callers, restarts, kills --------------------------------------------------------------------------------------


async def test_puts_at_the_same_time_keep_the_limits_and_the_order_of_each_caller(open_store: Open):
    taken: list[int] = []

    async def put(store: Spooling, caller: int) -> None:
        for turn in range(10):
            number = caller * 100 + turn
            if await store.spool.put([entry(number, key=f"key-{caller}")], SpoolLimits(50, 10_000)):
                taken.append(number)

    async with open_store() as store:
        async with anyio.create_task_group() as tasks:
            for caller in range(10):
                tasks.start_soon(put, store, caller)
        waiting = await store.spool.take("clicks", "delivery", limit=1000)
        assert len(waiting) == 50
        assert sorted(ids(waiting)) == sorted(f"id-{number}" for number in taken)
        for caller in range(10):
            ours = [one.id for one in waiting if one.key == f"key-{caller}"]
            assert ours == [f"id-{number}" for number in sorted(taken) if number // 100 == caller]


async def test_what_was_put_and_removed_is_so_when_the_store_is_opened_again(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1), entry(2), entry(3)], ROOMY)
        (first, *_) = await store.spool.take("clicks", "delivery")
        await store.spool.remove("clicks", [first.number])
        totals = await store.spool.totals()
    async with open_store() as store:
        assert ids(await store.spool.take("clicks", "delivery")) == ["id-2", "id-3"]
        assert await store.spool.totals() == totals


PUTTING = """
import itertools, sys, anyio
from poller.model import SpoolEntry, SpoolLimits
from poller.stores.sqlite import SqliteStore
async def main():
    spool = (await SqliteStore.open(sys.argv[1])).spool
    for number in itertools.count():
        entry = SpoolEntry("delivery", "clicks", f"id-{number}", "arn", "", 1.0, b"x" * 1000)
        await spool.put([entry], SpoolLimits(10**6, 10**9))
        print("put", number, flush=True)
        if number >= 3:
            oldest = (await spool.take("clicks", "delivery", limit=1))[0]
            await spool.remove("clicks", [oldest.number])
            print("removed", oldest.id[3:], flush=True)
anyio.run(main)
"""


def killed_after(lines: int, path: Path) -> list[str]:
    """What a process printed that was killed after so many lines, one that was cut off excluded."""
    command = [sys.executable, "-c", PUTTING, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        printed = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        return [*printed, *(line for line in process.stdout.readlines() if line.endswith("\n"))]


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 20, 151])
async def test_what_a_file_has_taken_survives_kill_9_and_what_was_removed_stays_away(
    tmp_path: Path, lines: int
):
    done: dict[str, list[int]] = {"put": [], "removed": []}
    for line in killed_after(lines, tmp_path / "poller.db"):
        what, number = line.split()
        done[what].append(int(number))
    async with InSqlite(tmp_path)() as store:
        held = {int(one.id[3:]) for one in await store.spool.take("clicks", "delivery", limit=10_000)}
        # The kill may have come between a commit and its line: of one put, and of one removal.
        expected = set(done["put"]) - set(done["removed"])
        assert len(held ^ expected) <= 1
        (line,) = (await store.spool.totals())["clicks"]
        assert (line.entries, line.size) == (len(held), 1000 * len(held))


async def test_a_file_refuses_what_it_cannot_hold_and_nothing_else(tmp_path: Path):
    refused: list[str] = []

    async def put(store: SqliteStore, number: int, **fields: Any) -> None:
        try:
            await store.spool.put([entry(number), entry(number + 100, **fields)], ROOMY)
        except StoreError as error:
            refused.append(str(error))

    async with InSqlite(tmp_path)() as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, store, 1)
            tasks.start_soon(lambda: put(store, 2, error_message="\ud800"))
            tasks.start_soon(put, store, 3)
        assert [line.split(":")[0] for line in refused] == ["what clicks spools cannot be stored"]
        taken = await store.spool.take("clicks", "delivery")
        assert ids(taken) == ["id-1", "id-101", "id-3", "id-103"]
        with pytest.raises(StoreError, match=r"job .* cannot be stored"):
            await store.jobs.save_job(Job("\ud800", b""))
        assert await store.jobs.jobs() == []


async def test_a_spool_says_what_it_is(open_store: Open):
    async with open_store() as store:
        await store.spool.put([entry(1)], ROOMY)
        assert type(store.spool).__name__ in repr(store.spool)


# --- the law ------------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """The spool by definition: a list."""

    entries: list[SpoolEntry] = field(default_factory=list)

    def of(self, mapping: str, kind: str | None = None) -> list[SpoolEntry]:
        return [one for one in self.entries if one.mapping == mapping and kind in (None, one.kind)]

    def put(self, entries: list[SpoolEntry], limits: SpoolLimits) -> bool:
        new: list[SpoolEntry] = []
        there = self.of(entries[0].mapping) if entries else []
        for one in entries:
            if all((one.kind, one.id) != (other.kind, other.id) for other in [*there, *new]):
                new.append(one)
        both = [*there, *new]
        fits = len(both) <= limits.entries and sum(len(one.body) for one in both) <= limits.size
        if new and there and not fits:
            return False
        self.entries += new
        return True


KINDS = st.sampled_from(["delivery", "parked"])
MAPPINGS = st.sampled_from(["clicks", "orders"])
KEYS = st.sampled_from(["a", "b"])
ENTRIES = st.lists(
    st.builds(
        SpoolEntry,
        kind=KINDS,
        mapping=st.just(""),
        id=st.sampled_from("12345"),
        key=KEYS,
        shard=st.just("s"),
        at=st.floats(0, 100),
        body=st.binary(max_size=5),
    ),
    max_size=3,
)


class Compared(RuleBasedStateMachine):
    """Does the same to a store and to the model."""

    make: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.place = self.make()
        self.model = Model()
        self._enter()

    def _enter(self) -> None:
        self.opened = self.place()
        self.spool = self.wait(self.opened.__aenter__()).spool

    def wait(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(doing)

    def teardown(self) -> None:
        self.wait(self.opened.__aexit__(None, None, None))
        self.loop.close()

    @rule()
    def reopen(self) -> None:
        self.wait(self.opened.__aexit__(None, None, None))
        self._enter()

    @rule(mapping=MAPPINGS, entries=ENTRIES, most=st.integers(1, 5), size=st.integers(1, 20))
    def put(self, mapping: str, entries: list[SpoolEntry], most: int, size: int) -> None:
        entries = [replace(one, mapping=mapping) for one in entries]
        limits = SpoolLimits(most, size)
        assert self.wait(self.spool.put(entries, limits)) == self.model.put(entries, limits)

    @rule(mapping=MAPPINGS, kind=KINDS, which=st.sets(st.integers(0, 4)))
    def remove(self, mapping: str, kind: SpoolKind, which: set[int]) -> None:
        ours = self.model.of(mapping, kind)
        theirs = self.wait(self.spool.take(mapping, kind))
        gone = [place for place in which if place < len(ours)]
        self.wait(self.spool.remove(mapping, [theirs[place].number for place in gone]))
        for place in gone:
            self.model.entries.remove(ours[place])

    @rule(
        mapping=MAPPINGS, kind=KINDS, key=st.none() | KEYS, place=st.integers(0, 3), limit=st.integers(1, 3)
    )
    def take(self, mapping: str, kind: SpoolKind, key: str | None, place: int, limit: int) -> None:
        everything = self.wait(self.spool.take(mapping, kind))
        after = everything[place].number if place < len(everything) else 0
        wanted = [one for one in everything if one.number > after and key in (None, one.key)][:limit]
        assert self.wait(self.spool.take(mapping, kind, key=key, after=after, limit=limit)) == wanted

    @invariant()
    def holds_the_same(self) -> None:
        for mapping in ("clicks", "orders"):
            for kind in ("delivery", "parked"):
                held = self.wait(self.spool.take(mapping, kind))
                assert [replace(one, number=0) for one in held] == self.model.of(mapping, kind)
        expected: dict[str, list[SpoolTotals]] = {}
        for one in self.model.entries:
            same = [each for each in self.model.of(one.mapping, one.kind) if each.key == one.key]
            line = SpoolTotals(
                one.kind, one.key, len(same), sum(len(each.body) for each in same), same[0].at, same[-1].at
            )
            if line not in expected.setdefault(one.mapping, []):
                expected[one.mapping].append(line)
        for lines in expected.values():
            lines.sort(key=lambda line: (line.oldest, line.kind, line.key))
        assert self.wait(self.spool.totals()) == expected


@pytest.mark.slow
def test_a_spool_does_what_a_list_would(kind_of_store: str, tmp_path_factory: pytest.TempPathFactory):
    machine = type(
        "Machine", (Compared,), {"make": lambda self: STORES[kind_of_store](tmp_path_factory.mktemp("spool"))}
    )
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine, settings=settings(max_examples=25, stateful_step_count=20)
    )
