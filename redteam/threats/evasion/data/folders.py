"""Pairs of domains in folders: PATH/<domain>/<class>/*. A domain is found by its name, never by its place in a list."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from redteam.core.errors import ConfigError, DataError, nearest
from redteam.data.decode import match_splits, size_error
from redteam.data.folder import class_files, read_classes, require_same_classes
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.domain import DomainDataset

PAIR = "-to-"
_OPTION = re.compile(r"(?P<rest>.+)\?size=(?P<size>[1-9]\d{0,4})", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One benchmark. domains: its folders' names; empty: any. classes: how many there are in the whole set."""

    title: str
    domains: tuple[str, ...]
    classes: int | None
    size: int | None
    licence: str


KINDS = {
    "officehome": _Kind(
        title="OfficeHome", domains=("Art", "Clipart", "Product", "Real World"), classes=65, size=224,
        licence="non-commercial research and education",
    ),
    "pacs": _Kind(
        title="PACS", domains=("art_painting", "cartoon", "photo", "sketch"), classes=7, size=224,
        licence="none stated",
    ),
    "visda": _Kind(
        title="VisDA-17", domains=("train", "validation", "test"), classes=12, size=224, licence="none stated",
    ),
    "domains": _Kind(title="domain folders", domains=(), classes=None, size=None, licence="unknown"),
}  # fmt: skip


def is_folder_pair(name: str) -> bool:
    """Whether a name begins like `officehome:`, `pacs:`, `visda:` or `domains:`."""
    return name.partition(":")[0] in KINDS and ":" in name


def load_folder_pair(name: str) -> DomainDataset:
    """`KIND:PATH:SOURCE-to-TARGET` or `KIND:PATH:SOURCE-to-TARGET?size=N`.

    Spelling of case, spaces, `_` and `-` in domain names does not matter. Size: shorter side resized, centre cut
    out; 224 unless said otherwise, and for `domains:` that of the files.

    Raises:
        ConfigError: a name that is not of this form. DataError: no such folder or domain, one domain twice, domains
            with different classes, an empty class, damaged images, sizes that differ, or too little memory.
    """
    kind, root, pair, size = _parse(name)
    spec = KINDS[kind]
    folders = _domain_folders(root)
    source, target = _pair(pair, kind, root, folders)
    size = size or spec.size
    a, b = (class_files(folders[domain]) for domain in (source, target))
    require_same_classes(folders[source], a, folders[target], b, what=f"the domains' ({source}, {target})")
    _require_memory(name, sum(len(f) for found in (a, b) for f in found.values()), size)
    hint = "" if size else f"; '{name}?size=32' resizes the shorter side and crops the centre"
    (images_a, labels_a), (images_b, labels_b) = (read_classes(found, size, hint) for found in (a, b))
    if images_a.shape[1:3] != images_b.shape[1:3]:
        raise size_error(images_a.shape, source, images_b.shape, target, hint)
    images_a, images_b = match_splits(images_a, images_b, hint)
    classes = tuple(a)
    of = f" of {spec.classes}" if spec.classes not in (None, len(classes)) else ""
    resized = f", resized and cropped to {size}x{size}" if size else ""
    return DomainDataset(
        name=f"{kind}:{root}:{source}{PAIR}{target}" + (f"?size={size}" if size else ""),
        source=ImageSet(images_a, labels_a, classes),
        target=ImageSet(images_b, labels_b, classes),
        origin=f"{spec.title}, folder {root.name}: {len(classes)}{of} classes, {len(labels_a):,} images of "
        f"{source} and {len(labels_b):,} of {target}{resized}",
        licence=spec.licence,
    )


def _parse(name: str) -> tuple[str, Path, str, int | None]:
    """Kind, path, pair and size. The pair stands after the last colon: PATH may hold colons and `-to-`."""
    kind, _, text = name.partition(":")
    match = _OPTION.fullmatch(text)
    path, _, pair = (match["rest"] if match else text).rpartition(":")
    example = f"{kind}:PATH:{PAIR.join(KINDS[kind].domains[:2] or ('A', 'B'))}"
    if not path or PAIR not in pair or "?" in pair:
        raise ConfigError(
            f"'{name}': expected {example} or {example}?size=N, with PATH/<domain>/<class>/ there"
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(
            f"'{name}': {root} is no folder; expected {example}. Nothing is downloaded: put it there"
        )
    return kind, root, pair, int(match["size"]) if match else None


def _domain_folders(root: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _pair(pair: str, kind: str, root: Path, folders: dict[str, Path]) -> tuple[str, str]:
    """The two folders' names. A domain's own name may hold `-to-`: each place to divide at is tried."""
    parts = pair.split(PAIR)
    ways = [(PAIR.join(parts[:i]), PAIR.join(parts[i:])) for i in range(1, len(parts))]
    fitting = [way for way in ways if all(_matches(part, folders) for part in way)]
    source, target = (_domain(part, kind, root, folders) for part in (fitting or ways)[0])
    if source == target:
        raise DataError(
            f"'{pair}': expected two different domains, got '{source}' twice; there would be nothing to adapt to"
        )
    return source, target


def _matches(name: str, folders: dict[str, Path]) -> list[str]:
    return [name] if name in folders else [known for known in folders if _plain(known) == _plain(name)]


def _domain(name: str, kind: str, root: Path, folders: dict[str, Path]) -> str:
    """The name of the one folder that is meant."""
    expected = KINDS[kind].domains
    if expected and _plain(name) not in map(_plain, expected):
        raise DataError(
            f"{KINDS[kind].title} has no domain '{name}'. {nearest(name, expected)} "
            f"Its domains: {', '.join(expected)}"
        )
    found = _matches(name, folders)
    if len(found) == 1:
        return found[0]
    there = ", ".join(list(folders)[:12]) or "none"
    if found:
        raise DataError(
            f"'{name}' is any of the folders {', '.join(found)} in {root}; write one name exactly"
        )
    raise DataError(
        f"expected a folder of the domain '{name}' in {root}, with a folder for each class. "
        f"{nearest(name, folders) if folders else ''} Folders there: {there}"
    )


def _require_memory(name: str, count: int, size: int | None) -> None:
    """Refuse what cannot fit: VisDA at 224 pixels takes 31 GB. Images of unknown size are not checked."""
    if size is None or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return
    have, need = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), count * size * size * 3
    if need > 0.8 * have:
        raise DataError(
            f"'{name}': {count:,} images at {size}x{size} take {need / 1e9:.1f} GB, and this machine has "
            f"{have / 1e9:.1f} GB; choose a smaller ?size="
        )
