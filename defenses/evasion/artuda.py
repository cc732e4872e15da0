"""ARTUDA: a DANN on clean and on perturbed target images, with answers to the two held together.

Threat: evasion under domain shift. Each update perturbs target images to raise KL(p(x_t) || p(x_t')), which needs
no labels, then lowers CE_s + lambda1 KL(p(x_t) || p(x_t')) - lambda [D(x_s, x_t') + D(x_s, x_t)], with D the loss
of a critic of domains; the critic lowers the sum of both.
Source: [lo2022artuda] (remembered), as stated in the testbed of [wang2024dart], whose code was read and cannot run
it. Deviations: the paper freezes statistics of batch normalisation in the inner step; our networks have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from defenses.evasion._adaptation import Adaptation, adaptation_spec, divergence_from, joined, raise_kl
from redteam.core.config import Checked, knob
from redteam.learn.perturb import ce, kl
from redteam.threats.evasion.adapt.algorithm import Loss, Step
from redteam.threats.evasion.adapt.divergence import critic_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """Weights of its terms."""

    weight: float = knob(1.0, "lambda: weight of both divergences of the domains", low=0)
    adversarial_weight: float = knob(
        1.0, "lambda1: weight of the divergence between answers to clean and perturbed target images", low=0
    )


class Artuda(Adaptation):
    """The algorithm."""

    config: Config
    name = "artuda"

    def inner(self, step: Step) -> torch.Tensor:
        """Target images whose answers are far from those to the clean ones."""
        return raise_kl(step, step.xt)

    def outer(self, step: Step, inner: torch.Tensor) -> Iterator[Loss]:
        """The critic against both kinds of target images, then the classifier."""
        nets, config = step.nets, self.config
        zs, zt, za = joined(nets.features, step.xs, step.xt, inner)
        for _ in range(step.critic_steps):
            source, clean, moved = (nets.critic(z.detach()) for z in (zs, zt, za))
            yield "critic", critic_loss(source, moved) + critic_loss(source, clean)
        divergence = divergence_from("dann", nets, zs)
        held = kl(nets.head(za), nets.head(zt)).mean(-1)
        supervised = ce(nets.head(zs), step.ys).mean(-1) + config.adversarial_weight * held
        yield "model", supervised + config.weight * (divergence(za) + divergence(zt))


SPEC = adaptation_spec("artuda", Config, Artuda, "lo2022artuda")
