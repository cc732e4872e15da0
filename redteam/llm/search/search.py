"""Query-based search for an adversarial string: a buffer of the best, a proxy's ranking, the target's word.

The buffer holds the best candidates in order. Each step takes the best one, draws neighbours
that differ in one token, lets the proxy order them, puts the first few to the target, and keeps those
that are no worse than the buffer's worst [hayase2024gcq, algorithm 1]. What scores a candidate is an
`Objective`, so one string, a universal suffix and a moderation classifier share this search. Its whole
state goes into a checkpoint every half second: buffer, generator, what was seen and what was spent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from redteam.core.checkpoint import Checkpoint
from redteam.core.context import Context
from redteam.llm.search.losses import Loss
from redteam.llm.search.moves import Ids
from redteam.llm.search.state import Entry, State

_SAVE_EVERY_S = 0.5
_SILENT_STEPS = 3
_IDLE_STEPS = 40
_RANKS = {"exact": 0, "floor": 1, "cut": 1, "unsent": 2}


class Objective(Protocol):
    """What a search lowers. It asks the target, and says what that took. width: queries a candidate takes."""

    @property
    def width(self) -> int: ...

    def __call__(self, candidates: Sequence[Ids], bound: float, parents: Sequence[Loss | None]) -> list[Loss]:
        """One loss a candidate; those above `bound` may be cut short."""

    def confirm(self, candidate: Ids) -> bool:
        """Whether the target, asked afresh, does what it is to do."""

    def spent(self) -> tuple[int, int, float]:
        """Requests, tokens and US dollars that the target has taken so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one search goes. What each means is said at the knobs of the attacks that search."""

    max_queries: int
    max_tokens: int | None = None
    max_usd: float | None = None
    buffer: int = 128
    batch: int = 32
    proxy_batch: int = 0
    expand: Literal["repeat", "once"] = "repeat"
    variant: Literal["buffer", "positions", "random"] = "buffer"
    margin: float = 0.0


Draw = Callable[[Ids, np.random.Generator, Sequence[int] | None], Iterator[tuple[int, Ids]]]
Rank = Callable[[Sequence[Ids]], Sequence[float]]
Fresh = Callable[[np.random.Generator], Ids]
Penalty = Callable[[Sequence[Ids]], Sequence[float]]


@dataclass(frozen=True)
class Search:
    """One search. draw: neighbours of a string. rank: a proxy's losses, or None. fresh: a random string.

    penalty: what is added to a candidate's loss, such as a fluency term; None adds nothing. refused:
    which candidates a known filter would refuse; those are not sent, and cost no query.
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
    refused: Callable[[Sequence[Ids]], Sequence[bool]] | None = None

    def run(self, initial: Callable[[np.random.Generator], Ids]) -> tuple[State, Ids]:
        """Search from `initial` until success or until the budget is spent. Returns (state, initial string)."""
        saved = self.checkpoint.load()
        state = State.unpack(*saved) if saved else State(self.ctx.rng("search"))
        first = initial(self.ctx.rng("initial"))
        now = self.objective.spent()
        # What a step that was never saved has spent is spent: it counts from the ledger of that moment on.
        before = state.booked if saved and not state.done else now
        start = (state.requests, state.tokens, state.usd)
        last = time.monotonic()
        while not state.done:
            candidates, parent = ([first], None) if not state.seen else self._propose(state)
            if candidates:
                self._judge(state, candidates, parent)
                self._book(state, start, before)
                self._maybe_finish(state)
            else:
                state.done = True  # the budget has no room for one more, or there is nothing left to try
            if state.done or time.monotonic() - last >= _SAVE_EVERY_S:
                self._save(state)
                last = time.monotonic()
            self.ctx.report(self.name, state.queries, self.rules.max_queries)
        return state, first

    def _save(self, state: State) -> None:
        if self.checkpoint.path is not None:
            self.checkpoint.save(*state.pack())

    # ------------------------------------------------------------ candidates

    def _room(self, state: State) -> int:
        """How many more candidates the budgets allow, at what one has cost so far."""
        rules, room = self.rules, (self.rules.max_queries - state.queries) // self.objective.width
        asked = state.queries / self.objective.width
        for cap, spent in ((rules.max_tokens, state.tokens), (rules.max_usd, state.usd)):
            if cap is not None and asked and spent:
                room = min(room, int((cap - spent) / (spent / asked)))
        return max(0, room)

    def _propose(self, state: State) -> tuple[list[Ids], Entry | None]:
        room = self._room(state)
        if self.rules.variant == "random":
            strings = (self.fresh(state.rng) for _ in iter(int, 1))
            return self._unseen(state, strings, min(self.rules.batch, room)), None
        if self.rules.variant == "positions":
            return self._by_position(state, room)
        parent = self._parent(state)
        if parent is None:
            return [], None
        wanted = max(self.rules.proxy_batch if self.rank else 0, self.rules.batch)
        drawn = self._unseen(state, (ids for _, ids in self.draw(parent.ids, state.rng, None)), wanted)
        drawn = self._passing(drawn)
        if self.rank is not None and len(drawn) > self.rules.batch:
            scores = self.rank(drawn)
            state.proxy_queries += len(drawn)
            order = np.argsort(np.asarray(scores), kind="stable")
            drawn = [drawn[i] for i in order[: self.rules.batch]]
        return drawn[: min(self.rules.batch, room)], parent

    def _passing(self, drawn: list[Ids]) -> list[Ids]:
        """Those that a known filter lets through; if it lets none through, all, for their suspicion."""
        if self.refused is None or not drawn:
            return drawn
        return [ids for ids, stopped in zip(drawn, self.refused(drawn), strict=True) if not stopped] or drawn

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
        known, out = set(state.seen), list[Ids]()
        for ids in islice(drawn, 20 * wanted):
            if len(out) == wanted:
                break
            if ids not in known:
                known.add(ids)
                out.append(ids)
        return out

    # ------------------------------------------------------------ judgement

    def _judge(self, state: State, candidates: list[Ids], parent: Entry | None) -> None:
        """Ask the target about candidates and let them into the buffer."""
        extra = list(self.penalty(candidates)) if self.penalty else [0.0] * len(candidates)
        losses = self.objective(
            candidates, self._bound(state, min(extra)), [parent.loss if parent else None] * len(candidates)
        )
        sent = sum(loss.kind != "unsent" for loss in losses)
        state.queries += sent * self.objective.width
        state.unsent += len(losses) - sent
        state.idle = 0 if sent else state.idle + 1
        known = {e.ids for e in state.buffer}
        improved, state.last = [], []
        for ids, loss, more in zip(candidates, losses, extra, strict=True):
            entry = Entry(_RANKS[loss.kind], loss.value + more, len(state.seen), ids, loss)
            state.seen.append(ids)
            state.last.append(entry.value if loss.kind == "exact" and math.isfinite(entry.value) else None)
            state.cut += loss.kind == "cut"
            if loss.kind != "cut" and ids not in known:
                self._admit(state, entry)
            if loss.kind == "exact" and (state.best is None or entry.value < state.best.value):
                state.best = entry
                improved.append(entry)
            if loss.success and state.found is None:
                state.found, state.found_loss = ids, loss.value if loss.kind == "exact" else None
        self._confirm(state, improved)
        state.trace += [
            (state.queries, -1, -1.0, e.loss.value) for e in improved if math.isfinite(e.loss.value)
        ]
        answered = any(loss.finish in ("stop", "length", "refused", "filtered") for loss in losses)
        state.silent = 0 if answered else state.silent + 1
        if not answered:
            state.finish = losses[0].finish

    def _bound(self, state: State, least: float) -> float:
        """Above it a candidate cannot enter the buffer, whatever is added to its loss."""
        if len(state.buffer) < self.rules.buffer or state.buffer.max().rank:
            return math.inf
        return state.buffer.max().value - self.rules.margin - least

    def _book(self, state: State, start: tuple[int, int, float], before: tuple[int, int, float]) -> None:
        """Take down what the target took so far, and put it on the steps just traced."""
        now = self.objective.spent()
        state.booked = now
        state.requests, state.tokens = start[0] + now[0] - before[0], start[1] + now[1] - before[1]
        state.usd = start[2] + now[2] - before[2]
        state.trace = [
            (q, state.tokens, state.usd, loss) if t < 0 else (q, t, u, loss) for q, t, u, loss in state.trace
        ]

    def _admit(self, state: State, entry: Entry) -> None:
        if len(state.buffer) < self.rules.buffer:
            state.buffer.push(entry)
            return
        worst = state.buffer.max()
        if (entry.rank, entry.value) <= (worst.rank, worst.value - self.rules.margin):
            state.buffer.pop_max()
            state.buffer.push(entry)

    def _confirm(self, state: State, improved: list[Entry]) -> None:
        """Where scores do not say what greedy decoding gives, ask it about a new best; that is a query."""
        unknown = [e for e in improved if e.loss.success is None]
        room = self.rules.max_queries - state.queries
        if state.found is None and unknown and room >= self.objective.width:
            state.queries += self.objective.width
            if self.objective.confirm(unknown[-1].ids):
                state.found, state.found_loss = unknown[-1].ids, unknown[-1].loss.value

    def _maybe_finish(self, state: State) -> None:
        if state.found is not None:
            state.found_at = (state.queries, state.tokens, state.usd)
            state.done = True
        elif state.silent >= _SILENT_STEPS:
            state.done = True
        elif state.idle >= _IDLE_STEPS:
            state.done, state.finish = True, "refused"
        elif not self._room(state):
            state.done, state.finish = True, "stop"
        elif not state.silent:
            state.finish = "stop"
