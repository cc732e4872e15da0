"""A min-max heap: the smallest and the largest entry in constant time, both removed in logarithmic time.

Even levels of the tree hold minima of their subtrees, odd levels maxima.
Source: Atkinson, Sack, Santoro, Strothotte, Min-Max Heaps and Generalized Priority Queues, 1986 (remembered).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What compares with `<`."""

    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=Ordered)


def _on_min_level(index: int) -> bool:
    return (index + 1).bit_length() % 2 == 1


class MinMaxHeap(Generic[T]):
    """Entries that compare with `<`. Iteration is in no useful order."""

    def __init__(self, entries: Iterable[T] = ()) -> None:
        self._heap: list[T] = []
        for entry in entries:
            self.push(entry)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        return iter(self._heap)

    def min(self) -> T:
        """The smallest entry. IndexError on an empty heap."""
        return self._heap[0]

    def max(self) -> T:
        """The largest entry. IndexError on an empty heap."""
        return self._heap[self._max_index()]

    def push(self, entry: T) -> None:
        """Add an entry."""
        self._heap.append(entry)
        self._up(len(self._heap) - 1)

    def pop_min(self) -> T:
        """Remove and return the smallest entry."""
        return self._remove(0)

    def pop_max(self) -> T:
        """Remove and return the largest entry."""
        return self._remove(self._max_index())

    def _max_index(self) -> int:
        if len(self._heap) < 3:
            return len(self._heap) - 1 if self._heap else 0
        return 1 if self._heap[2] < self._heap[1] else 2

    def _remove(self, index: int) -> T:
        heap = self._heap
        heap[index], heap[-1] = heap[-1], heap[index]
        out = heap.pop()
        if index < len(heap):
            self._down(index)
        return out

    def _before(self, a: int, b: int, minimum: bool) -> bool:
        """Whether entry `a` belongs above entry `b` on a level of that sort."""
        return self._heap[a] < self._heap[b] if minimum else self._heap[b] < self._heap[a]

    def _swap(self, a: int, b: int) -> None:
        self._heap[a], self._heap[b] = self._heap[b], self._heap[a]

    def _up(self, index: int) -> None:
        if index == 0:
            return
        parent, minimum = (index - 1) // 2, _on_min_level(index)
        if self._before(parent, index, minimum):
            self._swap(index, parent)
            index, minimum = parent, not minimum
        while index > 2:
            grandparent = (index - 3) // 4
            if not self._before(index, grandparent, minimum):
                return
            self._swap(index, grandparent)
            index = grandparent

    def _down(self, index: int) -> None:
        minimum, size = _on_min_level(index), len(self._heap)
        while (first := 2 * index + 1) < size:
            family = [i for i in (first, first + 1, *range(2 * first + 1, 2 * first + 5)) if i < size]
            best = family[0]
            for other in family[1:]:
                if self._before(other, best, minimum):
                    best = other
            if not self._before(best, index, minimum):
                return
            self._swap(best, index)
            if best <= first + 1:
                return
            parent = (best - 1) // 2
            if self._before(parent, best, minimum):
                self._swap(parent, best)
            index = best
