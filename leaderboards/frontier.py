"""What a defence keeps against what it costs: for each attack, every defence setting with both metrics. Pure.

One number cannot rank a defence that may simply refuse: an agent that shares nothing keeps everything private.
So the kinds whose rules name a `frontier` get, after the tables of a task, one table for each attack.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leaderboards import words
from leaderboards.rules import Frontier, KindRules
from leaderboards.sections import Aggregate, Row, Section, attack_name
from redteam.core.hashing import canonical_json
from redteam.core.stats import Estimate

Pair = tuple[float, float]
_WIDTH = 100
_NAME_WIDTH = 36


@dataclass(frozen=True)
class Setting:
    """One defence setting under one attack. place: the last column, see `notes`; empty if not judged."""

    defense: str
    row: Row
    x: Aggregate | None
    y: Aggregate | None
    place: str = ""


@dataclass(frozen=True)
class Comparison:
    """One attack against every defence setting of a task, the undefended target first."""

    name: str
    settings: tuple[Setting, ...]


def dominates(a: Pair, b: Pair) -> bool:
    """Whether `a` is at least as high as `b` in both numbers, and higher in one."""
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def frontier(points: Sequence[Pair]) -> list[bool]:
    """Whether each point is on the Pareto frontier: no other point dominates it."""
    return [not any(dominates(other, mine) for other in points) for mine in points]


def _ends(e: Estimate) -> tuple[float, float]:
    """The interval; of a number without one, what it may be at all."""
    return (0.0, 1.0) if e.low is None or e.high is None else (e.low, e.high)


def clearly_below(mine: tuple[Estimate, Estimate], other: tuple[Estimate, Estimate]) -> bool:
    """Whether both intervals of `other` lie entirely above those of `mine`."""
    return all(_ends(theirs)[0] > _ends(own)[1] for own, theirs in zip(mine, other, strict=True))


def clearly_not_below(mine: tuple[Estimate, Estimate], other: tuple[Estimate, Estimate]) -> bool:
    """Whether one interval of `mine` lies entirely above that of `other`."""
    return any(_ends(own)[0] > _ends(theirs)[1] for own, theirs in zip(mine, other, strict=True))


def places(named: Sequence[tuple[str, Estimate, Estimate]]) -> list[str]:
    """`yes`, `yes, clearly`, `no: NAME` or `no, clearly: NAME` for each (name, x, y); see `notes`."""
    pairs = [(x, y) for _, x, y in named]
    points = [(x.value, y.value) for x, y in pairs]
    out = []
    for i, on in enumerate(frontier(points)):
        others = [j for j in range(len(named)) if j != i]
        if on:
            sure = others and all(clearly_not_below(pairs[i], pairs[j]) for j in others)
            out.append("yes, clearly" if sure else "yes")
            continue
        above = [j for j in others if dominates(points[j], points[i])]
        clear = [j for j in above if clearly_below(pairs[i], pairs[j])]
        best = max(clear or above, key=lambda j: (sum(points[j]), -j))
        out.append(f"no{', clearly' if clear else ''}: {named[best][0]}")
    return out


# ---------------------------------------------------------------- from sections


def by_task(sections: Iterable[Section]) -> list[list[Section]]:
    """The sections that differ in their defences alone, together; the undefended ones first, then by name."""
    groups: dict[str, list[Section]] = defaultdict(list)
    for section in sections:
        fixed = {k: v for k, v in section.held.items() if k != "defenses"}
        groups[canonical_json(fixed)].append(section)

    def order(s: Section) -> tuple[int, str, str, str]:
        behind = s.held.get("defenses") or []
        return len(behind), words.defense_names(behind), s.key, s.knowledge or ""

    return [sorted(group, key=order) for group in groups.values()]


def comparisons(group: Sequence[Section], rules: KindRules) -> list[Comparison]:
    """For each attack against one task, the defence settings. An attack with one setting alone gives no table.

    Undefended rows stand beside the adaptive defended ones and beside the oblivious ones.
    """
    if rules.frontier is None:
        return []
    labels = _defense_labels(group)
    found: dict[str, list[tuple[Section, Row]]] = defaultdict(list)
    for section in group:
        for row in section.rows:
            chosen = row.records[0].cell.attack.config.values()
            if not any(value in rules.frontier.without for value in chosen):
                found[_attack_key(row)].append((section, row))
    names = _attack_labels([rows[0][1] for rows in found.values()])
    out = []
    for key, rows in found.items():
        told = sorted({s.knowledge for s, _ in rows if s.knowledge})
        for knowledge in told:
            beside = [(s, r) for s, r in rows if s.knowledge in (None, knowledge)]
            settings = [
                Setting(labels[s.key], r, r.metrics.get((rules.frontier.x, None)),
                        r.metrics.get((rules.frontier.y, None)))
                for s, r in beside
            ]  # fmt: skip
            if len(settings) > 1:
                out.append(Comparison(f"{names[key]}, {knowledge}", _placed(settings, rules.frontier)))
    return sorted(out, key=lambda c: (c.settings[0].row.role != "attack", c.name))


def _kept(e: Estimate, name: str, rules: Frontier) -> Estimate:
    """The metric as a thing of which more is better for the defender."""
    if name not in rules.lower:
        return e
    low, high = (None if end is None else 1 - end for end in (e.high, e.low))
    return replace(e, value=1 - e.value, low=low, high=high)


def _placed(settings: Sequence[Setting], rules: Frontier) -> tuple[Setting, ...]:
    judged = [s for s in settings if s.x is not None and s.y is not None]
    told = places([
        (s.defense, _kept(s.x.estimate, rules.x, rules), _kept(s.y.estimate, rules.y, rules))
        for s in judged if s.x and s.y
    ])  # fmt: skip
    by_row = {id(s): place for s, place in zip(judged, told, strict=True)}
    return tuple(Setting(s.defense, s.row, s.x, s.y, by_row.get(id(s), "")) for s in settings)


def _attack_key(row: Row) -> str:
    attack = row.records[0].cell.attack
    return canonical_json([attack.name, attack.version, attack.config, row.role, row.origin])


def _attack_labels(rows: Sequence[Row]) -> dict[str, str]:
    """By `_attack_key`: name and strategy, the settings in which namesakes differ, and an origin not measured."""
    out = {}
    for row in rows:
        attack = row.records[0].cell.attack
        others = [r.records[0].cell.attack for r in rows if r.name == row.name]
        parts = [attack_name(attack), *([str(s)] if (s := attack.config.get("strategy")) is not None else [])]
        alike = [o for o in others if o.config.get("strategy") == attack.config.get("strategy")]
        parts += _differing(attack.config, [o.config for o in alike])
        if len({o.version for o in others}) > 1:
            parts.append(f"version {attack.version}")
        parts += [row.role] if row.role != "attack" else []
        parts += [f"source: {row.origin}"] if row.origin != "measured" else []
        out[_attack_key(row)] = ", ".join(parts)
    return out


def _differing(config: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{k} {words.short(v)}"
        for k, v in sorted(config.items())
        # The minimiser stands beside the defence's name.
        if any(o.get(k) != v for o in others) and k != "minimiser"
    ]


def _defense_labels(group: Sequence[Section]) -> dict[str, str]:
    """By section key: the defences, with the settings in which they differ from their namesakes."""
    every = [d for s in group for d in s.held.get("defenses") or []]
    out = {}
    for section in group:
        parts = []
        for d in section.held.get("defenses") or []:
            namesakes = [o for o in every if o["name"] == d["name"]]
            differs = _differing(d["config"], [o["config"] for o in namesakes])
            versions = {o["version"] for o in namesakes}
            differs += [f"version {d['version']}"] if len(versions) > 1 else []
            parts.append(", ".join([words.defense_name(d), *differs]))
        out[section.key] = " + ".join(parts) or "undefended"
    return out


# ---------------------------------------------------------------- as text


def notes(rules: KindRules) -> list[str]:
    """How the last column reads."""
    if rules.frontier is None:
        return []
    x, y = rules.frontier.x, rules.frontier.y
    less = f" (of {', '.join(rules.frontier.lower)} less is better)" if rules.frontier.lower else ""
    return [
        f"After the tables of a task, one table an attack sets {y} against {x} for every defence setting. A "
        f"setting is on the frontier if no other is at least as good in both and better in one{less}; else the one "
        "that is better is named. Clearly: the intervals do not overlap, either (of a setting on the frontier, with "
        "every other) in one of the two, or (of one below it) in both.",
    ]


def markdown(comparison: Comparison, rules: KindRules) -> str:
    """A heading and a table."""
    assert rules.frontier is not None
    x, y = rules.frontier.x, rules.frontier.y
    lines = [["defence", y, x, f"n {y}", f"n {x}", "seeds", "on the frontier"]]
    lines.append(["---"] * len(lines[0]))
    for s in comparison.settings:
        lines.append([
            words.escape(s.defense), words.with_spread(s.y), words.with_spread(s.x), _n(s.y), _n(s.x),
            str(len(s.row.records)), words.escape(s.place) or "-",
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"### {words.escape(f'{y} against {x}: {comparison.name}')}\n\n{table}"


def _n(found: Aggregate | None) -> str:
    return str(found.estimate.n) if found else "-"


def terminal(comparison: Comparison, rules: KindRules) -> Iterator[str]:
    """The same, at most 100 columns wide."""
    assert rules.frontier is not None
    yield from textwrap.wrap(
        f"{rules.frontier.y} against {rules.frontier.x}: {words.one_line(comparison.name)}", _WIDTH
    )
    table = [["defence", rules.frontier.y, rules.frontier.x, "on the frontier"]]
    for s in comparison.settings:
        numbers = [words.interval(a.estimate if a else None) for a in (s.y, s.x)]
        name = words.one_line(s.defense)
        short = name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."
        table.append([short, *numbers, s.place.split(":")[0] or "-"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
    yield ""
