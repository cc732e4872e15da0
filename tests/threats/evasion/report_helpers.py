"""A run folder of evasion made by hand: noise images, three victims, and an attack of which every outcome is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.hashing import digest_json
from redteam.core.record import DefensePlugin, Plugin, Record, TaskInfo
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.adapt.config import SELECTORS
from redteam.threats.evasion.artifact import SURVIVED, WRONG, Perturbed
from redteam.threats.evasion.domain import DomainDataset
from redteam.threats.evasion.metrics import (
    HISTORY_COLUMNS,
    OUTCOME_COLUMNS,
    PSEUDO_COLUMNS,
    SELECTION_COLUMNS,
)
from redteam.threats.evasion.report import examples_of
from redteam.threats.evasion.scorer import rescore
from tests.leaderboards.helpers import record as plain_record
from tests.threats.pages import save_run

CLASSES = ("zero", "one", "two", "three & more", "<b>four")
K, N, SIDE, MAIN = len(CLASSES), 40, 10, 0.1
TASK = {
    "mean": [], "std": [], "victims": 2, "size": SIDE, "rows": 0, "examples": N, "norm": "Linf", "eps": MAIN,
    "steps": 400, "select": "pseudo",
}  # fmt: skip


def domain(seed: int, n: int = 250) -> ImageSet:
    """Noise, from 40 to 215, so that no perturbation of 0.1 is clipped."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % K
    return ImageSet(rng.integers(40, 216, (n, SIDE, SIDE, 3)).astype(np.uint8), labels, CLASSES)


DATA = DomainDataset("noise-to-hiss", domain(1), domain(2), "made in the tests", "none needed")


def defense(name: str, **config: Any) -> DefensePlugin:
    return DefensePlugin(name=name, version="1", config=config)


def perturbed(
    images: ImageSet, eps: Sequence[float], stands: Sequence[float], attacks: Sequence[str], every: bool, seed: int,
    victims: int, right: float,
) -> tuple[Perturbed, np.ndarray, np.ndarray]:  # fmt: skip
    """The artifact, clean answers (V, n) and adversarial ones (V, E, n). stands: share of all images, by radius."""
    rng = np.random.default_rng(seed)
    n, label = len(images), images.labels
    order = rng.permutation(n)
    clean = np.broadcast_to(
        np.where(np.isin(np.arange(n), order[: round(right * n)]), label, (label + 1) % K), (victims, n)
    )
    said = np.repeat(clean[:, None], len(eps), 1)
    broken = np.where(said == label, SURVIVED, WRONG).astype(np.int64)
    where, moved = [], []
    for v in range(victims):
        for e, (radius, share) in enumerate(zip(eps, stands, strict=True)):
            fell = order[round(share * n) : round(right * n)]
            said[v, e, fell] = (label[fell] + 2) % K
            broken[v, e, fell] = np.arange(len(fell)) % len(attacks)
            for i in sorted(order if every else fell):
                x = images.images[i].transpose(2, 0, 1) / 255
                sign = np.where(rng.random(x.shape) < 0.5, -1, 1)
                where.append((v, e, i))
                moved.append(np.clip(x + radius * sign, 0, 1).astype(np.float32))
    shape = broken.shape
    artifact = Perturbed(
        norm="Linf", eps=np.array(eps, dtype=np.float64), main=MAIN, attacks=tuple(attacks),
        rows=np.arange(n, dtype=np.int64), broken=broken, where=np.array(where, dtype=np.int64).reshape(-1, 3),
        images=np.array(moved, dtype=np.float32).reshape(-1, 3, SIDE, SIDE),
        forwards=np.full(shape, 22, np.int64), backwards=np.full(shape, 20, np.int64),
        notes={"loss": "ce", "spent": {attacks[0]: [21, 20]}, "ensemble": "custom ensemble: <few>"},
    )  # fmt: skip
    return artifact, clean, said


def outcomes(artifact: Perturbed, labels: np.ndarray, clean: np.ndarray, said: np.ndarray) -> pd.DataFrame:
    shape = said.shape
    distance = np.zeros(shape, np.float32)
    distance[tuple(artifact.where.T)] = artifact.eps[artifact.where[:, 1]]
    columns = (
        np.arange(shape[0])[:, None, None], artifact.eps[:, None], artifact.rows, labels, clean[:, None], said,
        artifact.broken, distance, artifact.forwards, artifact.backwards,
    )  # fmt: skip
    return pd.DataFrame(
        {k: np.broadcast_to(c, shape).ravel() for k, c in zip(OUTCOME_COLUMNS, columns, strict=True)}
    )


