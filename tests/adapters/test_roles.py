"""Credentials of a function's role: assumed, replaced in time, and what happens while STS refuses. In virtual time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
import trio.testing

from poller.app.roles import Role, assume
from poller.aws.session import AwsSession
from poller.config import Aws
from poller.engine.status import Board
from poller.errors import AccessDenied
from poller.runtimes.process import NotNow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.anyio

ARN = "arn:aws:iam::000000000000:role/orders"
HOUR = 3600.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Sts:
    """An AwsSession that knows one call; `answers` are lives in seconds or what is raised, the last one for ever."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[float] = []
        self.params: dict[str, Any] = {}

    async def call(self, service: str, operation: str, params: dict[str, Any], *, region: str) -> Any:
        assert (service, operation, region) == ("sts", "AssumeRole", "eu-west-1")
        self.params = params
        self.asked.append(anyio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {
            "Credentials": {
                "AccessKeyId": f"ASIA{len(self.asked)}",
                "SecretAccessKey": "hush",
                "SessionToken": "token",
                "Expiration": datetime.fromtimestamp(anyio.current_time() + answer, UTC),
            }
        }


class Kept:
    """A role that is being kept, and how often its workers were told to go."""

    def __init__(self, sts: Sts, timeout: float) -> None:
        self.began = anyio.current_time()
        self.renewals: list[float] = []
        self.sts = sts
        self.role = Role("orders", ARN, "eu-west-1", timeout, wall=anyio.current_time)

    def renewed(self) -> None:
        self.renewals.append(round(anyio.current_time() - self.began))

    @property
    def key(self) -> str:
        try:
            return self.role.variables()["AWS_ACCESS_KEY_ID"]
        except NotNow:
            return ""


@asynccontextmanager
async def kept(*answers: float | Exception, timeout: float = 3) -> AsyncIterator[Kept]:
    one = Kept(Sts(*answers), timeout)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.role.keep, lambda: cast("AwsSession", one.sts), one.renewed)
        await one.role.settled.wait()
        yield one
        one.role.close()


async def test_a_role_is_assumed_for_a_function_by_name() -> None:
    async with kept(HOUR) as one:
        assert one.sts.params == {"RoleArn": ARN, "RoleSessionName": "poller-orders"}
        assert one.role.variables() == {
            "AWS_ACCESS_KEY_ID": "ASIA1",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_SESSION_TOKEN": "token",
        }


async def test_the_name_of_a_session_is_one_that_sts_takes() -> None:
    sts = Sts(HOUR)
    await assume(cast("AwsSession", sts), ARN, "f" * 64, "eu-west-1")
    assert sts.params["RoleSessionName"] == "poller-" + "f" * 57


@pytest.mark.parametrize(("life", "timeout", "renewed"), [(HOUR, 3, 3300), (HOUR, 900, 2640), (400, 3, 200)])
async def test_workers_are_replaced_before_their_credentials_could_expire_in_an_invocation(
    life: float, timeout: float, renewed: int
) -> None:
    async with kept(life, HOUR, timeout=timeout) as one:
        await anyio.sleep(renewed + 1)
        assert one.renewals == [0, renewed]
        assert one.key == "ASIA2"


async def test_while_sts_refuses_the_present_credentials_are_used_to_their_end_and_no_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with kept(HOUR, AccessDenied("not you")) as one:
        await anyio.sleep(3500)
        assert one.key == "ASIA1"
        assert one.renewals == [0]
        await anyio.sleep(101)
        assert one.key == ""
        assert one.renewals == [0, 3600]
        with pytest.raises(NotNow, match=f"there are no credentials of {ARN}: not you"):
            one.role.variables()
        one.sts.answers = [HOUR]
        await anyio.sleep(61)
        assert one.key.startswith("ASIA")
    assert (
        f"function orders: {ARN} cannot be assumed: not you; present credentials are still good"
        in caplog.text
    )
    assert "no worker starts until it can" in caplog.text
    assert "hush" not in caplog.text


async def test_tries_become_rarer_while_sts_refuses() -> None:
    async with kept(AccessDenied("not you")) as one:
        await anyio.sleep(600)
        pauses = [b - a for a, b in zip(one.sts.asked, one.sts.asked[1:], strict=False)]
        assert [round(pause) for pause in pauses[:8]] == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_surprise_ends_nothing_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with kept(RuntimeError("hush"), HOUR) as one:
        await anyio.sleep(2)
        assert one.key == "ASIA2"
    assert "cannot be assumed: RuntimeError" in caplog.text
    assert "hush" not in caplog.text


async def test_credentials_that_are_out_of_date_as_they_come_are_not_asked_for_without_end() -> None:
    async with kept(-HOUR) as one:
        await anyio.sleep(10)
        assert len(one.sts.asked) <= 11
        with pytest.raises(NotNow, match="is the clock right"):
            one.role.variables()


async def test_no_worker_starts_before_sts_has_answered() -> None:
    with pytest.raises(NotNow, match="STS has not answered yet"):
        Role("orders", ARN, "eu-west-1", 3).variables()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_gives_credentials(emulator: Emulator) -> None:
    config = Aws(region="eu-west-1", endpoint_url=emulator.endpoint_url)
    async with AwsSession(config, Board()) as session:
        lease = await assume(session, ARN, "orders", "eu-west-1")
    assert lease.variables["AWS_SESSION_TOKEN"]
    assert lease.expires > datetime.now(UTC).timestamp()
    assert lease.variables["AWS_SECRET_ACCESS_KEY"] not in repr(lease)
