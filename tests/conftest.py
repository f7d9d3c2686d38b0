from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings

from poller.demo.child import tail
from poller.demo.emulator import Emulator
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# How long an example takes says more about the machine than about the code. The same examples each time, so that a change is
# not blamed for what an older one did; `make search` draws others, and more of them.
settings.register_profile("poller", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("poller")


def pytest_collection_finish() -> None:
    """Leave what is there for good out of the collections to come: they were a sixth of the time of the quick tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


FAKE_AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """One emulator for the session, empty at its start; `emulator.endpoint_url` is where it listens."""
    with pytest.MonkeyPatch.context() as environment, start_blocking_portal() as portal:
        for name, value in FAKE_AWS.items():
            environment.setenv(name, value)
        # A portal's thread lives as long as the fixture, whatever event loops the tests run meanwhile.
        with portal.wrap_async_context_manager(Emulator()) as running:
            yield running


@pytest.fixture(scope="session")
def fake_credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in FAKE_AWS.items():
            environment.setenv(name, value)
        yield


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
