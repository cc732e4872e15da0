"""Keys and values of shared beginnings: what many prompts have in common is computed once.

A transformer's state at a position depends on nothing behind it. So the template's head is computed once
for all calls, and of the neighbours of one parent, which differ from it in one token, all that stands
before that token. Sorting neighbours by that place leaves about half of the suffix to compute.

Versions of transformers differ in how a cache is read (`_layers_of`); everything else here is plain torch.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Ids = tuple[int, ...]
Layers = tuple[tuple["torch.Tensor", "torch.Tensor"], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A beginning and its state. layers: keys and values of each layer, each (1, heads, len(ids), width)."""

    ids: Ids = ()
    layers: Layers = ()

    def first(self, n: int) -> Prefix:
        """Its first `n` tokens; the tensors are shared."""
        if n >= len(self.ids):
            return self
        return Prefix(self.ids[:n], tuple((k[:, :, :n], v[:, :, :n]) for k, v in self.layers) if n else ())

    @property
    def size(self) -> int:
        """Bytes of its state."""
        return sum(x.numel() * x.element_size() for pair in self.layers for x in pair)

    def cache(self, rows: int) -> Any:
        """A fresh transformers cache for a batch of `rows` that all begin like this."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (k, v) in enumerate(self.layers):
            cache.update(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), index)
        return cache


EMPTY = Prefix()
_ROOM = 32  # tokens


def _layers_of(cache: Any) -> list[tuple[Any, Any]]:
    """Keys and values by layer: `layers` since transformers 4.54, two lists before."""
    if hasattr(cache, "layers"):
        return [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    return list(zip(getattr(cache, "key_cache", ()), getattr(cache, "value_cache", ()), strict=True))


def prefix_of(cache: Any, ids: Ids) -> Prefix | None:
    """The state of a one-row cache after `ids`; None if it is not plain keys and values of every token."""
    layers = _layers_of(cache)
    for pair in layers:
        for x in pair:
            if getattr(x, "ndim", 0) != 4 or x.shape[0] != 1 or x.shape[2] != len(ids):
                return None
    return Prefix(ids, tuple(layers)) if layers else None


def stacked(caches: Sequence[Any]) -> Any:
    """One cache for the rows of several, padded on the right to the longest."""
    if len(caches) == 1:
        return caches[0]
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    out, columns = DynamicCache(), [_layers_of(c) for c in caches]
    longest = max(layers[0][0].shape[2] for layers in columns)
    for index, pairs in enumerate(zip(*columns, strict=True)):
        k, v = (
            torch.cat([pad(x, (0, 0, 0, longest - x.shape[2])) for x in side])
            for side in zip(*pairs, strict=True)
        )
        out.update(k, v, index)
    return out


def growing(cache: Any) -> Any:
    """The same cache with room for more tokens, which are then written in place.

    Transformers' own copies all keys and values for each token: of 16 rows of 400 tokens on SmolLM2-135M
    that was 62 % of a step's time on one core (measured). Caches of other kinds stay as they are.
    """
    try:
        from transformers.cache_utils import DynamicLayer
    except ImportError:  # transformers before 4.54
        return cache
    layers = getattr(cache, "layers", ())
    if all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers):
        for layer in layers:
            layer.update = partial(_append, weakref.ref(layer), [])  # no cycle: it goes when it is done
    return cache


def _append(ref: weakref.ref[Any], buffers: list[Any], k: Any, v: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    """Write keys and values behind those of a layer. buffers: where they are, none if they moved."""
    layer: Any = ref()
    have = layer.keys.shape[2]
    size = have + k.shape[2]
    # Whoever reorders rows puts new tensors in place of the old.
    if not buffers or buffers[2] is not layer.keys or buffers[0].shape[2] < size:
        buffers[:] = [
            x.new_empty((*x.shape[:2], size + _ROOM, x.shape[3])) for x in (layer.keys, layer.values)
        ]
        for buffer, old in zip(buffers, (layer.keys, layer.values), strict=True):
            buffer[:, :, :have] = old
        buffers.append(None)
    for buffer, new in zip(buffers, (k, v), strict=False):
        buffer[:, :, have:size] = new
    layer.keys, layer.values = (buffer[:, :, :size] for buffer in buffers[:2])
    buffers[2] = layer.keys
    return layer.keys, layer.values


class Prefixes:
    """The last beginnings that were computed, longest match first, as many as fit into `size` bytes.

    Agents put many questions about each of some dozens of users, turn after turn and attack after attack: what
    was computed for a user once serves them all. Of SmolLM2-135M 2 GiB hold some 46,000 tokens.
    """

    def __init__(self, entries: int = 64, size: int = 2 * 2**30) -> None:
        self._entries, self._size = entries, size
        self._kept: OrderedDict[Ids, Prefix] = OrderedDict()

    def longest(self, ids: Sequence[int]) -> Prefix:
        """The longest known beginning of `ids`, which may be empty."""
        best, length = EMPTY, 0
        for prefix in self._kept.values():
            n = shared_length(prefix.ids, ids)
            if n > length:
                best, length = prefix, n
        if length:
            self._kept.move_to_end(best.ids)
        return best.first(length)

    def add(self, prefix: Prefix) -> None:
        """Keep `prefix`, and forget what it contains and what was used least recently."""
        if prefix.size > self._size:
            return
        for ids in [k for k in self._kept if k == prefix.ids[: len(k)]]:
            del self._kept[ids]
        self._kept[prefix.ids] = prefix
        while len(self._kept) > self._entries or sum(p.size for p in self._kept.values()) > self._size:
            self._kept.popitem(last=False)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at the beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


# ---------------------------------------------------------------- which rows go together


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are computed together. shared: how many tokens of the path all of them take over."""

    rows: tuple[int, ...]
    shared: int


