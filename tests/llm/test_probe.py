"""The probe: an honest endpoint gets everything it can do, and no lie passes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from redteam.core.errors import BackendError, CapabilityError
from redteam.llm.probe import probe
from redteam.llm.replies import MalformedError, Reply, parse
from tests.llm.faulty import Manners, Toy, decode, encode


class Fake:
    """What the probe asks, answered by the toy without HTTP. spoil: changes a payload; refuse: bodies it rejects."""

    ours = False

    def __init__(self, template="raw", spoil=None, refuse=lambda body: False, tokens=True, **manners):
        self.toy, self.template, self.spoil, self.refuse = Toy(Manners(**manners)), template, spoil, refuse
        self.tokens, self.asked = tokens, 0

    def ask(self, asks, *, fresh=False, retries=None):
        assert fresh, "a probe that reads the cache sees nothing"
        return [self.one(ask) for ask in asks]

    def one(self, ask):
        self.asked += 1
        s, chat = ask.sampling, self.template == "chat"
        body = {"model": "toy", "temperature": s.temperature, "seed": 0, "max_tokens": s.max_tokens}
        body["logit_bias"] = {str(t): v for t, v in ask.bias.items()}
        if chat:
            body["messages"] = [{"role": "user", "content": ask.prompt}]
            if ask.answer:
                body["messages"].append({"role": "assistant", "content": decode(ask.answer)})
            body |= {} if ask.k is None else {"logprobs": True, "top_logprobs": ask.k}
        else:
            ids = [*encode(ask.prompt), *ask.answer]
            body |= {"prompt": decode(ids) if ask.as_text else ids, "logprobs": ask.k, "echo": ask.echo}
        if self.refuse(body):
            return Reply(finish="error", message="HTTP 400: refused")
        status, payload = self.toy.answer("/v1/chat/completions" if chat else "/v1/completions", body)
        if status != 200:
            return Reply(finish="error", message=payload["error"]["message"])
        try:
            payload = self.spoil(payload, body) if self.spoil else payload
            return parse(payload, "chat" if chat else "completions", ask, lambda raw: None)
        except MalformedError as error:
            return Reply(finish="error", message=f"malformed reply: {error}")

    def tokenize(self, text):
        if not self.tokens:
            raise CapabilityError("no tokenizer is known")
        return encode(text)

    encode = tokenize

    def detokenize(self, ids):
        return decode(ids)

    def target_ids(self, target):
        return encode(f" {target}")


def tops(change):
    """Spoil the alternatives of every position; `change` gets and gives a list of log-probabilities."""

    def spoil(payload, body):
        logprobs = payload["choices"][0]["logprobs"]
        for i, top in enumerate(logprobs["top_logprobs"] if logprobs else ()):
            if top:
                logprobs["top_logprobs"][i] = dict(zip(top, change(list(top.values())), strict=True))
        return payload

    return spoil


def entries(change, *, echo_only=False):
    """Spoil the lists of log-probabilities as a whole."""

    def spoil(payload, body):
        if payload["choices"][0]["logprobs"] and (body.get("echo") or not echo_only):
            change(payload["choices"][0]["logprobs"])
        return payload

    return spoil


@pytest.mark.parametrize("most", [5, 20, 256])
def test_an_honest_endpoint_gets_all_it_can_do(most):
    can = probe(fake := Fake(most=most))
    assert (can.prompt_logprobs, can.bias_steers, can.bias_moves, can.tokenizer, can.repeatable) == (
        True,
    ) * 5
    assert can.top_k == (20 if most == 256 else most) and can.reasons == {}
    assert fake.asked <= 20


def test_an_honest_chat_gets_all_but_the_echo():
    can = probe(Fake(template="chat"))
    assert not can.prompt_logprobs and list(can.reasons) == ["prompt_logprobs"]
    assert can.top_k == 20 and can.bias_moves


ECHO_LIES = {
    "nan": (lambda lp: [*lp[:-1], math.nan], "no number"),
    "none": (lambda lp: [None] * len(lp), "no number"),
    "positive": (lambda lp: [None, *(1.0 for _ in lp[1:])], "at most 0"),
    "one place off": (lambda lp: [None, -1.0, *lp[1:-1]], "where generation gives it"),
    "halved": (lambda lp: [p and p / 2 for p in lp], "where generation gives it"),
}


@pytest.mark.parametrize(("change", "reason"), ECHO_LIES.values(), ids=ECHO_LIES)
def test_no_echo_is_believed_whose_numbers_lie(change, reason):
    spoil = entries(lambda lp: lp.update(token_logprobs=change(lp["token_logprobs"])), echo_only=True)
    can = probe(Fake(spoil=spoil))
    assert not can.prompt_logprobs and reason in can.reasons["prompt_logprobs"]
    assert can.top_k == 20 and can.bias_moves, "the rest is honest"


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (Fake(echo="ignored"), "echo is ignored: 30 tokens were sent, and 1 came back"),
        (Fake(echo="zeros"), "all tokens of the echo have the log-probability 0"),
        (Fake(refuse=lambda body: body.get("echo")), "HTTP 400"),
        (
            Fake(spoil=entries(lambda lp: lp.update(tokens=lp["tokens"][::-1]), echo_only=True)),
            "other tokens than were sent",
        ),
    ],
    ids=["ignored", "zeros", "refused", "other tokens"],
)
def test_no_echo_is_believed_that_is_none(fake, reason):
    can = probe(fake)
    assert not can.prompt_logprobs and reason in can.reasons["prompt_logprobs"]
    assert can.top_k == 20 and can.bias_moves


def test_an_echo_that_prefers_the_unlikely_word_is_refused():
    def swap(payload, body):
        if body.get("echo"):
            values = payload["choices"][0]["logprobs"]["token_logprobs"]
            unlikely = decode(body["prompt"]).endswith("zebra")
            values[25:] = [-0.01 - i * 1e-6 if unlikely else -9.0 - i for i in range(len(values[25:]))]
        return payload

    can = probe(Fake(spoil=swap))
    assert not can.prompt_logprobs and "no likelier than ' zebra'" in can.reasons["prompt_logprobs"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (tops(lambda values: [0.0] * len(values)), "add up to"),
        (tops(lambda values: [math.nan] * len(values)), "no number"),
        (tops(lambda values: [v + 1.0 for v in values]), "expected a log-probability of at most 0|add up to"),
        (tops(lambda values: [min(v + 1.0, -1e-3) for v in values]), "add up to"),
        (tops(lambda values: [-9.0] * len(values)), "same log-probability"),
        (tops(lambda values: values[::-1]), "another log-probability|not the most likely"),
        (entries(lambda lp: lp.update(top_logprobs=None)), "none that the tokenizer knows"),
        (entries(lambda lp: lp.clear()), "as many log-probabilities as tokens"),
    ],
    ids=["zeros", "nan", "positive", "more than one", "constant", "reversed", "no list", "empty"],
)
def test_no_alternatives_are_believed_that_lie(spoil, reason):
    can = probe(Fake(spoil=spoil))
    assert can.top_k == 0 and not can.bias_steers and not can.bias_moves
    assert any(word in can.reasons["top_k"] for word in reason.split("|")), can.reasons


def test_numbers_taken_after_the_temperature_are_refused():
    def certain(payload, body):
        logprobs = payload["choices"][0]["logprobs"]
        if logprobs:
            logprobs["token_logprobs"] = [0.0] * len(logprobs["tokens"])
            logprobs["top_logprobs"] = [
                top and {t: 0.0 if t == token else -9999.0 for t in top}
                for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
            ]
        return payload

    assert "after the temperature of 0" in probe(Fake(spoil=certain)).reasons["top_k"]


def test_order_carries_no_information_and_is_not_needed():
    def unsorted(payload, body):
        logprobs = payload["choices"][0]["logprobs"]
        if logprobs:
            logprobs["top_logprobs"] = [top and dict(sorted(top.items())) for top in logprobs["top_logprobs"]]
        return payload

    assert probe(Fake(spoil=unsorted)) == probe(Fake())


@pytest.mark.parametrize(
    ("bias", "steers", "moves", "reason"),
    [
        ("moves", True, True, None),
        ("steers", True, False, "a bias of +3 raises the reported log-odds by 0.00"),
        ("nothing", False, False, "a bias does not even steer"),
    ],
)
def test_bias(bias, steers, moves, reason):
    can = probe(Fake(bias=bias))
    assert (can.bias_steers, can.bias_moves) == (steers, moves)
    assert can.reasons.get("bias_moves") == reason


def test_a_bias_that_moves_by_another_amount_is_no_use():
    fake = Fake()
    ask = fake.one
    fake.one = lambda a: ask(replace(a, bias={t: v / 2 for t, v in a.bias.items()}))
    can = probe(fake)
    assert can.bias_steers and not can.bias_moves
    assert "raises the reported log-odds by 1.50" in can.reasons["bias_moves"]


def test_a_refused_bias_is_no_error_of_the_probe():
    can = probe(Fake(refuse=lambda body: body["logit_bias"]))
    assert not can.bias_steers and "HTTP 400" in can.reasons["bias_steers"] and can.top_k == 20


@pytest.mark.parametrize("prefill", [True, False])
def test_whether_a_chat_goes_on_with_a_given_beginning(prefill):
    reasons = probe(Fake(template="chat", prefill=prefill)).reasons
    assert ("prefill" in reasons) == (not prefill)


def test_a_server_that_repeats_the_given_beginning_goes_on_with_it_too():
    def repeat(payload, body):
        last = body["messages"][-1]
        if last["role"] == "assistant":
            payload["choices"][0]["message"]["content"] = (
                last["content"] + payload["choices"][0]["message"]["content"]
            )
        return payload

    assert "prefill" not in probe(Fake(template="chat", spoil=repeat)).reasons


def test_ids_that_are_refused_are_not_sent_and_text_shows_the_rest():
    can = probe(Fake(refuse=lambda body: isinstance(body["prompt"], list)))
    assert not can.prompt_logprobs and "HTTP 400" in can.reasons["ids"]
    assert can.top_k == 20 and can.bias_moves


@pytest.mark.parametrize("most", [0, 20])
def test_ids_that_are_read_differently_are_not_sent(most):
    fake = Fake(refuse=(lambda body: False) if most else (lambda body: body["logprobs"] is not None))
    ask = fake.one
    fake.one = lambda a: ask(a if a.as_text else replace(a, prompt=a.prompt[:-3] + "wa?"))
    assert re.search("differ", probe(fake).reasons["ids"])

    fake.one = lambda a: ask(a if a.as_text else replace(a, prompt="<s>" + a.prompt))
    assert "counts 27 tokens, and as text 24" in probe(fake).reasons["ids"]


def test_a_wrong_tokenizer_is_found_by_counting():
    def more(payload, body):
        payload["usage"]["prompt_tokens"] += 1
        return payload

    can = probe(Fake(spoil=more))
    assert not can.tokenizer and "that the endpoint counts as 25" in can.reasons["tokenizer"]
    assert can.top_k == 0 and not can.prompt_logprobs


def test_without_a_tokenizer_only_text_is_left():
    can = probe(Fake(tokens=False))
    assert not (can.tokenizer or can.top_k or can.prompt_logprobs or can.bias_steers) and can.repeatable


def test_greedy_answers_that_differ_are_seen():
    numbers = iter(range(1000))

    def noisy(payload, body):
        payload["choices"][0]["text"] += str(next(numbers))
        return payload

    can = probe(Fake(spoil=noisy))
    assert not can.repeatable and "two different texts" in can.reasons["repeatable"]


def test_an_endpoint_that_answers_nothing_is_an_error():
    with pytest.raises(BackendError, match="does not answer 'The capital of France is': HTTP 400"):
        probe(Fake(refuse=lambda body: True))
