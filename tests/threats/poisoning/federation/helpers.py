"""A small federation, and malicious clients made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from redteam.core.device import Device
from redteam.data.toys import stripes_dataset
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.config import FederationConfig
from redteam.threats.poisoning.federation.target import FederatedTarget

SMALL: dict[str, Any] = {
    "clients": 12, "per_round": 6, "images": 12, "rounds": 4, "batch_size": 5, "snapshot_every": 2,
}  # fmt: skip


def federation(size: int = 8, **changes: Any) -> FederatedTarget:
    """Striped noise, three classes, twelve clients."""
    dataset = stripes_dataset(n=180, size=size)
    config = FederationConfig(**{**SMALL, **changes})
    return FederatedTarget(dataset.train, dataset.facts, config, Device("cpu"))


def clients(target: FederatedTarget, ids: list[int], **changes: Any) -> Clients:
    """Malicious clients that stamp and relabel the first half of what they hold."""
    chosen = np.array(ids, np.int64)
    labels = target.train.labels[target.rows[chosen]]
    stamped = np.zeros(labels.shape, bool)
    stamped[:, : labels.shape[1] // 2] = True
    settings: dict[str, Any] = {
        "ids": chosen, "labels": np.where(stamped, 0, labels), "stamped": stamped, "trigger": triggers.make("1xl"),
        "source_class": -1, "target_class": 0, "budget": len(ids), **changes,
    }  # fmt: skip
    return Clients(**settings)
