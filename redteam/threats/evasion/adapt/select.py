"""Validation of a state in training, and which state each selector takes.

Four criteria on validation images alone: `source_clean` and `source_pgd` (accuracy on the source, as it is and
under PGD), `pseudo` (accuracy under PGD on the target's images, with the labels of the Natural DANN: leak-free),
`oracle` (the same with the true labels) and, for the released rule of pseudo-labels, `oracle_clean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from redteam.learn.perturb import Ball, Draw, ce, pgd
from redteam.threats.evasion.adapt.config import Selector
from redteam.threats.evasion.adapt.networks import Networks, Tensors

# The criterion behind each selector; `last` has none.
CRITERIA: dict[Selector, str] = {
    "source-clean": "source_clean", "source-pgd": "source_pgd", "pseudo": "pseudo", "oracle": "oracle",
}  # fmt: skip
_BATCH = 250


@dataclass(frozen=True)
class Validation:
    """What states are judged on, for R replicas. xs, xt: (n, C, H, W) in [0, 1]; ys, yt: (n,); pseudo: (R, n).

    xt, yt, pseudo: None where there is no target domain. PGD takes `steps` steps of 2.5 radii in all.
    """

    xs: torch.Tensor
    ys: torch.Tensor
    ball: Ball
    steps: int
    xt: torch.Tensor | None = None
    yt: torch.Tensor | None = None
    pseudo: torch.Tensor | None = None

    def measure(self, nets: Networks, draw: Draw) -> dict[str, np.ndarray]:
        """Each criterion, (R,). draw: for the random starts; the same at every call makes the states comparable."""
        ys = self.ys.expand(nets.replicas, -1)
        found = {
            "source_clean": accuracy(nets, self.xs, ys),
            "source_pgd": self._robust(nets, self.xs, ys, draw),
        }
        if self.xt is not None and self.yt is not None and self.pseudo is not None:
            yt = self.yt.expand(nets.replicas, -1)
            found |= {
                "pseudo": self._robust(nets, self.xt, self.pseudo, draw),
                "oracle": self._robust(nets, self.xt, yt, draw),
                "oracle_clean": accuracy(nets, self.xt, yt),
            }
        return found

    def _robust(self, nets: Networks, x: torch.Tensor, y: torch.Tensor, draw: Draw) -> np.ndarray:
        hits = []
        for rows in _batches(len(x)):
            batch, labels = x[rows].expand(nets.replicas, *x[rows].shape), y[:, rows]
            with nets.frozen():
                moved = pgd(
                    lambda z, labels=labels: ce(nets.logits(z), labels), batch, self.ball,  # type: ignore[misc]
                    steps=self.steps, step=2.5 * self.ball.eps / self.steps, draw=draw,
                )  # fmt: skip
            hits.append(_hits(nets, moved, labels))
        return _mean(hits)

    def sizes(self) -> dict[str, int]:
        """How many images each criterion is a share of."""
        n, m = len(self.xs), 0 if self.xt is None else len(self.xt)
        return {"source_clean": n, "source_pgd": n, "pseudo": m, "oracle": m, "oracle_clean": m}


def _batches(n: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, n, _BATCH)]


@torch.no_grad()
def _hits(nets: Networks, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nets.logits(x).argmax(-1) == y


def _mean(hits: list[torch.Tensor]) -> np.ndarray:
    shares: np.ndarray = torch.cat(hits, dim=1).double().mean(1).cpu().numpy()
    return shares


def accuracy(nets: Networks, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Share of right answers, (R,), on images (n, C, H, W) that all replicas see; y: (R, n)."""
    parts = [(x[rows].expand(nets.replicas, *x[rows].shape), y[:, rows]) for rows in _batches(len(x))]
    return _mean([_hits(nets, images, labels) for images, labels in parts])


@torch.no_grad()
def labels_of(nets: Networks, images: torch.Tensor) -> torch.Tensor:
    """The answers of each replica, (R, n) int64, to uint8 images (n, C, H, W)."""
    parts = [images[rows].float().div(255) for rows in _batches(len(images))]
    return torch.cat([nets.logits(x.expand(nets.replicas, *x.shape)).argmax(-1) for x in parts], dim=1)


@dataclass
class Keeper:
    """The state that each selector would take so far, for each replica: the latest of those with the best value.

    Where perturbations break every state alike, as they do ordinary training, the criterion says nothing, and the
    longest training is taken, not the shortest.
    """

    replicas: int
    best: dict[tuple[int, str], float] = field(default_factory=dict)
    states: dict[tuple[int, int], Tensors] = field(default_factory=dict)
    chosen: dict[tuple[int, str], int] = field(default_factory=dict)

    def see(self, step: int, found: Mapping[str, np.ndarray], nets: Networks) -> None:
        """A validated state, after `step` updates."""
        for replica in range(self.replicas):
            for selector, criterion in CRITERIA.items():
                if criterion not in found:
                    continue
                value = float(found[criterion][replica])
                if value >= self.best.get((replica, selector), -1.0):
                    self.best[replica, selector] = value
                    self._take(replica, selector, step, nets)
            self._take(replica, "last", step, nets)

    def _take(self, replica: int, selector: str, step: int, nets: Networks) -> None:
        self.chosen[replica, selector] = step
        if (replica, step) not in self.states:
            self.states[replica, step] = nets.state(replica)
        wanted = {(r, s) for (r, _), s in self.chosen.items()}
        self.states = {k: v for k, v in self.states.items() if k in wanted}
