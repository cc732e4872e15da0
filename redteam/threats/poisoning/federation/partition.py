"""Which client holds which training rows: dealt class by class, like cards."""

from __future__ import annotations

from typing import Literal

import numpy as np

from redteam.core.errors import ConfigError


def deal(counts: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows for clients that want `counts` (N, C) images of each class, all the same number n in total.

    A class is a shuffled deck of its rows, shuffled again each time it runs out, so rows of one class are
    held equally often to within one, and clients share rows only where more are wanted than there are.
    labels: (M,) int64. Returns (N, n) int64, in the order of the classes.

    Raises:
        ConfigError: a class is wanted that no row has.
    """
    clients, classes = counts.shape
    wanted = np.repeat(np.tile(np.arange(classes), clients), counts.ravel())
    rows = np.empty(len(wanted), np.int64)
    for label in range(classes):
        places = np.flatnonzero(wanted == label)
        deck = np.flatnonzero(labels == label)
        if not len(places):
            continue
        if not len(deck):
            raise ConfigError(f"clients want images of class {label}, and the training set has none")
        decks = [rng.permutation(deck) for _ in range(-(-len(places) // len(deck)))]
        rows[places] = np.concatenate(decks)[: len(places)]
    return rows.reshape(clients, -1)


def mixes(
    split: Literal["homogeneous", "dirichlet"],
    clients: int,
    images: int,
    present: np.ndarray,
    concentration: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """How many images of each class each client holds: (N, C) int64, rows sum to `images`.

    present: (C,) bool, classes that have rows; the others get none. homogeneous: equal counts; what does not
    divide goes one each to classes in turn, so that over all clients classes differ by one at most.
    dirichlet: multinomial counts of shares drawn from a symmetric Dirichlet, one draw a client.
    """
    some = np.flatnonzero(present)
    out = np.zeros((clients, len(present)), np.int64)
    if split == "homogeneous":
        whole, rest = divmod(images, len(some))
        out[:, some] = whole
        turn = (np.arange(clients)[:, None] * rest + np.arange(rest)) % len(some)
        np.add.at(out, (np.arange(clients)[:, None], some[turn]), 1)
    else:
        shares = rng.dirichlet(np.full(len(some), concentration), clients)
        out[:, some] = rng.multinomial(images, shares)
    return out


def partition(
    labels: np.ndarray,
    classes: int,
    *,
    clients: int,
    images: int,
    split: Literal["homogeneous", "dirichlet"],
    concentration: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The rows of (M,) int64 `labels` that each of N clients holds: (N, images) int64."""
    present = np.bincount(labels, minlength=classes) > 0
    counts = mixes(split, clients, images, present, concentration, rng)
    return deal(counts, labels, rng)
