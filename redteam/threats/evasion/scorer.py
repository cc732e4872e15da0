"""Scoring of perturbed images: enforce the ball, ask the networks about every image afresh, probe them.

`measure` asks the networks; `rescore` computes the same metrics from the tables on disk. Both end in the same pure
function, so they agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from redteam.core.context import Context
from redteam.core.errors import ArtifactError, BudgetExceededError, DataError
from redteam.core.scored import Scored
from redteam.core.stats import wilson
from redteam.learn.perturb import Norm, uniform
from redteam.threats.evasion import metrics, probes
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.budget import allowed, enforce_ball, enforce_fit, enforce_threat
from redteam.threats.evasion.domain import DomainDataset
from redteam.threats.evasion.nouns import Attackable, Fitted, to_tensor
from redteam.threats.evasion.states import answered, pseudo_of, states_of

__all__ = ["enforce_threat", "measure", "rescore"]

# As documented in docs/flags.md.
_NOT_REPRODUCED = 0.01


# ---------------------------------------------------------------- asking


def measure(
    artifact: Perturbed, dataset: DomainDataset, target: Attackable, defended: Attackable, ctx: Context,
    *, replayed: bool = False,
) -> Scored:  # fmt: skip
    """Ask the defended networks about every example as it is and as the attack left it, and probe them.

    An example without a stored image counts as it was. The examples are those of `target`, the undefended one.
    replayed: whether the artifact was made on other networks than these, so that what it claims need not hold.

    Raises:
        ArtifactError, BudgetExceededError: before anything is trained; see `enforce_fit` and `enforce_ball`.
        DataError: a network answers with fewer logits than there are classes.
    """
    examples = target.examples(ctx)
    enforce_fit(artifact, examples)
    moved = enforce_ball(artifact, to_tensor(examples.images, torch.device("cpu")).numpy())
    fitted = defended.fit(ctx)
    if len(fitted) != artifact.victims:
        raise ArtifactError(f"expected images for {len(fitted)} victims, got {artifact.victims}")
    x = to_tensor(examples.images, ctx.device.torch())
    # Networks that draw random numbers draw the same ones whenever this cell is scored.
    with ctx.seeds.child("ask").as_global():
        clean, adversarial = _asked(artifact, fitted, x, len(dataset.classes), ctx)
        evidence = {"outcomes": _outcomes(artifact, examples.labels, clean, adversarial, moved)}
        evidence["probes"] = _probes(artifact, fitted, x, examples.labels, defended, replayed, ctx)
        evidence |= states_of(fitted, defended, x, examples.labels, ctx)
    if any(f.pseudo is not None for f in fitted):
        evidence["pseudo"] = pseudo_of(fitted, defended.split(ctx).target_labels)
    return rescore(artifact, evidence)


def _asked(
    artifact: Perturbed, fitted: Sequence[Fitted], x: torch.Tensor, classes: int, ctx: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes of the examples, (V, n), and of what the attack left at each radius, (V, E, n)."""
    clean = np.zeros((len(fitted), len(x)), np.int64)
    adversarial = np.zeros((len(fitted), len(artifact.eps), len(x)), np.int64)
    for victim, one in enumerate(fitted):
        ctx.report("asking networks", victim, len(fitted))
        logits = answered(one.network, x)
        if logits.shape[1] < classes:
            raise DataError(
                f"expected a network with at least {classes} logits, one a class, got {logits.shape[1]}"
            )
        clean[victim] = logits.argmax(1).cpu().numpy()
        adversarial[victim] = clean[victim]
        own = np.flatnonzero(artifact.where[:, 0] == victim)
        if len(own):
            images = torch.from_numpy(np.ascontiguousarray(artifact.images[own]))
            parts = [images[rows].to(x.device) for rows in probes.batches(images)]
            said = torch.cat([answered(one.network, part).argmax(1).cpu() for part in parts])
            adversarial[victim, artifact.where[own, 1], artifact.where[own, 2]] = said.numpy()
    return clean, adversarial


def _outcomes(
    artifact: Perturbed, labels: np.ndarray, clean: np.ndarray, adversarial: np.ndarray, moved: np.ndarray
) -> pd.DataFrame:
    """One row for each victim, radius and example."""
    shape = adversarial.shape
    distance = np.zeros(shape, np.float32)
    distance[tuple(artifact.where.T)] = moved
    columns = {
        "victim": np.arange(shape[0], dtype=np.int32)[:, None, None], "eps": artifact.eps[:, None],
        "index": artifact.rows.astype(np.int32), "label": labels.astype(np.int32),
        "clean": clean.astype(np.int32)[:, None], "adversarial": adversarial.astype(np.int32),
        "attack": artifact.broken.astype(np.int32), "moved": distance, "forwards": artifact.forwards,
        "backwards": artifact.backwards,
    }  # fmt: skip
    return pd.DataFrame({name: np.broadcast_to(c, shape).ravel() for name, c in columns.items()})


