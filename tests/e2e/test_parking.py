"""A poison record among many keys, in the real process: its key is parked, the others go on, and it comes back in order."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Daemon, running, until
from tests.e2e.stream_harness import DataStream, Ledger, all_done, in_order, key_of, mapping
from tests.e2e.test_operating import poller

if TYPE_CHECKING:
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

KEYS = 100
#: One of them, and where its poison comes.
BAD, ROUND = "k50", 3


def rounds(first: int, last: int) -> list[str]:
    """A record of each key for each round; one of them is poison."""
    return [
        f"k{key:02}-{number:04}{'!' if (f'k{key:02}', number) == (BAD, ROUND) else ''}"
        for number in range(first, last)
        for key in range(KEYS)
    ]


def parking(stream: DataStream, **more: str) -> str:
    return mapping(
        stream.arn,
        "mendable",
        on_poison='"park"',
        maximum_retry_attempts="1",
        parallelization_factor="2",
        **more,
    )


def test_a_poison_record_parks_its_key_over_a_kill_until_it_is_resumed_in_order(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url)
    daemon = Daemon(tmp_path, emulator.endpoint_url, parking(stream, park_probe_interval_in_seconds="0"))
    ledger = Ledger(tmp_path / "ledger")
    before = [text for text in rounds(0, ROUND) if key_of(text) == BAD]

    def others(last: int) -> set[str]:
        """All that can be handled while the key is parked."""
        return {text for text in rounds(0, last) if key_of(text) != BAD} | set(before)

    stream.put(rounds(0, 20))
    with running(daemon):
        until(lambda: ledger.look().records.keys() >= others(20), "the other keys are handled")
        until(lambda: daemon.status()["work"]["parked"]["records"] == 17, "the key is parked")
        daemon.kill()
    stream.put(rounds(20, 30))
    with running(daemon):
        until(lambda: ledger.look().records.keys() >= others(30), "the other keys go on after a kill")
        until(lambda: all_done(daemon), "the stream is done with")
        assert ledger.look().records.keys() == others(30)

        # What is parked is seen.
        until(lambda: daemon.status()["work"]["parked"]["records"] == 27, "it is counted once")
        (key,) = daemon.status()["work"]["parked"]["first"]
        assert (key["key"], key["error_type"]) == (BAD, "ValueError")
        assert daemon.metric('poller_parked_keys{mapping="work"}') == 1
        assert daemon.metric('poller_parked_records{mapping="work"}') == 27
        shown = poller(tmp_path, "status", "work").stdout
        assert "work: 1 key parked, 27 records" in shown
        assert f"  {BAD}: 27 records, waits for poller resume: ValueError: poison: k50-0003!" in shown

        # What still fails stays, and says so.
        failing = poller(tmp_path, "resume", "work", "--key", BAD)
        assert (failing.returncode, failing.stdout) == (
            1,
            'work: key "k50" still fails, 0 records handled: ValueError: poison: k50-0003!\n',
        )
        unknown = poller(tmp_path, "resume", "work", "--key", "k51")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert unknown.stderr == (
            "poller resume: work has no parked key 'k51': poller status work shows those it has\n"
        )

        (tmp_path / "mended").touch()
        daemon.kill()
    with running(daemon):
        stream.put(rounds(30, 35))
        resumed = poller(tmp_path, "resume", "work", "--key", BAD)
        assert resumed.returncode == 0, resumed
        assert resumed.stdout.startswith('work: key "k50" is free again, ')
        until(lambda: ledger.look().records.keys() == set(rounds(0, 35)), "all is handled")
        assert daemon.status()["work"]["parked"]["keys"] == 0
        assert daemon.metric('poller_parked_records{mapping="work"}') == 0
        assert daemon.stop() == 0
    assert in_order(ledger.records)
    # It came the last time as it came the first time.
    attempts = (tmp_path / "poison").read_text().splitlines()
    assert len(attempts) >= 3
    assert len(set(attempts)) == 1
    assert json.loads(attempts[0])["eventID"].startswith("shardId-000000000000:")


def test_a_probe_takes_a_key_up_when_its_function_is_mended(emulator: Emulator, tmp_path: Path) -> None:
    stream = DataStream(emulator.endpoint_url)
    daemon = Daemon(tmp_path, emulator.endpoint_url, parking(stream, park_probe_interval_in_seconds="0.5"))
    ledger = Ledger(tmp_path / "ledger")
    stream.put(rounds(0, 6))
    with running(daemon):
        until(lambda: daemon.status()["work"]["parked"]["keys"] == 1, "the key is parked")
        (tmp_path / "mended").touch()
        until(lambda: ledger.look().records.keys() == set(rounds(0, 6)), "all is handled")
        until(lambda: daemon.status()["work"]["parked"]["keys"] == 0, "the key is free")
        assert daemon.stop() == 0
    assert in_order(ledger.records)


def test_keys_that_were_parked_are_kept_apart_when_the_file_parks_no_more(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url)
    daemon = Daemon(tmp_path, emulator.endpoint_url, parking(stream, park_probe_interval_in_seconds="0"))
    ledger = Ledger(tmp_path / "ledger")
    stream.put(rounds(0, 6))
    with running(daemon):
        until(lambda: daemon.status()["work"]["parked"]["records"] == 3, "the key is parked")
        until(lambda: all_done(daemon), "the stream is done with")
        assert daemon.stop() == 0
    daemon.write(mapping(stream.arn, "mendable", tumbling_window_in_seconds="5"))
    with running(daemon):
        until(
            lambda: "1 parked keys wait" in daemon.status()["work"]["reason"], "windows do not go with them"
        )
        assert daemon.stop() == 0
    daemon.write(mapping(stream.arn, "mendable"))
    stream.put(rounds(6, 8))
    (tmp_path / "mended").touch()
    with running(daemon):
        until(lambda: daemon.status()["work"]["parked"]["records"] == 5, "what follows is put behind it")
        assert poller(tmp_path, "resume", "work", "--all-keys").returncode == 0
        until(lambda: ledger.look().records.keys() == set(rounds(0, 8)), "all is handled")
        assert daemon.stop() == 0
    assert in_order(ledger.records)
    with running(daemon):
        assert daemon.status()["work"]["parked"] is None
        refused = poller(tmp_path, "resume", "work", "--all-keys")
        assert refused.stderr == 'poller resume: it parks no keys: that takes on_poison = "park"\n'
        assert daemon.stop() == 0


def test_ten_thousand_parked_records_fill_the_spool_and_not_the_memory(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url, shards=2)
    config = parking(stream, park_probe_interval_in_seconds="0", spool="{ maximum_entries = 10000 }")
    daemon, ledger = Daemon(tmp_path, emulator.endpoint_url, config), Ledger(tmp_path / "ledger")
    # Another key on the other shard.
    other = next(key for key in map(str, range(100)) if stream.shard_of(key) != stream.shard_of(BAD))
    texts = [f"{BAD}-{number:06}{'!' if number == 0 else ''}" for number in range(10_500)]
    stream.put(texts[:200])
    with running(daemon):
        until(lambda: daemon.status()["work"]["parked"]["records"] == 200, "the key is parked")
        before = daemon.metric("process_resident_memory_bytes")
        stream.put(texts[200:])
        until(
            lambda: "the spool is full" in daemon.status()["work"]["parked"]["waiting"], "the spool is full"
        )
        assert daemon.status()["work"]["parked"]["records"] == 10_000
        waiting = {one["doing"].partition(":")[0] for one in daemon.status()["work"]["shards"]}
        assert "waiting for room among the parked records" in waiting
        stream.put(f"{other}-{number:06}" for number in range(500))
        until(lambda: len(ledger.look().records) == 500, "another key goes on")
        (tmp_path / "mended").touch()
        began = time.monotonic()
        assert poller(tmp_path, "resume", "work", "--key", BAD).returncode == 0
        until(lambda: len(ledger.look().records) == len(texts) + 500, "all is handled")
        took, grown = time.monotonic() - began, daemon.metric("process_resident_memory_bytes") - before
        assert daemon.status()["work"]["parked"]["keys"] == 0
        assert daemon.stop() == 0
    print(f"10,000 parked records taken up in {took:.1f} s; {grown / 2**20:.0f} MiB more")
    assert grown < 64 * 2**20
    assert in_order(ledger.records)


def test_a_record_that_never_will_succeed_is_discarded_and_its_key_goes_on(
    emulator: Emulator, tmp_path: Path
) -> None:
    stream = DataStream(emulator.endpoint_url)
    daemon = Daemon(tmp_path, emulator.endpoint_url, parking(stream, park_probe_interval_in_seconds="0"))
    stream.put(["a-0!", "a-1", "a-2", "b-0"])
    with running(daemon):
        until(lambda: (daemon.status()["work"]["parked"] or {}).get("records") == 3, "the key is parked")
        (place,) = json.loads(poller(tmp_path, "failures", "--json").stdout)
        bad = next(one["newest_id"] for one in place["groups"] if one["what"] == "ValueError")
        refused = poller(tmp_path, "failures", "discard", bad, "--yes")
        assert (refused.returncode, "not paused: poller pause work" in refused.stderr) == (1, True)
        assert poller(tmp_path, "pause", "work").returncode == 0
        gone = poller(tmp_path, "failures", "discard", bad, "--yes")
        assert (gone.returncode, json.loads(gone.stdout)["key"]) == (0, "a")
        assert poller(tmp_path, "resume", "work").returncode == 0
        until(lambda: (daemon.status()["work"]["parked"] or {}).get("records") == 2, "it is gone")
        resumed = poller(tmp_path, "resume", "work", "--key", "a")
        assert resumed.stdout == 'work: key "a" is free again, 2 records handled\n', resumed.stderr
        assert in_order(Ledger(tmp_path / "ledger").look().records)
