"""Rounds of a federation without a federation: updates made by hand, clients that answer nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from redteam.core.seeding import SeedPath
from redteam.threats.poisoning.federation.nouns import MakeRule, Round, Setting


class Silent:
    """Clients that a rule under test should not ask."""

    classes = 10

    def train(self, params, chosen):
        raise AssertionError("a rule on updates asks no client")

    represent = accuracy = train


def round_of(
    updates: Any, *, weights: Any = None, clients: Any = None, index: int = 0, seed: int = 0, **more: Any
) -> Round:
    """A round of K updates (K, P), from parameters zero, clients 0 to K - 1 of weight 1."""
    updates = torch.as_tensor(updates, dtype=torch.float32)
    count = len(updates)
    return Round(
        index=index, params=more.pop("params", torch.zeros(updates.shape[1])),
        clients=np.arange(count) if clients is None else np.asarray(clients, np.int64), updates=updates,
        weights=torch.ones(count) if weights is None else torch.as_tensor(weights, dtype=torch.float32),
        learner=Silent(), generator=SeedPath(seed).torch(), **more,
    )  # fmt: skip


@dataclass
class FakeFederation:
    """What `run` of a rule needs of its target; `rules` are those that were put before it."""

    clients: int = 100
    rules: list[tuple[str, Mapping[str, Any], MakeRule]] = field(default_factory=list)
    kind: str = "federation"

    @property
    def config(self) -> Any:
        return SimpleNamespace(clients=self.clients)

    def behind(self, name: str, settings: Mapping[str, Any], make: MakeRule) -> FakeFederation:
        return FakeFederation(self.clients, [*self.rules, (name, settings, make)])

    def rule(self, per_round: int = 50) -> Any:
        """The last rule, made for a run."""
        return self.rules[-1][2](Setting(classes=10, per_round=per_round, rounds=300, server_lr=1.0))


def planted(
    count: int,
    malicious: int,
    size: int,
    *,
    scale: float = 1.0,
    length: float = 1.0,
    spread: float = 0.2,
    seed: int = 0,
) -> tuple[torch.Tensor, np.ndarray]:
    """Updates (count, size): a common direction of length 1 plus noise of length about `spread`; the first
    `malicious` of them point along another direction instead, times `scale`. Returns updates and who is malicious."""
    rng = np.random.default_rng(seed)
    common, goal = np.linalg.qr(rng.normal(size=(size, 2)))[0].T * length
    noise = rng.normal(size=(count, size)) * spread / np.sqrt(size)
    who = np.arange(count) < malicious
    made = np.where(who[:, None], goal * scale, common) + noise
    return torch.from_numpy(made).float(), who


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    """A random orthogonal (size, size) matrix."""
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]).float()


def removed(round: Round) -> np.ndarray:
    """(K,) bool: clients without weight."""
    return (round.weights == 0).numpy()


def noted(round: Round) -> dict[str, float]:
    """The notes as a dict."""
    return dict(round.notes)
