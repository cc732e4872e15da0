"""SROUDA: a student trained adversarially on a teacher's labels, and a teacher that learns from how the student fares.

Threat: evasion under domain shift. Both begin as the Natural DANN. Each update
1. takes the teacher's labels of the target images, perturbs these to raise the student's CE with them, and trains
   the student on CE(x_t', labels);
2. trains the teacher on CE_s, plus the entropy of its answers to those target images where the largest probability
   is at least `confidence`, plus feedback times CE(x_t, its own labels). Feedback is how much the student's
   CE on the (clean) source batch of this update rose when the student was updated.
The student is what is evaluated.

Source: [zhu2022srouda] (remembered), as stated in the testbed of [wang2024dart] (its released code read).
What the source leaves open, and deviations:
- Student's losses before and after: of the same clean source batch that the teacher's CE_s takes, as released.
- Sign of the feedback. Released, and the default: the loss after minus the loss before, so that labels which
  help the student are made less likely. The derivation of meta pseudo labels (first-order change of the
  student's loss) gives the opposite sign: `feedback=old-new`.
- Masked entropy. The released code detaches one factor of it, and without augmentation the gradient of what is
  left is exactly zero: the term does nothing. Here both factors carry gradients; `entropy_weight=0` (preset
  `paper`) trains as released.
- Teacher and student both begin as the Natural DANN, as released; the loop sees to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from defenses.evasion._adaptation import Adaptation, adaptation_spec, answers, joined, raise_ce
from redteam.core.config import Checked, knob
from redteam.learn.perturb import ce
from redteam.threats.evasion.adapt.algorithm import Loss, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """How the teacher learns."""

    confidence: float = knob(0.95, "largest probability from which an answer's entropy counts", low=0, high=1)
    entropy_weight: float = knob(
        1.0, "weight of the teacher's masked entropy; 0 trains as the released code does", low=0
    )
    feedback: Literal["new-old", "old-new"] = knob(
        "new-old",
        "the student's loss after its update minus before (as released), or before minus after (as derived)",
    )


def masked_entropy(logits: torch.Tensor, confidence: float) -> torch.Tensor:
    """Entropy of answers (..., B, K) whose largest probability is at least `confidence`; sum over B / B, (...)."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    sure = (p.amax(-1) >= confidence).to(p.dtype)
    return (-(p * log_p).sum(-1) * sure).mean(-1)


@dataclass(frozen=True)
class _Moved:
    """Perturbed target images, and the teacher's labels of the clean ones."""

    xt: torch.Tensor
    labels: torch.Tensor


class Srouda(Adaptation):
    """The algorithm; its student is the group `model`."""

    config: Config
    name = "srouda"
    groups = ("model", "teacher")

    def inner(self, step: Step) -> _Moved:
        """Target images on which the student is far from the teacher's labels."""
        labels = answers(step, step.xt, "teacher").argmax(-1)
        return _Moved(raise_ce(step, step.xt, labels), labels)

    def outer(self, step: Step, inner: _Moved) -> Iterator[Loss]:
        """The student, then the teacher, which is told how the student's loss on the source changed."""
        nets, config = step.nets, self.config
        old = ce(answers(step, step.xs), step.ys).mean(-1)
        yield "model", ce(nets.logits(inner.xt), inner.labels).mean(-1)
        new = ce(answers(step, step.xs), step.ys).mean(-1)
        feedback = new - old if config.feedback == "new-old" else old - new
        on_source, logits = joined(partial(nets.logits, of="teacher"), step.xs, step.xt)
        own = ce(logits, logits.argmax(-1)).mean(-1)
        entropy = masked_entropy(logits, config.confidence)
        supervised = ce(on_source, step.ys).mean(-1)
        yield "teacher", supervised + config.entropy_weight * entropy + feedback * own


SPEC = adaptation_spec("srouda", Config, Srouda, "zhu2022srouda", paper=Config(entropy_weight=0.0))
