"""Mappings that have tables of their own for their leases: opened, and put beside the state of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.stores.by_mapping import ByMapping
from poller.stores.dynamodb import DynamoDbStore
from poller.stores.kcl import KclStore, Origin

if TYPE_CHECKING:
    from poller.aws.session import AwsSession
    from poller.config import Config, Mapping
    from poller.stores.by_mapping import Other, Own


async def beside(own: Own, config: Config, session: AwsSession) -> Own:
    """`own`, or a store of stores when the file has mappings with tables of their own; raises StoreError.

    The session outlives what is returned. Closing that closes `own`.
    """
    tables = {
        mapping.name: await open_table(mapping.lease_table, mapping, session)
        for mapping in config.mappings
        if mapping.lease_table is not None
    }
    return ByMapping(own, tables) if tables else own


async def open_table(name: str, mapping: Mapping, session: AwsSession) -> Other:
    """The table `name` of `mapping`, made when there is none; raises StoreError when it cannot be used."""
    if mapping.lease_format == "poller":
        return await DynamoDbStore.open(name, session, mapping.region)
    # The rules have made sure that there is a position.
    position = mapping.starting_position or "TRIM_HORIZON"
    origin = Origin(mapping.name, position, mapping.starting_position_timestamp)
    return await KclStore.open(name, session, origin, mapping.region)
