"""Reads a large JSON object slice by slice, so that the loop is never held up for long.

Parsing holds the interpreter, so a thread would not help; what helps is to stop in between. All replies that can be large are
one object with one large array of objects in it (Records, Messages). It is cut between two of these objects, and the slices are
parsed one by one: the *head* as an object that ends early, each *middle* and the rest of the array as an array, and the *tail*,
the members that follow, as an object.

That a cut lies between two objects of that array is not assumed but follows, if every slice is JSON:

* A cut is made before `{"name":` where an object ends and the next begins with the member that the first one began with. In a
  string the quotes would be escaped, so no cut lies within a string.
* The head closes with `]}`: so the cut array is the last member of the object itself. A cut deeper down does not balance.
* Each middle balances between `[` and `]`: so the array of the next cut is the same.
* The rest of it, up to the last `}]`, balances too: so the array ends there, and what follows are members of the object itself.
* The head ends with a member and the tail begins with one, if it has any; of a name that comes twice the last value counts, as
  in the whole.

Whatever does not go by this is read in one go, right or wrong, as all small replies are.

`apart` cuts the array in the same way, but between all of its objects, and leaves these as they are, for who parses them one by
one later: while a record is worked on the processor's caches have it, and of a page of a thousand they do not. There every
object has a member that can be in no other place, so pieces with one such member each are the right ones, if the last of them
is JSON: or what follows the array would be in it, too.
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
#: Ends the head's array, to know it by.
_CUT = b"poller: cut here"
_FIRST = re.compile(rb'"\w+":\[(\{"\w+":)')


class Uncut(ValueError):
    """What follows the array is not what can follow it."""


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
    found: dict[str, Any] = _parsed(b"".join((view[: commas[0]], b',"%b"]}' % _CUT)))
    array = found[next(reversed(found))]
    if not isinstance(array, list) or array.pop() != _CUT.decode():
        raise Uncut  # a name that came before keeps its first place
    await asyncio.sleep(0)
    for begin, end in pairwise(commas):
        array += _parsed(b"".join((b"[", view[begin + 1 : end], b"]")))
        await asyncio.sleep(0)
    end = text.rfind(b"}]", commas[-1]) + 1
    if not end:
        raise Uncut
    array += _parsed(b"".join((b"[", view[commas[-1] + 1 : end + 1])))
    more = text[end + 1 : end + 2] == b","
    tail: dict[str, Any] = _parsed(b"".join((b"{", view[end + 1 + more :])))
    if more != bool(tail):
        raise Uncut
    return {**found, **tail}


def apart(text: bytes, name: str, mark: bytes) -> dict[str, Any]:
    """Parse an object, and leave the objects in its array `name` as JSON, each as bytes. Raises orjson.JSONDecodeError.

    `mark` is the beginning of a member that each of them has, and that can be nowhere else.
    """
    try:
        return _apart(text, name, mark)
    except (orjson.JSONDecodeError, Uncut):
        found = _parsed(text)
    if isinstance(found, dict) and isinstance(found.get(name), list):
        found[name] = [orjson.dumps(one) for one in found[name]]
    return found  # type: ignore[no-any-return]


def _apart(text: bytes, name: str, mark: bytes) -> dict[str, Any]:
    first = re.search(rb'"%s":\[(\{"\w+":)' % name.encode(), text)
    if first is None:
        raise Uncut
    begin, border = first.start(1), b"}," + first[1]
    end = text.rfind(b"}]", begin) + 1
    pieces: list[bytes] = []
    at = begin
    while (cut := text.find(border, at, end)) >= 0:
        pieces.append(text[at : cut + 1])
        at = cut + 2
    pieces.append(text[at:end])
    orjson.loads(pieces[-1])  # or the `}]` is of what follows the array
    head: dict[str, Any] = orjson.loads(text[:begin] + b"]}")
    more = text[end + 1 : end + 2] == b","
    tail: dict[str, Any] = orjson.loads(b"{" + text[end + 1 + more :])
    whole = next(reversed(head)) == name and name not in tail and more == bool(tail)
    if not whole or any(piece.count(mark) != 1 for piece in pieces):
        raise Uncut
    return {**head, name: pieces, **tail}


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
