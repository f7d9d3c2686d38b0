"""What only the fast wire and its session do: clocks, connections, proxies, TLS, shared clients, assumed roles."""

from __future__ import annotations

import gc
import shlex
import ssl
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import trustme
from anyio import create_task_group

from poller.aws import slices, wire
from poller.aws.session import AwsSession
from poller.aws.slices import LARGE
from poller.config import Aws
from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    CredentialsInvalid,
    RequestRefused,
    ResourceNotFound,
    Unreachable,
)
from tests.raw_http import RawProxy
from tests.scripted_aws import Close, Hold, Raw, Refuse, ScriptedAws
from tests.scripted_session import Facts, open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

QUEUE = {"QueueUrl": "q/orders"}
ROLE = "arn:aws:iam::123456789012:role/poller"


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with open_aws() as scripted:
        yield scripted


@pytest.fixture
async def session(aws: ScriptedAws, facts: Facts) -> AsyncIterator[AwsSession]:
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint), facts) as opened:
        yield opened


async def receive(session: AwsSession) -> list[dict[str, Any]]:
    reply = await (await session.hot("sqs")).call("ReceiveMessage", QUEUE, timeout=5)
    return reply.get("Messages", [])


@pytest.mark.parametrize("ahead", [3600.0, -86_400.0])
async def test_a_wrong_clock_costs_one_more_request(
    ahead: float, aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    aws.clock_ahead = ahead
    await receive(session)
    await receive(session)
    outcomes = facts.outcomes()
    assert outcomes == ["InvalidSignatureException", "ok", "ok"]


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"])
async def test_a_clock_that_is_called_wrong_is_set_by_the_date_of_the_reply(
    code: str, aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    aws.clock_ahead = 280.0  # which the scripted server would still accept
    aws.script("ReceiveMessage", Refuse(code, status=403))
    await receive(session)
    assert facts.outcomes() == [code, "ok"]


async def test_many_calls_with_a_wrong_clock_are_all_repeated(aws: ScriptedAws, session: AwsSession) -> None:
    aws.clock_ahead = 3600
    await session.hot("sqs")
    async with create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(receive, session)
    assert len(aws.requests) == 10


async def test_calls_one_after_the_other_share_a_connection(aws: ScriptedAws, session: AwsSession) -> None:
    for _ in range(3):
        await receive(session)
    assert len({request.connection for request in aws.requests}) == 1


async def test_long_polls_do_not_wait_for_each_other(aws: ScriptedAws, session: AwsSession) -> None:
    holds = [Hold() for _ in range(105)]
    aws.script("ReceiveMessage", *holds)
    async with create_task_group() as tasks:
        for _ in holds:
            tasks.start_soon(receive, session)
        for hold in holds:
            await hold.arrived.wait()
        for hold in holds:
            hold.release()


async def test_a_repeated_request_takes_a_new_connection(aws: ScriptedAws, session: AwsSession) -> None:
    aws.script("ReceiveMessage", Close())
    await receive(session)
    first, second = aws.requests
    assert first.connection != second.connection


async def test_a_request_carries_no_more_headers_than_it_needs(aws: ScriptedAws, session: AwsSession) -> None:
    await receive(session)
    assert aws.requests[0].headers.keys() == {
        "host", "content-type", "content-length", "x-amz-date", "x-amz-target", "authorization", "accept-encoding",
        "user-agent",
    }  # fmt: skip


async def test_a_redirect_is_not_followed(aws: ScriptedAws, session: AwsSession) -> None:
    aws.script("ReceiveMessage", Raw(b"{}", 307, {"Location": aws.endpoint}))
    with pytest.raises(RequestRefused) as caught:
        await receive(session)
    assert caught.value.code == "HTTP307"
    assert len(aws.requests) == 1


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("end", [b'"}', b""])
async def test_a_large_reply_leaves_the_collector_as_it_was(
    end: bytes, collecting: bool, aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("ReceiveMessage", Raw(b'{"Padding":"' + b"x" * LARGE + end))
    try:
        if not collecting:
            gc.disable()
        if end:
            assert await receive(session) == []
        else:
            with pytest.raises(BadReply):
                await receive(session)
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


async def test_large_replies_are_read_one_after_the_other(
    session: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []
    ended: list[int] = []

    async def loads(text: bytes) -> Any:
        began.append(len(text))
        assert len(began) == len(ended) + 1
        parsed = await slices.loads(text)
        ended.append(len(text))
        return parsed

    monkeypatch.setattr(wire, "loads", loads)
    hot = await session.hot("kinesis")
    assert isinstance(hot, wire.Wire)
    replies = [orjson.dumps({"Records": [{"N": "x" * 1000}] * count}) for count in (2000, 3000, 2500)]
    async with create_task_group() as tasks:
        for reply in replies:
            tasks.start_soon(hot._read, "GetRecords", reply)
    assert ended == list(map(len, replies))


@pytest.mark.parametrize("body", [b"[]", b'{"Code": "x"}', b'{"__type": 7, "Message": 8}'])
async def test_an_error_reply_of_a_strange_shape_is_still_an_error(
    body: bytes, aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("ReceiveMessage", Raw(body, 400, {"x-amzn-query-error": "half"}))
    with pytest.raises(RequestRefused):
        await receive(session)


@pytest.mark.parametrize("scheme", ["http://", "http://user:pw@", ""])
async def test_a_proxy_of_the_environment_is_used(
    scheme: str, aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", aws.endpoint.replace("http://", scheme))
    async with AwsSession(Aws(region=aws.region, endpoint_url="http://sqs.invalid"), facts) as session:
        await receive(session)
    (request,) = aws.requests
    assert request.url == "http://sqs.invalid/"
    assert request.headers["host"] == "sqs.invalid"
    assert ("proxy-authorization" in request.headers) == ("@" in scheme)


async def test_a_host_that_the_environment_exempts_needs_no_proxy(
    aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint), facts) as session:
        assert await receive(session) == []


async def test_a_proxy_that_is_down_is_unreachable_and_keeps_its_password(
    aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://user:hunter2@127.0.0.1:9")
    async with AwsSession(Aws(region=aws.region, endpoint_url="http://sqs.invalid"), facts) as session:
        with pytest.raises(Unreachable) as caught:
            await receive(session)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["socks5://me:hunter2@127.0.0.1:9", "http://me:hunter2@127.0.0.1:port"])
async def test_a_proxy_that_is_none_is_refused_and_keeps_its_password(
    proxy: str, aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    async with AwsSession(Aws(region=aws.region, endpoint_url="http://sqs.invalid"), facts) as session:
        with pytest.raises(RequestRefused, match="check HTTPS_PROXY and HTTP_PROXY") as caught:
            await session.hot("sqs")
    assert "hunter2" not in str(caught.value)


async def test_https_goes_through_the_tunnel_of_a_proxy_of_the_environment(
    secure: ScriptedAws, certificate: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Aws(region="eu-west-1", endpoint_url="https://localhost", ca_bundle=certificate)
    address = secure.endpoint.removeprefix("https://")
    async with RawProxy(address, b"HTTP/1.1 200 OK\r\n\r\n") as proxy, AwsSession(config, facts) as session:
        monkeypatch.setenv("https_proxy", f"http://me:hunter2@{proxy.address}")
        await receive(session)
    assert proxy.requests[0].startswith(b"CONNECT localhost:443 HTTP/1.1\r\n")
    assert secure.requests[0].url == "/"


async def test_a_proxy_that_refuses_is_named_as_the_cause(
    certificate: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Aws(region="eu-west-1", endpoint_url="https://localhost", ca_bundle=certificate)
    async with RawProxy("", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy, open_aws():
        monkeypatch.setenv("https_proxy", f"http://me:hunter2@{proxy.address}")
        async with AwsSession(config, facts) as session:
            with pytest.raises(Unreachable) as caught:
                await receive(session)
    said = "the proxy answered 407 Proxy Authentication Required; check HTTPS_PROXY"
    assert str(caught.value).startswith(f"sqs ReceiveMessage at localhost: {said}")
    assert caught.value.code == "Proxy"


@pytest.mark.parametrize("wire", ["fast", "sdk"])
@pytest.mark.parametrize(
    ("service", "region", "variant", "host"),
    [
        ("sqs", "eu-west-1", "", "sqs.eu-west-1.amazonaws.com"),
        ("sqs", "cn-north-1", "", "sqs.cn-north-1.amazonaws.com.cn"),
        ("sqs", "us-iso-east-1", "FIPS", "sqs-fips.us-iso-east-1.c2s.ic.gov"),
        ("kinesis", "us-gov-west-1", "FIPS", "kinesis.us-gov-west-1.amazonaws.com"),
        ("kinesis", "eu-west-1", "DUALSTACK", "kinesis.eu-west-1.api.aws"),
        ("dynamodbstreams", "eu-west-1", "DUALSTACK", "streams-dynamodb.eu-west-1.api.aws"),
        (
            "dynamodbstreams",
            "cn-north-1",
            "DUALSTACK",
            "streams-dynamodb.cn-north-1.api.amazonwebservices.com.cn",
        ),
    ],
)
async def test_calls_go_to_the_endpoint_of_the_region_in_its_variant(
    service: str,
    region: str,
    variant: str,
    host: str,
    wire: Any,
    aws: ScriptedAws,
    facts: Facts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operation, params = (
        ("ReceiveMessage", QUEUE) if service == "sqs" else ("GetRecords", {"ShardIterator": "A"})
    )
    if variant:
        monkeypatch.setenv(f"AWS_USE_{variant}_ENDPOINT", "true")
    async with RawProxy("", b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        async with AwsSession(Aws(wire=wire), facts) as session:
            hot = await session.hot(service, region)
            with pytest.raises(Unreachable, match="check HTTPS_PROXY"):
                await hot.call(operation, params, timeout=5)
    assert proxy.requests[0].startswith(f"CONNECT {host}:443 ".encode())


async def test_streams_of_all_accounts_are_read_at_the_endpoint_of_their_region(
    aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Credentials that name their account would lead to its own endpoint, and the stream may be another's.
    monkeypatch.setenv("AWS_ACCOUNT_ID", "123456789012")
    stream = "arn:aws:kinesis:eu-west-1:210987654321:stream/clicks"
    async with RawProxy("", b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        async with AwsSession(Aws(), facts) as session:
            hot = await session.hot("kinesis", "eu-west-1")
            with pytest.raises(Unreachable, match="check HTTPS_PROXY"):
                await hot.call("GetRecords", {"ShardIterator": "A", "StreamARN": stream}, timeout=5)
    assert proxy.requests[0].startswith(b"CONNECT kinesis.eu-west-1.amazonaws.com:443 ")


@pytest.mark.parametrize("service", ["sqs", "kinesis", "dynamodbstreams"])
async def test_where_calls_go_is_known_without_credentials(
    service: str, aws: ScriptedAws, session: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert await session.hot(service)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a certificate authority of our own."""
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


@pytest.fixture
async def secure(authority: trustme.CA) -> AsyncIterator[ScriptedAws]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    async with open_aws(tls=context) as scripted:
        yield scripted


@pytest.mark.parametrize("by", ["config", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_an_endpoint_with_a_ca_of_its_own_is_trusted(
    by: str, secure: ScriptedAws, certificate: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = certificate if by == "config" else None
    if bundle is None:
        monkeypatch.setenv(by, str(certificate))
    async with AwsSession(
        Aws(region="eu-west-1", endpoint_url=secure.endpoint, ca_bundle=bundle), facts
    ) as session:
        assert await receive(session) == []
        assert (await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"}))["QueueUrl"]


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_file_that_holds_no_certificate_authorities_is_named(
    content: str | None, secure: ScriptedAws, tmp_path: Path, facts: Facts
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    config = Aws(region="eu-west-1", endpoint_url=secure.endpoint, ca_bundle=bundle)
    async with AwsSession(config, facts) as session:
        with pytest.raises(
            RequestRefused, match=r"/ca\.pem holds no certificate authorities: .*; check \[aws\]"
        ):
            await session.hot("sqs")


async def test_an_endpoint_that_nobody_vouches_for_is_refused_with_the_cure(
    secure: ScriptedAws, facts: Facts
) -> None:
    async with AwsSession(Aws(region="eu-west-1", endpoint_url=secure.endpoint), facts) as session:
        with pytest.raises(Unreachable) as caught:
            await receive(session)
    assert str(caught.value).startswith(f"sqs ReceiveMessage at {secure.endpoint.removeprefix('https://')}: ")
    assert "certificate verify failed: " in str(caught.value)
    assert str(caught.value).endswith("; check the certificate and [aws] ca_bundle")
    assert caught.value.code == "Tls"


async def test_clients_and_wires_are_shared(aws: ScriptedAws, session: AwsSession) -> None:
    assert await session.client("sqs", "eu-west-1") is await session.client("sqs", "eu-west-1")
    assert await session.hot("sqs", "eu-west-1") is await session.hot("sqs", "eu-west-1")
    assert await session.client("sqs", "eu-west-1") is not await session.client("sqs", "us-east-1")
    assert await session.hot("sqs", "eu-west-1") is not await session.hot("sqs", "us-east-1")


async def test_a_cold_call_returns_what_aws_says_and_is_reported(
    aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    for _ in range(2):
        reply = await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})
        assert reply == {"QueueUrl": aws.queues["orders"].url}
    assert [(f.service, f.operation, f.outcome) for f in facts.requests] == [("sqs", "GetQueueUrl", "ok")] * 2


async def test_a_cold_call_without_a_reply_of_its_own_may_be_answered_with_nothing(
    aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("PurgeQueue", Raw(b""))
    assert await session.call("sqs", "PurgeQueue", QUEUE) == {}


async def test_a_cold_call_that_aws_refuses_is_an_error_of_ours(
    aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    with pytest.raises(ResourceNotFound, match="check the queue's name, account and region"):
        await session.call("sqs", "GetQueueUrl", {"QueueName": "nowhere"})
    with pytest.raises(RequestRefused, match="QueueName"):
        await session.call("sqs", "GetQueueUrl", {})
    assert facts.outcomes()[0] == "AWS.SimpleQueueService.NonExistentQueue"


async def test_a_role_is_assumed_and_its_temporary_key_signs(aws: ScriptedAws, facts: Facts) -> None:
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint, role_arn=ROLE), facts) as session:
        await receive(session)
        await receive(session)
        await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})
    assert [r.operation for r in aws.requests] == [
        "AssumeRole",
        "ReceiveMessage",
        "ReceiveMessage",
        "GetQueueUrl",
    ]
    assert aws.requests[0].params["RoleArn"] == ROLE
    assert all("Credential=ASIAROLE" in r.headers["authorization"] for r in aws.requests[1:])


async def test_a_role_whose_key_expired_is_assumed_again(aws: ScriptedAws, facts: Facts) -> None:
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint, role_arn=ROLE), facts) as session:
        await receive(session)
        aws.expired.update(aws.keys.keys() - {aws.key_id})
        await receive(session)
    assert len(aws.calls("AssumeRole")) == 2


async def test_a_role_that_may_not_be_assumed_is_named_as_the_cause(aws: ScriptedAws, facts: Facts) -> None:
    refusal = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    aws.script("AssumeRole", Raw(refusal.encode(), 403))
    async with AwsSession(Aws(region=aws.region, endpoint_url=aws.endpoint, role_arn=ROLE), facts) as session:
        with pytest.raises(AccessDenied, match="sts:AssumeRole on the role"):
            await receive(session)


async def test_a_session_without_credentials_says_so(
    aws: ScriptedAws, session: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialsInvalid, match="give poller credentials"):
        await receive(session)
    with pytest.raises(CredentialsInvalid, match="give poller credentials"):
        await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})


NOW_EXPIRES = (
    '{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "hush", "SessionToken": "t", "Expiration": "%s"}'
)


@pytest.mark.parametrize(
    ("profile", "environment"),
    [
        ("credential_process = cat not-there", {}),
        ("credential_process = echo no JSON", {}),
        ("credential_process = echo []", {}),
        ("credential_process = /nowhere/program", {}),
        (f"credential_process = echo {shlex.quote(NOW_EXPIRES % 'soon')}", {}),
        (f"credential_process = echo {shlex.quote(NOW_EXPIRES % '2099-01-01T00:00:00')}", {}),
        (f"role_arn = {ROLE}\nweb_identity_token_file = /nowhere/token", {}),
        ("", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://metadata.invalid/"}),
    ],
)
async def test_a_source_of_credentials_that_fails_in_whatever_way_is_named_as_the_cause(
    profile: str,
    environment: dict[str, str],
    session: AwsSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{profile}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CredentialsInvalid, match="refresh the credentials") as caught:
        await receive(session)
    assert "hush" not in str(caught.value)
    with pytest.raises(CredentialsInvalid, match="refresh the credentials"):
        await session.call("sqs", "GetQueueUrl", {"QueueName": "orders"})


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (Aws(region="eu-west-1", profile="nobody"), CredentialsInvalid),
        (Aws(region="eu west"), RequestRefused),
        (Aws(), RequestRefused),
    ],
)
async def test_a_client_that_cannot_be_made_is_an_error_of_ours(
    config: Aws, error: type[AwsError], aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    async with AwsSession(config, facts) as session:
        with pytest.raises(error):
            await session.client("sqs")
