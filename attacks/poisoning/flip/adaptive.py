"""FLIP that knows the defence: it rehearses, and flips other labels in the place of those that are filtered out.

Threat: label-only, as flip, and the attacker can run the defence on labels of its own. The label logits are
those of FLIP on the undefended target; from rehearsal to rehearsal only the choice among them changes.
Source: [jha2023flip] for the logits; rehearsing is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attacks.poisoning import flip
from attacks.poisoning._backdoor import LABEL_THREAT, backdoor_spec, known_rows, poison
from attacks.poisoning._survivors import rehearse, undefended
from attacks.poisoning.flip.select import select_flips
from redteam.core.config import knob, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.threats.poisoning.artifact import Poison


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(flip.Config):
    """FLIP's knobs, and how often it rehearses."""

    rehearsals: int = knob(2, "how often labels are tried on the defended target", low=1)

    def __post_init__(self) -> None:
        flip.Config.__post_init__(self)
        if self.labels or self.soft_alpha is not None:
            raise ConfigError(
                "flip-adaptive crafts hard labels itself; give `labels` and `soft_alpha` to flip"
            )


def _plain(config: Config) -> flip.Config:
    """The same settings as FLIP's own, so that logits are shared with it."""
    values = {k: getattr(config, k) for k in to_json(flip.Config())}
    return flip.Config(**values)


def run(target: Any, config: Config, ctx: Context) -> Poison:
    """Labels with at most `budget` flips that got past the rehearsed filter, as far as there are any."""
    inner = undefended(target)
    # FLIP's own stream, so that both share one set of logits.
    seeds = SeedPath(ctx.seeds.root, (*ctx.seeds.names[:-1], "flip"))
    logits = flip.label_logits(inner, _plain(config), replace(ctx, seeds=seeds))
    labels, budget = target.train.labels, int(config.budget)
    known = known_rows(config, len(labels))

    def propose(banned: np.ndarray) -> Poison:
        held = [np.where(banned[:, None], _true(labels, one.shape[1]), one) for one in logits]
        return poison(config, select_flips(held, labels, budget, known))

    found, _ = rehearse(target, propose, config.rehearsals, ctx)
    return found


def _true(labels: np.ndarray, classes: int) -> np.ndarray:
    """Logits that no flip would be chosen from: as far on the true label's side as can be."""
    return np.where(np.eye(classes, dtype=bool)[labels], 1e6, -1e6)


PRESETS = {
    title: replace(preset, config=Config(**{k: getattr(preset.config, k) for k in to_json(preset.config)}))
    for title, preset in flip.SPEC.presets.items()
}

SPEC = backdoor_spec(
    "flip-adaptive", run, "jha2023flip", config=Config, resolver=flip.resolve, estimate=flip.estimate,
    presets=PRESETS, controls=("no-attack", "random-flips"), adaptive=True, small=flip.SMALL,
    threat=replace(LABEL_THREAT, knowledge=(*LABEL_THREAT.knowledge, "the defence, which it can run")),
)  # fmt: skip
