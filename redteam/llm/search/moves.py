"""Adversarial strings as token ids: how they begin, what their neighbours are, and which can be sent.

Ids are never scored that cannot be sent: a candidate must come back from decoding and encoding the whole
prompt unchanged [hayase2024gcq, appendix C].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from redteam.core.errors import ConfigError

Ids = tuple[int, ...]
_DRAWS = 50


class Reader(Protocol):
    """Text to ids and back: a language model, or an alphabet of a searcher's own."""

    @property
    def vocabulary(self) -> np.ndarray: ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def encode(self, prompt: str) -> list[int]: ...


def contains(whole: Sequence[int], part: Sequence[int]) -> bool:
    """Whether `part` stands in `whole` as one piece."""
    n, whole, part = len(part), list(whole), list(part)
    return any(whole[i : i + n] == part for i in range(len(whole) - n, -1, -1))


def sendable(model: Reader, request: str, ids: Ids) -> str | None:
    """The text of `ids` if the model reads the full prompt with it back as exactly these ids, else None."""
    text = model.detokenize(ids)
    if "\ufffd" in text:
        return None
    return text if contains(model.encode(request + text), ids) else None


def canonical(model: Reader, request: str, ids: Sequence[int], length: int) -> Ids:
    """`ids` as they are read back, cut on the left until no more than `length` are left and they last.

    Raises:
        ConfigError: the string cannot be sent in any length.
    """
    now = tuple(ids)[-length:]
    for _ in range(_DRAWS):
        again = tuple(model.tokenize(model.detokenize(now)))[-length:]
        if again == now and sendable(model, request, now) is not None:
            return now
        now = again if again != now else now[1:]
        if not now:
            break
    raise ConfigError(
        f"no beginning of up to {length} tokens survives decoding and encoding; try --init random"
    )


def repeated(model: Reader, request: str, target: Sequence[int], length: int) -> Ids:
    """The target repeated as often as fits, cut on the left [hayase2024gcq, section 3.2.3]."""
    copies = math.ceil(length / len(target))
    return canonical(model, request, tuple(target) * copies, length)


def random_string(model: Reader, request: str, length: int, rng: np.random.Generator) -> Ids:
    """`length` tokens drawn uniformly from the ordinary ones until they can be sent."""
    vocabulary = model.vocabulary
    for _ in range(_DRAWS):
        ids = tuple(int(vocabulary[i]) for i in rng.integers(len(vocabulary), size=length))
        if sendable(model, request, ids) is not None:
            return ids
    # Long random strings rarely survive whole; what they are read back as does.
    return canonical(model, request, ids, length)


def neighbours(
    model: Reader, request: str, parent: Ids, rng: np.random.Generator, positions: Sequence[int] | None = None
) -> Iterator[tuple[int, Ids]]:
    """Endless (position, ids): one uniform swap each, of those that can be sent and differ from the parent.

    positions: where swaps may fall; None: anywhere.
    """
    vocabulary = model.vocabulary
    places = np.arange(len(parent)) if positions is None else np.asarray(positions)
    for _ in range(_DRAWS * 10_000):
        place, token = int(places[rng.integers(len(places))]), int(vocabulary[rng.integers(len(vocabulary))])
        ids = (*parent[:place], token, *parent[place + 1 :])
        if ids != parent and sendable(model, request, ids) is not None:
            yield place, ids
    raise ConfigError(
        "no neighbour of this string survives decoding and encoding; try another --length or --init"
    )
