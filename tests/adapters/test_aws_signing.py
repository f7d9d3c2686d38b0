"""Signatures equal botocore's for the same request; nothing but a key can be in a header; keys are renewed with measure."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from poller.aws.credentials import CHECK_EVERY, FAILED_FOR, RENEW_EVERY, Credentials, Frozen
from poller.aws.signing import ServerClock, Signer, target
from poller.errors import CredentialsInvalid, RequestRefused

NOW = 1_700_000_000.0
KEY = Frozen("AKID", "secret")


def signer(region: str = "eu-west-1", url: str = "https://sqs.eu-west-1.example", at: float = NOW) -> Signer:
    return Signer("sqs", region, target(url), "application/x-amz-json-1.0", ServerClock(lambda: at))


def lines(headers: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in headers.decode().splitlines())


def signed_by_botocore(
    headers: dict[str, str], url: str, region: str, body: bytes, key: Frozen, at: float
) -> str:
    unsigned = {k: v for k, v in headers.items() if k in ("Host", "Content-Type", "X-Amz-Target")}
    request = AWSRequest("POST", url, headers=unsigned, data=body)
    with patch("botocore.auth.get_current_datetime", return_value=datetime.fromtimestamp(at, UTC)):
        SigV4Auth(ReadOnlyCredentials(*key), "sqs", region).add_auth(request)
    return str(request.headers["Authorization"])


visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@pytest.mark.slow
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
    headers = lines(signer(region, url, at).headers("AmazonSQS.ReceiveMessage", body, key))
    assert headers["Authorization"] == signed_by_botocore(headers, target(url).url, region, body, key, at)
    assert headers.get("X-Amz-Security-Token") == key.token


def test_one_signer_follows_the_date_and_the_key() -> None:
    now = [NOW]
    url = "https://sqs.eu-west-1.example"
    one = Signer("sqs", "eu-west-1", target(url), "application/x-amz-json-1.0", ServerClock(lambda: now[0]))
    for later, key in ((0, KEY), (1, KEY), (86_400, KEY), (0, Frozen("AKID2", "other", "token"))):
        now[0] += later
        headers = lines(one.headers("AmazonSQS.ReceiveMessage", b"{}", key))
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


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "yesterday",
        "Tue, 14 Nov 2023 22:16:00 GMT",
        "Tue, 99999999999999999999 Nov 2023 22:16:00 GMT",
        "Tue, 14 Nov 2023 22:16:00 +99999999999999",
    ],
)
def test_a_date_that_is_near_or_none_changes_nothing(date: str | None) -> None:
    clock = ServerClock(lambda: NOW)
    clock.compare(date)
    assert clock.now() == NOW
    assert not clock.corrected_since(0)


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
async def test_keys_that_stay_bad_are_not_loaded_all_the_time() -> None:
    now = [100.0]
    credentials = credentials_over(Source("A"), Source("A"), Source("B"), now=now)
    await credentials.get_frozen_credentials()
    assert not await credentials.renew(99.0)
    now[0] += 1
    assert not await credentials.renew(100.5)
    now[0] += RENEW_EVERY
    assert await credentials.renew(101.0)


@pytest.mark.anyio
async def test_credentials_that_come_back_expired_are_a_credentials_error() -> None:
    credentials = credentials_over(Source(RuntimeError("refreshed, but still expired")), now=[0.0])
    with pytest.raises(Exception, match="still expired") as caught:
        await credentials.get_deferred_property("account_id")()
    assert type(caught.value).__name__ == "CredentialRetrievalError"


@pytest.mark.anyio
async def test_credentials_that_cannot_be_had_are_asked_for_once_in_a_while_however_many_want_them() -> None:
    now, refused = [100.0], NoCredentialsError()
    first, second = Source(refused), Source("A")
    credentials = credentials_over(first, second, now=now)
    for _ in range(3):
        with pytest.raises(NoCredentialsError):
            await credentials.get_frozen_credentials()
    assert first.asked == 1
    now[0] += FAILED_FOR
    assert (await credentials.get_frozen_credentials()).access_key == "A"


def test_credentials_tell_no_secret_of_themselves() -> None:
    key = Frozen("AKID", "hunter2", "token==")
    assert "hunter2" not in repr(key)
    assert "token==" not in repr(key)
