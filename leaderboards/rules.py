"""The rules of the boards: which metrics, which one ranks, and what is held fixed in one table.

Each threat brings its own, a `board.toml` with one table for each `cell.threat`, or for one and its target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from redteam.core.errors import ConfigError, nearest
from redteam.core.files import load_toml
from redteam.core.threat import threats


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


class Command(BaseModel):
    """How the command that runs a row again is written. model: the option of the model. settings: those of the target
    that make another experiment, given as `-o target.KEY`. options: knobs of the attack that are options of their own.
    configured: whether defences are given with their settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "--model"
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    configured: bool = False


class KindRules(BaseModel):
    """The rules of one board.

    metrics: its columns, in order. compact: those that `leaderboard show` prints. ranking: the metric that ranks come
    from, and its order. min_cells: seeds a row needs to be ranked. budget: where the budget lies in a cell. table: what
    is held fixed in one table; whatever else differs between two cells, apart from budget and seed, makes another row.
    notes: lines printed above the tables. frontier: after the tables of a task, a table for each attack sets y against
    x for every defence setting. command: how rows are run again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = Field(min_length=1)
    compact: tuple[str, ...]
    ranking: Ranking
    min_cells: int = Field(ge=1)
    budget: str
    table: tuple[str, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()
    frontier: Frontier | None = None
    command: Command = Command()

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


def load_rules(*paths: Path) -> Rules:
    """Read and check the rules in `paths`; without any, those of every installed threat.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value that does not fit, or two files with one board.
    """
    out: dict[str, KindRules] = {}
    for path in paths or [threat.board for threat in threats().values()]:
        for kind, table in load_toml(path).items():
            if kind in out:
                raise ConfigError(f"{path}: the board '{kind}' has its rules already; name it otherwise")
            out[kind] = _kind(kind, table, path)
    return out


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
