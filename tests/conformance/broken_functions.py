"""A function whose init code fails."""

raise LookupError("no table ORDERS")
