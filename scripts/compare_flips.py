"""Which source rows do the label-only attacks choose? Overlap with the inner-product control, by seed.

    python -m scripts.compare_flips --store runs --dataset fashion-mini --budget 400

For each seed: how many of FLIP's flips are source rows, their mean quantile in the stripe product
<x - mean, T(x) - x> among the source rows (0.5: like random rows), and how many of them the
inner-product control flips too, beside what chance would give.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from attacks.poisoning.inner_product_flips import inner_products
from redteam import data
from redteam.core.store import Store, read_run
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison


def flipped(store: Store, dataset: str, budget: int) -> dict[tuple[str, int], tuple[np.ndarray, Poison]]:
    """Rows flipped by (attack, seed), with the artifact."""
    out = {}
    for record in store.records():
        cell = record.cell
        if (
            record.status == "ok"
            and cell.task.dataset == dataset
            and cell.attack.config.get("budget") == budget
        ):
            _, artifact, tables = read_run(store.folder(record.id))
            out[cell.attack.name, cell.seed] = tables["flips"]["index"].to_numpy(), artifact
    return out


def main() -> None:
    """Print one line for each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--dataset", default="fashion-mini")
    parser.add_argument("--budget", type=int, default=400)
    args = parser.parse_args()
    train = data.load(args.dataset).train
    found = flipped(Store(args.store), args.dataset, args.budget)
    for (attack, seed), (rows, artifact) in sorted(found.items(), key=lambda item: item[0]):
        if attack != "flip" or ("inner-product-flips", seed) not in found:
            continue
        sources = np.flatnonzero(train.labels == artifact.source_class)
        images = train.images[sources]
        scores = inner_products(images, triggers.direction(artifact.trigger, images, sources))
        quantile = dict(zip(sources.tolist(), rankdata(scores) / len(scores), strict=True))
        chosen = [r for r in rows.tolist() if r in quantile]
        other = found["inner-product-flips", seed][0]
        shared, chance = len(set(chosen) & set(other.tolist())), len(chosen) * len(other) / len(sources)
        print(
            f"seed {seed}: {len(chosen)} of {len(rows)} flips are source rows, mean quantile "
            f"{np.mean([quantile[r] for r in chosen]):.2f}; {shared} shared with inner-product-flips, "
            f"{chance:.0f} by chance"
        )


if __name__ == "__main__":
    main()
