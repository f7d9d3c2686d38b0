"""The code of a function on disk: a directory as it lies there, or a zip file unpacked once; and which version it is.

A directory is used in place, so whoever writes into it changes what the next worker starts with; its version is the hash of
what was there when it was looked at. A path that is a link is followed once, at the look: workers stay in the directory that
it led to, so a release that is switched by a link is switched in one step. A zip file is unpacked into a private folder
under the hash of its bytes, and nothing of it can lie outside that folder.

All of it blocks, and is meant for a thread. A store is used from one of them at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import lzma
import os
import shutil
import stat
import struct
import tempfile
import time
import weakref
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from io import BufferedReader

#: Characters of a version.
VERSION_LENGTH = 12
#: What a function may hold; four times what Lambda takes.
MAX_BYTES = 1024**3
MAX_FILES = 50_000
#: Folders that are no part of the code.
IGNORED = frozenset({"__pycache__", ".git"})

_PREFIX = "poller-code-"
_CHUNK = 1024 * 1024
#: Bytes of what a link leads to.
_MAX_LINK = 4096
#: Nanoseconds for which a change could be missed, because the file system's clock stands still in between.
_TICK = 1_000_000_000
#: Seconds for which a folder that nobody has locked may be one that is just being made.
_BIRTH = 60.0


class BadCode(Exception):
    """One line on why there is no code at a path."""


class File(NamedTuple):
    """One file or link of a directory, as it was last read."""

    stamp: tuple[int, ...]
    """Mode, size, times of change in nanoseconds: equal as long as nobody has touched it."""
    digest: bytes
    sure: bool
    """Whether any later change makes another stamp."""

    @property
    def bytecode_key(self) -> tuple[int, int]:
        """What Python compares to tell whether its compiled form is still good: seconds and size."""
        return self.stamp[2] // 1_000_000_000, self.stamp[1]


@dataclass(frozen=True, slots=True)
class Code:
    """What a function runs."""

    path: Path
    """As it was asked for."""
    root: Path
    """The directory in which workers run."""
    version: str
    """The first digits of the hash of its content."""
    signature: int = field(default=0, compare=False, repr=False)
    """What `signature` said before it was read."""
    files: Mapping[str, File] = field(default_factory=dict, compare=False, repr=False)


# --- looking --------------------------------------------------------------------------------------------------------------


def signature(path: Path) -> int | None:
    """Return a number that changes when the code at `path` is touched, without reading it; None when it cannot be told."""
    try:
        real = path.resolve()
        found = real.stat()
        if not stat.S_ISDIR(found.st_mode):
            return hash((str(real), _stamp(found), found.st_ino))
        return _tree_signature(real, {name: _stamp(one) for name, one in _walk(real)})
    except (OSError, BadCode, RuntimeError):
        return None


def _tree_signature(root: Path, stamps: Mapping[str, tuple[int, ...]]) -> int:
    return hash((str(root), frozenset(stamps.items())))


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All files and links below `root`, by their names from there. Links are not followed."""
    folders, files, size = [""], 0, 0
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in IGNORED:
                        folders.append(name)
                    continue
                found = entry.stat(follow_symlinks=False)
                if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                    continue
                files, size = files + 1, size + found.st_size
                _check_room(files, size)
                yield name, found


def _check_room(files: int, size: int) -> None:
    if files > MAX_FILES:
        raise BadCode(f"it holds more than {MAX_FILES} files")
    if size > MAX_BYTES:
        raise BadCode(f"it holds more than {MAX_BYTES >> 20} MB")


def _read_tree(root: Path, known: Mapping[str, File]) -> dict[str, File]:
    files = {}
    for name, found in _walk(root):
        stamp, before = _stamp(found), known.get(name)
        if before is not None and before.sure and before.stamp == stamp:
            files[name] = before
        else:
            sure = time.time_ns() - found.st_ctime_ns > _TICK
            files[name] = File(stamp, _digest(root / name, found.st_mode), sure)
    return files


