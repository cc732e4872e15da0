"""Every data set by name, and the functions that load images and pairs of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redteam.core.errors import DataError, UnknownNameError
from redteam.data.access import Access
from redteam.data.nouns import ImageDataset

if TYPE_CHECKING:
    from redteam.threats.evasion.domain import DomainDataset

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
# Users and tasks, for agents: `redteam.threats.agents.data.load.load_agents` loads them.
AGENTS: dict[str, str] = {
    "profiles": "45 made-up users, 36 fields, 10 tasks and a rule table of what may flow; in the package",
    "profiles@SEED": "other users, drawn with another seed",
    "jsonl:PATH": "users, tasks and rules of your own, as `redteam export agents` writes them",
    "privacylens:PATH": "your own copy of a PrivacyLens-style JSON file",
}
# Domains of digits, 32x32 colour: any two are a task, `SOURCE-to-TARGET`. `load_domains` loads it. A star: made here.
STANDARD_DIGITS = ("mnist", "usps", "svhn")
DIGIT_DOMAINS: dict[str, str] = {
    "mnist": "MNIST, all images",
    "usps": "USPS, all images",
    "svhn": "Street View House Numbers, all images",
    "optdigits": "scikit-learn's handwritten digits; no download",
    "mnist-m": "MNIST-M, from files that you place in the data folder",
    "syn": "SYN (synthetic digits), from files that you place in the data folder",
    "mnist-m*": "MNIST blended with made textures, like MNIST-M; `mnist-m-star` too",
    "syn*": "10,000 digits drawn with fonts on plain grounds, like SYN; `syn-star` too; no download",
    "svhn*": "10,000 drawn digits among others, blurred and noisy, like SVHN; `svhn-star` too; no download",
}
_DOMAIN_FOLDERS = {
    "officehome:PATH:A-to-B": "OfficeHome: Art, Clipart, Product, Real World; PATH/<domain>/<class>/*; ?size=N, 224",
    "pacs:PATH:A-to-B": "PACS: art_painting, cartoon, photo, sketch; ?size=N, 224",
    "visda:PATH:A-to-B": "VisDA-17: train, validation, test; ?size=N, 224",
    "domains:PATH:A-to-B": "any two folders PATH/A/<class>/*, PATH/B/<class>/*; ?size=N",
}
DOMAINS: dict[str, str] = {**DIGIT_DOMAINS, **_DOMAIN_FOLDERS}
_LOSSY = "-jpeg"


def names() -> dict[str, str]:
    """Every data set, images, strings and users, with a line on each; imports nothing heavy. Not `DOMAINS`."""
    return {**_EMBEDDED, **_STANDARD, **_FOLDERS, **TEXTS, **AGENTS}


def load(
    name: str, *, data_dir: str | None = None, offline: bool = False, download: bool = False
) -> ImageDataset:
    """Load a data set into memory.

    Args:
        name: a key of `names()` but not of `TEXTS` or `AGENTS`, `folder:PATH[?size=N]`, or `hf:PATH_OR_ID`.
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
    if name.partition("@")[0] in AGENTS or name.startswith(("jsonl:", "privacylens:")):
        raise DataError(f"'{name}' is a set of users for agents; expected a set of images")
    if is_pair(name) or is_lone_domain(name):
        what = "a pair of domains" if is_pair(name) else "a domain, one side of a pair"
        raise DataError(f"'{name}' is {what}, for targets that adapt; expected a set of images")
    access = Access.resolve(data_dir, offline=offline, download=download)
    if name.startswith("folder:"):
        from redteam.data.folder import load_folder

        return load_folder(name)
    if name.startswith("hf:"):
        from redteam.data.hub import load_hf

        return load_hf(name, access)
    return _load_named(name, access)


def load_domains(
    name: str, *, data_dir: str | None = None, offline: bool = False, download: bool = False
) -> DomainDataset:
    """Load a pair of domains, or an ordinary data set as one domain: see `redteam.threats.evasion.data.load_pair`."""
    from redteam.threats.evasion.data import load_pair

    return load_pair(name, Access.resolve(data_dir, offline=offline, download=download))


def plain(name: str) -> str:
    """A data set's or domain's name without what says that its bytes are lossy."""
    return name.removesuffix(_LOSSY)


def is_pair(name: str) -> bool:
    """Whether a name is of the form `SOURCE-to-TARGET`, or begins like a pair of domain folders."""
    kinds = tuple(f"{known.partition(':')[0]}:" for known in _DOMAIN_FOLDERS)
    return name.startswith(kinds) or ("-to-" in name and not name.startswith(("folder:", "hf:")))


def is_lone_domain(name: str) -> bool:
    """Whether a name is that of a digit domain which is no data set."""
    return plain(name).replace("-star", "*") in DIGIT_DOMAINS and plain(name) not in STANDARD_DIGITS


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
