"""Evasion: images are moved a little so that a classifier misreads them.

The attacker holds the network, the test images and their labels, or queries alone, and may move each image inside a
ball. The classifier may have been trained for another domain than the one it is judged on: a labelled source, an
unlabelled target. A defence is another training (adversarial, adapting, both). The scorer measures every image again
inside the ball by its own arithmetic. Headline metrics: `accuracy` and `robust_accuracy`, over attacks in the worst
case, and the gap to what labels of the target domain would have chosen.
"""

from pathlib import Path

from redteam.core.threat import TargetEntry, Threat
from redteam.threats.evasion.data.names import DOMAINS, claimed

THREAT = Threat(
    name="evasion",
    targets=(
        TargetEntry(
            kind="classifier", threat="evasion", target="classifier", artifact="perturbed",
            type="redteam.threats.evasion.seam:CLASSIFIER",
        ),
    ),
    board=Path(__file__).with_name("board.toml"),
    claims=claimed,
    lists={"Domains, for pairs SOURCE-to-TARGET": DOMAINS},
)  # fmt: skip
