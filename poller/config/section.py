"""What every part of the file shares: the base model, number types, and mistakes as values."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A table of the file: frozen, and closed to keys it does not know."""

    # defer_build keeps importing this package cheap: a validator is built when its section is first read.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)


class Mistake(NamedTuple):
    """One thing to correct. `wants` never quotes a value of the file, which may come from the environment."""

    at: tuple[str | int, ...]
    wants: str
    detail: str = ""
    """More about the mistake, in words that may quote the value; left out when the environment is in it."""


class Mistakes(ValueError):
    """All that is wrong between the keys of one section."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(f"{'.'.join(map(str, at))} {wants}" for at, wants, _ in mistakes))


def _number(value: Any) -> Any:
    # Pydantic would read true as 1. A string of digits stays welcome: that is what ${NAME} gives.
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  pydantic collects ValueError only
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_number)]
