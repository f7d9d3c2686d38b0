"""Reads a large JSON object slice by slice, so that the loop is never held up for long.

Parsing holds the interpreter, so a thread would not help; what helps is to stop in between. All replies that can be large are
one object with one large array of objects in it (Records, Messages). It is cut between two of these objects, and the slices are
parsed one by one: the *head* as an object that ends early, each *middle* as an array, the *tail* as an object that begins with
the rest of the array.

That a cut lies between two objects of that array is not assumed but follows, if every slice is JSON:

* A cut is made before `{"name":` where an object ends and the next begins with the member that the first one began with. In a
  string the quotes would be escaped, so no cut lies within a string.
* The head closes with `]}`: so the cut array is the last member of the object itself. A cut deeper down does not balance.
* Each middle balances between `[` and `]`: so the array of the next cut is the same.
* A name that comes twice would make it unclear which member is meant; then nothing is cut.

Whatever does not go by this is read in one go, right or wrong, as all small replies are.
"""

from __future__ import annotations

import asyncio
import gc
import re
from typing import Any

import orjson

#: Bytes; one or two milliseconds' work.
SLICE = 2**18
#: Bytes from which the collector is worth stopping.
LARGE = 2**16
_FIRST = re.compile(rb'"\w+":\[(\{"\w+":)')


class _Uncut(ValueError):
    """It is not as assumed."""


async def loads(text: bytes) -> Any:
    """Parse JSON, with a turn of the loop after about every `SLICE` bytes. Raises orjson.JSONDecodeError."""
    cut = slices(text) if len(text) >= 2 * SLICE else [text]
    if len(cut) > 1:
        try:
            return await _joined(cut)
        except (orjson.JSONDecodeError, _Uncut):
            pass
    return _parsed(text)


def slices(text: bytes, size: int = SLICE) -> list[bytes]:
    """Cut `text` about every `size` bytes where that may be done; the commas at the cuts are left out."""
    first = _FIRST.search(text, 0, size)
    if first is None:
        return [text]
    border = b"}," + first[1]
    cut: list[bytes] = []
    begin = 0
    while (end := text.find(border, begin + size)) >= 0:
        cut.append(text[begin : end + 1])
        begin = end + 2
    return [*cut, text[begin:]]


async def _joined(cut: list[bytes]) -> dict[str, Any]:
    found = _parsed(cut[0] + b"]}")
    names = [orjson.dumps(name)[1:-1] for name in found]
    if any(cut[0].count(b'"%b"' % name) != 1 for name in names):
        raise _Uncut
    member, array = next(reversed(found.items()))
    await asyncio.sleep(0)
    for middle in cut[1:-1]:
        array += _parsed(b"[%b]" % middle)
        await asyncio.sleep(0)
    if b'"%b"' % names[-1] in cut[-1]:
        raise _Uncut
    tail = _parsed(b'{"%b":[%b' % (names[-1], cut[-1]))
    array += tail.pop(member)
    return {**found, **tail}


def _parsed(text: bytes) -> Any:
    if len(text) < LARGE or not gc.isenabled():
        return orjson.loads(text)
    # The collector would go over the new objects again and again while they are made, and none of them is garbage. No other
    # thread runs meanwhile.
    gc.disable()
    try:
        return orjson.loads(text)
    finally:
        gc.enable()
