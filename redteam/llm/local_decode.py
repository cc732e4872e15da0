"""Many answers at once: greedy or sampled decoding whose result does not depend on the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.llm.local_load import Network
from redteam.llm.prefix import EMPTY, Ids, growing, shared_length

if TYPE_CHECKING:
    from redteam.llm.language import Finish, Sampling

Choose = Callable[[torch.Tensor], int]


def checked(sampling: Sampling) -> Sampling:
    """The same sampling. Raises ConfigError if it makes no sense."""
    if sampling.max_tokens < 1 or not sampling.temperature >= 0 or not 0 < sampling.top_p <= 1:
        raise ConfigError(
            "expected max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, got "
            f"{sampling.max_tokens}, {sampling.temperature:g} and {sampling.top_p:g}"
        )
    return sampling


def chooser(sampling: Sampling, prompt: str) -> Choose:
    """How one prompt's tokens are chosen: greedily at temperature 0, else drawn from the prompt's own stream.

    A draw is from softmax(logits / temperature), cut to the smallest set of most likely tokens with mass
    of at least `top_p`. One uniform number a token goes through the inverse distribution function in
    float64: rounding of the logits, which differs with the batch, hardly ever moves a draw.
    """
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax())
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    rng = SeedPath(sampling.seed).child("sample", digest, sampling.index).numpy()

    def choose(logits: torch.Tensor) -> int:
        scaled = logits.double().cpu().numpy() / sampling.temperature
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        if sampling.top_p < 1:
            order = np.argsort(-p, kind="stable")
            before = np.cumsum(p[order]) - p[order]
            p[order[before >= sampling.top_p]] = 0
        cumulative = np.cumsum(p)
        drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        return min(int(drawn), int(np.flatnonzero(p)[-1]))

    return choose


@dataclass(slots=True)
class Answer:
    """One answer as it grows. ids: without the token that ended it; spent: tokens computed."""

    choose: Choose
    ids: list[int] = field(default_factory=list)
    spent: int = 0
    finish: Finish | None = None

    def take(self, logits: torch.Tensor, stops: frozenset[int], most: int) -> int:
        """Choose the next token and return it. logits: (V,) float32."""
        token = self.choose(logits)
        self.spent += 1
        if token in stops:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if self.spent == most:
                self.finish = "length"
        return token


def groups(lengths: Sequence[int], size: int, *, equal: bool) -> list[list[int]]:
    """Rows by length in batches of at most `size`; equal: only rows of one length go together."""
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if out and len(out[-1]) < size and (not equal or lengths[out[-1][0]] == lengths[i]):
            out[-1].append(i)
        else:
            out.append([i])
    return out


def decode(
    net: Network,
    rows: Sequence[Ids],
    answers: Sequence[Answer],
    *,
    stops: frozenset[int],
    most: int,
    caching: bool = True,
) -> None:
    """Let every answer grow to its end, or to `most` tokens. rows: ids of the prompts, none empty.

    Rows are padded on the right; pad tokens stay masked and positions are counted without them, so a
    row's logits are those it would have alone. Rows that have ended leave the batch once they are half
    of it. A network without keys and values computes each answer anew for every token.
    """
    prefix = net.prefixes.longest(_common(rows)) if caching and net.caches else EMPTY
    logits, cache = net.run(rows, prefix, 1, caching=net.caches)
    last = [a.take(x[-1], stops, most) for a, x in zip(answers, logits, strict=True)]
    finish(net, rows, answers, last, cache, stops=stops, most=most)


def finish(
    net: Network,
    rows: Sequence[Ids],
    answers: Sequence[Answer],
    last: list[int],
    cache: Any,
    *,
    stops: frozenset[int],
    most: int,
) -> None:
    """Let answers that have one token each, `last`, grow to their end.

    cache: keys and values of the rows, padded on the right to the longest; none for a network without.
    """
    cache, longest = growing(cache), max(map(len, rows))
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=net.device)
    live = list(range(len(rows)))
    while going := [k for k, i in enumerate(live) if answers[i].finish is None]:
        if not net.caches:
            full = [(*rows[live[k]], *answers[live[k]].ids) for k in going]
            for k, x in zip(going, net.run(full, EMPTY, 1, caching=False)[0], strict=True):
                answers[live[k]].take(x[-1], stops, most)
            continue
        if 2 * len(going) <= len(live):
            keep = torch.tensor(going, device=net.device)
            cache.reorder_cache(keep)
            mask, live, last = mask[keep], [live[k] for k in going], [last[k] for k in going]
            going = list(range(len(live)))
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        places = torch.tensor([[len(rows[i]) + answers[i].spent - 1] for i in live], device=net.device)
        given = {"past_key_values": cache, "attention_mask": mask, "position_ids": places, "use_cache": True}
        step = net.forward(torch.tensor(last)[:, None], 1, **given).logits[:, -1].float()
        for k in going:
            last[k] = answers[live[k]].take(step[k], stops, most)


def _common(rows: Sequence[Ids]) -> Ids:
    """What all rows begin with, leaving at least one token of each to compute."""
    first = rows[0]
    return first[: min(min(shared_length(first, r), len(r) - 1) for r in rows)]
