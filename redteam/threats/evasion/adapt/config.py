"""How a classifier is trained on a source domain, with or without a target, and how one of its states is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from redteam.core.config import check_ranges, knob
from redteam.core.errors import ConfigError
from redteam.learn.perturb import Norm, parse_eps

Selector = Literal["source-clean", "source-pgd", "pseudo", "oracle", "last"]
# Settings of the DIGIT protocol of [wang2024dart]: network, recipe, radius and selector.
PAPER: Mapping[str, Any] = {
    "model": "digit-cnn", "size": 32, "rows": 0, "examples": 0, "eps": 2 / 255, "steps": 25_001, "batch_size": 128,
    "lr": 1e-3, "lr_critic": 1e-3, "beta1": 0.9, "weight_decay": 0.0, "critic_steps": 1, "critic_width": 1024,
    "critic_layers": 5, "inner_steps": 5, "inner_step": 1 / 255, "eps_ramp": 0.0, "check_every": 100,
    "val_rows": 100_000, "val_steps": 20, "select": "oracle",
}  # fmt: skip
SELECTORS: tuple[Selector, ...] = ("source-clean", "source-pgd", "pseudo", "oracle", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainConfig:
    """The classifier under attack. Defaults are the CPU tier; `redteam show classifier` lists the paper's."""

    model: str = knob(
        "digit-cnn-small",
        "architecture, or a model of your own: FILE.pt, FILE.py:FUNCTION, torchvision:NAME, timm:NAME",
    )
    mean: tuple[float, ...] = knob(
        (),
        "channel means taken off inside the network; none: of the source's images, or those of a torchvision or timm "
        "model of your own; a FILE normalises by itself",
    )
    std: tuple[float, ...] = knob((), "the same, channel deviations divided by", above=0)
    victims: int = knob(1, "networks trained at once from different seeds on the same split", low=1)
    size: int = knob(16, "pixels a side of the images it sees; 0: as they are in the data", low=0)
    rows: int = knob(5000, "images used of each domain; 0: all", low=0)
    examples: int = knob(500, "test images that attacks perturb; 0: all", low=0)
    norm: Norm = knob("Linf", "norm of the ball that training and attacks move images in")
    eps: float | str = knob(0.1, "radius of that ball for pixels in [0, 1], such as 0.1 or 8/255")
    steps: int = knob(400, "updates", low=1)
    batch_size: int = knob(64, "images a step, of each domain", low=2)
    lr: float = knob(3e-3, "learning rate of Adam", above=0)
    lr_critic: float = knob(1e-3, "the same, of the domain critic", above=0)
    beta1: float = knob(0.5, "first moment of Adam; the second is 0.9 as in the paper", low=0, high=0.999)
    weight_decay: float = knob(0.0, "L2 penalty on the classifier", low=0)
    critic_steps: int = knob(
        1, "updates of the critic before each of the classifier, on the same features", low=1
    )
    critic_width: int = knob(128, "hidden units a layer of the domain critic", low=1)
    critic_layers: int = knob(3, "layers of the domain critic", low=2)
    inner_steps: int = knob(5, "steps of the inner maximisation", low=1)
    inner_step: float | None = knob(None, "length of one; none: half the radius", above=0)
    eps_ramp: float = knob(
        0.3, "share of the updates over which the radius grows from 0; 0: none", low=0, high=1
    )
    check_every: int = knob(100, "updates between validations", low=1)
    val_rows: int = knob(200, "validation images of each domain that are asked", low=1)
    val_steps: int = knob(10, "steps of PGD in validation", low=1)
    select: Selector = knob(
        "pseudo", "what chooses the state that is attacked; oracle uses labels of the target domain"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_eps(self.eps)
        if 0 < self.size < 8:
            raise ConfigError(f"size: expected 0 or at least 8 pixels, got {self.size}")

    @property
    def radius(self) -> float:
        """The radius as a number."""
        return parse_eps(self.eps)

    @property
    def inner_length(self) -> float:
        """The length of an inner step at the full radius."""
        return self.radius / 2 if self.inner_step is None else self.inner_step
