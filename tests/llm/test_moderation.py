"""Moderation classifiers: the embedded one, transformers classifiers, and endpoints."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.context import Context
from redteam.core.errors import BackendError, ConfigError, DataError, LimitReachedError
from redteam.core.ledger import Caps, Ledger
from redteam.core.seeding import SeedPath
from redteam.data.moderated import WEIGHTS, load_moderated, read_card
from redteam.data.shipped import EMBEDDED_DIR
from redteam.llm.language import TextClassifier
from redteam.llm.moderation import Address, EmbeddedClassifier, features, no_verdict, open_classifier
from redteam.llm.moderation_hf import Decision, decision_of
from redteam.threats.moderation.target import ModerationConfig, ModerationTarget, pinned
from scripts import build_moderation as script
from tests.conftest import context

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- the embedded classifier


@pytest.fixture
def embedded(ctx: Context) -> EmbeddedClassifier:
    return EmbeddedClassifier.load(ctx)


def test_it_flags_most_texts_but_not_all_and_lets_benign_ones_pass(embedded):
    """The 'already unflagged' baseline is part of the design: 34 % in the paper."""
    data = load_moderated()
    assert isinstance(embedded, TextClassifier)
    base = 1 - np.mean([v.flagged for v in embedded.classify(data.texts)])
    assert 0.1 < base < 0.5
    assert np.mean([v.flagged for v in embedded.classify(data.benign)]) < 0.1


def test_the_card_tells_the_truth():
    card = read_card()
    assert card["bytes"] == (EMBEDDED_DIR / WEIGHTS).stat().st_size < 500_000
    with np.load(EMBEDDED_DIR / WEIGHTS) as npz:
        arrays = {"weights": npz["weights"], "bias": npz["bias"]}
    assert script.judge(arrays, *script.corpus(script.TEST_SEED, script.TEST_TEXTS)) == card["held_out"]
    assert min(card["held_out"]["accuracy"].values()) > 0.97


def test_scores_are_the_logistic_of_the_weights(embedded):
    (verdict,) = embedded.classify(["Rain and fog again."])
    index, value = features("Rain and fog again.")
    dense = np.zeros(embedded.weights.shape[1])
    dense[index] = value
    logits = embedded.weights @ dense + embedded.bias
    assert verdict.scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-12)
    assert verdict.flagged is True and verdict.scores.shape == (len(embedded.categories),)
    (nothing,) = embedded.classify([""])
    assert nothing.scores == pytest.approx(1 / (1 + np.exp(-embedded.bias))) and not nothing.flagged


def test_features_are_counts_of_ngrams():
    assert all(len(part) == 0 for part in features("  \n"))
    once, twice = dict(zip(*features("fog"), strict=True)), dict(zip(*features("fog fog"), strict=True))
    # w1 fog; c <fo fog og>; c <fog fog>; s1 x; twice also w2 fog fog and s2 x x
    assert len(once) == 7 and len(twice) == 9
    assert set(once.values()) == {0.1}
    assert all(twice[k] == pytest.approx((1 + np.log(2)) / 10) for k in once)
    assert list(features("fog")[0]) == sorted(once)
    assert set(features("FOG")[0]) - set(features("fog")[0]), "how words are written counts too"


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_a_verdict_depends_on_its_text_alone(texts):
    classifier = EmbeddedClassifier.load(context())
    together = classifier.classify(texts)
    for text, verdict in zip(texts, together, strict=True):
        (alone,) = classifier.classify([text])
        assert np.array_equal(alone.scores, verdict.scores) and alone.flagged == verdict.flagged
        assert ((verdict.scores >= 0) & (verdict.scores <= 1)).all()
        assert verdict.flagged == bool((verdict.scores > 0.5).any())


def test_the_ledger_counts_and_caps(ctx):
    capped = replace(ctx, ledger=Ledger(None, Caps(queries=3)))
    classifier = open_classifier("embedded:", capped, role="defense")
    assert classifier.classify([]) == []
    classifier.classify(["one two", "three"])
    spent = capped.ledger.spent("defense")
    assert (spent.requests, spent.queries, spent.tokens_in, spent.tokens_out) == (1, 2, 3, 0)
    with pytest.raises(LimitReachedError):
        classifier.classify(["four", "five"])
    assert capped.ledger.spent().queries == 2


def test_a_few_hundred_queries_find_a_suffix_and_noise_rarely_does(embedded):
    """The classifier can be attacked: a plain random search over words beats words drawn at random."""
    rng, words = np.random.default_rng(0), _words()
    flagged = [t for t in load_moderated().texts if embedded.classify([t])[0].flagged][:12]

    def draw(n: int) -> list[str]:
        return [words[i] for i in rng.integers(len(words), size=n)]

    found, noise = 0, 0
    for text in flagged:
        best = draw(12)
        (verdict,) = embedded.classify([" ".join([text, *best])])
        noise += not verdict.flagged
        for _ in range(6):
            tries = [[*best] for _ in range(24)]
            for one, word in zip(tries, draw(24), strict=True):
                one[rng.integers(12)] = word
            answers = embedded.classify([" ".join([text, *one]) for one in tries])
            k = int(np.argmin([a.scores.sum() for a in answers]))
            if answers[k].scores.sum() < verdict.scores.sum():
                best, verdict = tries[k], answers[k]
        found += not verdict.flagged
    assert found >= 2 * max(noise, 1) and found >= len(flagged) // 2


def _words() -> list[str]:
    """A thousand ordinary words that nobody chose for this test."""
    return sorted(set(re.findall(r"[a-z]{3,9}", inspect.getsource(argparse))))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embeded:", "Did you mean 'embedded'"),
        ("embedded", "expected embedded:, hf:ID_OR_PATH or openai:MODEL"),
        ("embedded:x", "no download; got 'embedded:x'"),
        ("hf:", "expected a transformers sequence classifier"),
        ("openai:m?batch=3", "openai: has no option 'batch'"),
        ("hf:m?save=x", "Did you mean 'safe'"),
        ("hf:m?safe", "expected ?option=value"),
        ("hf:m?batch=1&batch=2", "given twice"),
    ],
)
def test_names_that_are_none_are_refused(spec, message, ctx):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        open_classifier(spec, ctx)
    with pytest.raises(ConfigError):
        ModerationConfig(model=spec)


def test_a_name_taken_apart():
    address = Address.parse("hf:org/model?safe=OK,LABEL_0&threshold=0.3")
    assert (address.backend, address.name) == ("hf", "org/model")
    assert address.options == {"safe": "OK,LABEL_0", "threshold": "0.3"}


def test_no_verdict_never_looks_like_a_pass():
    verdict = no_verdict(3, "timeout", "gone")
    assert verdict.flagged and np.isnan(verdict.scores).all() and not verdict.scores.sum() < 1


# ---------------------------------------------------------------- decisions of transformers classifiers


def test_softmax_leaves_the_safe_label_out():
    d = decision_of({}, ("safe", "rude", "loud"), "single_label_classification")
    assert d == Decision(("safe", "rude", "loud"), (0,), "softmax", None)
    verdict = d.verdict(np.log(np.array([0.4, 0.35, 0.25])))
    assert verdict.scores == pytest.approx([0.35, 0.25]) and not verdict.flagged
    assert replace(d, threshold=0.5).verdict(np.log(np.array([0.4, 0.35, 0.25]))).flagged
    assert d.verdict(np.log(np.array([0.3, 0.4, 0.3]))).flagged


def test_sigmoid_judges_each_label():
    d = decision_of({"threshold": "0.8"}, ("a", "b"), "multi_label_classification")
    verdict = d.verdict(np.array([0.0, np.log(3)]))
    assert verdict.scores == pytest.approx([0.5, 0.75]) and not verdict.flagged
    assert replace(d, threshold=None).verdict(np.array([0.0, np.log(3)])).flagged
    assert np.isfinite(d.verdict(np.array([-1e6, 1e6])).scores).all()


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.integers(0, 5))
def test_softmax_scores_fall_exactly_as_the_safe_one_rises(logits, k):
    labels = tuple(f"l{i}" for i in range(len(logits)))
    d = Decision(labels, (k % len(labels),), "softmax", None)
    x = np.array(logits)
    p_safe = np.exp(x - x.max())[k % len(labels)] / np.exp(x - x.max()).sum()
    assert d.verdict(x).scores.sum() == pytest.approx(1 - p_safe, abs=1e-12)
    assert d.verdict(x + 3).scores == pytest.approx(d.verdict(x).scores, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "labels", "problem", "message"),
    [
        ({}, ("LABEL_0", "LABEL_1"), None, "name it with"),
        ({"safe": "LABEL_2"}, ("LABEL_0", "LABEL_1"), None, "has no label 'LABEL_2'"),
        ({"safe": "a,b"}, ("a", "b"), None, "nothing would be flagged"),
        ({}, ("score",), "regression", "got a regression model"),
        ({"activation": "relu"}, ("safe", "b"), None, "expected one of sigmoid, softmax"),
        ({"threshold": "2"}, ("safe", "b"), None, "between 0 and 1"),
        ({"threshold": "nan"}, ("safe", "b"), None, "between 0 and 1"),
    ],
)
def test_decisions_that_cannot_be_made(options, labels, problem, message):
    with pytest.raises(ConfigError, match=message):
        decision_of(options, labels, problem)


@pytest.mark.parametrize(
    ("labels", "problem", "activation"),
    [
        (("toxic",), None, "sigmoid"),
        (("Non-Toxic", "toxic"), None, "softmax"),
        (("OK", "S", "H"), "single_label_classification", "softmax"),
        (("S", "H"), "multi_label_classification", "sigmoid"),
    ],
)
def test_the_config_decides_the_activation(labels, problem, activation):
    assert decision_of({}, labels, problem).activation == activation


# ---------------------------------------------------------------- a tiny transformers classifier

WORDS = ["the", "a", "rain", "sun", "is", "was", "loud", "quiet", "we", "they", "and", ",", ".", "!", "x"]


def save_bert(
    folder: Path, labels: tuple[str, ...], problem: str | None = None, *, head: bool = True, **size: int
) -> str:
    """A BERT with random weights and fifteen words."""
    transformers = pytest.importorskip("transformers")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, id2label=dict(enumerate(labels)), label2id={v: k for k, v in enumerate(labels)},
        problem_type=problem, initializer_range=0.8, **size,
    )  # fmt: skip
    kind = transformers.BertForSequenceClassification if head else transformers.BertModel
    with SeedPath(7).as_global():
        kind(config).save_pretrained(folder)
    transformers.BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), vocab_file=str(folder / "vocab.txt")
    ).save_pretrained(folder)
    return f"hf:{folder}"


TALK = ["the rain was loud .", "we", "they and the sun , and the quiet rain !", "x x x", "the sun is quiet ."]


def test_hf_agrees_with_the_model_itself_batched_or_not(tmp_path, ctx):
    spec = save_bert(tmp_path / "bert", ("OK", "rude", "loud"))
    classifier = open_classifier(f"{spec}?batch=2", ctx, role="judge")
    assert isinstance(classifier, TextClassifier) and classifier.kind == "text-classifier"
    assert classifier.categories == ("rude", "loud")
    verdicts = classifier.classify(TALK)
    tokens = 0
    for text, verdict in zip(TALK, verdicts, strict=True):
        batch = classifier.tokenizer(text, return_tensors="pt")
        tokens += batch["input_ids"].numel()
        expected = classifier.module(**batch).logits.softmax(-1)[0].double().numpy()
        assert verdict.scores == pytest.approx(expected[1:], abs=1e-6)
        assert verdict.flagged == bool(expected.argmax() != 0) and verdict.finish == "stop"
    assert len({v.scores.tobytes() for v in verdicts}) == len(TALK)
    spent = ctx.ledger.spent("judge")
    assert (spent.requests, spent.queries, spent.tokens_in, spent.usd) == (3, 5, tokens, 0)
    with pytest.raises(LimitReachedError):
        capped = replace(ctx, ledger=Ledger(None, Caps(tokens=3)))
        open_classifier(spec, capped).classify(TALK)
    assert capped.ledger.spent().queries == 0


def test_hf_multi_label_by_its_config(tmp_path, ctx):
    spec = save_bert(tmp_path / "bert", ("S", "H"), "multi_label_classification")
    classifier = open_classifier(spec, ctx)
    (verdict,) = classifier.classify(TALK[:1])
    logits = classifier.module(**classifier.tokenizer(TALK[0], return_tensors="pt")).logits[0]
    assert verdict.scores == pytest.approx(logits.sigmoid().double().numpy(), abs=1e-6)
    other = open_classifier(f"{spec}?safe=S&activation=softmax", ctx)
    assert other.categories == ("H",) and other.fingerprint() != classifier.fingerprint()
    assert other.fingerprint()["content"] == classifier.fingerprint()["content"]
    target = ModerationTarget(load_moderated(), ModerationConfig(model=spec), ctx)
    assert pinned(target) == {"content": classifier.fingerprint()["content"]}


def test_hf_a_text_too_long_is_an_error_and_no_pass(tmp_path, ctx):
    classifier = open_classifier(save_bert(tmp_path / "bert", ("OK", "rude")), ctx)
    assert classifier.limit == 24
    fits, long = classifier.classify(["x " * 22, "x " * 23])
    assert fits.finish == "stop"
    assert (long.finish, long.flagged) == ("error", True) and "25 tokens" in long.message
    assert ctx.ledger.spent().queries == 1


def test_hf_refuses_a_model_without_a_fitted_head_and_pickles(tmp_path, ctx, monkeypatch):
    monkeypatch.delenv("REDTEAM_DOWNLOAD", raising=False)
    with pytest.raises(BackendError, match="would be random"):
        open_classifier(save_bert(tmp_path / "base", ("OK", "rude"), head=False), ctx)
    spec = save_bert(tmp_path / "bert", ("OK", "rude"))
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(DataError, match="never loaded"):
        open_classifier(spec, ctx)
    with pytest.raises(ConfigError, match="REDTEAM_DOWNLOAD"):
        open_classifier("hf:nobody/no-such-classifier", ctx)
    with pytest.raises(ConfigError, match="batch: expected"):
        open_classifier(f"{spec}?batch=0", ctx)


# ---------------------------------------------------------------- an endpoint

KEY = "sk-test-1234567890-secret"


class Server(ThreadingHTTPServer):
    """Speaks /v1/moderations like the embedded classifier. script: what to do instead, request by request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.classifier = EmbeddedClassifier.load(context())
        self.script: list[str] = []
        self.sizes: list[int] = []
        self.always, self.model = "", "mod-1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format, *args) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/moderations" and self.headers["Authorization"] == f"Bearer {KEY}"
        texts = body["input"]
        self.server.sizes.append(len(texts))
        do = self.server.script.pop(0) if self.server.script else self.server.always
        if do.isdigit():
            return self.reply(int(do), {"error": {"message": f"no, {KEY}"}}, {"Retry-After": "0"})
        if "POISON" in texts:
            return self.reply(400, {"error": {"message": "too long"}})
        judge = self.server.classifier
        results = [
            {
                "flagged": v.flagged,
                "category_scores": {
                    **dict(zip(judge.categories, v.scores.tolist(), strict=True)),
                    "unknown": None,
                },
            }
            for v in judge.classify(texts)
        ]
        if do == "short":
            results = results[1:]
        if do == "other":
            results[0]["category_scores"].pop("shouting")
        return self.reply(200, {"id": "x", "model": self.server.model, "results": results})

    def reply(self, status: int, payload: dict, headers: dict | None = None) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{running.server_port}/v1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server, ctx):
    """An endpoint that is asked again at once, and three times at most."""
    from redteam.llm.pace import Pacer

    classifier = open_classifier("openai:mod", ctx)
    classifier.pacer = Pacer(4, np.random.default_rng(0), retries=2, sleep=lambda seconds: None)
    yield classifier
    classifier.close()


