"""What each client holds at a stage of the drift: its clean images, and what a malicious one makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from redteam.core.errors import ArtifactError
from redteam.data.nouns import DatasetFacts, ImageSet
from redteam.learn.train import normalise
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.drift import Drift


@dataclass(frozen=True)
class Share:
    """The data of K clients. images: (K, n, channels, H, W) float32 normalised; labels: (K, n) int64."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class _Stage:
    """Images that somebody holds, (M, H, W, C) uint8, and who: rows of it, and labels, for clients and malicious ones.

    rows, labels: (N, n) clean. own_rows, own_labels: (m, n) of malicious clients when they act.
    """

    images: torch.Tensor
    rows: np.ndarray
    labels: np.ndarray
    own_rows: np.ndarray
    own_labels: np.ndarray


class Holdings:
    """The clients' data, one stage of the drift at a time; images stay on the device as uint8.

    dealt: rows (N, n) by dealing, see `Drift.dealing`. A malicious client keeps its first rows through all
    dealings, for its labels were made for them; triggers are stamped after the drift.
    """

    def __init__(
        self,
        train: ImageSet,
        facts: DatasetFacts,
        device: torch.device,
        drift: Drift,
        dealt: Callable[[int], np.ndarray],
        malicious: Clients | None,
    ) -> None:
        self._train, self._facts, self._device = train, facts, device
        self._drift, self._dealt, self._malicious = drift, dealt, malicious
        self._place = np.full(len(dealt(0)), -1)
        if malicious is not None:
            self._place[malicious.ids] = np.arange(len(malicious.ids))
        self._at, self._stage = -1, self._made(0)

    def _made(self, stage: int) -> _Stage:
        images, rows = self._drift.view(self._train.images, stage), self._dealt(self._drift.dealing(stage))
        own_rows = own_labels = np.zeros((0, rows.shape[1]), np.int64)
        if (bad := self._malicious) is not None:
            rows = rows.copy()
            rows[bad.ids] = self._dealt(0)[bad.ids]
            stamped = np.unique(rows[bad.ids][bad.stamped])
            where = np.searchsorted(stamped, rows[bad.ids])
            own_rows = np.where(bad.stamped, len(images) + where, rows[bad.ids])
            own_labels = bad.labels
            images = np.concatenate([images, triggers.apply(bad.trigger, images[stamped], stamped)])
        self._at = stage
        resident = torch.from_numpy(images).to(self._device)
        return _Stage(resident, rows, self._train.labels[rows], own_rows, own_labels)

    def of(self, clients: np.ndarray, acting: np.ndarray, round: int) -> Share:
        """What `clients` (K,) train on in a round; those that act, (K,) bool, on their own version of it."""
        if (stage := self._drift.stage(round)) != self._at:
            self._stage = self._made(stage)
        now = self._stage
        rows, labels = now.rows[clients], now.labels[clients]
        if acting.any():
            places = self._place[clients[acting]]
            rows[acting], labels[acting] = now.own_rows[places], now.own_labels[places]
        flat = torch.from_numpy(rows.ravel()).to(self._device)
        images = normalise(now.images.index_select(0, flat), self._facts).contiguous()
        return Share(images.view(*rows.shape, *images.shape[1:]), torch.from_numpy(labels).to(self._device))


def check(malicious: Clients, rows: np.ndarray, classes: int) -> None:
    """Refuse malicious clients that are not of this federation.

    rows: (N, n), what its clients hold.

    Raises:
        ArtifactError: shapes, types, ids or labels that do not fit.
    """
    clients, held = rows.shape
    ids, labels, stamped = malicious.ids, malicious.labels, malicious.stamped
    shape, dtypes = (len(ids), held), tuple(str(a.dtype) for a in (ids, labels, stamped))
    if labels.shape != shape or stamped.shape != shape or dtypes != ("int64", "int64", "bool"):
        raise ArtifactError(
            f"expected ids int64, and labels int64 and stamped bool for the {held} rows of each client, {shape}; "
            f"got {labels.shape}, {stamped.shape} and {', '.join(dtypes)}; the artifact belongs to another federation"
        )
    if len(ids) and (ids.min() < 0 or ids.max() >= clients or (np.diff(ids) <= 0).any()):
        raise ArtifactError(f"expected ascending ids of malicious clients from 0 to {clients - 1}, got {ids}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ArtifactError(f"expected labels 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
