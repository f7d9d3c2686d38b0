from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def kinesis_local(
    fake_credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    """One kinesis-local for the session: streams that split and merge as on AWS."""
    with servers.kinesis_local(tmp_path_factory.mktemp("kinesis-local")) as server:
        yield server
