"""The objects of an S3 destination as a box of letters, in the order of their keys.

Objects stay where they are, so the box remembers how far it is: the last key up to which every object is done with or was kept.
A replay that goes on begins behind it. With `delete` an object of which everything succeeded is removed.
"""

from __future__ import annotations

from collections import deque
from heapq import nlargest
from typing import TYPE_CHECKING, Any

import anyio

from poller.aws.errors import foreign, translate
from poller.errors import AwsError, BadReply
from poller.sources._letters import Letter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    #: One call of S3's API: operation, parameters, seconds until it is given up. Raises AwsError.
    Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: Seconds for one call.
CALL_TIMEOUT = 30.0
GONE = "NoSuchKey"
#: Keys of one listing.
LISTED = 1000
#: Bytes of an object that is read: an event of 6 MB as JSON text in JSON, and what is around it.
LARGEST = 32 * 2**20


class FailedObjects:
    """The objects under one prefix; see `poller.sources._letters.Box`."""

    cut_short = False

    def __init__(
        self,
        place: tuple[str, str],
        api: Api,
        after: str = "",
        *,
        delete: bool = False,
    ) -> None:
        """`place` is the bucket and the prefix; it begins behind the key `after`."""
        self.note = ""
        self.position = after
        """Every object up to this key is done with, or was kept."""
        self._bucket, self._prefix = place
        self._api = api
        self._delete = delete
        self._listed_to = after
        self._keys: deque[str] = deque()
        self._all_listed = False
        # In their order, from the first on that is not settled: also those that could not be read, and are taken again.
        self._open: deque[str] = deque()
        self._unread: set[str] = set()
        self._settled: set[str] = set()
        self._listing = anyio.Lock()

    def __repr__(self) -> str:
        return f"<FailedObjects s3://{self._bucket}/{self._prefix}: {len(self._open)} open>"

    @property
    def ended(self) -> bool:
        return self._all_listed and not self._keys

    async def take(self, limit: int) -> Sequence[Letter]:
        """One object."""
        async with self._listing:
            if not self._keys and not self._all_listed:
                await self._list()
            if not self._keys:
                return ()
            key = self._keys.popleft()
            if key not in self._unread:
                self._open.append(key)
        try:
            body = await read_object((self._bucket, key), self._api)
        except BaseException:
            self._unread.add(key)
            self._keys.appendleft(key)
            raise
        self._unread.discard(key)
        return (Letter(key, body, key),)

    async def _list(self) -> None:
        wanted = {"Bucket": self._bucket, "Prefix": self._prefix, "MaxKeys": LISTED}
        if self._listed_to:
            wanted["StartAfter"] = self._listed_to
        reply = await self._api("ListObjectsV2", wanted, CALL_TIMEOUT)
        try:
            keys = [str(one["Key"]) for one in reply.get("Contents") or ()]
            self._all_listed = not (keys and reply["IsTruncated"])
        except (KeyError, TypeError) as error:
            raise BadReply("ListObjectsV2: a reply that makes no sense", operation="ListObjectsV2") from error
        self._keys.extend(keys)
        self._listed_to = keys[-1] if keys else self._listed_to

    async def done(self, letters: Sequence[Letter]) -> int:
        stay = 0
        for letter in letters if self._delete else ():
            try:
                await self._api("DeleteObject", {"Bucket": self._bucket, "Key": letter.id}, CALL_TIMEOUT)
            except AwsError as error:
                stay += 1
                self.note = f"objects that succeeded stay, as they cannot be deleted: {error}"
        await self.keep(letters)
        return stay

    async def keep(self, letters: Sequence[Letter]) -> None:
        self._settled.update(letter.id for letter in letters)
        while self._open and self._open[0] in self._settled:
            self.position = self._open.popleft()
            self._settled.discard(self.position)


async def count(place: tuple[str, str], api: Api, most: int) -> int:
    """How many objects there are under a prefix, counted up to `most`, about. Raises AwsError."""
    wanted: dict[str, Any] = {"Bucket": place[0], "Prefix": place[1], "MaxKeys": LISTED}
    found = 0
    while found < most:
        reply = await api("ListObjectsV2", wanted, CALL_TIMEOUT)
        keys = reply.get("Contents") or ()
        found += len(keys)
        if not (keys and reply.get("IsTruncated")):
            break
        wanted["StartAfter"] = keys[-1]["Key"]
    return found


async def newest(
    place: tuple[str, str], api: Api, counted: int, wanted: int
) -> tuple[int, list[tuple[str, float]]]:
    """How many objects there are under a prefix, counted up to `counted`, and of these the newest.

    Of each its key, and the Unix time at which it was written. Raises AwsError.
    """
    found = 0
    kept: list[tuple[float, str]] = []
    asked: dict[str, Any] = {"Bucket": place[0], "Prefix": place[1], "MaxKeys": LISTED}
    while found < counted:
        reply = await api("ListObjectsV2", asked, CALL_TIMEOUT)
        objects = reply.get("Contents") or ()
        found += len(objects)
        kept = nlargest(wanted, [*kept, *((one["LastModified"].timestamp(), one["Key"]) for one in objects)])
        if not (objects and reply.get("IsTruncated")):
            break
        asked["StartAfter"] = objects[-1]["Key"]
    return found, [(key, at) for at, key in kept]


async def read_object(place: tuple[str, str], api: Api) -> bytes:
    """An object; empty for one that is not there or is no document of ours. Raises AwsError."""
    try:
        reply = await api("GetObject", {"Bucket": place[0], "Key": place[1]}, CALL_TIMEOUT)
    except AwsError as error:
        if error.code == GONE:
            return b""  # somebody has removed it since it was listed
        raise
    body = bytearray()
    try:
        async with reply["Body"] as stream:
            async for piece in stream.iter_chunks(2**16):
                body += piece
                if len(body) > LARGEST:
                    return b""
    except foreign() as error:
        raise translate(error, service="s3", operation="GetObject") from error
    return bytes(body)
