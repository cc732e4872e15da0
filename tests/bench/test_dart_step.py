"""One update of DART, in the efficient form against the arithmetic of the released code.

python -m tests.bench.test_dart_step

Both forms give the same images and the same loss, which is tested; their times are reported. The released form
(google-research/domain-robust, read) forwards in each of its inner steps the source batch (for the critic), the
clean target batch (for the labels) and the perturbed batch, and accumulates gradients of all parameters. It
forwards the perturbed batch twice, once for the critic and once for the classifier: `again`.

Units, one being a forward of a batch, a gradient of inputs one, of parameters one more, with 5 inner steps:
    efficient                     5 x 2 inner, 1 labels, 1 source features, 6 outer, 1 pseudo-labels: 19
    released, as one would write  5 x (3 source, 1 labels, 3 target), 6 outer, 1 pseudo-labels: 42
    released, as it is            5 x (3 source, 1 labels, 6 target), 1 labels, 6 outer, 1 pseudo-labels: 58
Units are not seconds: of convolutions with a stride, gradients of inputs take a CPU many times a forward.

These train the classifier. The released code spends an update of its own on the critic, inner maximisation and
gradients of the features included (57 units: all but the pseudo-labels); the efficient one trains both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from defenses.evasion.dart import Config, Dart
from redteam.core.device import set_threads
from redteam.core.seeding import SeedPath
from redteam.learn import models
from redteam.learn.perturb import Ball, ce
from redteam.threats.evasion.adapt.algorithm import Step
from redteam.threats.evasion.adapt.divergence import critic_loss
from redteam.threats.evasion.adapt.networks import Classifier, Networks, critic
from tests.bench.timing import side_by_side

Way = Callable[[], object]


def _critic_loss(nets: Networks, zs: torch.Tensor, zt: torch.Tensor) -> torch.Tensor:
    source, target = nets.critic(torch.cat([zs, zt], 1)).split([zs.shape[1], zt.shape[1]], 1)
    return critic_loss(source, target)


def released_inner(step: Step, *, again: bool) -> torch.Tensor:
    """x_t' with nothing kept between inner steps; lambda and lambda1 are 1."""
    nets, x = step.nets, step.xt
    if again:
        nets.logits(x).argmax(-1)
    moved = step.ball.start(x, step.draw)
    for _ in range(step.inner_steps):
        moved = moved.detach().requires_grad_()
        labels = nets.logits(x).argmax(-1)
        zs, zt = nets.features(step.xs), nets.features(moved)
        apart = -_critic_loss(nets, zs, zt)
        wrong = ce(nets.logits(moved) if again else nets.head(zt), labels).mean(-1)
        (apart + wrong).sum().backward()
        assert moved.grad is not None
        moved = step.ball.project(step.ball.ascend(moved.detach(), moved.grad, step.inner_step), x)
    return moved.detach()


def _forget(nets: Networks) -> None:
    for tensors in nets.params.values():
        for p in tensors.values():
            p.grad = None


def released_critic(step: Step, moved: torch.Tensor) -> None:
    """Gradients of the critic's loss in every parameter, left in `.grad`."""
    nets = step.nets
    _forget(nets)
    _critic_loss(nets, nets.features(step.xs), nets.features(moved)).sum().backward()


def released_outer(step: Step, moved: torch.Tensor) -> torch.Tensor:
    """The loss of the classifier, with gradients of every parameter left in `.grad`."""
    nets = step.nets
    _forget(nets)
    zs, zt = nets.features(step.xs), nets.features(moved)
    apart = _critic_loss(nets, zs, zt)
    losses = ce(nets.head(zs), step.ys).mean(-1) + ce(nets.head(zt), step.pseudo).mean(-1) - apart
    losses.sum().backward()
    return losses.detach()


