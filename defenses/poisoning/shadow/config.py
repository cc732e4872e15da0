"""The knobs of shadow filtering, for both kinds of targets."""

from __future__ import annotations

from dataclasses import dataclass

from defenses.poisoning._told import Told
from redteam.core.config import knob
from redteam.learn.nouns import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Told):
    """What it is told, how it filters, and when a shadow stops."""

    k: int | None = knob(16, "principal components of the filter; none: chosen as SPECTRE does", low=1)
    layer: Layer = knob("penultimate", "representation of a trainable's rows: penultimate or spatial")
    shard: int = knob(
        1, "trainable: rows that are judged together, in the order of the data; 1: each alone", low=1
    )
    change: float = knob(
        0.01, "a label's accuracy has converged if it changes by less than this", above=0, high=1
    )
    floor: float = knob(0.5, "and is at least this", low=0, high=1)
    reach: float = knob(
        0.7, "federation: and, of a shadow, at least this share of the backbone's at launch", low=0, high=1
    )
    window: int = knob(
        10, "federation: rounds over which an accuracy is averaged; windows do not overlap", low=1
    )
    pool: int = knob(5, "federation: rounds of clients that a threshold is set from", low=1)
    drop: float = knob(
        0.02,
        "federation: a fall of a shadow's accuracy on current data that relaunches it, beyond its noise",
        above=0,
    )
