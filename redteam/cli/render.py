"""Records as a table on the terminal."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from redteam.record import Metric, Record
from redteam.stats import Estimate, across_cells

COLUMNS = ("cta", "pta", "trigger_lift", "asr", "ra", "cta_drop")


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
    """One row for each attack and budget, seeds pooled; then the paths of the records."""
    width = max(110, shutil.get_terminal_size().columns)
    console, rows = Console(width=width), defaultdict(list)
    for r in records:
        rows[(r.role, r.cell.attack.name, r.cell.attack.config.get("budget"), r.cell.attack.digest)].append(r)
    first = records[0].cell
    classes = "/".join(str(first.attack.config.get(k)) for k in ("source", "target_class"))
    title = f"{first.task.model} on {first.task.dataset}, trigger {first.attack.config.get('trigger')}"
    title += f", source/target {classes}"
    behind = " + ".join(d.name for d in first.defenses)
    table = Table(title=title + (f", behind {behind} ({first.knowledge})" if behind else ""), pad_edge=False)
    table.add_column("attack\n(role)")
    for column in ("budget", *COLUMNS, "seeds"):
        table.add_column(column, no_wrap=True, justify="right")
    for (role, name, budget, _), group in sorted(rows.items(), key=lambda item: item[0][0] != "attack"):
        good = [r for r in group if r.status == "ok"]
        cells = [number(pooled(good, c)) for c in COLUMNS] if good else ["-"] * len(COLUMNS)
        table.add_row(f"{name}\n({role})", str(budget), *cells, str(len(good)))
    console.print(table)
    base = pooled([r for r in records if r.status == "ok"][:1], "base_pta")
    if base is not None:
        console.print(
            f"clean model's base rate of pta: {number(base).replace(chr(10), ' ')}; all intervals at confidence 0.95"
        )
    for r in records:
        if r.error is not None:
            console.print(
                f"{r.cell.attack.name} seed {r.cell.seed}: {r.status}: {r.error.message}", markup=False
            )
    for r in records:
        place = f"{r.cell.attack.name} seed {r.cell.seed}: {store / r.id / 'record.json'}"
        console.print(place, markup=False, soft_wrap=True, highlight=False)
