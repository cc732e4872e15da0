"""Control of string attacks: the request alone, with no adversarial string.

Source: [hayase2024gcq] has no such row; without one, nothing tells an attack from a model that says so anyway.
"""

from __future__ import annotations

from attacks.strings._attack import plain, string_spec

SPEC = string_spec("no-string", plain, role="control", deterministic=True)
