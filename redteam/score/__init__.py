"""The common scorer: one function per artifact kind. It alone holds the test data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from redteam.stats import Estimate


@dataclass(frozen=True)
class Scored:
    """Metrics, the per-example tables they were computed from, and sanity flags (docs/flags.md)."""

    metrics: Mapping[str, Estimate]
    evidence: Mapping[str, pd.DataFrame]
    flags: tuple[str, ...] = field(default=())
