"""A classifier before, behind, or on both sides of a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.strings._guard import REFUSAL
from defenses.strings.moderation import Config, run, suspicion
from redteam.core.errors import ConfigError
from redteam.llm.language import PromptFilter, Sampling, Verdict
from tests.defenses.strings.fakes import FakeClassifier, FakeModel, replace_module


@pytest.fixture
def classifier(monkeypatch):
    found = FakeClassifier(failing=("slow",))
    found.opened = []

    def open_classifier(spec, ctx, role):
        found.opened.append((spec, role))
        return found

    replace_module(monkeypatch, "redteam.llm.moderation", open_classifier=open_classifier)
    return found


def test_flagged_prompts_are_refused_without_a_query(classifier, ctx):
    target = FakeModel()
    guard = run(target, Config(), ctx)
    fine, refused, late = guard.generate(["good", "rude one", "slow"], Sampling())
    assert fine.text == "good" and target.asked == ["good"]
    assert (refused.text, refused.finish) == (REFUSAL, "refused")
    assert refused.message == "suspicion 0.9 is above 0.5 (rude)"
    assert (late.text, late.finish) == ("", "timeout") and "slow" in late.message
    assert guard.score(["rude one"], "x")[0].finish == "refused" and target.calls == 1
    assert guard.score(["good"], "bad")[0].finish == "stop", "answers are none of its business"
    assert classifier.opened == [("embedded:", "defense")]
    assert classifier.asked == ["good", "rude one", "slow"], "verdicts are remembered"


def test_flagged_answers_are_held_back_and_cost_what_they_cost(classifier, ctx):
    target = FakeModel(answer=lambda p: p.replace("b_d", "bad"))
    guard = run(target, Config(on="answer"), ctx)
    assert not isinstance(guard, PromptFilter)
    fine, held, late = guard.generate(["bed", "b_d", "slow"], Sampling())
    assert fine.text == "bed" and target.asked == ["bed", "b_d", "slow"]
    assert (held.text, held.finish, held.tokens_in, held.tokens_out) == (REFUSAL, "refused", 3, 3)
    assert (late.text, late.finish, late.tokens_in) == ("", "timeout", 4)
    calls = target.calls
    (scores,) = guard.score(["bed"], "bad")
    assert scores.finish == "refused" and scores.loss == float("inf") and target.calls == calls
    assert guard.score(["bed"], "bed")[0].loss == 3.0


def test_answers_that_never_came_are_not_classified(classifier, ctx):
    guard = run(FakeModel(finishes={"bad": "filtered"}), Config(on="answer"), ctx)
    (answer,) = guard.generate(["bad"], Sampling())
    assert answer.finish == "filtered" and classifier.asked == []


def test_both_sides(classifier, ctx):
    target = FakeModel(answer=lambda p: p.replace("b_d", "bad"))
    guard = run(target, Config(on="both"), ctx)
    assert isinstance(guard, PromptFilter)
    answers = guard.generate(["bad", "b_d", "bed"], Sampling())
    assert [a.finish for a in answers] == ["refused", "refused", "stop"] and target.asked == ["b_d", "bed"]
    guards = {on: run(FakeModel(), Config(on=on), ctx) for on in ("prompt", "answer", "both")}
    prints = {on: str(guard.fingerprint()) for on, guard in guards.items()}
    assert len(set(prints.values())) == 3


def test_thresholds_of_ones_own(classifier, ctx):
    classifier.bar = 0.95  # its own flag never rises
    assert run(FakeModel(), Config(), ctx).generate(["bad"], Sampling())[0].finish == "stop"
    for threshold, finish in ((0.05, "refused"), (0.89, "refused"), (0.9, "stop")):
        guard = run(FakeModel(), Config(threshold=threshold), ctx)
        assert guard.threshold == threshold and guard.generate(["bad"], Sampling())[0].finish == finish
        assert guard.suspicion(["bad", "good"]).tolist() == [0.9, 0.1]


@given(st.lists(st.floats(0, 1), max_size=4), st.booleans())
def test_suspicion_lies_on_the_side_of_the_flag(scores, flagged):
    verdict = Verdict(scores=np.array(scores), flagged=flagged)
    assert (suspicion(verdict, None) > 0.5) is flagged
    top = max(scores, default=0.0)
    assert suspicion(verdict, 0.3) == top
    if (top > 0.5) is flagged:
        assert suspicion(verdict, None) == top


@given(st.lists(st.sampled_from(["good", "bad", "rude", "fine", "bad rude"]), max_size=8))
def test_suspicion_depends_on_the_prompt_alone(prompts):
    from defenses.strings.moderation import judge

    together = judge(FakeClassifier(), None, prompts)
    assert together == [judge(FakeClassifier(), None, [p])[0] for p in prompts]


def test_bad_knobs_are_refused():
    with pytest.raises(ConfigError, match="on: expected one of prompt, answer, both"):
        Config(on="neither")
    with pytest.raises(ConfigError, match="threshold: expected at most 1"):
        Config(threshold=1.5)
