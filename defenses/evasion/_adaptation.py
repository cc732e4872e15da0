"""What the algorithms of robust adaptation share: inner maximisations, divergences, and adversarial training.

The testbed they are from is [wang2024dart] with its released code, google-research/domain-robust (read). An
algorithm says what to maximise and what to minimise; batches, updates, ramps, validation and pseudo-labels are
the loop's (`redteam.threats.evasion.adapt.loop`). Images are (R, B, C, H, W), losses (R,).

Common deviations from the released code. Where there is a critic its updates train the critic alone or the classifier
alone, each after an inner maximisation of its own, so that of 25,001 steps about half reach the classifier; here one
update trains both. The weight of KL terms is 1 over the rows of the batch, where it divides by the configured
batch size. Its network has two outputs in the critic; ours has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from redteam.core.config import Checked, knob, to_json
from redteam.core.context import Context
from redteam.core.types import Preset, Spec, ThreatModel
from redteam.learn.perturb import ce, kl
from redteam.threats.evasion.adapt.algorithm import Algorithm, Loss, Pseudo, Refresh, Step
from redteam.threats.evasion.adapt.config import PAPER
from redteam.threats.evasion.adapt.divergence import coral, critic_loss, mmd
from redteam.threats.evasion.adapt.networks import Networks

Divergence = Literal["dann", "mmd", "coral"]
Domain = Literal["source", "target"]

ADAPTATION_THREAT = ThreatModel(
    kind="evasion",
    target="classifier",
    access=("training", "images of the target domain, without labels"),
    budget="one training; no labels of the target domain",
    knowledge=("the norm and the radius of the attack",),
    goal="right answers on the target domain, also for perturbed images",
)

# Fields of the classifier for a run of seconds.
SMOKE_TARGET: Mapping[str, Any] = {
    "rows": 300, "examples": 40, "steps": 12, "check_every": 6, "val_rows": 40, "val_steps": 3, "batch_size": 32,
}  # fmt: skip


def adaptation_spec(
    name: str,
    config: type,
    algorithm: Callable[[Any], Algorithm],
    source: str,
    *,
    paper: Any | None = None,
    version: str = "1",
    **more: Any,
) -> Spec:
    """The `SPEC` of a defence that trains the classifier by another algorithm.

    algorithm: made of the config. paper: the config of that preset, if it is another one. more: further fields.
    """

    def run(target: Any, config: Any, ctx: Context) -> Any:
        """The classifier so trained."""
        return target.trained_by(algorithm(config))

    default = config()
    presets = {
        "default": Preset(config=default),
        "paper": Preset(config=paper or default, target=PAPER),
        "smoke": Preset(config=default, target=SMOKE_TARGET),
    }
    return Spec(
        name=name, kind="defense", version=version, config=config, run=run, presets=presets, source=source,
        threat=ADAPTATION_THREAT, **more,
    )  # fmt: skip


@dataclass(frozen=True)
class Adaptation:
    """What most algorithms of adaptation have in common: an `Algorithm` but for its name, `inner` and `outer`."""

    config: Any
    version: ClassVar[str] = "1"
    groups: ClassVar[tuple[str, ...]] = ("model", "critic")
    adapts: ClassVar[bool] = True
    pseudo: ClassVar[Pseudo] = "none"
    refresh: ClassVar[Refresh] = "latest"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its config."""
        return to_json(self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoKnobs:
    """Nothing to set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceWeight(Checked):
    """What a critic's divergence counts."""

    weight: float = knob(1.0, "lambda: weight of the divergence of the domains", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KlWeight(Checked):
    """What TRADES' second term counts."""

    adversarial_weight: float = knob(
        1.0, "lambda1: weight of the divergence between answers to clean and perturbed images", low=0
    )


# ---------------------------------------------------------------- inner maximisations


def answers(step: Step, x: torch.Tensor, of: str = "model") -> torch.Tensor:
    """Logits (R, B, K) of the networks as they are, with no gradient attached."""
    with step.nets.frozen(), torch.no_grad():
        return step.nets.logits(x, of)


def raise_ce(step: Step, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Images in the ball whose cross-entropy with `labels` (R, B) is high. Source: [madry2018towards]."""
    return step.ascend(lambda moved: ce(step.nets.logits(moved), labels), x)


def raise_kl(step: Step, x: torch.Tensor) -> torch.Tensor:
    """Images in the ball whose answers are far, in KL, from those to x itself. Source: [zhang2019trades]."""
    clean = answers(step, x)
    return step.ascend(lambda moved: kl(step.nets.logits(moved), clean), x)


# ---------------------------------------------------------------- features and divergences


def joined(of: Callable[[torch.Tensor], torch.Tensor], *batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`of` each batch (R, B, ...), asked once about all of them together: on small networks that is faster."""
    return torch.split_with_sizes(of(torch.cat(batches, 1)), [b.shape[1] for b in batches], 1)


def divergence_from(
    name: Divergence, nets: Networks, zs: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The divergence of target features (R, B, D) from source features `zs`: (R,), larger where easier to tell.

    The critic is asked about `zs` once, however often the result is called.
    """
    if name == "dann":
        source = nets.critic(zs)
        return lambda zt: -critic_loss(source, nets.critic(zt))
    found = {"mmd": mmd, "coral": coral}[name]
    return lambda zt: found(zs, zt)


# ---------------------------------------------------------------- adversarial training on one domain


def examples(step: Step, domain: Domain) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and the labels to train on: the source's own, or the target's pseudo-labels."""
    return (step.xs, step.ys) if domain == "source" else (step.xt, step.pseudo)


@dataclass(frozen=True)
class OneDomain(Adaptation):
    """Training on the labelled source alone, or on the target alone with the labels of the Natural DANN."""

    domain: Domain
    groups: ClassVar[tuple[str, ...]] = ("model",)

    @property
    def adapts(self) -> bool:
        """On the target only."""
        return self.domain == "target"

    @property
    def pseudo(self) -> Pseudo:
        """The labels of the Natural DANN, where there are none."""
        return "frozen" if self.domain == "target" else "none"


class AdversarialTraining(OneDomain):
    """CE of perturbed images of one domain. Source: [madry2018towards] (remembered)."""

    @property
    def name(self) -> str:
        """With the domain."""
        return f"at-{self.domain}"

    def inner(self, step: Step) -> torch.Tensor:
        """The images whose CE is high."""
        return raise_ce(step, *examples(step, self.domain))

    def outer(self, step: Step, inner: torch.Tensor) -> Iterator[Loss]:
        """Their CE."""
        yield "model", ce(step.nets.logits(inner), examples(step, self.domain)[1]).mean(-1)


class Trades(OneDomain):
    """CE of clean images plus the KL of answers to them and to perturbed ones. Source: [zhang2019trades] (remembered).

    Both factors of the KL carry gradients, as in the released code; it is a mean over the rows that are there.
    """

    @property
    def name(self) -> str:
        """With the domain."""
        return f"trades-{self.domain}"

    def inner(self, step: Step) -> torch.Tensor:
        """The images whose KL is high."""
        return raise_kl(step, examples(step, self.domain)[0])

    def outer(self, step: Step, inner: torch.Tensor) -> Iterator[Loss]:
        """CE(x) + lambda1 KL(p(x) || p(x'))."""
        x, labels = examples(step, self.domain)
        clean, moved = joined(step.nets.logits, x, inner)
        apart = kl(moved, clean).mean(-1)
        yield "model", ce(clean, labels).mean(-1) + self.config.adversarial_weight * apart
