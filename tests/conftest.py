from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal

from poller.demo.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator

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
