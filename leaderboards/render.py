"""Boards as Markdown, CSV and terminal text. Pure functions of records and rules."""

from __future__ import annotations

import csv
import io
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from leaderboards import frontier, words
from leaderboards.rules import KindRules, Rules, board_of
from leaderboards.sections import Aggregate, Row, Section, budget_of, sections
from redteam.core.errors import RecordError, nearest
from redteam.core.record import Record

if TYPE_CHECKING:
    from rich.text import Text

_WIDTH = 100
_NAME_WIDTH = 24
_REPRODUCE = (
    "To run the rows again; settings not named here take the defaults of `redteam attack`, so where these "
    "records used others, take the exact command of a cell from its page (`redteam report ID`):"
)
_CSV = (
    "threat", "table", "dataset", "model", "defenses", "knowledge", "attack", "attack_version", "role",
    "origin", "status", "budget", "settings", "rank_first", "rank_last", "metric", "group", "value", "low",
    "high", "sd", "confidence", "n", "seeds", "victims", "method", "citation", "reason", "record_ids",
)  # fmt: skip


def _boards(records: Iterable[Record], rules: Rules) -> Iterator[tuple[str, KindRules, list[Section]]]:
    """(threat kind, its rules, its tables), by name.

    Raises:
        RecordError: a threat kind without rules.
    """
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kinds[board_of(record.cell.threat, record.cell.task.target, rules)].append(record)
    for kind in sorted(kinds):
        if kind not in rules:
            raise RecordError(
                f"record {kinds[kind][0].id}: no rules for the threat '{kind}'. {nearest(kind, rules)}"
            )
        yield kind, rules[kind], sections(kinds[kind], rules[kind])


def _groups(tables: Sequence[Section], rules: KindRules) -> list[list[Section]]:
    """All tables at once, or for kinds with a frontier those of each task."""
    return frontier.by_task(tables) if rules.frontier else [list(tables)]


def _estimate(row: Row, name: str) -> Aggregate | None:
    return row.metrics.get((name, None))


# ---------------------------------------------------------------- Markdown


def to_markdown(records: Iterable[Record], rules: Rules) -> str:
    """The boards of all threat kinds among `records`, one after the other.

    Raises:
        RecordError: a threat kind without rules, or cells of one row at different confidence levels.
    """
    parts = []
    for kind, kind_rules, tables in _boards(records, rules):
        parts += [f"# Leaderboard: {words.escape(kind)}", _reading(kind_rules)]
        for group in _groups(tables, kind_rules):
            parts += [part for table in group for part in _markdown_section(table, kind_rules)]
            parts += [frontier.markdown(c, kind_rules) for c in frontier.comparisons(group, kind_rules)]
    return "\n\n".join(parts) + "\n"


