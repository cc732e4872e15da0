"""Pairs of digit domains: all (32, 32, 3) uint8, ten classes. Where two share base digits, each digit is on one side.

The five domains of [dart2024] are mnist, mnist-m, svhn, syn and usps, resized to 32x32 colour (specs 3.5).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from redteam.core.errors import DataError, UnknownNameError
from redteam.core.hashing import digest_arrays, digest_json
from redteam.data import catalog
from redteam.data.access import Access
from redteam.data.cache import Bundle, cached
from redteam.data.labels import DIGITS
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.data import names, originals, starred
from redteam.threats.evasion.domain import DomainDataset

_LOG = logging.getLogger(__name__)
PAIR = "-to-"
# Images of syn* and of svhn*: as many as it takes to draw them in seconds.
DRAWN = 10_000
# Domains made of MNIST's digits. Base ids: row of the training set, or this plus the row of the test set.
_MNIST_FAMILY = frozenset({"mnist", "mnist-m", "mnist-m*"})
_MNIST_TRAIN = 60_000
# Domains that may come from a copy with lossy bytes.
_LOSSY_TOO = frozenset({"mnist", "mnist-m*", "usps", "svhn"})
_FONTS_LICENCE = "drawn by redteam with fonts that matplotlib ships (DejaVu, STIX, Computer Modern)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One domain.

    images: all of them, (N, 32, 32, 3). base: (N,) int64, which MNIST digit each image is made of; None where it
    is made of none, or nobody can know. name: with `-jpeg` where only lossy bytes were at hand.
    """

    name: str
    images: ImageSet
    base: np.ndarray | None
    origin: str
    licence: str


def canonical(name: str) -> str:
    """A domain's name with its star: shells expand `*`, so `syn-star` is understood for `syn*`.

    Raises:
        UnknownNameError: no such domain.
    """
    base, lossy = catalog.plain(name), name[len(catalog.plain(name)) :]
    starry = f"{base.removesuffix('-star')}*" if base.endswith("-star") else base
    if starry not in names.DIGIT_DOMAINS or (lossy and starry not in _LOSSY_TOO):
        raise UnknownNameError("domain", name, names.DIGIT_DOMAINS)
    return starry + lossy


def load_digit_pair(name: str, access: Access) -> DomainDataset:
    """`SOURCE-to-TARGET` of two digit domains.

    Two domains made of MNIST's digits get different digits: half of the ids to each side, for ever the same halves.

    Raises:
        UnknownNameError: no such domain. DataError: one domain twice, or data that is missing or damaged.
    """
    pair = tuple(canonical(part) for part in name.split(PAIR, 1))
    kinds = {catalog.plain(part) for part in pair}
    if len(kinds) == 1:
        raise DataError(
            f"'{name}': expected two different domains, got '{kinds.pop()}' twice; there would be nothing to adapt "
            f"to. Known: {', '.join(sorted(names.DIGIT_DOMAINS))}"
        )
    how = ""
    if kinds <= _MNIST_FAMILY:
        # Both sides from one copy of MNIST: rows of two copies need not be the same digits.
        lossy = next((p[len(catalog.plain(p)) :] for p in pair if p != catalog.plain(p)), "")
        pair = tuple(p if p == "mnist-m" else catalog.plain(p) + lossy for p in pair)
        a, b = (load_domain(part, access, half=i, mnist=f"mnist{lossy}") for i, part in enumerate(pair))
        how = "; MNIST's digits divided in halves by their ids: no digit is on both sides"
        if a.base is None or b.base is None:
            a, b = (load_domain(part, access) for part in pair)
            how = "; this copy of MNIST-M is not in the order of MNIST: the same digits may be on both sides"
            _LOG.warning("'%s'%s", name, how.replace("; ", ": ", 1))
    else:
        a, b = (load_domain(part, access) for part in pair)
    return DomainDataset(
        name=f"{a.name}{PAIR}{b.name}",
        source=a.images,
        target=b.images,
        origin=f"source: {a.origin}; target: {b.origin}{how}",
        licence=a.licence if a.licence == b.licence else f"source: {a.licence}; target: {b.licence}",
    )


def load_domain(name: str, access: Access, half: int | None = None, mnist: str = "mnist") -> Domain:
    """One digit domain by its name: training and test images joined.

    half: of a domain made of MNIST's digits, only those whose id falls in half 0 or 1. mnist: the copy of MNIST by
    which the ids of MNIST-M are found.

    Raises:
        UnknownNameError: no such domain. DataError: data that is missing or damaged.
    """
    name = canonical(name)
    if name in ("syn*", "svhn*"):
        return _drawn(name)
    if catalog.plain(name) == "mnist-m*":
        return _blended(name.replace("-m*", ""), access, half)
    if name == "syn":
        return _original(name, *originals.load_syn(access))
    if name == "mnist-m":
        return _mnist_m(access, half, mnist)
    return _standard(name, access, half)


def halves(ids: np.ndarray) -> np.ndarray:
    """0 or 1 for each base id, by a hash of the id alone: (N,) int64 to (N,) int64."""
    bits = (
        hashlib.blake2b(f"domains/base/{i}".encode(), digest_size=1).digest()[0] & 1 for i in ids.tolist()
    )
    return np.fromiter(bits, np.int64, len(ids))


