"""Outsider blind: one random guess about each secret, and no question.

Threat: none. It shows the rate of a guess that asked nothing. Source: none; it is 1/k.
"""

from __future__ import annotations

from dataclasses import replace

from outsider import guess

SPEC = replace(
    guess.SPEC, name="outsider-blind", role="control", controls=(),
    run=lambda target, config, ctx: guess.run(target, replace(config, tries=0, beyond=0), ctx),
)  # fmt: skip
