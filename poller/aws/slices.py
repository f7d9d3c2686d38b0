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
from itertools import pairwise
from typing import Any

import orjson

#: Bytes; one to four milliseconds' work.
SLICE = 2**19
#: Bytes from which a reply is cut. Several may come at the same moment, so it is not a matter of one alone.
WORTH_CUTTING = 2**20
#: Bytes from which the collector is worth stopping.
LARGE = 2**16
_FIRST = re.compile(rb'"\w+":\[(\{"\w+":)')


class Uncut(ValueError):
    """A name comes twice."""


async def loads(text: bytes) -> Any:
    """Parse JSON, with a turn of the loop after about every `SLICE` bytes. Raises orjson.JSONDecodeError."""
    if len(text) >= WORTH_CUTTING and (commas := cuts(text)):
        try:
            return await joined(text, commas)
        except (orjson.JSONDecodeError, Uncut):
            pass
    return _parsed(text)


def cuts(text: bytes, size: int = SLICE) -> list[int]:
    """The places of commas, about `size` bytes apart, at which `text` may be cut."""
    first = _FIRST.search(text, 0, size)
    if first is None:
        return []
    border = b"}," + first[1]
    commas: list[int] = []
    at = 0
    while (at := text.find(border, at + size)) >= 0:
        commas.append(at + 1)
    return commas


async def joined(text: bytes, commas: list[int]) -> dict[str, Any]:
    """Parse what lies between the cuts, and put it together. Raises `Uncut` or orjson.JSONDecodeError."""
    view = memoryview(text)
    found = _parsed(b"".join((view[: commas[0]], b"]}")))
    names = [b'"%b"' % orjson.dumps(name)[1:-1] for name in found]
    if any(text.count(name, 0, commas[0]) != 1 for name in names):
        raise Uncut
    member, array = next(reversed(found.items()))
    await asyncio.sleep(0)
    for begin, end in pairwise(commas):
        array += _parsed(b"".join((b"[", view[begin + 1 : end], b"]")))
        await asyncio.sleep(0)
    if text.find(names[-1], commas[-1]) >= 0:
        raise Uncut
    tail = _parsed(b"".join((b"{", names[-1], b":[", view[commas[-1] + 1 :])))
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
