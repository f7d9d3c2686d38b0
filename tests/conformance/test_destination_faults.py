"""Destinations with a network and services that fail: whatever comes back, nothing counts as taken that was not.

`microburst` is between the emulator and what is sent to it. It renders errors as each service's protocol does, slows answers,
breaks connections and cuts replies short. What it cannot say, half of a batch, is scripted in `test_destination`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import anyio
import pytest
from anyio import to_thread

from poller.aws import session as aws_session
from poller.errors import AccessDenied, AwsError, BadReply, ServiceFault, Throttled, Unreachable
from tests import servers
from tests.conformance.places import EMULATED, emulated
from tests.conformance.test_destination import delivery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poller.demo.emulator import Emulator

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

#: A throttle of each service, and the operation that sends. The proxy puts a prefix in front of all codes of SQS, which no SDK
#: knows, so there the status says it; the scripted endpoint says it as SQS does.
THROTTLES = {
    "sqs": ("RequestThrottled", 429, "SendMessage"),
    "sns": ("Throttling", 400, "Publish"),
    "s3": ("SlowDown", 503, "PutObject"),
    "eventbridge": ("ThrottlingException", 400, "PutEvents"),
}


class Faults:
    """The proxy's rules."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url

    async def set(self, *rules: dict[str, Any]) -> None:
        """These and no others."""
        await to_thread.run_sync(partial(self._post, list(rules)))

    def _post(self, rules: list[dict[str, Any]]) -> None:
        request = Request(
            f"{self.endpoint_url}/_microburst/rules",
            data=json.dumps(rules).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urlopen(request, timeout=10) as reply:
            assert reply.status == 200


@pytest.fixture(scope="module")
def proxy(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.microburst(tmp_path_factory.mktemp("microburst"), emulator.endpoint_url) as server:
        yield server.endpoint_url


@pytest.fixture
async def faults(proxy: str) -> Faults:
    rules = Faults(proxy)
    await rules.set()
    return rules


def throttle(kind: str) -> dict[str, Any]:
    code, status, _ = THROTTLES[kind]
    return {"error": {"code": code, "status": status, "message": "Rate exceeded"}}


BROKEN: list[tuple[str, dict[str, Any], type[AwsError]]] = [
    ("throttled", {}, Throttled),
    ("a fault", {"error": {"code": "InternalError", "status": 500}}, ServiceFault),
    ("unavailable", {"error": {"code": "ServiceUnavailable", "status": 503}}, ServiceFault),
    ("denied", {"error": {"code": "AccessDenied", "status": 403}}, AccessDenied),
    ("reset", {"reset": True}, Unreachable),
    ("late", {"latency": 1500}, Unreachable),
    ("cut short", {"response": {"truncate_frac": 0.5}}, BadReply),
    ("broken off", {"response": {"abort_frac": 0.5}}, BadReply),
]


#: PutObject answers with headers only: there is no body to cut.
CASES = [(kind, *broken) for kind in THROTTLES for broken in BROKEN if (kind, broken[2]) != ("s3", BadReply)]


@pytest.mark.parametrize(
    ("kind", "name", "fault", "error"), CASES, ids=[f"{kind} {name}" for kind, name, *_ in CASES]
)
async def test_a_fault_is_an_error_of_its_class_and_the_next_try_arrives(
    emulator: Emulator,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
    fault: dict[str, Any],
    error: type[AwsError],
) -> None:
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    monkeypatch.setattr(f"poller.destinations.{kind}.CALL_TIMEOUT", 1.0 if name == "late" else 20.0)
    async with emulated(kind, emulator.endpoint_url, faults.endpoint_url) as place:
        sent = delivery()
        operation = THROTTLES[kind][2]
        await faults.set({"service": "*", "operation": operation, **(fault or throttle(kind))})
        with pytest.raises(AwsError) as caught:
            await place.destination.send(sent)
        assert isinstance(caught.value, error), caught.value
        await faults.set()
        await place.destination.send(sent)
        arrived = await place.taken(1)
    # What was broken off may have been taken all the same.
    assert 1 <= len(arrived) <= 2
    assert all(document == place.expected(sent) for document in arrived)


@pytest.mark.parametrize("kind", THROTTLES)
async def test_what_passes_within_a_call_is_no_failure_of_a_delivery(
    emulator: Emulator, faults: Faults, kind: str
) -> None:
    async with emulated(kind, emulator.endpoint_url, faults.endpoint_url) as place:
        await faults.set(
            {"operation": THROTTLES[kind][2], "times": 1, "error": {"code": "InternalError", "status": 500}},
            {"latency": 100},
        )
        await place.destination.send(delivery())
        assert await place.taken(1) == [place.expected(delivery())]


@pytest.mark.parametrize("kind", EMULATED)
async def test_in_a_storm_of_faults_everything_that_is_sent_until_it_is_taken_arrives(
    emulator: Emulator, faults: Faults, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    code, status, _ = THROTTLES[kind.removesuffix(" fifo")]
    failed = 0

    async def send(number: int) -> None:
        nonlocal failed
        sent = replace(delivery(number=number), id=f"00000000-0000-4000-8000-{number:012}")
        while True:
            try:
                return await place.destination.send(sent)
            except AwsError:
                failed += 1

    async with emulated(kind, emulator.endpoint_url, faults.endpoint_url) as place:
        await faults.set(
            {"service": "*", "probability": 0.3, "error": {"code": code, "status": status}},
            {"service": "*", "probability": 0.2, "error": {"code": "InternalError", "status": 500}},
            {"service": "*", "probability": 0.2, "reset": True},
            {"service": "*", "probability": 0.2, "response": {"abort_frac": 0.5}},
            {"service": "*", "probability": 0.2, "latency": 50},
        )
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(send, number)
        arrived = [document["number"] for document in await place.taken(20)]
    assert failed
    assert set(arrived) == set(range(20))
    assert not place.idempotent or len(arrived) == 20
