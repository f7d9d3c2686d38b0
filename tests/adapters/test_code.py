"""A function's code on disk: which version it is, what may be in a zip file, and what becomes of what was unpacked."""

from __future__ import annotations

import errno
import importlib.util
import os
import stat
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from poller.runtimes import code
from poller.runtimes.code import BadCode, Store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(Store()) as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "orders"
    (folder / "lib").mkdir(parents=True)
    (folder / "app.py").write_text("one")
    (folder / "lib/tool.py").write_text("two")
    return folder


def archive(path: Path, files: dict[str, str], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o600) << 16
            file.writestr(entry, text)
    return path


LINK = stat.S_IFLNK | 0o777


# --- directories ----------------------------------------------------------------------------------------------------------


def test_a_directory_is_used_in_place_and_has_a_version_of_12_digits(store: Store, folder: Path) -> None:
    found = store.look(folder)
    assert found.root == folder
    assert len(found.version) == 12
    assert int(found.version, 16)
    assert not store.unpacked


def test_a_version_is_of_names_and_contents_and_not_of_times(store: Store, folder: Path) -> None:
    first = store.look(folder)
    os.utime(folder / "app.py", (1, 1))
    assert store.look(folder) == first
    (folder / "app.py").write_text("One")
    second = store.look(folder)
    (folder / "app.py").rename(folder / "main.py")
    third = store.look(folder)
    (folder / "main.py").chmod(0o755)
    versions = {one.version for one in (first, second, third, store.look(folder))}
    assert len(versions) == 4


@pytest.mark.parametrize("name", ["__pycache__", ".git", "lib/__pycache__"])
def test_caches_and_history_are_no_part_of_a_version(store: Store, folder: Path, name: str) -> None:
    first, seen = store.look(folder), code.signature(folder)
    (folder / name).mkdir()
    (folder / name / "file").touch()
    assert store.look(folder) == first
    assert code.signature(folder) == seen


def test_a_change_of_one_letter_within_the_same_second_is_seen_with_what_was_known(
    store: Store, folder: Path
) -> None:
    known = store.look(folder)
    (folder / "app.py").write_text("eno")
    assert store.look(folder, known).version != known.version


def test_what_nobody_touched_is_not_read_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_TICK", -(10**18))  # else a file has to be a second old for that
    known = store.look(folder)
    monkeypatch.setattr(code, "_digest", lambda *_: pytest.fail("it was read"))
    assert store.look(folder, known) == known


def test_links_count_by_what_they_say_and_a_loop_of_them_ends(store: Store, folder: Path) -> None:
    first = store.look(folder)
    (folder / "lib/up").symlink_to("..")
    assert store.look(folder).version != first.version


