"""The rules of the boards: which metrics, which one ranks, and what is held fixed in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from redteam.core.errors import ConfigError, nearest
from redteam.core.files import load_toml

PATH = Path(__file__).with_name("rules.toml")


class Ranking(BaseModel):
    """The metric that ranks come from. order: descending where more is better for the attacker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    order: Literal["descending", "ascending"]


class Frontier(BaseModel):
    """What a defence costs (x) against what it keeps (y); of both more is better for the defender, but of those
    in `lower`, fractions, less.

    without: settings of attacks for which these metrics say nothing, such as a strategy that asks for no value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    x: str
    y: str
    without: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()


class KindRules(BaseModel):
    """The rules of one threat kind; `rules.toml` says what each field is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = Field(min_length=1)
    compact: tuple[str, ...]
    ranking: Ranking
    min_cells: int = Field(ge=1)
    budget: str
    table: tuple[str, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()
    frontier: Frontier | None = None

    @model_validator(mode="after")
    def _consistent(self) -> KindRules:
        pair = (self.frontier.x, self.frontier.y) if self.frontier else ()
        for name in (self.ranking.metric, *self.compact, *pair):
            if name not in self.metrics:
                raise ValueError(f"'{name}' is not among the metrics. {nearest(name, self.metrics)}")
        for path in (*self.table, self.budget):
            if path != "defenses" and path.split(".")[0] not in ("task", "attack"):
                raise ValueError(f"'{path}' is no part of a cell; expected task..., attack... or defenses")
        if self.frontier and len(set(pair)) != 2:
            raise ValueError(f"frontier: expected two metrics, got '{self.frontier.x}' twice")
        if self.frontier and not set(self.frontier.lower) <= set(pair):
            raise ValueError(
                f"frontier: lower: expected some of {', '.join(pair)}, got {', '.join(self.frontier.lower)}"
            )
        if self.frontier and "defenses" not in self.table:
            raise ValueError("a frontier compares defences: expected 'defenses' in table")
        if self.budget in self.table:
            raise ValueError(f"the budget '{self.budget}' cannot also be held fixed")
        for names in (self.metrics, self.table):
            if len(set(names)) != len(names):
                raise ValueError(f"expected each name once, got {', '.join(names)}")
        return self


Rules: TypeAlias = Mapping[str, KindRules]


def board_of(threat: str, target: str, rules: Rules) -> str:
    """The board that a record belongs to: its threat kind's, or that of its threat and target where there is one."""
    own = f"{threat}-{target}"
    return own if own in rules else threat


def load_rules(path: Path = PATH) -> Rules:
    """Read and check the rules of every threat kind.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, or a value that does not fit.
    """
    content = load_toml(path)
    return {kind: _kind(kind, table, path) for kind, table in content.items()}


def _kind(kind: str, table: object, path: Path) -> KindRules:
    try:
        return KindRules.model_validate(table)
    except ValidationError as error:
        # A misspelt key is also a missing one; name what was written.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        place = ".".join(map(str, (kind, *first["loc"])))
        hint = ""
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            hint = f" {nearest(str(first['loc'][0]), KindRules.model_fields)}"
        raise ConfigError(f"{path}: {place}: {first['msg']}.{hint}") from None
