"""Control of string attacks: GCQ's search at the same budget, begun with random tokens.

Source: [hayase2024gcq], sections 3.2.3 and 4.3. What the search does without the head start of the
repeated target; `initial_success` of its record is the success of a random string without any search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attacks.strings._attack import assemble, control
from attacks.strings._search import StringSearch, prepare, run_search
from redteam.core.context import Context
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.target import LanguageTarget


def run(target: LanguageTarget, config: StringSearch, ctx: Context) -> Strings:
    """One search a string, from random tokens."""
    setting = prepare(target, config, ctx, "random-init", SPEC.version)
    return assemble(run_search(setting), config, setting.notes(), target.model)


def resolve(config: StringSearch, target: Any) -> StringSearch:
    """Begin with random tokens."""
    return replace(config, init="random")


SPEC = replace(control("random-init", run, StringSearch), resolve=resolve)