def _digest(path: Path, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return hashlib.sha256(os.readlink(path).encode(errors="surrogateescape")).digest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _version(files: Mapping[str, File]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        mode, size, *_ = files[name].stamp
        kind = "link" if stat.S_ISLNK(mode) else "program" if mode & 0o111 else "file"
        whole.update(f"{kind} {size} {name}\0".encode(errors="surrogateescape") + files[name].digest)
    return whole.hexdigest()[:VERSION_LENGTH]


def forget_bytecode(old: Code, new: Code) -> None:
    """Remove what Python has compiled from files of `old` and would take for that of `new`.

    It goes by a file's time in seconds and its size. Files of releases often have one and the same time.
    """
    if old.root != new.root:
        return
    for name, file in new.files.items():
        before = old.files.get(name)
        if (
            name.endswith(".py")
            and before is not None
            and before.digest != file.digest
            and before.bytecode_key == file.bytecode_key
        ):
            with suppress(OSError, NotImplementedError):
                os.unlink(importlib.util.cache_from_source(str(new.root / name)))


# --- the store ------------------------------------------------------------------------------------------------------------


class Store:
    """Finds code, and keeps what was unpacked of it in a private folder of its own until `close`."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._forget: weakref.finalize[[Path, int | None], Store] | None = None

    def look(self, path: Path, known: Code | None = None) -> Code:
        """Return the code at `path` as it is now; raises BadCode. `known` is the one before, of which less is read again."""
        try:
            real = path.resolve(strict=True)
            if real.is_dir():
                files = _read_tree(real, known.files if known is not None and known.root == real else {})
                seen = _tree_signature(real, {name: file.stamp for name, file in files.items()})
                return Code(path, real, _version(files), seen, files)
            seen = signature(path) or 0
            with real.open("rb") as file:
                return self._of_archive(path, file, seen)
        except FileNotFoundError as error:
            gone = Path(error.filename or path)
            if gone in (path, path.absolute()) or not path.exists():
                raise BadCode(f"there is no directory or zip file {path}") from error
            raise BadCode(f"{path} is being changed: {gone} has just gone") from error
        except OSError as error:
            raise BadCode(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
        except BadCode as error:
            raise BadCode(f"{path}: {error}") from error
        except RuntimeError as error:  # what pathlib says of a loop of links, up to Python 3.12
            raise BadCode(f"{path} cannot be read: {error}") from error

    def keep_only(self, roots: Iterable[Path]) -> None:
        """Remove what was unpacked and is not among `roots`."""
        folder = self._folder
        if folder is not None:
            wanted = {root.name for root in roots if root.parent == folder}
            with suppress(FileNotFoundError):  # closed meanwhile
                for name in os.listdir(folder):
                    if name not in wanted:
                        shutil.rmtree(folder / name, ignore_errors=True)

    @property
    def unpacked(self) -> bool:
        """Whether there may be something to remove."""
        return self._folder is not None

    def close(self) -> None:
        """Remove all that was unpacked."""
        if self._forget is not None:
            self._forget()
        self._folder = self._forget = None

    def _of_archive(self, path: Path, file: BufferedReader, seen: int) -> Code:
        if not zipfile.is_zipfile(file):
            raise BadCode("it is neither a directory nor a zip file")
        file.seek(0)
        version = hashlib.file_digest(file, "sha256").hexdigest()[:VERSION_LENGTH]
        root = self._open() / version
        if not root.exists():
            part = Path(tempfile.mkdtemp(dir=root.parent))
            try:
                _unpack(file, part)
                for folder, _, _ in os.walk(part):  # whatever the daemon's umask is
                    os.chmod(folder, 0o755)
                part.rename(root)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        return Code(path, root, version, seen)

    def _open(self) -> Path:
        if self._folder is None:
            _remove_abandoned()
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
            # Another user's workers may enter what they know the name of, and see no names.
            self._folder.chmod(0o711)
            lock = _lock(self._folder)
            self._forget = weakref.finalize(self, _remove, self._folder, lock)
        return self._folder


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; systemd-tmpfiles leaves alone what is locked, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _remove_abandoned() -> None:
    """Remove what daemons left behind that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _BIRTH:
                lock = _lock(folder)
                if lock is not None:
                    _remove(folder, lock)


# --- zip files ------------------------------------------------------------------------------------------------------------


#: What zipfile raises of files that are damaged, encrypted or packed in a way that it does not know.
_BAD_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def _unpack(file: BufferedReader, to: Path) -> None:
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_room(len(entries), sum(entry.file_size for entry in entries))
            links = []
            for entry in entries:
                place = to / _checked(entry.filename)
                if stat.S_ISLNK(_mode(entry)):
                    links.append((place, entry))
                else:
                    _unpack_one(archive, entry, place)
            # After all files, so that none is written through a link, and no link through another; then judged by where they
            # really lead.
            for place, entry in links:
                if entry.file_size > _MAX_LINK:
                    raise BadCode(f"its link {entry.filename!r} is too long")
                _check_inside(to, place.parent, entry)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(archive.read(entry).decode())
            for place, entry in links:
                _check_inside(to, place, entry)
    except _BAD_ARCHIVE as error:
        raise BadCode(f"it is a bad zip file: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadCode("it is a bad zip file: two of its entries exclude each other") from error


def _check_inside(root: Path, place: Path, link: zipfile.ZipInfo) -> None:
    if not place.resolve().is_relative_to(root.resolve()):
        raise BadCode(f"its link {link.filename!r} leads out of it")


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise BadCode(f"its entry {name!r} leads out of it")
    return path


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> None:
    if entry.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as packed, place.open("xb") as file:
        shutil.copyfileobj(packed, file, _CHUNK)
    # Readable for whatever user the workers are. Where no modes are recorded, anything may be a program.
    recorded = entry.create_system == 3 and _mode(entry)
    place.chmod(0o755 if not recorded or recorded & 0o111 else 0o644)


def _mode(entry: zipfile.ZipInfo) -> int:
    return entry.external_attr >> 16
