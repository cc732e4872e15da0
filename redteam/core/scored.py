"""The common scorer: one function per artifact kind. It alone holds the test data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from redteam.core.record import Metric
from redteam.core.stats import Estimate


@dataclass(frozen=True)
class Scored:
    """Metrics, the per-example tables they were computed from, and sanity flags (docs/flags.md).

    grouped: the same metrics on parts of the examples, by (name, group), such as ("success", "length<=8").
    """

    metrics: Mapping[str, Estimate]
    evidence: Mapping[str, pd.DataFrame]
    flags: tuple[str, ...] = field(default=())
    grouped: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)

    def as_metrics(self) -> tuple[Metric, ...]:
        """Everything measured, as a record holds it."""
        whole = [Metric.of(name, e) for name, e in self.metrics.items()]
        return (*whole, *(Metric.of(name, e, group) for (name, group), e in self.grouped.items()))
