"""On which line of a TOML text a key stands.

The standard library's parser does not tell. This is a good guess for a message, no more: it knows headers,
keys at the start of a line and long strings; a key of an inline table has the line of the key that holds it.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


class Lines:
    """Looks up lines of one text."""

    def __init__(self, text: str) -> None:
        self._found: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}
        table: Path = ()
        inside = ""
        for number, line in enumerate(text.splitlines(), 1):
            if not inside:
                table = self._read(line, number, table)
            inside = _long_string(line, inside)

    def of(self, at: Path) -> int | None:
        """Return the line of the key `at`, or of the nearest thing around it."""
        return next((self._found[at[:end]] for end in range(len(at), 0, -1) if at[:end] in self._found), None)

    def _read(self, line: str, number: int, table: Path) -> Path:
        if header := _HEADER.match(line):
            table = self._enter(_parts(header[2]), is_list=header[1] == "[[")
            self._add(table, number)
        elif key := _KEY.match(line):
            self._add((*table, *_parts(key[1])), number)
        return table

    def _enter(self, parts: list[str], *, is_list: bool) -> Path:
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            path = (*path, self._tables[path]) if path in self._tables else path
        path = (*path, parts[-1])
        if not is_list:
            return path
        self._tables[path] = self._tables.get(path, -1) + 1
        return (*path, self._tables[path])

    def _add(self, path: Path, number: int) -> None:
        for end in range(1, len(path) + 1):
            self._found.setdefault(path[:end], number)


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_PART, dotted)]


def _long_string(line: str, inside: str) -> str:
    for quote in re.findall(r'"""|\'\'\'', line):
        if not inside:
            inside = quote
        elif inside == quote:
            inside = ""
    return inside
