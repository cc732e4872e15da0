"""Query-based search for an adversarial string: a buffer of the best, a proxy's ranking, the target's word.

The buffer holds the best candidates in a min-max heap. Each step takes the best one, draws neighbours
that differ in one token, lets the proxy order them, puts the first few to the target, and keeps those
that are no worse than the buffer's worst [hayase2024gcq, algorithm 1]. What scores a candidate is an
`Objective`, so one string, a universal suffix and a moderation classifier share this search. Its whole
state goes into a checkpoint after every step: buffer, generator, what was seen and what was spent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from attacks._shared.heap import MinMaxHeap
from attacks._shared.losses import Loss
from attacks._shared.moves import Ids
from redteam.checkpoint import Checkpoint
from redteam.context import Context
from redteam.language import Finish

_SAVE_EVERY_S = 0.5
_SILENT_STEPS = 3


class Objective(Protocol):
    """What a search lowers. It asks the target, and says what that took. width: queries a candidate takes."""

    @property
    def width(self) -> int: ...

    def __call__(self, candidates: Sequence[Ids], bound: float, parents: Sequence[Loss | None]) -> list[Loss]:
        """One loss a candidate; those above `bound` may be cut short."""
        ...

    def confirm(self, candidate: Ids) -> bool:
        """Whether the target, asked afresh, does what it is to do."""
        ...

    def spent(self) -> tuple[int, float]:
        """Tokens and US dollars that the target has taken so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one search goes. See the knobs of `attacks._shared.strings.StringSearch` for each."""

    max_queries: int
    max_tokens: int | None = None
    max_usd: float | None = None
    buffer: int = 128
    batch: int = 32
    proxy_batch: int = 0
    expand: Literal["repeat", "once"] = "repeat"
    variant: Literal["buffer", "positions", "random"] = "buffer"
    margin: float = 0.0


@dataclass(order=True, slots=True)
class Entry:
    """A scored candidate in the buffer. serial breaks ties: of two equals the earlier one is better."""

    value: float
    serial: int
    ids: Ids = field(compare=False)
    loss: Loss = field(compare=False)


@dataclass(slots=True)
class State:
    """Everything a search needs to go on."""

    rng: np.random.Generator
    buffer: MinMaxHeap[Entry] = field(default_factory=MinMaxHeap)
    seen: list[Ids] = field(default_factory=list)
    expanded: set[int] = field(default_factory=set)
    queries: int = 0
    proxy_queries: int = 0
    tokens: int = 0
    usd: float = 0.0
    best: Entry | None = None
    found: Ids | None = None
    found_at: tuple[int, int, float] = (-1, -1, -1.0)
    trace: list[tuple[int, int, float, float]] = field(default_factory=list)
    scanned: Entry | None = None
    last: list[float | None] = field(default_factory=list)
    cut: int = 0
    silent: int = 0
    finish: Finish = "stop"
    done: bool = False

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As arrays and plain JSON values."""
        entries = [_pack_entry(e) for e in sorted(self.buffer)]
        state = {
            "rng": self.rng.bit_generator.state, "buffer": entries, "best": self.best and _pack_entry(self.best),
            "scanned": self.scanned and _pack_entry(self.scanned), "expanded": sorted(self.expanded),
            "found": self.found, "found_at": self.found_at,
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
            rng=rng, buffer=MinMaxHeap(_unpack_entry(e) for e in state["buffer"]),
            seen=[tuple(int(i) for i in row if i >= 0) for row in arrays["seen"]],
            scanned=_unpack_entry(state["scanned"]) if state["scanned"] else None,
            expanded=set(state["expanded"]), best=_unpack_entry(state["best"]) if state["best"] else None,
            found=tuple(state["found"]) if state["found"] is not None else None,
            found_at=(queries, tokens, usd), trace=trace, **{name: state[name] for name in _PLAIN},
        )  # fmt: skip


_PLAIN = ("queries", "proxy_queries", "tokens", "usd", "last", "cut", "silent", "finish", "done")


