"""A language model with a known optimum, a top-5 API round any model, and messages, for tests of language models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redteam.core.errors import CapabilityError
from redteam.llm.language import Capabilities, Completion, NextToken, Sampling, Scores
from redteam.llm.messages import Message, ToolCall

LETTERS = np.arange(97, 123)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


@dataclass
class ToyModel:
    """Continues a prompt by copying its last `span` letters, surely where `sharp` is high.

    After a prompt x and i letters of answer, letter x[-span + i] has logit `sharp`, every other a small
    number of its own. So a prompt that ends with the target is the best there is, and each letter of it
    that is right lowers the loss by itself.
    """

    span: int = 4
    sharp: float = 6.0
    template: str = "raw"
    kind: str = "language-model"
    asked: list[str] = field(default_factory=list)

    def _logits(self, prompt: str, step: int) -> np.ndarray:
        logits = np.cos(np.arange(26.0) * (step + 1))
        tail = prompt[-self.span :].rjust(self.span, "z")
        if step < self.span and tail[step].isalpha() and tail[step].islower() and ord(tail[step]) < 123:
            logits[ord(tail[step]) - 97] = self.sharp
        return logits

    def _logprobs(self, prompt: str, step: int, bias: Mapping[int, float] | None = None) -> np.ndarray:
        logits = self._logits(prompt, step)
        for token, more in (bias or {}).items():
            logits[token - 97] += more
        return log_softmax(logits)

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        self.asked += prompts
        steps = min(sampling.max_tokens, self.span)
        out = []
        for prompt in prompts:
            text = "".join(chr(97 + int(self._logprobs(prompt, i).argmax())) for i in range(steps))
            out.append(Completion(text=text, finish="length", tokens_in=len(prompt), tokens_out=steps))
        return out

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        self.asked += prompts
        out = []
        for prompt in prompts:
            rows = [self._logprobs(prompt, i) for i in range(len(target))]
            ids = [ord(c) - 97 for c in target]
            logprobs = np.array([row[i] for row, i in zip(rows, ids, strict=True)])
            greedy = np.array([row.argmax() == i for row, i in zip(rows, ids, strict=True)])
            out.append(Scores(logprobs=logprobs, greedy=greedy, tokens_in=len(prompt) + len(target)))
        return out

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        row = self._logprobs(prompt, len(answer), bias)
        order = np.argsort(-row, kind="stable")[:k]
        top = {int(i) + 97: float(row[i]) for i in order}
        return NextToken(top=top, chosen=int(order[0]) + 97, tokens_in=len(prompt) + len(answer))

    def tokenize(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def encode(self, prompt: str) -> list[int]:
        return self.tokenize(prompt)

    def target_ids(self, target: str) -> list[int]:
        return self.tokenize(target)

    @property
    def vocabulary(self) -> np.ndarray:
        return LETTERS

    def capabilities(self) -> Capabilities:
        return Capabilities(prompt_logprobs=True, top_k=26, bias_steers=True, bias_moves=True, tokenizer=True)

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "toy", "span": self.span, "sharp": self.sharp}


@dataclass
class TopKAPI:
    """A model as a paid endpoint shows it: no prompt log-probabilities, `k` alternatives, logit_bias.

    moves: whether the bias changes the log-probabilities that come back (OpenAI's did until March 2024).
    """

    inner: Any
    k: int = 5
    moves: bool = True
    requests: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        raise CapabilityError("no prompt log-probabilities here")

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        self.requests += 1
        found = self.inner.next_token(prompt, answer, k=min(k, self.k), bias=bias)
        if self.moves or not bias:
            return found
        plain = self.inner.next_token(prompt, answer, k=min(k, self.k))
        return NextToken(top=plain.top, chosen=found.chosen, tokens_in=plain.tokens_in)

    def capabilities(self) -> Capabilities:
        return Capabilities(top_k=self.k, bias_steers=True, bias_moves=self.moves, tokenizer=True)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, *calls: ToolCall) -> Message:
    return Message(role="assistant", content=text, calls=calls)
