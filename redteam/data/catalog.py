"""The data sets that several threats share, by name, and the function that loads images."""

from __future__ import annotations

from redteam.core.errors import DataError, UnknownNameError
from redteam.core.threat import DataSource, claimed
from redteam.data.access import Access
from redteam.data.nouns import ImageDataset

_EMBEDDED = {
    "fashion-mini": "Fashion-MNIST at 14x14 grey, first 20,000 / 10,000; in the package; the default",
    "digits": "scikit-learn's handwritten digits, 8x8 grey, 1,297 / 500; no download",
    "fashion-mnist-14": "all of Fashion-MNIST at 14x14 grey, 6 bits, 60,000 / 10,000; in the package",
}
_STANDARD = {
    "cifar10": "CIFAR-10, 32x32 colour, 10 classes, 50,000 / 10,000",
    "cifar100": "CIFAR-100, 32x32 colour, 100 fine classes, 50,000 / 10,000",
    "cifar20": "CIFAR-100 with its 20 coarse classes, 32x32 colour, 50,000 / 10,000",
    "fashion-mnist": "Fashion-MNIST, 28x28 grey, 10 classes, 60,000 / 10,000",
    "mnist": "MNIST, 28x28 grey digits, 60,000 / 10,000",
    "svhn": "Street View House Numbers, 32x32 colour digits, 73,257 / 26,032",
    "usps": "USPS, 16x16 grey digits, 7,291 / 2,007",
}
_FOLDERS = {
    "tiny-imagenet": "Tiny ImageNet, 64x64 colour, 200 classes, 100,000 / 10,000 (its validation set)",
    "folder:PATH": "any folder PATH/train/<class>/*, PATH/test/<class>/*; ?size=32 resizes and crops",
    "hf:PATH_OR_ID": "any Hugging Face image classification set: a local Parquet folder or a hub id",
}
# Sets of strings, for language models: `redteam.data.texts.load_texts` loads them.
TEXTS: dict[str, str] = {
    "harmless-strings": "130 harmless sentences, lists, numbers, products and lines of code; in the package",
    "random-words": "100 strings of 10 common English words each, drawn with a seed; in the package",
    "moderated-topics": "104 harmless texts on topics that the embedded classifier moderates; in the package",
    "file:PATH": "your own strings: .txt with one a line, .csv or .jsonl with target, goal or text",
}
_LOSSY = "-jpeg"


def names() -> dict[str, str]:
    """The sets of images and of strings, with a line on each. Threats bring their own besides."""
    return {**_EMBEDDED, **_STANDARD, **_FOLDERS, **TEXTS}


def load(
    name: str, *, data_dir: str | None = None, offline: bool = False, download: bool = False
) -> ImageDataset:
    """Load a data set into memory.

    Args:
        name: a key of `names()` but not of `TEXTS`, `folder:PATH[?size=N]`, or `hf:PATH_OR_ID`.
            `<name>-jpeg`, the name that a standard set gets when only lossy bytes are at hand, is understood too.
        data_dir: where existing copies are looked for and downloads go. Without it: the environment's
            `REDTEAM_DATA`, else the user's cache folder.
        offline: forbid the network.
        download: allow a download where no copy is found.

    Raises:
        UnknownNameError: no such name.
        DataError: the data is missing, malformed or not what its name says, or no set of images.
    """
    if name in TEXTS or name.startswith("file:"):
        raise DataError(f"'{name}' is a set of strings for language models; expected a set of images")
    if (what := claimed(name)) is not None:
        raise DataError(f"'{name}' is {what}; expected a set of images")
    access = Access.resolve(data_dir, offline=offline, download=download)
    if name.startswith("folder:"):
        from redteam.data.folder import load_folder

        return load_folder(name)
    if name.startswith("hf:"):
        from redteam.data.hub import load_hf

        return load_hf(name, access)
    return _load_named(name, access)


def load_from(name: str, source: DataSource) -> ImageDataset:
    """`load` with what the command line says of where data lie."""
    return load(name, data_dir=source.data_dir, offline=source.offline, download=source.download)


def plain(name: str) -> str:
    """A data set's or domain's name without what says that its bytes are lossy."""
    return name.removesuffix(_LOSSY)


def _load_named(name: str, access: Access) -> ImageDataset:
    if name == "digits":
        from redteam.data.embedded import load_digits

        return load_digits()
    if name in ("fashion-mnist-14", "fashion-mini"):
        from redteam.data.embedded import MINI_ROWS, load_fashion14

        return load_fashion14(rows=MINI_ROWS if name == "fashion-mini" else None)
    if name == "tiny-imagenet":
        from redteam.data.tiny_imagenet import load_tiny_imagenet

        return load_tiny_imagenet(access)
    if name.removesuffix(_LOSSY) in _STANDARD:
        from redteam.data.standard import load_standard

        return load_standard(name.removesuffix(_LOSSY), access, want_lossy=name.endswith(_LOSSY))
    raise UnknownNameError("data set", name, names())