def _probes(
    artifact: Perturbed, fitted: Sequence[Fitted], x: torch.Tensor, labels: np.ndarray, defended: Attackable,
    replayed: bool, ctx: Context,
) -> pd.DataFrame:  # fmt: skip
    """What `probes` measures, and what the run itself says of how its networks came about."""
    y = torch.from_numpy(labels).to(x.device)
    norm: Norm = "L2" if artifact.norm == "L2" else "Linf"
    rows = []
    for victim, one in enumerate(fitted):
        found = probes.probe(one.network, x, y, norm, uniform(ctx.seeds.child("probe", victim), x.device))
        found += [("target-labels-used", float(_told(defended)), 0), ("replayed", float(replayed), 0)]
        rows += [(victim, *row) for row in found]
    return pd.DataFrame(rows, columns=list(probes.PROBE_COLUMNS))


def _told(defended: Attackable) -> bool:
    """Whether labels of the target domain chose the state that is attacked, or the pseudo-labels it learnt from."""
    algorithm = getattr(defended, "algorithm", None)
    refreshed = (getattr(algorithm, "pseudo", "none"), getattr(algorithm, "refresh", "")) == (
        "refreshed", "oracle",
    )  # fmt: skip
    return bool(getattr(defended.config, "select", "") == "oracle" or refreshed)


# ---------------------------------------------------------------- from the tables alone


def rescore(artifact: Perturbed, evidence: Mapping[str, pd.DataFrame]) -> Scored:
    """The metrics of an artifact from its evidence alone.

    Raises:
        ArtifactError: a table or a column is missing, or the outcomes are of another artifact.
        BudgetExceededError: an image was moved beyond its radius.
    """
    _check(artifact, evidence)
    outcomes = evidence["outcomes"]
    estimates = metrics.evasion_metrics(outcomes, artifact.main)
    grouped = metrics.evasion_groups(outcomes, artifact.main, artifact.attacks)
    if "selection" in evidence:
        chosen, by_selector = metrics.selection_metrics(evidence["selection"])
        estimates, grouped = estimates | chosen, grouped | by_selector
    if "history" in evidence:
        estimates |= metrics.validation_metrics(evidence["history"])
    if "pseudo" in evidence:
        estimates |= metrics.pseudo_metrics(evidence["pseudo"])
    return Scored(estimates, evidence, _flags(artifact, evidence), grouped)


def _check(artifact: Perturbed, evidence: Mapping[str, pd.DataFrame]) -> None:
    needed = {"outcomes": metrics.OUTCOME_COLUMNS, "probes": probes.PROBE_COLUMNS}
    further = {
        "selection": metrics.SELECTION_COLUMNS,
        "history": metrics.HISTORY_COLUMNS,
        "pseudo": metrics.PSEUDO_COLUMNS,
    }
    for name, columns in (needed | {k: v for k, v in further.items() if k in evidence}).items():
        if name not in evidence or (missing := set(columns) - set(evidence[name])):
            what = "the table" if name not in evidence else ", ".join(sorted(missing))
            raise ArtifactError(f"expected evidence tables outcomes and probes; of {name}, {what} is missing")
    outcomes, shape = evidence["outcomes"], artifact.broken.shape
    if len(outcomes) != artifact.broken.size or set(outcomes["eps"]) != set(artifact.eps.tolist()):
        raise ArtifactError(
            f"expected outcomes of {shape[0]} victims, {shape[1]} radii and {shape[2]} examples"
        )
    values = int(np.prod(artifact.images.shape[1:]))
    for eps in artifact.eps.tolist():
        part = outcomes[outcomes["eps"] == eps]
        # The table holds float32.
        if part["moved"].max() > allowed(eps, artifact.norm, values) * (1 + 1e-6):
            raise BudgetExceededError(f"an image was moved by {part['moved'].max():g}, the radius is {eps:g}")


def _flags(artifact: Perturbed, evidence: Mapping[str, pd.DataFrame]) -> tuple[str, ...]:
    outcomes, table = evidence["outcomes"], evidence["probes"]
    replayed = bool(table.loc[table["name"] == "replayed", "value"].any())
    claimed, held = metrics.claims(outcomes)
    gain = metrics.black_box_gain(outcomes, artifact.main, artifact.attacks)
    own = {
        "not-reproduced": not replayed and held > _NOT_REPRODUCED * claimed,
        "black-box-beats-white-box": gain is not None and gain.low is not None and gain.low > 0,
        "not-monotone": bool(metrics.rises(outcomes)),
        "ensemble-cut-short": bool(artifact.notes.get("refused")),
        "accuracy-at-chance": _at_chance(outcomes, table, artifact.main),
    }
    return (*probes.flags(table), *(name for name, up in own.items() if up))


def _at_chance(outcomes: pd.DataFrame, probed: pd.DataFrame, main: float) -> bool:
    """Whether Wilson's interval of some victim's own accuracy on the clean images reaches 1/K."""
    classes = probed.loc[probed["name"] == "classes", "value"].max()
    right = metrics.correct(metrics.by_radius(outcomes)[main])
    return any(wilson(int(own.sum()), len(own))[0] <= 1 / classes for own in right)
