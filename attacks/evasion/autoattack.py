"""AutoAttack: APGD-CE, APGD-T, FAB-T and Square, each on the survivors of those before it.

Threat: white-box. The attacker holds the network, the test images and their labels, and moves each image inside an
Linf or L2 ball. What it wants: every image misclassified.
`version=standard` is the ensemble by its definition: 100 steps, 1 restart, 9 target classes (fewer where there are
fewer than ten classes) and 5,000 queries, and is refused with other numbers. `version=custom` takes any, and the
artifact says which under a name that is not AutoAttack's. What survivors took is measured, and the name is not given
where it is less. Below four classes the margin stands in for DLR, and the notes say so.
FAB and Square need the extra `evasion` (pyautoattack); both APGDs are ours.
Source: [croce2020autoattack] Section 6; the numbers are those of the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from attacks.evasion import _apgd as apgd
from attacks.evasion import _library as library
from attacks.evasion._attack import Attempt, Radius, perturb, spec
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable

Member = Literal["apgd-ce", "apgd-t", "fab-t", "square"]
STANDARD: Mapping[str, Any] = {
    "steps": 100, "restarts": 1, "targets": 9, "queries": 5000, "rescale": False,
    "members": ("apgd-ce", "apgd-t", "fab-t", "square"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttack(Radius):
    """The ball, and the ensemble."""

    version: Literal["standard", "custom"] = knob(
        "standard", "standard: AutoAttack by its definition; custom: any other numbers, under another name"
    )
    steps: int = knob(100, "steps of each run of the gradient attacks", low=1)
    restarts: int = knob(1, "runs of each of them", low=1)
    targets: int = knob(9, "target classes, the likeliest first; at most all wrong ones", low=1)
    queries: int = knob(5000, "queries of Square for each example", low=1)
    rescale: bool = knob(False, "stretch Square's schedule of sizes, made for 10,000 queries, to so many")
    members: tuple[Member, ...] = knob(
        ("apgd-ce", "apgd-t", "fab-t", "square"), "the attacks, in the order in which they run"
    )

    def __post_init__(self) -> None:
        Radius.__post_init__(self)
        if not self.members or len(set(self.members)) != len(self.members):
            raise ConfigError(f"members: expected each attack once, got {', '.join(self.members) or 'none'}")
        given = {k: getattr(self, k) for k in STANDARD if getattr(self, k) != STANDARD[k]}
        if self.version == "standard" and given:
            came = ", ".join(f"{k}={_words(v)}" for k, v in given.items())
            means = ", ".join(f"{k}={_words(STANDARD[k])}" for k in given)
            raise ConfigError(
                f"version: AutoAttack standard means {means}; got {came}. Leave that out, or give version=custom, "
                "which is recorded as an ensemble of its own"
            )

    def name(self) -> str:
        """What a custom ensemble is called."""
        return "custom ensemble: " + ", ".join(f"{m} {self._size(m)}" for m in self.members)

    def _size(self, member: Member) -> str:
        if member == "square":
            return f"{self.queries} queries"
        runs = self.restarts * (1 if member == "apgd-ce" else self.targets)
        return f"{runs}x{self.steps}"


def _words(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value).lower()


def attempts(config: AutoAttack, classes: int) -> dict[str, Attempt]:
    """The members of the ensemble for so many classes, in order."""
    steps, restarts, targets = config.steps, config.restarts, min(config.targets, classes - 1)
    known: dict[str, Callable[[], Attempt]] = {
        "apgd-ce": lambda: apgd.attempt(steps=steps, restarts=restarts),
        "apgd-t": lambda: apgd.attempt(steps=steps, restarts=restarts, targets=targets),
        "fab-t": lambda: library.fab(steps=steps, restarts=restarts, targets=targets),
        "square": lambda: library.square(queries=config.queries, rescale=config.rescale),
    }
    return {name: known[name]() for name in config.members}


def due(config: AutoAttack, classes: int) -> dict[str, list[int]]:
    """Images put through and gradients taken that each member spends on an example that survives it."""
    steps, runs = config.steps, config.restarts * min(config.targets, classes - 1)
    # The last term of each: its images are judged; APGD-T and FAB-T also look where the classes stand.
    known = {
        "apgd-ce": [config.restarts * (steps + 1) + 1, config.restarts * steps],
        "apgd-t": [1 + runs * (steps + 1) + 1, runs * steps],
        "fab-t": [runs * (2 + 2 * steps + 1) + 1, runs * steps],
        "square": [config.queries + 1 + 1, 0],
    }
    return {name: known[name] for name in config.members}


def named(config: AutoAttack, classes: int, spent: Mapping[str, list[int]]) -> dict[str, Any]:
    """The notes that say which ensemble ran. It is AutoAttack only if no survivor took less than its definition says.

    spent: by member, [images, gradients] of the survivors; members without any are missing.
    """
    want = due(config, classes)
    short = [
        name for name, took in spent.items() if any(t < w for t, w in zip(took, want[name], strict=True))
    ]
    out: dict[str, Any] = {"ensemble": config.name(), "due": want, **apgd.notes(config.targets, classes)}
    if config.version == "standard" and short:
        out["refused"] = f"not AutoAttack standard: {', '.join(short)} took less than its definition says"
    elif config.version == "standard":
        out["ensemble"] = "AutoAttack standard"
    return out


def run(target: Attackable, config: AutoAttack, ctx: Context) -> Perturbed:
    """Run the members in order, each on what the network still gets right."""
    classes = len(target.classes)
    done = perturb(target, config, ctx, attempts(config, classes))
    return replace(done, notes={**done.notes, **named(config, classes, done.notes["spent"])})


SMALL = AutoAttack(version="custom", steps=20, targets=3, queries=200, rescale=True)
SPEC = spec(
    "autoattack", run, "croce2020autoattack",
    {
        "default": AutoAttack(), "paper": AutoAttack(), "small": SMALL,
        "smoke": replace(SMALL, steps=5, targets=2, queries=20),
    },
)  # fmt: skip
