"""The best candidates of a search in order: the smallest and the largest at hand, as in a min-max heap.

The buffers here hold a hundred or so, where a sorted list is as fast as a heap and needs no explanation.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What compares with `<`."""

    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=Ordered)


class Buffer(Generic[T]):
    """Entries that compare with `<`, the smallest first. Asking an empty one raises IndexError."""

    def __init__(self, entries: Iterable[T] = ()) -> None:
        self._entries = sorted(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def min(self) -> T:
        """The smallest entry."""
        return self._entries[0]

    def max(self) -> T:
        """The largest entry."""
        return self._entries[-1]

    def push(self, entry: T) -> None:
        """Add an entry."""
        insort(self._entries, entry)

    def pop_max(self) -> T:
        """Remove and return the largest entry."""
        return self._entries.pop()
