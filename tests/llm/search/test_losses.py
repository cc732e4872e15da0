"""Losses as an endpoint tells them, against the exact value that the model behind it has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import CapabilityError
from redteam.llm.language import Capabilities, Goal
from redteam.llm.search.losses import (
    from_bias_search,
    from_prompt_logprobs,
    from_topk,
    from_topk_bias,
    log_p,
    open_provider,
)
from tests.llm.toy import TopKAPI, ToyModel

WORD = Goal("g", "word", tuple(map(ord, "word")))
prompts = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=8)


def exact(prompt: str, model=None) -> float:
    (loss,) = from_prompt_logprobs(model or ToyModel())([prompt], WORD, math.inf, [None])
    return loss.value


@given(st.floats(-40, -1e-6), st.floats(-50, 50))
def test_log_odds_form_is_the_inverse_of_the_bias(value, bias):
    # p_b = e^b p / (e^b p + 1 - p), in logarithms.
    rest = math.log(-math.expm1(value))
    biased = bias + value - np.logaddexp(bias + value, rest)
    if -30 < biased < -1e-9:
        assert log_p(float(biased), bias) == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_log_odds_form_against_worked_values():
    # p = 0.01, b = ln 99: p_b = 0.99 / (0.99 + 0.99) = 1/2.
    assert log_p(math.log(0.5), math.log(99)) == pytest.approx(math.log(0.01))
    assert log_p(math.log(0.25), 0.0) == pytest.approx(math.log(0.25))
    assert log_p(math.log(0.5), 700.0) == pytest.approx(-700.0)  # no overflow


@given(prompts)
def test_reconstruction_through_a_top_5_api_gives_the_exact_loss(prompt):
    api = TopKAPI(ToyModel())
    (loss,) = from_topk_bias(api)([prompt], WORD, math.inf, [None])
    assert loss.kind == "exact" and loss.value == pytest.approx(exact(prompt), abs=1e-6)


@given(prompts, prompts)
def test_a_parents_estimate_gives_it_in_one_request_a_token(prompt, parent):
    api = TopKAPI(ToyModel())
    (known,) = from_prompt_logprobs(ToyModel())([parent], WORD, math.inf, [None])
    (loss,) = from_topk_bias(api)([prompt], WORD, math.inf, [known])
    assert loss.value == pytest.approx(exact(prompt), abs=1e-6)
    same = TopKAPI(ToyModel())
    from_topk_bias(same)([parent], WORD, math.inf, [known])
    assert same.requests == len(WORD.tokens)


@given(prompts)
def test_bias_search_where_returned_numbers_do_not_move(prompt):
    api = TopKAPI(ToyModel(), moves=False)
    (loss,) = from_bias_search(api)([prompt], WORD, math.inf, [None])
    assert loss.value == pytest.approx(exact(prompt), abs=0.05)
    assert loss.success == (prompt[-4:] == "word")


def test_the_bias_trick_is_silently_wrong_where_numbers_do_not_move_and_so_is_refused():
    api = TopKAPI(ToyModel(), moves=False)
    (wrong,) = from_topk_bias(api)(["aaaa"], WORD, math.inf, [None])
    assert abs(wrong.value - exact("aaaa")) > 1.0
    with pytest.raises(CapabilityError, match="cannot be scored by topk-bias.*bias-search"):
        open_provider("topk-bias", api)
    assert open_provider("auto", api)[0] == "bias-search"
    assert open_provider("auto", TopKAPI(ToyModel()))[0] == "topk-bias"
    assert open_provider("auto", ToyModel())[0] == "prompt-logprobs"


def test_a_plain_list_gives_a_floor_for_what_it_lacks():
    (loss,) = from_topk(TopKAPI(ToyModel(), k=3))(["aaaa"], WORD, math.inf, [None])
    assert loss.kind == "floor" and 0 < loss.value <= exact("aaaa")
    (full,) = from_topk(TopKAPI(ToyModel(), k=26))(["aaaa"], WORD, math.inf, [None])
    assert full.kind == "exact" and full.value == pytest.approx(exact("aaaa"))


@given(prompts, st.floats(0.01, 30))
def test_short_circuit_gives_a_lower_bound_and_saves_requests(prompt, bound):
    api = TopKAPI(ToyModel())
    (loss,) = from_topk_bias(api)([prompt], WORD, bound, [None])
    true = exact(prompt)
    if loss.kind == "cut":
        assert bound < loss.value <= true + 1e-6 and len(loss.tokens) < len(WORD.tokens)
    else:
        assert loss.value == pytest.approx(true, abs=1e-6)
    if true <= bound:
        assert loss.kind == "exact"


def test_a_model_that_tells_nothing_is_refused_with_the_reason():
    class Mute(ToyModel):
        def capabilities(self):
            return Capabilities(tokenizer=True, reasons={"top_k": "no logprobs in the answer"})

    with pytest.raises(CapabilityError, match="any loss.*no logprobs in the answer.*allows: none"):
        open_provider("auto", Mute())


@given(prompts)
def test_several_workers_give_what_one_gives(prompt):
    many = [prompt, "word", "zzzz"]
    one = from_topk_bias(TopKAPI(ToyModel()))(many, WORD, math.inf, [None] * 3)
    assert from_topk_bias(TopKAPI(ToyModel()), 3)(many, WORD, math.inf, [None] * 3) == one
