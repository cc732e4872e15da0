"""Metrics of evasion, each defined once. Pure functions of the tables beside a record.

`outcomes` has a row for each (victim, radius, test image): what the network says of the image as it is (`clean`)
and as the attack left it (`adversarial`), and which attack the artifact names for it. The other tables are
`selection` (the same images under the states that other selectors would have taken), `history` (validations) and
`pseudo` (pseudo-labels). Definitions with their denominators are in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from redteam.core.stats import Estimate, across_cells, paired_difference, rate, spread, wilson

OUTCOME_COLUMNS = (
    "victim", "eps", "index", "label", "clean", "adversarial", "attack", "moved", "forwards", "backwards",
)  # fmt: skip
SELECTION_COLUMNS = ("victim", "selector", "step", "chosen", "index", "label", "clean", "adversarial")
HISTORY_COLUMNS = ("victim", "step", "criterion", "value", "n", "chosen")
PSEUDO_COLUMNS = ("victim", "index", "label", "pseudo")
# Attacks that ask for answers alone.
_BLACK_BOX = ("square",)

Table = dict[str, np.ndarray]
Grouped = dict[tuple[str, str], Estimate]


# ---------------------------------------------------------------- outcomes


def crossed(table: pd.DataFrame, columns: Sequence[str]) -> Table:
    """Each column as (victims, images), in the order of victim and index.

    Raises:
        ValueError: the victims were not asked about the same images.
    """
    ordered = table.sort_values(["victim", "index"], kind="stable")
    victims = ordered["victim"].nunique()
    if not len(ordered) or len(ordered) % victims:
        raise ValueError("expected every victim to be asked about the same images")
    out = {c: ordered[c].to_numpy().reshape(victims, -1) for c in columns}
    if (out["victim"] != out["victim"][:, :1]).any() or (out["index"] != out["index"][:1]).any():
        raise ValueError("expected every victim to be asked about the same images")
    return out


def by_radius(outcomes: pd.DataFrame) -> dict[float, Table]:
    """The outcomes at each radius, ascending, as (victims, images) arrays."""
    radii = sorted(outcomes["eps"].unique())
    return {float(e): crossed(outcomes[outcomes["eps"] == e], OUTCOME_COLUMNS) for e in radii}


def radius_group(eps: float) -> str:
    """The group of a radius, such as `eps=0.1`; six significant digits."""
    return f"eps={eps:.6g}"


def correct(t: Table) -> np.ndarray:
    """(V, n): whether the network is right about the image as it is."""
    right: np.ndarray = t["clean"] == t["label"]
    return right


def robust(t: Table) -> np.ndarray:
    """(V, n): whether it is right about the image as it is and as the attack left it."""
    stands: np.ndarray = correct(t) & (t["adversarial"] == t["label"])
    return stands


def broken_by(t: Table, attacks: int) -> np.ndarray:
    """(V, n): the position of the attack that an image fell to, -1 if it stood or was misread by itself.

    The network's fresh answer decides whether it fell, the artifact says to which attack; where it names none, to
    the last one.
    """
    named = np.where(t["attack"] >= 0, t["attack"], attacks - 1)
    fell: np.ndarray = np.where(correct(t) & ~robust(t), named, -1)
    return fell


def after(t: Table, position: int, attacks: int) -> np.ndarray:
    """(V, n): whether an image still stands after the attacks up to `position`."""
    by = broken_by(t, attacks)
    return correct(t) & ((by < 0) | (by > position))


def per_image(outcomes: pd.DataFrame, eps: float, metric: str) -> np.ndarray | None:
    """(V, n) booleans whose mean is `accuracy` or `robust_accuracy` at a radius; None of any other metric."""
    of = {"accuracy": correct, "robust_accuracy": robust}.get(metric)
    tables = by_radius(outcomes)
    return of(tables[eps]) if of and eps in tables else None


def _mean_over_victims(of: np.ndarray, among: np.ndarray) -> Estimate | None:
    """The share of `of` among each victim's own images `among`, and the mean over victims as over cells."""
    found = [rate(a[b]) for a, b in zip(of, among, strict=True) if b.any()]
    return across_cells(found) if found else None


def evasion_metrics(outcomes: pd.DataFrame, main: float) -> dict[str, Estimate]:
    """accuracy, robust_accuracy, robust_drop, attack_success, forwards_mean and backwards_mean at the main radius.

    With several victims also accuracy_sd and robust_accuracy_sd.
    """
    t = by_radius(outcomes)[main]
    right, stands = correct(t), robust(t)
    metrics = {
        "accuracy": rate(right),
        "robust_accuracy": rate(stands),
        "robust_drop": paired_difference(right, stands),
    }
    success = _mean_over_victims(~stands, right)
    if success is not None:
        metrics["attack_success"] = success
    victims, n = right.shape
    for name in ("forwards", "backwards"):
        mean = float(t[name].mean())
        metrics[f"{name}_mean"] = Estimate(mean, None, None, n, victims, "exact mean, as the attack counted")
    if victims > 1:
        metrics |= {"accuracy_sd": spread(right), "robust_accuracy_sd": spread(stands)}
    return metrics


