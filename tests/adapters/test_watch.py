"""When watched code is deployed: once for each change, when it is still again."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from poller.app import deploy
from poller.app.deploy import Watch
from poller.app.functions import Loaded
from poller.config import Function
from poller.runtimes.code import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(Store()) as store:
        yield store


@pytest.fixture
def loaded(store: Store, tmp_path: Path) -> Loaded:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "app.py").write_text("one")
    config = Function(runtime="python", handler="app:handler", code=folder, watch=True)
    nothing = cast("Any", None)
    return Loaded("orders", config, nothing, nothing, store.look(folder))


def touch(loaded: Loaded, text: str) -> None:
    assert loaded.code is not None
    (loaded.code.path / f"{text}.py").write_text(text)


def test_code_that_is_as_it_was_is_left_alone(store: Store, loaded: Loaded) -> None:
    watch = Watch(store)
    assert [watch.look([loaded]) for _ in range(3)] == [[], [], []]


def test_a_change_is_deployed_at_the_second_look_that_sees_it_alike(store: Store, loaded: Loaded) -> None:
    watch = Watch(store)
    touch(loaded, "two")
    assert watch.look([loaded]) == []
    touch(loaded, "three")
    assert watch.look([loaded]) == []
    assert watch.look([loaded]) == [loaded]
    after = watch.deployable(loaded)
    assert after is not None
    assert after.code != loaded.code
    assert [watch.look([after]) for _ in range(3)] == [[], [], []]


def test_what_cannot_be_deployed_is_tried_once_and_again_when_it_changes(
    store: Store, loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(store)
    assert loaded.code is not None
    (loaded.code.path / "app.py").rename(loaded.code.path / "main.py")
    assert [watch.look([loaded]) for _ in range(4)] == [[], [loaded], [], []]
    assert watch.deployable(loaded) is None
    assert (
        'functions.orders.handler = "app:handler": names a module that is neither in its code' in caplog.text
    )
    (loaded.code.path / "main.py").rename(loaded.code.path / "app.py")
    touch(loaded, "two")
    assert [watch.look([loaded]) for _ in range(3)] == [[], [loaded], []]
    assert watch.deployable(loaded) is not None


def test_a_touch_that_changes_nothing_is_looked_at_once(store: Store, loaded: Loaded) -> None:
    watch = Watch(store)
    assert loaded.code is not None
    os.utime(loaded.code.path / "app.py", (1, 1))
    assert [watch.look([loaded]) for _ in range(2)] == [[], [loaded]]
    after = watch.deployable(loaded)
    assert after is not None
    assert after.code == loaded.code
    deploy.switch(loaded, after)  # there is no runtime to tell
    assert watch.look([after]) == []


def test_code_that_goes_and_comes_back_as_it_was_is_not_deployed(
    store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    watch = Watch(store)
    assert loaded.code is not None
    loaded.code.path.rename(tmp_path / "away")
    assert watch.look([loaded]) == []
    (tmp_path / "away").rename(loaded.code.path)
    assert [watch.look([loaded]) for _ in range(2)] == [[], []]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"code": "other"}, True),
        ({"watch": False}, True),
        ({"code": None, "watch": False}, False),
        ({"timeout": 4}, False),
        ({"code": "other", "nice": 1}, False),
    ],
)
def test_only_another_place_of_the_code_is_taken_over_by_the_runtime(
    loaded: Loaded, changed: dict[str, Any], same: bool
) -> None:
    other = Function(**(loaded.config.model_dump(exclude_unset=True) | changed))
    assert deploy.same_but_code(loaded.config, other) is same


def test_a_function_that_has_no_code_any_more_is_not_looked_at(store: Store, loaded: Loaded) -> None:
    assert Watch(store).look([replace(loaded, code=None)]) == []
