"""What the scorer asks of the states that other selectors would have taken, and what it notes of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from redteam.core.context import Context
from redteam.core.errors import ArtifactError
from redteam.core.hashing import digest_arrays
from redteam.learn.perturb import Ball, uniform
from redteam.threats.evasion import probes
from redteam.threats.evasion.metrics import HISTORY_COLUMNS, PSEUDO_COLUMNS, SELECTION_COLUMNS
from redteam.threats.evasion.nouns import Attackable, Fitted, answers

_VERSION = 1
# What a stage keeps; which selector is in use is the cell's own.
_KEPT = tuple(c for c in SELECTION_COLUMNS if c != "chosen")


def answered(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits (N, K), in batches that fit."""
    return answers(network, x, batch=probes.batch_size(x))


def states_of(
    fitted: Sequence[Fitted], defended: Attackable, x: torch.Tensor, labels: np.ndarray, ctx: Context
) -> dict[str, pd.DataFrame]:
    """The tables `selection` and `history`, where the target has them.

    A target with an `identity` (`(ctx) -> JSON values` that decide its networks) is asked once for all attacks.
    """
    tables: dict[str, pd.DataFrame] = {}
    selected, history = getattr(defended, "selected", None), getattr(defended, "history", None)
    states = selected(ctx) if selected is not None else []
    if any(len(one) > 1 for one in states):
        table = pd.DataFrame(_kept(states, defended, x, labels, ctx))
        table["chosen"] = table["selector"] == defended.config.select
        tables["selection"] = table[list(SELECTION_COLUMNS)]
    past = pd.DataFrame(history(ctx)) if history is not None else pd.DataFrame()
    if len(past):
        steps = np.array([one.step for one in fitted])
        past["chosen"] = past["step"].to_numpy() == steps[past["victim"].to_numpy()]
        tables["history"] = past[list(HISTORY_COLUMNS)]
    return tables


def _kept(
    states: Sequence[Mapping[str, Fitted]], defended: Attackable, x: torch.Tensor, labels: np.ndarray, ctx: Context
) -> dict[str, np.ndarray]:  # fmt: skip
    """The columns of `selection` but for `chosen`: one row for each victim, selector and image."""
    x, labels = x[: probes.ASKED], labels[: probes.ASKED]
    ball = Ball(defended.config.norm, defended.config.radius)

    def ask() -> dict[str, np.ndarray]:
        parts = [p for v, one in enumerate(states) for p in _selection(v, one, ball, x, labels, ctx)]
        return {name: np.concatenate([p[name] for p in parts]) for name in _KEPT}

    identity = getattr(defended, "identity", None)
    if identity is None:
        return ask()
    asked: dict[str, Any] = {"images": digest_arrays({"x": x.cpu().numpy(), "labels": labels})}
    asked |= {"ball": [ball.norm, ball.eps], "seeds": str(ctx.seeds), "device": ctx.device.kind}
    return ctx.stage("selection", {"version": _VERSION, "networks": identity(ctx), **asked}, ask)


def _selection(
    victim: int, states: Mapping[str, Fitted], ball: Ball, x: torch.Tensor, labels: np.ndarray, ctx: Context
) -> list[dict[str, np.ndarray]]:
    """Answers of one victim's states to the images, as they are and under the scorer's own PGD.

    A state that several selectors take is asked once. All states meet the same random starts.
    """
    y = torch.from_numpy(labels).to(x.device)
    asked: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    parts = []
    for name, one in states.items():
        key = one.step if one.step >= 0 else -1 - id(one.network)
        if key not in asked:
            ctx.report("asking other states", victim, victim + 1)
            start = uniform(ctx.seeds.child("selection", victim), x.device)
            logits = answered(one.network, x), probes.attacked(one.network, x, y, ball, start)
            asked[key] = logits[0].argmax(1).cpu().numpy(), logits[1].argmax(1).cpu().numpy()
        n = len(labels)
        columns = (
            np.full(n, victim, np.int32), np.full(n, name), np.full(n, one.step, np.int64),
            np.arange(n, dtype=np.int32), labels.astype(np.int32), *(a.astype(np.int32) for a in asked[key]),
        )  # fmt: skip
        parts.append(dict(zip(_KEPT, columns, strict=True)))
    return parts


def pseudo_of(fitted: Sequence[Fitted], labels: np.ndarray) -> pd.DataFrame:
    """Pseudo-labels beside the labels that training never saw.

    Raises:
        ArtifactError: of another number of images, or of some victims only.
    """
    parts = []
    for victim, one in enumerate(fitted):
        if one.pseudo is None or one.pseudo.shape != labels.shape:
            raise ArtifactError(f"expected {len(labels)} pseudo-labels of every victim, or none of any")
        rows = np.arange(len(labels), dtype=np.int32)
        columns = (np.int32(victim), rows, labels.astype(np.int32), one.pseudo.astype(np.int32))
        parts.append(pd.DataFrame(dict(zip(PSEUDO_COLUMNS, columns, strict=True))))
    return pd.concat(parts, ignore_index=True)