class Case:
    """A digits' network with its critic, its predictor and its optimisers."""

    def __init__(
        self, replicas: int = 1, batch: int = 64, dtype: torch.dtype = torch.float32, *,
        model: str = "digit-cnn-small", size: int = 16,
    ) -> None:  # fmt: skip
        seeds = [SeedPath(r) for r in range(replicas)]
        nets = []
        for s in seeds:
            made = models.build(model, classes=10, shape=(size, size, 3), seeds=s)
            nets.append(Classifier(made.body, made.head).to(dtype))
        with SeedPath(0, ("critic",)).as_global():
            critics = [critic(nets[0].head.in_features, 128, 3).to(dtype) for _ in seeds]
        self.nets = Networks({"model": nets, "critic": critics})
        self.predictor = self.nets.snapshot()
        generator = SeedPath(1).torch()
        shape = (replicas, batch)
        self.xs, self.xt = (
            torch.rand((*shape, 3, size, size), generator=generator, dtype=dtype) for _ in range(2)
        )
        self.ys = torch.randint(10, shape, generator=generator)
        self.dtype = dtype
        self.optimizers = {
            group: torch.optim.Adam(list(params.values()), lr=1e-4)
            for group, params in self.nets.params.items()
        }

    def step(self, critic_steps: int = 1) -> Step:
        """The update of the batches, always from the same random start; pseudo-labels are forwarded for it."""
        generator = SeedPath(2).torch()
        with torch.no_grad():
            pseudo = self.predictor.logits(self.xt).argmax(-1)
        return Step(
            number=0, nets=self.nets, xs=self.xs, ys=self.ys, xt=self.xt, pseudo=pseudo, ball=Ball("Linf", 0.1),
            inner_steps=5, inner_step=0.05, critic_steps=critic_steps,
            draw=lambda size: torch.rand(size, generator=generator, dtype=self.dtype),
        )  # fmt: skip

    def efficient(self, *, critic: bool) -> None:
        """One update of the classifier and, if asked for, of the critic."""
        step, dart = self.step(int(critic)), Dart(Config())
        for group, losses in dart.outer(step, dart.inner(step)):
            params = list(self.nets.params[group].values())
            for p, gradient in zip(params, torch.autograd.grad(losses.sum(), params), strict=True):
                p.grad = gradient
            self.optimizers[group].step()

    def released(self, *, again: bool, critic: bool) -> None:
        """One update of the classifier, after one of the critic if asked for."""
        if critic:
            step = self.step()
            released_critic(step, released_inner(step, again=again))
            self.optimizers["critic"].step()
        step = self.step()
        released_outer(step, released_inner(step, again=again))
        self.optimizers["model"].step()


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_both_forms_give_the_same_images_and_the_same_loss(replicas, again):
    case, dart = Case(replicas, batch=8, dtype=torch.float64), Dart(Config())
    inner = dart.inner(case.step())
    theirs = released_inner(case.step(), again=again)
    assert torch.allclose(inner.xt, theirs, atol=1e-12)
    assert (theirs - case.xt).abs().amax() > 0.09
    groups = dict.fromkeys(("critic", "model"))
    for group, losses in dart.outer(case.step(), inner):
        groups[group] = losses.detach()
    assert torch.allclose(groups["model"], released_outer(case.step(), theirs), rtol=1e-12)


def ways(replicas: int, *, again: bool, critic: bool, **network: object) -> tuple[Way, Way]:
    """(released, efficient), each with networks of its own."""
    slow, fast = Case(replicas, **network), Case(replicas, **network)
    return lambda: slow.released(again=again, critic=critic), lambda: fast.efficient(critic=critic)


ROWS: tuple[tuple[str, bool, bool], ...] = (
    ("classifier, 42 units against 19", False, False),
    ("classifier, 58 units against 19", True, False),
    ("critic and classifier, as released, 115 units against 19", True, True),
)


def main(turns: int = 15) -> None:
    """Print the comparison as a Markdown table."""
    print("| DART update, clean source, batch 64 | released, s | efficient, s | ratio |\n|---|---|---|---|")
    for what, network, replicas, count in (
        ("digit-cnn-small, 16x16x3", {}, 1, turns),
        ("digit-cnn-small, 16x16x3, 3 replicas", {}, 3, turns),
        ("digit-cnn, 32x32x3, batch 8", {"model": "digit-cnn", "size": 32, "batch": 8}, 1, 5),
    ):
        for units, again, critics in ROWS:
            r = side_by_side(*ways(replicas, again=again, critic=critics, **network), turns=count)
            print(
                f"| {what}: {units} | {r.slow_s:.4f} | {r.fast_s:.4f} | "
                f"**{r.ratio:.2f}** ({r.low:.2f} to {r.high:.2f}, {r.turns} turns) |",
                flush=True,
            )


if __name__ == "__main__":
    set_threads(1)
    main()
