"""Which conversations go together: those that begin alike stand next to each other and share the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from redteam.llm.prefix import Ids, shared_length


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that one pass computes on top of their common beginning of `shared` tokens."""

    rows: tuple[int, ...]
    shared: int


def plan_runs(
    rows: Sequence[Ids], *, size: int, pass_cost: int, caching: bool, equal: bool
) -> list[list[Run]]:
    """Batches of at most `size` rows, each in runs that share a beginning, so that few positions are computed.

    pass_cost: what a forward pass costs by itself, in positions. caching: whether beginnings can be shared at
    all. equal: only rows of one length in a batch.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]) if equal else 0, rows[i]))
    if not caching:
        order.sort(key=lambda i: (len(rows[i]), i))
    ordered = [rows[i] for i in order]
    common = [0, *(shared_length(a, b) for a, b in pairwise(ordered))] if caching else [0] * len(rows)
    shared = _shared(ordered, common, size, pass_cost)
    batches: list[list[Run]] = []
    start = 0
    while start < len(order):
        stop = min(start + size, len(order))
        if equal:
            stop = next((k for k in range(start, stop) if len(ordered[k]) != len(ordered[start])), stop)
        batches.append([])
        begin = start
        for k in range(start + 1, stop + 1):
            if k == stop or shared[k] != shared[begin]:
                depth, run = shared[begin][1], tuple(order[begin:k])
                batches[-1].append(Run(run, depth))
                begin = k
        start = stop
    return batches


def _shared(rows: Sequence[Ids], common: Sequence[int], size: int, pass_cost: int) -> list[tuple[int, int]]:
    """For each row the number of its run and how many tokens the run shares; the cheapest cut of the rows.

    common: how many tokens each row has in common with the one before. A run is computed as whole rows, or
    its common beginning once, less what it has of the beginning of the run before, which is at hand, and the rest.
    """
    cost, cut, depth = [0], [0], [0]
    for end in range(1, len(rows) + 1):
        longest = 0
        reach = len(rows[end - 1]) - 1  # at least one token of each row is computed
        best: tuple[int, int, int] | None = None
        for begin in range(end - 1, max(-1, end - 1 - size), -1):
            longest = max(longest, len(rows[begin]))
            reach = min(reach, len(rows[begin]) - 1)
            if begin < end - 1:
                reach = min(reach, common[begin + 1])
            count = end - begin
            known = min(reach, common[begin], depth[begin])
            once = 2 * pass_cost + reach - known + count * (longest - reach)
            if reach == known:
                once -= pass_cost
            whole = pass_cost + count * longest
            for price, shared in ((whole, 0), (once, reach)):
                if best is None or cost[begin] + price < best[0]:
                    best = (cost[begin] + price, begin, shared)
        assert best is not None
        cost.append(best[0])
        cut.append(best[1])
        depth.append(best[2])
    out: list[tuple[int, int]] = [(0, 0)] * len(rows)
    end = len(rows)
    while end:
        begin = cut[end]
        out[begin:end] = [(begin, depth[end])] * (end - begin)
        end = begin
    return out
