"""One round of a federation: its clients at once against one by one. `python -m tests.bench.federated`."""

from __future__ import annotations

import statistics
import time

import torch

from redteam.core.device import resolve, set_threads
from redteam.core.seeding import SeedPath
from redteam.learn import models
from redteam.threats.poisoning.federation.config import FederationConfig
from redteam.threats.poisoning.federation.local import Recipe, generic, orders, train
from redteam.threats.poisoning.federation.network import Network
from tests.bench.cases import Way
from tests.bench.timing import side_by_side


def local_training(model: str, clients: int, size: int, device: torch.device) -> tuple[Way, Way, Way]:
    """The default round's local training on random images: one by one, under `vmap`, and as a run does it."""
    c = FederationConfig()
    network = Network(models.build(model, classes=10, shape=(size, size, 1), seeds=SeedPath(0)).to(device))
    g = SeedPath(1).torch()
    images = torch.randn(clients, c.images, 1, size, size, generator=g).to(device)
    labels = torch.randint(0, 10, (clients, c.images), generator=g).to(device)
    order, start = orders(c.local_epochs, clients, c.images, g).to(device), network.flat()

    def way(how, together: bool) -> Way:
        recipe = Recipe(batch_size=c.batch_size, lr=c.lr, together=together)

        def run() -> torch.Tensor:
            out = how(network, start, images, labels, order, recipe)
            return out.sum().cpu()  # waits for the device

        return run

    ways = way(generic, False), way(generic, True), way(train, True)
    alone, mapped, used = (float(w()) for w in ways)
    assert abs(alone - mapped) < 1e-2 + 1e-3 * abs(alone) and abs(alone - used) < 1e-2 + 1e-3 * abs(alone)
    return ways


def wall(way: Way, turns: int) -> float:
    """Median wall milliseconds."""
    way()
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    """One thread on the CPU, CPU time in turn; wall time on a GPU where there is one."""
    set_threads(1)
    print(
        "\n| federated round, local training | one by one, ms | vmap, ms | times faster | as run, ms | times faster |"
    )
    print("|---|---|---|---|---|---|")
    alone, mapped, used = local_training("mlp", 50, 14, torch.device("cpu"))
    a, b = side_by_side(alone, mapped, turns=7), side_by_side(alone, used, turns=7)
    print(
        f"| mlp, 50 clients x 60 images, 14x14, CPU | {a.slow_s * 1e3:.0f} | {a.fast_s * 1e3:.1f} | **{a.ratio:.1f}** "
        f"({a.low:.1f} to {a.high:.1f}) | {b.fast_s * 1e3:.1f} | **{b.ratio:.1f}** ({b.low:.1f} to {b.high:.1f}) |",
        flush=True,
    )
    device = resolve("auto")
    if device.kind != "cuda":
        return
    for model, size in (("mlp", 14), ("convnet", 14), ("convnet", 28)):
        ms = [wall(way, 7) for way in local_training(model, 50, size, device.torch())]
        print(
            f"| {model}, 50 clients x 60 images, {size}x{size}, {torch.cuda.get_device_name()} (wall) | {ms[0]:.0f} "
            f"| {ms[1]:.1f} | **{ms[0] / ms[1]:.1f}** | {ms[2]:.1f} | **{ms[0] / ms[2]:.1f}** |",
            flush=True,
        )


if __name__ == "__main__":
    main()
