"""Poisoning: what a model learns is changed so that it carries a backdoor.

The attacker changes some training labels or images of a training pipeline (`trainable`), or holds some clients of a
federation (`federation`, a room inside this one: SPECTRE, shadow and random removal defend both under one name). It
wants images that wear a trigger to get a class of its choice, while clean accuracy stays. A defence filters the rows
or the clients' updates, trains robustly, or aggregates by a rule. The scorer holds the artifact to the budget, trains
victims afresh with clean references from the same seeds, and asks them all about every test image, plain and
triggered. Headline metrics: `pta`, `trigger_lift`, `asr` over rounds, `cta`, and what a filter removed.
"""

from pathlib import Path

from redteam.core.threat import TargetEntry, Threat

THREAT = Threat(
    name="poisoning",
    targets=(
        TargetEntry(
            kind="trainable", threat="poisoning", target="image-classifier", artifact="poison",
            type="redteam.threats.poisoning.seam:TRAINABLE",
        ),
        TargetEntry(
            kind="federation", threat="poisoning", target="federation", artifact="clients",
            type="redteam.threats.poisoning.federation.seam:FEDERATION",
        ),
    ),
    board=Path(__file__).with_name("board.toml"),
)  # fmt: skip
