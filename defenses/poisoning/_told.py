"""What a filter of poison is told: how many poisons to assume, and under which label to look for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from redteam.core.config import Checked, knob
from redteam.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Checked):
    """Knowledge that a defender would not have, all of it recorded as oracle knowledge of the cell."""

    poisons: int | None = knob(
        None, "poisoned rows (clients, in a federation) to assume; none: told the attack's budget", low=0
    )
    factor: float = knob(1.0, "the number assumed, times this: what a wrong number does", above=0)
    labels: Literal["known", "suspected", "all"] = knob(
        "known", "labels to look at: known: told the attack's target; suspected: the most suspicious; all"
    )
    label: int | None = knob(
        None, "the label to look at; none: told the attack's target, if labels=known", low=0
    )
    suspects: int = knob(2, "how many labels are taken for suspected", low=1)
    flagged: float = knob(1.5, "removals for each poison assumed", above=0)

    def assumed(self) -> float:
        """Poisons assumed, before rounding.

        Raises:
            ConfigError: nobody has said how many.
        """
        if self.poisons is None:
            raise ConfigError(
                "poisons: expected a number of poisoned rows (or clients); give poisons=N, or attack with a budget"
            )
        return self.factor * self.poisons

    def chosen(self, classes: int) -> tuple[int, ...] | None:
        """Labels to look at, or None where they are to be found by suspicion.

        Raises:
            ConfigError: the label is unknown or does not exist.
        """
        if self.labels == "all":
            return tuple(range(classes))
        if self.labels == "suspected":
            return None
        if self.label is None or self.label >= classes:
            raise ConfigError(
                f"label: expected one of 0 to {classes - 1} to look at, got {self.label}; "
                "give label=N, labels=suspected or labels=all"
            )
        return (self.label,)


T = TypeVar("T", bound=Told)


# What is assumed beside a control that changes nothing: the share that `budget` and `fraction` default to.
_USUAL_ROWS = 0.02
_USUAL_CLIENTS = 0.25


def told(config: T, attack: Mapping[str, Any], target: Any) -> T:
    """The config with what the cell's attack tells: `Spec.told`. A control that changes nothing tells a usual budget.

    Raises:
        ConfigError: no such label, or more poisons than there are rows or clients.
    """
    changes: dict[str, Any] = {}
    total = target.config.clients if target.kind == "federation" else len(target.train)
    if config.poisons is None:
        usual = attack.get("fraction", _USUAL_CLIENTS) if target.kind == "federation" else _USUAL_ROWS
        budget = attack.get("budget") or usual
        changes["poisons"] = max(1, round(budget * total) if budget < 1 else int(budget))
    if config.labels == "known" and config.label is None and isinstance(attack.get("target_class"), int):
        changes["label"] = attack["target_class"]
    config = replace(config, **changes)
    config.chosen(len(target.train.classes))
    if config.assumed() > total:
        raise ConfigError(
            f"poisons: expected at most the {total} {'clients' if target.kind == 'federation' else 'training rows'}, "
            f"got {config.poisons} times factor {config.factor:g}"
        )
    return config


def oracle(config: Told) -> tuple[str, ...]:
    """What of this a defender would not know: `Spec.oracle`."""
    wrong = "" if config.factor == 1 else f", times {config.factor:g}"
    label = ("target label",) if config.labels == "known" else ()
    return (f"number of poisons{wrong}", *label)


def per_round(config: Told, clients: int, sampled: int) -> int:
    """Clients to leave out of a round of `sampled`, where `poisons` counts malicious ones among all `clients`."""
    return min(sampled, round(config.flagged * config.assumed() * sampled / clients))
