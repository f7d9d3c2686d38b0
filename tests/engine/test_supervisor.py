"""All mappings together: started, failing alone, paused, reloaded and stopped."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from poller.engine.child import Child, leaf
from poller.engine.slots import Places, Slots
from poller.engine.status import Board, Totals
from poller.engine.supervisor import Supervisor, give_back_reserve
from poller.engine.unparking import Resumed
from poller.errors import AccessDenied, PollerError, ResourceNotFound, SourceUnfit, Unreachable
from poller.model import MappingState, StateChanged
from tests.engine.fakes import (
    BUSY,
    EPOCH,
    OK,
    Function,
    Mapping,
    Queue,
    Recorder,
    settle_down,
    taking,
    virtual,
    world,
)
from tests.engine.test_parking import Poison, parking

STARTING, RUNNING, DEGRADED = MappingState.STARTING, MappingState.RUNNING, MappingState.DEGRADED
PAUSED, DRAINING, STOPPED = MappingState.PAUSED, MappingState.DRAINING, MappingState.STOPPED
FAILED = MappingState.FAILED


@asynccontextmanager
async def supervised(*mappings, stop_timeout=30.0, board=None):
    """A supervisor at work; leaving stops it."""
    observer = mappings[0].observer if mappings else Recorder()
    for mapping in mappings:
        mapping.observer = observer
    supervisor = Supervisor(observer, board or Board(), world(), stop_timeout)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, [mapping.spec() for mapping in mappings])
        await supervisor.ready()
        await settle_down()
        yield supervisor
        await supervisor.stop(0)


def states(supervisor):
    return {status.name: status.state for status in supervisor.status()}


def reason(supervisor):
    return supervisor.status()[0].reason


# --- life ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_mappings_run_side_by_side():
    one, other = Mapping(name="one"), Mapping(name="other")
    async with supervised(one, other) as supervisor:
        assert supervisor.names == ["one", "other"]
        assert states(supervisor) == {"one": RUNNING, "other": RUNNING}
        assert supervisor.down() == []
        one.queue.send(2)
        other.queue.send(3)
        await settle_down()
    assert (len(one.queue.acked), len(other.queue.acked)) == (2, 3)
    assert one.observer.states("one") == [STARTING, RUNNING, DRAINING, STOPPED]


@virtual
async def test_a_supervisor_without_mappings_waits_to_be_stopped():
    async with supervised() as supervisor:
        await anyio.sleep(1000)
        assert supervisor.status() == ()


@virtual
async def test_it_is_ready_when_every_mapping_has_started_or_shown_that_it_cannot():
    slow, missing = Mapping(name="slow"), Mapping(name="missing")
    slow.queue.opening = lambda: anyio.sleep(5)
    missing.queue.missing = [ResourceNotFound("no such queue")]
    async with supervised(slow, missing) as supervisor:
        assert anyio.current_time() == 5
        assert states(supervisor)["slow"] is RUNNING


@virtual
async def test_it_is_not_ready_before_it_runs():
    supervisor = Supervisor(Recorder(), Board(), world(), 30.0)
    ready = anyio.Event()

    async def wait():
        await supervisor.ready()
        ready.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settle_down()
        assert not ready.is_set()
        tasks.start_soon(supervisor.run, [])
        await settle_down()
        assert ready.is_set()
        await supervisor.stop()


@virtual
async def test_a_supervisor_that_is_stopped_before_it_runs_starts_nothing():
    mapping = Mapping()
    supervisor = Supervisor(mapping.observer, Board(), world(), 30.0)
    await supervisor.stop()
    await supervisor.run([mapping.spec()])
    await supervisor.ready()
    assert mapping.queue.opened == 0


# --- failures -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_missing_queue_is_looked_for_with_growing_pauses_while_others_run():
    missing, other = Mapping(name="missing"), Mapping(name="other")
    looked = []

    async def look():
        looked.append(anyio.current_time())

    missing.queue.opening = look
    missing.queue.missing = [ResourceNotFound("no such queue: missing")] * 6
    async with supervised(missing, other) as supervisor:
        assert states(supervisor) == {"missing": FAILED, "other": RUNNING}
        assert supervisor.down() == ["missing"]
        assert reason(supervisor) == "no such queue: missing; next try in 0.5 s"
        other.queue.send()
        await settle_down()
        assert other.queue.acked == ["m1"]
        await anyio.sleep(40)
        assert states(supervisor)["missing"] is RUNNING
        assert supervisor.status()[0].restarts == 6
        missing.queue.send()
        await settle_down()
    assert looked == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert missing.queue.acked == ["m1"]
    assert missing.observer.states("missing") == [STARTING, *[FAILED] * 6, RUNNING, DRAINING, STOPPED]


@pytest.mark.parametrize(
    "error", [AccessDenied("not allowed"), SourceUnfit("too short a timeout"), Unreachable("no route")]
)
@virtual
async def test_a_source_that_cannot_be_opened_is_shown_with_its_reason_and_is_no_crash(error):
    mapping = Mapping()
    mapping.queue.missing = [error]
    async with supervised(mapping) as supervisor:
        assert states(supervisor) == {"orders": FAILED}
        assert reason(supervisor).startswith(str(error))
    [fact] = [fact for fact in mapping.observer.of(StateChanged) if fact.state is FAILED]
    assert fact.error is None


@virtual
async def test_pauses_begin_anew_once_the_source_was_open_for_a_while():
    mapping = Mapping(function=Function(ValueError("a bug")))
    mapping.queue.missing = [Unreachable()] * 5
    async with supervised(mapping) as supervisor:
        await anyio.sleep(100)
        mapping.queue.send()
        await settle_down()
        assert states(supervisor) == {"orders": FAILED}
        await anyio.sleep(0.6)
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_crash_restarts_its_mapping_and_loses_nothing():
    crash = ZeroDivisionError("a bug")
    mapping, other = Mapping(function=Function(crash)), Mapping(name="other")
    mapping.queue.send(3)
    async with supervised(mapping, other) as supervisor:
        await settle_down()
        assert states(supervisor) == {"orders": FAILED, "other": RUNNING}
        assert reason(supervisor) == "crashed: ZeroDivisionError: a bug"
        assert mapping.queue.given_back == ["m1", "m2", "m3"]
        assert mapping.slots.taken == 0
        await anyio.sleep(1)
        assert states(supervisor) == {"orders": RUNNING, "other": RUNNING}
        assert supervisor.status()[0].restarts == 1
    assert mapping.queue.acked == ["m1", "m2", "m3"]
    assert mapping.observer.states("other") == [STARTING, RUNNING, DRAINING, STOPPED]
    [fact] = [fact for fact in mapping.observer.of(StateChanged) if fact.state is FAILED]
    assert fact.error is crash


@virtual
async def test_a_mapping_that_is_resumed_while_it_gives_everything_back_after_a_crash_is_restarted():
    class SlowToClose(Queue):
        @asynccontextmanager
        async def open(self, shard, start=None):
            async with super().open(shard, start) as reader:
                try:
                    yield reader
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(2)

    mapping = Mapping(SlowToClose(), Function(ValueError("a bug")))
    mapping.queue.send()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(1)
        supervisor.resume("orders")
        await anyio.sleep(3)
        assert states(supervisor) == {"orders": RUNNING}
        assert supervisor.status()[0].restarts == 1
    assert mapping.queue.acked == ["m1"]


@virtual
async def test_a_mapping_that_crashes_again_and_again_stays_down_until_it_is_resumed():
    mapping = Mapping(function=Function(*[ValueError("a bug")] * 5))
    mapping.queue.send()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(1000)
        assert len(mapping.function.calls) == 5
        assert states(supervisor) == {"orders": FAILED}
        assert reason(supervisor) == (
            "crashed: ValueError: a bug; 5 crashes within 300 s, so it stays down until it is resumed"
        )
        supervisor.resume("orders")
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}
    assert mapping.queue.acked == ["m1"]


@virtual
async def test_a_mapping_that_is_resumed_has_its_whole_budget_of_crashes_again():
    mapping = Mapping(function=Function(*[ValueError("a bug")] * 6))
    mapping.queue.send()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(20)
        supervisor.resume("orders")
        await anyio.sleep(20)
        assert states(supervisor) == {"orders": RUNNING}
    assert mapping.queue.acked == ["m1"]


@virtual
async def test_crashes_that_lie_far_apart_do_not_keep_a_mapping_down():
    mapping = Mapping(function=Function(*[ValueError("a bug"), OK] * 20))
    async with supervised(mapping) as supervisor:
        for _ in range(20):
            mapping.queue.send()
            await anyio.sleep(80)
            assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_mapping_that_is_down_for_good_can_be_paused_and_resumed():
    mapping = Mapping(function=Function(*[ValueError("a bug")] * 5))
    mapping.queue.send()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(100)
        supervisor.pause("orders")
        await settle_down()
        assert states(supervisor) == {"orders": PAUSED}
        supervisor.resume("orders")
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_pipeline_that_ends_by_itself_is_a_bug_and_says_so():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        mapping.pipeline.quiet()
        await anyio.sleep(20.2)
        assert reason(supervisor) == ("crashed: RuntimeError: it ended although nobody told it to")


@virtual
async def test_a_command_of_long_ago_does_not_shorten_the_pause_after_a_crash():
    mapping = Mapping(function=Function(ValueError("a bug")))
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        supervisor.resume("orders")
        await anyio.sleep(100)
        mapping.queue.send()
        await settle_down()
        assert states(supervisor) == {"orders": FAILED}
        await anyio.sleep(0.6)
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_command_while_opening_does_not_shorten_the_pause_after_a_crash():
    mapping = Mapping(function=Function(ValueError("a bug")))
    mapping.queue.missing = [Unreachable()]
    async with supervised(mapping) as supervisor:
        mapping.queue.opening = lambda: anyio.sleep(5)
        await anyio.sleep(1)
        supervisor.pause("orders")
        supervisor.resume("orders")
        await anyio.sleep(5)
        mapping.queue.opening = anyio.lowlevel.checkpoint
        mapping.queue.send()
        await settle_down()
        assert states(supervisor) == {"orders": FAILED}


def test_the_error_inside_nested_groups_is_the_one_that_is_told():
    bug = ValueError("a bug")
    assert leaf(ExceptionGroup("", [ExceptionGroup("", [bug]), KeyError()])) is bug
    assert leaf(bug) is bug


# --- pause and resume ---------------------------------------------------------------------------------------------------


@virtual
async def test_a_paused_mapping_receives_nothing_until_it_is_resumed():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        assert states(supervisor) == {"orders": PAUSED}
        assert reason(supervisor) == "by command"
        await anyio.sleep(100)
        mapping.queue.send()
        await anyio.sleep(100)
        assert len(mapping.queue.receives) == 1
        supervisor.resume("orders")
        await settle_down()
        assert (states(supervisor), reason(supervisor)) == ({"orders": RUNNING}, "")
    assert mapping.queue.acked == ["m1"]
    assert mapping.queue.opened == 1


@virtual
async def test_pausing_one_mapping_leaves_the_others_alone():
    one, other = Mapping(name="one"), Mapping(name="other")
    async with supervised(one, other) as supervisor:
        supervisor.pause("one")
        other.queue.send()
        await settle_down()
        assert states(supervisor) == {"one": PAUSED, "other": RUNNING}
    assert other.queue.acked == ["m1"]


@virtual
async def test_a_mapping_that_is_not_enabled_is_paused_until_it_is_resumed():
    mapping = Mapping(enabled=False)
    async with supervised(mapping) as supervisor:
        await anyio.sleep(100)
        assert states(supervisor) == {"orders": PAUSED}
        assert reason(supervisor) == "enabled = false"
        assert mapping.queue.opened == 0
        supervisor.resume("orders")
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}
    assert mapping.observer.states() == [PAUSED, STARTING, RUNNING, DRAINING, STOPPED]


@virtual
async def test_a_failed_mapping_can_be_paused():
    mapping = Mapping()
    mapping.queue.missing = [Unreachable("no route")] * 100
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        await settle_down()
        assert states(supervisor) == {"orders": PAUSED}
        tried = len(mapping.queue.missing)
        await anyio.sleep(1000)
        assert len(mapping.queue.missing) == tried
        mapping.queue.missing = []
        supervisor.resume("orders")
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_resuming_a_failed_mapping_tries_it_now():
    mapping = Mapping()
    mapping.queue.missing = [Unreachable("no route")] * 100
    async with supervised(mapping) as supervisor:
        await anyio.sleep(100)
        assert states(supervisor) == {"orders": FAILED}
        mapping.queue.missing = []
        supervisor.resume("orders")
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_pause_while_the_source_is_being_opened_counts():
    mapping = Mapping()
    mapping.queue.opening = lambda: anyio.sleep(5)
    mapping.queue.send()
    supervisor = Supervisor(mapping.observer, Board(), world(), 30.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, [mapping.spec()])
        await anyio.sleep(1)
        supervisor.pause("orders")
        await anyio.sleep(100)
        assert states(supervisor) == {"orders": PAUSED}
        assert mapping.queue.receives == []
        supervisor.resume("orders")
        await settle_down()
        assert mapping.queue.acked == ["m1"]
        await supervisor.stop()


# --- put down: paused, with its source closed -------------------------------------------------------------------------------


@virtual
async def test_a_mapping_that_is_put_down_reads_nothing_and_is_opened_anew_when_it_is_resumed():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        supervisor.check_paused("orders")
        async with supervisor.put_down("orders"):
            assert (mapping.queue.opened, mapping.queue.receiving) == (1, 0)
            assert states(supervisor) == {"orders": PAUSED}
            assert supervisor.status()[0].receivers == 0
        await anyio.sleep(100)
        assert mapping.queue.opened == 1
        supervisor.resume("orders")
        mapping.queue.send()
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}
        assert mapping.queue.opened == 2
    assert mapping.queue.acked == ["m1"]
    assert FAILED not in mapping.observer.states()


@virtual
async def test_work_at_hand_may_end_before_a_mapping_is_put_down_and_is_cut_short_when_it_takes_long():
    short, long = Mapping(name="short", function=Function(handler=taking(3))), Mapping(name="long")
    long.function = Function(handler=taking(60))
    async with supervised(short, long) as supervisor:
        for mapping in (short, long):
            mapping.queue.send()
        await settle_down()
        for name in ("short", "long"):
            supervisor.pause(name)
            before = anyio.current_time()
            async with supervisor.put_down(name):
                assert anyio.current_time() - before == 5
        assert (short.queue.acked, long.queue.acked) == (["m1"], [])
        assert states(supervisor) == {"short": PAUSED, "long": PAUSED}


@virtual
async def test_a_mapping_that_is_not_paused_is_not_put_down():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        with pytest.raises(PollerError, match=r"^it is running, not paused: poller pause orders$"):
            supervisor.check_paused("orders")
        with pytest.raises(PollerError, match="not paused"):
            async with supervisor.put_down("orders"):
                pass
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_mapping_that_is_resumed_while_it_is_put_down_starts_afterwards():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        async with supervisor.put_down("orders"):
            supervisor.resume("orders")
            await anyio.sleep(100)
            assert (states(supervisor), mapping.queue.opened) == ({"orders": PAUSED}, 1)
        await settle_down()
        assert (states(supervisor), mapping.queue.opened) == ({"orders": RUNNING}, 2)


@virtual
async def test_a_mapping_that_is_resumed_while_its_work_ends_starts_afterwards():
    mapping = Mapping(function=Function(handler=taking(3)))
    async with supervised(mapping) as supervisor, anyio.create_task_group() as tasks:
        mapping.queue.send()
        await settle_down()
        supervisor.pause("orders")
        tasks.start_soon(put_down_for, supervisor, 10)
        await anyio.sleep(1)
        supervisor.resume("orders")
        await anyio.sleep(10)
        assert (states(supervisor), mapping.queue.opened) == ({"orders": PAUSED}, 1)
        await anyio.sleep(10)
        assert (states(supervisor), mapping.queue.opened) == ({"orders": RUNNING}, 2)
    assert FAILED not in mapping.observer.states()


async def put_down_for(supervisor, seconds):
    async with supervisor.put_down("orders"):
        await anyio.sleep(seconds)


@virtual
async def test_a_mapping_whose_source_is_being_opened_is_put_down_too():
    mapping = Mapping()
    mapping.queue.opening = lambda: anyio.sleep(3)
    supervisor = Supervisor(mapping.observer, Board(), world(), 30.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, [mapping.spec()])
        await anyio.sleep(1)
        supervisor.pause("orders")
        async with supervisor.put_down("orders"):
            assert mapping.queue.opened == 1
            assert mapping.queue.receives == []
        await supervisor.stop(0)


@virtual
async def test_a_mapping_that_is_not_open_is_put_down_at_once():
    mapping = Mapping(enabled=False)
    async with supervised(mapping) as supervisor:
        before = anyio.current_time()
        async with supervisor.put_down("orders"):
            assert anyio.current_time() == before


@virtual
async def test_a_put_down_that_is_given_up_halfway_leaves_a_paused_mapping():
    mapping = Mapping(function=Function(handler=taking(3)))
    async with supervised(mapping) as supervisor:
        mapping.queue.send()
        await settle_down()
        supervisor.pause("orders")
        with anyio.move_on_after(1):
            await put_down_for(supervisor, 10)
        await anyio.sleep(10)
        assert states(supervisor) == {"orders": PAUSED}
        supervisor.resume("orders")
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}
    assert FAILED not in mapping.observer.states()


@virtual
async def test_a_reload_waits_for_a_mapping_that_is_put_down():
    mapping = Mapping()
    reloaded = anyio.Event()

    async def reload() -> None:
        await supervisor.reload([replace(mapping.spec(), fingerprint="changed")])
        reloaded.set()

    async with supervised(mapping) as supervisor, anyio.create_task_group() as tasks:
        supervisor.pause("orders")
        tasks.start_soon(put_down_for, supervisor, 10)
        await settle_down()
        tasks.start_soon(reload)
        await anyio.sleep(14)
        assert not reloaded.is_set()
        await anyio.sleep(2)
        assert reloaded.is_set()
        supervisor.resume("orders")
        await settle_down()
        assert (states(supervisor), mapping.queue.opened) == ({"orders": RUNNING}, 2)


@virtual
async def test_a_stop_ends_a_mapping_that_is_put_down():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        async with supervisor.put_down("orders"):
            await supervisor.stop(1)
        assert states(supervisor) == {"orders": STOPPED}


@virtual
async def test_commands_after_quiet_change_nothing():
    mapping = Mapping(function=Function(handler=taking(5)))
    mapping.queue.send()
    async with supervised(mapping) as supervisor, anyio.create_task_group() as tasks:
        await settle_down()
        tasks.start_soon(supervisor.stop, 30)
        await anyio.sleep(1)
        for command in (supervisor.pause, supervisor.resume):
            command("orders")
            assert states(supervisor) == {"orders": DRAINING}
    assert mapping.observer.states() == [STARTING, RUNNING, DRAINING, STOPPED]


@pytest.mark.parametrize("command", ["pause", "resume"])
@virtual
async def test_a_name_that_does_not_exist_is_a_key_error(command):
    async with supervised(Mapping()) as supervisor:
        with pytest.raises(KeyError, match="nobody"):
            getattr(supervisor, command)("nobody")


# --- stop ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_stop_settles_what_finishes_in_time():
    mapping = Mapping(function=Function(handler=taking(20)), maximum_concurrency=1)
    mapping.queue.send(3)
    async with supervised(mapping) as supervisor:
        await anyio.sleep(1)
        began = anyio.current_time()
        await supervisor.stop(30)
        assert anyio.current_time() - began == 19
    assert mapping.queue.acked == ["m1", "m2", "m3"]
    assert mapping.queue.cancelled_receives == 0


@virtual
async def test_a_stop_cancels_what_is_late_before_its_deadline_and_gives_it_back():
    mapping = Mapping(function=Function(handler=taking(100)))
    mapping.queue.send(3)
    async with supervised(mapping) as supervisor:
        await anyio.sleep(1)
        began = anyio.current_time()
        await supervisor.stop(30)
        assert anyio.current_time() - began == 27
    assert mapping.function.cancelled == 1
    assert mapping.queue.acked == []
    assert mapping.queue.given_back == ["m1", "m2", "m3"]
    assert mapping.queue.waiting == ["m1", "m2", "m3"]


@pytest.mark.parametrize(("timeout", "reserve"), [(0, 0), (1, 0.2), (10, 2), (15, 3), (30, 3), (900, 3)])
def test_a_part_of_a_stops_time_is_kept_for_giving_back(timeout, reserve):
    assert give_back_reserve(timeout) == pytest.approx(reserve)


@virtual
async def test_a_stop_of_an_idle_mapping_lasts_as_long_as_its_long_poll():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(5)
        await supervisor.stop()
        assert anyio.current_time() == 20
    assert mapping.queue.cancelled_receives == 0


@virtual
async def test_messages_of_a_long_poll_that_returns_during_a_stop_are_given_back():
    mapping = Mapping()
    async with supervised(mapping) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(5)
        tasks.start_soon(supervisor.stop)
        await anyio.sleep(5)
        mapping.queue.send(2)
        await settle_down()
        assert mapping.queue.released == ["m1", "m2"]
        assert states(supervisor) == {"orders": STOPPED}
    assert mapping.function.calls == []


@virtual
async def test_a_stop_gives_up_opening_a_source():
    mapping = Mapping()
    mapping.queue.opening = lambda: anyio.sleep(1000)
    supervisor = Supervisor(mapping.observer, Board(), world(), 30.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, [mapping.spec()])
        await anyio.sleep(1)
        await supervisor.stop()
    assert anyio.current_time() == 1
    assert mapping.observer.states() == [STARTING, STOPPED]


@virtual
async def test_a_source_whose_opening_cannot_be_given_up_is_closed_again_unread():
    mapping = Mapping()

    async def stubborn():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10)

    mapping.queue.opening = stubborn
    mapping.queue.send()
    supervisor = Supervisor(mapping.observer, Board(), world(), 30.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, [mapping.spec()])
        await anyio.sleep(1)
        await supervisor.stop()
    assert anyio.current_time() == 10
    assert mapping.queue.receives == []


@pytest.mark.parametrize("prepare", ["paused", "failed"])
@virtual
async def test_a_mapping_that_is_not_running_stops_at_once(prepare):
    mapping = Mapping(enabled=prepare != "paused")
    mapping.queue.missing = [Unreachable()] * 100
    async with supervised(mapping) as supervisor:
        await anyio.sleep(100)
        await supervisor.stop()
        assert anyio.current_time() == 100
        assert states(supervisor) == {"orders": STOPPED}


@virtual
async def test_a_second_stop_that_is_shorter_wins():
    mapping = Mapping(function=Function(handler=taking(100)))
    mapping.queue.send()
    async with supervised(mapping) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(1)
        tasks.start_soon(supervisor.stop, 60)
        await anyio.sleep(1)
        await supervisor.stop(5)
        assert anyio.current_time() == 6
    assert mapping.queue.waiting == ["m1"]


@virtual
async def test_stop_now_cuts_a_stop_short():
    mapping = Mapping(function=Function(handler=taking(100)))
    mapping.queue.send()
    async with supervised(mapping) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(1)
        tasks.start_soon(supervisor.stop)
        await anyio.sleep(1)
        supervisor.stop_now()
    assert anyio.current_time() == 2
    assert mapping.queue.given_back == ["m1"]


@virtual
async def test_a_crash_during_a_stop_ends_the_mapping():
    async def crash(_):
        await anyio.sleep(5)
        raise ValueError("a bug")

    mapping = Mapping(function=Function(handler=crash))
    mapping.queue.send()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(1)
        await supervisor.stop()
        assert anyio.current_time() == 5
    assert mapping.observer.states() == [STARTING, RUNNING, DRAINING, FAILED, STOPPED]


@virtual
async def test_a_runtime_that_crashes_when_it_is_cancelled_harms_no_other_mapping():
    async def crash(_):
        try:
            await anyio.sleep(100)
        finally:
            raise ValueError("a bug in the clean-up")

    one = Mapping(name="one", function=Function(handler=crash), batch_size=1)
    other = Mapping(name="other", function=Function(handler=taking(25)))
    one.queue.send(2)
    async with supervised(one, other) as supervisor:
        await anyio.sleep(1)
        other.queue.send()
        await settle_down()
        supervisor._children["one"].scope.cancel()
        await anyio.sleep(1)
        assert states(supervisor) == {"one": STOPPED, "other": RUNNING}
        await supervisor.stop()
    assert other.queue.acked == ["m1"]
    assert len(one.queue.waiting) == 2


# --- reload -------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_reload_leaves_an_unchanged_mapping_undisturbed():
    mapping = Mapping()
    async with supervised(mapping) as supervisor:
        await anyio.sleep(5)
        pipeline = mapping.pipeline
        await supervisor.reload([mapping.spec()])
        assert anyio.current_time() == 5
        mapping.queue.send()
        await settle_down()
        assert mapping.pipelines == [pipeline]
        assert len(mapping.queue.receives) == 1
    assert mapping.queue.acked == ["m1"]


@virtual
async def test_a_reload_drains_a_changed_mapping_before_its_successor_starts():
    queue, observer = Queue(), Recorder()
    old = Mapping(queue, Function(handler=taking(25)), observer=observer)
    new = Mapping(queue, fingerprint=2, observer=observer)
    async with supervised(old) as supervisor, anyio.create_task_group() as tasks:
        queue.send(2)
        await anyio.sleep(5)
        tasks.start_soon(supervisor.reload, [new.spec()])
        await anyio.sleep(5)
        assert states(supervisor) == {"orders": DRAINING}
        assert supervisor.names == []
        await anyio.sleep(20)
        assert states(supervisor) == {"orders": RUNNING}
        assert queue.acked == ["m1", "m2"]
        queue.send()
        await settle_down()
        assert len(new.function.calls) == 1
    assert observer.states() == [STARTING, RUNNING, DRAINING, STOPPED, STARTING, RUNNING, DRAINING, STOPPED]


@virtual
async def test_a_mapping_that_was_paused_by_command_stays_paused_when_a_reload_changes_it():
    queue = Queue()
    old, new = Mapping(queue), Mapping(queue, fingerprint=2)
    async with supervised(old) as supervisor:
        supervisor.pause("orders")
        await supervisor.reload([new.spec()])
        queue.send()
        await anyio.sleep(100)
        assert states(supervisor) == {"orders": PAUSED}
        assert reason(supervisor) == "by command"
        supervisor.resume("orders")
        await settle_down()
        assert queue.acked == ["m1"]


@virtual
async def test_a_mapping_that_a_reload_enables_starts():
    queue = Queue()
    old, new = Mapping(queue, enabled=False), Mapping(queue, fingerprint=2)
    async with supervised(old) as supervisor:
        await supervisor.reload([new.spec()])
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_mapping_that_a_reload_disables_says_so_although_it_was_paused_by_command():
    queue = Queue()
    old, new = Mapping(queue), Mapping(queue, fingerprint=2, enabled=False)
    async with supervised(old) as supervisor:
        supervisor.pause("orders")
        await supervisor.reload([new.spec()])
        await settle_down()
        assert reason(supervisor) == "enabled = false"


@virtual
async def test_a_reload_stops_what_is_gone_and_starts_what_is_new():
    gone, new, kept = Mapping(name="gone"), Mapping(name="new"), Mapping(name="kept")
    board = Board()
    async with supervised(gone, kept, board=board) as supervisor:
        board.of("gone").received = 7
        board.of("kept").received = 8
        await anyio.sleep(5)
        await supervisor.reload([kept.spec(), new.spec()])
        await settle_down()
        assert states(supervisor) == {"kept": RUNNING, "new": RUNNING}
        assert board.of("gone") == Totals()
        assert board.of("kept").received == 8


@virtual
async def test_a_reload_starts_new_mappings_without_waiting_for_those_that_leave():
    gone, new = Mapping(name="gone"), Mapping(name="new")
    async with supervised(gone) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(5)
        tasks.start_soon(supervisor.reload, [new.spec()])
        await settle_down()
        assert states(supervisor) == {"gone": DRAINING, "new": RUNNING}


@virtual
async def test_a_reload_lets_a_handler_of_a_removed_mapping_end():
    old = Mapping(function=Function(handler=taking(600)))
    old.queue.send()
    async with supervised(old, stop_timeout=30) as supervisor:
        await anyio.sleep(1)
        await supervisor.reload([])
        assert anyio.current_time() == 600
    assert old.queue.acked == ["m1"]


@virtual
async def test_a_reload_tries_a_mapping_that_is_down_again_when_it_has_changed():
    broken = Mapping(function=Function(*[ValueError("a bug")] * 5))
    broken.queue.send()
    async with supervised(broken) as supervisor:
        await anyio.sleep(100)
        await supervisor.reload([broken.spec()])
        await settle_down()
        assert states(supervisor) == {"orders": FAILED}
        await supervisor.reload([replace(broken.spec(), fingerprint=2)])
        await settle_down()
        assert states(supervisor) == {"orders": RUNNING}


@virtual
async def test_a_stop_during_a_reload_starts_nothing_new():
    queue, observer = Queue(), Recorder()
    old = Mapping(queue, Function(handler=taking(15)), observer=observer)
    new = Mapping(queue, fingerprint=2, observer=observer)
    queue.send()
    async with supervised(old) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(1)
        tasks.start_soon(supervisor.reload, [new.spec()])
        await anyio.sleep(1)
        await supervisor.stop()
    assert queue.acked == ["m1"]
    assert new.pipelines == []
    assert observer.states() == [STARTING, RUNNING, DRAINING, STOPPED]


@virtual
async def test_stop_now_reaches_mappings_that_are_leaving():
    old = Mapping(function=Function(handler=taking(1000)))
    old.queue.send()
    async with supervised(old) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(1)
        tasks.start_soon(supervisor.reload, [])
        await anyio.sleep(1)
        supervisor.stop_now()
        await settle_down()
        assert old.queue.given_back == ["m1"]
        assert supervisor.status() == ()


@virtual
async def test_a_second_reload_waits_for_the_first():
    queue, observer = Queue(), Recorder()
    first, second, third = (
        Mapping(queue, Function(handler=taking(3)), fingerprint=at, observer=observer) for at in range(3)
    )
    async with supervised(first) as supervisor, anyio.create_task_group() as tasks:
        await anyio.sleep(5)
        tasks.start_soon(supervisor.reload, [second.spec()])
        await anyio.sleep(1)
        await supervisor.reload([third.spec()])
        await settle_down()
        assert [len(mapping.pipelines) for mapping in (first, second, third)] == [1, 1, 1]
        assert states(supervisor) == {"orders": RUNNING}
        assert queue.receiving == 1
        queue.send()
        await settle_down()
        assert len(third.function.calls) == 1


# --- status -------------------------------------------------------------------------------------------------------------


@virtual
async def test_the_status_of_a_mapping_says_what_it_does():
    mapping = Mapping(maximum_concurrency=2, batch_size=2, payload=13 + 150)
    board = Board()
    mapping.function.hold()
    async with supervised(mapping, board=board) as supervisor:
        await anyio.sleep(10)
        mapping.queue.send(2, size=100)
        await settle_down()
        [status] = supervisor.status()
        assert status.name == "orders"
        assert status.source == "arn:aws:sqs:eu-west-1:123456789012:orders"
        assert status.function == "ship"
        assert status.state is RUNNING
        assert status.since == EPOCH
        assert status.receivers == 1
        assert (status.in_flight_invocations, status.in_flight_records) == (1, 1)
        # One more was received and did not fit into the batch.
        assert (status.buffered_records, status.buffered_bytes) == (1, 100)
        assert status.restarts == 0
        assert status.totals is board.of("orders")


@virtual
async def test_the_status_of_a_mapping_that_is_not_open_has_zeros():
    async with supervised(Mapping(enabled=False)) as supervisor:
        [status] = supervisor.status()
        assert (status.receivers, status.in_flight_invocations, status.in_flight_records) == (0, 0, 0)
        assert (status.buffered_records, status.buffered_bytes) == (0, 0)


@virtual
async def test_a_mapping_at_its_limit_says_so():
    mapping = Mapping(maximum_concurrency=2)
    mapping.function.hold()
    mapping.queue.send(50)
    async with supervised(mapping) as supervisor:
        await settle_down()
        assert reason(supervisor) == "at the concurrency limit: 2 invocations in flight"


@virtual
async def test_a_mapping_whose_source_fails_is_degraded_and_says_why():
    mapping = Mapping()
    mapping.queue.break_down(Unreachable("no route to host"))
    async with supervised(mapping) as supervisor:
        await settle_down()
        assert states(supervisor) == {"orders": DEGRADED}
        assert reason(supervisor) == "no route to host"
        assert supervisor.down() == []
        supervisor.pause("orders")
        assert (states(supervisor), reason(supervisor)) == ({"orders": PAUSED}, "by command")
        mapping.queue.break_down(None)
        supervisor.resume("orders")
        await anyio.sleep(30)
        assert (states(supervisor), reason(supervisor)) == ({"orders": RUNNING}, "")


@virtual
async def test_the_time_of_the_last_change_is_shown():
    async with supervised(Mapping()) as supervisor:
        await anyio.sleep(100)
        supervisor.pause("orders")
        await anyio.sleep(100)
        assert supervisor.status()[0].since == EPOCH + 100


@virtual
async def test_a_child_describes_itself():
    child = Child(Mapping(enabled=False).spec(), Recorder(), world())
    assert repr(child) == "<Child orders: starting>"
    child.quiet()
    await child.run()
    assert repr(child) == "<Child orders: stopped>"


@virtual
async def test_a_child_describes_why_it_is_where_it_is():
    mapping = Mapping(function=Function(BUSY), slots=Slots(Places(1), None))
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        assert repr(supervisor._children["orders"]) == "<Child orders: paused, by command>"


# --- parked keys --------------------------------------------------------------------------------------------------------------


@virtual
async def test_parked_keys_of_a_mapping_are_shown_and_resumed_by_its_name():
    poison = Poison("1")
    clicks = parking(poison)
    clicks.stream.put(2)
    spec = Mapping(name="clicks").spec(open=clicks.open)
    supervisor = Supervisor(clicks.observer, Board(), world(), 30.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, [spec])
        await supervisor.ready()
        await anyio.sleep(5)
        (status,) = supervisor.status()
        assert (status.parked.keys, status.parked.records) == (1, 2)
        poison.mend()
        assert await supervisor.resume_keys("clicks", "k") == (Resumed("k", "free", 2),)
        with pytest.raises(KeyError):
            await supervisor.resume_keys("orders", "k")
        await supervisor.stop(0)
    assert supervisor.status()[0].parked is None


@virtual
async def test_keys_are_resumed_only_where_some_can_be_parked_and_while_the_mapping_runs():
    orders, asleep = Mapping(), Mapping(name="asleep", enabled=False)
    async with supervised(orders, asleep) as supervisor:
        assert supervisor.status()[0].parked is None
        with pytest.raises(PollerError, match='it parks no keys: that takes on_poison = "park"'):
            await supervisor.resume_keys("orders", "k")
        with pytest.raises(PollerError, match="it is paused, so nothing parked can be taken up"):
            await supervisor.resume_keys("asleep", None)
