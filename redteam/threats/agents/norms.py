"""A run of agents under other norms: `redteam norms RUN`, and the same options of `redteam score RUN`.

What is appropriate is a judgement, so a result is worth as much as it survives another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redteam.core.errors import ConfigError, nearest
from redteam.core.threat import ScoreOptions
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.nouns import LABELS, Field, RuleTable, Task

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 12


def rescored(artifact: Any, tables: dict[str, DataFrame], values: Mapping[str, Any], as_json: bool) -> None:
    """Print the metrics under the norms asked for, or how far each label moves them.

    Raises:
        ConfigError: not a run of agents, or a flip that does not read.
    """
    from redteam.threats.agents.metrics import sensitivity, with_norms
    from redteam.threats.agents.scorer import rescore

    if not isinstance(artifact, Scripts):
        raise ConfigError("--rules, --flip and --sensitivity need a run of an attack on agents")
    if "norms" not in tables:
        raise ConfigError("the run has no evidence to judge again: it was not scored, or its files are gone")
    table = _rules(tables, values.get("rules"))
    for text in values.get("flips", ()):
        table = _flipped(table, text)
    changed = with_norms(tables, table)
    metrics = rescore(artifact, changed).as_metrics()
    rows = sensitivity(changed) if values.get("sensitive") else None
    if as_json:
        content: dict[str, Any] = {"metrics": [m.model_dump(mode="json") for m in metrics]}
        if rows is not None:
            content["sensitivity"] = json.loads(rows.to_json(orient="records"))
        click.echo(json.dumps(content, indent=2))
        return
    click.echo(f"rule table {table.version}")
    for m in (m for m in metrics if m.group is None):
        interval = "" if m.low is None else f" [{m.low:.6f}, {m.high:.6f}]"
        click.echo(f"{m.name}: {m.value:.6f}{interval} n={m.n}")
    if rows is not None:
        _print_sensitivity(rows)


def _rules(tables: dict[str, DataFrame], path: Path | None) -> RuleTable:
    """The table in a file, or the one the run was judged by."""
    norms = tables["norms"]
    labels: dict[str, dict[str, Any]] = {}
    for task, name, label in zip(norms["task"], norms["field"], norms["label"], strict=True):
        labels.setdefault(task, {})[name] = label
    if path is None:
        return RuleTable("of the run", labels)
    from redteam.threats.agents.data.rules import read_rules

    fields = [Field(name=name, words=name, kind="") for name in dict.fromkeys(norms["field"])]
    tasks = [Task(id=task, name=task, description="", recipient="") for task in labels]
    return read_rules(path, fields, tasks)


def _flipped(table: RuleTable, text: str) -> RuleTable:
    place, equals, label = text.partition("=")
    task, dot, name = place.partition(".")
    if not equals or not dot:
        raise ConfigError(f"--flip: expected TASK.FIELD=LABEL, got '{text}'")
    if label not in LABELS:
        raise ConfigError(
            f"--flip: expected one of {', '.join(LABELS)}, got '{label}'. {nearest(label, LABELS)}"
        )
    return table.flipped(task, name, label)  # type: ignore[arg-type]


def _print_sensitivity(rows: DataFrame) -> None:
    """The flips that move privacy or utility most."""
    flips = [
        (abs(change), f"{row.task}.{row.field}: {row.label} to {state}: {metric} {change:+.4f}")
        for row in rows.itertuples()
        for state in LABELS
        for metric in ("privacy", "utility")
        if (change := getattr(row, f"{metric}_change_{state}")) == change and change
    ]
    click.echo(f"what single labels move, of {len(rows)}; the {min(SHOWN, len(flips))} largest changes:")
    for _, line in sorted(flips, key=lambda flip: -flip[0])[:SHOWN]:
        click.echo(f"  {line}")


SCORING = ScoreOptions(
    options=(
        click.Option(["--rules"], type=click.Path(dir_okay=False, path_type=Path), default=None,
                     help="of agents: the metrics under another rule table, a TOML file like the embedded one"),
        click.Option(["--flip", "flips"], multiple=True, metavar="TASK.FIELD=LABEL",
                     help="of agents: the metrics with one label changed (allowed, forbidden or ambiguous)"),
        click.Option(["--sensitivity", "sensitive"], is_flag=True,
                     help="of agents: how far each single label, flipped, moves privacy and utility"),
    ),
    run=rescored,
)  # fmt: skip
