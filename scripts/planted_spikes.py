"""Recall of planted spikes by SPECTRE, by the ports that get it wrong, and by the best possible score.

    python -m scripts.planted_spikes --seeds 20

5,000 standard Gaussians of 16 dimensions and 250 poisons shifted along one random direction; 375 rows are
flagged. Left half: scores alone, on data that are white to begin with (the clean covariance is I). Right half:
the whole of SPECTRE, which has to estimate that covariance. Cells: mean recall and its 95 % interval over seeds.
Takes about two minutes on one core.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from defenses.poisoning._spectre import que_scores, spectre
from defenses.poisoning.spectral_signatures import signature
from redteam.core.device import set_threads
from tests.defenses.poisoning.spikes import elementwise_scores, frobenius_scores, planted, recall, whitened

SHIFTS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
WAYS = (
    "optimum", "expm, white", "elementwise, white", "Frobenius, white", "SPECTRE, k = 16", "elementwise, whole",
    "Frobenius, whole", "spectral signatures", "random",
)  # fmt: skip


def recalls(seed: int, shift: float, variance: float, choose: bool = False) -> tuple[float, ...]:
    """Recall of each of `WAYS`; choose: and of SPECTRE with k chosen, which takes longer."""
    data = planted(seed, shift, variance=variance)
    x = data.features
    whole = spectre(x, 250, ks=[16])
    white = whitened(x, whole.selected)
    rng = np.random.default_rng(10_000 + seed)
    scores = (
        data.optimum(), que_scores(x), elementwise_scores(x), frobenius_scores(x), whole.scores,
        elementwise_scores(white), frobenius_scores(white), signature(x)[0], rng.random(len(x)),
    )  # fmt: skip
    chosen = [recall(spectre(x, 250).scores, data.poisoned)] if choose else []
    return (*(recall(s, data.poisoned) for s in scores), *chosen)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--choose", action="store_true", help="also SPECTRE with k chosen: ten times the time"
    )
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    args = parser.parse_args()
    set_threads(1)
    ways = (*WAYS, "SPECTRE, k chosen") if args.choose else WAYS
    for variance in (1.0, 0.4, 0.1):
        print(f"\nPoisons N(shift u, {variance:g} I), {args.seeds} seeds\n")
        print("| shift | " + " | ".join(ways) + " |\n|---" + "|---" * len(WAYS) + "|")
        for shift in args.shifts:
            table = np.array([recalls(seed, shift, variance, args.choose) for seed in range(args.seeds)])
            half = stats.t.ppf(0.975, max(args.seeds - 1, 1)) * stats.sem(table, axis=0)
            cells = [f"{m:.2f} ± {h:.2f}" for m, h in zip(table.mean(0), half, strict=True)]
            print(f"| {shift:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
