"""Endpoints that behave: answers, numbers, the cache, and what they are called. Faults are in test_faults."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import BackendError, CapabilityError, ConfigError
from redteam.core.ledger import Caps, Ledger, Spent
from redteam.llm.exchange import _means, _seed
from redteam.llm.language import LanguageModel, Sampling
from redteam.llm.options import ModelOptions
from redteam.llm.replies import Ask, MalformedError, Reply, parse
from redteam.llm.wire import Scrubber

pytest.importorskip("openai")

from redteam.llm.endpoint import open_endpoint
from tests.conftest import context
from tests.llm.faulty import END, Fault, Manners, connect, encode, next_logprobs, serving

PROMPT = "The capital of France is"
SIX = Sampling(max_tokens=6)


def logprob(prompt: str, target: str) -> np.ndarray:
    """The toy's own numbers, token by token."""
    ids = encode(prompt)
    return np.array([next_logprobs([*ids, *encode(target)[:i]])[t] for i, t in enumerate(encode(target))])


# ---------------------------------------------------------------- opening


def options(**changes) -> ModelOptions:
    return ModelOptions(**{"model": "openai:toy", "tokenizer": "server", **changes})


def test_it_opens_from_the_environment_and_is_a_language_model(ctx, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.toy.manners.key)
        model = open_endpoint(options(batch=3), ctx, "judge")
        assert isinstance(model, LanguageModel) and model.kind == "language-model"
        assert server.requests == 0
        assert model.generate([PROMPT], SIX)[0].text == " Paris"
        spent = Spent(requests=1, queries=1, tokens_in=24, tokens_out=6, unpriced=1)
        assert ctx.ledger.spent("judge") == spent
        assert model.pacer.limit == 3
        model.close()


