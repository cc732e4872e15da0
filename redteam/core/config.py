"""From a frozen dataclass to click options, TOML tables and `-o key=value`, and back to JSON.

A knob is written once: `field: int = knob(1000, "labels to flip", low=1)`. Its help text, type,
range and default reach the command line from there. Unknown keys and values are refused by name.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from redteam.core.errors import ConfigError, nearest
from redteam.core.files import load_toml

T = TypeVar("T")


def knob(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its help text and its range: low <= x, x <= high, above < x."""
    return dataclasses.field(
        default=default, metadata={"help": help, "low": low, "high": high, "above": above}
    )


def check_ranges(config: Any) -> None:
    """Check every field of a config against its type and its `knob` range. For `__post_init__`.

    Raises:
        ConfigError: naming the field, what was expected and what came.
    """
    for name, f in knobs(type(config)).items():
        value = getattr(config, name)
        if value is None:
            if type(None) not in get_args(f.type):
                raise ConfigError(f"{name}: expected {describe(f.type)}, got None")
            continue
        object.__setattr__(config, name, convert(name, value, f.type))
        meta = f.metadata
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str | bool):
                continue
            if meta["low"] is not None and number < meta["low"]:
                raise ConfigError(f"{name}: expected at least {meta['low']:g}, got {number:g}")
            if meta["high"] is not None and number > meta["high"]:
                raise ConfigError(f"{name}: expected at most {meta['high']:g}, got {number:g}")
            if meta["above"] is not None and number <= meta["above"]:
                raise ConfigError(f"{name}: expected more than {meta['above']:g}, got {number:g}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A config of which every field is checked when it is made."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Knob:
    """One field of a config: its resolved type, its default and its metadata."""

    name: str
    type: Any
    default: Any
    metadata: Mapping[str, Any]


def knobs(cls: type) -> dict[str, Knob]:
    """The fields of a config class, in order, with type hints resolved."""
    hints = typing.get_type_hints(cls)
    blank = {"help": "", "low": None, "high": None, "above": None}
    return {
        f.name: Knob(f.name, hints[f.name], f.default, {**blank, **f.metadata})
        for f in dataclasses.fields(cls)
    }


def describe(kind: Any) -> str:
    """A type in words a user knows."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args if a is not type(None))
    if origin is tuple:
        return f"a comma-separated list, each {describe(args[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind, str(kind))


def _convert_scalar(value: Any, kind: Any) -> Any:
    """Convert or raise ValueError. Text is parsed; a float that is whole may be an int."""
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError
    if isinstance(value, bool):
        raise ValueError
    if kind is int:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError
        return int(value)
    if kind is float:
        number = float(value)
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
        return number
    if kind is str and isinstance(value, str | Path):
        return str(value)
    raise ValueError


def convert(name: str, value: Any, kind: Any) -> Any:
    """A value of the given annotation from a Python, TOML or command-line value.

    Raises:
        ConfigError: the value does not fit.
    """
    origin, args = get_origin(kind), get_args(kind)
    try:
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in args:
                return None
            if isinstance(value, str) and value.lower() == "none" and type(None) in args:
                return None
            for option in args:
                if option is not type(None):
                    try:
                        return convert(name, value, option)
                    except ConfigError:
                        continue
            raise ValueError
        if origin is Literal:
            if value not in args:
                hint = nearest(str(value), map(str, args))
                raise ConfigError(f"{name}: expected {describe(kind)}; got '{value}'. {hint}")
            return value
        if origin is tuple:
            items = [v for v in value.split(",") if v.strip()] if isinstance(value, str) else list(value)
            return tuple(convert(name, v.strip() if isinstance(v, str) else v, args[0]) for v in items)
        return _convert_scalar(value, kind)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected {describe(kind)}, got {value!r}") from None


def build(cls: type[T], values: Mapping[str, Any], *, base: T | None = None, where: str = "config") -> T:
    """A config of class `cls`: `base` (or the defaults) with `values` laid over it.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), or a value that does not fit.
    """
    fields = knobs(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown option '{key}'. {nearest(key, fields)}")
    converted = {k: convert(k, v, fields[k].type) for k, v in values.items()}
    if base is None:
        return cls(**converted)
    return dataclasses.replace(base, **converted)  # type: ignore[type-var]


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values, tuples as lists: what goes into the record and the cell hash."""
    return {
        name: list(value) if isinstance(value := getattr(config, name), tuple) else value
        for name in knobs(type(config))
    }


def parse_pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    """`("a=1", "b=x")` to `{"a": "1", "b": "x"}`.

    Raises:
        ConfigError: a pair without `=`, or a key given twice.
    """
    out: dict[str, str] = {}
    for pair in pairs:
        key, eq, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not eq or not key:
            raise ConfigError(f"-o: expected key=value, got '{pair}'")
        if key in out:
            raise ConfigError(f"-o: '{key}' is given twice")
        out[key] = value.strip()
    return out


def read_toml(path: Path, tables: tuple[str, ...]) -> dict[str, Any]:
    """A TOML file whose top level may hold only `tables`.

    Raises:
        ConfigError: no such file, not TOML, or a table that is not expected.
    """
    content = load_toml(path)
    for key in content:
        if key not in tables:
            raise ConfigError(f"{path}: unknown table '{key}'. {nearest(key, tables)}")
    return content
