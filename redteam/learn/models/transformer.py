"""A small decoder-only transformer over bytes and a few control ids.

It learns to copy from its context within a CPU minute, because two things are built in. A position also embeds
the few ids before it, and keys are one position late: what attention finds is the position *after* a place that
looked like this one. Queries and keys start equal, so every layer begins as an induction head.
Remembered, not read: induction heads and keys that mix in the position before (Olsson et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a `Transformer`.

    vocabulary: ids. width: of the residual stream, a multiple of heads. window: the most positions of a
    sequence. before: how many earlier ids a position also embeds, each with a table of its own.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    window: int
    before: int


@dataclass
class Cache:
    """Keys and values of the `seen` first positions: a pair of (B, heads, seen, width / heads) for each layer."""

    seen: int = 0
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's keys and values with those of new positions appended."""
        if layer in self.layers:
            old_k, old_v = self.layers[layer]
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        self.layers[layer] = k, v
        return k, v


class Block(nn.Module):
    """Pre-norm attention with late keys, then a pre-norm MLP of four times the width; no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, cache: Cache | None, layer: int) -> torch.Tensor:
        """x: (B, L, width) of the last L positions. Returns the same shape."""
        b, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        late = F.pad(k, (0, 0, 1, -1))  # the first position, which nothing stands before, has the key 0
        # One new position sees all keys; several at once only ever start a sequence.
        y = F.scaled_dot_product_attention(q, late, v, is_causal=length > 1)
        x = x + self.out(y.transpose(1, 2).reshape(b, length, width))
        down: torch.Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + down


class Transformer(nn.Module):
    """Causal, learned positions, head tied to the embedding. Weights come from torch's global generator."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.before = nn.ModuleList(nn.Embedding(shape.vocabulary, shape.width) for _ in range(shape.before))
        self.position = nn.Embedding(shape.window, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self._start()

    def _start(self) -> None:
        """Embeddings of 0.02, positions of 0.002, layers of 1/sqrt(inputs), less where they meet the stream."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.002 if name == "position" else 0.02)
            elif isinstance(module, nn.Linear):
                depth = 2 * self.shape.layers if name.endswith(("out", "down")) else 1
                nn.init.normal_(module.weight, std=(module.in_features * depth) ** -0.5)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith("qkv.weight"):
                    queries, keys, _ = weight.chunk(3)
                    keys.copy_(queries)

    def forward(
        self, ids: torch.Tensor, *, last: int | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Logits of the id that follows each position.

        ids: (B, L) int64, the whole sequence even with a cache. last: give only those of the last positions.
        cache: compute only the positions that it has not seen, and add them. Returns (B, n, V) float32.
        """
        length, start = ids.shape[1], cache.seen if cache is not None else 0
        if not 0 < length <= self.shape.window or (start and length != start + 1):
            raise ValueError(
                f"expected 1 to {self.shape.window} ids, and one more than the {start} of the cache if it has any; "
                f"got {length}"
            )
        x = self.embed(ids[:, start:]) + self.position.weight[start:length]
        for back, table in enumerate(self.before, start=1):
            earlier = ids[:, max(start - back, 0) : max(length - back, 0)]
            x = x + F.pad(table(earlier), (0, 0, length - start - earlier.shape[1], 0))
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        if cache is not None:
            cache.seen = length
        return F.linear(self.norm(x if last is None else x[:, -last:]), self.embed.weight)