def test_api_says_what_the_classifier_behind_it_says_32_texts_a_request(server, served, ctx):
    texts = (load_moderated().texts * 2)[:100]
    verdicts = served.classify(texts)
    assert isinstance(served, TextClassifier) and sorted(server.sizes) == [4, 32, 32, 32]
    assert served.categories == tuple(sorted(server.classifier.categories))
    order = [server.classifier.categories.index(c) for c in served.categories]
    for got, expected in zip(verdicts, server.classifier.classify(texts), strict=True):
        assert np.array_equal(got.scores, expected.scores[order]) and got.flagged == expected.flagged
    spent = ctx.ledger.spent("target")
    assert (spent.requests, spent.queries, spent.failed) == (4, 100, 0)
    assert spent.tokens_in == sum(len(t.split()) for t in texts) and spent.tokens_out == 0
    assert served.classify([]) == [] and len(server.sizes) == 4


def test_api_asks_about_one_text_to_learn_the_categories(server, served, ctx):
    assert served.categories == served.categories and server.sizes == [1]
    assert ctx.ledger.spent().queries == 1


def test_api_retries_what_may_pass_and_books_every_attempt(server, served, ctx):
    server.script = ["429", "500"]
    (verdict,) = served.classify(["rain and fog"])
    assert verdict.finish == "stop" and server.sizes == [1, 1, 1]
    spent = ctx.ledger.spent()
    assert (spent.requests, spent.queries, spent.failed) == (3, 3, 2)


