"""Metrics of poisoning, each defined once. Pure functions of the table of per-example outcomes.

The table has a row for each (victim, test image): `victim`, `index`, `label`, what the victim says
of the image (`clean`) and of the image wearing the trigger (`triggered`), and the same of the
reference victim that was trained from the same seed on clean labels (`base_clean`,
`base_triggered`). Definitions with their denominators are in docs/metrics.md.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from redteam.core.stats import Estimate, paired_difference, rate, spread

OUTCOME_COLUMNS = ("victim", "index", "label", "clean", "triggered", "base_clean", "base_triggered")


def _tables(outcomes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each column as a (victims, images) array, in the order of victim and index."""
    ordered = outcomes.sort_values(["victim", "index"], kind="stable")
    victims = ordered["victim"].nunique()
    if len(ordered) % victims or any(len(g) != len(ordered) // victims for _, g in ordered.groupby("victim")):
        raise ValueError("expected every victim to be asked about the same images")
    return {c: ordered[c].to_numpy().reshape(victims, -1) for c in OUTCOME_COLUMNS}


def poisoning_metrics(outcomes: pd.DataFrame, source_class: int, target_class: int) -> dict[str, Estimate]:
    """cta, pta, asr, ra, trigger_lift, and the clean reference's base_cta, base_pta and cta_drop.

    With several victims also the standard deviations cta_sd, pta_sd and trigger_lift_sd over them.

    source_class: -1 means every class but the target. The target class's own images never count
    towards pta, asr or ra.
    """
    t = _tables(outcomes)
    label = t["label"]
    others = label[0] != target_class
    sources = others if source_class < 0 else label[0] == source_class
    if not sources.any():
        raise ValueError(f"expected test images of source class {source_class}, found none")
    correct, base_correct = t["clean"] == label, t["base_clean"] == label
    hit, plain = t["triggered"] == target_class, t["clean"] == target_class
    metrics = {
        "cta": rate(correct),
        "pta": rate(hit[:, sources]),
        "trigger_lift": paired_difference(hit[:, sources], plain[:, sources]),
        "asr": rate(hit[:, others]),
        "ra": rate((t["triggered"] == label)[:, others]),
        "base_cta": rate(base_correct),
        "base_pta": rate((t["base_triggered"] == target_class)[:, sources]),
        "cta_drop": paired_difference(base_correct, correct),
    }
    if len(label) > 1:
        lift = hit[:, sources].astype(int) - plain[:, sources].astype(int)
        metrics |= {
            "cta_sd": spread(correct),
            "pta_sd": spread(hit[:, sources]),
            "trigger_lift_sd": spread(lift),
        }
    return metrics
