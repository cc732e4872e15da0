"""A run of a federation: sample clients, train them, let the server's rules judge, step, and write it all down."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from redteam.core.context import Context
from redteam.core.errors import RedteamError
from redteam.core.seeding import SeedPath
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.config import FederationConfig
from redteam.threats.poisoning.federation.holdings import Holdings
from redteam.threats.poisoning.federation.learner import RoundLearner, Setup, not_finite
from redteam.threats.poisoning.federation.nouns import Round, Rules, aggregated


def sample(
    clients: int, per_round: int, malicious: Clients | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Who takes part in a round: ids (K,) ascending, without repetition, and which are malicious, (K,) bool.

    Under presence `fixed` their share of the round is their share of all clients, rounded; under `drawn`
    everybody is drawn alike.
    """
    ids = malicious.ids if malicious is not None else np.zeros(0, np.int64)
    if malicious is None or not len(ids) or malicious.presence == "drawn":
        chosen = rng.choice(clients, per_round, replace=False)
    else:
        others = np.setdiff1d(np.arange(clients), ids)
        count = round(len(ids) / clients * per_round)
        count = min(max(count, per_round - len(others)), len(ids))
        parts = rng.choice(ids, count, replace=False), rng.choice(others, per_round - count, replace=False)
        chosen = np.concatenate(parts)
    chosen = np.sort(chosen).astype(np.int64)
    return chosen, np.isin(chosen, ids)


@dataclass
class _Log:
    """Rows of the run's tables, and its snapshots. Overrides that did not change are kept once."""

    clients: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    notes: list[tuple[int, str, float]] = field(default_factory=list)
    snapshots: list[tuple[int, np.ndarray]] = field(default_factory=list)
    overrides: list[np.ndarray] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    trained: int = 0
    _last: dict[int, int] = field(default_factory=dict)

    def round(self, before: Round, after: Round, acting: np.ndarray, rejected: torch.Tensor) -> None:
        """One row for each client of a round."""
        total = after.weights.sum()
        share = after.weights / total if total > 0 else torch.zeros_like(after.weights)
        removed = after.weights == 0
        if after.removed is not None:
            removed = removed | after.removed
        # What is rejected for not being finite was no rule's doing.
        removed = removed & ~rejected.to(removed.device)
        scores = after.scores if after.scores is not None else torch.full_like(after.weights, torch.nan)
        columns = {
            "round": np.full(len(before.clients), before.index), "client": before.clients, "malicious": acting,
            "weight": _array(share, np.float32), "removed": _array(removed, bool),
            "score": _array(scores, np.float32), "rejected": _array(rejected, bool),
        }  # fmt: skip
        for name, column in columns.items():
            self.clients[name].append(column)
        self.notes += [(before.index, name, float(value)) for name, value in after.notes]

    def snapshot(self, rounds: int, params: torch.Tensor, rules: Rules) -> None:
        """The model after so many rounds."""
        for label, other in rules.overrides().items():
            now = _array(other, np.float32)
            last = self._last.get(label)
            if last is None or not np.array_equal(self.overrides[last], now):
                self._last[label] = last = len(self.overrides)
                self.overrides.append(now)
            self.places.append((len(self.snapshots), int(label), last))
        self.snapshots.append((rounds, _array(params, np.float32)))

    def arrays(self, size: int) -> dict[str, np.ndarray]:
        """Everything, as a stage keeps it."""
        rounds, names, values = zip(*self.notes, strict=True) if self.notes else ((), (), ())
        return {
            "snapshots": np.stack([p for _, p in self.snapshots]),
            "snapshot_rounds": np.array([r for r, _ in self.snapshots], np.int64),
            "overrides": np.stack(self.overrides) if self.overrides else np.zeros((0, size), np.float32),
            "override_places": np.array(self.places, np.int64).reshape(-1, 3),
            "notes.round": np.array(rounds, np.int64),
            "notes.name": np.array(names, np.str_),
            "notes.value": np.array(values, np.float64),
            "trained": np.array(self.trained),
            **{f"clients.{name}": np.concatenate(parts) for name, parts in self.clients.items()},
        }


