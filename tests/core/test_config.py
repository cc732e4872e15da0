"""Configs: types, ranges, unknown keys, and the way through TOML and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.config import build, check_ranges, knob, parse_pairs, read_toml, to_json
from redteam.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    steps: int = knob(3, "steps", low=1, high=10)
    rate: float = knob(0.5, "rate", above=0)
    kind: Literal["a", "bb"] = knob("a", "kind")
    flag: bool = knob(True, "flag")
    name: str | None = knob(None, "name")
    sizes: tuple[int, ...] = knob((1, 2), "sizes", low=0)
    budget: int | float = knob(0.1, "budget")

    def __post_init__(self) -> None:
        check_ranges(self)


def test_text_and_toml_values_become_typed():
    toy = build(
        Toy,
        {"steps": "7", "rate": 2, "flag": "no", "sizes": "3,4", "budget": "5", "name": "none", "kind": "bb"},
    )
    assert toy == Toy(steps=7, rate=2.0, flag=False, sizes=(3, 4), budget=5, name=None, kind="bb")
    assert isinstance(toy.rate, float) and isinstance(toy.budget, int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "unknown option 'stepz'. Did you mean 'steps'"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"steps": 11}, "steps: expected at most 10, got 11"),
        ({"steps": 2.5}, "steps: expected a whole number, got 2.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"rate": 0}, "rate: expected more than 0, got 0"),
        ({"rate": "nan"}, "rate: expected a number, got 'nan'"),
        ({"kind": "b"}, "kind: expected one of a, bb; got 'b'. Did you mean 'bb'"),
        ({"flag": "maybe"}, "flag: expected true or false, got 'maybe'"),
        ({"sizes": "1,x"}, "sizes: expected a whole number, got 'x'"),
        ({"steps": None}, "steps: expected a whole number, got None"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build(Toy, values)


def test_constructor_checks_types_too():
    with pytest.raises(ConfigError, match="steps"):
        Toy(steps="many")  # type: ignore[arg-type]


@given(st.builds(Toy, steps=st.integers(1, 10), rate=st.floats(1e-6, 1e6), kind=st.sampled_from(["a", "bb"]),
                 sizes=st.lists(st.integers(0, 99)).map(tuple), name=st.none() | st.text(min_size=1)))  # fmt: skip
def test_json_round_trip(toy):
    again = build(Toy, to_json(toy))
    assert again == toy or (toy.name or "").lower() == "none"


def test_pairs():
    assert parse_pairs(("a-b=1", "c = x=y")) == {"a_b": "1", "c": "x=y"}
    with pytest.raises(ConfigError, match="key=value"):
        parse_pairs(("a",))
    with pytest.raises(ConfigError, match="twice"):
        parse_pairs(("a=1", "a=2"))


def test_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[attack]\nbudget = 3\n")
    assert read_toml(path, ("attack", "victim")) == {"attack": {"budget": 3}}
    path.write_text("[atack]\n")
    with pytest.raises(ConfigError, match="unknown table 'atack'. Did you mean 'attack'"):
        read_toml(path, ("attack", "victim"))
    path.write_text("budget = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_toml(path, ("attack",))
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path / "none.toml", ())
