"""Scoring of poison: enforce the budget, train victims afresh, ask them about every test image.

`measure` runs the victims; `rescore` computes the same metrics from the tables on disk. Both end in
the same pure function, so they agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.context import Context
from redteam.core.errors import ArtifactError, BudgetExceededError
from redteam.core.scored import Scored
from redteam.core.stats import Estimate
from redteam.data.nouns import ImageDataset, ImageSet
from redteam.learn.nouns import Classifier, TrainingSet
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.filter_metrics import filter_groups, filter_metrics, retrain_cost
from redteam.threats.poisoning.filtering import FilteredClassifier
from redteam.threats.poisoning.metrics import OUTCOME_COLUMNS, poisoning_metrics
from redteam.threats.poisoning.nouns import Trainable

# Thresholds of the flags, as documented in docs/flags.md.
_COLLAPSED = 0.5
_HIGH_BASE = 0.2


def poisoned_training_set(artifact: Poison, train: ImageSet) -> TrainingSet:
    """The data the victim is fitted on.

    Raises:
        ArtifactError: the artifact does not fit the training set.
    """
    n, classes = len(train), len(train.classes)
    targets = artifact.targets
    hard = targets.ndim == 1 and targets.dtype == np.int64
    soft = targets.ndim == 2 and targets.dtype == np.float32 and targets.shape[1] == classes
    if len(targets) != n or not (hard or soft):
        raise ArtifactError(
            f"expected targets ({n},) int64 or ({n}, {classes}) float32, "
            f"got {targets.shape} {targets.dtype}; the artifact belongs to another data set"
        )
    if hard and not 0 <= targets.min() <= targets.max() < classes:
        raise ArtifactError(f"expected labels 0 to {classes - 1}, got {targets.min()} to {targets.max()}")
    images = train.images
    if artifact.images is not None:
        images = images.copy()
        images[artifact.indices] = artifact.images
    return TrainingSet(images, targets)


def changes(artifact: Poison, train: ImageSet) -> pd.DataFrame:
    """One row for each training row that was changed: `index`, `true`, `given`, `image_changed`.

    A soft label counts as changed if it is not the one-hot true label; `given` is its largest class.
    """
    true = train.labels
    if artifact.targets.ndim == 1:
        given, changed = artifact.targets, artifact.targets != true
    else:
        given = artifact.targets.argmax(1).astype(np.int64)
        changed = artifact.targets[np.arange(len(true)), true] < 1.0
    image_changed = np.zeros(len(true), bool)
    if artifact.images is not None:
        before = train.images[artifact.indices]
        differs = (before != artifact.images).any(axis=(1, 2, 3))
        image_changed[artifact.indices[differs]] = True
    rows = np.flatnonzero(changed | image_changed)
    return pd.DataFrame(
        {"index": rows, "true": true[rows], "given": given[rows], "image_changed": image_changed[rows]}
    )


def enforce_budget(table: pd.DataFrame, budget: int) -> None:
    """Raise `BudgetExceededError` if more rows were changed than the artifact's budget."""
    if len(table) > budget:
        raise BudgetExceededError(f"the artifact changes {len(table)} training rows; its budget is {budget}")


def enforce_threat(artifact: Poison, config: Mapping[str, Any], access: Sequence[str]) -> None:
    """Hold an artifact to what its cell planned: the scorer takes nothing on the attack's word.

    config: the attack's resolved config; its `budget`, `source`, `target_class` and `trigger` bind, where
    it has them. access: what the threat lets the attacker touch.

    Raises:
        BudgetExceededError: another budget, class or trigger, or changed images under a threat of labels.
    """
    enforce_goal(artifact, config)
    if artifact.images is not None and "training images" not in access:
        raise BudgetExceededError(f"the artifact changes images; its threat allows: {', '.join(access)}")


def enforce_goal(artifact: Poison | Clients, config: Mapping[str, Any], **more: Any) -> None:
    """Raise `BudgetExceededError` for another budget, class or trigger than the cell planned. more: further claims."""
    trigger = artifact.trigger
    claims = {
        "budget": artifact.budget, "source": artifact.source_class, "target_class": artifact.target_class,
        "trigger": trigger["name"], **more,
    }  # fmt: skip
    for name, knob in (("strength", "trigger_strength"), ("cycles", "trigger_cycles")):
        if name in trigger and config.get(knob) is not None:
            claims[knob] = trigger[name]
    for name, came in claims.items():
        if name in config and config[name] != came:
            raise BudgetExceededError(f"the cell planned {name} {config[name]}, the artifact says {came}")


