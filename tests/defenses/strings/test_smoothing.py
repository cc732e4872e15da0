"""Perturbations counted, votes by construction, and expected losses that equal the mean."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.strings._guard import REFUSAL, Blocked
from defenses.strings.smoothing import ALPHABET, Config, mean_scores, perturb, perturbed_count, run, vote
from redteam.core.errors import CapabilityError, ConfigError
from redteam.llm.language import Completion, Sampling, Scores
from tests.conftest import context
from tests.defenses.strings.fakes import FakeModel, rng

RATES = st.floats(0, 1)
HOW = st.sampled_from(["swap", "insert", "patch"])
CTX = context()


def said(*texts: str) -> list[Completion]:
    return [Completion(text=t, finish="stop", tokens_in=2, tokens_out=1) for t in texts]


def scored(*logprobs: float, greedy: str) -> Scores:
    return Scores(
        logprobs=np.array(logprobs), greedy=np.array([g == "y" for g in greedy]), finish="stop", tokens_in=5
    )


# ---------------------------------------------------------------- perturbations


def test_the_alphabet_and_the_counts():
    assert set(ALPHABET) == set(string.printable) and len(ALPHABET) == 100
    assert [perturbed_count(n, 0.1) for n in (0, 9, 10, 19, 30, 70)] == [0, 0, 1, 1, 3, 7]
    assert perturbed_count(100, 0.29) == 29 and perturbed_count(7, 1.0) == 7


# Characters outside the alphabet make every perturbed place visible.
@given(st.integers(0, 200), RATES, st.integers(0, 99))
def test_swap_replaces_just_so_many(length, rate, seed):
    out = perturb("é" * length, "swap", rate, rng(seed))
    assert len(out) == length
    assert sum(c != "é" for c in out) == perturbed_count(length, rate)
    assert set(out) <= set(string.printable) | {"é"}


@given(st.integers(0, 200), RATES, st.integers(0, 99))
def test_insert_adds_just_so_many_and_loses_nothing(length, rate, seed):
    out = perturb("é" * length, "insert", rate, rng(seed))
    assert len(out) == length + perturbed_count(length, rate)
    assert out.count("é") == length and not (out and out.endswith(tuple(string.printable)))


@given(st.integers(0, 200), RATES, st.integers(0, 99))
def test_patch_replaces_one_run(length, rate, seed):
    out = perturb("é" * length, "patch", rate, rng(seed))
    count = perturbed_count(length, rate)
    changed = [i for i, c in enumerate(out) if c != "é"]
    assert len(out) == length and len(changed) == count
    assert not changed or changed[-1] - changed[0] == count - 1


def test_every_place_and_every_character_is_drawn():
    draws = rng(1)
    for how in ("swap", "insert", "patch"):
        copies = [perturb("éééééééééé", how, 0.1, draws) for _ in range(3000)]
        places = {next(i for i, c in enumerate(copy) if c != "é") for copy in copies}
        assert places == set(range(10)), how
        assert {c for copy in copies for c in copy} == set(ALPHABET) | {"é"}


@given(st.text(max_size=60), HOW)
def test_rate_zero_is_the_identity(prompt, how):
    target = FakeModel()
    guard = run(target, Config(rate=0.0, perturbation=how, copies=3), CTX)
    (answer,), (plain,) = guard.generate([prompt], Sampling()), FakeModel().generate([prompt], Sampling())
    assert (answer.text, answer.finish) == (plain.text, plain.finish)
    (smooth,), (bare,) = guard.score([prompt], "ab1"), FakeModel().score([prompt], "ab1")
    assert np.allclose(smooth.logprobs, bare.logprobs) and smooth.exact == bare.exact
    assert set(target.asked) == {prompt}


@given(st.text(min_size=10, max_size=60), st.integers(0, 5), HOW)
def test_copies_follow_from_seed_prompt_and_draw(prompt, index, how):
    guard, again = (run(FakeModel(), Config(perturbation=how), CTX) for _ in range(2))
    copies = guard.copies(prompt, index)
    assert copies == again.copies(prompt, index) and len(copies) == 10


def test_fresh_draws_for_another_index_another_prompt_another_seed_and_for_scores():
    prompt = "a prompt of some length, so that draws differ"
    guard = run(FakeModel(), Config(), CTX)
    other = run(FakeModel(), Config(), context(1))
    draws = [guard.copies(prompt, d) for d in (0, 1, "score")] + [other.copies(prompt, 0)]
    assert len({tuple(d) for d in draws}) == 4 and len(set(draws[0])) == 10
    moved = [c.replace("é", "ü") for c in guard.copies("é" * 45, 0)]
    assert moved != guard.copies("ü" * 45, 0)


# ---------------------------------------------------------------- votes


def test_the_most_common_answer_wins_and_the_first_drawn_of_several():
    assert vote(said("b", "a", "a", "c", "b", "b")).text == "b"
    assert vote(said("c", "a", "b", "b", "a")).text == "a"
    assert vote(said("x", "y", "z")).text == "x"
    won = vote(said("a", "b"))
    assert (won.tokens_in, won.tokens_out) == (4, 2)


def test_refusals_vote_as_one_and_failures_do_not():
    no = Blocked(message="no").completion()
    lost = Completion(text="", finish="timeout", message="late")
    assert vote([*said("a", "b", "c"), no, no]).finish == "refused"
    assert vote([*said("a", "a"), no]).text == "a"
    assert vote([lost, lost, lost, *said("a")]).text == "a"
    assert vote([lost, lost]).finish == "timeout"
    # A model that writes the words of a refusal did answer.
    assert vote([*said(REFUSAL), no, no]).finish == "refused"


def test_the_vote_by_construction():
    """The model keeps the string only where no perturbed character stands: the vote must count them."""
    prompt = "é" * 20
    target = FakeModel(answer=lambda p: "hit" if p.startswith("é" * 5) else "miss")
    guard = run(target, Config(copies=7), CTX)
    for index in range(20):
        hits = sum(c.startswith("é" * 5) for c in guard.copies(prompt, index))
        (answer,) = guard.generate([prompt], Sampling(index=index))
        assert answer.text == ("hit" if hits >= 4 else "miss")
        assert answer.tokens_in == 7 * 20


def test_all_copies_of_all_prompts_go_in_one_call():
    target = FakeModel()
    guard = run(target, Config(copies=4), CTX)
    prompts = ["first prompt here", "second prompt here"]
    assert len(guard.generate(prompts, Sampling())) == 2 and target.calls == 1
    assert target.asked == guard.copies(prompts[0], 0) + guard.copies(prompts[1], 0)
    assert guard.generate([], Sampling()) == [] and guard.score([], "x") == [] and target.calls == 1


@given(st.lists(st.sampled_from(["one two three", "four five six", "seven eight nine"]), max_size=5))
def test_answers_depend_on_the_prompt_alone(prompts):
    guard = run(FakeModel(answer=lambda p: p[:2]), Config(copies=5, rate=0.3), CTX)
    alone = {p: guard.generate([p], Sampling())[0] for p in prompts}
    assert guard.generate(prompts, Sampling()) == [alone[p] for p in prompts]


# ---------------------------------------------------------------- scores


def test_the_loss_is_the_mean_loss_of_the_copies():
    target = FakeModel(shift=lambda p: 0.25 * p.count("é"))
    guard = run(target, Config(copies=8, rate=0.2), CTX)
    prompt = "é" * 10 + "a" * 10
    (scores,) = guard.score([prompt], "ab1")
    copies = guard.copies(prompt, "score")
    assert target.asked == copies
    single = [s.loss for s in FakeModel(shift=target.shift).score(copies, "ab1")]
    assert scores.loss == pytest.approx(np.mean(single)) and len(set(single)) > 1
    assert scores.logprobs.shape == (3,) and scores.logprobs.dtype == np.float64


def test_exact_means_that_most_copies_give_the_whole_string():
    three = [
        scored(-1, -1, greedy="yn"), scored(-1, -3, greedy="ny"), scored(-1, -2, greedy="yy"),
    ]  # fmt: skip
    mean = mean_scores(three)
    # Each token is the argmax in two copies of three, and yet two copies of three miss the string.
    assert mean.greedy.tolist() == [True, False] and not mean.exact
    assert mean.logprobs.tolist() == [-1, -2] and mean.tokens_in == 15
    assert mean_scores([scored(-1, greedy="y"), scored(-1, greedy="y"), scored(-1, greedy="n")]).exact
    assert not mean_scores([scored(-1, greedy="y"), scored(-1, greedy="n")]).exact, "half is no majority"


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_exact_is_the_majority_of_exact_copies(flags):
    copies = [scored(-1, -1, -1, greedy="".join("ny"[f] for f in row)) for row in flags]
    assert mean_scores(copies).exact == (2 * sum(s.exact for s in copies) > len(copies))


def test_copies_that_were_not_scored():
    refused = Blocked(message="no").scores()
    most = mean_scores([refused, scored(-1, greedy="y"), scored(-3, greedy="y")])
    assert most.logprobs.tolist() == [-2] and most.exact and most.finish == "stop"
    half = mean_scores([scored(-1, greedy="y"), refused])
    assert half.finish == "refused" and half.loss == float("inf") and not half.exact
    blind = Scores(logprobs=np.array([-1.0]))
    assert mean_scores([blind, scored(-3, greedy="y")]).greedy is None


def test_next_tokens_are_not_on_offer():
    guard = run(FakeModel(), Config(), CTX)
    able = guard.capabilities()
    assert able.prompt_logprobs and able.tokenizer
    assert (able.top_k, able.bias_steers, able.bias_moves) == (0, False, False)
    assert "vote" in able.reasons["top_k"]
    with pytest.raises(CapabilityError, match="use score"):
        guard.next_token("a", [], k=1)
    assert guard.encode("ab") == [0, 97, 98]


def test_bad_knobs_are_refused():
    with pytest.raises(ConfigError, match="copies: expected at least 1"):
        Config(copies=0)
    with pytest.raises(ConfigError, match="perturbation: expected one of swap, insert, patch"):
        Config(perturbation="swop")
