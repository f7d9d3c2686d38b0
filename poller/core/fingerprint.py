"""What error messages have in common: the same mistake says other numbers, ids and addresses each time.

Those are replaced by what they are, so that messages of one mistake become one text, and the text still reads like the message.
"""

from __future__ import annotations

import re

#: Characters of a fingerprint.
LONGEST = 200

_VARYING = re.compile(
    r"""
    (?P<uuid>  \b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b )
  | (?P<time>  \b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)? )
  | (?P<hex>   \b0[xX][0-9a-fA-F]+\b | \b(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b )
  | (?P<number> \d+(?:\.\d+)* )
    """,
    re.VERBOSE,
)


def fingerprint(message: str) -> str:
    """The message on one line, without what varies."""
    # Only what is shown is looked at; what varies gets shorter, seldom longer.
    line = " ".join(message[: 4 * LONGEST].split())
    return _VARYING.sub(lambda found: f"<{found.lastgroup}>", line)[:LONGEST]