def heavy_path(rows: Sequence[Ids]) -> tuple[Ids, list[int]]:
    """The path through the tree of all rows that most rows follow, and where each row leaves it.

    Of the neighbours of one parent it is the parent, and a row leaves at the token that was changed.
    """
    path: list[int] = []
    leaves = [0] * len(rows)
    alive = list(range(len(rows)))
    while True:
        position = len(path)
        votes = Counter(rows[i][position] for i in alive if len(rows[i]) > position)
        if not votes:
            return tuple(path), leaves
        token = votes.most_common(1)[0][0]
        path.append(token)
        alive = [i for i in alive if len(rows[i]) > position and rows[i][position] == token]
        for i in alive:
            leaves[i] = position + 1


def plan(rows: Sequence[Ids], depth: Sequence[int], *, known: int, size: int, pass_cost: int) -> list[Batch]:
    """Cut rows into batches of at most `size` so that the fewest positions are computed.

    depth: for each row, how many tokens it may take from the path. known: how much of the path is at
    hand. pass_cost: what a forward pass costs by itself, in positions. Rows are put in order of depth or
    of length, whichever is cheaper; the path is used beyond what is known only if computing it pays.
    """
    length = [len(r) for r in rows]
    flat = [min(d, known) for d in depth]
    by_depth, by_length = (sorted(range(len(rows)), key=k) for k in (
        lambda i: (depth[i], length[i]), lambda i: (length[i], depth[i])
    ))  # fmt: skip
    cuts = []
    for deep in (flat, list(depth)):
        for order in (by_depth, by_length):
            cost, batches = _cut(order, length, deep, size, pass_cost)
            reach = max(b.shared for b in batches)
            cuts.append((cost + (pass_cost + reach - known if reach > known else 0), batches))
    return min(cuts, key=lambda cut: cut[0])[1]


def _cut(
    order: list[int], length: list[int], depth: list[int], size: int, pass_cost: int
) -> tuple[float, list[Batch]]:
    """The cheapest cut of `order` into runs: a run costs its rows times what is computed of its longest."""
    cost, start = [0.0], [0]
    for end in range(1, len(order) + 1):
        longest, shallow, best, where = 0, 1 << 62, float("inf"), end - 1
        for begin in range(end - 1, max(-1, end - 1 - size), -1):
            longest = max(longest, length[order[begin]])
            shallow = min(shallow, depth[order[begin]])
            total = cost[begin] + pass_cost + (end - begin) * (longest - shallow)
            if total < best:
                best, where = total, begin
        cost.append(best)
        start.append(where)
    cuts, end = [len(order)], len(order)
    while end:
        end = start[end]
        cuts.append(end)
    runs = [order[a:b] for a, b in pairwise(reversed(cuts))]
    return cost[-1], [Batch(tuple(run), min(depth[i] for i in run)) for run in runs]