def probes(victims: int, **found: float) -> pd.DataFrame:
    values = {
        "classes": (K, 40), "logit-difference": (0, 40), "answers-differ": (0, 40), "probabilities": (0, 40),
        "zero-gradient-ce": (0, 30), "zero-gradient-margin": (0, 30), "left-in-the-full-ball": (0, 30),
        "autograd-in-forward": (0, 2), "target-labels-used": (0, 0), "replayed": (0, 0),
    }  # fmt: skip
    rows = [
        (v, name, float(found.get(name.replace("-", "_"), value)), n)
        for v in range(victims)
        for name, (value, n) in values.items()
    ]
    return pd.DataFrame(rows, columns=["victim", "name", "value", "n"])


def training(labels: np.ndarray, victims: int) -> dict[str, pd.DataFrame]:
    """selection, history and pseudo. The state at 200 is attacked; the last one, at 400, is worse, and the oracle's,
    at 300, better."""
    taken = {"source-clean": 400, "source-pgd": 300, "pseudo": 200, "oracle": 300, "last": 400}
    good = {200: 0.5, 300: 0.6, 400: 0.3}
    select, past, pseudo = [], [], []
    for v in range(victims):
        for name in SELECTORS:
            stands = np.arange(len(labels)) < good[taken[name]] * len(labels)
            said = np.where(stands, labels, (labels + 1) % K)
            pairs = enumerate(zip(labels, said, strict=True))
            select += [(v, name, taken[name], name == "pseudo", i, y, y, a) for i, (y, a) in pairs]
        for step in (100, 200, 300, 400):
            for place, c in enumerate(("source_clean", "source_pgd", "pseudo", "oracle", "oracle_clean")):
                past.append((v, step, c, 0.1 * place + step / 1000 + 0.05 * v, 20, step == 200))
        pseudo += [(v, i, i % K, i % K if i % 4 else (i + 1) % K) for i in range(40)]
    tables = (
        ("selection", select, SELECTION_COLUMNS),
        ("history", past, HISTORY_COLUMNS),
        ("pseudo", pseudo, PSEUDO_COLUMNS),
    )
    return {name: pd.DataFrame(rows, columns=list(columns)) for name, rows, columns in tables}


def blank(seed: int = 0, task: Mapping[str, Any] | None = None) -> Record:
    """A record of the task, with nothing measured."""
    base = plain_record(metrics=())
    cell = base.cell.model_copy(update={
        "threat": "evasion", "seed": seed, "defenses": (),
        "task": TaskInfo(dataset=DATA.name, digest=DATA.digest, target="classifier", model="digit-cnn-small",
                         config={**TASK, **(task or {})}),
    })  # fmt: skip
    return base.model_copy(update={"cell": cell, "id": cell.id})


def write_run(
    root: Path, *defenses: DefensePlugin, attack: str = "pgd", attacks: Sequence[str] = ("pgd",), seed: int = 0,
    eps: Sequence[float] = (0.05, MAIN, 0.2), stands: Sequence[float] = (0.7, 0.4, 0.1), right: float = 0.8,
    every: bool = False, role: Any = "attack", victims: int = 2, trained: bool = True,
    settings: Mapping[str, Any] | None = None, task: Mapping[str, Any] | None = None, **probe: float,
) -> tuple[Path, Record]:  # fmt: skip
    """A scored run. stands: robust accuracy at each radius; right: accuracy. Others: see `perturbed`, `probes`."""
    base = blank(seed, {"victims": victims, **(task or {})})
    images = examples_of(base, DATA)
    artifact, clean, said = perturbed(images, eps, stands, attacks, every, seed, victims, right)
    tables = {"outcomes": outcomes(artifact, images.labels, clean, said), "probes": probes(victims, **probe)}
    tables |= training(images.labels, victims) if trained else {}
    scored = rescore(artifact, tables)
    further = [e for e in eps if e != MAIN]
    config = {"norm": "Linf", "eps": MAIN, "curve": further, "batch": 250, "steps": 20, **(settings or {})}
    cell = base.cell.model_copy(update={
        "defenses": defenses,
        "attack": Plugin(name=attack, version="1", config=config, digest=digest_json([attack, config])),
    })  # fmt: skip
    folder = root / cell.id
    return folder, save_run(folder, base, artifact, tables, scored, cell=cell, id=cell.id, role=role)
