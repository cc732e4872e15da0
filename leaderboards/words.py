"""How numbers, cells and provenance read, in Markdown and in the terminal. Pure text."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from leaderboards.rules import KindRules
from leaderboards.sections import Aggregate, Row, Section
from redteam.core.hashing import canonical_json, digest_json
from redteam.core.record import PublishedNumber
from redteam.core.stats import Estimate

_SPECIAL = re.compile(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))")
_SPACE = re.compile(r"\s+")


def fraction(value: float, places: int) -> str:
    """A fixed number of decimals, and no minus sign before zero."""
    return f"{round(value, places) + 0.0:.{places}f}"


def interval(e: Estimate | None) -> str:
    """`0.452 [0.31, 0.60]`; without an interval the value alone; without a value a dash."""
    if e is None:
        return "-"
    if e.low is None or e.high is None:
        return fraction(e.value, 3)
    return f"{fraction(e.value, 3)} [{fraction(e.low, 2)}, {fraction(e.high, 2)}]"


def with_spread(found: Aggregate | None) -> str:
    """An interval, and the standard deviation over cells where there are several: `0.4 [0.3, 0.5], sd 0.05`."""
    if found is None or found.spread is None:
        return interval(found.estimate if found else None)
    return f"{interval(found.estimate)}, sd {fraction(found.spread, 2)}"


def rank(place: tuple[int, int] | None) -> str:
    """`1`, `1-2` for places that intervals do not tell apart, or a dash."""
    if place is None:
        return "-"
    return str(place[0]) if place[0] == place[1] else f"{place[0]}-{place[1]}"


def one_line(text: object) -> str:
    """Text with every run of white space as one space."""
    return _SPACE.sub(" ", str(text)).strip()


def escape(text: object) -> str:
    """Text from a record as it is: no Markdown, no HTML, no table bar takes effect."""
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def published(found: Iterable[PublishedNumber]) -> str:
    """Published values with their sources; `not available` where nobody could check one."""
    words = [
        f"{value} ({escape(p.source)}, {escape(p.where)})"
        for p in found
        for value in ("not available" if p.value is None else fraction(p.value, 3),)
    ]
    return "; ".join(words) or "-"


def plain_value(value: Any) -> str:
    """A config value as JSON, but a bare word for text."""
    return value if isinstance(value, str) else canonical_json(value)


def settings(row: Row) -> str:
    """`passes=5, version=2`, or nothing."""
    return ", ".join(
        f"{k.removeprefix('attack.').removeprefix('config.')}={plain_value(v)}"
        for k, v in row.settings.items()
    )


def short(value: Any) -> str:
    """A config value in at most 30 characters; what is longer is cut and told apart by a digest."""
    text = one_line(",".join(map(plain_value, value)) if isinstance(value, list) else plain_value(value))
    return text if len(text) <= 30 else f"{text[:18]}... ({digest_json(value)[:6]})"


def defense_name(defense: dict[str, Any]) -> str:
    """`shadow`; of an air gap, which is another one with another minimiser, `airgap (minimiser rules)`."""
    minimiser = defense["config"].get("minimiser")
    return defense["name"] if minimiser is None else f"{defense['name']} (minimiser {short(minimiser)})"


def defense_names(found: Iterable[dict[str, Any]]) -> str:
    """`shadow + spectral`."""
    return " + ".join(map(defense_name, found))


def defenses(section: Section) -> str:
    """`shadow + spectral, adaptive`, or nothing."""
    found = section.held.get("defenses") or []
    return f"{defense_names(found)}, {section.knowledge}" if found else ""


def title(section: Section) -> str:
    """Data set, model, what the attack is after, and the defences."""
    task = [plain_value(section.held[k]) for k in ("task.dataset", "task.model") if k in section.held]
    config = section.held.get("task.config")
    if isinstance(config, dict) and "template" in config:
        task.append(f"{plain_value(config['template'])} template")
    if isinstance(config, dict) and "interface" in config:
        task.append(f"{plain_value(config['interface'])} interface")
    goal = [
        f"{path.split('.')[-1]} {plain_value(value)}"
        for path, value in section.held.items()
        if path.startswith("attack.") and isinstance(value, str | int) and not isinstance(value, bool)
    ]
    behind = defenses(section)
    return ": ".join(part for part in (", ".join(task), ", ".join(goal)) if part) + (
        f"; behind {behind}" if behind else ""
    )


def held_fixed(section: Section) -> list[str]:
    """What all rows share, one phrase a field. Digests are cut to 16 digits."""
    out = []
    for path, value in section.held.items():
        name = path.split(".", 1)[-1]
        if path == "defenses":
            for d in value or ():
                told = f", told {', '.join(d['oracle'])}" if d["oracle"] else ""
                out.append(f"defence {d['name']} version {d['version']} {canonical_json(d['config'])}{told}")
        elif path.endswith("digest"):
            out.append(f"data digest {str(value)[:16]}")
        elif isinstance(value, dict):
            inner = ", ".join(f"{k}={plain_value(v)}" for k, v in sorted(value.items()))
            out.append(f"recipe {digest_json(value)[:16]} ({inner})")
        elif value is not None:
            out.append(f"{name.removeprefix('config.')} {plain_value(value)}")
    if section.knowledge:
        out.append(f"{section.knowledge} attacks")
    return out


def test_images(section: Section, metrics: Iterable[str]) -> str:
    """`360 (cta, base_cta); 36 (pta)`: distinct examples behind each metric."""
    counts: dict[str, set[int]] = defaultdict(set)
    for row in section.rows:
        for (name, group), found in row.metrics.items():
            if group is None:
                counts[name].add(found.estimate.n)
    names: dict[str, list[str]] = defaultdict(list)
    for name in metrics:
        if name in counts:
            names[" or ".join(map(str, sorted(counts[name])))].append(name)
    return "; ".join(f"{n} ({', '.join(which)})" for n, which in names.items()) or "none"


def provenance(section: Section) -> list[tuple[str, str]]:
    """Seeds, hardware, suite versions and commits of every record of a table."""
    records = section.records
    seeds = sorted({r.cell.seed for r in records})
    hardware = sorted({f"{r.environment.device} on {r.environment.cpu}" for r in records})
    commits = sorted({_commit(r.environment.git_commit, r.environment.dirty) for r in records})
    return [
        ("Seeds", ", ".join(map(str, seeds))),
        ("Hardware", "; ".join(hardware)),
        ("Suite", ", ".join(sorted({r.environment.suite for r in records}))),
        ("Commit", ", ".join(commits)),
    ]


def _commit(commit: str | None, dirty: bool | None) -> str:
    state = {True: "with uncommitted changes", False: "clean", None: "state of the tree unknown"}[dirty]
    return f"{commit[:12]} ({state})" if commit else f"no commit recorded ({state})"


def command(row: Row, section: Section, rules: KindRules) -> str | None:
    """The command that runs a row again; None where its seeds are not in sequence or nobody here ran it."""
    first = row.records[0]
    seeds = [r.cell.seed for r in row.records]
    if row.origin != "measured" or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        return None
    dataset = first.cell.task.dataset.removesuffix("-jpeg")
    words = ["redteam", "attack", first.cell.attack.name, "--dataset", dataset]
    config = first.cell.task.config
    how = rules.command
    words += [how.model, first.cell.task.model]
    for key in how.settings:
        if config.get(key) is not None:
            words += ["-o", f"target.{key}={_listed(config[key])}"]
    options = {k: v for k in how.options if (v := first.cell.attack.config.get(k)) is not None}
    for key, value in options.items():
        words += [_flag(key), str(value)]
    for d in first.cell.defenses:
        words += ["--defense", _with_settings(d.name, d.config) if how.configured else d.name]
    if section.knowledge == "adaptive":
        words.append("--adaptive")
    if isinstance(row.budget, int | float) and row.budget > 0:
        words += [_flag(rules.budget.rpartition(".")[2]), str(row.budget)]
    for key, value in row.settings.items():
        name = key.removeprefix("attack.config.")
        if key.startswith("attack.config.") and isinstance(value, str | int | float) and name not in options:
            words += ["-o", f"{name}={plain_value(value)}"]
    words += ["--seeds", str(len(seeds)), *(["--seed", str(seeds[0])] if seeds[0] else [])]
    return one_line(" ".join(map(shlex.quote, words)))


def _flag(knob: str) -> str:
    return f"--{knob.replace('_', '-')}"


def _listed(value: Any) -> str:
    """A setting as `-o` takes it: lists with commas."""
    return ",".join(map(plain_value, value)) if isinstance(value, list | tuple) else plain_value(value)


def _with_settings(name: str, config: dict[str, Any]) -> str:
    """`airgap:minimiser=rules,repairs=2`. A text with a comma cannot be given so and is left to its default."""
    pairs = [
        f"{k}={'none' if v is None else plain_value(v)}"
        for k, v in sorted(config.items())
        if isinstance(v, str | int | float | None) and "," not in str(v)
    ]
    return f"{name}:{','.join(pairs)}" if pairs else name
