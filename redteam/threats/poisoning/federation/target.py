"""The target `federation`: training data that clients hold, and a server that never sees them.

Remembered, not read: federated averaging (McMahan et al., 2017). The setting is that of [wang2022shadow].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.config import build, to_json
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.seeding import SeedPath
from redteam.core.types import Spec, TargetKind
from redteam.data.nouns import DatasetFacts, ImageDataset, ImageSet
from redteam.learn import models
from redteam.learn.nouns import Classifier
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.conduct import Conduct
from redteam.threats.poisoning.federation.config import FederationConfig
from redteam.threats.poisoning.federation.drift import Drift
from redteam.threats.poisoning.federation.holdings import Holdings, check
from redteam.threats.poisoning.federation.learner import Setup
from redteam.threats.poisoning.federation.local import Recipe
from redteam.threats.poisoning.federation.network import Network
from redteam.threats.poisoning.federation.nouns import FederatedRun, MakeRule, Rules, Setting, Snapshot
from redteam.threats.poisoning.federation.partition import partition
from redteam.threats.poisoning.federation.rounds import run
from redteam.threats.poisoning.filtering import Overridden
from redteam.threats.poisoning.target import FittedClassifier


@dataclass(frozen=True)
class FederatedTarget:
    """A `nouns.Federation`. rules: name, settings and maker of each, in order."""

    train: ImageSet
    facts: DatasetFacts
    config: FederationConfig
    device: Device
    rules: tuple[tuple[str, Mapping[str, Any], MakeRule], ...] = ()
    kind: TargetKind = "federation"

    @property
    def rows(self) -> np.ndarray:
        """(N, n) int64: the rows of `train` that each client holds, at first if class mixes drift.

        Who holds what is part of the task: it depends on the data and the config, not on a run's seed.
        """
        return self.dealt(0)

    def dealt(self, dealing: int) -> np.ndarray:
        """(N, n) int64: the rows of one dealing; later ones are for class mixes that drift."""
        settings = {name: getattr(self.config, name) for name in _DEALT_BY}
        return _dealt(_Labels(self.train.labels), len(self.train.classes), dealing, **settings)

    @property
    def drift(self) -> Drift:
        """How the data change over the rounds."""
        return Drift(self.config.drift, self.config.drift_every, self.config.drift_angle)

    def network(self, seeds: SeedPath) -> Network:
        """A fresh network of the target's architecture."""
        height, width, channels = (int(s) for s in self.train.images.shape[1:])
        module = models.build(
            self.config.model, classes=len(self.train.classes), shape=(height, width, channels), seeds=seeds
        )
        return Network(module.to(self.device.torch()).eval())

    def fit(self, malicious: Clients | None, seeds: Sequence[int], ctx: Context) -> list[FederatedRun]:
        """One run per seed, each a stage of its own. malicious: None for a federation of honest clients.

        Raises:
            ArtifactError: malicious clients that are not of this federation.
        """
        if malicious is not None:
            check(malicious, self.rows, len(self.train.classes))
            malicious = malicious if len(malicious.ids) else None
        conduct = Conduct.of(malicious.conduct) if malicious is not None else Conduct()
        key = {**self.fingerprint(), "clients": malicious.digest if malicious is not None else ""}
        out = []
        for seed in seeds:

            def arrays(seed: int = seed) -> dict[str, np.ndarray]:
                return self._run(malicious, conduct, SeedPath(seed, ("federation",)), ctx)

            out.append(self._read(ctx.stage("federation", {**key, "seed": seed}, arrays)))
        return out

    def _run(
        self, malicious: Clients | None, conduct: Conduct, seeds: SeedPath, ctx: Context
    ) -> dict[str, np.ndarray]:
        c, classes = self.config, len(self.train.classes)
        setup = Setup(
            network=self.network(seeds.child("init")), passes=c.local_epochs, conduct=conduct, classes=classes,
            recipe=Recipe(batch_size=c.batch_size, lr=c.lr, together=c.together),
        )  # fmt: skip
        setting = Setting(classes=classes, per_round=c.per_round, rounds=c.rounds, server_lr=c.server_lr)
        rules = Rules(tuple(make(setting) for _, _, make in self.rules))
        device = self.device.torch()
        holdings = Holdings(self.train, self.facts, device, self.drift, self.dealt, malicious)
        return run(c, setup, holdings, malicious, rules, seeds, replace(ctx, device=self.device))

    def _read(self, stored: Mapping[str, np.ndarray]) -> FederatedRun:
        network = self.network(SeedPath(0))
        trained = int(stored["trained"])
        others = [self._fitted(network, row, trained) for row in stored["overrides"]]
        snapshots = []
        for index, (rounds, row) in enumerate(
            zip(stored["snapshot_rounds"], stored["snapshots"], strict=True)
        ):
            model: Classifier = self._fitted(network, row, trained)
            places = stored["override_places"]
            overrides = {int(label): others[at] for place, label, at in places if place == index}
            model = Overridden(model, overrides) if overrides else model
            snapshots.append(Snapshot(int(rounds), model))
        clients, notes = (
            pd.DataFrame({k.partition(".")[2]: v for k, v in stored.items() if k.startswith(prefix)})
            for prefix in ("clients.", "notes.")
        )
        return FederatedRun(
            tuple(snapshots), clients[list(_CLIENT_COLUMNS)], notes[["round", "name", "value"]], trained
        )

    def _fitted(self, network: Network, params: np.ndarray, trained: int) -> FittedClassifier:
        import torch

        flat = torch.from_numpy(params).to(self.device.torch())
        return FittedClassifier(network.with_parameters(flat), self.facts, self.device, trained)

    def behind(self, name: str, settings: Mapping[str, Any], make: MakeRule) -> FederatedTarget:
        """The same federation with one more rule, applied after those it has. name, settings: for its fingerprint."""
        return replace(self, rules=(*self.rules, (name, dict(settings), make)))

    def at(self, images: np.ndarray, round: int) -> np.ndarray:
        """Images (N, H, W, C) uint8 as they look in `round`, counted from 0, where the distribution drifts.

        A model that has been through r rounds has last seen round r - 1.
        """
        return self.drift.view(images, self.drift.stage(round))

    def fingerprint(self) -> dict[str, Any]:
        """Everything but malicious clients and seed that decides the outcome of `fit`, as plain JSON values."""
        settings = to_json(self.config)
        settings.pop("victims")
        return {
            "target": SPEC.name, "version": SPEC.version, "config": settings, "data": self.train.digest,
            "device": self.device.kind, "mean": list(self.facts.mean), "std": list(self.facts.std),
            "rules": [[name, dict(settings)] for name, settings, _ in self.rules],
        }  # fmt: skip


