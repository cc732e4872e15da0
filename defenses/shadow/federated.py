"""Shadow filtering of a federation: a server rule that keeps a model of its own for each suspect label."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from defenses._shared.spectre import Fitted, fit_spectre
from defenses.shadow.config import Config
from redteam.federation import Round, Setting


@dataclass
class Trend:
    """Accuracy over rounds of ever other clients: mean of the last `window` rounds against the `window` before."""

    window: int
    counts: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, correct: torch.Tensor, there: torch.Tensor) -> None:
        """One round's clients: how many samples were right, of how many."""
        self.counts.append((float(correct.sum()), float(there.sum())))
        while len(self.counts) > 2 * self.window:
            self.counts.popleft()

    def mean(self, first: int, last: int | None) -> float:
        """Accuracy over a stretch of the rounds kept; NaN without samples."""
        part = list(self.counts)[first:last]
        there = sum(n for _, n in part)
        return sum(c for c, _ in part) / there if there else float("nan")

    def now(self) -> float:
        """Over the last `window` rounds; NaN before there are so many."""
        return self.mean(-self.window, None) if len(self.counts) >= self.window else float("nan")

    def converged(self, change: float, floor: float) -> bool:
        """Whether the two windows differ by less than `change`, the later at `floor` or above."""
        if len(self.counts) < 2 * self.window:
            return False
        before, now = self.mean(0, self.window), self.now()
        return abs(now - before) < change and now >= floor


@dataclass
class Filter:
    """A threshold that was set once, on the backbone as it stood at launch.

    params: (P,) that backbone. pooled: representations gathered while there is no threshold yet.
    """

    label: int
    params: torch.Tensor
    pooled: list[np.ndarray] = field(default_factory=list)
    fitted: Fitted | None = None
    threshold: float = float("inf")

    def score(self, round: Round) -> torch.Tensor:
        """(K,) scores of the round's clients, NaN where a client has no sample of the label or says nonsense."""
        means, counts = round.learner.represent(self.params, self.label)
        usable = (counts > 0) & torch.isfinite(means).all(1)
        scores = torch.full((len(counts),), float("nan"))
        rows = means[usable].double().cpu().numpy()
        if self.fitted is None:
            self.pooled.append(rows)
        elif len(rows):
            scores[usable.cpu()] = torch.from_numpy(self.fitted.score(rows)).float()
        return scores

    def settle(self, share: float, malicious: float, k: int | None) -> None:
        """Set the threshold: the `share` of the pooled clients that scores highest lies at it or above.

        malicious: the share that the robust covariance assumes to be so.
        """
        rows = np.concatenate(self.pooled)
        self.pooled = []
        count = min(len(rows), round(share * len(rows)))
        if len(rows) < 2 or count == 0:
            return
        self.fitted = fit_spectre(
            rows, malicious * len(rows), ks=None if k is None else (k,), flagged=share / malicious
        )
        self.threshold = self.fitted.threshold


@dataclass
class Shadow:
    """One label's shadow: waiting for the backbone, pooling, training, or stopped. finished: what answers."""

    label: int
    window: int
    backbone: Trend
    filter: Filter | None = None
    params: torch.Tensor | None = None
    trend: Trend | None = None
    finished: torch.Tensor | None = None
    best: float = 0.0
    stopped: bool = False

    def restart(self) -> None:
        """Wait for the backbone again; the finished shadow goes on answering."""
        self.filter, self.params, self.trend, self.stopped = None, None, None, False
        self.backbone = Trend(self.window)


