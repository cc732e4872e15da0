"""Control of string attacks: random strings, one after the other, at the attack's budget of queries.

Source: our own. The best of so many draws, each independent of the others: what queries buy without a search.
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
    """The best of `max_queries` random strings for each target."""
    setting = prepare(target, config, ctx, "random-search", SPEC.version)
    return assemble(run_search(setting, "random"), config, setting.notes(), target.model)


def resolve(config: StringSearch, target: Any) -> StringSearch:
    """No initial string but a random one, and nothing to rank."""
    return replace(config, init="random", proxy="none")


SPEC = replace(control("random-search", run, StringSearch), resolve=resolve)
