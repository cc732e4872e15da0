"""Names of domains and of pairs of them. Imports nothing heavy."""

from __future__ import annotations

from redteam.data.catalog import plain

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


def is_pair(name: str) -> bool:
    """Whether a name is of the form `SOURCE-to-TARGET`, or begins like a pair of domain folders."""
    kinds = tuple(f"{known.partition(':')[0]}:" for known in _DOMAIN_FOLDERS)
    return name.startswith(kinds) or ("-to-" in name and not name.startswith(("folder:", "hf:")))


def is_lone_domain(name: str) -> bool:
    """Whether a name is that of a digit domain which is no data set."""
    return plain(name).replace("-star", "*") in DIGIT_DOMAINS and plain(name) not in STANDARD_DIGITS


def claimed(name: str) -> str | None:
    """What a name means to evasion alone, in words; None if it means nothing to it."""
    if is_pair(name):
        return "a pair of domains, for targets that adapt"
    return "a domain, one side of a pair, for targets that adapt" if is_lone_domain(name) else None