def test_a_path_that_is_a_link_is_followed_once(store: Store, folder: Path, tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to(folder)
    found, seen = store.look(current), code.signature(current)
    assert (found.path, found.root) == (current, folder)
    current.unlink()
    (tmp_path / "next").mkdir()
    current.symlink_to(tmp_path / "next")
    assert code.signature(current) != seen
    assert store.look(current, found).root == tmp_path / "next"


def test_the_signature_of_what_was_looked_at_tells_of_every_later_touch(store: Store, folder: Path) -> None:
    found = store.look(folder)
    assert code.signature(folder) == found.signature
    (folder / "lib/tool.py").write_text("other")
    assert code.signature(folder) != found.signature
    assert code.signature(folder / "nothing") is None


def test_a_pipe_among_the_files_is_not_waited_for(store: Store, folder: Path) -> None:
    first = store.look(folder)
    os.mkfifo(folder / "pipe")
    assert store.look(folder) == first


def test_bytecode_that_python_would_take_for_the_new_code_is_removed(store: Store, folder: Path) -> None:
    cached, other = (
        Path(importlib.util.cache_from_source(str(folder / name))) for name in ("app.py", "lib/tool.py")
    )
    os.utime(folder / "app.py", (1, 1))
    old = store.look(folder)
    for one in (cached, other):
        one.parent.mkdir()
        one.touch()
    (folder / "app.py").write_text("two")
    os.utime(folder / "app.py", (1, 1))
    code.forget_bytecode(old, store.look(folder, old))
    assert (cached.exists(), other.exists()) == (False, True)


# --- zip files ------------------------------------------------------------------------------------------------------------


def test_a_zip_file_is_unpacked_once_into_a_private_folder(store: Store, tmp_path: Path) -> None:
    files = {"app.py": "one", "lib/": "", "lib/tool.py": "two", "bootstrap": "three"}
    path = archive(tmp_path / "orders.zip", files, {"bootstrap": 0o100700, "lib/": 0o40755})
    before = os.umask(0o077)  # whatever it is, workers may run as another user
    try:
        found = store.look(path)
    finally:
        os.umask(before)
    assert (found.root / "lib/tool.py").read_text() == "two"
    assert found.root.name == found.version
    assert stat.S_IMODE((found.root / "lib").stat().st_mode) == 0o755
    assert stat.S_IMODE((found.root / "bootstrap").stat().st_mode) == 0o755
    assert stat.S_IMODE((found.root / "app.py").stat().st_mode) == 0o644
    assert stat.S_IMODE(found.root.parent.stat().st_mode) == 0o711
    (found.root / "mark").touch()
    assert (store.look(path, found).root / "mark").exists()


def test_another_zip_file_is_another_version_beside_the_first(store: Store, tmp_path: Path) -> None:
    first = store.look(archive(tmp_path / "orders.zip", {"app.py": "one"}))
    second = store.look(archive(tmp_path / "orders.zip", {"app.py": "two"}))
    assert first.version != second.version
    assert first.root.exists()
    store.keep_only({second.root, Path("/elsewhere")})
    assert (first.root.exists(), second.root.exists()) == (False, True)


def test_programs_of_a_zip_file_without_unix_modes_can_be_run(store: Store, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "orders.zip", "w") as file:
        entry = zipfile.ZipInfo("bootstrap")
        entry.create_system = 0
        file.writestr(entry, "x")
    assert os.access(store.look(tmp_path / "orders.zip").root / "bootstrap", os.X_OK)


def test_links_within_a_zip_file_are_kept(store: Store, tmp_path: Path) -> None:
    files = {"bin/tool": "../lib/tool", "lib/tool": "x"}
    root = store.look(archive(tmp_path / "orders.zip", files, {"bin/tool": LINK})).root
    assert (root / "bin/tool").read_text() == "x"


@pytest.mark.parametrize(
    ("files", "links", "text"),
    [
        ({"../app.py": "x"}, (), "its entry '../app.py' leads out of it"),
        ({"a/../../app.py": "x"}, (), "its entry 'a/../../app.py' leads out of it"),
        ({"/etc/passwd": "x"}, (), "its entry '/etc/passwd' leads out of it"),
        ({"..\\app.py": "x"}, (), "leads out of it"),
        ({"a": "/etc"}, ("a",), "its link 'a' leads out of it"),
        ({"a": "../b"}, ("a",), "its link 'a' leads out of it"),
        ({"x/y": "..", "b": "x/y/../../c"}, ("x/y", "b"), "its link 'b' leads out of it"),
        ({"a": "/tmp", "a/b": "x"}, ("a",), "two of its entries exclude each other"),
        ({"a": "x", "a/b": "x"}, (), "two of its entries exclude each other"),
        ({"a": "x" * 5000}, ("a",), "its link 'a' is too long"),
    ],
)
def test_nothing_of_a_zip_file_lands_outside_its_folder(
    store: Store, tmp_path: Path, temporary: Path, files: dict[str, str], links: tuple[str, ...], text: str
) -> None:
    path = archive(tmp_path / "orders.zip", files, dict.fromkeys(links, LINK))
    with pytest.raises(BadCode) as caught:
        store.look(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)
    (private,) = temporary.iterdir()
    assert list(private.iterdir()) == []


def test_no_link_of_a_zip_file_is_made_through_another_that_leads_out_of_it(
    store: Store, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    files = {"a": "b", "b": str(outside), "a/new/c": "d"}
    path = archive(tmp_path / "orders.zip", files, dict.fromkeys(files, LINK))
    with pytest.raises(BadCode, match="its link 'a/new/c' leads out of it"):
        store.look(path)
    assert list(outside.iterdir()) == []


def test_a_damaged_zip_file_is_refused(store: Store, tmp_path: Path) -> None:
    path = archive(tmp_path / "orders.zip", {"app.py": "one and only"})
    path.write_bytes(path.read_bytes().replace(b"one and only", b"one and 0nly"))
    with pytest.raises(BadCode, match=r"it is a bad zip file: Bad CRC-32 for file 'app.py'"):
        store.look(path)


def test_what_is_too_large_is_refused_before_it_is_read(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "orders.zip", {"a": "x", "b": "x"})
    monkeypatch.setattr(code, "MAX_FILES", 1)
    for one in (path, folder):
        with pytest.raises(BadCode, match="it holds more than 1 files"):
            store.look(one)
    monkeypatch.setattr(code, "MAX_FILES", 2)
    monkeypatch.setattr(code, "MAX_BYTES", 1)
    for one in (path, folder):
        with pytest.raises(BadCode, match="it holds more than 0 MB"):
            store.look(one)


def test_what_is_no_code_is_said_in_one_line(store: Store, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "loop").symlink_to("loop")

    def refusal(name: str) -> str:
        with pytest.raises(BadCode) as caught:
            store.look(tmp_path / name)
        return str(caught.value)

    assert refusal("nothing") == f"there is no directory or zip file {tmp_path / 'nothing'}"
    assert refusal("text") == f"{tmp_path / 'text'}: it is neither a directory nor a zip file"
    assert "cannot be read" in refusal("loop")


def test_a_file_that_cannot_be_read_is_named(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(code, "_digest", refuse)  # root can read everything
    with pytest.raises(BadCode, match=r"cannot be read: Permission denied"):
        store.look(folder)


# --- cleaning up ----------------------------------------------------------------------------------------------------------


def test_nothing_is_left_after_the_end(tmp_path: Path, temporary: Path) -> None:
    store = Store()
    store.look(archive(tmp_path / "orders.zip", {"app.py": "one"}))
    assert list(temporary.iterdir())
    store.close()
    assert list(temporary.iterdir()) == []
    store.close()


@pytest.mark.slow
def test_what_a_killed_daemon_left_is_removed_by_the_next_and_not_what_a_living_one_uses(
    tmp_path: Path, temporary: Path
) -> None:
    path = archive(tmp_path / "orders.zip", {"app.py": "one"})
    script = (
        "import os, sys; from pathlib import Path; from poller.runtimes.code import Store;"
        " store = Store(); store.look(Path(sys.argv[1])); os._exit(0)"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=environment)
    (left,) = temporary.iterdir()
    with closing(Store()) as living, closing(Store()) as other:
        living.look(path)
        (mine,) = set(temporary.iterdir()) - {left}
        for one in (left, mine):
            os.utime(one, (1, 1))
        other.look(path)
        assert mine.exists()
        assert not left.exists()