@pytest.mark.parametrize("fault", ["503", "short", "other"])
def test_api_what_never_comes_is_an_error_and_no_pass(server, served, fault):
    served.classify(["hello"])
    server.always = fault
    verdicts = served.classify(["one", "two"])
    assert [v.finish for v in verdicts] == ["error"] * 2 and all(v.flagged for v in verdicts)
    assert all("after 3 attempts" in v.message and np.isnan(v.scores).all() for v in verdicts)


def test_api_one_refused_text_takes_no_other_along(server, served):
    texts = [f"text {i}" for i in range(7)] + ["POISON"] + [f"text {i}" for i in range(8)]
    verdicts = served.classify(texts)
    assert [i for i, v in enumerate(verdicts) if v.finish != "stop"] == [7]
    assert "too long" in verdicts[7].message and len(verdicts[7].scores) == 4
    with pytest.raises(BackendError, match="20 texts in a row were refused"):
        served.classify(["POISON"] * 64)


def test_api_gives_up_on_an_endpoint_that_answers_nothing(server, served):
    server.always = "500"
    with pytest.raises(BackendError, match="5 requests in a row got no answer"):
        served.classify([f"text {i}" for i in range(160)])
    with pytest.raises(BackendError, match="did not answer"):
        assert served.categories


def test_api_another_model_under_the_same_name_is_refused(server, served):
    served.classify(["one"])
    server.model = "mod-2"
    with pytest.raises(BackendError, match="'mod-1' answered at first and 'mod-2' now"):
        served.classify(["one"])


