"""The nouns of federated training: what a server sees of a round, what its rules hand back, what a run leaves.

A server sees updates, the clients' numbers and what clients report; it knows neither their images nor who is
malicious. A defence is a rule (or several, in order) between the clients' updates and the next model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from redteam.learn.nouns import Classifier
from redteam.threats.poisoning.nouns import Trained

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from redteam.core.context import Context
    from redteam.threats.poisoning.federation.artifact import Clients


class Learner(Protocol):
    """What a server may ask of the K clients of a round. A malicious client answers as it likes."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    def train(self, params: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Local training from other parameters. params: (P,); chosen: (K,) bool.

        Returns (K, P) updates; rows of clients that were not chosen are zero.
        """

    def represent(self, params: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean representation, under `params`, of each client's samples that it labels `label`.

        Returns (K, D) float32 and the samples it is the mean of, (K,) int64; rows without samples are NaN.
        """

    def accuracy(self, params: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each client's own samples with `label`: how many the model gets right, and how many there are, (K,)."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round as the server sees it, handed from rule to rule.

    index: from 0. params: (P,) what the clients began with. clients: (K,) int64. updates: (K, P), local minus
    global parameters, all finite. weights: (K,) float32, zero for a client that is left out; the next step
    is their weighted mean over the sum of weights (nothing moves if that is zero) unless `mean` is set.
    mean: (P,) the aggregated update, where a rule makes it itself. scores: (K,) float32 suspicion by the
    last filter, higher is more suspicious, NaN where none was given. generator: the server's own stream, on
    the CPU. removed: (K,) bool, clients that a rule leaves out of a model of its own, whatever their weight.
    notes: (name, value) pairs for the run's log.
    """

    index: int
    params: torch.Tensor
    clients: np.ndarray
    updates: torch.Tensor
    weights: torch.Tensor
    learner: Learner
    generator: torch.Generator
    mean: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    removed: torch.Tensor | None = None
    notes: tuple[tuple[str, float], ...] = ()


def aggregated(round: Round) -> torch.Tensor:
    """The (P,) update that a round ends with: `mean` if a rule set it, else the weighted mean; zeros without weight."""
    if round.mean is not None:
        return round.mean
    total = round.weights.sum()
    if not total > 0:
        return round.updates.new_zeros(round.updates.shape[1])
    share = round.weights / total
    return share.to(round.updates.dtype) @ round.updates


class Rule(Protocol):
    """One rule of a server, for one run; it may keep state from round to round."""

    def __call__(self, round: Round) -> Round:
        """The round with other weights, updates, mean, scores or notes."""


@runtime_checkable
class Overriding(Protocol):
    """A rule that also answers at inference: where the model says a label, that label's override answers."""

    def overrides(self) -> Mapping[int, torch.Tensor]:
        """Parameters (P,) by label; empty while there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a rule is told when a run begins. per_round: clients sampled; rounds: of the whole run."""

    classes: int
    per_round: int
    rounds: int
    server_lr: float


MakeRule = Callable[[Setting], Rule]


@dataclass(frozen=True)
class Snapshot:
    """The model after `round` rounds (overrides included), as it would answer then."""

    round: int
    model: Classifier


@dataclass(frozen=True)
class FederatedRun:
    """What one run leaves.

    snapshots: in order of rounds, the last one the final model. clients: one row for each client of each
    round: `round` (from 0), `client`, `malicious` (it acted against the goal in that round), `weight` (the
    share it got, before server momentum), `removed` (a rule left it out: no weight, or `Round.removed`),
    `score` (NaN: none), `rejected` (its update was not finite). notes: `round`, `name`, `value`. trained: images
    put through training steps on all clients.
    """

    snapshots: tuple[Snapshot, ...]
    clients: pd.DataFrame
    notes: pd.DataFrame
    trained: int


@runtime_checkable
class Federation(Trained, Protocol):
    """A trainable of the kind `federation`, whose data lives with clients, over rounds.

    train: all training images; which client holds which is `rows`. config: a `config.FederationConfig`.
    """

    @property
    def rows(self) -> np.ndarray:
        """(N, n) int64: the rows of `train` that each of N clients holds."""

    def fit(self, malicious: Clients | None, seeds: Sequence[int], ctx: Context) -> Sequence[FederatedRun]:
        """One run per seed. malicious: None for a federation of honest clients."""

    def behind(self, name: str, settings: Mapping[str, Any], make: MakeRule) -> Federation:
        """The same federation with one more rule, applied after those it has.

        name: with the version of its code, and settings: what its fingerprint says of it.
        """

    def at(self, images: np.ndarray, round: int) -> np.ndarray:
        """Images (N, H, W, C) uint8 as they look at `round`, where the distribution drifts."""


@dataclass(frozen=True)
class Rules:
    """Rules in order, as one. Overrides of later rules win."""

    rules: tuple[Rule, ...] = field(default_factory=tuple)

    def __call__(self, round: Round) -> Round:
        """Each rule in turn."""
        for rule in self.rules:
            round = rule(round)
        return round

    def overrides(self) -> dict[int, torch.Tensor]:
        """Of all rules that have any."""
        out: dict[int, torch.Tensor] = {}
        for rule in self.rules:
            if isinstance(rule, Overriding):
                out.update(rule.overrides())
        return out
