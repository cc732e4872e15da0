"""What every evasion attack shares: the ball, counting the network's work, and running on survivors only.

An attempt moves images inside a ball and says nothing of success. `perturb` runs attempts in order for each victim
and each radius, projects what comes back, asks the network again, and keeps the images that fool it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from attacks.evasion._meter import Meter, frozen
from redteam.core.checkpoint import Checkpoint
from redteam.core.config import check_ranges, knob, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError, RedteamError
from redteam.core.seeding import SeedPath
from redteam.core.types import Preset, Role, Spec, ThreatModel
from redteam.learn.perturb import Ball, parse_eps
from redteam.threats.evasion.artifact import SURVIVED, WRONG, Perturbed
from redteam.threats.evasion.nouns import Attackable, to_tensor

WHITE_BOX = ("network", "test images", "test labels")
BLACK_BOX = ("scores", "test images", "test labels")
# A target that any attack is done with in seconds on a CPU.
SMOKE_TARGET: Mapping[str, Any] = {
    "steps": 40, "rows": 400, "examples": 60, "val_rows": 40, "check_every": 20, "val_steps": 3,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Radius:
    """The ball that images may be moved in, and further radii for a curve of accuracy against eps."""

    RESOLVE: ClassVar = "attacks.evasion._attack.resolve"

    norm: Literal["auto", "Linf", "L2"] = knob("auto", "norm of the ball; auto: the target's")
    eps: float | str | None = knob(
        None, "radius for pixels in [0, 1], such as 0.1 or 8/255; none: the target's"
    )
    curve: tuple[float | str, ...] = knob((), "further radii; each is attacked by itself")
    batch: int = knob(250, "images attacked at once; it decides which random numbers an image gets", low=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        for value in (() if self.eps is None else (self.eps,)) + self.curve:
            parse_eps(value)

    @property
    def radii(self) -> list[float]:
        """All radii in ascending order, of a resolved config."""
        return sorted({parse_eps(e) for e in (self.eps or 0.0, *self.curve)})


def resolve(config: Any, target: Attackable) -> Any:
    """The config with the target's norm and radius filled in, and radii as ascending numbers."""
    eps = target.config.radius if config.eps is None else parse_eps(config.eps)
    curve = sorted({parse_eps(e) for e in config.curve} - {eps})
    norm = target.config.norm if config.norm == "auto" else config.norm
    return replace(config, norm=norm, eps=eps, curve=tuple(curve))


Attempt = Callable[[Meter, torch.Tensor, torch.Tensor, Ball, SeedPath], torch.Tensor]
"""(network, x (b, C, H, W), y (b,), ball, seeds) -> moved images (b, C, H, W), fooling or not."""


# ---------------------------------------------------------------- the runner


