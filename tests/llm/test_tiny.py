"""The embedded byte-level transformer: its recipe, its arithmetic, and that it copies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from redteam.core.context import Context, Limits
from redteam.core.errors import CapabilityError, ConfigError, DataError, LimitReachedError
from redteam.core.hashing import digest_file, digest_json
from redteam.core.ledger import Caps, Ledger
from redteam.core.seeding import SeedPath
from redteam.data import tiny_corpus
from redteam.data.shipped import EMBEDDED_DIR
from redteam.data.texts import load_texts
from redteam.data.words import words
from redteam.learn.models.transformer import Cache, Shape, Transformer
from redteam.llm import tiny
from redteam.llm.language import LanguageModel, Sampling
from redteam.llm.options import ModelOptions
from redteam.llm.tiny import ASSISTANT, BEGIN, BYTES, END, SYSTEM, USER, VOCABULARY, TinyModel, open_tiny
from scripts import build_tiny_lm as build
from tests.conftest import context

WINDOW = 512
PROMPTS = [
    "hello garden hello garden",
    "",
    "The old boat ",
    "ä€ 🐟",
    "x" * 40,
    "hello garden",
    "The old boat!",
]


def opened(template: str = "raw", ctx: Context | None = None, **changes: object) -> TinyModel:
    return open_tiny(ModelOptions(template=template, **changes), ctx or context())  # type: ignore[arg-type]


@pytest.fixture(params=["raw", "chat"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return opened(request.param)


def repeated(target: str, length: int) -> str:
    return (target * (length // len(target) + 1))[-length:]


# ---------------------------------------------------------------- what ships


def test_weights_and_corpus_are_those_of_the_card() -> None:
    card = json.loads((EMBEDDED_DIR / tiny.CARD).read_text())
    weights = EMBEDDED_DIR / tiny.WEIGHTS
    assert digest_file(weights) == card["sha256"] and weights.stat().st_size <= 3e6
    loaded = tiny.load_network()
    assert sum(p.numel() for p in loaded.net.parameters()) == card["parameters"] >= 500_000
    assert card["shape"]["vocabulary"] == VOCABULARY and card["shape"]["window"] == WINDOW
    corpus = tiny_corpus.corpus(card["corpus"]["seed"], card["corpus"]["documents"])
    assert digest_json(corpus) == card["corpus"]["sha256"]


def test_documents_depend_on_seed_and_number_alone() -> None:
    some = tiny_corpus.documents(0, 300)
    assert tiny_corpus.documents(0, 60) == some[:60] and tiny_corpus.documents(1, 60) != some[:60]
    assert {d.kind for d in some} == {"prose", "lines", "pattern", "question", "echo", "unclear", "passage"}
    plain = ("prose", "lines", "pattern", "passage")
    assert all(d.text and (d.user is None) == (d.kind in plain) for d in some)
    counts = tiny_corpus.multiplicities(0, 2000)
    texts = tiny_corpus.corpus(0, 2000)
    assert len(counts) > 10 and all(texts.count(text) == n for text, n in counts.items())
    assert max(counts.values()) >= 8 and min(counts.values()) == 1


def test_recipe_is_deterministic_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tiny_corpus.documents(n=200)
    small = Shape(vocabulary=VOCABULARY, width=16, layers=1, heads=2, window=64, before=2)
    monkeypatch.setattr(build, "documents", lambda: few)
    monkeypatch.setattr(build, "SHAPE", small)
    (first, loss), (second, _) = build.train(60), build.train(60)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert loss < np.log(VOCABULARY) - 0.3


def test_rows_of_the_recipe_hold_every_document_once_a_pass() -> None:
    sequences = [build.ids_of(d) for d in tiny_corpus.documents(n=50)]
    tokens = sum(map(len, sequences))
    blocks, seen = build.batches(sequences, 2, 16), []
    while len(seen) < tokens:
        seen += next(blocks).flatten().tolist()
    assert seen[:tokens].count(BEGIN) + seen[:tokens].count(USER) == seen[:tokens].count(END) == 50
    assert sorted(seen[:tokens]) == sorted(t for s in sequences for t in s)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    for name in (tiny.WEIGHTS, tiny.CARD):
        shutil.copy(EMBEDDED_DIR / name, tmp_path)
    data = bytearray((tmp_path / tiny.WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / tiny.WEIGHTS).write_bytes(data)
    with pytest.raises(DataError, match="was changed .*reinstall redteam"):
        tiny.load_network("cpu", tmp_path)
    (tmp_path / tiny.CARD).unlink()
    with pytest.raises(DataError, match="is missing .*reinstall redteam"):
        tiny.load_network("cpu", tmp_path)


# ---------------------------------------------------------------- the transformer


def untrained(**changes: int) -> Transformer:
    sizes = {"vocabulary": 17, "width": 16, "layers": 2, "heads": 2, "window": 24, "before": 3, **changes}
    with SeedPath(3).as_global():
        return Transformer(Shape(**sizes)).eval()


@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(0, 3))
@torch.inference_mode()
def test_no_position_sees_the_future(seed: int, length: int, before: int) -> None:
    net = untrained(before=before)
    ids = torch.randint(17, (2, length), generator=SeedPath(seed).torch())
    changed = ids.clone()
    changed[:, length // 2 :] = (changed[:, length // 2 :] + 5) % 17
    torch.testing.assert_close(net(ids)[:, : length // 2], net(changed)[:, : length // 2], atol=1e-6, rtol=0)


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.integers(1, 23), st.integers(0, 3))
@torch.inference_mode()
def test_cached_steps_and_last_positions_equal_the_whole_pass(seed: int, start: int, before: int) -> None:
    net = untrained(before=before)
    ids = torch.randint(17, (3, 24), generator=SeedPath(seed).torch())
    whole, cache = net(ids), Cache()
    torch.testing.assert_close(net(ids, last=start), whole[:, -start:], atol=1e-6, rtol=0)
    torch.testing.assert_close(net(ids[:, :start], cache=cache), whole[:, :start], atol=1e-6, rtol=0)
    for length in range(start + 1, 25):
        step = net(ids[:, :length], last=1, cache=cache)[:, 0]
        torch.testing.assert_close(step, whole[:, length - 1], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_keys_are_one_position_late() -> None:
    """Closed form: with values that tell positions apart, attention lands just after the place that matches."""
    block = untrained(layers=1, width=8, heads=1).blocks[0]
    block.norm1 = torch.nn.Identity()
    block.down.weight.zero_()
    eye = torch.eye(8)
    block.qkv.weight.copy_(torch.cat((100 * eye, eye, eye)))
    block.out.weight.copy_(eye)
    x = torch.eye(8)[[0, 1, 2, 3, 1]][None]  # the last position looks like the one at 1
    out = block(x, None, 0) - x
    torch.testing.assert_close(out[0, -1], torch.eye(8)[2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [0, 25])
def test_sequences_outside_the_window_are_a_programmers_error(length: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 24 ids"):
        untrained()(torch.zeros(1, length, dtype=torch.int64))


# ---------------------------------------------------------------- text


@given(st.text())
def test_text_comes_back_from_its_bytes(text: str) -> None:
    model = opened()
    assert model.detokenize(model.tokenize(text)) == text
    assert model.target_ids(text) == model.tokenize(text)


@given(st.text(), st.sampled_from(["raw", "chat"]), st.sampled_from([None, "Be brief.", ""]))
def test_no_prompt_forges_a_control_id(prompt: str, template: str, system: str | None) -> None:
    ids = opened(template, system=system if template == "chat" else None).encode(prompt)
    control = [i for i in ids if i >= BYTES]
    head = [] if system is None else [SYSTEM]
    assert control == ([BEGIN] if template == "raw" else [*head, USER, ASSISTANT])
    end = -1 if template == "chat" else None
    assert bytes(ids[ids.index(control[-2] if template == "chat" else BEGIN) + 1 : end]) == prompt.encode()


def test_a_lone_surrogate_is_refused() -> None:
    for call in (opened().tokenize, opened("chat").encode, opened().target_ids):
        with pytest.raises(DataError, match="lone surrogate"):
            call("a\ud800")


def test_vocabulary_is_printable_ascii_and_survives_in_any_order() -> None:
    model = opened()
    assert bytes(model.vocabulary.tolist()).decode() == "".join(map(chr, range(32, 127)))
    ids = SeedPath(0).numpy().permutation(model.vocabulary).tolist()
    assert model.tokenize(model.detokenize(ids)) == ids


def test_detokenize_leaves_control_ids_out_and_refuses_what_is_no_id() -> None:
    assert opened().detokenize([BEGIN, 104, 105, 0xC3, END]) == "hi\ufffd"
    with pytest.raises(DataError, match="from 0 to 260, got 261"):
        opened().detokenize([261])


# ---------------------------------------------------------------- arithmetic


def test_score_is_the_sum_of_next_token_steps(model: TinyModel) -> None:
    for prompt in PROMPTS[:4]:
        target = "hello gé"
        (scores,) = model.score([prompt], target)
        wanted = model.target_ids(target)
        for i, token in enumerate(wanted):
            step = model.next_token(prompt, wanted[:i], k=VOCABULARY)
            assert step.top[token] == pytest.approx(scores.logprobs[i], abs=1e-5)
            assert bool(scores.greedy[i]) == (step.chosen == token)
            assert sum(np.exp(list(step.top.values()))) == pytest.approx(1, abs=1e-9)
        steps = [model.next_token(prompt, wanted[:i], k=VOCABULARY).top[t] for i, t in enumerate(wanted)]
        assert -scores.loss == pytest.approx(sum(steps), abs=1e-4)


def test_what_it_says_greedily_is_what_it_scores_as_greedy(model: TinyModel) -> None:
    for prompt, answer in zip(PROMPTS, model.generate(PROMPTS, Sampling(max_tokens=20)), strict=True):
        assert answer.finish in ("stop", "length") and answer.tokens_in == len(model.encode(prompt))
        if answer.text and "\ufffd" not in answer.text:
            assert model.score([prompt], answer.text)[0].exact
            other = chr(33 + (ord(answer.text[0]) - 32) % 90) + answer.text[1:]
            assert not model.score([prompt], other)[0].exact


def test_results_do_not_depend_on_the_batch(model: TinyModel) -> None:
    options = ModelOptions(template=model.template, batch=1)
    alone = open_tiny(options, context())
    prompts = [*PROMPTS, *PROMPTS[::-1], *(repeated(t, 40) for t in load_texts("random-words").texts[:6])]
    together, single = model.score(prompts, "hello garden"), alone.score(prompts, "hello garden")
    for a, b in zip(together, single, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5, rtol=0)
    for sampling in (Sampling(max_tokens=10), Sampling(max_tokens=10, temperature=0.8, seed=4, top_p=0.9)):
        assert model.generate(prompts, sampling) == alone.generate(prompts, sampling)
    assert model.fingerprint() == alone.fingerprint()


def test_a_bias_is_added_before_the_softmax(model: TinyModel) -> None:
    plain = model.next_token("The old ", [], k=VOCABULARY)
    for token, added in ((ord("z"), 3.0), (ord("e"), -2.0), (END, 30.0)):
        biased = model.next_token("The old ", [], k=VOCABULARY, bias={token: added})
        p = np.exp(plain.top[token])
        # p_b = e^b p / (e^b p + 1 - p): appendix B of [hayase2024gcq] as the spec gives it
        expected = np.exp(added) * p / (np.exp(added) * p + 1 - p)
        assert np.exp(biased.top[token]) == pytest.approx(expected, rel=1e-6)
    assert biased.chosen == END and plain.chosen == max(plain.top, key=lambda t: plain.top[t])
    assert list(model.next_token("The old ", [], k=5).top.items()) == list(plain.top.items())[:5]


def test_samples_follow_from_seed_prompt_and_index() -> None:
    model = opened()
    sampling = Sampling(max_tokens=24, temperature=1.0, seed=1)
    prompts = ["The old ", "In June "]
    first = model.generate(prompts, sampling)
    assert model.generate(prompts[::-1], sampling)[::-1] == first
    others = (replace(sampling, seed=2), replace(sampling, index=1))
    assert all(model.generate(prompts, o)[0].text != first[0].text for o in others)


def test_sampling_draws_from_the_distribution_and_from_its_nucleus() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    draws = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    rows = logits.expand(2000, -1)

    def shares(sampling: Sampling) -> np.ndarray:
        return np.bincount(tiny.choose(rows, sampling, draws).numpy(), minlength=4) / 2000

    np.testing.assert_allclose(shares(Sampling(temperature=1.0)), [0.5, 0.3, 0.15, 0.05], atol=1e-3)
    np.testing.assert_allclose(shares(Sampling(temperature=1.0, top_p=0.7)), [0.625, 0.375, 0, 0], atol=1e-3)
    flat = np.sqrt([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(shares(Sampling(temperature=2.0)), flat / flat.sum(), atol=1e-3)
    assert shares(Sampling())[0] == 1 and shares(Sampling(temperature=1.0, top_p=1e-9))[0] == 1


# ---------------------------------------------------------------- edges


def test_contexts_beyond_the_window_are_errors_and_the_rest_is_answered(model: TinyModel) -> None:
    prompts = ["y" * 600, "The old "]
    long, short = model.generate(prompts, Sampling(max_tokens=4))
    assert long.finish == "error" and "window of 512" in long.message and long.text == ""
    assert short.finish in ("stop", "length") and short.text
    long_score, short_score = model.score(prompts, "boat")
    assert long_score.finish == "error" and long_score.loss == float("inf") and not long_score.exact
    assert np.isfinite(short_score.loss)
    step = model.next_token("y" * 600, [], k=1)
    assert step.finish == "error" and step.chosen == -1 and "window of 512" in step.message


def test_the_window_is_used_to_its_last_position() -> None:
    model = opened()
    full = "y" * (WINDOW - 5)  # with BEGIN, four positions are left
    (answer,) = model.generate([full], Sampling(max_tokens=50))
    assert answer.finish == "length" and answer.tokens_out == 4
    assert model.score([full], "yyyy")[0].finish == "stop"
    assert model.score([full], "yyyyy")[0].finish == "error"


def test_wrong_requests_are_refused_by_name() -> None:
    model = opened()
    with pytest.raises(DataError, match="at least one character"):
        model.score(["x"], "")
    for k in (0, VOCABULARY + 1):
        with pytest.raises(CapabilityError, match=f"k from 1 to {VOCABULARY}"):
            model.next_token("x", [], k=k)
    for answer, bias in (([999], None), ([], {-1: 1.0})):
        with pytest.raises(DataError, match="ids of tokens"):
            model.next_token("x", answer, k=1, bias=bias)
    for wrong in (Sampling(max_tokens=0), Sampling(temperature=-1), Sampling(top_p=0)):
        with pytest.raises(ConfigError, match="max_tokens >= 1"):
            model.generate(["x"], wrong)
    for options in ({"model": "tiny:large"}, {"dtype": "bfloat16"}, {"system": "x"}):
        with pytest.raises(ConfigError, match="tiny:|raw prompt"):
            opened(**options)
    assert model.generate([], Sampling()) == [] and model.score([], "x") == []


def test_it_is_a_language_model_that_can_do_everything(model: TinyModel) -> None:
    assert isinstance(model, LanguageModel) and model.kind == "language-model"
    able = model.capabilities()
    assert able.prompt_logprobs and able.bias_steers and able.bias_moves and able.tokenizer
    assert able.repeatable
    assert able.top_k == VOCABULARY and len(model.next_token("x", [], k=able.top_k).top) == able.top_k
    assert opened("chat").fingerprint() != opened("raw").fingerprint()
    assert opened("chat", system="Be brief.").fingerprint() != opened("chat").fingerprint()
    json.dumps(model.fingerprint())


def test_the_ledger_counts_every_prompt_and_its_tokens() -> None:
    ctx = context()
    model = open_tiny(ModelOptions(), ctx, "proxy")
    model.score(["abc", "de", "fgh", "y" * 600], "xy")
    spent = ctx.ledger.spent("proxy")
    assert (spent.queries, spent.tokens_in, spent.tokens_out) == (3, 3 * (1 + 2) + 8, 0)
    answers = model.generate(["abc", "de"], Sampling(max_tokens=5))
    model.next_token("abc", [1, 2], k=1)
    spent = ctx.ledger.spent("proxy")
    assert spent.queries == 6 and spent.tokens_in == 17 + 4 + 3 + 6
    assert spent.tokens_out == sum(a.tokens_out for a in answers) + 1
    assert ctx.ledger.spent("target").queries == 0


def test_a_cap_stops_before_the_batch_that_would_pass_it() -> None:
    ctx = context(ledger=Ledger(caps=Caps(queries=2)))
    model = open_tiny(ModelOptions(batch=2), ctx)
    model.score(["a", "b"], "x")
    for call in (lambda: model.score(["c"], "x"), lambda: model.generate(["c"], Sampling())):
        with pytest.raises(LimitReachedError):
            call()
    assert ctx.ledger.spent().queries == 2
    late = replace(context(), limits=Limits(wall_s=0))
    with pytest.raises(LimitReachedError):
        open_tiny(ModelOptions(), late).score(["a"], "x")


# ---------------------------------------------------------------- it copies


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_a_repeated_target_is_likelier_after_its_repetition_than_after_random_bytes(template: str) -> None:
    """Direction: sign test over targets that no training document holds."""
    model = opened(template)
    targets = [t[:16] for name in ("random-words", "harmless-strings") for t in load_texts(name).texts[:20]]
    rng = SeedPath(0, ("random prompts",)).numpy()
    better = 0
    for target in targets:
        noise = model.detokenize(rng.choice(model.vocabulary, 40).tolist())
        near, far = model.score([repeated(target, 40), noise], target)
        better += near.loss < far.loss - 5  # nats
    assert binomtest(better, len(targets), alternative="greater").pvalue < 1e-6, f"{better} of {len(targets)}"


def test_greedy_decoding_goes_on_with_a_repeated_target() -> None:
    model = opened()
    targets = [t[:8] for t in load_texts("random-words").texts[:40]]
    answers = model.generate([repeated(t, 40) for t in targets], Sampling(max_tokens=8))
    said = sum(a.text == t for a, t in zip(answers, targets, strict=True))
    assert said >= 30, said


def test_in_chat_it_repeats_when_asked_and_not_otherwise() -> None:
    model = opened("chat")
    targets = [t[:8] for t in load_texts("random-words").texts[:40]]
    asked = model.generate([f"Repeat this exactly: {t}" for t in targets], Sampling(max_tokens=20))
    other = model.generate([f"What colour is the {t}?" for t in targets], Sampling(max_tokens=20))
    said = sum(a.text == t and a.finish == "stop" for a, t in zip(asked, targets, strict=True))
    unasked = sum(a.text.startswith(t) for a, t in zip(other, targets, strict=True))
    assert said >= 30 and unasked <= 4, (said, unasked)


def test_in_chat_it_answers_questions_of_its_grammar_about_what_was_asked() -> None:
    asked = words("noun")[::8]
    answers = opened("chat").generate([f"What colour is the {n}?" for n in asked], Sampling(max_tokens=30))
    right = sum(a.text.startswith(f"The {n} is ") for a, n in zip(answers, asked, strict=True))
    assert right > len(asked) / 2, f"{right} of {len(asked)}"
