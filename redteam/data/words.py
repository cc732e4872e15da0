"""The embedded word list, and the draws that never change between versions of Python or numpy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from redteam.core.errors import DataError
from redteam.core.seeding import SeedPath
from redteam.data.shipped import EMBEDDED_DIR

T = TypeVar("T")
# Of the word list: the kinds that are ordinary words.
COMMON = ("noun", "verb", "adjective", "adverb", "place")


class Draws:
    """A random stream of its own for each path. Only `Random.random`, which Python promises never to change."""

    def __init__(self, seeds: SeedPath) -> None:
        self._random = random.Random(seeds.integer()).random

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return self._random() < p

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self._random() * len(items))]

    def pick_different(self, items: Sequence[T], n: int) -> list[T]:
        """`n` items at different places, in random order.

        Raises:
            ValueError: there are fewer than `n`.
        """
        if n > len(items):
            raise ValueError(f"expected at most {len(items)} items, got {n}")
        rest = list(items)
        return [rest.pop(int(self._random() * len(rest))) for _ in range(n)]


def read_sections(name: str, folder: Path = EMBEDDED_DIR) -> dict[str, tuple[str, ...]]:
    """The lines of an embedded text file by section; a section begins with a line such as `[noun]`.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"embedded file {path} is missing or damaged ({error}); reinstall redteam") from error
    sections: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("[") and line.endswith("]") and line[1:-1].isalpha():
            sections[line[1:-1]] = []
        elif line and sections:
            sections[next(reversed(sections))].append(line)
    if not sections or not all(sections.values()):
        raise DataError(f"embedded file {path} is damaged: expected sections with lines; reinstall redteam")
    return {section: tuple(found) for section, found in sections.items()}


@cache
def words(kind: str) -> tuple[str, ...]:
    """Words of one kind: noun, verb (past tense), adjective, adverb, place, number, month, day or syllable."""
    return tuple(" ".join(read_sections("words.txt")[kind]).split())


@cache
def common_words() -> tuple[str, ...]:
    """All ordinary words, each once, in the order of the list."""
    return tuple(dict.fromkeys(word for kind in COMMON for word in words(kind)))
