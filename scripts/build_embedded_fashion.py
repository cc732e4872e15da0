"""Build the Fashion-MNIST that ships inside the package from the original IDX files.

    python scripts/build_embedded_fashion.py --idx-dir DATA/FashionMNIST/raw --out redteam/data/embedded

The same IDX files give the same bytes on every run (with the same liblzma). Takes about 20 s.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

from redteam.data.embedded import MANIFEST, pack, shrink
from redteam.data.idx import read_idx_split

_RECIPE = "2x2 mean (sum+2)//4, then min(63,(v+2)//4)*4"


def build(idx_dir: Path, out: Path) -> dict[str, dict[str, object]]:
    """Write four packed arrays and the manifest into `out`; returns the manifest's `files`."""
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, object]] = {}
    for split in ("train", "test"):
        images, labels = read_idx_split(idx_dir, split)
        arrays = {"images": shrink(images[..., 0]), "labels": labels.astype(np.uint8)}
        for part, array in arrays.items():
            name, data = f"{split}-{part}.npy.xz", pack(array)
            (out / name).write_bytes(data)
            files[name] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "shape": list(array.shape),
            }
    manifest = {"source": "Fashion-MNIST, Zalando SE, MIT licence", "recipe": _RECIPE, "files": files}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return files


def main() -> None:
    """Parse the command line, build, and print what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idx-dir", type=Path, required=True, help="folder with the four IDX files (or .gz)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    args = parser.parse_args()
    for name, entry in build(args.idx_dir, args.out).items():
        print(f"{name}  {entry['bytes']} bytes  sha256 {entry['sha256']}")


if __name__ == "__main__":
    main()
