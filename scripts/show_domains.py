"""A picture of some images of each digit domain, one column a class, to look at before trusting a recipe.

    python -m scripts.show_domains domains.png --data-dir data
    python -m scripts.show_domains syn.png --domains 'syn*' 'svhn*' --rows 8

Domains whose files are not at hand are passed over, and named.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from redteam.core.errors import DataError
from redteam.core.files import atomic_path
from redteam.data.access import Access
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.data.digits import load_domain
from redteam.threats.evasion.data.names import DIGIT_DOMAINS

SCALE, TITLE = 2, 14


def rows_of(images: ImageSet, rows: int, repeats: int) -> np.ndarray:
    """`rows` rows of `repeats` x K images, label by label: (rows * H, repeats * K * W, 3) uint8."""
    found = [np.flatnonzero(images.labels == label)[: rows * repeats] for label in range(len(images.classes))]
    short = min(map(len, found))
    if short < rows * repeats:
        raise DataError(
            f"expected {rows * repeats} images of each class, one has {short}; ask for fewer --rows"
        )
    grid = images.images[np.stack(found, axis=1).reshape(rows, -1)]
    n, k, h, w, _ = grid.shape
    return grid.transpose(0, 2, 1, 3, 4).reshape(n * h, k * w, 3)


def titled(sheet: np.ndarray, title: str) -> Image.Image:
    """A sheet, enlarged, below its name."""
    picture = Image.fromarray(sheet)
    picture = picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)
    out = Image.new("RGB", (picture.width, picture.height + TITLE), "white")
    ImageDraw.Draw(out).text((2, 0), title, "black")
    out.paste(picture, (0, TITLE))
    return out


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--data-dir", help="where data lies; without it REDTEAM_DATA")
    parser.add_argument("--domains", nargs="+", default=list(DIGIT_DOMAINS))
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="images of each class in a row")
    args = parser.parse_args()
    access = Access.resolve(args.data_dir, offline=True, download=False)
    sheets = []
    for name in args.domains:
        try:
            domain = load_domain(name, access)
        except DataError as error:
            print(f"passed over: {error}")
            continue
        counts = np.bincount(domain.images.labels, minlength=len(domain.images.classes))
        sheets.append(
            titled(rows_of(domain.images, args.rows, args.repeats), f"{domain.name}: {counts.sum():,}")
        )
        print(f"{domain.name}: {counts.sum():,} images, {counts.min():,} to {counts.max():,} a class")
    if not sheets:
        raise SystemExit("no domain is at hand")
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    with atomic_path(args.out) as partial:
        whole.save(partial, "PNG")


if __name__ == "__main__":
    main()
