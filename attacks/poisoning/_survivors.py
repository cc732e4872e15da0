"""An attacker who rehearses: it tries its poison on the defended target and replaces what was filtered out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from redteam.core.context import Context
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.filtering import FilteredClassifier
from redteam.threats.poisoning.scorer import changes, poisoned_training_set


def undefended(target: Any) -> Any:
    """The target behind all defences that say what they wrap."""
    while hasattr(target, "inner"):
        target = target.inner
    return target


def rehearse(
    target: Any, propose: Callable[[np.ndarray], Poison], rehearsals: int, ctx: Context
) -> tuple[Poison, np.ndarray]:
    """The last proposal, and the rows that the defence removed in rehearsals, (n,) bool.

    target: defended, as the attacker may use it: it trains on whatever it is given, with the attacker's own
    seeds. propose: the poison that changes none of the rows it is given as (n,) bool. Without a filter
    there is nothing to rehearse.
    """
    banned = np.zeros(len(target.train), bool)
    poison = propose(banned)
    for index in range(rehearsals):
        (model,) = target.fit(
            poisoned_training_set(poison, target.train), [ctx.seeds.child("rehearsal", index).integer()], ctx
        )
        if not isinstance(model, FilteredClassifier):
            break
        caught = np.zeros(len(banned), bool)
        caught[changes(poison, target.train)["index"].to_numpy()] = True
        caught &= model.verdicts.removed
        if not caught.any():
            break
        banned |= caught
        poison = propose(banned)
    return poison, banned
