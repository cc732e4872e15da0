"""Runs on one federation beside each other, and one run's rounds: curves, trade-offs, filtering and notes. Pure.

Rounds count from 1 here, so that the snapshot after round N stands where round N does; in the evidence tables
`clients` and `notes` they count from 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.record import Record
from redteam.core.stats import Estimate, across_cells, rate
from redteam.report import beside
from redteam.report.beside import by_defense, defense_key, defense_labels
from redteam.report.words import behind, short
from redteam.threats.poisoning.federation.metrics import BASE_TRAINED, TRAINED
from redteam.threats.poisoning.filter_metrics import filter_metrics, over_victims, removed_by_weight
from redteam.threats.poisoning.report.curve import goal

# What says how many clients are malicious; runs that differ in these alone are the same attack.
_SIZE = ("fraction", "budget")
# How honest clients act: the defaults of the federation's `Conduct`, which would load torch.
HONEST = {"epochs": 1, "scale": 1.0, "bound": None, "rate": 1.0, "report": "true"}
_BINS = 20
_MOST_EVENTS = 20
_GROUP = re.compile(r"round=(\d+)")
Steps = tuple[tuple[int, Estimate], ...]  # (rounds done, estimate) at each snapshot


@dataclass(frozen=True)
class Line:
    """One defence over the rounds, the mean over its seeds. place: among all defences shown; own: this run alone."""

    label: str
    place: int
    own: bool
    ids: frozenset[str]
    asr: Steps
    cta: Steps


@dataclass(frozen=True)
class Point:
    """One defence at one share of malicious clients, over its seeds. numbers: by metric, of the final models.

    line: whether its defence is this run's; here: whether its share of malicious clients is.
    """

    label: str
    place: int
    fraction: float
    ids: frozenset[str]
    numbers: Mapping[str, Estimate | None]
    line: bool
    here: bool


@dataclass(frozen=True)
class Judged:
    """What became of the clients of rounds `first` to `last`. bad, good: (appearances, removed)."""

    first: int
    last: int
    bad: tuple[int, int]
    good: tuple[int, int]
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Event:
    """One note of a server."""

    victim: int
    round: int
    name: str
    value: float


@dataclass(frozen=True)
class Often:
    """A note that came too often to list. rounds: in how many, of all victims."""

    name: str
    rounds: int
    first: int
    last: int
    values: tuple[float, float, float]  # smallest, median, largest


# ---------------------------------------------------------------- beside each other


def comparable(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """`record` and the scored siblings with its task and attack, whatever their defences and number of malicious
    clients; each once, by id."""
    return beside.comparable(record, siblings, lambda r: beside.same_attack(r, _SIZE))


def controls(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """The scored controls on the same task and goal, behind no defence or this run's; each once, by seed."""
    mine = defense_key(record, told)
    found = {
        s.id: s
        for s in siblings
        if s.status == "ok" and s.role == "control" and s.id != record.id and s.cell.task == record.cell.task
        and goal(s) == goal(record)
        and (not s.cell.defenses or behind(s) == behind(record) or defense_key(s, told) == mine)
    }  # fmt: skip
    return sorted(found.values(), key=lambda s: (len(s.cell.defenses), s.cell.attack.name, s.cell.seed, s.id))


def fraction(record: Record) -> float:
    """Malicious clients over all: the budget's share. NaN where the record does not say."""
    budget, clients = record.cell.attack.config.get("budget"), record.cell.task.config.get("clients")
    return budget / clients if isinstance(budget, int) and clients else float("nan")


def told(record: Record) -> list[dict[str, Any]]:
    """The defences' configs, with the number of poisons told as a multiple of the attack's.

    A defence that is told the true number is the same one at every number of malicious clients.
    """
    budget = record.cell.attack.config.get("budget")
    out = []
    for d in record.cell.defenses:
        config = dict(d.config)
        if budget and isinstance(poisons := config.get("poisons"), int):
            config["poisons"] = f"{round(poisons / budget, 3):g} x budget"
        out.append(config)
    return out


def lines(record: Record, others: Sequence[Record]) -> list[Line]:
    """This run, then every other defence against as many malicious clients."""
    labels, found = defense_labels(others, told), []
    for place, (key, records) in enumerate(by_defense(record, others, told).items()):
        own = key == defense_key(record, told)
        rows = [record] if own else [r for r in records if _alike(r, record)]
        if rows:
            asr, cta = (_over_rounds(rows, name) for name in ("asr", "cta"))
            found.append(Line(labels[rows[0].id], place, own, beside.ids(rows), asr, cta))
    return found


def _alike(a: Record, b: Record) -> bool:
    return a.cell.attack.config.get("budget") == b.cell.attack.config.get("budget")


