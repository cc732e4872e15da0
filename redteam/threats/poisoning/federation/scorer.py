"""Scoring of malicious clients: enforce what they may do, run federations afresh, ask every snapshot.

`measure` runs the federations; `rescore` computes the same metrics from the tables on disk. Both end in the same
pure function, so they agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.context import Context
from redteam.core.errors import ArtifactError, BudgetExceededError
from redteam.core.scored import Scored
from redteam.core.stats import Estimate
from redteam.data.nouns import ImageDataset, ImageSet
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation import metrics
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.conduct import Conduct
from redteam.threats.poisoning.federation.holdings import check
from redteam.threats.poisoning.federation.nouns import FederatedRun, Federation, Snapshot
from redteam.threats.poisoning.metrics import OUTCOME_COLUMNS
from redteam.threats.poisoning.scorer import enforce_goal

TABLES = ("outcomes", "rounds", "clients", "notes")
# Thresholds of the flags, as documented in docs/flags.md.
_COLLAPSED = 0.5
_HIGH_BASE = 0.2
# What the threat must let the attacker touch for its clients to act otherwise than the honest ones, any one of these.
_CONDUCT_NEEDS = {
    "epochs": ("local epochs", "model updates"),
    "scale": ("model updates",),
    "bound": ("model updates",),
    "rate": ("model updates",),
    "report": ("reports",),
}


# ---------------------------------------------------------------- the threat


def enforce_threat(artifact: Clients, config: Mapping[str, Any], access: Sequence[str]) -> None:
    """Hold an artifact to what its cell planned: the scorer takes nothing on the attack's word.

    config: the attack's resolved config; its budget, source, target_class, trigger, presence and what it says of
    conduct bind, where it has them. access: what the threat lets the attacker touch.

    Raises:
        BudgetExceededError: more clients than the budget; another budget, class, trigger, presence or conduct; or
            labels, images, updates or reports changed under a threat that does not let it.
        ArtifactError: a conduct that is none.
    """
    _enforce_ids(artifact)
    enforce_goal(artifact, config, presence=artifact.presence)
    planned_conduct(Conduct.of(artifact.conduct), config)
    allowed = ", ".join(access)
    if len(artifact.ids) and "training labels" not in access:
        raise BudgetExceededError(f"the artifact gives clients labels; its threat allows: {allowed}")
    if artifact.stamped.any() and "training images" not in access:
        raise BudgetExceededError(f"the artifact stamps images; its threat allows: {allowed}")
    conduct, honest = Conduct.of(artifact.conduct), Conduct()
    for name in (f.name for f in fields(Conduct)):
        came = getattr(conduct, name)
        if came != getattr(honest, name) and not set(_CONDUCT_NEEDS[name]) & set(access):
            raise BudgetExceededError(
                f"the artifact's clients act with {name} {came}; its threat allows: {allowed}"
            )


# Of the strategies of an attack that adapts, the conduct that each goes with; anything else is another attack.
_STRATEGIES = {"rate": ("rate", "epochs"), "covariance": ("epochs",), "forged": ("report", "epochs")}


def planned_conduct(conduct: Conduct, config: Mapping[str, Any]) -> None:
    """Raise `BudgetExceededError` for a conduct that is not the one its cell planned.

    A part that the config has a knob for is as that says; under a strategy, what this strategy has no use for is an
    honest client's, and `forged` reports from clean data. Other parts are bound by the threat's access alone.
    """
    honest, strategy = Conduct(), config.get("strategy")
    planned = {f.name: config[f.name] for f in fields(Conduct) if f.name in config}
    if strategy in _STRATEGIES:
        idle = [f.name for f in fields(Conduct) if f.name not in _STRATEGIES[strategy]]
        planned |= {name: getattr(honest, name) for name in idle}
        planned |= {"report": "clean"} if strategy == "forged" else {}
    for name, wanted in planned.items():
        if (came := getattr(conduct, name)) != wanted:
            raise BudgetExceededError(
                f"the cell planned clients with {name} {wanted}, the artifact's have {came}"
            )


def _enforce_ids(artifact: Clients) -> None:
    """Raise `BudgetExceededError` for more clients than the budget, `ArtifactError` for one named twice."""
    if len(artifact.ids) > artifact.budget:
        raise BudgetExceededError(
            f"the artifact holds {len(artifact.ids)} clients; its budget is {artifact.budget}"
        )
    if len(np.unique(artifact.ids)) != len(artifact.ids):
        raise ArtifactError("expected every malicious client once; the artifact names one twice")


def enforce_fit(artifact: Clients, target: Federation) -> None:
    """Raise `ArtifactError` for an artifact that is not for this federation."""
    ids, clients = artifact.ids, len(target.rows)
    if len(ids) and not 0 <= ids.min() <= ids.max() < clients:
        raise ArtifactError(f"expected clients 0 to {clients - 1}, got {ids.min()} to {ids.max()}")
    check(artifact, target.rows, len(target.train.classes))


# ---------------------------------------------------------------- running and asking


def measure(
    artifact: Clients,
    dataset: ImageDataset,
    clean_target: Federation,
    target: Federation,
    victims: int,
    ctx: Context,
) -> Scored:
    """Run `victims` federations with the malicious clients and as many of honest ones, and ask all snapshots.

    target: the (defended) federation that meets them. clean_target: the undefended one, for the reference. Victim
    i and reference i start from the same seed, which no attack can influence.

    Raises:
        ArtifactError, BudgetExceededError: before anything is trained; see `enforce_fit`.
    """
    _enforce_ids(artifact)
    enforce_fit(artifact, clean_target)
    seeds = [ctx.seeds.child("victim", i).integer() for i in range(victims)]
    references = clean_target.fit(None, seeds, ctx)
    # Without a malicious client it is the run of honest ones, which an undefended cell need not train twice.
    runs = target.fit(artifact if len(artifact.ids) else None, seeds, ctx)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for index, (run, reference) in enumerate(zip(runs, references, strict=True)):
        outcomes, rounds = _asked(artifact, dataset.test, target, run, reference, ctx)
        for name, table in (
            ("outcomes", outcomes), ("rounds", rounds), ("clients", run.clients),
            ("notes", _with_costs(run, reference)),
        ):  # fmt: skip
            tables[name].append(_of_victim(table, index))
    evidence = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    return rescore(artifact, evidence)


def _of_victim(table: pd.DataFrame, victim: int) -> pd.DataFrame:
    return pd.concat(
        [pd.Series(np.full(len(table), victim, np.int32), table.index, name="victim"), table], axis=1
    )


def _with_costs(run: FederatedRun, reference: FederatedRun) -> pd.DataFrame:
    """The run's notes, and the images that it and its reference trained on, at their last round."""
    last = run.snapshots[-1].round
    costs = [
        (last, metrics.TRAINED, float(run.trained)),
        (last, metrics.BASE_TRAINED, float(reference.trained)),
    ]
    added = pd.DataFrame(costs, columns=list(metrics.NOTE_COLUMNS[1:]))
    return pd.concat([run.notes, added], ignore_index=True) if len(run.notes) else added


