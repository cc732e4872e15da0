"""How the cells of a threat compare by example: what a threat tells `redteam compare` and `redteam score --against`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from redteam.core.record import Record
    from redteam.core.stats import Estimate

# Columns of a table of outcomes as arrays (victims, examples).
Table = dict[str, "np.ndarray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """How the outcomes of several attacks on the same networks become one worst case, by example.

    ball: `(record) -> (norm, main radius)` that they share. main: `(record, table of outcomes or None) -> Table` at the
    main radius; it raises `ArtifactError` where there is none. correct, robust: `(Table) -> (victims, examples) bool`.
    merged: `(tables) -> table of outcomes` of which an example is robust if it is in all. metrics: `(merged, radius)
    -> estimates` of the worst case. of_networks: how names of metrics begin that hang on no attack.
    """

    ball: Callable[[Record], tuple[str, float | None]]
    main: Callable[[Record, pd.DataFrame | None], Table]
    correct: Callable[[Table], np.ndarray]
    robust: Callable[[Table], np.ndarray]
    merged: Callable[[Sequence[Table]], pd.DataFrame]
    metrics: Callable[[pd.DataFrame, float], Mapping[str, Estimate]]
    of_networks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """examples: `(record, table of outcomes, metric, group) -> (victims, examples) bool` whose mean is the metric, or
    None where the table has no such thing. difference: `(tables of a run, tables of another) -> estimates` by name,
    paired by example, for `redteam score --against`. training: settings of the target that are hyper-parameters of a
    training and no part of the task. label_free: criteria that ask for no label of the target domain; None where no
    criterion does. worst: see `Worst`.
    """

    examples: Callable[[Record, pd.DataFrame, str, str | None], np.ndarray | None] | None = None
    difference: (
        Callable[[Mapping[str, pd.DataFrame], Mapping[str, pd.DataFrame]], Mapping[str, Estimate]] | None
    ) = None
    training: frozenset[str] = frozenset()
    label_free: tuple[str, ...] | None = None
    worst: Worst | None = None
