"""The laws where keys are parked: whatever fails for a while, nothing is given up, and each key keeps its order to the end.

The courses are those of `test_stream_laws`, with records that fail until the function is mended, a spool that fills up and
fails, and commands that resume keys in the middle of it all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poller.core import spooled
from poller.core.breaker import CircuitPolicy
from poller.core.retry import StreamPolicy
from poller.errors import PollerError
from poller.model import SpoolLimits
from tests.engine.fakes import ERROR, failing, in_virtual_time
from tests.engine.test_stream_laws import KEYS, Command, Kill, Put, Reshard, Trial, Wait, behaviours

steps = st.lists(
    st.one_of(
        st.builds(Put, st.text(KEYS, min_size=1, max_size=20), st.sampled_from([10, 100, 400])),
        st.builds(Wait, st.sampled_from([0.0, 0.3, 1.0, 7.0, 70.0])),
        st.builds(Reshard, st.sampled_from(["split", "merge"]), st.integers(0, 10)),
        st.builds(Kill, st.integers(0, 60)),
        st.builds(
            Command,
            st.sampled_from(
                [
                    "close",
                    "open",
                    "stop",
                    "no reads",
                    "no store",
                    "no destination",
                    "recover",
                    "mend",
                    "break",
                    "resume",
                    "ask",
                ]
            ),
        ),
    ),
    max_size=20,
)
mappings = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 4, 10, 100]),
        "payload": st.sampled_from([13 + 450, 6 * 2**20]),
        "lanes": st.sampled_from([1, 1, 2, 5]),
        "probe_interval": st.sampled_from([0, 0.5, 5, 60]),
        "spool_limits": st.sampled_from([SpoolLimits(4, 2**20), SpoolLimits(10_000, 2**20)]),
        "circuit": st.sampled_from([None, None, CircuitPolicy(3, 10, 100)]),
        "spool_after": st.sampled_from([None, None, 1]),
        "policy": st.builds(
            StreamPolicy,
            maximum_retry_attempts=st.sampled_from([0, 0, 1]),
            maximum_record_age_in_seconds=st.sampled_from([-1, -1, -1, 60]),
            bisect_batch_on_function_error=st.just(True),
        ),
    }
)


@dataclass
class ParkingTrial(Trial):
    """A trial of a mapping that parks keys."""

    poison: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.mended = False
        super().__post_init__()

    def new_clicks(self):
        clicks = super().new_clicks()
        clicks.spool = self.store.spool
        return clicks

    async def handler(self, call):
        bad = [] if self.mended else [id_ for id_ in call.ids if id_ in self.poison]
        if not bad:
            return await super().handler(call)
        await anyio.sleep(0.1)
        if not self.partial:
            return ERROR
        self.handled |= dict.fromkeys(call.ids[: call.ids.index(bad[0])])
        return failing(*bad)

    def send(self, keys, size):
        super().send(keys, size)
        self.poison = {number for numbers in self.put.values() for number in numbers if int(number) % 5 == 3}

    async def until_it_ends(self, keeper, rest):
        killed = False
        async with anyio.create_task_group() as asking:
            while rest:
                match rest.pop(0):
                    case Command("mend" | "break" as name):
                        self.mended = name == "mend"
                    case Command("resume"):
                        await self.resume(keeper)
                    case Command("ask"):
                        asking.start_soon(self.resume, keeper)
                    case step:
                        killed = await super().until_it_ends(keeper, [step])
                        if killed or step == Command("stop"):
                            break
            asking.cancel_scope.cancel()
        return killed

    async def resume(self, keeper):
        try:
            await keeper.unparking.resume(None)
        except PollerError as error:
            if "it is paused, or its circuit breaker is open" not in str(error):
                raise

    def spooled(self):
        """Deliveries and parked records."""
        entries = self.store.spool.held
        delivered = [entry for entry in entries if entry.kind == "delivery"]
        parked = {entry.id.partition(":")[2] for entry in entries if entry.kind == "parked"}
        return parked.union(*(self.records_of(spooled.delivery(entry)) for entry in delivered))

    async def finish(self):
        self.mended = True
        self.recover()
        async with self.clicks.open() as keeper, anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.run)
            for _ in range(40):
                await self.resume(keeper)
                await anyio.sleep(100)
                if not (self.missing() or self.store.spool.held):
                    break
            await anyio.sleep(200)
            load = keeper.load()
            assert (load.in_flight_records, load.buffered_records, load.buffered_bytes) == (0, 0, 0)
            status = keeper.unparking.status()
            assert (status.keys, status.records, status.bytes, self.clicks.keeper.parking.keys) == (
                0,
                0,
                0,
                {},
            )
            keeper.quiet()
        self.check_nothing_is_kept()
        self.note_given_up()

    def check(self):
        super().check()
        if self.settings["policy"].maximum_record_age_in_seconds < 0:
            assert self.given_up == set()


def run_trial(settings_of_mapping, steps, behaviours, partial):
    async def body():
        trial = ParkingTrial(settings_of_mapping, list(behaviours), partial)
        await trial.run(steps)
        trial.check()

    in_virtual_time(body)


COURSES = {
    "steps": steps,
    "behaviours": behaviours,
    "settings_of_mapping": mappings,
    "partial": st.booleans(),
}


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(**COURSES)
def test_the_laws_hold_where_keys_are_parked(settings_of_mapping, steps, behaviours, partial):
    run_trial(settings_of_mapping, steps, behaviours, partial)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(**COURSES)
def test_the_laws_hold_over_many_more_courses_where_keys_are_parked(
    settings_of_mapping, steps, behaviours, partial
):
    run_trial(settings_of_mapping, steps, behaviours, partial)