def evasion_groups(outcomes: pd.DataFrame, main: float, attacks: Sequence[str]) -> Grouped:
    """robust_accuracy at every radius; of an ensemble, after each attack, and what each attack broke."""
    tables = by_radius(outcomes)
    grouped = {("robust_accuracy", radius_group(e)): rate(robust(t)) for e, t in tables.items()}
    if len(attacks) > 1:
        by = broken_by(tables[main], len(attacks))
        for position, name in enumerate(attacks):
            stands = after(tables[main], position, len(attacks))
            grouped["robust_accuracy", f"after={name}"] = rate(stands)
            grouped["broken_by", f"attack={name}"] = rate(by == position)
    return grouped


def black_box_gain(outcomes: pd.DataFrame, main: float, attacks: Sequence[str]) -> Estimate | None:
    """Share of images that fell to black-box attacks after white-box ones had failed; None without both.

    Paired: those standing after the last white-box attack, minus those standing after the black-box attacks that
    directly follow it.
    """
    black = [name.startswith(_BLACK_BOX) for name in attacks]
    if not any(black) or black[0]:
        return None
    first = black.index(True)
    last = next((i for i in range(first, len(black)) if not black[i]), len(black)) - 1
    t = by_radius(outcomes)[main]
    return paired_difference(after(t, first - 1, len(attacks)), after(t, last, len(attacks)))


def rises(outcomes: pd.DataFrame) -> list[tuple[float, float, Estimate]]:
    """(smaller radius, larger, paired rise of robust accuracy) wherever its interval lies above zero."""
    stands = {e: robust(t) for e, t in by_radius(outcomes).items()}
    pairs = [(a, b, paired_difference(stands[b], stands[a])) for a, b in combinations(stands, 2)]
    return [(a, b, e) for a, b, e in pairs if e.low is not None and e.low > 0]


def claims(outcomes: pd.DataFrame) -> tuple[int, int]:
    """How many images the artifact says were misread, at all radii, and how many of those were read right afresh."""
    claimed = outcomes["attack"] >= 0
    held = claimed & (outcomes["adversarial"] == outcomes["label"]) & (outcomes["clean"] == outcomes["label"])
    return int(claimed.sum()), int(held.sum())


# ---------------------------------------------------------------- selection, validation, pseudo-labels


def selection_metrics(selection: pd.DataFrame) -> tuple[dict[str, Estimate], Grouped]:
    """selected_accuracy and selected_robust of each selector, and what the oracle has over each.

    `selection_gap` itself is the oracle's selected_robust minus that of the selector in use; it is left out where
    that is the oracle, or there is none.
    """
    tables = {
        str(name): crossed(part, SELECTION_COLUMNS)
        for name, part in selection.groupby("selector", sort=False)
    }
    metrics: dict[str, Estimate] = {}
    grouped: Grouped = {}
    best = robust(tables["oracle"]) if "oracle" in tables else None
    for name, t in tables.items():
        grouped["selected_accuracy", f"select={name}"] = rate(correct(t))
        grouped["selected_robust", f"select={name}"] = rate(robust(t))
        if best is None or name == "oracle" or best.shape != correct(t).shape:
            continue
        gap = paired_difference(best, robust(t))
        grouped["selection_gap", f"select={name}"] = gap
        if t["chosen"].all():
            metrics["selection_gap"] = gap
    return metrics, grouped


def validation_metrics(history: pd.DataFrame) -> dict[str, Estimate]:
    """`val_CRITERION` of the states that were attacked: Wilson's for each victim, the mean over them as over cells."""
    out = {}
    for criterion, rows in history[history["chosen"]].groupby("criterion", sort=False):
        found = [_share(float(v), int(n)) for v, n in zip(rows["value"], rows["n"], strict=True) if n]
        if found:
            out["val_" + str(criterion).replace("-", "_")] = across_cells(found)
    return out


def _share(value: float, n: int) -> Estimate:
    if not 0 <= value <= 1:
        return Estimate(value, None, None, n, 1, "not a share of the images")
    low, high = wilson(round(value * n), n)
    return Estimate(value, min(low, value), max(high, value), n, 1, "wilson")


def pseudo_metrics(pseudo: pd.DataFrame) -> dict[str, Estimate]:
    """pseudo_accuracy: pseudo-labels of the target's training images that are right."""
    t = crossed(pseudo, PSEUDO_COLUMNS)
    return {"pseudo_accuracy": rate(t["pseudo"] == t["label"])}
