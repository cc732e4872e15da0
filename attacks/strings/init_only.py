"""Control of string attacks: the initial string of GCQ, the target repeated, and no search.

Source: [hayase2024gcq], section 3.2.3. Its success is what a search must be measured against.
"""

from __future__ import annotations

from attacks.strings._attack import Row, StringGoal, assemble, check_model, request_of, string_spec
from redteam.core.context import Context
from redteam.llm.search import moves
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.target import LanguageTarget


def run(target: LanguageTarget, config: StringGoal, ctx: Context) -> Strings:
    """The repeated target after each request; nothing is asked of the target."""
    check_model(target.model)
    rows = []
    for goal in target.goals:
        request = request_of(config, goal)
        ids = moves.repeated(target.model, request, goal.tokens, config.length)
        text = request + target.model.detokenize(ids)
        rows.append(Row(goal, text, text))
    return assemble(rows, config, {}, target.model)


SPEC = string_spec("init-only", run, role="control", deterministic=True)