def _answers(
    model: Classifier, test: ImageSet, artifact: Poison, ctx: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes of the test images, plain and triggered, (N,) each."""
    rows = np.arange(len(test))
    plain = model.logits(test.images).argmax(1)
    triggered = model.logits(triggers.apply(artifact.trigger, test.images, rows)).argmax(1)
    return plain, triggered


def measure(
    artifact: Poison,
    dataset: ImageDataset,
    clean_target: Trainable,
    target: Trainable,
    victims: int,
    ctx: Context,
) -> Scored:
    """Train `victims` victims on the poison and as many references on clean labels, and ask them all.

    target: the (defended) target that meets the poison. clean_target: the undefended one, for the
    reference. Victim i and reference i start from the same seed, which no attack can influence.
    """
    flips = changes(artifact, dataset.train)
    enforce_budget(flips, artifact.budget)
    poisoned = poisoned_training_set(artifact, dataset.train)
    clean = TrainingSet(dataset.train.images, dataset.train.labels)
    seeds = [ctx.seeds.child("victim", i).integer() for i in range(victims)]
    references = clean_target.fit(clean, seeds, ctx)
    fitted = target.fit(poisoned, seeds, ctx)
    tables = []
    for index, (model, reference) in enumerate(zip(fitted, references, strict=True)):
        plain, triggered = _answers(model, dataset.test, artifact, ctx)
        base_plain, base_triggered = _answers(reference, dataset.test, artifact, ctx)
        columns = (
            np.full(len(dataset.test), index), np.arange(len(dataset.test)), dataset.test.labels,
            plain, triggered, base_plain, base_triggered,
        )  # fmt: skip
        table = {k: v.astype(np.int32) for k, v in zip(OUTCOME_COLUMNS, columns, strict=True)}
        tables.append(pd.DataFrame(table))
    evidence = {"outcomes": pd.concat(tables, ignore_index=True), "flips": flips}
    if any(isinstance(model, FilteredClassifier) for model in fitted):
        harmful = flips["given"] != flips["true"]
        harmful |= flips["image_changed"] & (flips["given"] == artifact.target_class)
        evidence |= _verdicts(fitted, references, poisoned, flips["index"].to_numpy()[harmful.to_numpy(bool)])
    return rescore(artifact, evidence)


def _verdicts(
    fitted: Sequence[Classifier], references: Sequence[Classifier], poisoned: TrainingSet, changed: np.ndarray
) -> dict[str, pd.DataFrame]:
    """What filters made of the training rows, one row for each (victim, row), and what each victim took to train.

    changed: rows that teach the goal: with a wrong label, or stamped under the target's. Soft labels that keep the
    true class largest, and stamped rows that keep their label to cover others, are not what a filter is to find.
    """
    labels = poisoned.targets if poisoned.targets.ndim == 1 else poisoned.targets.argmax(1)
    bad = np.zeros(len(labels), bool)
    bad[changed] = True
    tables, costs = [], []
    for index, (model, reference) in enumerate(zip(fitted, references, strict=True)):
        if not isinstance(model, FilteredClassifier):
            continue
        found = model.verdicts
        columns = {
            "victim": np.full(len(bad), index, np.int32), "index": np.arange(len(bad), dtype=np.int32),
            "given": labels.astype(np.int32), "poisoned": bad, "removed": found.removed,
            "score": found.scores.astype(np.float32),
        }  # fmt: skip
        tables.append(pd.DataFrame(columns))
        costs.append((index, found.trained, int(getattr(reference, "trained", 0))))
    return {
        "filter": pd.concat(tables, ignore_index=True),
        "costs": pd.DataFrame(costs, columns=["victim", "trained", "base_trained"]),
    }


def rescore(artifact: Poison, evidence: Mapping[str, pd.DataFrame]) -> Scored:
    """The metrics of an artifact from its evidence alone.

    Raises:
        ArtifactError: a table is missing. BudgetExceededError: see `enforce_budget`.
    """
    missing = {"outcomes", "flips"} - set(evidence)
    if missing:
        raise ArtifactError(
            f"expected evidence tables outcomes and flips; {', '.join(sorted(missing))} is missing"
        )
    enforce_budget(evidence["flips"], artifact.budget)
    outcomes, flips = evidence["outcomes"], evidence["flips"]
    metrics = poisoning_metrics(outcomes, artifact.source_class, artifact.target_class)
    share = len(flips) / len(artifact.targets)
    metrics["poison_rate"] = Estimate(share, None, None, len(artifact.targets), 1, "exact count")
    grouped: dict[tuple[str, str], Estimate] = {}
    if "filter" in evidence:
        metrics |= filter_metrics(evidence["filter"], within=("given",))
        metrics |= retrain_cost(evidence["costs"]) if "costs" in evidence else {}
        grouped = filter_groups(evidence["filter"], "given")
    return Scored(metrics, evidence, _flags(metrics, artifact, len(flips)), grouped)


def _flags(metrics: Mapping[str, Estimate], artifact: Poison, changed: int) -> tuple[str, ...]:
    flags = []
    if metrics["cta"].value < _COLLAPSED * metrics["base_cta"].value:
        flags.append("clean-accuracy-collapsed")
    if metrics["base_pta"].value > _HIGH_BASE:
        flags.append("high-base-rate")
    lift = metrics["trigger_lift"]
    if changed and lift.low is not None and lift.low <= 0:
        flags.append("no-trigger-effect")
    if changed < artifact.budget:
        flags.append("under-budget")
    return tuple(flags)