def _reading(rules: KindRules) -> str:
    metric = words.escape(rules.ranking.metric)
    lines = [
        "Built from records by `redteam leaderboard build`; do not edit.",
        *rules.notes,
        "A value is the mean over seeds, with its interval in brackets and the standard deviation over seeds; "
        "the CSV beside this file gives each "
        "interval's confidence and method, and the ids of the records.",
        f"Attacks of one budget in one table are ranked by {metric}, {rules.ranking.order}. Rows whose "
        f"{metric} intervals overlap share a range of ranks. Controls, published and reported numbers are "
        "never ranked.",
        *frontier.notes(rules),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _markdown_section(section: Section, rules: KindRules) -> list[str]:
    facts = [
        ("Held fixed", "; ".join(words.held_fixed(section))),
        ("Test examples", words.test_images(section, rules.metrics)),
        *words.provenance(section),
    ]
    lines = [f"- {name}: {words.escape(text)}" for name, text in facts]
    if not section.ranked:
        lines.append("- Not ranked: the table of adaptive attacks on the same target is.")
    parts = [f"## {words.escape(words.title(section))}", "\n".join(lines)]
    if section.rows:
        parts.append(_markdown_table(section, rules))
    if commands := [c for row in section.rows if (c := words.command(row, section, rules))]:
        listing = "\n".join(dict.fromkeys(commands))
        parts.append(f"{_REPRODUCE}\n\n```sh\n{listing}\n```")
    if section.failed:
        listed = "\n".join(f"- {words.escape(_failure(r, rules))}" for r in section.failed)
        parts.append(f"Not scored, and so not ranked:\n\n{listed}")
    return parts


def _markdown_table(section: Section, rules: KindRules) -> str:
    told = {p.metric for row in section.rows for p in row.published}
    # Metrics that nothing in this table has, such as a filter's where nothing filters, get no column.
    measured = tuple(m for m in rules.metrics if m in told or any(_estimate(row, m) for row in section.rows))
    columns = (*measured, *sorted(told - set(rules.metrics)))
    with_settings = any(row.settings for row in section.rows)
    head = ["rank", "attack", *(["settings"] if with_settings else []), "role", "budget"]
    for metric in columns:
        head += [
            *([metric] if metric in measured else []),
            *([f"published {metric}"] if metric in told else []),
        ]
    head += ["n", "seeds", "victims", "flags"]
    lines = [head, ["---"] * len(head)]
    for row in section.rows:
        settings = [words.escape(words.settings(row))] if with_settings else []
        budget = words.escape(words.plain_value(row.budget))
        cells = [words.rank(row.rank), words.escape(row.name), *settings, row.role, budget]
        for metric in columns:
            found = _estimate(row, metric)
            cells += [words.with_spread(found)] if metric in measured else []
            cells += (
                [words.published(p for p in row.published if p.metric == metric)] if metric in told else []
            )
        lines.append([*cells, *_counts(row, rules)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _counts(row: Row, rules: KindRules) -> list[str]:
    """n and victims of the ranking metric, the number of cells, and the flags."""
    score = _estimate(row, rules.ranking.metric)
    n, victims = (str(score.estimate.n), str(score.victims)) if score else ("-", "-")
    flags = [*([f"source: {row.origin}"] if row.origin != "measured" else []), *row.flags]
    return [n, str(len(row.records)), victims, words.escape(", ".join(flags))]


def _failure(record: Record, rules: KindRules) -> str:
    """One line about a record that has no score."""
    assert record.error is not None  # the schema holds: an error if and only if the status is not ok
    budget, why = budget_of(record, rules), f"{record.error.type}: {words.one_line(record.error.message)}"
    origin = f" (source: {record.source})" if record.source != "measured" else ""
    cell = record.cell
    name = f"{cell.attack.name}, {record.role}, budget {words.plain_value(budget)}, seed {cell.seed}"
    return f"{name}{origin}: {record.status}: {why} (record {record.id})"


# ---------------------------------------------------------------- CSV


def to_csv(records: Iterable[Record], rules: Rules) -> str:
    """Tidy CSV: a line for each (table, row, metric), one for each published number, one for each failure.

    Numbers have six decimals. origin: measured, external, reported or published. seeds: cells that
    have the metric.

    Raises:
        RecordError: see `to_markdown`.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, restval="", lineterminator="\n")
    writer.writeheader()
    for kind, kind_rules, tables in _boards(records, rules):
        for section in tables:
            behind = "+".join(d["name"] for d in section.held.get("defenses") or ())
            shared = {
                "threat": kind, "table": section.key[:16], "defenses": behind,
                "knowledge": section.knowledge or "",
            }  # fmt: skip
            for row in section.rows:
                writer.writerows({**shared, **line} for line in _csv_row(row, kind_rules))
            for record in section.failed:
                writer.writerow({**shared, **_csv_record(record), "reason": _failure(record, kind_rules),
                                 "seeds": 0, "record_ids": record.id})  # fmt: skip
    return out.getvalue()


def _csv_record(record: Record) -> dict[str, object]:
    cell = record.cell
    return {
        "dataset": cell.task.dataset, "model": cell.task.model, "attack": cell.attack.name,
        "attack_version": cell.attack.version, "role": record.role, "origin": record.source,
        "status": record.status,
    }  # fmt: skip


def _csv_row(row: Row, rules: KindRules) -> Iterator[dict[str, object]]:
    ids = " ".join(r.id for r in row.records)
    base = {
        **_csv_record(row.records[0]), "budget": words.plain_value(row.budget),
        "settings": words.settings(row),
        "record_ids": ids,
    }  # fmt: skip
    for (name, group), found in row.metrics.items():
        e = found.estimate
        places = row.rank if name == rules.ranking.metric and group is None and row.rank else ("", "")
        yield {
            **base, "metric": name, "group": group or "", "value": _decimal(e.value), "low": _decimal(e.low),
            "high": _decimal(e.high), "sd": _decimal(found.spread),
            "confidence": "" if e.low is None else e.confidence, "n": e.n,
            "seeds": found.cells, "victims": found.victims,
            "method": e.method, "rank_first": places[0], "rank_last": places[1],
        }  # fmt: skip
    for p in row.published:
        yield {
            **base, "origin": "published", "metric": p.metric, "value": _decimal(p.value),
            "citation": f"{p.source}, {p.where}",
        }  # fmt: skip


def _decimal(value: float | None) -> str:
    return "" if value is None else words.fraction(value, 6)


# ---------------------------------------------------------------- terminal


def show(records: Iterable[Record], rules: Rules) -> Text:
    """Compact tables at most 100 columns wide: the ranking metric with its interval, a few others without.

    Returns a `rich.text.Text`, in which brackets are no markup; `str` of it is the plain text.

    Raises:
        RecordError: see `to_markdown`.
    """
    from rich.text import Text

    lines: list[str] = []
    for _, kind, tables in _boards(records, rules):
        for group in _groups(tables, kind):
            lines += [line for section in group for line in _terminal(section, kind)]
            lines += [line for c in frontier.comparisons(group, kind) for line in frontier.terminal(c, kind)]
    return Text("\n".join(lines) or "no records")


def _terminal(section: Section, rules: KindRules) -> Iterator[str]:
    yield from textwrap.wrap(words.one_line(words.title(section)), _WIDTH)
    ranking = rules.ranking.metric
    table = [["rank", "attack", "role", "budget", ranking, *rules.compact, "seeds"]]
    below = [""]
    for row in section.rows:
        numbers = [a.estimate if (a := _estimate(row, m)) else None for m in rules.compact]
        score = _estimate(row, ranking)
        table.append([
            words.rank(row.rank), _clip(row.name), row.role, words.plain_value(row.budget),
            words.interval(score.estimate if score else None),
            *("-" if e is None else words.fraction(e.value, 3) for e in numbers), str(len(row.records)),
        ])  # fmt: skip
        notes = [words.settings(row), f"source: {row.origin}" if row.origin != "measured" else "", *row.flags]
        below.append(", ".join(filter(None, notes)))
    if section.rows:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells, note in zip(table, below, strict=True):
            yield "  ".join(_pad(cells, widths)).rstrip()
            yield from textwrap.wrap(note, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    for record in section.failed:
        text = f"not scored: {_failure(record, rules)}"
        yield from textwrap.wrap(text, _WIDTH, subsequent_indent="    ")
    yield ""


def _clip(name: str) -> str:
    line = words.one_line(name)
    return line if len(line) <= _NAME_WIDTH else line[: _NAME_WIDTH - 3] + "..."


def _pad(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    return [
        c.ljust(w) if i in (1, 2, 4) else c.rjust(w)
        for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
