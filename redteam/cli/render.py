"""Records as a table on the terminal."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from redteam.core import registry
from redteam.core.config import to_json
from redteam.core.hashing import canonical_json
from redteam.core.record import DefensePlugin, Metric, Plugin, Record
from redteam.core.stats import Estimate, across_cells
from redteam.core.threat import TableLayout, of_record

_NOTHING = "nothing"
# Settings of a defence that are shown even where they are its defaults.
_TELLING = ("minimiser",)


def layout_of(r: Record) -> TableLayout:
    """The layout of a record's threat kind; of a kind that is not known here, its first four metrics."""
    first = tuple(m.name for m in r.metrics if m.group is None)[:4]
    target = of_record(r.cell.threat, r.cell.task.target)
    return target.layout if target is not None else TableLayout(columns=first)


def number(e: Estimate | None) -> str:
    """`0.452 [0.31, 0.60]`, or a dash if it was not measured."""
    if e is None:
        return "-"
    return f"{e.value:.3f}" if e.low is None else f"{e.value:.3f}\n[{e.low:.2f}, {e.high:.2f}]"


def estimate_of(m: Metric) -> Estimate:
    """A record's metric as an estimate."""
    return Estimate(m.value, m.low, m.high, m.n, m.seeds, m.method, m.confidence or 0.95)


def pooled(records: Sequence[Record], name: str) -> Estimate | None:
    """One metric over records that differ in their seed alone."""
    found = [m for r in records if (m := r.metric(name)) is not None]
    return across_cells([estimate_of(m) for m in found]) if found else None


def print_records(records: Sequence[Record], store: Path) -> None:
    """A table for each task, goal and defence, with a row for each attack and budget, seeds pooled; then paths."""
    console = Console(width=max(126, shutil.get_terminal_size().columns))
    sections: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        sections[_fixed(r)].append(r)
    for found in sections.values():
        console.print(_table(found))
        base = layout_of(found[0]).base
        measured = {
            r.cell.seed: r for r in sorted(found, key=lambda r: r.role == "attack") if r.status == "ok"
        }
        if measured and base:
            value = number(pooled(list(measured.values()), base[1])).replace("\n", " ")
            console.print(f"{base[0]}: {value}; all intervals at confidence 0.95")
    for r in records:
        if r.error is not None:
            console.print(
                f"{r.cell.attack.name} seed {r.cell.seed}: {r.status}: {r.error.message}", markup=False
            )
    for r in records:
        place = f"{r.cell.attack.name} seed {r.cell.seed}: {store / r.id / 'record.json'}"
        console.print(place, markup=False, soft_wrap=True, highlight=False)


def _fixed(r: Record) -> str:
    """What the rows of one table share: everything but the attack, its own knobs, and the seed."""
    config = r.cell.attack.config
    goal = [config.get(k) for k in layout_of(r).goal]
    cell = r.cell.model_dump(mode="json")
    behind = [] if layout_of(r).together else [cell["defenses"], cell["defenses"] and cell["knowledge"]]
    return canonical_json([cell["task"], goal, *behind])


def _table(records: Sequence[Record]) -> Table:
    rows: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    layout = layout_of(next((r for r in records if r.status == "ok"), records[0]))
    behind = list(dict.fromkeys(_behind(r) for r in records)) if layout.together else [""]
    column = layout.together and behind != [_NOTHING]
    columns = layout.defended if column and layout.defended else layout.columns

    def place(r: Record) -> int:
        return behind.index(_behind(r)) if layout.together else 0

    for r in sorted(records, key=lambda r: (place(r), r.role != "attack")):
        rows[behind[place(r)], r.role, r.cell.attack.digest].append(r)
    table = Table(title=_title(records[0], layout), pad_edge=False)
    if column:
        table.add_column(layout.behind)
    table.add_column("attack\n(role)", min_width=20)
    for title in (layout.budget, *columns, "seeds"):
        table.add_column(title, no_wrap=True, justify="right")
    last = None
    for (defence, role, _), group in rows.items():
        attack, good = group[0].cell.attack, [r for r in group if r.status == "ok"]
        cells = [number(pooled(good, c)) for c in columns] if good else ["-"] * len(columns)
        spent = attack.config.get(layout.budget, "-")
        budget = f"{spent:.4g}" if isinstance(spent, float) else str(spent)
        if column and last not in (None, defence):
            table.add_section()
        named = f"{_named(attack, layout)}\n({role})"
        table.add_row(*([defence] if column else []), named, budget, *cells, str(len(good)))
        last = defence
    return table


def _named(attack: Plugin, layout: TableLayout) -> str:
    return " ".join([attack.name, *(str(attack.config[k]) for k in layout.shown if k in attack.config)])


def _behind(record: Record) -> str:
    """The defences, each with those of its settings that differ from its defaults, and who knew of them."""
    attack = record.cell.attack.config
    told = {"poisons": attack.get("budget"), "label": attack.get("target_class")}
    if told["poisons"] == 0:
        told = {key: None for key in told}
    found = " + ".join(_with_settings(d, told) for d in record.cell.defenses)
    return f"{found}, {record.cell.knowledge}" if found else _NOTHING


def _with_settings(defence: DefensePlugin, attack: Mapping[str, Any]) -> str:
    """The defence with its unusual settings. attack: what it was told of it, which goes without saying."""
    if defence.name not in registry.names("defense"):
        return defence.name
    usual = to_json(registry.get("defense", defence.name).presets["default"].config)
    if defence.oracle:
        # Told nothing of a thing (None), told what the attack is, or told beside a control that is nothing: as usual.
        held = {k: defence.config[k] for k in attack if k in defence.config}
        usual |= {k: v for k, v in held.items() if v is None or attack[k] in (v, None)}
    told = [str(v) for k, v in defence.config.items() if k in _TELLING]
    told += [f"{k}={v}" for k, v in defence.config.items() if usual.get(k) != v and k not in _TELLING]
    return f"{defence.name} ({', '.join(told)})" if told else defence.name


def _title(record: Record, layout: TableLayout) -> str:
    """What is attacked, what the attack is after, and the defences."""
    cell = record.cell
    config, task = cell.attack.config, cell.task
    title = f"{task.model} on {task.dataset}"
    if "template" in task.config:
        title += f", template {task.config['template']}"
    if "trigger" in layout.goal:
        classes = "/".join(str(config.get(k)) for k in ("source", "target_class"))
        title += f", trigger {config.get('trigger')}, source/target {classes}"
    if layout.together:
        return title
    behind = " + ".join(d.name for d in cell.defenses)
    return title + (f", behind {behind} ({cell.knowledge})" if behind else "")
