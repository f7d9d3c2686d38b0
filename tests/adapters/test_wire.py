"""What only the fast wire and its session do: signing, clocks, proxies, TLS, shared clients, assumed roles."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from anyio import create_task_group
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.loaders import create_loader
from hypothesis import given
from hypothesis import strategies as st

from poller.aws.credentials import CHECK_EVERY, Credentials, Frozen
from poller.aws.session import AwsSession
from poller.aws.signing import ServerClock, Signer, target
from poller.config import Aws
from poller.errors import (
    AccessDenied,
    AwsError,
    CredentialsInvalid,
    RequestRefused,
    ResourceNotFound,
    Unreachable,
)
from tests.scripted_aws import Close, Hold, Raw, ScriptedAws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from poller.model import ApiRequest

LOADER = cache(create_loader)
QUEUE = {"QueueUrl": "q/orders"}
NOW = 1_700_000_000.0
KEY = Frozen("AKID", "secret")


class Facts:
    def __init__(self) -> None:
        self.requests: list[ApiRequest] = []

    def api_request(self, fact: ApiRequest) -> None:
        self.requests.append(fact)

    def told(self) -> list[tuple[str, str, str]]:
        return [(fact.service, fact.operation, fact.outcome) for fact in self.requests]


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("botocore.session.create_loader", LOADER)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "HTTP_PROXY", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
async def aws(environment: pytest.MonkeyPatch) -> AsyncIterator[ScriptedAws]:
    async with ScriptedAws() as scripted:
        for name, value in scripted.environment().items():
            environment.setenv(name, value)
        scripted.create_queue("orders")
        yield scripted


@pytest.fixture
async def session(aws: ScriptedAws, facts: Facts) -> AsyncIterator[AwsSession]:
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint), facts) as opened:
        yield opened


async def receive(session: AwsSession) -> list[dict[str, Any]]:
    reply = await (await session.hot("sqs")).call("ReceiveMessage", QUEUE, timeout=5)
    return reply.get("Messages", [])


# --- signing


def signer(region: str = "eu-west-1", url: str = "https://sqs.eu-west-1.example", at: float = NOW) -> Signer:
    return Signer("sqs", region, target(url), "application/x-amz-json-1.0", ServerClock(lambda: at))


def signed_by_botocore(
    headers: dict[str, str], url: str, region: str, body: bytes, key: Frozen, at: float
) -> str:
    unsigned = {k: v for k, v in headers.items() if k in ("Host", "Content-Type", "X-Amz-Target")}
    request = AWSRequest("POST", url, headers=unsigned, data=body)
    with patch("botocore.auth.get_current_datetime", return_value=datetime.fromtimestamp(at, UTC)):
        SigV4Auth(ReadOnlyCredentials(*key), "sqs", region).add_auth(request)
    return str(request.headers["Authorization"])


visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@given(
    region=st.from_regex(r"[a-z]{2}(-[a-z]{1,8}){1,2}-[0-9]", fullmatch=True),
    url=st.builds(
        "{}://{}{}{}".format,
        st.sampled_from(["http", "https"]),
        st.sampled_from(["127.0.0.1", "[::1]", "SQS.eu-west-1.example", "vpce-0_a.example"]),
        st.sampled_from(["", ":80", ":443", ":4566"]),
        st.sampled_from(["", "/", "/a", "/a~b/c.d_e-f/"]),
    ),
    body=st.binary(max_size=200),
    key=st.builds(Frozen, visible, st.text(max_size=40), st.none() | visible),
    at=st.integers(0, 4_000_000_000),
)
def test_a_signature_is_the_one_that_botocore_makes(
    region: str, url: str, body: bytes, key: Frozen, at: float
) -> None:
    headers = signer(region, url, at).headers("AmazonSQS.ReceiveMessage", body, key)
    assert headers["Authorization"] == signed_by_botocore(headers, target(url).url, region, body, key, at)
    assert headers.get("X-Amz-Security-Token") == key.token


def test_one_signer_follows_the_date_and_the_key() -> None:
    now = [NOW]
    url = "https://sqs.eu-west-1.example"
    one = Signer("sqs", "eu-west-1", target(url), "application/x-amz-json-1.0", ServerClock(lambda: now[0]))
    for later, key in ((0, KEY), (1, KEY), (86_400, KEY), (0, Frozen("AKID2", "other", "token"))):
        now[0] += later
        headers = one.headers("AmazonSQS.ReceiveMessage", b"{}", key)
        expected = signed_by_botocore(headers, f"{url}/", "eu-west-1", b"{}", key, now[0])
        assert headers["Authorization"] == expected


@pytest.mark.parametrize(
    "region", ["", "eu west", "eu-west-1\r\nX-Evil: 1", "eu/west", "-eu", "eu-", "é", "a" * 64]
)
def test_a_region_that_is_none_is_refused(region: str) -> None:
    with pytest.raises(RequestRefused, match="is not a region"):
        signer(region)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "h",
        "http://",
        "http://h h",
        "http://h/a b",
        "http://h/../x",
        "http://h//x",
        "http://h/%0d%0a",
        "http://é",
    ],
)
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestRefused, match="check \\[aws\\] endpoint_url"):
        target(url)


def test_an_endpoint_loses_its_user_and_its_query() -> None:
    assert target("http://user:pw@127.0.0.1:80/x?secret=1#f") == ("http://127.0.0.1/x/", "127.0.0.1", "/x/")


@pytest.mark.parametrize(
    "key", [Frozen("AKID\r\nX-Evil: 1", "s"), Frozen("AKID", "s", "t\n"), Frozen("", "s")]
)
def test_credentials_that_cannot_be_in_a_header_are_refused(key: Frozen) -> None:
    with pytest.raises(CredentialsInvalid, match="no key has") as caught:
        signer().headers("AmazonSQS.ReceiveMessage", b"{}", key)
    assert "Evil" not in str(caught.value)


# --- the server's clock


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 14 Nov 2023 22:16:00 GMT"])
def test_a_date_that_is_near_or_none_changes_nothing(date: str | None) -> None:
    clock = ServerClock(lambda: NOW)
    clock.compare(date)
    assert clock.now() == NOW
    assert not clock.corrected_since(0)


@pytest.mark.anyio
@pytest.mark.parametrize("ahead", [3600.0, -86_400.0])
async def test_a_wrong_clock_costs_one_more_request(
    ahead: float, aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    aws.clock_ahead = ahead
    await receive(session)
    await receive(session)
    outcomes = [outcome for *_, outcome in facts.told()]
    assert outcomes == ["InvalidSignatureException", "ok", "ok"]


@pytest.mark.anyio
async def test_many_calls_with_a_wrong_clock_are_all_repeated(aws: ScriptedAws, session: AwsSession) -> None:
    aws.clock_ahead = 3600
    await session.hot("sqs")
    async with create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(receive, session)
    assert len(aws.requests) == 10


# --- connections


@pytest.mark.anyio
async def test_calls_one_after_the_other_share_a_connection(aws: ScriptedAws, session: AwsSession) -> None:
    for _ in range(3):
        await receive(session)
    assert len({request.connection for request in aws.requests}) == 1


@pytest.mark.anyio
async def test_long_polls_do_not_wait_for_each_other(aws: ScriptedAws, session: AwsSession) -> None:
    holds = [Hold() for _ in range(120)]
    aws.script("ReceiveMessage", *holds)
    async with create_task_group() as tasks:
        for _ in holds:
            tasks.start_soon(receive, session)
        for hold in holds:
            await hold.arrived.wait()
        for hold in holds:
            hold.release()


@pytest.mark.anyio
async def test_a_repeated_request_takes_a_new_connection(aws: ScriptedAws, session: AwsSession) -> None:
    aws.script("ReceiveMessage", Close())
    await receive(session)
    first, second = aws.requests
    assert first.connection != second.connection


@pytest.mark.anyio
async def test_a_request_carries_no_more_headers_than_it_needs(aws: ScriptedAws, session: AwsSession) -> None:
    await receive(session)
    assert aws.requests[0].headers.keys() == {
        "host", "content-type", "content-length", "x-amz-date", "x-amz-target", "authorization", "accept-encoding",
        "user-agent",
    }  # fmt: skip


@pytest.mark.anyio
async def test_a_redirect_is_not_followed(aws: ScriptedAws, session: AwsSession) -> None:
    aws.script("ReceiveMessage", Raw(b"{}", 307, {"Location": aws.endpoint}))
    with pytest.raises(RequestRefused) as caught:
        await receive(session)
    assert caught.value.code == "HTTP307"
    assert len(aws.requests) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"[]", b'{"Code": "x"}', b'{"__type": 7, "Message": 8}'])
async def test_an_error_reply_of_a_strange_shape_is_still_an_error(
    body: bytes, aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("ReceiveMessage", Raw(body, 400, {"x-amzn-query-error": "half"}))
    with pytest.raises(RequestRefused):
        await receive(session)


# --- proxies


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http://", "http://user:pw@", ""])
async def test_a_proxy_of_the_environment_is_used(
    scheme: str, aws: ScriptedAws, facts: Facts, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("http_proxy", aws.endpoint.replace("http://", scheme))
    async with AwsSession(Aws(region=aws.region, endpoint_url="http://sqs.invalid"), facts) as session:
        await receive(session)
    (request,) = aws.requests
    assert request.url == "http://sqs.invalid/"
    assert request.headers["host"] == "sqs.invalid"
    assert ("proxy-authorization" in request.headers) == ("@" in scheme)


@pytest.mark.anyio
async def test_a_host_that_the_environment_exempts_needs_no_proxy(
    aws: ScriptedAws, facts: Facts, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("http_proxy", "http://127.0.0.1:9")
    environment.setenv("no_proxy", "127.0.0.1")
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint), facts) as session:
        assert await receive(session) == []


@pytest.mark.anyio
async def test_a_proxy_that_is_down_is_unreachable_and_keeps_its_password(
    aws: ScriptedAws, facts: Facts, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("http_proxy", "http://user:hunter2@127.0.0.1:9")
    async with AwsSession(Aws(region=aws.region, endpoint_url="http://sqs.invalid"), facts) as session:
        with pytest.raises(Unreachable) as caught:
            await receive(session)
    assert "hunter2" not in str(caught.value)


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    openssl = shutil.which("openssl")
    assert openssl, "the TLS tests need the openssl command"
    ask = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {key} -out {cert}"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, *ask.split(), *subject], check=True, capture_output=True)
    both.write_text(key.read_text() + cert.read_text())
    return both


@pytest.fixture
async def secure(certificate: Path, environment: pytest.MonkeyPatch) -> AsyncIterator[ScriptedAws]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with ScriptedAws(tls=context) as scripted:
        for name, value in scripted.environment().items():
            environment.setenv(name, value)
        scripted.create_queue("orders")
        yield scripted


@pytest.mark.anyio
@pytest.mark.parametrize("by", ["config", "environment"])
async def test_an_endpoint_with_a_ca_of_its_own_is_trusted(
    by: str, secure: ScriptedAws, certificate: Path, facts: Facts, environment: pytest.MonkeyPatch
) -> None:
    bundle = certificate if by == "config" else None
    if bundle is None:
        environment.setenv("AWS_CA_BUNDLE", str(certificate))
    async with AwsSession(
        Aws(region="eu-west-1", endpoint_url=secure.endpoint, ca_bundle=bundle), facts
    ) as session:
        assert await receive(session) == []
        assert (await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"}))["QueueUrl"]


@pytest.mark.anyio
async def test_an_endpoint_that_nobody_vouches_for_is_refused_with_the_cure(
    secure: ScriptedAws, facts: Facts
) -> None:
    async with AwsSession(Aws(region="eu-west-1", endpoint_url=secure.endpoint), facts) as session:
        with pytest.raises(Unreachable, match="ca_bundle") as caught:
            await receive(session)
    assert caught.value.code == "Tls"


# --- sessions


@pytest.mark.anyio
async def test_clients_and_wires_are_shared(aws: ScriptedAws, session: AwsSession) -> None:
    assert await session.client("sqs", "eu-west-1") is await session.client("sqs", "eu-west-1")
    assert await session.hot("sqs", "eu-west-1") is await session.hot("sqs", "eu-west-1")
    assert await session.client("sqs", "eu-west-1") is not await session.client("sqs", "us-east-1")


@pytest.mark.anyio
async def test_a_cold_call_returns_what_aws_says_and_is_reported(
    aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    for _ in range(2):
        reply = await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})
        assert reply == {"QueueUrl": aws.queues["orders"].url}
    assert facts.told() == [("sqs", "GetQueueUrl", "ok")] * 2


@pytest.mark.anyio
async def test_a_cold_call_without_a_reply_of_its_own_may_be_answered_with_nothing(
    aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("PurgeQueue", Raw(b""))
    assert await session.call("sqs", "PurgeQueue", QUEUE) == {}


@pytest.mark.anyio
async def test_a_cold_call_that_aws_refuses_is_an_error_of_ours(
    aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    with pytest.raises(ResourceNotFound, match="check the queue's name, account and region"):
        await session.call("sqs", "GetQueueUrl", {"QueueName": "nowhere"})
    with pytest.raises(RequestRefused, match="QueueName"):
        await session.call("sqs", "GetQueueUrl", {})
    assert facts.told()[0] == ("sqs", "GetQueueUrl", "AWS.SimpleQueueService.NonExistentQueue")


@pytest.mark.anyio
async def test_a_role_is_assumed_and_its_temporary_key_signs(aws: ScriptedAws, facts: Facts) -> None:
    role = "arn:aws:iam::123456789012:role/poller"
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint, role_arn=role), facts) as session:
        await receive(session)
        await receive(session)
        await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})
    assert [r.operation for r in aws.requests] == [
        "AssumeRole",
        "ReceiveMessage",
        "ReceiveMessage",
        "GetQueueUrl",
    ]
    assert aws.requests[0].params["RoleArn"] == role
    assert all("Credential=ASIAROLE" in r.headers["authorization"] for r in aws.requests[1:])


@pytest.mark.anyio
async def test_a_role_whose_key_expired_is_assumed_again(aws: ScriptedAws, facts: Facts) -> None:
    role = "arn:aws:iam::123456789012:role/poller"
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint, role_arn=role), facts) as session:
        await receive(session)
        aws.expired.update(aws.keys.keys() - {aws.key_id})
        await receive(session)
    assert len(aws.calls("AssumeRole")) == 2


@pytest.mark.anyio
async def test_a_role_that_may_not_be_assumed_is_named_as_the_cause(aws: ScriptedAws, facts: Facts) -> None:
    refusal = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    aws.script("AssumeRole", Raw(refusal.encode(), 403))
    role = "arn:aws:iam::123456789012:role/poller"
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint, role_arn=role), facts) as session:
        with pytest.raises(AccessDenied, match="sts:AssumeRole on the role"):
            await receive(session)


@pytest.mark.anyio
async def test_a_session_without_credentials_says_so(
    aws: ScriptedAws, session: AwsSession, environment: pytest.MonkeyPatch
) -> None:
    environment.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialsInvalid, match="give poller credentials"):
        await receive(session)
    with pytest.raises(CredentialsInvalid, match="give poller credentials"):
        await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("config", "error"),
    [
        (Aws(region="eu-west-1", profile="nobody"), CredentialsInvalid),
        (Aws(region="eu west"), RequestRefused),
        (Aws(), RequestRefused),
    ],
)
async def test_a_client_that_cannot_be_made_is_an_error_of_ours(
    config: Aws, error: type[AwsError], aws: ScriptedAws, facts: Facts, environment: pytest.MonkeyPatch
) -> None:
    environment.delenv("AWS_DEFAULT_REGION")
    async with AwsSession(config, facts) as session:
        with pytest.raises(error):
            await session.client("sqs")


# --- credentials


class Source:
    """A credentials object of botocore's kind."""

    def __init__(self, *keys: str | Exception) -> None:
        self.keys = list(keys)
        self.asked = 0

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        self.asked += 1
        key = self.keys.pop(0) if len(self.keys) > 1 else self.keys[0]
        if isinstance(key, Exception):
            raise key
        return ReadOnlyCredentials(key, "secret", None, "123456789012")


