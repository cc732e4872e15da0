"""Stages are computed once per key, survive damage, and stop when the time is up."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from redteam.core.context import Context, Limits
from redteam.core.device import resolve, set_threads
from redteam.core.errors import ConfigError, LimitReachedError
from redteam.core.seeding import SeedPath


def test_a_stage_runs_once_for_a_key(ctx, tmp_path):
    ctx, calls = replace(ctx, stage_dir=tmp_path), []

    def make():
        calls.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        assert np.array_equal(ctx.stage("s", {"k": 1}, make)["x"], np.arange(3))
    assert len(calls) == 1 and ctx.costs.resumed == ["s"]
    ctx.stage("s", {"k": 2}, make)
    assert len(calls) == 2


def test_a_damaged_stage_is_computed_again(ctx, tmp_path):
    ctx = replace(ctx, stage_dir=tmp_path)
    ctx.stage("s", {"k": 1}, lambda: {"x": np.arange(3)})
    file = next(tmp_path.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:50])
    assert np.array_equal(ctx.stage("s", {"k": 1}, lambda: {"x": np.arange(4)})["x"], np.arange(4))


def test_a_failed_stage_leaves_nothing(ctx, tmp_path):
    ctx = replace(ctx, stage_dir=tmp_path)

    def fail():
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        ctx.stage("s", {}, fail)
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob("*.partial"))


def test_two_at_once_compute_it_once(ctx, tmp_path):
    calls = []

    def run(_):
        def make():
            calls.append(1)
            time.sleep(0.2)
            return {"x": np.ones(2)}

        return replace(ctx, stage_dir=tmp_path).stage("s", {}, make)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert len(calls) == 1


def test_limits(ctx):
    late = replace(ctx, limits=Limits(wall_s=0.01))
    time.sleep(0.02)
    with pytest.raises(LimitReachedError, match=r"the limit was 0.01 s"):
        late.report("work", 1, 2)


def test_seed_paths_are_streams_of_their_own():
    root = SeedPath(3)
    paths = (root, root.child("a"), root.child("b"), root.child("a", "b"), SeedPath(4))
    values = {str(p): p.integer() for p in paths}
    assert len(set(values.values())) == 5
    assert root.child("ab").integer() != root.child("a", "b").integer()
    assert np.array_equal(root.child("x").numpy().random(3), SeedPath(3, ("x",)).numpy().random(3))


def test_global_generator_is_put_back():
    import torch

    torch.manual_seed(5)
    before = torch.get_rng_state()
    with SeedPath(1).as_global():
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with SeedPath(1).as_global():
        assert torch.equal(torch.rand(2), first)


def test_device_messages():
    assert resolve("cpu").kind == "cpu"
    with pytest.raises(ConfigError, match="expected a device such as"):
        resolve("gpuu")
    with pytest.raises(ConfigError, match="not present here"):
        resolve("cuda:99")
    with pytest.raises(ConfigError, match="at least 1 thread"):
        set_threads(0)


def test_dtype(ctx: Context):
    import torch

    assert ctx.torch_dtype() is torch.float32 and replace(ctx, dtype="float64").torch_dtype() is torch.float64