@dataclass
class _Found:
    """What is known so far. images: of each victim, radius and attempt. spent: by attempt, at the main radius."""

    broken: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    where: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    spent: dict[str, list[int]] = field(default_factory=dict)
    done: int = 0

    def keep(
        self, at: tuple[int, int, int], rows: np.ndarray, images: np.ndarray, fooled: np.ndarray, every: bool
    ) -> None:
        """Note which of m rows fell, and keep their images. at: victim, radius, position of the attempt."""
        v, e, position = at
        lost = rows[fooled]
        self.broken[v, e, lost] = np.where(self.broken[v, e, lost] == SURVIVED, position, WRONG)
        kept = fooled | every
        place = np.broadcast_to(np.array([v, e, 0]), (int(kept.sum()), 3)).copy()
        place[:, 2] = rows[kept]
        self.where.append(place)
        self.images.append(images[kept])

    def spend(self, at: tuple[int, int, int], name: str, chunks: _Chunks, *, main: bool) -> None:
        """Add what an attempt took, the clean answers before the first one included."""
        v, e, position = at
        self.forwards[v, e] += chunks.forwards
        self.backwards[v, e] += chunks.backwards
        survived = self.broken[v, e] == SURVIVED
        if main and survived.any():
            # The clean answer is no part of the attempt.
            took = (
                int(chunks.forwards[survived].max()) - (position == 0), int(chunks.backwards[survived].max())
            )  # fmt: skip
            self.spent[name] = [int(max(p)) for p in zip(took, self.spent.get(name, [0, 0]), strict=True)]

    def arrays(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """As the artifact holds them. shape: (C, H, W) of one image."""
        where = np.concatenate([np.empty((0, 3), np.int64), *self.where])
        images = np.concatenate([np.empty((0, *shape), np.float32), *self.images])
        return {"broken": self.broken, "forwards": self.forwards, "backwards": self.backwards,
                "where": where, "images": images}  # fmt: skip

    def save(self, checkpoint: Checkpoint, shape: tuple[int, ...]) -> None:
        """Keep it, so that a run that is stopped goes on from here."""
        if checkpoint.path is not None:
            checkpoint.save(self.arrays(shape), {"done": self.done, "spent": self.spent})

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from what an earlier run kept."""
        if (kept := checkpoint.load()) is not None:
            arrays, state = kept
            self.broken, self.forwards, self.backwards = (
                arrays[n] for n in ("broken", "forwards", "backwards")
            )
            self.where, self.images = [arrays["where"]], [arrays["images"]]
            self.done, self.spent = state["done"], state["spent"]


def perturb(
    target: Attackable, config: Radius, ctx: Context, attempts: Mapping[str, Attempt], *,
    every: bool = False, notes: Mapping[str, Any] | None = None,
) -> Perturbed:  # fmt: skip
    """Attack every example of a target, for each victim and each radius by itself.

    config: resolved. attempts: by name, at least one; each meets the examples that the network still gets right.
    every: attack also examples that the network gets wrong, and keep every image (of the one attempt). `forwards`
    counts the clean answer and the check of each attempt's images too. notes `spent`: for each attempt [forwards,
    backwards] of the example that survived it at the main radius and took most, if any survived.

    Raises:
        ConfigError: the network's answers do not fit the data.
        RedteamError: NaN logits, or gradients that make NaN images.
    """
    if every and len(attempts) != 1:
        raise ValueError(f"every: expected one attempt, got {list(attempts)}")
    examples, victims, radii = target.examples(ctx), target.fit(ctx), config.radii
    x, y = to_tensor(examples.images, torch.device("cpu")), torch.from_numpy(examples.labels)
    shape = (len(victims), len(radii), len(examples))
    found = _Found(np.full(shape, SURVIVED), *np.zeros((2, *shape), dtype=np.int64))
    identity = {"config": to_json(config), "seeds": str(ctx.seeds), "examples": examples.digest,
                "attempts": list(attempts)}  # fmt: skip
    checkpoint = ctx.checkpoint("perturb", identity)
    found.load(checkpoint)
    phases = list(product(range(len(victims)), range(len(radii)), enumerate(attempts)))
    for v, e, (position, name) in phases[found.done :]:
        ball = Ball("L2" if config.norm == "L2" else "Linf", radii[e])
        chunks = _Chunks(victims[v].network, ball, x, y, ctx, config.batch, len(target.classes))
        with frozen(victims[v].network):
            if position == 0:
                found.broken[v, e] = np.where(chunks.clean(), SURVIVED, WRONG)
            rows = np.flatnonzero((found.broken[v, e] == SURVIVED) | every)
            seeds = ctx.seeds.child(v, repr(radii[e]), name)
            images, fooled = chunks.attack(name, attempts[name], rows, seeds, (found.done, len(phases)))
        found.keep((v, e, position), rows, images, fooled, every)
        found.spend((v, e, position), name, chunks, main=radii[e] == config.eps)
        found.done += 1
        if found.done < len(phases):
            found.save(checkpoint, tuple(x.shape[1:]))
    return Perturbed(
        norm=config.norm, eps=np.array(radii), main=parse_eps(config.eps or 0.0), attacks=tuple(attempts),
        rows=np.arange(len(examples), dtype=np.int64), notes={**(notes or {}), "spent": found.spent},
        **found.arrays(tuple(x.shape[1:])),
    )  # fmt: skip


@dataclass
class _Chunks:
    """One network and one ball, on chunks of the examples. forwards, backwards: (n,) what was spent on each."""

    network: nn.Module
    ball: Ball
    x: torch.Tensor
    y: torch.Tensor
    ctx: Context
    batch: int
    classes: int

    def __post_init__(self) -> None:
        self.forwards, self.backwards = np.zeros((2, len(self.x)), dtype=np.int64)

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor, Meter]]:
        device = self.ctx.device.torch()
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            meter = Meter(self.network, len(part), self.ctx.limits)
            yield part, self.x[part].to(device), self.y[part].to(device), meter
            self.forwards[part] += meter.forwards.numpy()
            self.backwards[part] += meter.backwards.numpy()

    def clean(self) -> np.ndarray:
        """(n,) bool: which examples the network gets right as they are."""
        out = [self._wrong(m, x, y, "the clean images") for _, x, y, m in self._parts(np.arange(len(self.x)))]
        return ~np.concatenate([np.empty(0, bool), *out])

    @torch.no_grad()
    def _wrong(self, meter: Meter, x: torch.Tensor, y: torch.Tensor, what: str) -> np.ndarray:
        meter.rows = torch.arange(len(x))
        logits = meter(x)
        if logits.shape != (len(x), self.classes):
            raise ConfigError(
                f"the network: expected logits ({len(x)}, {self.classes}), one for each class of the data, got "
                f"{tuple(logits.shape)}"
            )
        _check_numbers(meter, what)
        wrong: np.ndarray = (logits.argmax(-1) != y).cpu().numpy()
        return wrong

    def attack(
        self, name: str, attempt: Attempt, rows: np.ndarray, seeds: SeedPath, phase: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moved images (m, C, H, W) float32 of m rows, in the ball, and which of them fool the network: (m,)."""
        images, fooled = [np.empty((0, *self.x.shape[1:]), np.float32)], [np.empty(0, bool)]
        for number, (part, x, y, meter) in enumerate(self._parts(rows)):
            done = phase[0] + number * self.batch / len(rows)
            self.ctx.report(f"{name}, radius {self.ball.eps:g}", done, phase[1])
            moved = attempt(meter, x, y, self.ball, seeds.child(number)).detach()
            moved = self.ball.project(moved, x)
            fooled.append(self._wrong(meter, moved, y, f"images of {name}"))
            if not bool(moved.isfinite().all()):
                raise RedteamError(f"{name}: expected images of numbers, got NaN")
            images.append(moved.cpu().numpy())
            assert len(part) == len(moved), (name, moved.shape)
        return np.concatenate(images), np.concatenate(fooled)


