"""Control of string attacks: GCQ's search at the same budget, begun with random tokens.

Source: [hayase2024gcq], sections 3.2.3 and 4.3. What the search does without the head start of the
repeated target; `initial_success` of its record is the success of a random string without any search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attacks.strings._attack import string_spec
from attacks.strings._search import StringSearch, searching


def resolve(config: StringSearch, target: Any) -> StringSearch:
    """Begin with random tokens."""
    return replace(config, init="random")


SPEC = string_spec("random-init", searching("random-init"), StringSearch, role="control", resolve=resolve)
