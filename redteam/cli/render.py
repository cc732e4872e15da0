"""Records as a table on the terminal."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from redteam.hashing import canonical_json
from redteam.record import Metric, Record
from redteam.stats import Estimate, across_cells

# asr and ra are in the record and on the boards; four numbers with intervals fit a line.
COLUMNS = ("cta", "pta", "trigger_lift", "cta_drop")


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
    console = Console(width=max(110, shutil.get_terminal_size().columns))
    sections: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        sections[_fixed(r)].append(r)
    for found in sections.values():
        console.print(_table(found))
        bases = [r for r in found if r.status == "ok"]
        if bases:
            seeds = {r.cell.seed: r for r in bases}
            base = number(pooled(list(seeds.values()), "base_pta")).replace("\n", " ")
            console.print(f"clean model's base rate of pta: {base}; all intervals at confidence 0.95")
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
    goal = [
        config.get(k) for k in ("trigger", "trigger_strength", "trigger_cycles", "source", "target_class")
    ]
    cell = r.cell.model_dump(mode="json")
    return canonical_json([cell["task"], goal, cell["defenses"], cell["defenses"] and cell["knowledge"]])


def _table(records: Sequence[Record]) -> Table:
    rows: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for r in sorted(records, key=lambda r: r.role != "attack"):
        rows[r.role, r.cell.attack.digest].append(r)
    first = records[0].cell
    classes = "/".join(str(first.attack.config.get(k)) for k in ("source", "target_class"))
    title = f"{first.task.model} on {first.task.dataset}, trigger {first.attack.config.get('trigger')}"
    behind = " + ".join(d.name for d in first.defenses)
    title += f", source/target {classes}" + (f", behind {behind} ({first.knowledge})" if behind else "")
    table = Table(title=title, pad_edge=False)
    table.add_column("attack\n(role)", min_width=20)
    for column in ("budget", *COLUMNS, "seeds"):
        table.add_column(column, no_wrap=True, justify="right")
    for (role, _), group in rows.items():
        attack, good = group[0].cell.attack, [r for r in group if r.status == "ok"]
        cells = [number(pooled(good, c)) for c in COLUMNS] if good else ["-"] * len(COLUMNS)
        table.add_row(f"{attack.name}\n({role})", str(attack.config.get("budget")), *cells, str(len(good)))
    return table
