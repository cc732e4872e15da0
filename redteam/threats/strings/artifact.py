"""Adversarial prompts: what is sent to a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import check_sizes, save_arrays


@dataclass(frozen=True)
class Strings:
    """Adversarial prompts, one for each of n strings that a language model is to say exactly.

    ids, targets: the strings, in the data set's order. prompts: what to send. initial: what the search
    began with. finish: how the search of each ended (`redteam.llm.language.Finish`; `stop`: it ran its course).
    lengths: (n,) int64, tokens of each target. found: (n,) bool, whether the search itself saw the exact
    string. queries, tokens: (n,) int64 and usd: (n,) float64, what the search of each spent on the target;
    `*_at`: what it had spent when it first saw the string, -1 if never. proxy_queries: (n,) int64.
    loss: (n,) float64, -log P(target | prompt) in nats, NaN where no exact value is known; a lower bound
    never stands here. trace: table of improvements of the best exact loss: string (row of n), queries,
    tokens, usd, loss; (k,) each. notes: what the search has to say of itself, as plain JSON values.
    """

    kind: ClassVar[str] = "strings"

    ids: tuple[str, ...]
    targets: tuple[str, ...]
    prompts: tuple[str, ...]
    initial: tuple[str, ...]
    finish: tuple[str, ...]
    lengths: np.ndarray
    found: np.ndarray
    queries: np.ndarray
    tokens: np.ndarray
    usd: np.ndarray
    queries_at: np.ndarray
    tokens_at: np.ndarray
    usd_at: np.ndarray
    proxy_queries: np.ndarray
    loss: np.ndarray
    trace: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _STRING_TEXTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_sizes(self, (*_STRING_TEXTS, *_STRING_ARRAYS))

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        arrays = {name: getattr(self, name) for name in _STRING_ARRAYS}
        arrays |= {f"trace.{name}": column for name, column in self.trace.items()}
        meta = {name: list(getattr(self, name)) for name in _STRING_TEXTS}
        return save_arrays(path, arrays, {"kind": self.kind, "notes": dict(self.notes), **meta})

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Strings:
        """From what `save` wrote."""
        trace = {k.removeprefix("trace."): a for k, a in arrays.items() if k.startswith("trace.")}
        parts: dict[str, Any] = {k: a for k, a in arrays.items() if not k.startswith("trace.")}
        return cls(**meta, **parts, trace=trace)


_STRING_TEXTS = ("ids", "targets", "prompts", "initial", "finish")
_STRING_ARRAYS = (
    "lengths", "found", "queries", "tokens", "usd", "queries_at", "tokens_at", "usd_at", "proxy_queries", "loss",
)  # fmt: skip
