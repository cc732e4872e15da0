"""How cells of evasion compare by image, and how the attacks on one network become a worst case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from redteam.core.errors import ArtifactError
from redteam.core.pairing import Pairing, Table, Worst
from redteam.core.record import Record
from redteam.core.stats import Estimate
from redteam.threats.evasion import metrics

# What the attacks took to get there is no worst case of anything.
_LEFT = ("forwards_mean", "backwards_mean")


def examples(record: Record, table: pd.DataFrame, metric: str, group: str | None) -> np.ndarray | None:
    """(victims, images) bool of one radius: the main one, or that of the group."""
    radii = [e for e in metrics.by_radius(table) if group in (None, metrics.radius_group(e))]
    if group is None:
        radii = [e for e in radii if e == record.cell.attack.config.get("eps")]
    return metrics.per_image(table, radii[0], metric) if len(radii) == 1 else None


def ball(record: Record) -> tuple[str, float | None]:
    """The norm and the main radius of a run; an attack without knobs for them has the target's norm."""
    config, task = record.cell.attack.config, record.cell.task.config
    eps = config.get("eps")
    return str(config.get("norm") or task.get("norm") or ""), None if eps is None else float(eps)


def at_main(record: Record, table: pd.DataFrame | None) -> Table:
    """The outcomes at the main radius, (victims, images) each.

    Raises:
        ArtifactError: the run kept none, or none at its main radius.
    """
    if table is None:
        raise ArtifactError(f"the run {record.id} kept no outcomes, without which it is in no worst case")
    _, eps = ball(record)
    radii = table["eps"].unique()
    if eps is None and len(radii) == 1:
        eps = float(radii[0])
    part = table[table["eps"] == eps]
    if not len(part):
        raise ArtifactError(f"the run {record.id} has no outcomes at its main radius {eps}")
    return metrics.crossed(part, metrics.OUTCOME_COLUMNS)


def merged(tables: Sequence[Table]) -> pd.DataFrame:
    """Outcomes of the worst case: an image that some attack turned is right to nobody (no class is -1)."""
    stands = np.logical_and.reduce([metrics.robust(t) for t in tables])
    together = {**tables[0], "adversarial": np.where(stands, tables[0]["label"], -1)}
    return pd.DataFrame({name: together[name].ravel() for name in metrics.OUTCOME_COLUMNS})


def worst_metrics(table: pd.DataFrame, radius: float) -> dict[str, Estimate]:
    """The metrics of a worst case."""
    return {name: e for name, e in metrics.evasion_metrics(table, radius).items() if name not in _LEFT}


PAIRING = Pairing(
    examples=examples,
    training=frozenset({
        "steps", "batch_size", "lr", "lr_critic", "beta1", "weight_decay", "critic_steps", "critic_width",
        "critic_layers", "inner_steps", "inner_step", "eps_ramp",
    }),
    label_free=("val_source_clean", "val_source_pgd", "val_pseudo"),
    worst=Worst(
        ball=ball, main=at_main, correct=metrics.correct, robust=metrics.robust, merged=merged, metrics=worst_metrics,
        of_networks="val_",
    ),
)  # fmt: skip
