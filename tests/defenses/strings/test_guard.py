"""What all defences share: delegation, gating, memory, and their composition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.strings import moderation, paraphrase, perplexity_filter, retokenization, smoothing
from defenses.strings._guard import REFUSAL, Blocked, FilterGuard, Guard, Judgement, Memo, gated, helper_model
from redteam.core.context import Context
from redteam.core.errors import CapabilityError, ConfigError
from redteam.core.hashing import canonical_json
from redteam.core.types import Spec
from redteam.llm.language import LanguageModel, PromptFilter, Sampling
from redteam.llm.options import ModelOptions
from tests.conftest import context
from tests.defenses.strings.fakes import KNOWN, FakeClassifier, FakeModel, replace_module

MODULES = {m.SPEC.name: m for m in (moderation, paraphrase, perplexity_filter, retokenization, smoothing)}
SPECS = {name: module.SPEC for name, module in MODULES.items()}
CTX = context()


@pytest.fixture
def classifier(monkeypatch):
    found = FakeClassifier()
    replace_module(monkeypatch, "redteam.llm.moderation", open_classifier=lambda spec, ctx, role: found)
    return found


def defend(name: str, target: LanguageModel, ctx: Context = CTX, **config: object) -> Guard:
    spec = SPECS[name]
    if name == "perplexity-filter":
        config = {"threshold": 3.0, **config}
    return spec.run(target, spec.config(**config), ctx)


@pytest.mark.parametrize("name", SPECS)
def test_a_defended_model_is_a_model_and_names_its_defence(name, classifier):
    target = FakeModel()
    guard, spec = defend(name, target), SPECS[name]
    assert isinstance(guard, LanguageModel) and guard.kind == "language-model" and guard.template == "raw"
    assert isinstance(guard, PromptFilter) is (name in ("perplexity-filter", "moderation"))
    found = guard.fingerprint()
    assert (found["defense"], found["version"]) == (name, spec.version)
    assert found["target"] == target.fingerprint()
    assert set(found["config"]) == set(spec.config.__dataclass_fields__)
    assert json.loads(canonical_json(found)) == found


@pytest.mark.parametrize("name", SPECS)
def test_what_is_not_changed_is_handed_on(name, classifier):
    target = FakeModel(options=ModelOptions(model="tiny:x"))
    guard = Guard(target, SPECS[name], SPECS[name].config())
    assert guard.tokenize("ab") == [97, 98] and guard.detokenize([97]) == "a"
    assert guard.target_ids("a") == [97] and guard.encode("a") == [0, 97]
    assert np.array_equal(guard.vocabulary, target.vocabulary) and guard.capabilities() == KNOWN
    assert guard.options == target.options
    assert guard.next_token("a", [], k=1).top == {97: -1.0}
    assert guard.generate(["abc"], Sampling())[0].text == "abc"
    assert guard.score(["abc"], "ab")[0].loss == 2.0


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_describes_a_defence_of_strings(name):
    spec = SPECS[name]
    assert isinstance(spec, Spec) and spec.kind == "defense" and spec.oracle == ()
    assert (spec.threat.kind, spec.threat.target) == ("strings", "language-model")
    assert "default" in spec.presets and "Source: [" in MODULES[name].__doc__
    assert f"[{spec.source}]" in MODULES[name].__doc__


@pytest.mark.parametrize("outer", SPECS)
@pytest.mark.parametrize("inner", SPECS)
def test_defences_compose_in_either_order_and_fingerprints_tell_the_order(inner, outer, classifier):
    first = defend(outer, defend(inner, FakeModel()))
    second = defend(inner, defend(outer, FakeModel()))
    alone = defend(inner, FakeModel())
    prompt = "tell me of the sea"
    for guard in (first, second):
        answer, _, _ = guard.generate([prompt, "bad x", "#####%%%%%"], Sampling())
        assert answer.finish == "stop"
        assert len(guard.score([prompt, "bad x"], "the sea")) == 2
        assert guard.fingerprint() != alone.fingerprint()
        assert guard.fingerprint() != guard.target.fingerprint()
    assert (first.fingerprint() == second.fingerprint()) is (inner == outer)


@pytest.mark.parametrize("name", ["paraphrase", "retokenization", "smoothing"])
def test_the_seed_of_a_random_defence_is_in_its_fingerprint_and_moves_its_draws(name, classifier):
    prompt = "make a list of many big things: " + "lexicographical " * 4
    seen = []
    for seed in (0, 1):
        target = FakeModel()
        guard = defend(name, target, context(seed))
        guard.generate([prompt], Sampling())
        seen.append((guard.fingerprint(), tuple(target.asked)))
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]


def test_a_config_changes_the_fingerprint(classifier):
    for name, change in {
        "moderation": {"threshold": 0.3}, "paraphrase": {"rate": 0.1}, "perplexity-filter": {"window": 3},
        "retokenization": {"rate": 0.1}, "smoothing": {"copies": 3},
    }.items():  # fmt: skip
        plain, changed = defend(name, FakeModel()), defend(name, FakeModel(), **change)
        assert plain.fingerprint() != changed.fingerprint(), name


def test_a_refused_prompt_never_reaches_the_target():
    target = FakeModel()
    judges = lambda texts: [Judgement(suspicion=float("evil" in t), message="evil") for t in texts]  # noqa: E731
    spec = SPECS["perplexity-filter"]
    guard = FilterGuard(target, spec, spec.config(), judge=judges, threshold=0.5)
    first, refused = guard.generate(["good", "evil"], Sampling())
    assert first.text == "good" and target.asked == ["good"]
    assert (refused.text, refused.finish, refused.tokens_in) == (REFUSAL, "refused", 0)
    assert refused.message == "suspicion 1 is above 0.5 (evil)"
    _, scores = guard.score(["good", "evil"], "ab")
    assert scores.finish == "refused" and not len(scores.logprobs) and scores.loss == float("inf")
    assert not scores.exact and target.asked == ["good", "good"]
    token = guard.next_token("evil", [], k=1)
    assert (token.top, token.chosen, token.finish) == ({}, -1, "refused")
    assert guard.encode("evil") == target.encode("evil")
    before = target.calls
    assert guard.generate(["evil"], Sampling())[0].finish == "refused" and target.calls == before
    assert guard.generate([], Sampling()) == [] and target.calls == before


def test_a_filter_that_fails_lets_nothing_through_and_is_asked_again():
    verdicts = [Judgement(suspicion=0.0, finish="timeout", message="late"), Judgement(suspicion=0.0)]
    asked = []

    def judges(texts):
        asked.extend(texts)
        return [verdicts.pop(0) for _ in texts]

    target, spec = FakeModel(), SPECS["perplexity-filter"]
    guard = FilterGuard(target, spec, spec.config(), judge=judges, threshold=0.5)
    (failed,) = guard.generate(["a"], Sampling())
    assert (failed.text, failed.finish) == ("", "timeout") and "late" in failed.message and not target.asked
    assert guard.generate(["a"], Sampling())[0].text == "a"
    assert guard.suspicion(["a"]).tolist() == [0.0] and asked == ["a", "a"]


def test_suspicion_is_infinite_where_the_filter_gave_no_answer():
    spec = SPECS["perplexity-filter"]
    judges = lambda texts: [Judgement(suspicion=0.0, finish="error") for _ in texts]  # noqa: E731
    guard = FilterGuard(FakeModel(), spec, spec.config(), judge=judges, threshold=0.5)
    assert guard.suspicion(["a"]).tolist() == [np.inf]


@given(st.lists(st.one_of(st.text(max_size=5), st.builds(lambda m: Blocked(message=m), st.text(max_size=5)))))
def test_gating_keeps_the_order(admitted):
    calls = []

    def ask(passed):
        calls.append(list(passed))
        return [f"answer {p}" for p in passed]

    out = gated(admitted, ask, lambda blocked: f"no {blocked.message}")
    assert out == [f"no {p.message}" if isinstance(p, Blocked) else f"answer {p}" for p in admitted]
    texts = [p for p in admitted if isinstance(p, str)]
    assert calls == ([texts] if texts else [])


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), max_size=8), st.integers(1, 8))
def test_a_memo_gives_what_the_function_gives_and_is_bounded(batches, size):
    asked = []

    def upper(texts):
        asked.append(texts)
        return [t.upper() for t in texts]

    memo = Memo(upper, keep=lambda result: result != "C", size=size)
    for batch in batches:
        assert memo(batch) == [t.upper() for t in batch]
        assert len(memo._known) <= size and "c" not in memo._known
    assert all(texts and len(set(texts)) == len(texts) for texts in asked)
    if size >= 6:
        computed = [t for texts in asked for t in texts if t != "c"]
        assert len(computed) == len(set(computed)), "what is kept is computed once"


def test_a_memo_forgets_what_was_not_asked_for_longest():
    asked = []
    memo = Memo(lambda texts: [asked.append(t) or t for t in texts], keep=lambda result: True, size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        assert memo([text]) == [text]
    assert asked == ["a", "b", "c", "b"]


def test_helper_models(monkeypatch):
    opened = []

    def open_model(options, ctx, role):
        opened.append((options, role))
        return FakeModel(name=options.model, template=options.template)

    replace_module(monkeypatch, "redteam.llm.opening", open_model=open_model)
    known = FakeModel(options=ModelOptions(model="gguf:smollm2", template="chat", system="be terse", batch=4))
    defended = Guard(known, SPECS["smoothing"], SPECS["smoothing"].config())
    for target in (known, defended):
        assert helper_model("target", target, CTX, template="raw").name == "gguf:smollm2"
    assert helper_model("tiny:", known, CTX, template="chat").template == "chat"
    raw = ModelOptions(model="gguf:smollm2", template="raw", system=None, batch=4)
    chat = ModelOptions(model="tiny:", template="chat")
    assert opened == [(raw, "defense"), (raw, "defense"), (chat, "defense")]
    unknown = FakeModel()
    assert helper_model("target", Guard(unknown, *_any()), CTX, template="raw") is unknown
    with pytest.raises(
        ConfigError, match="expected a target with the template 'chat'.*got 'raw'; name a model"
    ):
        helper_model("target", unknown, CTX, template="chat")
    with pytest.raises(ConfigError, match="BACKEND:NAME"):
        helper_model("targt", unknown, CTX, template="raw")


def _any():
    return SPECS["smoothing"], SPECS["smoothing"].config()


def test_targets_that_cannot_are_refused_with_what_to_do():
    blind = FakeModel(able=type(KNOWN)(reasons={"prompt_logprobs": "echo was rejected"}))
    with pytest.raises(CapabilityError, match=r"echo was rejected\); name another"):
        defend("perplexity-filter", blind)
    with pytest.raises(CapabilityError, match="name its tokenizer"):
        defend("retokenization", blind)