def _array(tensor: torch.Tensor, dtype: type) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy().astype(dtype)
    return array


def run(
    config: FederationConfig,
    setup: Setup,
    holdings: Holdings,
    malicious: Clients | None,
    rules: Rules,
    seeds: SeedPath,
    ctx: Context,
) -> dict[str, np.ndarray]:
    """All rounds, from `setup.network`'s own parameters.

    Updates that are not finite are rejected before any rule sees them (weight 0, zeros in their place). Returns
    arrays: snapshots (E, P) and their rounds, overrides, the clients' table, the notes, and the images trained.
    """
    params = setup.network.flat().to(ctx.device.torch())
    velocity = torch.zeros_like(params)
    server, log = seeds.child("server").torch(), _Log()
    everyone = torch.ones(config.per_round, dtype=torch.bool, device=params.device)
    for index in range(config.rounds):
        path = seeds.child("round", index)
        learner, clients, acting = _learner(config, setup, holdings, malicious, index, path)
        updates = learner.updates(params, everyone)
        rejected = not_finite(updates)
        updates[rejected] = 0
        before = Round(
            index=index, params=params, clients=clients, updates=updates, weights=(~rejected).float(),
            learner=learner, generator=server,
        )  # fmt: skip
        after = _judged(rules, before, rejected)
        velocity = config.server_momentum * velocity + aggregated(after)
        params = params + config.server_lr * velocity
        log.round(before, after, acting, rejected)
        log.trained += learner.images_trained
        if (index + 1) % config.snapshot_every == 0 or index + 1 == config.rounds:
            log.snapshot(index + 1, params, rules)
        ctx.report("federation", index + 1, config.rounds)
    return log.arrays(setup.network.size)


def _learner(
    config: FederationConfig,
    setup: Setup,
    holdings: Holdings,
    malicious: Clients | None,
    index: int,
    path: SeedPath,
) -> tuple[RoundLearner, np.ndarray, np.ndarray]:
    """The round's clients, their ids, and which of them act against the goal, (K,) bool."""
    rng = path.child("clients").numpy()
    clients, bad = sample(config.clients, config.per_round, malicious, rng)
    present = np.flatnonzero(bad)
    acting = np.zeros(len(clients), bool)
    acting[rng.permutation(present)[: setup.conduct.acting(len(present), rng)]] = True
    trained = holdings.of(clients, acting, index)
    forged = setup.conduct.report == "clean" and acting.any()
    shown = holdings.of(clients, np.zeros_like(acting), index) if forged else trained
    mask = torch.from_numpy(acting).to(trained.labels.device)
    learner = RoundLearner(setup, trained, shown, mask, path.child("order").torch())
    return learner, clients, acting


def _judged(rules: Rules, before: Round, rejected: torch.Tensor) -> Round:
    """The round after all rules, with notes of what was rejected and of nothing being kept.

    Raises:
        RedteamError: weights below zero or not finite.
    """
    after = rules(before)
    if not bool((after.weights >= 0).all() and after.weights.isfinite().all()):
        raise RedteamError(
            f"round {before.index}: a rule gave weights {after.weights.tolist()}; expected finite ones from 0 on"
        )
    notes, count = list(after.notes), int(rejected.sum())
    if count:
        notes.append(("rejected", float(count)))
    step = aggregated(after)
    unusable = not bool(step.isfinite().all())
    if unusable or (after.mean is None and not after.weights.sum() > 0):
        notes.append(("nothing-kept", 1.0))
        after = replace(after, mean=torch.zeros_like(step), weights=torch.zeros_like(after.weights))
    else:
        after = replace(after, mean=step)
    return replace(after, notes=tuple(notes))
