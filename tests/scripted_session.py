"""A session at a `ScriptedAws`, for tests: `open_aws` gives the endpoint and an environment that knows nothing else."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from botocore.loaders import create_loader

from tests.scripted_aws import ScriptedAws

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from poller.model import ApiRequest

#: botocore parses its models anew for every session; that would be most of the time of a test.
LOADER = cache(create_loader)


class Facts:
    """An observer that keeps what the wires report."""

    def __init__(self) -> None:
        self.requests: list[ApiRequest] = []

    def api_request(self, fact: ApiRequest) -> None:
        self.requests.append(fact)

    def outcomes(self) -> list[str]:
        return [fact.outcome for fact in self.requests]

    def __getattr__(self, fact: str) -> Any:
        raise AttributeError(f"no wire reports {fact}")


@asynccontextmanager
async def open_aws(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedAws]:
    """Run a `ScriptedAws` with a queue `orders`, whose credentials are the only ones of this process."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setattr("botocore.session.create_loader", LOADER)
        for name in (
            "AWS_PROFILE",
            "AWS_SESSION_TOKEN",
            "AWS_CA_BUNDLE",
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "no_proxy",
        ):
            environment.delenv(name, raising=False)
        async with ScriptedAws(tls=tls) as aws:
            for name, value in aws.environment().items():
                environment.setenv(name, value)
            aws.create_queue("orders")
            yield aws
