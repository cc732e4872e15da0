"""Outsider lockout: a secret answers no more after some questions.

Threat: vault. It exists to show a defence of a threat from outside. Source: none; it bounds the tries that count.
"""

from __future__ import annotations

from dataclasses import dataclass

from outsider.guess import THREAT
from redteam.core.config import check_ranges, knob
from redteam.core.types import Preset, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Knobs."""

    after: int = knob(2, "questions about a secret that are answered", low=1)

    def __post_init__(self) -> None:
        check_ranges(self)


SPEC = Spec(
    name="outsider-lockout", kind="defense", version="1", config=Config, source="none", threat=THREAT,
    run=lambda target, config, ctx: target.locked(config.after), presets={"default": Preset(config=Config())},
)  # fmt: skip
