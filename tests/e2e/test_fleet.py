"""Several real daemons that share a stream: a kill, a stop, and a process that stands still for longer than the failover.

`POLLER_E2E_FLEET_SHARDS`, `_RECORDS` and `_ROUNDS` make it as large as one likes; a round has one of each. For 64 shards and
200,000 records the emulator must not go over all records and iterators at every read to drop those that are too old:
`unforgetting` is one that never does.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from bisect import bisect_left
from collections import defaultdict
from contextlib import ExitStack
from itertools import accumulate, permutations
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal

from poller.demo.emulator import Emulator, find_ministack
from tests.e2e.harness import Daemon, Queues, running, until
from tests.e2e.stream_harness import DataStream, in_order, key_of, mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SHARDS = int(os.environ.get("POLLER_E2E_FLEET_SHARDS", "8"))
RECORDS = int(os.environ.get("POLLER_E2E_FLEET_RECORDS", "6000"))
ROUNDS = int(os.environ.get("POLLER_E2E_FLEET_ROUNDS", "1"))
#: Records from which on the emulator's own housekeeping is what takes its time.
MANY = 20_000
FAILOVER = 5
#: Seconds for a failover and for a clean hand-off, in which other tests may run beside this one. The figures are printed: on a
#: quiet machine the first is the failover time and about one, the second about one.
FAILOVER_WITHIN, HAND_OFF_WITHIN = 15.0, 6.0
#: Seconds that a process stands still.
STANDSTILL = 2.5 * FAILOVER


class Entry:
    """One record, handled once."""

    def __init__(self, line: str) -> None:
        pid, began, ended, self.shard, self.text = line.split(" ", 4)
        self.pid, self.began, self.ended = int(pid), float(began), float(ended)


class Fleet:
    """Daemons that share a stream and a state."""

    def __init__(self, emulator: Emulator, folder: Path, state: str, shards: int) -> None:
        self.emulator = emulator
        self.folder = folder
        self.stream = DataStream(emulator.endpoint_url, shards=shards)
        self.config = f'[daemon]\nstate = "{state}"\nfleet = true\nfailover_time = {FAILOVER}\n' + mapping(
            self.stream.arn, "fleet"
        )
        self.ledger = folder / "fleet.ledger"
        self.ledger.touch()
        self.daemons: list[Daemon] = []
        self.put: list[str] = []
        self._handled: set[str] = set()
        self._seen = 0

    def start(self, stack: ExitStack) -> Daemon:
        folder = self.folder / f"d{len(self.daemons)}"
        folder.mkdir()
        daemon = Daemon(
            folder, self.emulator.endpoint_url, self.config, LEDGER=str(self.ledger), WORK_SECONDS="0.02"
        )
        self.daemons.append(daemon)
        stack.enter_context(running(daemon))
        return daemon

    def entries(self) -> list[Entry]:
        return [Entry(line) for line in self.ledger.read_text().splitlines()]

    def all_handled(self) -> bool:
        with self.ledger.open() as ledger:
            ledger.seek(self._seen)
            # The last line may be half-written.
            lines = ledger.read().rpartition("\n")[0]
        self._seen += len(lines.encode()) + 1 if lines else 0
        self._handled.update(Entry(line).text for line in lines.splitlines())
        return self._handled.issuperset(self.put)

    def feed(self, texts: list[str], seconds: float) -> threading.Thread:
        """Put `texts` over so many seconds, beside the test."""
        pause = threading.Event()
        portions = max(1, int(seconds * 4))
        size = -(-len(texts) // portions)

        def put() -> None:
            for at in range(0, len(texts), size):
                self.stream.put(texts[at : at + size])
                self.put.extend(texts[at : at + size])
                pause.wait(0.2)

        thread = threading.Thread(target=put, daemon=True)
        thread.start()
        return thread


def fleet_of(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.page("/status"))["fleet"]
    return found


def shards_of(daemon: Daemon) -> set[str]:
    return {shard["shard"] for shard in daemon.status()["work"]["shards"]}


def shared(daemons: list[Daemon], shards: int) -> bool:
    """Whether all shards are read, each by one."""
    owned = [shards_of(daemon) for daemon in daemons]
    return len(set().union(*owned)) == sum(map(len, owned)) == shards and all(owned)


def taken_over(daemons: list[Daemon], shards: set[str]) -> Callable[[], bool]:
    return lambda: shards <= set().union(*map(shards_of, daemons))


def claimed(daemons: list[Daemon], shards: set[str], since: float) -> float:
    """Seconds from `since`, a Unix time, until the last of `shards` was claimed by one of `daemons`, as they tell."""
    first: dict[str, float] = {}
    for daemon in daemons:
        for note in fleet_of(daemon)["history"]:
            if note["event"] == "claimed" and note["at"] >= since:
                first[note["shard"]] = min(note["at"], first.get(note["shard"], note["at"]))
    return max(first[shard] for shard in shards) - since


def check(fleet: Fleet) -> dict[str, int]:
    """Nothing lost, each key in order, and none of a shard begun by one who had it no more."""
    entries = fleet.entries()
    first = dict.fromkeys(entry.text for entry in sorted(entries, key=lambda entry: entry.ended))
    assert first.keys() == set(fleet.put), f"{len(set(fleet.put) - first.keys())} lost"
    assert in_order(first)
    by_shard: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_shard[entry.shard].append(entry)
    for shard, own in by_shard.items():
        check_one_at_a_time(shard, own)
    return {"records": len(first), "handled again": len(entries) - len(first)}


def check_one_at_a_time(shard: str, own: list[Entry]) -> None:
    """Somebody who begins with a shard goes on from what was committed: from then on nobody else begins anything, until that
    one has handed it on."""
    by_pid: defaultdict[int, list[Entry]] = defaultdict(list)
    for entry in sorted(own, key=lambda entry: entry.began):
        by_pid[entry.pid].append(entry)
    for former, later in permutations(by_pid.values(), 2):
        if former[0].began > later[0].began:
            continue
        began = [entry.began for entry in later]
        ended = list(accumulate((entry.ended for entry in later), max))
        for entry in former:
            others = bisect_left(began, entry.began)
            assert not others or ended[others - 1] <= entry.began + 0.1, f"{shard} was read by two at a time"


def texts_of(records: int) -> list[str]:
    return [f"k{number % (16 * SHARDS)}-{number:07}" for number in range(records)]


_UNFORGETTING = """\
#!{python}
import sys
from ministack.app import main
from ministack.services import kinesis

