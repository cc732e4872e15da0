"""Metrics of a federation under attack, each defined once. Pure functions of its evidence tables.

`outcomes`: the final models, as in `metrics`. `rounds`: a row for each victim and
snapshot, with counts over the same test images as they looked in that round. `clients`: a row for each client of
each round. `notes`: what the server wrote down, and images trained. Definitions with their denominators are in
docs/metrics.md.

Intervals. All snapshots see the same images, so a mean over snapshots has no more examples than one of them: each
image gives a share in [0, 1], whose variance is at most that of a yes or no with the same mean, and the interval is
Wilson's at the mean on the number of images. The largest of S snapshots: Wilson's with the error divided by S, which
holds for all of them at once. Clients come again in other rounds: errors are clustered by client and by round.
All are conditional on the runs; several victims add what differs between runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from redteam.core.stats import CONFIDENCE, Estimate, rate, two_way_clustered, wilson
from redteam.threats.poisoning.filter_metrics import (
    filter_metrics,
    over_victims,
    removed_by_weight,
    retrain_cost,
)
from redteam.threats.poisoning.metrics import poisoning_metrics

ROUND_COLUMNS = (
    "victim", "round", "n", "correct", "others", "hits", "sources", "source_hits", "base_correct", "base_hits",
    "base_source_hits",
)  # fmt: skip
CLIENT_COLUMNS = ("victim", "round", "client", "malicious", "weight", "removed", "score", "rejected")
NOTE_COLUMNS = ("victim", "round", "name", "value")
# Notes that the scorer adds: images put through training steps, by the victim and by its reference.
TRAINED, BASE_TRAINED = "trained", "base_trained"
_TENTHS = 10


def federation_metrics(
    outcomes: pd.DataFrame,
    rounds: pd.DataFrame,
    clients: pd.DataFrame,
    notes: pd.DataFrame,
    source_class: int,
    target_class: int,
) -> dict[str, Estimate]:
    """Those of `poisoning_metrics` for the final models, and those over rounds, clients and cost.

    source_class: -1 means every class but the target.
    """
    return {
        **poisoning_metrics(outcomes, source_class, target_class),
        **over_rounds(rounds),
        **of_clients(clients),
        **retrain_cost(costs(notes)),
    }


def by_round(rounds: pd.DataFrame) -> dict[tuple[str, str], Estimate]:
    """asr and cta at a tenth of the way, two tenths, ..., by (name, "round=N"): backdoor leakage as a curve.

    Where there are more than ten snapshots, those nearest below; the table of rounds holds them all.
    """
    numbers = np.sort(rounds["round"].unique())
    places = (np.arange(1, _TENTHS + 1) * len(numbers) // _TENTHS) - 1
    shown = rounds[rounds["round"].isin(numbers[places[places >= 0]])]
    out: dict[tuple[str, str], Estimate] = {}
    for number, part in shown.groupby("round"):
        out["asr", f"round={number}"] = _over_victims(part, lambda one: _counted(one, "hits", "others"))
        out["cta", f"round={number}"] = _over_victims(part, lambda one: _counted(one, "correct", "n"))
    return out


def over_rounds(rounds: pd.DataFrame) -> dict[str, Estimate]:
    """asr_mean and asr_max over all snapshots, and cta_mean."""
    return {
        "asr_mean": _over_victims(rounds, lambda one: _mean(one, "hits", "others")),
        "asr_max": _over_victims(rounds, lambda one: _largest(one, "hits", "others")),
        "cta_mean": _over_victims(rounds, lambda one: _mean(one, "correct", "n")),
    }


def _over_victims(rounds: pd.DataFrame, measure: Callable[[pd.DataFrame], Estimate]) -> Estimate:
    return over_victims([measure(part) for _, part in rounds.groupby("victim")])


def _counted(one: pd.DataFrame, hits: str, total: str) -> Estimate:
    """The share of images at the only snapshot of a victim."""
    (k,), (n,) = one[hits], one[total]
    return rate(np.arange(n) < k)


def _mean(one: pd.DataFrame, hits: str, total: str) -> Estimate:
    """The mean over a victim's snapshots, on as many examples as there are images."""
    return rate(np.full(int(one[total].iloc[0]), float((one[hits] / one[total]).mean())))


def _largest(one: pd.DataFrame, hits: str, total: str) -> Estimate:
    """The largest of a victim's snapshots, with an interval for the largest true rate."""
    n, k = int(one[total].iloc[0]), int(one[hits].max())
    low, high = wilson(k, n, 1 - (1 - CONFIDENCE) / len(one))
    return Estimate(
        k / n, min(low, k / n), max(high, k / n), n, 1, f"wilson, bonferroni over {len(one)} snapshots"
    )


# ---------------------------------------------------------------- clients and cost


def of_clients(clients: pd.DataFrame) -> dict[str, Estimate]:
    """Filter metrics over appearances of clients, malicious_rate and rejected_rate.

    An appearance counts as removed if a rule says that it left the client out, or if the client's weight is below
    half of the equal share of its round; its scores are compared within the round. Of a filter that gives
    scores only the rounds count in which it gave or removed any: it need not be at work in all. Where nothing was
    removed and nothing scored, nothing filtered, and there are no filter metrics.
    Rejected updates, which no rule ever sees, count in rejected_rate alone.
    """
    out: dict[str, Estimate] = {}
    gone = clients["removed"].to_numpy(bool) | removed_by_weight(clients, ("victim", "round"))
    table = clients.assign(removed=gone)[~clients["rejected"].to_numpy(bool)]
    scored, place = table["score"].notna(), [table["victim"], table["round"]]
    at_work = (
        (scored | table["removed"]).groupby(place).transform("any")
        if scored.any()
        else table["removed"].any()
    )
    judged = pd.Series(at_work, table.index)
    if judged.any():
        out = filter_metrics(table[judged], bad="malicious", within=("round",), clusters=("client", "round"))
    parts = [part for _, part in clients.groupby("victim")]
    share = float(clients["malicious"].mean())
    out["malicious_rate"] = Estimate(share, None, None, len(clients), len(parts), "exact count")
    out["rejected_rate"] = over_victims([
        two_way_clustered(p["rejected"].to_numpy(bool), p["client"].to_numpy(), p["round"].to_numpy()) for p in parts
    ])  # fmt: skip
    return out


def costs(notes: pd.DataFrame) -> pd.DataFrame:
    """Images trained by each victim and its reference, as `filter_metrics.retrain_cost` reads them."""
    named = {
        name: notes[notes["name"] == name].set_index("victim")["value"] for name in (TRAINED, BASE_TRAINED)
    }
    return pd.DataFrame(named).rename_axis("victim").reset_index()