def _over_rounds(records: Sequence[Record], name: str) -> Steps:
    at: dict[int, list[Estimate]] = defaultdict(list)
    for r in records:
        for m in r.metrics:
            if m.name == name and (match := _GROUP.fullmatch(m.group or "")):
                at[int(match[1])].append(beside.estimate(m))
    return tuple((number, across_cells(at[number])) for number in sorted(at))


TRADE = ("asr", "cta", "asr_mean", "asr_max", "filter_tpr", "filter_fpr")


def points(record: Record, others: Sequence[Record]) -> list[Point]:
    """Every defence against as many malicious clients as in this run, and this run's defence against other numbers."""
    labels, mine, out = defense_labels(others, told), defense_key(record, told), []
    for place, (key, records) in enumerate(by_defense(record, others, told).items()):
        shares = {r.id: fraction(r) for r in records}
        for share in sorted(set(shares.values())):
            rows = [r for r in records if shares[r.id] == share]
            here = _alike(rows[0], record)
            if here or key == mine:
                numbers = {name: beside.pooled(rows, name) for name in TRADE}
                own = labels[rows[0].id], place, share, beside.ids(rows)
                out.append(Point(*own, numbers, line=key == mine, here=here))
    return out


# ---------------------------------------------------------------- one run


def reference(rounds: pd.DataFrame) -> dict[str, list[tuple[int, Estimate]]]:
    """asr and cta of the clean references at each snapshot, the mean over victims."""
    out: dict[str, list[tuple[int, Estimate]]] = {"asr": [], "cta": []}
    for number in sorted(map(int, rounds["round"].unique())):
        part = rounds[rounds["round"] == number]
        for name, hits, total in (("asr", "base_hits", "others"), ("cta", "base_correct", "n")):
            counts = zip(part[hits], part[total], strict=True)
            out[name].append((number, over_victims([rate(np.arange(n) < k) for k, n in counts])))
    return out


def drift_steps(config: Mapping[str, Any]) -> list[int]:
    """After how many rounds the data change. config: of the federation."""
    every, total = config.get("drift_every", 0), config.get("rounds", 0)
    if config.get("drift", "static") == "static" or not every:
        return []
    return list(range(every, total, every))


def judged(clients: pd.DataFrame, bins: int = _BINS) -> list[Judged]:
    """The clients that a filter judged, in at most `bins` spans of equal length.

    Judged and removed as for the metrics: a round counts if anybody was removed or scored in it.
    """
    gone = clients["removed"].to_numpy(bool) | removed_by_weight(clients, ("victim", "round"))
    table = clients.assign(removed=gone, malicious=clients["malicious"].astype(bool))
    at_work = table["removed"] | table["score"].notna()
    table = table[at_work.groupby([table["victim"], table["round"]]).transform("any")]
    if table.empty:
        return []
    rounds = int(clients["round"].max()) + 1
    width = max(1, ceil(rounds / bins))
    out = []
    for _, part in table.groupby(table["round"] // width):
        first, last = int(part["round"].min()) + 1, int(part["round"].max()) + 1
        bad, good = (part.loc[part["malicious"] == yes, "removed"] for yes in (True, False))
        metrics = filter_metrics(part, bad="malicious", within=("round",), clusters=("client", "round"))
        counts = [(len(side), int(side.sum())) for side in (bad, good)]
        out.append(Judged(first, last, counts[0], counts[1], metrics))
    return out


def notes(table: pd.DataFrame) -> tuple[list[Event], list[Often]]:
    """The server's notes: single events in order, and what came in more than 20 rounds of a victim, summed up.

    What the scorer wrote down about cost is no note of the server.
    """
    table = table[~table["name"].isin((TRAINED, BASE_TRAINED))]
    events: list[Event] = []
    often: list[Often] = []
    for name, part in table.groupby("name", sort=True):
        if part.groupby("victim")["round"].nunique().max() <= _MOST_EVENTS:
            columns = (part[c].tolist() for c in ("victim", "round", "value"))
            events += [
                Event(int(v), int(r) + 1, str(name), float(x)) for v, r, x in zip(*columns, strict=True)
            ]
            continue
        values = part["value"].to_numpy(float)
        spread = (float(values.min()), float(np.median(values)), float(values.max()))
        first, last = int(part["round"].min()) + 1, int(part["round"].max()) + 1
        pairs = len(part[["victim", "round"]].drop_duplicates())
        often.append(Often(str(name), pairs, first, last, spread))
    return sorted(events, key=lambda e: (e.victim, e.round)), often


def conduct(values: Mapping[str, Any]) -> str:
    """`scale 12, bound 1`, or nothing where malicious clients act like honest ones."""
    return ", ".join(
        f"{k} {short(v)}" for k, v in sorted(values.items()) if k not in HONEST or v != HONEST[k]
    )