def to_32(images: np.ndarray) -> np.ndarray:
    """Any size to 32x32, bilinear: (N, H, W, C) uint8 to (N, 32, 32, C) uint8."""
    if images.shape[1:3] == (starred.SIZE, starred.SIZE):
        return images
    out = np.empty((len(images), starred.SIZE, starred.SIZE, images.shape[3]), np.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        small = picture.resize((starred.SIZE, starred.SIZE), Image.Resampling.BILINEAR)
        out[i] = np.asarray(small).reshape(out.shape[1:])
    return out


def _colour(images: np.ndarray) -> np.ndarray:
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def _joined(name: str, access: Access) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, str, str]:
    """A data set's training and test images, one after the other, and their base ids."""
    of = catalog.load(name, data_dir=str(access.data_dir), offline=access.offline, download=access.download)
    ids = np.concatenate([np.arange(len(of.train)), _MNIST_TRAIN + np.arange(len(of.test))])
    images = np.concatenate([of.train.images, of.test.images])
    labels = np.concatenate([of.train.labels, of.test.labels])
    return of.name, images, labels, ids, of.source, of.licence


def _standard(name: str, access: Access, half: int | None) -> Domain:
    title, images, labels, ids, origin, licence = _joined("digits" if name == "optdigits" else name, access)
    mnist = catalog.plain(name) == "mnist"
    rows = halves(ids) == half if mnist and half is not None else np.ones(len(ids), bool)
    return Domain(
        name=name if name == "optdigits" else title,
        images=ImageSet(_colour(to_32(images[rows])), labels[rows], DIGITS),
        base=ids[rows] if mnist else None,
        origin=f"{origin}, both used, at 32x32",
        licence=licence,
    )


def _blended(mnist: str, access: Access, half: int | None) -> Domain:
    title, images, labels, ids, origin, licence = _joined(mnist, access)
    rows = halves(ids) == half if half is not None else np.ones(len(ids), bool)
    digits, labels, ids = to_32(images[rows])[..., 0], labels[rows], ids[rows]
    key = digest_json([digest_arrays({"digits": digits, "ids": ids}), starred.VERSION, starred.versions()])
    made = cached(
        f"domain-mnist-m-star-{key[:32]}", lambda: Bundle({"images": starred.blend(digits, ids)}, {})
    )
    lossy = "-jpeg" if title.endswith("-jpeg") else ""
    return Domain(
        name=f"mnist-m*{lossy}",
        images=ImageSet(made.arrays["images"], labels, DIGITS),
        base=ids,
        origin=f"mnist-m* (not MNIST-M), recipe {starred.VERSION}: textures made by rule with digits of {origin}",
        licence=licence,
    )


def _drawn(name: str) -> Domain:
    recipe: Callable[[int], tuple[np.ndarray, np.ndarray]]
    recipe = starred.draw_syn if name == "syn*" else starred.draw_svhn

    def build() -> Bundle:
        images, labels = recipe(DRAWN)
        return Bundle({"images": images, "labels": labels}, {})

    drawn_with = starred.versions()
    key = digest_json([name, starred.VERSION, DRAWN, drawn_with])
    made = cached(f"domain-{name[:-1]}-star-{key[:32]}", build)
    tools = ", ".join(f"{tool} {version}" for tool, version in drawn_with.items())
    return Domain(
        name=name,
        images=ImageSet(made.arrays["images"], made.arrays["labels"], DIGITS),
        base=None,
        origin=f"{name} (not {name[:-1].upper()}), recipe {starred.VERSION}: {DRAWN:,} digits drawn with {tools}",
        licence=_FONTS_LICENCE,
    )


def _original(name: str, images: np.ndarray, labels: np.ndarray, base: np.ndarray | None = None) -> Domain:
    title, licence = originals.TITLES[name]
    return Domain(
        name=name,
        images=ImageSet(_colour(to_32(images)), labels, DIGITS),
        base=base,
        origin=f"{title}; {len(labels):,} training and test images, at 32x32",
        licence=licence,
    )


def _mnist_m(access: Access, half: int | None, mnist: str) -> Domain:
    """MNIST-M; where half of it is asked for, and its order is not MNIST's, all of it, without ids."""
    images, labels, split = originals.load_mnist_m(access)
    if half is None:
        return _original("mnist-m", images, labels)
    base = _base_of(labels, split, *_joined(mnist, access)[2:4])
    if base is None:
        return _original("mnist-m", images, labels)
    rows = halves(base) == half
    return _original("mnist-m", images[rows], labels[rows], base[rows])


def _base_of(labels: np.ndarray, split: np.ndarray, mnist: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
    """MNIST's ids of the rows of MNIST-M, if the labels of both run alike from the first; else None.

    labels, split: (N,) of MNIST-M, split 0 for its training part and 1 for its test part. mnist, ids: MNIST's labels.
    """
    base = np.empty(len(labels), np.int64)
    for part, offset in ((0, 0), (1, _MNIST_TRAIN)):
        ours, theirs = labels[split == part], mnist[(ids >= _MNIST_TRAIN) == part]
        common = min(len(ours), len(theirs))
        if not common or not np.array_equal(ours[:common], theirs[:common]):
            return None
        base[split == part] = offset + np.arange(len(ours))
    return base
