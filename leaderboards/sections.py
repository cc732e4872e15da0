"""From records to tables: which cells share a table, which share a row, and how rows rank. Pure."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leaderboards.rules import KindRules
from redteam.core.errors import RecordError
from redteam.core.hashing import canonical_json, digest_json
from redteam.core.record import Metric, Plugin, PublishedNumber, Record
from redteam.core.stats import CONFIDENCE, Estimate, across_cells

MetricKey = tuple[str, str | None]
# Fields of a row that are no setting: they repeat others, or have a column of their own.
_TOLD = ("attack.digest", "role", "source")
# Settings that are named even where no other row differs: the attack's name alone would not say what was done.
_ALWAYS = ("attack.config.strategy",)
_NONE = object()


def attack_name(attack: Plugin) -> str:
    """The attack; one that comes in a standard version and runs in another is named so: `autoattack (custom)`."""
    version = attack.config.get("version", "standard")
    return attack.name if version == "standard" else f"{attack.name} ({version})"


@dataclass(frozen=True)
class Aggregate:
    """One metric over the cells of a row. victims: models trained, summed over the cells.

    spread: sample standard deviation of the cells' values, None for a single cell.
    """

    estimate: Estimate
    cells: int
    victims: int
    spread: float | None = None


@dataclass(frozen=True)
class Row:
    """Cells that differ in their seed alone. rank: (first, last), or None where the row is not ranked.

    settings: cell fields that tell this row from others of the same attack in the section, often none.
    """

    key: str
    records: tuple[Record, ...]
    budget: Any
    metrics: dict[MetricKey, Aggregate]
    published: tuple[PublishedNumber, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    rank: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The attack."""
        return attack_name(self.records[0].cell.attack)

    @property
    def role(self) -> str:
        """attack, control, baseline or audit."""
        return self.records[0].role

    @property
    def origin(self) -> str:
        """measured, reported or external."""
        return self.records[0].source

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of any of the cells."""
        return tuple(sorted({flag for r in self.records for flag in r.flags}))


@dataclass(frozen=True)
class Section:
    """One table: everything in `held` is the same for all its rows.

    held: dotted cell field to its value. knowledge: set where there are defences. ranked: False for
    an oblivious table that has an adaptive sister.
    """

    key: str
    held: dict[str, Any]
    knowledge: str | None
    rows: tuple[Row, ...]
    failed: tuple[Record, ...]
    ranked: bool

    @property
    def records(self) -> tuple[Record, ...]:
        """Every record of the table, those without metrics too."""
        return (*(r for row in self.rows for r in row.records), *self.failed)


def rank_ranges(intervals: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """The places each row can claim, given (low, high) of a score where more is better.

    First place: one more than the rows that lie wholly above. Last place: the rows, itself counted,
    that do not lie wholly below.
    """
    return [
        (1 + sum(other[0] > high for other in intervals), sum(other[1] >= low for other in intervals))
        for low, high in intervals
    ]


def aggregate(metrics: Sequence[Metric]) -> Aggregate:
    """The same metric of several cells, in the order of their seeds, as one estimate.

    Raises:
        RecordError: the cells' intervals are at different confidence levels.
    """
    levels = {m.confidence for m in metrics if m.confidence is not None}
    if len(levels) > 1:
        raise RecordError(
            f"{metrics[0].name}: expected one confidence level for all cells of a row, got "
            f"{', '.join(map(str, sorted(levels)))}"
        )
    level = levels.pop() if levels else CONFIDENCE
    estimates = [Estimate(m.value, m.low, m.high, m.n, m.seeds, m.method, level) for m in metrics]
    spread = statistics.stdev(m.value for m in metrics) if len(metrics) > 1 else None
    return Aggregate(across_cells(estimates, level), len(metrics), sum(m.seeds for m in metrics), spread)


def sections(records: Iterable[Record], rules: KindRules) -> list[Section]:
    """The tables of one threat kind, in a fixed order that does not depend on that of the records."""
    held: dict[str, dict[str, Any]] = {}
    members: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r.id):
        fixed = _split(record, rules)[0]
        key, knowledge = digest_json(fixed), record.cell.knowledge if record.cell.defenses else ""
        held[key] = fixed
        members[key, knowledge].append(record)
    adaptive = {
        key
        for (key, knowledge), found in members.items()
        if knowledge == "adaptive" and any(map(_competes, found))
    }
    built = [
        _section(
            key, held[key], knowledge, found, rules, ranked=knowledge != "oblivious" or key not in adaptive
        )
        for (key, knowledge), found in members.items()
    ]
    return sorted(built, key=lambda s: (*_title_key(s), s.key, s.knowledge or ""))


def _title_key(section: Section) -> tuple[str, str, int]:
    """Tables by data set and model, the undefended ones first."""
    held = section.held
    return str(held.get("task.dataset")), str(held.get("task.model")), len(held.get("defenses") or ())


def _competes(record: Record) -> bool:
    """Whether a record may be ranked. Numbers that someone only reported never are."""
    return record.status == "ok" and record.role == "attack" and record.source != "reported"


def _split(record: Record, rules: KindRules) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """(held fixed, budget, rest) of a record's cell; the seed is in none of them."""
    cell = record.cell.model_dump(mode="json")
    del cell["seed"], cell["threat"]
    held = {path: _take(cell, path) for path in rules.table}
    budget = _take(cell, rules.budget)
    return held, budget, {**cell, "role": record.role, "source": record.source}


