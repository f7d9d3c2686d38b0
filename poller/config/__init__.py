"""The TOML file: models with the manual inside, and the loader that names every mistake at once."""

from poller.config.advice import volatile_spools, warnings
from poller.config.arn import Arn, SourceKind
from poller.config.loader import load, parse
from poller.config.mapping import Filter, FilterCriteria, Mapping, ScalingConfig
from poller.config.model import Aws, Config, Daemon, Function

__all__ = [
    "Arn",
    "Aws",
    "Config",
    "Daemon",
    "Filter",
    "FilterCriteria",
    "Function",
    "Mapping",
    "ScalingConfig",
    "SourceKind",
    "load",
    "parse",
    "volatile_spools",
    "warnings",
]