def _asked(
    artifact: Clients, test: ImageSet, target: Federation, run: FederatedRun, reference: FederatedRun, ctx: Context
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """What the last snapshots say of every test image, and what all snapshots say, counted."""
    rounds, numbers = [], [s.round for s in run.snapshots]
    if numbers != [s.round for s in reference.snapshots]:
        raise ValueError("expected snapshots of a run and its reference after the same rounds")
    answers: dict[str, np.ndarray] = {}
    for done, (own, base) in enumerate(zip(run.snapshots, reference.snapshots, strict=True)):
        ctx.report("asking snapshots", done, len(numbers))
        answers = _answers(artifact, test, target, own, base)
        rounds.append({"round": own.round, **_counts(artifact, answers)})
    outcomes = pd.DataFrame({k: answers[k].astype(np.int32) for k in OUTCOME_COLUMNS[1:]})
    return outcomes, pd.DataFrame(rounds, columns=list(metrics.ROUND_COLUMNS[1:]))


def _answers(
    artifact: Clients, test: ImageSet, target: Federation, own: Snapshot, base: Snapshot
) -> dict[str, np.ndarray]:
    """Predicted classes of the test images, plain and triggered, (N,) each.

    The model after r rounds meets images as they looked in the last of them, r - 1: it has trained on no later
    ones. The trigger is stamped after the drift, as malicious clients stamp it.
    """
    rows = np.arange(len(test))
    plain = target.at(test.images, max(0, own.round - 1))
    stamped = triggers.apply(artifact.trigger, plain, rows)
    said = [s.model.logits(images).argmax(1) for s in (own, base) for images in (plain, stamped)]
    return dict(zip(OUTCOME_COLUMNS[1:], (rows, test.labels, *said), strict=True))


def _counts(artifact: Clients, answers: Mapping[str, np.ndarray]) -> dict[str, int]:
    """One row of the table of rounds, but for the round. The target class's own images are no hits."""
    label, goal = answers["label"], artifact.target_class
    others = label != goal
    sources = others if artifact.source_class < 0 else label == artifact.source_class
    hit, base_hit = answers["triggered"] == goal, answers["base_triggered"] == goal
    counts = {
        "n": np.ones(len(label), bool), "correct": answers["clean"] == label, "others": others,
        "hits": hit & others, "sources": sources, "source_hits": hit & sources,
        "base_correct": answers["base_clean"] == label, "base_hits": base_hit & others,
        "base_source_hits": base_hit & sources,
    }  # fmt: skip
    return {name: int(which.sum()) for name, which in counts.items()}


# ---------------------------------------------------------------- from the tables alone


def rescore(artifact: Clients, evidence: Mapping[str, pd.DataFrame]) -> Scored:
    """The metrics of an artifact from its evidence alone.

    Raises:
        ArtifactError: a table or a column is missing, or a client is named twice. BudgetExceededError: more clients
            than the budget.
    """
    _enforce_ids(artifact)
    columns = dict(
        zip(
            TABLES,
            (OUTCOME_COLUMNS, metrics.ROUND_COLUMNS, metrics.CLIENT_COLUMNS, metrics.NOTE_COLUMNS),
            strict=True,
        )
    )
    for name, wanted in columns.items():
        if name not in evidence or (missing := set(wanted) - set(evidence[name])):
            what = "the table" if name not in evidence else f"{', '.join(sorted(missing))}"
            raise ArtifactError(f"expected evidence tables {', '.join(TABLES)}; of {name}, {what} is missing")
    outcomes, rounds, clients, notes = (evidence[name] for name in TABLES)
    estimates = metrics.federation_metrics(
        outcomes, rounds, clients, notes, artifact.source_class, artifact.target_class
    )
    return Scored(estimates, evidence, _flags(estimates, artifact, clients, notes), metrics.by_round(rounds))


def _flags(
    estimates: Mapping[str, Estimate], artifact: Clients, clients: pd.DataFrame, notes: pd.DataFrame
) -> tuple[str, ...]:
    lift = estimates["trigger_lift"]
    flags = {
        "clean-accuracy-collapsed": estimates["cta"].value < _COLLAPSED * estimates["base_cta"].value,
        "high-base-rate": estimates["base_pta"].value > _HIGH_BASE,
        "no-trigger-effect": len(artifact.ids) > 0 and lift.low is not None and lift.low <= 0,
        "under-budget": len(artifact.ids) < artifact.budget,
        "updates-rejected": bool(clients["rejected"].any()),
        "nothing-kept": bool((notes["name"] == "nothing-kept").any()),
        "no-shadow": bool((notes["name"] == "no-shadow").any()),
    }
    return tuple(name for name, raised in flags.items() if raised)
