"""The objects of an S3 destination: taken in the order of their keys, left where they are, and how far it is remembered."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.errors import AwsError, ResourceNotFound
from poller.sources import failed_objects
from poller.sources.failed_objects import FailedObjects, count
from tests.engine.fakes import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from poller.demo.emulator import Emulator
    from poller.sources._letters import Letter

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
REGION = "eu-west-1"


class Bucket:
    """One bucket of a real server."""

    def __init__(self, session: AwsSession) -> None:
        self.name = f"failed-{uuid4().hex[:12]}"
        self.call = partial(session.call, "s3")
        self.api = session.cold("s3", REGION)

    async def fill(self, *keys: str) -> None:
        where = {"LocationConstraint": REGION}
        await self.call("CreateBucket", {"Bucket": self.name, "CreateBucketConfiguration": where})
        for key in keys:
            await self.call("PutObject", {"Bucket": self.name, "Key": key, "Body": key.encode()})

    async def keys(self) -> list[str]:
        reply = await self.call("ListObjectsV2", {"Bucket": self.name})
        return [one["Key"] for one in reply.get("Contents", ())]

    def box(self, after: str = "", **more: Any) -> FailedObjects:
        return FailedObjects((self.name, "p/"), self.api, after, **more)


@pytest.fixture
async def bucket(emulator: Emulator) -> AsyncIterator[Bucket]:
    async with AwsSession(Aws(region=REGION, endpoint_url=emulator.endpoint_url), Recorder()) as session:
        yield Bucket(session)


async def taken(box: FailedObjects) -> list[Letter]:
    letters: list[Letter] = []
    while not box.ended:
        found: Sequence[Letter] = await box.take(10)
        letters += found
    return letters


async def test_objects_come_in_the_order_of_their_keys_page_by_page(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_objects, "LISTED", 2)
    await bucket.fill("p/c", "p/a", "q/x", "p/b", "p/d", "p/e")
    box = bucket.box()
    letters = await taken(box)
    assert [(letter.id, letter.body) for letter in letters] == [
        (f"p/{one}", f"p/{one}".encode()) for one in "abcde"
    ]
    assert await box.take(1) == ()
    assert "5 open" in repr(box)
    assert await count((bucket.name, "p/"), bucket.api, 100) == 5
    assert await count((bucket.name, "p/"), bucket.api, 2) == 2


async def test_it_is_as_far_as_everything_before_is_settled(bucket: Bucket) -> None:
    await bucket.fill("p/a", "p/b", "p/c")
    box = bucket.box()
    one, two, three = await taken(box)
    await box.done([two])
    assert box.position == ""
    await box.keep([one])
    assert box.position == "p/b"
    again = bucket.box(after=box.position)
    assert [letter.id for letter in await taken(again)] == ["p/c"]
    await box.done([three])
    assert box.position == "p/c"
    assert await bucket.keys() == ["p/a", "p/b", "p/c"]


async def test_what_succeeded_can_be_deleted_and_what_failed_stays(bucket: Bucket) -> None:
    await bucket.fill("p/a", "p/b")
    box = bucket.box(delete=True)
    one, two = await taken(box)
    await box.keep([one])
    await box.done([two])
    assert await bucket.keys() == ["p/a"]


async def test_what_cannot_be_deleted_stays_and_says_why(bucket: Bucket) -> None:
    await bucket.fill("p/a", "p/b", "p/c")

    async def api(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation == "DeleteObject" and params["Key"] == "p/b":
            raise AwsError("the role needs s3:DeleteObject")
        return await bucket.api(operation, params, timeout)

    box = FailedObjects((bucket.name, "p/"), api, delete=True)
    assert await box.done(await taken(box)) == 1
    assert box.position == "p/c"
    assert (
        box.note == "objects that succeeded stay, as they cannot be deleted: the role needs s3:DeleteObject"
    )
    assert await bucket.keys() == ["p/b"]


async def test_an_empty_prefix_ends_at_once(bucket: Bucket) -> None:
    await bucket.fill("q/a")
    assert await taken(bucket.box()) == []


async def test_a_bucket_that_is_not_there_is_an_error(bucket: Bucket) -> None:
    with pytest.raises(ResourceNotFound):
        await bucket.box().take(1)


async def test_an_object_that_somebody_has_removed_is_empty(bucket: Bucket) -> None:
    await bucket.fill("p/a", "p/b")
    box = bucket.box()
    await box.take(1)
    await bucket.call("DeleteObject", {"Bucket": bucket.name, "Key": "p/b"})
    (letter,) = await box.take(1)
    assert (letter.id, letter.body) == ("p/b", b"")


async def test_an_object_that_is_far_too_large_is_not_read_whole(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_objects, "LARGEST", 2)
    await bucket.fill("p/a")
    (letter,) = await taken(bucket.box())
    assert letter.body == b""


async def test_an_object_that_cannot_be_read_now_is_tried_again(bucket: Bucket) -> None:
    await bucket.fill("p/a", "p/b")
    broken = [True]

    async def api(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation == "GetObject" and broken:
            broken.clear()
            raise AwsError("slow down")
        return await bucket.api(operation, params, timeout)

    box = FailedObjects((bucket.name, "p/"), api)
    with pytest.raises(AwsError):
        await box.take(1)
    assert [letter.id for letter in await taken(box)] == ["p/a", "p/b"]


async def test_it_is_no_further_than_before_an_object_that_could_not_be_read_while_later_ones_were(
    bucket: Bucket,
) -> None:
    await bucket.fill("p/a", "p/b", "p/c")
    broken = ["p/a"]

    async def api(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation == "GetObject" and params["Key"] in broken:
            await second.wait()
            raise AwsError("slow down")
        return await bucket.api(operation, params, timeout)

    box, second = FailedObjects((bucket.name, "p/"), api), anyio.Event()
    later: list[Letter] = []

    async def take_first() -> None:
        with pytest.raises(AwsError):
            await box.take(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_first)
        await anyio.wait_all_tasks_blocked()
        later.extend(await box.take(1))
        await box.done(later)
        second.set()
    assert ([letter.id for letter in later], box.position) == (["p/b"], "")
    broken.clear()
    first, third = await taken(box)
    assert (first.id, third.id, box.position) == ("p/a", "p/c", "")
    await box.done([first])
    assert box.position == "p/b"
    await box.done([third])
    assert box.position == "p/c"


async def test_a_listing_that_makes_no_sense_is_an_error() -> None:
    async def api(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        return {"Contents": [{"Name": "a"}]}

    with pytest.raises(AwsError, match="makes no sense"):
        await FailedObjects(("bucket", ""), api).take(1)