@pytest.mark.parametrize(
    ("changes", "key", "url", "message"),
    [
        ({}, "", None, "set OPENAI_API_KEY"),
        ({"model": "openai:"}, "k", None, "expected openai:MODEL"),
        ({}, "k", "endpoint.example/v1", "begins with http:// or https://"),
        ({"system": "s"}, "k", "http://localhost:1/v1", "needs template = 'chat'"),
        ({"tokenizer": "nltk:x"}, "k", "http://localhost:1/v1", "expected tiktoken:NAME"),
    ],
)
def test_what_is_missing_is_named(ctx, monkeypatch, changes, key, url, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", url or "")
    with pytest.raises(ConfigError, match=message):
        open_endpoint(options(**changes), ctx)


def test_a_missing_package_is_named(ctx, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'redteam\[llm\]'"):
        open_endpoint(options(), ctx)


def test_a_tokenizer_that_nobody_named_may_be_missing(ctx, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.toy.manners.key)
        model = open_endpoint(options(tokenizer="auto"), ctx)
        assert model.generate([PROMPT], SIX)[0].text == " Paris"
        with pytest.raises(CapabilityError, match="no tokenizer is known by the name 'toy'; name one with"):
            model.tokenize("x")


# ---------------------------------------------------------------- numbers


def test_scores_are_the_models_own():
    with serving() as server:
        model = connect(server)
        for got, prompt in zip(model.score([PROMPT, "x"], "Paris"), (PROMPT, "x"), strict=True):
            np.testing.assert_allclose(got.logprobs, logprob(prompt, " Paris"), atol=1e-9)
        sure, unsure = model.score([PROMPT, "x"], "Paris")
        assert sure.exact and sure.loss < 1 < unsure.loss and not unsure.exact
        assert sure.greedy.tolist() == [True] * 6 and sure.tokens_in == 30


@pytest.mark.parametrize("template", ["raw", "chat"])
@pytest.mark.parametrize("beginning", ["", "Par"])
def test_the_next_token_is_the_models_own(template, beginning):
    with serving() as server:
        model = connect(server, template=template)
        answer = encode(beginning)
        got = model.next_token(PROMPT, answer, k=7)
        sent = encode(PROMPT) + answer if template == "raw" else answer or encode(PROMPT + " ")
        values = next_logprobs(sent)
        assert got.top == {int(i): pytest.approx(values[i]) for i in np.argsort(-values)[:7]}
        assert list(got.top) == np.argsort(-values)[:7].tolist() and got.chosen == values.argmax()


@pytest.mark.parametrize("bias", ["moves", "steers"])
def test_a_bias_steers_and_shows_only_where_the_server_shows_it(bias):
    with serving(Manners(bias=bias)) as server:
        model, token = connect(server), ord("z")
        plain, pushed = (model.next_token(PROMPT, (), k=20, bias=b) for b in (None, {token: 60.0}))
        assert pushed.chosen == token != plain.chosen
        assert (pushed.top != plain.top) == (bias == "moves")
        assert server.bodies[-1]["logit_bias"] == {str(token): 60.0}


def test_what_it_cannot_do_is_refused_with_a_reason_and_a_way_out():
    with serving(Manners(echo="ignored", bias="nothing", most=5)) as server:
        model = connect(server)
        with pytest.raises(
            CapabilityError, match=r"echo is ignored: 30 tokens.*topk-bias, topk or bias-search"
        ):
            model.score([PROMPT], "Paris")
        for k in (0, 6):
            with pytest.raises(CapabilityError, match="expected k from 1 to 5"):
                model.next_token(PROMPT, (), k=k)
        with pytest.raises(CapabilityError, match="a bias of .100 on token"):
            model.next_token(PROMPT, (), k=1, bias={5: 1.0})
    with serving(Manners(prefill=False)) as server, pytest.raises(CapabilityError, match="not continued"):
        connect(server, template="chat").next_token(PROMPT, encode("Par"), k=1)


def test_a_server_that_takes_no_ids_is_sent_text():
    with serving(Manners(ids=False)) as server:
        model = connect(server)
        assert not model.capabilities().prompt_logprobs
        assert "expected text" in model.capabilities().reasons["ids"]
        got = model.next_token(PROMPT, encode(" Par"), k=3)
        assert got.chosen == ord("i") and server.bodies[-1]["prompt"] == PROMPT + " Par"


def test_without_a_tokenizer_text_still_comes():
    with serving() as server:
        model = connect(server, tokenizer=False)
        assert model.generate([PROMPT], SIX)[0].text == " Paris"
        can = model.capabilities()
        assert not can.tokenizer and can.reasons["tokenizer"] == "no tokenizer is known"
        for call in (lambda: model.tokenize("x"), lambda: model.vocabulary, lambda: model.target_ids("x")):
            with pytest.raises(CapabilityError, match="no tokenizer is known"):
                call()


# ---------------------------------------------------------------- text


def test_ids_and_text_go_both_ways():
    with serving() as server:
        model = connect(server)
        assert model.detokenize(model.tokenize("Grüße <|end|>")) == "Grüße <|end|>"
        assert END not in model.tokenize("<|end|>"), "text cannot forge a control token"
        assert model.encode("ab") == encode("ab") and model.target_ids("ab") == encode(" ab")
        assert model.vocabulary.tolist() == list(range(32, 127))
        chat = connect(server, template="chat", system="Be brief.")
        assert chat.encode("ab") == encode("[system]Be brief.[user]ab[assistant]")
        assert chat.target_ids("ab") == encode("ab")


def test_what_is_sent():
    with serving() as server:
        connect(server).generate(["ab"], Sampling(max_tokens=3, temperature=0.7, top_p=0.9, seed=5))
        assert server.bodies[-1] == {
            "model": "toy", "prompt": "ab", "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "seed": 5,
        }  # fmt: skip
        connect(server, template="chat", system="Be brief.").generate(["ab"], SIX)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ab"}]
        assert server.bodies[-1]["messages"] == messages


@pytest.mark.parametrize(
    ("change", "finish", "text"),
    [
        ({}, "length", "Paris,"),
        ({"finish_reason": "stop"}, "stop", "Paris,"),
        ({"finish_reason": "content_filter"}, "filtered", "Paris,"),
        ({"message": {"role": "assistant", "content": None, "refusal": "No."}}, "refused", "No."),
        ({"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}, "stop", ""),
    ],
)
def test_how_an_answer_ended(change, finish, text):
    def spoil(payload):
        payload["choices"][0].update(change)
        return payload

    with serving(faults=lambda n: Fault(spoil=spoil)) as server:
        (answer,) = connect(server, template="chat").generate([PROMPT], SIX)
        assert (answer.finish, answer.text) == (finish, text)
        assert server.requests == 1


def test_many_prompts_keep_their_order():
    with serving() as server:
        model = connect(server, batch=8)
        prompts = [f"{i}: " for i in range(50)]
        together = model.generate(prompts, SIX)
        assert [a.text for a in together] == [model.generate([p], SIX)[0].text for p in prompts]
        assert model.generate([], SIX) == []


def test_a_limit_that_newer_models_call_otherwise():
    def refuse(n):
        if "max_tokens" in server.bodies[n]:
            text = "Unsupported parameter: 'max_tokens' is not supported."
            text += " Use 'max_completion_tokens' instead."
            return Fault(status=400, body='{"error": {"message": "' + text + '"}}')
        return None

    with serving(faults=refuse) as server:
        model = connect(server, template="chat", batch=1)
        first, second = model.generate([PROMPT, PROMPT + "?"], SIX)
        assert first.text == "Paris," and second.finish == "length"
        assert server.requests == 3, "learnt once"


# ---------------------------------------------------------------- cache and ledger


def test_what_was_answered_costs_nothing_again(tmp_path):
    with serving() as server:
        path = tmp_path / "cache.db"
        one, other = (connect(server, cache_path=path) for _ in range(2))
        prompts = [PROMPT, "x", PROMPT]
        first = one.generate(prompts, SIX)
        assert server.requests == 2, "equal requests are sent once"
        assert other.generate(prompts, SIX) == first and server.requests == 2
        assert other._exchange.ctx.ledger.spent() == Spent()
        scores = one.score([PROMPT], "Paris")
        before = server.requests
        np.testing.assert_array_equal(one.score([PROMPT], "Paris")[0].logprobs, scores[0].logprobs)
        assert one.next_token(PROMPT, (), k=4) == one.next_token(PROMPT, (), k=4)
        assert server.requests == before + 1


def test_samples_of_one_prompt_are_different_and_each_is_kept(tmp_path):
    with serving() as server:
        model = connect(server, cache_path=tmp_path / "cache.db")
        samples = [Sampling(max_tokens=12, temperature=1.5, index=i) for i in range(4)]
        draws = [model.generate(["Q"], s)[0].text for s in samples]
        assert len(set(draws)) == 4 and server.requests == 4
        again = [model.generate(["Q"], s)[0].text for s in samples]
        assert again == draws and server.requests == 4
        assert len({body["seed"] for body in server.bodies}) == 4


@given(st.integers(0, 2**63), st.integers(0, 1000))
def test_seeds_fit_an_api(seed, index):
    assert 0 <= _seed(Sampling(seed=seed, index=index)) < 2**31


def test_failures_are_not_kept(tmp_path):
    with serving(
        faults=lambda n: Fault(status=500) if n < 2 else Fault(status=400) if n == 2 else None
    ) as server:
        model = connect(server, retries=1, cache_path=tmp_path / "cache.db")
        assert [model.generate([PROMPT], SIX)[0].finish for _ in range(3)] == ["error", "error", "length"]


@pytest.mark.parametrize("change", [{"template": "chat"}, {"place": "there"}])
def test_the_cache_tells_models_apart(tmp_path, change):
    with serving() as server:
        connect(server, cache_path=tmp_path / "cache.db").generate([PROMPT], SIX)
        options = {k: v for k, v in change.items() if k != "place"}
        other = connect(server, cache_path=tmp_path / "cache.db", **options)
        if "place" in change:
            object.__setattr__(other._server, "place", change["place"])
        other.generate([PROMPT], SIX)
        assert server.requests == 2


@pytest.mark.parametrize("template", ["raw", "chat"])
@pytest.mark.parametrize("tokenizer", [True, False])
def test_without_usage_we_count_ourselves(template, tokenizer):
    with serving(Manners(usage=False)) as server:
        model = connect(server, template=template, tokenizer=tokenizer)
        model.generate([PROMPT], SIX)
        spent = model._exchange.ctx.ledger.spent()
        assert spent.tokens_out == 6
        assert 24 <= spent.tokens_in <= 24 + 64, "never less than it was"


def test_a_reservation_is_never_less_than_what_is_used():
    with serving() as server:
        for template in ("raw", "chat"):
            ledger = Ledger(caps=Caps(tokens=10_000))
            model = connect(server, template=template, ledger=ledger)
            reserve, settle, booked = ledger.reserve, ledger.settle, {}

            def spy_reserve(**request):
                ticket = reserve(**request)  # noqa: B023
                booked[ticket] = request["tokens_in"], request["tokens_out"]  # noqa: B023
                return ticket

            def spy_settle(ticket, *, tokens_in, tokens_out, failed=False):
                assert tokens_in <= booked[ticket][0] and tokens_out <= booked[ticket][1]  # noqa: B023
                settle(ticket, tokens_in=tokens_in, tokens_out=tokens_out, failed=failed)  # noqa: B023

            ledger.reserve, ledger.settle = spy_reserve, spy_settle
            model.capabilities()
            model.generate([PROMPT, "é" * 30, ""], SIX)
            assert len(booked) > 15


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-4", "gpt-4", True),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4-turbo", False),
        ("gpt-4", "gpt-4-32k-0613", False),
        ("gpt", "gpt-4-0613", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("claude-x-latest", "claude-x-20240229", True),
        ("meta/llama", "llama", True),
        ("llama", "meta/llama", True),
        ("model.gguf", "/models/model.gguf", True),
        ("a.c", "abc", False),
    ],
)
def test_names_that_mean_one_model(asked, answered, same):
    assert _means(asked, answered) == same


def test_a_name_that_changes_what_it_stands_for_is_seen(tmp_path):
    def dated(n):
        return Fault(spoil=lambda payload: {**payload, "model": "toy-0613" if n < 2 else "toy-1106"})

    with serving(faults=dated) as server:
        model = connect(server, batch=1, cache_path=tmp_path / "cache.db")
        with pytest.raises(BackendError, match="'toy-0613' answered at first and 'toy-1106' now"):
            model.generate(["a", "b", "c"], SIX)
        later = connect(server, batch=1, cache_path=tmp_path / "cache.db")
        with pytest.raises(BackendError, match="begin anew without the cache"):
            later.generate(["a", "b", "c"], SIX)


def test_the_fingerprint_has_what_decides_and_no_address():
    with serving() as server:
        assert connect(server, template="chat", system="s").fingerprint() == {
            "backend": "openai", "model": "toy", "tokenizer": "server", "template": "chat", "system": "s",
        }  # fmt: skip


# ---------------------------------------------------------------- taking replies apart


KEYS = [
    "choices", "text", "message", "content", "refusal", "logprobs", "tokens", "token_logprobs", "top_logprobs",
    "token", "bytes", "id", "logprob", "usage", "prompt_tokens", "finish_reason", "model",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@given(JSON, st.sampled_from(["chat", "completions"]), st.sampled_from([None, 1]), st.booleans())
def test_no_reply_breaks_the_parser(payload, api, k, echo):
    for wrapped in (
        payload,
        {"choices": [payload]},
        {"choices": [{"text": "t", "message": {}, "logprobs": payload}]},
    ):
        try:
            reply = parse(wrapped, api, Ask(prompt="p", k=k, echo=echo), lambda raw: raw[0] if raw else None)
        except MalformedError:
            continue
        assert Reply.from_json(reply.to_json()) == reply
        for step in reply.steps:
            assert all(-9999 < p <= 0 for p in step.top.values())


def test_tokens_by_text_by_bytes_and_by_id():
    ids = {b"\xe2\x80": 7, b" Paris": 8, "é".encode(): 9}
    top = {" Paris": -0.5, "bytes:\\xe2\\x80": -1.5, "é": -2, "token_id:3": -3, "\ufffd": -4, "?": -5}
    logprobs = {"tokens": [" Paris"], "token_logprobs": [-0.5], "top_logprobs": [top]}
    payload = {"choices": [{"text": "x", "logprobs": logprobs}]}
    step = parse(payload, "completions", Ask(prompt="p", k=5), ids.get).steps[0]
    assert step.chosen == 8 and step.top == {8: -0.5, 7: -1.5, 9: -2, 3: -3} and step.best == -0.5


# ---------------------------------------------------------------- secrets


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=30),
    st.from_regex(r"\A[a-z]{3,10}\.example\Z"),
    st.lists(st.text(max_size=10), max_size=4),
)
def test_scrubbed_text_holds_neither_key_nor_host(key, host, between):
    url = f"https://user:hunter2word@{host}:8443/v1"
    scrub = Scrubber(key, url)
    secrets = [key, host, url, host.upper(), "hunter2word"]
    text = "".join(a + b for a, b in zip([*between, *[" "] * 5], secrets, strict=False))
    out = scrub(text)
    # A key may be so short that it stands in the words that replace it.
    for word in (key, host, "hunter2word"):
        assert word not in out.replace("[key]", "").replace("[endpoint]", "").replace("[address]", "")


@pytest.mark.parametrize("text", ["Incorrect key: sk-abc***wxyz", "Bearer abc.def", "see https://a.b/c?d=e"])
def test_whatever_looks_like_a_key_or_an_address_is_scrubbed_too(text):
    out = Scrubber("k3y-of-mine", "http://host.example/v1")(text)
    assert not any(word in out for word in ("abc", "wxyz", "a.b", "def"))


def test_the_jitter_is_drawn_from_the_run_s_seed():
    def draws(seed):
        return context(seed).rng("endpoint", "target").random(3).tolist()

    assert draws(0) == draws(0) != draws(1)
