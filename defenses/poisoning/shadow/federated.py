"""Shadow filtering of a federation: a server rule that keeps a model of its own for each suspect label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from defenses.poisoning._spectre import Fitted, fit_spectre
from defenses.poisoning.shadow.config import Config
from redteam.threats.poisoning.federation.nouns import Round, Setting

# Of the clients that set a threshold, at least this share lies below it.
_LEAST_KEPT = 0.1


@dataclass
class Trend:
    """Accuracy over rounds of ever other clients, in windows that do not overlap.

    counts: (right, samples) of the round, for all rounds since this trend began.
    """

    window: int
    counts: list[tuple[float, float]] = field(default_factory=list)

    def add(self, correct: torch.Tensor, there: torch.Tensor) -> None:
        """One round's clients: how many samples were right, of how many."""
        self.counts.append((float(correct.sum()), float(there.sum())))

    def last(self, back: int = 0) -> tuple[float, float]:
        """Accuracy over the last window, or over one further back, and its variance; NaN before there is one."""
        end = len(self.counts) - back * self.window
        part = self.counts[max(0, end - self.window) : end] if end >= self.window else []
        there = sum(n for _, n in part)
        if not there:
            return float("nan"), float("nan")
        p = sum(c for c, _ in part) / there
        return p, p * (1 - p) / there

    def converged(self, change: float, floor: float) -> bool:
        """Whether a window has just ended, differs from the one before by less than `change`, and is at `floor`."""
        if len(self.counts) % self.window:
            return False
        (now, _), (before, _) = self.last(), self.last(1)
        return abs(now - before) < change and now >= floor

    def fallen(self, best: float, noise: float, drop: float) -> bool:
        """Whether a window has just ended and lies below `best` by more than `drop` and two standard errors of both.

        noise: variance of `best`.
        """
        if len(self.counts) % self.window:
            return False
        now, own = self.last()
        return best - now > drop + 2 * (noise + own) ** 0.5


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

    def score(self, round: Round) -> tuple[torch.Tensor, torch.Tensor]:
        """(K,) scores of the round's clients, NaN where there is none, and (K,) bool of reports that are nonsense.

        A client without a sample of the label has no score and is no suspect; one whose report is not finite is.
        """
        means, counts = round.learner.represent(self.params, self.label)
        finite = torch.isfinite(means).all(1)
        usable, nonsense = (counts > 0) & finite, (counts > 0) & ~finite
        scores = torch.full((len(counts),), float("nan"))
        rows = means[usable].double().cpu().numpy()
        if self.fitted is None:
            self.pooled.append(rows)
        elif len(rows):
            scores[usable.cpu()] = torch.from_numpy(self.fitted.score(rows)).float()
        return scores, nonsense.cpu()

    def settle(self, share: float, malicious: float, k: int | None) -> None:
        """Set the threshold: the `share` of the pooled clients that scores highest lies at it or above.

        malicious: the share that the robust covariance assumes to be so.
        """
        rows = np.concatenate(self.pooled)
        self.pooled = []
        # However many are assumed malicious, somebody has to teach the shadow.
        count = min(round(share * len(rows)), int((1 - _LEAST_KEPT) * len(rows)))
        if len(rows) < 2 or count == 0:
            return
        self.fitted = fit_spectre(
            rows,
            malicious * len(rows),
            ks=None if k is None else (k,),
            flagged=count / (malicious * len(rows)),
        )
        self.threshold = self.fitted.threshold


@dataclass
class Shadow:
    """One label's shadow: waiting for the backbone, pooling, training, or stopped.

    finished: what answers. reached: the backbone's accuracy on the label at launch. best: the shadow's own when it
    stopped, with its variance. flagged: the share of clients at or above the threshold, round by round.
    """

    label: int
    window: int
    backbone: Trend
    filter: Filter | None = None
    params: torch.Tensor | None = None
    trend: Trend | None = None
    finished: torch.Tensor | None = None
    reached: float = 0.0
    best: tuple[float, float] = (0.0, 0.0)
    stopped: bool = False
    flagged: list[float] = field(default_factory=list)

    def restart(self) -> None:
        """Wait for the backbone again; the finished shadow goes on answering."""
        self.filter, self.params, self.trend, self.stopped = None, None, None, False
        self.backbone, self.flagged = Trend(self.window), []

    def shifted(self, share: float) -> bool:
        """Whether the threshold no longer means what it did: over a window it flags far more clients than `share`.

        Far: beyond half of those that it should let pass. A shift so large leaves nobody to teach or to ask.
        """
        recent = self.flagged[-self.window :]
        return len(recent) == self.window and sum(recent) / self.window > (1 + share) / 2


