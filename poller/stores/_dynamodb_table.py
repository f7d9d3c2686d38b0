"""One DynamoDB table: made when there is none, recognised, and written one item at a time on conditions.

botocore tries again what is transient, so a write may have happened before the attempt that is answered. Who writes on a
condition has to look what is there when the condition fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from poller.errors import AccessDenied, AwsError, ResourceNotFound, StoreError
from poller.stores._dynamodb_rows import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.aws.session import AwsSession
    from poller.stores._dynamodb_rows import Item

#: Seconds for one call, with the attempts in it: a renewal that takes longer has failed.
TIMEOUT = 4.0
#: Seconds for a page of a scan.
PAGE_TIMEOUT = 10.0
#: Calls at a time. More of them would wait for a connection, and their time would run meanwhile.
AT_A_TIME = 40
#: Seconds that a new table may take, and between two looks at it.
CREATED_WITHIN = 60.0
CREATING_PAUSE = 0.5

_SCHEMA = [{"AttributeName": KEY, "KeyType": "HASH"}]


class Table:
    """The table. Raises StoreError only."""

    def __init__(self, name: str, session: AwsSession) -> None:
        self.name = name
        self._session = session
        self._room = anyio.Semaphore(AT_A_TIME)

    async def open(self) -> None:
        """Make sure that the table is there and is one of ours."""
        try:
            await self._find_or_create()
        except AwsError as error:
            raise self._failed(error) from error

    async def _find_or_create(self) -> None:
        try:
            table = await self._describe()
        except ResourceNotFound:
            table = await self._create()
        if table["KeySchema"] != _SCHEMA:
            raise StoreError(f"dynamodb:{self.name}: a table of another application: name another one")
        with anyio.move_on_after(CREATED_WITHIN):
            while table["TableStatus"] not in ("ACTIVE", "UPDATING"):
                await anyio.sleep(CREATING_PAUSE)
                table = await self._describe()
            return
        raise StoreError(f"dynamodb:{self.name}: is still {table['TableStatus']} after {CREATED_WITHIN:g} s")

    async def _describe(self) -> Mapping[str, Any]:
        reply = await self._session.call("dynamodb", "DescribeTable", {"TableName": self.name})
        found: Mapping[str, Any] = reply["Table"]
        return found

    async def _create(self) -> Mapping[str, Any]:
        wanted = {
            "TableName": self.name,
            "AttributeDefinitions": [{"AttributeName": KEY, "AttributeType": "S"}],
            "KeySchema": _SCHEMA,
            "BillingMode": "PAY_PER_REQUEST",
        }
        try:
            await self._session.call("dynamodb", "CreateTable", wanted)
        except AccessDenied as error:
            raise StoreError(
                f"dynamodb:{self.name}: there is no such table, and the role may not create it: create it with the "
                f"string key {KEY}, or allow dynamodb:CreateTable"
            ) from error
        except AwsError as error:
            if error.code != "ResourceInUseException":  # another process was faster
                raise
        return await self._describe()

    # --- items ----------------------------------------------------------------------------------------------------------

    async def get(self, key: Item) -> Item | None:
        """The item as it is now."""
        reply = await self._call("GetItem", {"Key": key, "ConsistentRead": True})
        found: Item | None = reply.get("Item")
        return found

    async def put(self, item: Item, condition: str = "") -> bool:
        """Write an item whole; False when the condition does not hold."""
        more = _with_names(condition, {}) if condition else {}
        return await self._if_holds("PutItem", {"Item": item, **more}) is not None

    async def delete(self, key: Item, condition: str = "", values: Mapping[str, Any] | None = None) -> bool:
        """Remove an item; False when the condition does not hold."""
        more = _with_names(condition, values or {}) if condition else {}
        return await self._if_holds("DeleteItem", {"Key": key, **more}) is not None

    async def update(
        self,
        key: Item,
        sets: Item,
        removes: tuple[str, ...] = (),
        condition: str = "",
        values: Mapping[str, Any] | None = None,
        *,
        defaults: Item | None = None,
        old: bool = False,
    ) -> Item | None:
        """Change attributes; return the item as it then is, or as it was; None when the condition does not hold.

        `defaults` are set where there is no such attribute. A condition names attributes as ``#name`` and the `values` as
        ``:name``.
        """
        defaults = defaults or {}
        changes = [f"#{name} = :new_{name}" for name in sets]
        changes += [f"#{name} = if_not_exists(#{name}, :new_{name})" for name in defaults]
        expression = "SET " + ", ".join(changes)
        if removes:
            expression += " REMOVE " + ", ".join(f"#{name}" for name in removes)
        all_values = {f":{name}": value for name, value in (values or {}).items()}
        all_values |= {f":new_{name}": value for name, value in (sets | defaults).items()}
        params = {
            "Key": key,
            "UpdateExpression": expression,
            "ReturnValues": "ALL_OLD" if old else "ALL_NEW",
            **({"ConditionExpression": condition} if condition else {}),
            "ExpressionAttributeNames": _names(f"{expression} {condition}"),
            "ExpressionAttributeValues": all_values,
        }
        reply = await self._if_holds("UpdateItem", params)
        return None if reply is None else reply.get("Attributes", {})

    async def scan(self, beginning: tuple[str, ...], *, consistent: bool = False) -> list[Item]:
        """All items whose keys begin with one of these."""
        begins = " OR ".join(f"begins_with(#{KEY}, :b{number})" for number in range(len(beginning)))
        params: dict[str, Any] = {
            "FilterExpression": begins,
            "ExpressionAttributeNames": {f"#{KEY}": KEY},
            "ExpressionAttributeValues": {
                f":b{number}": {"S": text} for number, text in enumerate(beginning)
            },
            "ConsistentRead": consistent,
        }
        items: list[Item] = []
        while True:
            reply = await self._call("Scan", params, PAGE_TIMEOUT)
            items += reply["Items"]
            if not (last := reply.get("LastEvaluatedKey")):
                return items
            params["ExclusiveStartKey"] = last

    async def _if_holds(self, operation: str, params: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return await self._call(operation, params)
        except StoreError as error:
            if getattr(error.__cause__, "code", "") == "ConditionalCheckFailedException":
                return None
            raise

    async def _call(self, operation: str, params: dict[str, Any], timeout: float = TIMEOUT) -> dict[str, Any]:
        async with self._room:
            try:
                return await self._session.call(
                    "dynamodb", operation, {"TableName": self.name, **params}, timeout=timeout
                )
            except AwsError as error:
                raise self._failed(error) from error

    def _failed(self, error: AwsError) -> StoreError:
        return StoreError(f"dynamodb:{self.name}: {error}")


def _with_names(condition: str, values: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"ConditionExpression": condition, "ExpressionAttributeNames": _names(condition)}
    if values:
        more["ExpressionAttributeValues"] = {f":{name}": value for name, value in values.items()}
    return more


def _names(expression: str) -> dict[str, str]:
    """Many good names are reserved words, so every name is written as ``#name``."""
    words = expression.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {word: word[1:] for word in words if word.startswith("#")}