kinesis._expire_records = lambda stream: None
kinesis._expire_iterators = lambda: None
sys.exit(main())
"""


@pytest.fixture
def unforgetting(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The emulator; for a large run one of its own that drops no records for their age."""
    if RECORDS <= MANY:
        yield emulator
        return
    program = tmp_path / "ministack"
    program.write_text(_UNFORGETTING.format(python=find_ministack().resolve().with_name("python")))
    program.chmod(0o755)
    monkeypatch.setenv("POLLER_MINISTACK", str(program))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Emulator()) as running:
        yield running


def test_four_daemons_lose_nothing_through_a_kill_a_stop_and_a_standstill(
    unforgetting: Emulator, tmp_path: Path
) -> None:
    fleet = Fleet(unforgetting, tmp_path, f"dynamodb:leases-{uuid.uuid4().hex[:8]}", SHARDS)
    figures: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        daemons = [fleet.start(stack) for _ in range(4)]
        until(lambda: shared(daemons, SHARDS), "all shards are shared", patience=120)
        feeding = fleet.feed(texts_of(RECORDS), ROUNDS * 60.0)
        for _ in range(ROUNDS):
            # One dies.
            dead = daemons.pop(0)
            lost = shards_of(dead)
            began = time.time()
            dead.kill()
            until(taken_over(daemons, lost), "the shards of the dead are read", patience=60)
            figures["crash failover"].append(claimed(daemons, lost, began))
            daemons.append(fleet.start(stack))
            until(lambda: shared(daemons, SHARDS), "who joined has its part", patience=120)
            # One stops.
            gone = daemons.pop(0)
            given = shards_of(gone)
            began = time.time()
            gone.signal(signal.SIGTERM)
            until(taken_over(daemons, given), "the shards of the stopped are read", patience=60)
            figures["clean hand-off"].append(claimed(daemons, given, began))
            assert gone.wait() == 0, "".join(gone.logs)
            daemons.append(fleet.start(stack))
            until(lambda: shared(daemons, SHARDS), "who joined has its part", patience=120)
            # One stands still.
            still, *others = daemons
            kept = shards_of(still)
            began = time.time()
            still.signal(signal.SIGSTOP)
            until(taken_over(others, kept), "the shards of who stands still are read", patience=60)
            figures["standstill failover"].append(claimed(others, kept, began))
            threading.Event().wait(max(0.0, STANDSTILL - (time.time() - began)))
            still.signal(signal.SIGCONT)
            until(lambda: shared(daemons, SHARDS), "it takes part again", patience=120)
            assert still.metric('poller_lease_losses_total{mapping="work"}') >= len(kept)
        feeding.join()
        until(fleet.all_handled, "all is handled", patience=300)
        workers = fleet_of(daemons[0])["workers"]
        assert len([one for one in workers if one["present"]]) == 4
        for daemon in daemons:
            daemon.signal(signal.SIGTERM)
        assert [daemon.wait() for daemon in daemons] == [0] * 4
    counts = check(fleet)
    told = ", ".join(f"{what} {max(times):.1f} s" for what, times in figures.items())
    print(f"{SHARDS} shards, {counts}: {told}")
    assert max(figures["crash failover"]) <= FAILOVER_WITHIN
    assert max(figures["clean hand-off"]) <= HAND_OFF_WITHIN