def _check_numbers(meter: Meter, what: str) -> None:
    """Refuse a network that gave NaN: its examples would count as robust, or as broken, at random."""
    for found, name in ((meter.nan_logits, "NaN logits"), (meter.bad_gradients, "NaN or infinite gradients")):
        if bool(found):
            raise RedteamError(
                f"the network gave {name} for {what}; expected numbers, without which an accuracy means nothing. "
                "Look whether its training went astray (try a lower lr), and for a division by 0 or a root of 0 in it"
            )


# ---------------------------------------------------------------- cards


def spec(
    name: str, run: Callable[..., Perturbed], source: str, presets: Mapping[str, Radius | Preset], *,
    access: tuple[str, ...] = WHITE_BOX, role: Role = "attack", adaptive: bool = True,
) -> Spec:  # fmt: skip
    """The card of an evasion attack, which meets the defended network in every cell unless `adaptive` is False.

    presets: configs, of which `smoke` goes with the target of that name, or whole presets.
    """
    threat = ThreatModel(
        kind="evasion", target="classifier", access=access,
        budget="distance of each image from its original, in the norm of the ball, for pixels in [0, 1]",
        knowledge=("the radius that the defence was made for",), goal="each test image is misclassified",
    )  # fmt: skip
    known = {
        title: preset
        if isinstance(preset, Preset)
        else Preset(config=preset, target=SMOKE_TARGET if title == "smoke" else {})
        for title, preset in presets.items()
    }
    return Spec(
        name=name, kind="attack", version="1", config=type(known["default"].config), run=run, presets=known,
        source=source, threat=threat, role=role, resolve=resolve, adaptive=adaptive,
        controls=() if role == "control" else ("no-perturbation", "random-noise"),
    )  # fmt: skip