def budget_of(record: Record, rules: KindRules) -> Any:
    """The budget of a record's cell; None if its attack has none."""
    return _split(record, rules)[1]


def _take(cell: dict[str, Any], dotted: str) -> Any:
    """Remove and return a field of nested dicts; None where there is none."""
    *folders, last = dotted.split(".")
    place: Any = cell
    for name in folders:
        place = place.get(name)
        if not isinstance(place, dict):
            return None
    return place.pop(last, None)


def _section(
    key: str,
    held: dict[str, Any],
    knowledge: str,
    records: Sequence[Record],
    rules: KindRules,
    *,
    ranked: bool,
) -> Section:
    groups: dict[str, list[Record]] = defaultdict(list)
    budgets: dict[str, Any] = {}
    for record in records:
        if record.status == "ok":
            _, budget, rest = _split(record, rules)
            row_key = canonical_json([budget, rest])
            groups[row_key].append(record)
            budgets[row_key] = budget
    rows = [_row(k, budgets[k], found) for k, found in groups.items()]
    rows = _settings(rows)
    if ranked:
        rows = _ranked(rows, rules)
    failed = sorted(
        (r for r in records if r.status != "ok"), key=lambda r: (r.cell.attack.name, r.cell.seed, r.id)
    )
    return Section(
        key, held, knowledge or None, tuple(sorted(rows, key=_row_order(rules))), tuple(failed), ranked
    )


def _row(key: str, budget: Any, records: list[Record]) -> Row:
    ordered = tuple(sorted(records, key=lambda r: r.cell.seed))
    found: dict[MetricKey, list[Metric]] = defaultdict(list)
    for record in ordered:
        for metric in record.metrics:
            found[metric.name, metric.group].append(metric)
    published = {canonical_json(p.model_dump()): p for r in ordered for p in r.published}
    return Row(
        key=key, records=ordered, budget=budget,
        metrics={k: aggregate(found[k]) for k in sorted(found, key=lambda k: (k[0], k[1] or ""))},
        published=tuple(published[k] for k in sorted(published)),
    )  # fmt: skip


def _settings(rows: list[Row]) -> list[Row]:
    """Give each row the settings in which it differs from other rows of the same attack, and its strategy.

    The attack's digest repeats its name, version and config, and so its budget: it names no setting.
    """
    out = []
    flat = {row.key: _flatten(json.loads(row.key)[1]) for row in rows}
    for row in rows:
        mine = flat[row.key]
        others = [flat[o.key] for o in rows if o.name == row.name]
        differs = {
            k: v for k, v in sorted(mine.items()) if k in _ALWAYS or any(o.get(k, _NONE) != v for o in others)
        }
        out.append(replace(row, settings={k: v for k, v in differs.items() if k not in _TOLD}))
    return out


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            out |= _flatten(inner, f"{prefix}{key}.")
        else:
            out[prefix + key] = inner
    return out


def _score(row: Row, rules: KindRules) -> Aggregate | None:
    return row.metrics.get((rules.ranking.metric, None))


def _ranked(rows: list[Row], rules: KindRules) -> list[Row]:
    """Rank the attacks of each budget among themselves; whatever lacks an interval stays unranked."""
    sign = 1.0 if rules.ranking.order == "descending" else -1.0
    by_budget: dict[str, list[tuple[Row, tuple[float, float]]]] = defaultdict(list)
    for row in rows:
        found = _score(row, rules)
        if not _competes(row.records[0]) or found is None or found.cells < rules.min_cells:
            continue
        low, high = found.estimate.low, found.estimate.high
        if low is not None and high is not None:
            ends = sorted((sign * low, sign * high))
            by_budget[canonical_json(row.budget)].append((row, (ends[0], ends[1])))
    ranks: dict[str, tuple[int, int]] = {}
    for entries in by_budget.values():
        places = rank_ranges([ends for _, ends in entries])
        ranks |= {row.key: place for (row, _), place in zip(entries, places, strict=True)}
    return [replace(row, rank=ranks.get(row.key)) for row in rows]


def _row_order(rules: KindRules) -> Any:
    """Rows by budget; within one, ranked attacks, other attacks, then the rest, the best first."""
    sign = -1.0 if rules.ranking.order == "descending" else 1.0

    def order(row: Row) -> tuple[Any, ...]:
        found = _score(row, rules)
        number = row.budget if isinstance(row.budget, int | float) else -1
        return (
            number, row.role != "attack", row.rank is None, row.rank or (0, 0),
            sign * found.estimate.value if found else 0.0, row.name, row.key,
        )  # fmt: skip

    return order
