"""FAB and Square by their authors' code, behind our interface.

`pyautoattack` (the released AutoAttack, packaged) is an extra. Its single runs are called; which examples are still
in play, the seeds and the counts are ours. Both were seen to return what its own `perturb` returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch

from attacks.evasion._attack import Attempt
from attacks.evasion._meter import Meter
from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball, lengths


def library(module: str) -> ModuleType:
    """A module of pyautoattack.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import_module("pyautoattack")
    except ModuleNotFoundError as error:
        if error.name != "pyautoattack":
            raise
        raise ConfigError(
            "FAB and Square run their authors' code and need the extra evasion: pip install 'redteam[evasion]'"
        ) from None
    return import_module(f"pyautoattack.{module}")


@contextmanager
def _seeded(seeds: SeedPath, device: torch.device) -> Iterator[None]:
    """The library draws from the global generators: set them, and put all of them back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), seeds.as_global():
        yield


def fab(*, steps: int, restarts: int, targets: int) -> Attempt:
    """Targeted FAB: the nearest image across the boundary to each of the classes of largest logit, if in the ball.

    targets: at most K - 1. Deterministic but for restarts. Source: [croce2020fab].
    """
    code = library("fab_pt")

    def run(net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath) -> torch.Tensor:
        attack = code.FABAttack_PT(
            net, norm=ball.norm, n_restarts=restarts, n_iter=steps, eps=ball.eps, targeted=True, device=x.device
        )  # fmt: skip
        out, left = x.clone(), torch.arange(len(x), device=x.device)
        with _seeded(seeds, x.device):
            for rank in range(2, targets + 2):
                attack.target_class = rank
                for restart in range(restarts):
                    if not len(left):
                        return out
                    net.rows = left.cpu()
                    found = attack.attack_single_run(
                        x[left], y[left], use_rand_start=restart > 0, is_targeted=True
                    )
                    near = lengths(found - x[left], ball.norm) <= ball.eps
                    with torch.no_grad():
                        fooled = near & (net(found).argmax(-1) != y[left])
                    out[left[fooled]] = found[fooled]
                    left = left[~fooled]
        return out

    return run


def square(*, queries: int, rescale: bool) -> Attempt:
    """Square: random search with squares, on the margin of the scores; no gradients.

    rescale: stretch the schedule of the squares' sizes, made for 10,000 queries, to the number given; the AutoAttack
    ensemble does not. Source: [andriushchenko2020square].

    Raises:
        ConfigError: in the L2 ball, images below 5 pixels a side.
    """
    code = library("square")

    def run(net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath) -> torch.Tensor:
        if ball.norm == "L2" and min(x.shape[-2:]) < 5:
            raise ConfigError(
                f"square: expected images of at least 5 pixels a side in the L2 ball, got {tuple(x.shape[-2:])}"
            )
        # It writes into the logits, which may be the network's own.
        attack = code.SquareAttack(
            lambda images: net(images).clone(), norm=ball.norm, n_queries=queries, eps=ball.eps, p_init=0.8,
            loss="margin", resc_schedule=rescale, device=x.device,
        )  # fmt: skip
        attack.init_hyperparam(x)
        # It says itself how often each example was asked.
        net.counting = False
        with _seeded(seeds, x.device):
            found: torch.Tensor
            counts, found = attack.attack_single_run(x.contiguous(), y)
        net.counting = True
        net.forwards += counts.long().cpu()
        return found

    return run
