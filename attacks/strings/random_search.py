"""Control of string attacks: random strings, one after the other, at the attack's budget of queries.

Source: our own. The best of so many draws, each independent of the others: what queries buy without a search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attacks.strings._attack import string_spec
from attacks.strings._search import StringSearch, searching


def resolve(config: StringSearch, target: Any) -> StringSearch:
    """No initial string but a random one, and nothing to rank."""
    return replace(config, init="random", proxy="none")


SPEC = string_spec(
    "random-search", searching("random-search", "random"), StringSearch, role="control", resolve=resolve
)
