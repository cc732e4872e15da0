"""The rule table: which field may flow in which task. A reviewed TOML file with a version, or one of your own.

Every field stands in exactly one of the lists `allowed`, `forbidden` and `ambiguous` of every task; every
ambiguous label has a reason. How the embedded table was made stands in the file (`embedded/agent-rules.toml`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redteam.core.errors import ConfigError, nearest
from redteam.core.files import load_toml
from redteam.threats.agents.nouns import LABELS, Field, Label, RuleTable, Task

EMBEDDED_RULES = Path(__file__).with_name("agent-rules.toml")
_KEYS = ("version", "review", "tasks")


def read_rules(path: Path | None, fields: Sequence[Field], tasks: Sequence[Task]) -> RuleTable:
    """The rule table of a TOML file, checked against the fields and tasks; without a path the embedded one.

    The file has `version`, optionally `review`, and for each task a table `[tasks.ID]` with the three lists of
    field names and a table `reasons`, field name to text. Labels come in the order of `fields`.

    Raises:
        ConfigError: no such file, not TOML, a key that is none, a task that is unknown or has no rules, a field
            that is unknown, labelled twice or not at all, or an ambiguous label without a reason.
    """
    path = path or EMBEDDED_RULES
    content = load_toml(path)
    known = {t.id for t in tasks}
    _only(content, _KEYS, str(path))
    version, rows = content.get("version"), content.get("tasks")
    if not isinstance(version, str) or not version.strip():
        raise ConfigError(f'{path}: expected a version such as version = "1", got {version!r}')
    if not isinstance(rows, dict):
        raise ConfigError(f"{path}: expected a table [tasks.ID] for each task, found none")
    for task in rows:
        if task not in known:
            raise ConfigError(f"{path}: unknown task '{task}'. {nearest(task, known)}")
    labels: dict[str, Mapping[str, Label]] = {}
    reasons: dict[str, Mapping[str, str]] = {}
    for one in tasks:
        if one.id not in rows:
            raise ConfigError(
                f"{path}: the task '{one.id}' has no rules; add a table [tasks.{one.id}] with the lists "
                f"{', '.join(LABELS)}"
            )
        where = f"{path}, [tasks.{one.id}]"
        labels[one.id] = _labels(rows[one.id], [f.name for f in fields], where)
        reasons[one.id] = _reasons(rows[one.id], labels[one.id], where)
    return RuleTable(version=version, labels=labels, reasons=reasons)


def _labels(row: Any, known: Sequence[str], where: str) -> dict[str, Label]:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected a table, got {row!r}")
    _only(row, (*LABELS, "reasons"), where)
    given: dict[str, Label] = {}
    for label in LABELS:
        names = row.get(label, [])
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ConfigError(f"{where}: expected a list of field names under {label}, got {names!r}")
        for name in names:
            if name not in known:
                raise ConfigError(f"{where}: unknown field '{name}' under {label}. {nearest(name, known)}")
            if name in given:
                twice = f"{given[name]} and {label}" if given[name] != label else f"{label}, twice"
                raise ConfigError(
                    f"{where}: the field '{name}' is labelled {twice}; keep it in one list, once"
                )
            given[name] = label
    missing = [name for name in known if name not in given]
    if missing:
        raise ConfigError(
            f"{where}: no label for {', '.join(missing)}; put each into one of the lists {', '.join(LABELS)}"
        )
    return {name: given[name] for name in known}


def _reasons(row: Mapping[str, Any], labels: Mapping[str, Label], where: str) -> dict[str, str]:
    given = row.get("reasons", {})
    if not isinstance(given, dict) or not all(isinstance(v, str) and v.strip() for v in given.values()):
        raise ConfigError(f"{where}: expected reasons as a table of field name to text, got {given!r}")
    for name in given:
        if name not in labels:
            raise ConfigError(f"{where}: a reason for the unknown field '{name}'. {nearest(name, labels)}")
    bare = [name for name, label in labels.items() if label == "ambiguous" and name not in given]
    if bare:
        raise ConfigError(
            f"{where}: no reason for the ambiguous {', '.join(bare)}; say under [reasons] why people differ"
        )
    return {name: given[name] for name in labels if name in given}


def _only(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise ConfigError(f"{where}: unknown key '{key}'. {nearest(key, keys)}")
