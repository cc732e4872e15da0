"""Control of string attacks: the request alone, with no adversarial string.

Source: [hayase2024gcq] has no such row; without one, nothing tells an attack from a model that says so anyway.
"""

from __future__ import annotations

from dataclasses import replace

from attacks.strings._attack import Row, StringGoal, assemble, control, request_of
from redteam.core.context import Context
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.target import LanguageTarget


def run(target: LanguageTarget, config: StringGoal, ctx: Context) -> Strings:
    """The empty string after each request; nothing is asked of the target."""
    plain = [(goal, request_of(config, goal)) for goal in target.goals]
    return assemble([Row(goal, text, text) for goal, text in plain], config, {}, target.model)


SPEC = replace(control("no-string", run), deterministic=True)