def _pack_entry(e: Entry) -> list[Any]:
    # Infinity is no JSON value: a candidate without an answer has none.
    value = e.value if math.isfinite(e.value) else None
    inner = e.loss.value if math.isfinite(e.loss.value) else None
    return [
        value,
        e.serial,
        list(e.ids),
        [inner, e.loss.kind, e.loss.success, list(e.loss.tokens), e.loss.finish],
    ]


def _unpack_entry(packed: list[Any]) -> Entry:
    value, serial, ids, (inner, kind, success, tokens, finish) = packed
    loss = Loss(math.inf if inner is None else inner, kind, success, tuple(tokens), finish)
    return Entry(math.inf if value is None else value, serial, tuple(ids), loss)


Draw = Callable[[Ids, np.random.Generator, Sequence[int] | None], Iterator[tuple[int, Ids]]]
Rank = Callable[[Sequence[Ids]], Sequence[float]]
Fresh = Callable[[np.random.Generator], Ids]
Penalty = Callable[[Sequence[Ids]], Sequence[float]]


@dataclass(frozen=True)
class Search:
    """One search. draw: neighbours of a string. rank: a proxy's losses, or None. fresh: a random string.

    penalty: what is added to a candidate's loss, such as a fluency term; None adds nothing.
    """

    objective: Objective
    rules: Rules
    draw: Draw
    fresh: Fresh
    checkpoint: Checkpoint
    ctx: Context
    name: str
    rank: Rank | None = None
    penalty: Penalty | None = None

    def run(self, initial: Callable[[np.random.Generator], Ids]) -> tuple[State, Ids]:
        """Search from `initial` until success or until the budget is spent. Returns (state, initial string)."""
        saved = self.checkpoint.load()
        state = State.unpack(*saved) if saved else State(self.ctx.rng("search"))
        first = initial(self.ctx.rng("initial"))
        before = self.objective.spent()
        base = (state.tokens, state.usd)
        last = time.monotonic()
        while not state.done:
            candidates, parent = ([first], None) if not state.seen else self._propose(state)
            if candidates:
                self._judge(state, candidates, parent, before, base)
                self._maybe_finish(state)
            else:
                state.done = True  # the budget has no room for one more, or there is nothing left to try
            self.ctx.report(self.name, state.queries, self.rules.max_queries)
            due = state.done or time.monotonic() - last >= _SAVE_EVERY_S
            if due and self.checkpoint.path is not None:
                self.checkpoint.save(*state.pack())
                last = time.monotonic()
        return state, first

    # ------------------------------------------------------------ candidates

    def _propose(self, state: State) -> tuple[list[Ids], Entry | None]:
        room = (self.rules.max_queries - state.queries) // self.objective.width
        if self.rules.variant == "random":
            return self._unseen(
                state, (self.fresh(state.rng) for _ in iter(int, 1)), min(self.rules.batch, room)
            ), None
        if self.rules.variant == "positions":
            return self._by_position(state, room)
        parent = self._parent(state)
        if parent is None:
            return [], None
        wanted = max(self.rules.proxy_batch if self.rank else 0, self.rules.batch)
        drawn = self._unseen(state, (ids for _, ids in self.draw(parent.ids, state.rng, None)), wanted)
        if self.rank is not None and len(drawn) > self.rules.batch:
            scores = self.rank(drawn)
            state.proxy_queries += len(drawn)
            order = np.argsort(np.asarray(scores), kind="stable")
            drawn = [drawn[i] for i in order[: self.rules.batch]]
        return drawn[: min(self.rules.batch, room)], parent

    def _parent(self, state: State) -> Entry | None:
        if self.rules.expand == "repeat":
            return state.buffer.min()
        fresh = [e for e in state.buffer if e.serial not in state.expanded]
        if not fresh:
            return None
        parent = min(fresh)
        state.expanded.add(parent.serial)
        return parent

    def _by_position(self, state: State, room: int) -> tuple[list[Ids], Entry]:
        """One swap at every position; then the best position gets a batch [hayase2024gcq, section 3.3]."""
        if state.scanned is not None:
            parent, state.scanned = state.scanned, None
            place = min(
                range(len(state.last)), key=lambda i: (state.last[i] is None, state.last[i] or 0.0, i)
            )
            drawn = (ids for _, ids in self.draw(parent.ids, state.rng, [place]))
            if more := self._unseen(state, drawn, min(self.rules.batch, room)):
                return more, parent
        parent = state.buffer.min()
        state.scanned = parent
        places = range(min(room, len(parent.ids)))
        return [next(self.draw(parent.ids, state.rng, [i]))[1] for i in places], parent

    def _unseen(self, state: State, drawn: Iterator[Ids], wanted: int) -> list[Ids]:
        """The first `wanted` that were not asked before; fewer where a small neighbourhood has no more."""
        known, out = set(state.seen), []
        for ids in islice(drawn, 20 * wanted):
            if len(out) == wanted:
                break
            if ids not in known:
                known.add(ids)
                out.append(ids)
        return out

    # ------------------------------------------------------------ judgement

    def _judge(
        self, state: State, candidates: list[Ids], parent: Entry | None, before: tuple[int, float],
        base: tuple[int, float],
    ) -> None:  # fmt: skip
        """Ask the target about candidates, book what that took, and let them into the buffer."""
        full = len(state.buffer) >= self.rules.buffer
        extra = list(self.penalty(candidates)) if self.penalty else [0.0] * len(candidates)
        bound = state.buffer.max().value - self.rules.margin - min(extra) if full else math.inf
        losses = self.objective(candidates, bound, [parent.loss if parent else None] * len(candidates))
        state.queries += len(candidates) * self.objective.width
        # Of a cut candidate only a bound is known, and it lies above all that was kept.
        state.last = [loss.value if math.isfinite(loss.value) else None for loss in losses]
        known = {e.ids for e in state.buffer}
        improved = []
        for ids, loss, more in zip(candidates, losses, extra, strict=True):
            entry = Entry(loss.value + more, len(state.seen), ids, loss)
            state.seen.append(ids)
            state.cut += loss.kind == "cut"
            if loss.kind != "cut" and ids not in known:
                self._admit(state, entry)
            if loss.kind == "exact" and (state.best is None or entry.value < state.best.value):
                state.best = entry
                improved.append(entry)
            if loss.success and state.found is None:
                state.found = ids
        self._confirm(state, improved)
        tokens, usd = self.objective.spent()
        state.tokens, state.usd = base[0] + tokens - before[0], base[1] + usd - before[1]
        state.trace += [
            (state.queries, state.tokens, state.usd, e.loss.value)
            for e in improved
            if math.isfinite(e.loss.value)
        ]
        answered = any(loss.finish in ("stop", "length", "refused", "filtered") for loss in losses)
        state.silent = 0 if answered else state.silent + 1
        if not answered:
            state.finish = losses[0].finish

    def _admit(self, state: State, entry: Entry) -> None:
        if len(state.buffer) < self.rules.buffer:
            state.buffer.push(entry)
        elif entry.value <= state.buffer.max().value - self.rules.margin:
            state.buffer.pop_max()
            state.buffer.push(entry)

    def _confirm(self, state: State, improved: list[Entry]) -> None:
        """Where scores do not say what greedy decoding gives, ask it about a new best; that is a query."""
        unknown = [e for e in improved if e.loss.success is None]
        room = self.rules.max_queries - state.queries
        if state.found is None and unknown and room >= self.objective.width:
            state.queries += self.objective.width
            if self.objective.confirm(unknown[-1].ids):
                state.found = unknown[-1].ids

    def _maybe_finish(self, state: State) -> None:
        rules = self.rules
        if state.found is not None:
            state.found_at = (state.queries, state.tokens, state.usd)
            state.done = True
        elif state.silent >= _SILENT_STEPS:
            state.done = True
        elif (
            state.queries >= rules.max_queries
            or (rules.max_tokens is not None and state.tokens >= rules.max_tokens)
            or (rules.max_usd is not None and state.usd >= rules.max_usd)
        ):
            state.done, state.finish = True, "stop"
        else:
            state.finish = "stop" if state.silent == 0 else state.finish
