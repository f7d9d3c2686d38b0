from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from poller.demo.child import tail
from tests import servers
from tests.conftest import FAKE_AWS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(scope="session")
def fake_credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in FAKE_AWS.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def kinesis_local(
    fake_credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    """One kinesis-local for the session: streams that split and merge as on AWS."""
    with servers.kinesis_local(tmp_path_factory.mktemp("kinesis-local")) as server:
        yield server


@pytest.fixture(scope="session")
def dynamodb_local(
    fake_credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    """One DynamoDB Local for the session: AWS's own tables and their streams."""
    with servers.dynamodb_local(tmp_path_factory.mktemp("dynamodb-local")) as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a server said last, and where the rest is, below a test that failed with it."""
    report = yield
    for server in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(server, servers.Server):
            report.sections.append((f"log of {server.name}", f"{server.log} ends with:\n{tail(server.log)}"))
    return report
