"""One DynamoDB table: made when there is none, recognised, and written one item at a time on conditions.

botocore tries again what is transient, so a write may have happened before the attempt that is answered. Who writes on a
condition has to look what is there when the condition fails.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of tables is told from others, and named."""

    key: str
    """The one attribute of its key, a string."""
    named: str
    """Where the operator has named it, in front of its name."""
    refusal: str
    """What is said of another table; ``{keys}`` stands for its key."""


OWN = Layout(KEY, "dynamodb:", "a table of another application: name another one")


class Table:
    """The table. Raises StoreError only. A region of None is the session's own."""

    def __init__(
        self, name: str, session: AwsSession, layout: Layout = OWN, region: str | None = None
    ) -> None:
        self.name = name
        self.where = f"{layout.named}{name}"
        """How messages name it."""
        self._session = session
        self._layout = layout
        self._region = region
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
        if not self._is_one(table):
            keys = ", ".join(one["AttributeName"] for one in table["KeySchema"])
            raise StoreError(f"{self.where}: {self._layout.refusal.format(keys=keys)}")
        with anyio.move_on_after(CREATED_WITHIN):
            while table["TableStatus"] not in ("ACTIVE", "UPDATING"):
                await anyio.sleep(CREATING_PAUSE)
                table = await self._describe()
            return
        raise StoreError(f"{self.where}: is still {table['TableStatus']} after {CREATED_WITHIN:g} s")

    @property
    def _schema(self) -> list[dict[str, str]]:
        return [{"AttributeName": self._layout.key, "KeyType": "HASH"}]

    @property
    def _definition(self) -> dict[str, str]:
        return {"AttributeName": self._layout.key, "AttributeType": "S"}

    def _is_one(self, table: Mapping[str, Any]) -> bool:
        return table["KeySchema"] == self._schema and self._definition in table["AttributeDefinitions"]

    async def _describe(self) -> Mapping[str, Any]:
        params = {"TableName": self.name}
        reply = await self._session.call("dynamodb", "DescribeTable", params, region=self._region)
        found: Mapping[str, Any] = reply["Table"]
        return found

    async def _create(self) -> Mapping[str, Any]:
        wanted = {
            "TableName": self.name,
            "AttributeDefinitions": [self._definition],
            "KeySchema": self._schema,
            "BillingMode": "PAY_PER_REQUEST",
        }
        try:
            await self._session.call("dynamodb", "CreateTable", wanted, region=self._region)
        except AccessDenied as error:
            raise StoreError(
                f"{self.where}: there is no such table, and the role may not create it: create it with the "
                f"string key {self._layout.key}, or allow dynamodb:CreateTable"
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
        adds: Item | None = None,
        old: bool = False,
    ) -> Item | None:
        """Change attributes; return the item as it then is, or as it was; None when the condition does not hold.

        `defaults` are set where there is no such attribute, `adds` are numbers to add to those that there are. A condition
        names attributes as ``#name`` and the `values` as ``:name``.
        """
        defaults, adds = defaults or {}, adds or {}
        changes = [f"#{name} = :new_{name}" for name in sets]
        changes += [f"#{name} = if_not_exists(#{name}, :new_{name})" for name in defaults]
        expression = "SET " + ", ".join(changes)
        if removes:
            expression += " REMOVE " + ", ".join(f"#{name}" for name in removes)
        if adds:
            expression += " ADD " + ", ".join(f"#{name} :new_{name}" for name in adds)
        all_values = {f":{name}": value for name, value in (values or {}).items()}
        all_values |= {f":new_{name}": value for name, value in (sets | defaults | adds).items()}
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

    async def scan(self, beginning: tuple[str, ...] = (), *, consistent: bool = False) -> list[Item]:
        """All items, or those whose keys begin with one of these."""
        params: dict[str, Any] = {"ConsistentRead": consistent}
        if beginning:
            key = self._layout.key
            begins = [f"begins_with(#{key}, :b{number})" for number in range(len(beginning))]
            texts = {f":b{number}": {"S": text} for number, text in enumerate(beginning)}
            params |= {
                "FilterExpression": " OR ".join(begins),
                "ExpressionAttributeNames": {f"#{key}": key},
                "ExpressionAttributeValues": texts,
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
                whole = {"TableName": self.name, **params}
                return await self._session.call(
                    "dynamodb", operation, whole, timeout=timeout, region=self._region
                )
            except AwsError as error:
                raise self._failed(error) from error

    def _failed(self, error: AwsError) -> StoreError:
        return StoreError(f"{self.where}: {error}")


def _with_names(condition: str, values: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"ConditionExpression": condition, "ExpressionAttributeNames": _names(condition)}
    if values:
        more["ExpressionAttributeValues"] = {f":{name}": value for name, value in values.items()}
    return more


def _names(expression: str) -> dict[str, str]:
    """Many good names are reserved words, so every name is written as ``#name``."""
    words = expression.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {word: word[1:] for word in words if word.startswith("#")}
