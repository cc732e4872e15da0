"""`python -m tests.bench.language`: milliseconds a candidate of scoring on SmolLM2-135M, and what bf16 changes.

A candidate is a raw prompt and a target; the candidates of one call are neighbours of one parent that
differ from it in one token, as in greedy coordinate queries. What is known from calls before is the
state of the fixed text at most: each call has a new parent, whose state it computes itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from redteam.core.context import Context
from redteam.core.device import Device, set_threads
from redteam.core.record import environment
from redteam.core.seeding import SeedPath
from redteam.llm.local import LocalModel, open_local
from redteam.llm.options import ModelOptions
from redteam.llm.prefix import EMPTY, Prefix, Prefixes

# Runs once and returns how many candidates it scored.
Way = Callable[[], int]


@dataclass(frozen=True)
class Load:
    """Candidates of one parent. head: tokens of fixed text before the part that varies."""

    model: LocalModel
    head: int
    prompts: tuple[str, ...]
    target: str

    @classmethod
    def make(cls, model: LocalModel, head: int, suffix: int, target: int, count: int, seed: int = 0) -> Load:
        """Random tokens that survive decoding and encoding."""
        rng, v = np.random.default_rng(seed), model.vocabulary
        parent = _stable(model, lambda: rng.choice(v, head + suffix))

        def neighbour() -> np.ndarray:
            ids = parent.copy()
            ids[head + rng.integers(suffix)] = rng.choice(v)
            return ids

        prompts = tuple(model.detokenize(_stable(model, neighbour)) for _ in range(count))
        while True:
            text = model.detokenize(rng.choice(v, target))
            if len(model.target_ids(text)) == target:
                return cls(model, head, prompts, text)

    def ids(self) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        """Rows as the network gets them, and the target."""
        wanted = tuple(self.model.target_ids(self.target))
        return [(*self.model.encode(p), *wanted[:-1]) for p in self.prompts], wanted


def _stable(model: LocalModel, draw: Callable[[], np.ndarray]) -> np.ndarray:
    while True:
        ids = draw()
        if model.tokenize(model.detokenize(ids)) == ids.tolist():
            return ids


def whole(load: Load, batch: int, count: int) -> Way:
    """Plain passes over everything, in the order given, of the first `count` candidates."""
    rows, wanted = load.ids()

    def run() -> int:
        for i in range(0, count, batch):
            _judge_all(load.model, rows[i : i + batch], EMPTY, wanted)
        return count

    return run


def behind_head(load: Load, batch: int, count: int) -> Way:
    """The fixed text's state is known and shared; the rest in the order given."""
    rows, wanted = load.ids()
    with torch.inference_mode():
        head = load.model.network.extend(EMPTY, rows[0][: load.head])

    def run() -> int:
        for i in range(0, count, batch):
            _judge_all(load.model, rows[i : i + batch], head, wanted)
        return count

    return run


def _judge_all(
    model: LocalModel, rows: list[tuple[int, ...]], prefix: Prefix, wanted: tuple[int, ...]
) -> None:
    with torch.inference_mode():
        logits, _ = model.network.run(rows, prefix, len(wanted), caching=False)
        for x in logits:
            x.log_softmax(-1).gather(1, torch.tensor(wanted)[:, None]), x.argmax(-1)


def scored(load: Load) -> Way:
    """`LocalModel.score`: fixed text known, parent's state computed once a call, rows sorted by it."""
    rows, _ = load.ids()
    net = load.model.network
    with torch.inference_mode():
        head = net.extend(EMPTY, rows[0][: load.head]) if load.head else None

    def run() -> int:
        fresh = Prefixes()
        if head is not None:
            fresh.add(head)
        object.__setattr__(net, "prefixes", fresh)
        return len(load.model.score(load.prompts, load.target))

    return run


def in_turn(ways: dict[str, Way], turns: int) -> dict[str, list[float]]:
    """CPU milliseconds a candidate of every way. They take turns, so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.process_time()
            count = way()
            times[name].append((time.process_time() - start) * 1e3 / count)
    return times


def table(title: str, ways: dict[str, Way], turns: int) -> None:
    """Medians with their range, and how many times faster each way is than the first."""
    times = in_turn(ways, turns)
    first = next(iter(times.values()))
    print(f"\n{title}\n\n| way | ms a candidate | range | times faster |\n|---|---|---|---|")
    for name, ms in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, ms, strict=True))
        print(
            f"| {name} | {statistics.median(ms):.1f} | {min(ms):.1f} to {max(ms):.1f} | {ratio:.2f} |",
            flush=True,
        )


def main(turns: int = 5) -> None:
    """Run everything, one thread."""
    set_threads(1)
    env = environment("cpu")
    print(f"{env.cpu}, torch {env.packages['torch']}, one thread, CPU time (medians of {turns} turns)")
    ctx = Context(Device("cpu"), SeedPath(0))
    full = open_local(ModelOptions(model="gguf:smollm2", batch=16), ctx)
    half = open_local(ModelOptions(model="gguf:smollm2", batch=16, dtype="bfloat16"), ctx)
    long, long_half = (Load.make(m, 64, 20, 20, 64) for m in (full, half))
    assert long.prompts == long_half.prompts
    ways = {
        "float32, whole, batch 1": whole(long, 1, 16),
        "float32, whole, batch 16": whole(long, 16, 32),
        "float32, head known, batch 16": behind_head(long, 16, 64),
        "float32, head known, sorted by parent, batch 16": scored(long),
        "bfloat16, head known, batch 16": behind_head(long_half, 16, 16),
    }
    table("SmolLM2-135M, 64 fixed + 20 varied + 20 target tokens, 64 candidates", ways, turns)
    a, b = (np.array([s.loss for s in m.score(long.prompts, long.target)]) for m in (full, half))
    same = len(set(np.argsort(a)[:8]) & set(np.argsort(b)[:8]))
    print(
        f"\nbfloat16: |loss - float32 loss| at most {np.abs(a - b).max():.3f} nats, mean {np.abs(a - b).mean():.3f}; "
    )
    print(f"of the best 8 of 64 candidates {same} are the same.")
    plain = open_local(ModelOptions(model="gguf:smollm2", batch=16), ctx, prefix_cache=False)
    c = np.array([s.loss for s in plain.score(long.prompts, long.target)])
    print(f"Shared prefixes: losses differ from plain passes by at most {np.abs(a - c).max():.1e} nats.")
    short = Load.make(full, 0, 20, 8, 64)
    ways = {
        "float32, whole, batch 16": whole(short, 16, 64),
        "float32, sorted by parent, batch 16": scored(short),
    }
    table("The same, 20 varied + 8 target tokens, no fixed text", ways, turns)


if __name__ == "__main__":
    main()