def test_api_a_cap_stops_before_anything_is_sent(server, ctx):
    classifier = open_classifier("openai:mod", replace(ctx, ledger=Ledger(None, Caps(queries=40))))
    with pytest.raises(LimitReachedError, match="cap on queries is 40"):
        classifier.classify(["text"] * 64)
    assert sum(server.sizes) <= 40
    dear = open_classifier("openai:mod", replace(ctx, ledger=Ledger(None, Caps(usd=1))))
    with pytest.raises(ConfigError, match="price of 'mod'"):
        dear.classify(["text"])


def test_api_no_secret_in_errors_fingerprint_or_log(server, served, caplog):
    caplog.set_level("DEBUG")
    server.always = "401"
    with pytest.raises(BackendError, match="rejects the key") as raised:
        served.classify(["one"])
    server.always = "422"
    (refused,) = served.classify(["one"])
    error = f"{raised.value!r} {raised.value.__cause__!r}"
    seen = f"{error} {refused.message} {served.fingerprint()} {caplog.text}"
    assert KEY not in seen and str(server.server_port) not in seen and "no, [key]" in refused.message


def test_without_the_extra_the_message_names_it(server, tmp_path, monkeypatch, ctx):
    spec = save_bert(tmp_path / "bert", ("OK", "not loaded by any other test"))
    for package in ("transformers", "openai"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in (spec, "openai:mod"):
        with pytest.raises(ConfigError, match=r"extra llm: pip install 'redteam\[llm\]'"):
            open_classifier(name, ctx)


def test_api_needs_a_key(monkeypatch, ctx):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        open_classifier("openai:mod", ctx)


@pytest.mark.parametrize(
    "payload",
    [
        None, [], {}, {"results": [{}]}, {"results": [{"flagged": 1, "category_scores": {"a": 0.1}}]},
        {"results": [{"flagged": True, "category_scores": {}}]},
        {"results": [{"flagged": True, "category_scores": {"a": 1.1}}]},
        {"results": [{"flagged": True, "category_scores": {"a": float("nan")}}]},
        {"results": [{"flagged": True, "category_scores": {"a": True}}]},
        {"results": [{"flagged": True, "category_scores": {"a": None}}]},
    ],
)  # fmt: skip
def test_api_replies_that_are_none(payload):
    from redteam.llm.moderation_api import parse
    from redteam.llm.replies import MalformedError

    with pytest.raises(MalformedError):
        parse(payload, 1)
