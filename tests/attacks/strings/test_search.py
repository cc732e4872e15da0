"""The search on a model with a known optimum: what it asks, what it keeps, how it stops and goes on."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.strings._search import Setting, StringSearch, best_of, run_search, search_one
from redteam.core.errors import ConfigError, DriftError, LimitReachedError
from redteam.llm.language import Goal, Scores
from redteam.llm.search.losses import open_provider
from redteam.llm.search.state import State
from tests.conftest import context
from tests.llm.toy import TopKAPI, ToyModel

GOALS = [Goal(w, w, tuple(map(ord, w))) for w in ("frog", "lamp", "tree", "wind", "salt", "moon")]


def setting(ctx, model=None, proxy=None, **knobs) -> Setting:
    model = model or ToyModel()
    config = StringSearch(**{"length": 6, "init": "random", "max_queries": 400, **knobs})
    name, provider = open_provider(config.loss, model)
    identity = {"attack": "test", "target": model.fingerprint()}
    return Setting(model, GOALS, config, ctx, name, provider, identity, proxy=proxy)


def found(rows) -> int:
    return sum(row.state.found is not None for row in rows)


def test_gcq_finds_what_random_search_does_not(ctx):
    assert found(run_search(setting(ctx))) == len(GOALS)
    # 26 ** 4 strings of which the last four letters must be right: 400 draws find one with chance 0.1 %.
    assert found(run_search(setting(ctx), "random")) == 0


def test_one_swap_at_each_position_finds_it_too(ctx):
    assert found(run_search(setting(ctx, variant="positions", batch=8, max_queries=1000))) == len(GOALS)


def test_expanding_each_node_once_finds_it_too(ctx):
    assert found(run_search(setting(ctx, expand="once", max_queries=1000))) == len(GOALS)


def test_a_good_proxy_saves_target_queries(ctx):
    alone = run_search(setting(ctx))
    helped = run_search(setting(ctx, proxy=ToyModel(sharp=3.0), proxy_batch=128))
    assert found(helped) == len(GOALS)
    spent = [sum(r.state.queries for r in rows) for rows in (alone, helped)]
    assert spent[1] < spent[0] / 2
    assert all(r.state.proxy_queries > 0 for r in helped) and not any(r.state.proxy_queries for r in alone)


def test_repeated_target_is_the_optimum_here_and_costs_one_query(ctx):
    rows = run_search(setting(ctx, init="repeat"))
    assert [r.state.queries for r in rows] == [1] * len(GOALS)
    assert rows[0].prompt == rows[0].initial == "ogfrog"


def test_what_is_found_is_found_by_greedy_decoding(ctx):
    for row in run_search(setting(ctx)):
        assert row.state.found_at[0] == row.state.queries <= 400
        assert ToyModel().score([row.prompt], row.goal.text)[0].exact


@pytest.mark.parametrize("variant", ["buffer", "positions", "random"])
@pytest.mark.parametrize("cap", [1, 7, 40])
def test_the_target_is_asked_no_more_often_than_the_budget_says(ctx, variant, cap):
    model = ToyModel()
    rows = run_search(setting(ctx, model, max_queries=cap), variant)
    assert len(model.asked) == sum(r.state.queries for r in rows) <= cap * len(GOALS)


def test_confirmations_count_as_queries(ctx):
    """An endpoint that does not say what greedy decoding gives is asked once for each new best."""
    api = TopKAPI(ToyModel(sharp=2.0))
    rows = run_search(setting(ctx, api, loss="topk-bias", max_queries=60))
    assert api.inner.asked and max(r.state.queries for r in rows) <= 60


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), stop=st.integers(1, 7))
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path_factory, seed, stop):
    ctx = context(seed)
    whole, _ = search_one(setting(ctx, max_queries=100), 0, GOALS[:1], "buffer")
    folder = tmp_path_factory.mktemp("run")
    calls = iter(range(10_000))

    class Stopping(ToyModel):
        def score(self, prompts, target):
            if next(calls) == stop:
                raise LimitReachedError("stopped")
            return super().score(prompts, target)

    there = replace(ctx, run_dir=folder)
    with contextlib.suppress(LimitReachedError):
        search_one(setting(there, Stopping(), max_queries=100), 0, GOALS[:1], "buffer")
    again, _ = search_one(setting(there, max_queries=100), 0, GOALS[:1], "buffer")
    assert plain(again) == plain(whole)


@pytest.fixture(autouse=True)
def save_every_step(monkeypatch):
    monkeypatch.setattr("redteam.llm.search.search._SAVE_EVERY_S", 0.0)


def plain(state: State):
    arrays, values = state.pack()
    return {k: v.tolist() for k, v in arrays.items()}, values


def test_resuming_with_another_config_is_refused(ctx, tmp_path):
    there = replace(ctx, run_dir=tmp_path)
    search_one(setting(there, max_queries=20), 0, GOALS[:1], "buffer")
    other = setting(there, ToyModel(sharp=5.0), max_queries=20)
    with pytest.raises(DriftError, match=r"target.sharp: was 6.0, is 5.0.*--force"):
        search_one(other, 0, GOALS[:1], "buffer")


def test_cut_candidates_never_enter_the_buffer_nor_the_trace(ctx):
    api = TopKAPI(ToyModel())
    one = setting(ctx, api, loss="topk-bias", buffer=3, max_queries=200)
    state, _ = search_one(one, 0, GOALS[:1], "buffer")
    assert state.cut > 0
    assert all(e.loss.kind == "exact" for e in state.buffer)
    for _, _, _, loss in state.trace:
        assert any(
            abs(loss - ToyModel().score([api.detokenize(ids)], "frog")[0].loss) < 1e-6 for ids in state.seen
        )


def test_a_target_that_does_not_answer_ends_the_search_with_its_class(ctx):
    class Silent(ToyModel):
        def score(self, prompts, target):
            self.asked += prompts
            return [Scores(logprobs=np.zeros(0), finish="timeout", message="no answer") for _ in prompts]

    model = Silent()
    rows = run_search(setting(ctx, model))
    assert {r.state.finish for r in rows} == {"timeout"} and not found(rows)
    assert len(model.asked) < 400


def test_a_universal_string_is_averaged_over_its_goals(ctx):
    """Two goals that want different endings: no string serves both, and the mean loss says so."""
    model = ToyModel()
    one = setting(ctx, model, max_queries=100)
    state, first = search_one(one, 0, GOALS[:2], "buffer")
    text = model.detokenize(best_of(state, first))
    mean = sum(model.score([text], g.text)[0].loss for g in GOALS[:2]) / 2
    assert state.best is not None and state.best.loss.value == pytest.approx(mean)
    assert state.queries <= 100 and state.queries % 2 == 0 and state.found is None


def test_a_universal_string_needs_a_request_that_names_its_targets():
    with pytest.raises(ConfigError, match=r"--request 'Say \{target\} '"):
        StringSearch(universal=True)


class Filter(ToyModel):
    """Refuses prompts with more than `threshold` letters from the second half of the alphabet."""

    threshold = 2.0

    def suspicion(self, prompts):
        return np.array([float(sum(c > "m" for c in p)) for p in prompts])

    def score(self, prompts, target):
        assert (self.suspicion(prompts) <= self.threshold).all(), "a refused prompt was sent"
        return super().score(prompts, target)


def test_a_known_filter_costs_no_query_and_shapes_the_search(ctx):
    """Prompts it would refuse are never sent; the search gets below it first, and still finds strings."""
    goals = [Goal(w, w, tuple(map(ord, w))) for w in ("bead", "lamp", "milk")]
    rows = {}
    for weight in (0.01, 100.0):
        model = Filter()
        one = setting(ctx, model, max_queries=600, fluency=weight, length=8)
        one = replace(one, goals=goals, guard=model)
        rows[weight] = run_search(one)
        assert len(model.asked) == sum(r.state.queries for r in rows[weight])
        assert any(r.state.unsent for r in rows[weight])
    assert found(rows[0.01]) == 3
    assert [r.prompt for r in rows[0.01]] != [r.prompt for r in rows[100.0]], "fluency does nothing"


def test_the_loss_handed_in_is_that_of_the_prompt_handed_in(ctx):
    from attacks.strings._attack import StringGoal, assemble

    rows = run_search(setting(ctx))
    artifact = assemble(rows, StringGoal(), {}, ToyModel())
    for row, loss in zip(rows, artifact.loss, strict=True):
        assert loss == pytest.approx(ToyModel().score([row.prompt], row.goal.text)[0].loss)


def test_a_universal_search_splits_its_goals_and_validates_on_the_rest(ctx):
    model = ToyModel()
    one = setting(ctx, model, universal=True, request="{target}-", validation=0.5, max_queries=40)
    rows = run_search(one)
    assert one.notes()["split"] == ["train"] * 3 + ["validation"] * 3
    assert len({r.prompt.removeprefix(f"{r.goal.text}-") for r in rows}) == 1
    assert [r.state.queries > 0 for r in rows] == [True] * 3 + [False] * 3
    assert len(model.asked) == sum(r.state.queries for r in rows) <= 40 * 3
    for row in rows[:3]:
        own = row.state.found_loss if row.state.found else row.state.best.loss.value
        assert own == pytest.approx(model.score([row.prompt], row.goal.text)[0].loss)


def test_a_budget_of_tokens_is_kept_to_about_one_candidate(ctx):
    class Booked(ToyModel):
        def score(self, prompts, target):
            ctx.ledger.count(
                model="toy", role="target", queries=len(prompts), tokens_in=10 * len(prompts), tokens_out=0
            )
            return super().score(prompts, target)

    (row, *_) = run_search(setting(ctx, Booked(sharp=2.0), max_tokens=500))
    assert row.state.found is not None or 480 <= row.state.tokens <= 510
