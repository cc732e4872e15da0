"""A language model and a classifier whose every answer is known in closed form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redteam.core.errors import CapabilityError
from redteam.core.seeding import SeedPath
from redteam.llm.language import Capabilities, Completion, Finish, NextToken, Sampling, Scores, Verdict
from redteam.llm.options import ModelOptions

CONTROL = "<|end|>"
KNOWN = Capabilities(prompt_logprobs=True, top_k=5, bias_steers=True, tokenizer=True)


def cost(char: str) -> float:
    """Nats a token: a space 0.5, a lower-case letter 1, a digit 4, anything else 8."""
    return 0.5 if char == " " else 1.0 if "a" <= char <= "z" else 4.0 if char.isdigit() else 8.0


def rng(seed: int = 0) -> np.random.Generator:
    return SeedPath(seed).numpy()


@dataclass
class FakeModel:
    """One token a character. log p(y_i | prompt, y_<i) = -cost(y_i) - shift(prompt); greedy where below 2 nats.

    answer: its completion of a prompt, cut to max_tokens. finishes: of prompts that are not answered.
    asked: every prompt it was sent, in order. start: ids before every prompt. CONTROL is a control token.
    """

    name: str = "fake"
    template: str = "raw"
    answer: Callable[[str], str] = lambda prompt: prompt
    shift: Callable[[str], float] = lambda prompt: 0.0
    able: Capabilities = KNOWN
    finishes: Mapping[str, Finish] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    calls: int = 0
    kind: str = "language-model"
    options: ModelOptions | None = None
    start: tuple[int, ...] = (0,)

    def _take(self, prompts: Sequence[str]) -> None:
        self.calls += 1
        self.asked += prompts

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        self._take(prompts)
        out = []
        for prompt in prompts:
            if prompt in self.finishes:
                out.append(Completion(text="", finish=self.finishes[prompt], message="told to fail"))
            else:
                text = self.answer(prompt)[: sampling.max_tokens]
                out.append(Completion(text=text, finish="stop", tokens_in=len(prompt), tokens_out=len(text)))
        return out

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        if not self.able.prompt_logprobs:
            raise CapabilityError("told so")
        self.tokenize(target)
        self._take(prompts)
        out = []
        for prompt in prompts:
            if not self.encode(prompt):
                out.append(Scores(logprobs=np.zeros(0), finish="error", message="an empty prompt"))
                continue
            finish = self.finishes.get(prompt) or self.finishes.get(target)
            if finish:
                out.append(Scores(logprobs=np.zeros(0), finish=finish, message="told to fail"))
                continue
            logprobs = np.array([-cost(c) - self.shift(prompt) for c in target])
            out.append(Scores(logprobs=logprobs, greedy=logprobs > -2, tokens_in=len(prompt) + len(target)))
        return out

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        self._take([prompt])
        return NextToken(top={97: -1.0 - self.shift(prompt)}, chosen=97)

    def tokenize(self, text: str) -> list[int]:
        if CONTROL in text:
            raise CapabilityError("a control token")
        return [ord(c) for c in text]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids)

    def encode(self, prompt: str) -> list[int]:
        return [*self.start, *self.tokenize(prompt)]

    def target_ids(self, target: str) -> list[int]:
        return self.tokenize(target)

    @property
    def vocabulary(self) -> np.ndarray:
        return np.arange(32, 127)

    def capabilities(self) -> Capabilities:
        return self.able

    def fingerprint(self) -> dict[str, Any]:
        return {"model": self.name, "template": self.template}


@dataclass
class FakeClassifier:
    """Scores of the categories `bad` and `rude`: 0.9 where the text holds the word, else 0.1.

    flagged: its own decision, above `bar`. failing: texts it cannot judge.
    """

    bar: float = 0.5
    failing: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)
    kind: str = "text-classifier"
    categories: tuple[str, ...] = ("bad", "rude")

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        self.asked += texts
        out = []
        for text in texts:
            scores = np.array([0.9 if word in text else 0.1 for word in self.categories])
            finish: Finish = "timeout" if text in self.failing else "stop"
            flagged = bool(scores.max() > self.bar)
            out.append(Verdict(scores=scores, flagged=flagged, finish=finish, message="slow"))
        return out

    def fingerprint(self) -> dict[str, Any]:
        return {"classifier": "fake", "bar": self.bar}


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    """Let a lazily imported module be one that holds `content` alone."""
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
