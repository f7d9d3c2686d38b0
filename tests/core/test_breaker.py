"""When a mapping stops asking its function, and how it finds the way back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from poller.core.breaker import SHOWN, Circuit, CircuitPolicy, verdict
from poller.model import CircuitState, Failed, FunctionError, NotInvoked, PartlyFailed, Record, Succeeded

CLOSED, OPEN, HALF_OPEN, RAMPING = CircuitState
POLICY = CircuitPolicy(consecutive_failures=3, pause=10.0, maximum_pause=60.0)
RECORDS = [Record(name, None, 10, {}, None) for name in "abc"]


def heard(circuit, results, *, now=0.0, chance=0.0, ceiling=8):
    """Let `circuit` hear a success for each + and a failure for each -."""
    for result in results:
        circuit.heard(result == "+", "ValueError: no", now=now, chance=chance, ceiling=ceiling)
    return circuit


def probed(results="", ceiling=8):
    """A circuit that has opened, and what was heard from its probe on."""
    circuit = heard(Circuit(POLICY), "---")
    circuit.probe()
    return heard(circuit, results, ceiling=ceiling)


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("", CLOSED),
        ("--", CLOSED),
        ("---", OPEN),
        ("--+--", CLOSED),
        ("--+---", OPEN),
        ("+" * 100 + "---", OPEN),
    ],
)
def test_failures_in_a_row_open_the_circuit(results, state):
    assert heard(Circuit(POLICY), results).state is state


def test_one_failure_opens_the_circuit_when_one_is_too_many():
    assert heard(Circuit(CircuitPolicy(1, 10, 60)), "+-").state is OPEN


@pytest.mark.parametrize(
    ("after_the_probe", "ceiling", "state", "allowed"),
    [
        ("", 8, HALF_OPEN, 1),
        ("-", 8, OPEN, 0),
        ("+", 8, RAMPING, 2),
        ("++", 8, RAMPING, 2),
        ("+++", 8, RAMPING, 4),  # 1 + 2
        ("+" * 7, 8, RAMPING, 8),  # 1 + 2 + 4
        ("+" * 14, 8, RAMPING, 8),
        ("+" * 15, 8, CLOSED, math.inf),  # 1 + 2 + 4 + 8
        ("+" * 8, 5, RAMPING, 5),
        ("+" * 12, 5, CLOSED, math.inf),  # 1 + 2 + 4 + 5
        ("+", 1, CLOSED, math.inf),
        ("+-", 8, RAMPING, 2),
        ("+--", 8, OPEN, 0),  # as many as are allowed
        ("+-+-+-+-+", 8, RAMPING, 4),  # 1, then 2 and 2 of 4: what fails alone holds nothing up
        ("+++--", 8, RAMPING, 4),
        ("+++---", 8, OPEN, 0),  # as many as open a closed one
    ],
)
def test_it_finds_its_way_back_by_a_probe_and_a_ramp(after_the_probe, ceiling, state, allowed):
    circuit = probed(after_the_probe, ceiling)
    assert (circuit.state, circuit.allowed) == (state, allowed)


def test_a_closed_circuit_counts_from_nothing():
    assert probed("+" * 15 + "--").state is CLOSED
    assert probed("+" * 15 + "---").state is OPEN


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_pauses_double_to_the_longest_with_up_to_half_of_them_left_to_chance(chance):
    circuit = heard(Circuit(POLICY), "---", now=100.0, chance=chance)
    pauses = []
    for _ in range(5):
        pauses.append(circuit.probe_at - 100.0)
        circuit.probe()
        assert circuit.probe_at == math.inf
        heard(circuit, "-", now=100.0, chance=chance)
    assert pauses == [share * (0.5 + chance / 2) for share in (10.0, 20.0, 40.0, 60.0, 60.0)]


def test_an_opening_in_the_ramp_lengthens_the_pause():
    assert probed("+--").probe_at == 10.0


def test_pauses_begin_anew_once_the_ramp_is_as_far_as_a_closed_circuit():
    assert probed("+++---").probe_at == 5.0


def test_each_opening_is_a_generation_of_its_own():
    circuit = Circuit(POLICY)
    assert circuit.generation == 0
    heard(circuit, "---")
    assert circuit.generation == 1
    circuit.probe()
    assert circuit.generation == 1
    heard(circuit, "-")
    assert circuit.generation == 2
    circuit.probe()
    heard(circuit, "+" * 15)
    assert (circuit.state, circuit.generation) == (CLOSED, 2)


def test_a_status_says_what_failed_and_when_the_next_probe_is():
    circuit = heard(Circuit(POLICY), "---")
    assert circuit.describe(0.0) == (
        "circuit open: 3 invocations in a row failed (ValueError: no); next probe in 5 s"
    )
    assert circuit.describe(7.0).endswith("next probe in 0 s")
    circuit.probe()
    assert circuit.describe(7.0) == (
        "circuit half-open: probing with one batch, since 3 invocations in a row failed (ValueError: no)"
    )
    heard(circuit, "-")
    assert "4 invocations in a row failed" in circuit.describe(7.0)
    circuit.probe()
    assert heard(circuit, "+").describe(7.0) == ""
    assert (
        heard(Circuit(CircuitPolicy(1, 10, 60)), "-")
        .describe(0.0)
        .startswith("circuit open: 1 invocation in")
    )
    assert repr(circuit) == "<Circuit ramping, 0 failures in a row, 2 allowed>"


@pytest.mark.parametrize(
    ("outcome", "ordered", "wanted"),
    [
        (Succeeded(), False, (True, "")),
        (NotInvoked("throttled"), False, None),
        (PartlyFailed(frozenset("a")), False, (True, "no record of the batch was finished")),
        (PartlyFailed(frozenset("bc")), True, (True, "no record of the batch was finished")),
        # A handler that stops at the first failure, as those of streams do, has done nothing when that is the first record.
        (PartlyFailed(frozenset("a")), True, (False, "no record of the batch was finished")),
        (PartlyFailed(frozenset("abc")), False, (False, "no record of the batch was finished")),
        (
            Failed(FunctionError("ValueError", "no such\n  order")),
            False,
            (False, "ValueError: no such order"),
        ),
        (
            Failed(FunctionError("Sandbox.Timedout", "8 s", timed_out=True)),
            True,
            (False, "Sandbox.Timedout: 8 s"),
        ),
    ],
)
def test_what_counts_is_whether_anything_of_the_batch_is_done(outcome, ordered, wanted):
    assert verdict(outcome, RECORDS, ordered=ordered) == wanted


def test_a_long_error_is_cut_short():
    _, error = verdict(Failed(FunctionError("ValueError", "x" * 1000)), RECORDS, ordered=False)
    assert len(error) == SHOWN
    assert error.endswith("x…")


policies = st.builds(CircuitPolicy, st.integers(1, 12), st.floats(1, 100), st.floats(100, 1000))


class AnyCourse(RuleBasedStateMachine):
    """Whatever is heard, in whatever order."""

    def __init__(self):
        super().__init__()
        self.circuit = Circuit(CircuitPolicy(4, 10, 80))
        self.now = 0.0
        self.row = 0
        self.probes = 0

    @precondition(lambda self: self.circuit.state is not OPEN)
    @rule(done=st.booleans(), chance=st.floats(0, 1, exclude_max=True), ceiling=st.integers(1, 40))
    def hear(self, done, chance, ceiling):
        before = self.circuit.state
        self.row = 0 if done else self.row + 1
        self.circuit.heard(done, "no", now=self.now, chance=chance, ceiling=ceiling)
        if self.circuit.state is OPEN:
            assert not done
            assert self.row >= (4 if before is CLOSED else 1)
            assert 5 - 1e-9 <= self.circuit.probe_at - self.now <= 80 + 1e-9
        elif before is HALF_OPEN:
            assert done
        if before is CLOSED:
            assert self.circuit.state in (CLOSED, OPEN)
            assert (self.circuit.state is OPEN) == (self.row >= 4)

    @precondition(lambda self: self.circuit.state is OPEN)
    @rule()
    def probe(self):
        self.now = self.circuit.probe_at
        self.circuit.probe()

    @invariant()
    def it_allows_what_its_state_says(self):
        circuit = self.circuit
        wanted = {CLOSED: (math.inf, math.inf), OPEN: (0, 0), HALF_OPEN: (1, 1), RAMPING: (1, 40)}
        least, most = wanted[circuit.state]
        assert least <= circuit.allowed <= most
        assert (circuit.probe_at < math.inf) == (circuit.state is OPEN)


AnyCourse.TestCase.settings = settings(max_examples=10, stateful_step_count=40)
TestAnyCourse = AnyCourse.TestCase


@settings(max_examples=50)
@given(policy=policies, ceiling=st.integers(1, 300), course=st.lists(st.sampled_from("+-"), max_size=60))
def test_a_function_that_is_well_again_closes_every_circuit(policy, ceiling, course):
    circuit = Circuit(policy)
    for result in course:
        if circuit.state is OPEN:
            circuit.probe()
        heard(circuit, result, ceiling=ceiling)
    if circuit.state is OPEN:
        circuit.probe()
    for _ in range(2 * 512):
        heard(circuit, "+", ceiling=ceiling)
        if circuit.state is CLOSED:
            break
    assert circuit.state is CLOSED
