"""BadNets that knows the defence: it rehearses against it, or covers its trigger with correctly labelled images.

Threat: as badnets, and the attacker can run the defence on poison of its own. Two strategies.
`survivors`: poison, train the defended target, put other rows in the place of those that were filtered
out, and again. `cover`: a share of the stamped images, of every class but the target, keep their true
labels, so that the trigger alone no longer separates poison from the rest of the target's rows.
Source: [qi2023latent] for covering images (remembered); [gu2017badnets] for the attack. Rehearsing is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from attacks.poisoning._backdoor import LABEL_THREAT, Backdoor, backdoor_spec, poison, relabel, source_rows
from attacks.poisoning._survivors import rehearse
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Backdoor):
    """The goal and the strategy."""

    strategy: Literal["survivors", "cover"] = knob(
        "survivors", "survivors: rehearse; cover: correctly labelled stamps"
    )
    rehearsals: int = knob(2, "survivors: how often poison is tried on the defended target", low=1)
    cover: float = knob(
        0.5, "cover: share of the budget that is stamped and keeps its label", above=0, high=0.95
    )


def _poison(target: Any, config: Config, order: np.ndarray, banned: np.ndarray) -> Poison:
    """Stamped and relabelled source rows in `order`, without the banned ones, and covering rows if asked for."""
    rows = order[~banned[order]][: int(config.budget)]
    cover = np.zeros(0, np.int64)
    if config.strategy == "cover":
        covering = min(len(rows) - 1, round(config.cover * len(rows)))
        rows = rows[: len(rows) - covering]
        others = np.flatnonzero(target.train.labels != config.target_class)
        others = others[~np.isin(others, rows)]
        # Spread over all classes, so that no class is tied to the trigger but the target.
        cover = others[np.linspace(0, len(others) - 1, covering).round().astype(int)] if covering else cover
    chosen = np.concatenate([rows, cover])
    stamped = triggers.apply(config.spec(), target.train.images[chosen], chosen)
    labels = relabel(target.train, rows, int(config.target_class))
    return poison(config, labels, indices=chosen, images=stamped)


def run(target: Any, config: Config, ctx: Context) -> Poison:
    """At most `budget` stamped rows."""
    order = ctx.rng("rows").permutation(source_rows(target.train, config))
    if config.strategy == "cover":
        return _poison(target, config, order, np.zeros(len(target.train), bool))
    found, _ = rehearse(target, lambda banned: _poison(target, config, order, banned), config.rehearsals, ctx)
    return found


# Filters that look for rows set apart in representation space, which covering is against.
_APART = ("spectral-signatures", "activation-clustering", "spectre", "shadow")


def adaptive(config: Config, defenses: Sequence[str]) -> bool:
    """Rehearsing adapts to whatever stands there; covering to filters of representations."""
    return config.strategy == "survivors" or not defenses or any(name in _APART for name in defenses)


SPEC = backdoor_spec(
    "badnets-adaptive", run, "qi2023latent", config=Config, controls=("no-attack", "badnets"), adaptive=adaptive,
    variants=({"strategy": "survivors"}, {"strategy": "cover"}),
    threat=replace(
        LABEL_THREAT, access=("training labels", "training images"),
        knowledge=("training images and true labels", "the defence, which it can run"),
    ),
)  # fmt: skip