class ShadowRule:
    """The rule: the backbone takes every update; shadows learn from the clients below their threshold.

    malicious: the share of clients that is assumed to be so.
    """

    def __init__(self, config: Config, setting: Setting, malicious: float) -> None:
        self.config, self.setting, self.malicious = config, setting, malicious
        self.initial: torch.Tensor | None = None
        chosen = config.chosen(setting.classes)
        self.watched = [self._shadow(label) for label in (range(setting.classes) if chosen is None else chosen)]
        self.suspected = chosen is None

    def _shadow(self, label: int) -> Shadow:
        return Shadow(label, self.config.window, Trend(self.config.window))

    def overrides(self) -> Mapping[int, torch.Tensor]:
        """The shadows that have stopped once, by label."""
        return {s.label: s.finished for s in self.watched if s.finished is not None}

    def __call__(self, round: Round) -> Round:
        """Weights are left alone; `removed` and `scores` are those of the shadows."""
        if self.initial is None:
            self.initial = round.params.clone()
        for shadow in list(self.watched):
            if shadow in self.watched:
                round = self._step(shadow, round)
        return round

    def _step(self, shadow: Shadow, round: Round) -> Round:
        if shadow.filter is None:
            return self._wait(shadow, round)
        if shadow.filter.fitted is None and shadow.params is None:
            return self._pool(shadow, round)
        if not shadow.stopped:
            return self._train(shadow, round)
        return self._watch(shadow, round)

    def _wait(self, shadow: Shadow, round: Round) -> Round:
        """Until the backbone's accuracy on the label has converged."""
        shadow.backbone.add(*round.learner.accuracy(round.params, shadow.label))
        if not shadow.backbone.converged(self.config.change, self.config.floor):
            return round
        shadow.filter = Filter(shadow.label, round.params.clone())
        return noted(round, "launch", shadow.label)

    def _pool(self, shadow: Shadow, round: Round) -> Round:
        """Gather clients for the threshold; then the shadow starts."""
        assert shadow.filter is not None and self.initial is not None
        shadow.filter.score(round)
        if len(shadow.filter.pooled) < self.config.pool:
            return round
        shadow.filter.settle(self.config.flagged * self.malicious, self.malicious, self.config.k)
        if self.suspected and not self._suspect(shadow):
            return noted(round, "unsuspected", shadow.label)
        shadow.params, shadow.trend = self.initial.clone(), Trend(self.config.window)
        return noted(round, "threshold", shadow.filter.threshold)

    def _suspect(self, shadow: Shadow) -> bool:
        """Whether the label is among the most suspicious of those judged so far; others are dropped for good."""
        judged = [s for s in self.watched if s.filter is not None and s.filter.fitted is not None]
        ranked = sorted(judged, key=lambda s: -s.filter.fitted.found.suspicion)  # type: ignore[union-attr]
        for other in ranked[self.config.suspects :]:
            self.watched.remove(other)
        return shadow in self.watched

    def _train(self, shadow: Shadow, round: Round) -> Round:
        """One round of the shadow on the clients below the threshold, until its accuracy has converged."""
        assert shadow.filter is not None and shadow.params is not None and shadow.trend is not None
        scores = shadow.filter.score(round)
        out = scores >= shadow.filter.threshold
        kept = ~out.to(round.weights.device) & (round.weights > 0)
        updates = round.learner.train(shadow.params, kept)
        kept &= torch.isfinite(updates).all(1)
        if kept.any():
            shadow.params = shadow.params + self.setting.server_lr * updates[kept].mean(0)
        shadow.trend.add(*round.learner.accuracy(shadow.params, shadow.label))
        if shadow.trend.converged(self.config.change, self.config.floor):
            shadow.stopped, shadow.finished = True, shadow.params
            shadow.best = shadow.trend.now()
            round = noted(round, "stop", shadow.label)
        gone = out if round.removed is None else round.removed | out
        worst = scores if round.scores is None else torch.fmax(round.scores, scores)
        return replace(round, removed=gone, scores=worst)

    def _watch(self, shadow: Shadow, round: Round) -> Round:
        """A stopped shadow: once its accuracy on current data has fallen, a new one is due."""
        assert shadow.params is not None and shadow.trend is not None
        shadow.trend.add(*round.learner.accuracy(shadow.params, shadow.label))
        if shadow.best - shadow.trend.now() <= self.config.drop:
            return round
        shadow.restart()
        return noted(round, "relaunch", shadow.label)


def noted(round: Round, name: str, value: float) -> Round:
    """The round with one more note."""
    return replace(round, notes=(*round.notes, (name, float(value))))
