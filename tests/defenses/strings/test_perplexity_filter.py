"""Windowed likelihoods in closed form, calibration by exact quantiles, refusals without queries."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.strings.perplexity_filter import SPEC, Config, judge, run, threshold_for, windowed_nll
from redteam.core.errors import BackendError, ConfigError
from redteam.llm.language import Sampling
from tests.defenses.strings.fakes import CONTROL, FakeModel, cost, replace_module

TEXT = st.text(max_size=60)
NLL = st.lists(st.floats(0, 20), min_size=1, max_size=40).map(np.array)


@pytest.fixture
def calibration(monkeypatch):
    """Ten calibration prompts whose whole-text likelihoods are 0.1, 0.2, ... 1.0 nats a token off 1."""
    prompts = tuple("a" * (10 - i) + "  " * i for i in range(10))
    replace_module(monkeypatch, "redteam.data.texts", calibration_prompts=lambda: prompts)
    return prompts


def test_windows_in_closed_form():
    nll = np.array([1.0, 1, 1, 9, 1, 1, 1])
    assert windowed_nll(nll, 0) == pytest.approx(15 / 7)
    assert windowed_nll(nll, 2) == 5.0  # [1 1] [1 9] [1 1] [1]
    assert windowed_nll(nll, 3) == pytest.approx(11 / 3)  # [1 1 1] [9 1 1] [1]
    assert windowed_nll(nll, 4) == 3.0  # [1 1 1 9] [1 1 1]
    assert windowed_nll(nll, 100) == pytest.approx(15 / 7)
    assert windowed_nll(np.array([1.0, 1, 4, 6, 1]), 2) == 5.0  # [1 1] [4 6] [1]
    assert windowed_nll(np.array([1.0, 4, 6, 1]), 2) == 3.5  # side by side, the peak is cut in two
    assert windowed_nll(np.array([1.0, 4, 6, 1]), 2, stride=1) == 5.0
    assert windowed_nll(np.array([1.0, 1, 1, 1, 8]), 2) == 8.0  # the last window is short
    assert windowed_nll(np.array([1.0, 1, 1, 1, 8]), 2, stride=1) == 4.5
    assert windowed_nll(np.zeros(0), 3) == 0.0


@given(NLL, st.integers(1, 12), st.integers(1, 12))
def test_windows_cover_the_text_and_bound_each_other(nll, window, stride):
    stride = min(stride, window)
    value = windowed_nll(nll, window, stride)
    assert value <= nll.max() + 1e-9
    assert windowed_nll(nll, 1) == nll.max()
    assert windowed_nll(nll + 3.0, window, stride) == pytest.approx(value + 3.0)
    if len(nll) % window == 0:  # whole windows alone: some window is at least the mean
        assert windowed_nll(nll, window) >= nll.mean() - 1e-9
    full = [nll[i : i + window].mean() for i in range(len(nll) - window + 1)] or [nll.mean()]
    assert windowed_nll(nll, window, 1) == max(full)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_the_threshold_is_the_smallest_that_lets_the_share_pass(values, rate):
    values = np.array(values)
    threshold = threshold_for(values, rate)
    need = rate * len(values) - 1e-6
    assert threshold in values and (values <= threshold).sum() >= need
    lower = values[values < threshold]
    if len(lower):
        assert (values <= lower.max()).sum() < need + 1e-6 + 1e-9


def test_quantiles_are_exact():
    values = np.arange(1.0, 101.0)
    assert [threshold_for(values, r) for r in (0.01, 0.07, 0.29, 0.5, 0.99, 1.0)] == [1, 7, 29, 50, 99, 100]
    assert threshold_for(np.array([3.0]), 0.01) == 3.0


def test_suspicion_is_the_windowed_likelihood_under_the_filter_model(ctx):
    guard = run(FakeModel(), Config(window=4, threshold=5.0), ctx)
    #        1 1 .5 1 | 4 4 8 8 | 1
    assert guard.suspicion(["ab c12##a", "ab", ""]).tolist() == [6.0, 1.0, 0.0]
    whole = run(FakeModel(), Config(window=0, threshold=5.0), ctx)
    assert whole.suspicion(["ab c12##a"])[0] == pytest.approx(28.5 / 9)


@given(st.lists(TEXT, max_size=8), st.integers(0, 5), st.randoms())
def test_suspicion_depends_on_the_prompt_alone(prompts, window, random):
    def suspicion(batch):
        judged = judge(FakeModel(), Config(window=window), batch)
        return [j.suspicion for j in judged]

    together = dict(zip(prompts, suspicion(prompts), strict=True))
    shuffled = random.sample(prompts, len(prompts))
    assert suspicion(shuffled) == [together[p] for p in shuffled]
    assert all(suspicion([p]) == [together[p]] for p in prompts)
    for prompt in filter(None, prompts):
        assert together[prompt] == windowed_nll(np.array([cost(c) for c in prompt]), window)


@pytest.mark.parametrize(("rate", "passing"), [(0.3, 3), (0.31, 4), (0.99, 10), (1.0, 10)])
def test_calibration_lets_just_its_share_of_benign_prompts_through(calibration, ctx, rate, passing):
    target = FakeModel()
    guard = run(target, Config(window=0, pass_rate=rate), ctx)
    levels = sorted(np.mean([cost(c) for c in p]) for p in calibration)
    assert guard.threshold == levels[ceil(rate * 10 - 1e-9) - 1]
    answers = guard.generate(calibration, Sampling())
    assert sum(a.finish == "stop" for a in answers) == passing
    assert guard.fingerprint()["threshold"] == guard.threshold


def test_calibration_is_read_back_from_its_stage(calibration, ctx, tmp_path):
    ctx = replace(ctx, stage_dir=tmp_path)
    models = [FakeModel(), FakeModel(), FakeModel(name="other"), FakeModel(), FakeModel()]
    settings = [{"pass_rate": 0.5}, {"pass_rate": 1.0}, {"pass_rate": 0.5}, {"window": 3}, {"stride": 1}]
    guards = [run(m, Config(**s), ctx) for m, s in zip(models, settings, strict=True)]
    # Another quantile costs nothing; another model, window or stride does.
    assert [m.calls for m in models] == [10, 0, 10, 10, 10]
    assert guards[0].threshold < guards[1].threshold and guards[0].threshold == guards[2].threshold


def test_a_given_threshold_needs_no_calibration(ctx, monkeypatch):
    replace_module(monkeypatch, "redteam.data.texts")
    assert run(FakeModel(), Config(threshold=2.5), ctx).threshold == 2.5


def test_a_refused_prompt_costs_the_target_nothing_and_is_judged_once(ctx, monkeypatch):
    target, judging = FakeModel(), FakeModel(name="filter")
    replace_module(monkeypatch, "redteam.llm.opening", open_model=lambda options, ctx, role: judging)
    guard = run(target, Config(model="tiny:", window=2, threshold=3.0), ctx)
    fine, edge, refused = guard.generate(["ab", "2 c4a1", "a##b"], Sampling())
    assert (fine.finish, edge.finish, refused.finish) == ("stop", "stop", "refused")  # 1, 2.5, 8
    assert target.asked == ["ab", "2 c4a1"] and target.calls == 1
    assert "4.5 is above 3 (nats a token)" in guard.generate(["a#"], Sampling())[0].message
    calls = judging.calls
    guard.suspicion(["ab", "a##b"] * 50)
    guard.score(["a##b"], "x")
    assert judging.calls == calls and target.calls == 1
    assert guard.fingerprint()["filter"] == judging.fingerprint()


def test_a_prompt_as_suspicious_as_the_threshold_passes(ctx):
    guard = run(FakeModel(), Config(window=0, threshold=4.0), ctx)
    assert [a.finish for a in guard.generate(["12", "1#"], Sampling())] == ["stop", "refused"]


def test_a_filter_model_that_fails_is_an_error_and_no_refusal(ctx, monkeypatch):
    judging = FakeModel(finishes={"odd": "error"})
    replace_module(monkeypatch, "redteam.llm.opening", open_model=lambda options, ctx, role: judging)
    guard = run(FakeModel(), Config(model="tiny:", threshold=3.0), ctx)
    (answer,) = guard.generate(["odd"], Sampling())
    assert (answer.text, answer.finish) == ("", "error") and "told to fail" in answer.message
    replace_module(monkeypatch, "redteam.data.texts", calibration_prompts=lambda: ("fine", "odd"))
    with pytest.raises(
        BackendError, match=r"did not score the calibration prompt 'odd' \(error: told to fail\)"
    ):
        run(FakeModel(), Config(model="tiny:"), ctx)


def test_a_text_of_control_tokens_is_an_error_and_stops_no_other(ctx):
    target = FakeModel()
    guard = run(target, Config(threshold=3.0), ctx)
    bad, good = guard.generate(["a" + CONTROL, "a"], Sampling())
    assert (bad.finish, good.finish) == ("error", "stop") and "control token" in bad.message
    assert guard.suspicion(["a" + CONTROL]).tolist() == [np.inf] and "a" + CONTROL not in target.asked


def test_without_a_token_to_begin_with_texts_follow_a_line_break(ctx):
    for start, before in (((0,), ""), ((), "\n")):
        model = FakeModel(start=start)
        guard = run(model, Config(threshold=3.0), ctx)
        assert guard.suspicion(["ab1"]).tolist() == [2.0] and model.asked == [before]


def test_bad_windows_are_refused():
    with pytest.raises(ConfigError, match="stride: expected at most window"):
        Config(window=4, stride=5)
    with pytest.raises(ConfigError, match="pass_rate: expected more than 0"):
        Config(pass_rate=0.0)
    assert all(isinstance(p.config, Config) for p in SPEC.presets.values())