class ShadowRule:
    """The rule: the backbone takes every update; shadows learn from the clients below their threshold.

    malicious: the share of clients that is assumed to be so.
    """

    def __init__(self, config: Config, setting: Setting, malicious: float) -> None:
        self.config, self.setting, self.malicious = config, setting, malicious
        self.initial: torch.Tensor | None = None
        chosen = config.chosen(setting.classes)
        self.watched = [
            self._shadow(label) for label in (range(setting.classes) if chosen is None else chosen)
        ]
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
        if round.index + 1 == self.setting.rounds:
            for shadow in self.watched:
                round = noted(round, "no-shadow", shadow.label) if shadow.finished is None else round
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
        shadow.filter, shadow.reached = Filter(shadow.label, round.params.clone()), shadow.backbone.last()[0]
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
        if shadow.filter is None or shadow.filter.fitted is None:
            self.watched.remove(shadow)  # nobody stood out enough to be left out
            return False
        judged = [s for s in self.watched if s.filter is not None and s.filter.fitted is not None]
        ranked = sorted(judged, key=lambda s: -s.filter.fitted.found.suspicion)  # type: ignore[union-attr]
        for other in ranked[self.config.suspects :]:
            self.watched.remove(other)
        return shadow in self.watched

    def _train(self, shadow: Shadow, round: Round) -> Round:
        """One round of the shadow on the clients below the threshold, until its accuracy on theirs has converged.

        Clients that a rule before left out stay out, and its weights hold; what it did to updates does not reach
        the shadow, whose updates are others.
        """
        assert shadow.filter is not None and shadow.params is not None and shadow.trend is not None
        round, kept = self._judge(shadow, round)
        if shadow.shifted(self.config.flagged * self.malicious):
            return self._relaunch(shadow, round)
        updates = round.learner.train(shadow.params, kept)
        usable = torch.isfinite(updates).all(1) & (updates != 0).any(1)
        if refused := int((kept & ~usable).sum()):
            round = noted(round, "shadow-rejected", refused)
        weights = round.weights * (kept & usable)
        if weights.sum() > 0:
            step = (weights / weights.sum()).to(updates.dtype) @ torch.nan_to_num(updates)
            shadow.params = shadow.params + self.setting.server_lr * step
        else:
            round = noted(round, "shadow-untaught", shadow.label)
        right, there = round.learner.accuracy(shadow.params, shadow.label)
        shadow.trend.add(right[kept], there[kept])
        floor = max(self.config.floor, self.config.reach * shadow.reached)
        if shadow.trend.converged(self.config.change, floor):
            shadow.stopped, shadow.finished, shadow.best = True, shadow.params, shadow.trend.last()
            shadow.trend = Trend(self.config.window)
            round = noted(round, "stop", shadow.label)
        return round

    def _judge(self, shadow: Shadow, round: Round) -> tuple[Round, torch.Tensor]:
        """The round with the filter's verdicts logged, and who is below the threshold and not left out before."""
        assert shadow.filter is not None
        scores, nonsense = shadow.filter.score(round)
        out = (scores >= shadow.filter.threshold) | nonsense
        kept = ~out.to(round.weights.device) & (round.weights > 0)
        judged = ~scores.isnan() | nonsense
        if judged.any():
            shadow.flagged.append(float(out[judged].float().mean()))
        gone = out if round.removed is None else round.removed | out
        worst = scores if round.scores is None else torch.fmax(round.scores, scores)
        return replace(round, removed=gone, scores=worst), kept

    def _watch(self, shadow: Shadow, round: Round) -> Round:
        """A stopped shadow: once its accuracy on what passes its filter now has fallen, a new one is due."""
        assert shadow.params is not None and shadow.trend is not None
        judged, kept = self._judge(shadow, round)
        right, there = round.learner.accuracy(shadow.params, shadow.label)
        shadow.trend.add(right[kept], there[kept])
        shifted = shadow.shifted(self.config.flagged * self.malicious)
        if shifted or shadow.trend.fallen(*shadow.best, self.config.drop):
            return self._relaunch(shadow, judged)
        return judged

    def _relaunch(self, shadow: Shadow, round: Round) -> Round:
        """Wait for the backbone anew, then set a new threshold; a shadow that has finished answers until then."""
        shadow.restart()
        return noted(round, "relaunch", shadow.label)


def noted(round: Round, name: str, value: float) -> Round:
    """The round with one more note."""
    return replace(round, notes=(*round.notes, (name, float(value))))
