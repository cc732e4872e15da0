"""What a search knows at any moment, and how that goes to disk and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redteam.llm.language import Finish
from redteam.llm.search.buffer import Buffer
from redteam.llm.search.losses import Loss
from redteam.llm.search.moves import Ids


@dataclass(order=True, slots=True)
class Entry:
    """A scored candidate in the buffer. serial breaks ties: of two equals the earlier one is better.

    rank: 0 where the loss is exact, 1 where only a floor of it is known, 2 where nothing was sent: a lower
    bound never stands before a loss.
    """

    rank: int
    value: float
    serial: int
    ids: Ids = field(compare=False)
    loss: Loss = field(compare=False)


@dataclass(slots=True)
class State:
    """Everything a search needs to go on.

    booked: requests, tokens and US dollars on the ledger when this was saved; what was booked since, by a
    step that was lost, counts too. unsent: candidates that a known filter would refuse. idle: steps in a
    row in which nothing was sent. last: values of the last candidates, None where no loss is known.
    """

    rng: np.random.Generator
    buffer: Buffer[Entry] = field(default_factory=Buffer)
    seen: list[Ids] = field(default_factory=list)
    expanded: set[int] = field(default_factory=set)
    queries: int = 0
    proxy_queries: int = 0
    tokens: int = 0
    usd: float = 0.0
    best: Entry | None = None
    found: Ids | None = None
    found_loss: float | None = None
    found_at: tuple[int, int, float] = (-1, -1, -1.0)
    trace: list[tuple[int, int, float, float]] = field(default_factory=list)
    scanned: Entry | None = None
    last: list[float | None] = field(default_factory=list)
    requests: int = 0
    cut: int = 0
    unsent: int = 0
    silent: int = 0
    idle: int = 0
    booked: tuple[int, int, float] = (0, 0, 0.0)
    finish: Finish = "stop"
    done: bool = False

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As arrays and plain JSON values."""
        entries = [_pack_entry(e) for e in self.buffer]
        state = {
            "rng": self.rng.bit_generator.state, "buffer": entries, "best": self.best and _pack_entry(self.best),
            "scanned": self.scanned and _pack_entry(self.scanned), "expanded": sorted(self.expanded),
            "found": self.found, "found_at": self.found_at, "booked": self.booked,
            **{name: getattr(self, name) for name in _PLAIN},
        }  # fmt: skip
        width = max(map(len, self.seen), default=0)
        seen = np.full((len(self.seen), width), -1, np.int64)
        for row, ids in enumerate(self.seen):
            seen[row, : len(ids)] = ids
        return {"seen": seen, "trace": np.array(self.trace, np.float64).reshape(-1, 4)}, state

    @classmethod
    def unpack(cls, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> State:
        """From what `pack` gave."""
        rng = np.random.default_rng()
        rng.bit_generator.state = state["rng"]
        trace = [(int(q), int(t), float(u), float(v)) for q, t, u, v in arrays["trace"]]
        queries, tokens, usd = state["found_at"]
        return cls(
            rng=rng, buffer=Buffer(_unpack_entry(e) for e in state["buffer"]),
            seen=[tuple(int(i) for i in row if i >= 0) for row in arrays["seen"]],
            scanned=_unpack_entry(state["scanned"]) if state["scanned"] else None,
            expanded=set(state["expanded"]), best=_unpack_entry(state["best"]) if state["best"] else None,
            found=tuple(state["found"]) if state["found"] is not None else None,
            found_at=(queries, tokens, usd), booked=tuple(state["booked"]), trace=trace,
            **{name: state[name] for name in _PLAIN},
        )  # fmt: skip


_PLAIN = (
    "queries", "proxy_queries", "tokens", "usd", "requests", "last", "cut", "unsent", "silent", "idle",
    "found_loss", "finish", "done",
)  # fmt: skip


def _pack_entry(e: Entry) -> list[Any]:
    # Infinity is no JSON value: a candidate without an answer has none.
    value = e.value if math.isfinite(e.value) else None
    inner = e.loss.value if math.isfinite(e.loss.value) else None
    loss = [inner, e.loss.kind, e.loss.success, list(e.loss.tokens), e.loss.finish]
    return [e.rank, value, e.serial, list(e.ids), loss]


def _unpack_entry(packed: list[Any]) -> Entry:
    rank, value, serial, ids, (inner, kind, success, tokens, finish) = packed
    loss = Loss(math.inf if inner is None else inner, kind, success, tuple(tokens), finish)
    return Entry(rank, math.inf if value is None else value, serial, tuple(ids), loss)