_DEALT_BY = ("clients", "images", "split", "concentration")
_CLIENT_COLUMNS = ("round", "client", "malicious", "weight", "removed", "score", "rejected")


class _Labels:
    """Labels that can be a key: equal if their values are."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._key = values.tobytes()

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Labels) and self._key == other._key


@lru_cache(maxsize=8)
def _dealt(labels: _Labels, classes: int, dealing: int, **settings: Any) -> np.ndarray:
    """Settings: those of `_DEALT_BY`."""
    rng = SeedPath(0, ("federation", "partition")).child(dealing).numpy()
    rows = partition(labels.values, classes, rng=rng, **settings)
    rows.setflags(write=False)
    return rows


def make(dataset: ImageDataset, config: FederationConfig, ctx: Context) -> FederatedTarget:
    """The target on a data set.

    Raises:
        ConfigError: a network that is more than its parameters, such as one with batch normalisation.
    """
    target = FederatedTarget(dataset.train, dataset.facts, config, ctx.device)
    target.network(SeedPath(0))
    return target


def configure(dataset: ImageDataset, *layers: Mapping[str, Any]) -> FederationConfig:
    """The default federation with `layers` of settings laid over it, the last one on top."""
    config = FederationConfig()
    for layer in layers:
        config = build(FederationConfig, layer, base=config, where="federation")
    return config


SPEC = Spec(
    name="federation",
    kind="target",
    version="1",
    config=FederationConfig,
    run=make,
    source="wang2022shadow",
)
