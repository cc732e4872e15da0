"""What perturbed images may be: those that the cell planned, of all test images, and each within its ball."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from redteam.core.errors import ArtifactError, BudgetExceededError
from redteam.data.nouns import ImageSet
from redteam.learn.perturb import parse_eps
from redteam.threats.evasion.artifact import WRONG, Perturbed

# Rounding that is no excess: relative to the radius, and of a pixel. An example, its sum with a perturbation and the
# radius are each rounded to float32; four units in the last place below 1 cover that on any device.
_RELATIVE, _PIXEL = 1e-6, 2.0**-22
_CHUNK = 256


def enforce_threat(artifact: Perturbed, config: Mapping[str, Any], access: Sequence[str]) -> None:
    """Hold an artifact to what its cell planned: the scorer takes nothing on the attack's word.

    config: the attack's resolved config; its `norm`, `eps` and `curve` bind, where it has them. access: what the
    threat lets the attacker touch. Whether the images lie in their balls is checked in `measure`, which has them.

    Raises:
        BudgetExceededError: another norm or other radii, or images under a threat that gives none.
        ArtifactError: a name of an attack twice.
    """
    if config.get("norm", artifact.norm) != artifact.norm:
        raise BudgetExceededError(
            f"the cell planned norm {config['norm']}, the artifact says {artifact.norm}"
        )
    if "eps" in config:
        main = parse_eps(config["eps"])
        planned = sorted({main, *map(parse_eps, config.get("curve") or ())})
        if artifact.main != main or artifact.eps.tolist() != planned:
            raise BudgetExceededError(
                f"the cell planned eps {main:g} and radii {planned}, the artifact says {artifact.main:g} and "
                f"{artifact.eps.tolist()}"
            )
    if len(artifact.images) and not any("image" in word for word in access):
        raise BudgetExceededError(f"the artifact changes images; its threat allows: {', '.join(access)}")
    if len(set(artifact.attacks)) != len(artifact.attacks):
        raise ArtifactError(f"expected every attack once, got {', '.join(artifact.attacks)}")


def enforce_fit(artifact: Perturbed, examples: ImageSet) -> None:
    """Raise `ArtifactError` for an artifact that is not of these examples, all of them, each image once."""
    n, radii, victims = len(examples), len(artifact.eps), artifact.victims
    if artifact.rows.tolist() != list(range(n)):
        raise ArtifactError(f"expected rows 0 to {n - 1}, every test image once and in order; got others")
    if (np.diff(artifact.eps) <= 0).any() or artifact.norm not in ("Linf", "L2") or not artifact.attacks:
        raise ArtifactError("expected radii in ascending order, norm Linf or L2, and the name of an attack")
    height, width, channels = examples.images.shape[1:]
    if artifact.images.shape[1:] != (channels, height, width):
        raise ArtifactError(
            f"expected images of {(channels, height, width)}, got {artifact.images.shape[1:]}; "
            "the artifact belongs to other test images"
        )
    limits = np.array([victims, radii, n])
    where = artifact.where
    if len(where) and not ((where >= 0).all() and (where < limits).all()):
        raise ArtifactError(f"where: expected victim, radius and example below {limits.tolist()}")
    if len(np.unique(where, axis=0)) != len(where):
        raise ArtifactError("where: expected at most one image for each victim, radius and example")
    if not WRONG <= artifact.broken.min() <= artifact.broken.max() < len(artifact.attacks):
        raise ArtifactError(f"broken: expected {WRONG} to {len(artifact.attacks) - 1}")


def allowed(eps: float, norm: str, values: int) -> float:
    """The largest norm of a perturbation that is no excess over eps: `_RELATIVE` of it, and rounding of each value."""
    rounding = _PIXEL if norm == "Linf" else _PIXEL * float(np.sqrt(values))
    return eps * (1 + _RELATIVE) + rounding


def enforce_ball(artifact: Perturbed, x: np.ndarray) -> np.ndarray:
    """The norm of each stored image's perturbation, (m,) float64, all within their radii.

    x: (n, C, H, W) float32 in [0, 1], the examples.

    Raises:
        ArtifactError: an image holds NaN or infinity. BudgetExceededError: it leaves [0, 1], or its ball.
    """
    moved = np.zeros(len(artifact.images))
    for start in range(0, len(moved), _CHUNK):
        rows = slice(start, start + _CHUNK)
        images = artifact.images[rows].astype(np.float64)
        if not np.isfinite(images).all():
            raise ArtifactError("expected images of finite values, got NaN or infinity")
        if images.min() < 0 or images.max() > 1:
            raise BudgetExceededError(
                f"expected images in [0, 1], got values from {images.min():g} to {images.max():g}"
            )
        flat = (images - x[artifact.where[rows, 2]]).reshape(len(images), -1)
        moved[rows] = np.abs(flat).max(1) if artifact.norm == "Linf" else np.sqrt((flat**2).sum(1))
    most = np.array([allowed(float(e), artifact.norm, x[0].size) for e in artifact.eps])
    over = np.flatnonzero(moved > most[artifact.where[:, 1]])
    if len(over):
        victim, radius, example = artifact.where[over[0]].tolist()
        raise BudgetExceededError(
            f"{len(over)} images leave their ball: example {example} of victim {victim} is moved by "
            f"{moved[over[0]]:g} in {artifact.norm}, the radius is {artifact.eps[radius]:g}"
        )
    return moved
