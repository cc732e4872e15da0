"""The sets torchvision knows: an existing copy is read, else torchvision downloads if that is allowed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from redteam.core.errors import DataError
from redteam.data.access import Access, Origin, downloading
from redteam.data.facts import customary_facts
from redteam.data.labels import CIFAR10, CIFAR20, CIFAR100, DIGITS, FASHION
from redteam.data.nouns import ImageDataset, ImageSet
from redteam.data.parquet import Shards, find_shards, read_parquet
from redteam.data.torchvision_files import Arrays, fetch, is_present, read

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Standard:
    """One set. shape: (H, W, C). rows: official counts of training and test images.

    layout: what torchvision leaves in the data folder. labels: column names in Parquet.
    """

    title: str
    origin: Origin
    layout: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    rows: tuple[int, int]
    licence: str
    labels: tuple[str, ...] = ("label",)


def _cifar(title: str, megabytes: int, layout: str, classes: tuple[str, ...], *labels: str) -> _Standard:
    """One of the three sets of the University of Toronto: 32 x 32 pixels, 60,000 images."""
    who = "the University of Toronto (https://www.cs.toronto.edu/~kriz/cifar.html)"
    licence, counts = "none stated; cite Krizhevsky 2009", (50_000, 10_000)
    return _Standard(
        title, Origin(who=who, megabytes=megabytes), layout, classes, (32, 32, 3), counts, licence, labels
    )


_ZALANDO = "Zalando Research (https://github.com/zalandoresearch/fashion-mnist)"
_LECUN = "PyTorch's mirror of Yann LeCun's page (http://yann.lecun.com/exdb/mnist/)"
_STANFORD = "Stanford University (http://ufldl.stanford.edu/housenumbers/)"
_LIBSVM = "LIBSVM's page (https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/)"

_STANDARD = {
    "cifar10": _cifar("CIFAR-10", 171, "cifar-10-batches-py/", CIFAR10, "label"),
    "cifar100": _cifar("CIFAR-100", 169, "cifar-100-python/", CIFAR100, "fine_label", "label"),
    "cifar20": _cifar("CIFAR-100 with coarse labels", 169, "cifar-100-python/", CIFAR20, "coarse_label"),
    "fashion-mnist": _Standard(
        "Fashion-MNIST", Origin(who=_ZALANDO, megabytes=31), "FashionMNIST/raw/", FASHION, (28, 28, 1),
        (60_000, 10_000), "MIT, Copyright (c) 2017 Zalando SE",
    ),
    "mnist": _Standard(
        "MNIST", Origin(who=_LECUN, megabytes=12), "MNIST/raw/", DIGITS, (28, 28, 1), (60_000, 10_000), "CC BY-SA 3.0",
    ),
    "svhn": _Standard(
        "SVHN, cropped digits", Origin(who=_STANFORD, megabytes=246), "train_32x32.mat and test_32x32.mat", DIGITS,
        (32, 32, 3), (73_257, 26_032), "non-commercial use only",
    ),
    "usps": _Standard(
        "USPS", Origin(who=_LIBSVM, megabytes=8), "usps.bz2 and usps.t.bz2", DIGITS, (16, 16, 1), (7_291, 2_007),
        "none stated",
    ),
}  # fmt: skip


def load_standard(name: str, access: Access, *, want_lossy: bool = False) -> ImageDataset:
    """Load one set from torchvision's files, from Parquet in `<data_dir>/<name>/`, or from the network.

    A set decoded from lossy JPEG bytes is another data set, and its name says so: `<name>-jpeg`.

    Args:
        name: a key of the table above.
        access: data folder and permissions.
        want_lossy: accept nothing but lossy Parquet.

    Raises:
        DataError: absent and not to be downloaded, damaged, or not the set its name says.
    """
    spec, root = _STANDARD[name], access.data_dir
    if not want_lossy and is_present(name, root):
        return _dataset(name, spec, read(name, root), _origin_files(spec))
    shards = find_shards(root / name)
    if shards is not None:
        return _from_parquet(name, spec, shards, want_lossy=want_lossy)
    if want_lossy:
        raise DataError(
            f"'{name}-jpeg' exists only as Parquet with JPEG bytes, and {root / name} holds none: "
            f"ask for '{name}', or point --data-dir or REDTEAM_DATA at a copy"
        )
    access.permit(name, spec.origin, f"{spec.layout} and {name}/train-*.parquet")
    with downloading(name):
        fetch(name, root)
    return _dataset(name, spec, read(name, root), _origin_files(spec))


def _origin_files(spec: _Standard) -> str:
    return f"{spec.title}, original files as torchvision keeps them"


def _from_parquet(name: str, spec: _Standard, shards: Shards, *, want_lossy: bool) -> ImageDataset:
    content = read_parquet(shards, spec.labels)
    if content.classes is not None and len(content.classes) != len(spec.classes):
        raise DataError(
            f"{shards.train[0].parent}: expected the {len(spec.classes)} classes of '{name}', "
            f"its schema names {len(content.classes)}"
        )
    if want_lossy and not content.lossy:
        raise DataError(f"{shards.train[0].parent} holds lossless images: ask for '{name}'")
    arrays: Arrays = {
        "train": (content.train_images, content.train_labels),
        "test": (content.test_images, content.test_labels),
    }
    source = f"{spec.title}, Hugging Face Parquet"
    if not content.lossy:
        return _dataset(name, spec, arrays, source)
    if not want_lossy:
        _LOG.info("'%s' is at hand only as lossy JPEG: it is named '%s-jpeg'", name, name)
    source = f"{source} with lossy JPEG bytes (pixels differ from the original)"
    return _dataset(name, spec, arrays, source, suffix="-jpeg")


def _dataset(name: str, spec: _Standard, arrays: Arrays, source: str, suffix: str = "") -> ImageDataset:
    """Check the arrays against what the name promises, and state how many rows there are."""
    for split, (images, labels) in arrays.items():
        if images.shape[1:] != spec.shape:
            raise DataError(
                f"'{name}' has images of {spec.shape}, the {split} split here has {images.shape[1:]}"
            )
        if labels.max(initial=0) >= len(spec.classes):
            raise DataError(
                f"'{name}' has {len(spec.classes)} classes, the {split} split here has label {labels.max()}"
            )
    counts = (len(arrays["train"][1]), len(arrays["test"][1]))
    rows = " and ".join(
        f"{have:,} {split}" if have == want else f"{have:,} of {want:,} {split}"
        for have, want, split in zip(counts, spec.rows, ("training", "test"), strict=True)
    )
    return ImageDataset(
        name=name + suffix,
        train=ImageSet(*arrays["train"], spec.classes),
        test=ImageSet(*arrays["test"], spec.classes),
        facts=customary_facts(name, len(spec.classes)),
        source=f"{source}; {rows} images",
        licence=spec.licence,
    )