def credentials_over(*sources: Source, now: list[float]) -> Credentials:
    left = list(sources)

    async def load() -> Source:
        return left.pop(0)

    return Credentials(load, clock=lambda: now[0])


@pytest.mark.anyio
async def test_a_key_is_looked_at_again_only_after_a_while() -> None:
    now, source = [100.0], Source("A", "A", "B")
    credentials = credentials_over(source, now=now)
    first = await credentials.get_frozen_credentials()
    assert await credentials.get_frozen_credentials() is first
    assert source.asked == 1
    now[0] += CHECK_EVERY
    assert await credentials.get_frozen_credentials() is first
    now[0] += CHECK_EVERY
    assert (await credentials.get_frozen_credentials()).access_key == "B"


@pytest.mark.anyio
async def test_many_refusals_at_once_load_credentials_once() -> None:
    now = [100.0]
    credentials = credentials_over(Source("A"), Source("B"), now=now)
    await credentials.get_frozen_credentials()
    now[0] += 5
    assert [await credentials.renew(102.0), await credentials.renew(103.0)] == [True, True]
    assert await credentials.get_account_id() == "123456789012"


@pytest.mark.anyio
async def test_credentials_that_come_back_expired_are_a_credentials_error() -> None:
    credentials = credentials_over(Source(RuntimeError("refreshed, but still expired")), now=[0.0])
    with pytest.raises(Exception, match="still expired") as caught:
        await credentials.get_deferred_property("account_id")()
    assert type(caught.value).__name__ == "CredentialRetrievalError"