def test_two_daemons_share_a_file_and_what_one_leaves_the_other_goes_on_with(
    emulator: Emulator, tmp_path: Path
) -> None:
    fleet = Fleet(emulator, tmp_path, f"sqlite:{tmp_path / 'poller.db'}", 4)
    with ExitStack() as stack:
        one, two = fleet.start(stack), fleet.start(stack)
        until(lambda: shared([one, two], 4), "all shards are shared")
        fleet.feed(texts_of(400), 4.0).join()
        one.signal(signal.SIGTERM)
        assert one.wait() == 0, "".join(one.logs)
        until(lambda: len(shards_of(two)) == 4, "it has all of them")
        fleet.feed([f"{key_of(text)}-9{text[-6:]}" for text in texts_of(200)], 2.0).join()
        until(fleet.all_handled, "all is handled")
        two.signal(signal.SIGTERM)
        assert two.wait() == 0
    assert check(fleet)["handled again"] == 0


def test_processes_of_one_command_share_a_file_and_are_kept_alive_and_stopped_together(
    emulator: Emulator, tmp_path: Path
) -> None:
    fleet = Fleet(emulator, tmp_path, f"sqlite:{tmp_path / 'poller.db'}", 4)
    daemon = Daemon(
        tmp_path, emulator.endpoint_url, fleet.config, LEDGER=str(fleet.ledger), WORK_SECONDS="0.02"
    )
    daemon.options = ("--processes", "2")
    with running(daemon):
        second = Daemon.at(daemon, daemon.port + 1)
        until(lambda: shared([daemon, second], 4), "all shards are shared")
        fleet.feed(texts_of(200), 2.0).join()
        killed = json.loads(second.page("/status"))["pid"]
        os.kill(killed, signal.SIGKILL)
        until(
            lambda: second.status() and json.loads(second.page("/status"))["pid"] != killed,
            "it is started again",
        )
        until(lambda: shared([daemon, second], 4), "it takes part again", patience=120)
        until(fleet.all_handled, "all is handled")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0, "".join(daemon.logs)
    assert any("process 1 ended with -9" in line for line in daemon.logs)
    check(fleet)


def test_processes_without_a_state_that_they_share_are_refused(emulator: Emulator, tmp_path: Path) -> None:
    stream = DataStream(emulator.endpoint_url)
    daemon = Daemon(tmp_path, emulator.endpoint_url, mapping(stream.arn, "fleet"))
    daemon.options = ("--processes", "2")
    assert daemon.start().wait() == 2
    until(lambda: any("add fleet = true to [daemon]" in line for line in daemon.logs), "it says why")


def test_no_daemon_outlives_the_command_that_has_started_it(emulator: Emulator, tmp_path: Path) -> None:
    fleet = Fleet(emulator, tmp_path, f"sqlite:{tmp_path / 'poller.db'}", 2)
    daemon = Daemon(tmp_path, emulator.endpoint_url, fleet.config, LEDGER=str(fleet.ledger), WORK_SECONDS="0")
    daemon.options = ("--processes", "2")
    with running(daemon):
        second = Daemon.at(daemon, daemon.port + 1).ready()
        pids = [json.loads(one.page("/status"))["pid"] for one in (daemon, second)]
        daemon.kill()
    until(lambda: not any(os.path.exists(f"/proc/{pid}/cmdline") for pid in pids), "they have ended")


def test_daemons_divide_what_a_queue_may_do_and_who_stays_gets_the_part_of_who_goes(
    emulator: Emulator, tmp_path: Path
) -> None:
    queue = Queues(emulator.endpoint_url).create()
    config = (
        f'[daemon]\nstate = "sqlite:{tmp_path / "poller.db"}"\nfleet = true\n'
        '[functions.work]\nhandler = "ledger_handlers:slow"\ntimeout = 20\n'
        f'[[mappings]]\nname = "work"\nevent_source_arn = "{queue.arn}"\nfunction_name = "work"\nbatch_size = 1\n'
        "scaling_config = { maximum_concurrency = 6, fleet_concurrency = true }\n"
    )

    def busy(daemon: Daemon) -> int:
        count: int = daemon.status()["work"]["in_flight_invocations"]
        return count

    queue.send([f"m{number}" for number in range(150)])
    daemons = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        daemons.append(Daemon(tmp_path / name, emulator.endpoint_url, config, WORK_SECONDS="1"))
    one, two = daemons
    with running(one):
        until(lambda: busy(one) == 6, "one has all of it")
        with running(two):
            until(lambda: (busy(one), busy(two)) == (3, 3), "they divide it")
            assert two.stop() == 0
        until(lambda: busy(one) == 6, "who stays has all of it again")
        assert one.stop() == 0
