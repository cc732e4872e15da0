"""SmoothLLM: answer randomly perturbed copies of a prompt and return the most common answer.

Threat: strings. The defender changes a share `rate` of the characters of each of `copies` copies of a
prompt, asks the model for an answer to each, and lets the answers vote. Against prompts that work only
if every character stands where it does. It costs `copies` queries a prompt.

Method. `swap`: characters at random places are replaced; `insert`: random characters are put before
random places; `patch`: one run of characters is replaced. int(rate * length) characters each, drawn
uniformly from Python's `string.printable`, over the whole user text.
Source: [robey2023smoothllm]. The three perturbations (its Algorithm 2), the alphabet, the rounding and the
defaults (swap, 10 %, 10 copies) are read from the released code; the paper's text was not at hand.

Deviations. The paper lets each answer vote on being jailbroken or not and returns a random answer of the
winning side. Eliciting an exact string knows no judge: here the most common text wins, the first drawn
of several. Where all answers differ, that is the answer to the first copy, so that this vote is weaker
than a judge's. Copies that got no answer (error, timeout) do not vote; refusals vote as one text. Places of
insertion are places of the prompt itself, not of the text as it grows.

Randomness. Copies are drawn from the run's seed, the prompt and `Sampling.index`: the same call gives the
same copies, another index fresh ones. `score` draws copies of its own, as an attacker would who smooths
for himself: it estimates the expectation over transformations, and no search is led by the very
copies that answer. Rates should be measured at several indices.

`score` returns, for each token, the mean over copies of its log-probability, so that the loss is the mean
loss; it is conditional on the copies that were scored, and refused unless more than half were. `greedy` at
a token: more than half of all copies give the string greedily up to there, so that `exact` means a majority.
`next_token` is refused: its log-probabilities of copies, top-k and biased, have no common value.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from defenses.strings._guard import Guard, guard_spec
from redteam.core.config import Checked, knob
from redteam.core.errors import CapabilityError
from redteam.core.hashing import digest_json
from redteam.llm.language import ANSWERED, Capabilities, Completion, NextToken, Sampling, Scores

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.llm.language import LanguageModel

ALPHABET = tuple(string.printable)
Perturbation = Literal["swap", "insert", "patch"]
_NO_NEXT = "a smoothed model has no next-token distribution: its answer is a vote over perturbed copies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """The smoothing. Defaults are the released code's."""

    copies: int = knob(10, "perturbed copies of each prompt", low=1)
    rate: float = knob(0.1, "share of the characters perturbed", low=0, high=1)
    perturbation: Perturbation = knob(
        "swap", "swap: replace characters; insert: add some; patch: replace a run"
    )


def perturbed_count(length: int, rate: float) -> int:
    """Characters perturbed of `length`: the product rounded down, whatever the rounding of floats."""
    return int(length * rate + 1e-9)


def perturb(text: str, how: Perturbation, rate: float, rng: np.random.Generator) -> str:
    """A copy of `text` with `perturbed_count` characters replaced or added. [robey2023smoothllm] Algorithm 2."""
    count = perturbed_count(len(text), rate)
    if not count:
        return text
    drawn = [ALPHABET[i] for i in rng.integers(len(ALPHABET), size=count)]
    if how == "patch":
        start = int(rng.integers(len(text) - count + 1))
        return text[:start] + "".join(drawn) + text[start + count :]
    new = dict(zip(rng.choice(len(text), size=count, replace=False).tolist(), drawn, strict=True))
    if how == "insert":
        return "".join(new.get(i, "") + c for i, c in enumerate(text))
    return "".join(new.get(i, c) for i, c in enumerate(text))


def vote(answers: Sequence[Completion]) -> Completion:
    """The most common answer, the first drawn of several, with the tokens of all copies.

    Failures (error, timeout) are returned only where every copy failed.
    """
    voters = [a for a in answers if a.finish not in ("error", "timeout")] or list(answers)
    counts = Counter((a.finish in ANSWERED, a.text) for a in voters)
    best = max(counts.values())
    winner = next(a for a in voters if counts[a.finish in ANSWERED, a.text] == best)
    return replace(
        winner, tokens_in=sum(a.tokens_in for a in answers), tokens_out=sum(a.tokens_out for a in answers)
    )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Scores of one prompt from those of its copies; see the card."""
    spent = sum(s.tokens_in for s in scores)
    scored = [s for s in scores if s.finish in ANSWERED]
    if 2 * len(scored) <= len(scores):
        return replace(next(s for s in scores if s.finish not in ANSWERED), tokens_in=spent)
    told = [np.logical_and.accumulate(s.greedy) for s in scored if s.greedy is not None]
    greedy = 2 * np.stack(told).sum(axis=0) > len(scores) if len(told) == len(scored) else None
    return replace(
        scored[0],
        logprobs=np.stack([s.logprobs for s in scored]).mean(axis=0),
        greedy=greedy,
        tokens_in=spent,
    )


class Smoothed(Guard):
    """A model whose answer to a prompt is the vote of its answers to perturbed copies."""

    def __init__(self, target: LanguageModel, config: Config, ctx: Context) -> None:
        self._config, self._seeds = config, ctx.seeds.child("smoothing")
        super().__init__(target, SPEC, config, {"seeds": str(self._seeds)})

    def copies(self, prompt: str, draw: int | Literal["score"]) -> list[str]:
        """The perturbed copies of a prompt. draw: `Sampling.index`, or `score` for those that are scored."""
        rng = self._seeds.child(draw, digest_json(prompt)).numpy()
        return [
            perturb(prompt, self._config.perturbation, self._config.rate, rng)
            for _ in range(self._config.copies)
        ]

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """The vote for each prompt; all copies go to the model in one call."""
        sent = [copy for prompt in prompts for copy in self.copies(prompt, sampling.index)]
        answers = self.target.generate(sent, sampling) if sent else []
        n = self._config.copies
        return [vote(answers[i : i + n]) for i in range(0, len(answers), n)]

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Mean log-probabilities over copies."""
        sent = [copy for prompt in prompts for copy in self.copies(prompt, "score")]
        scores = self.target.score(sent, target) if sent else []
        n = self._config.copies
        return [mean_scores(scores[i : i + n]) for i in range(0, len(scores), n)]

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        """Refused.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(f"{_NO_NEXT}; use score where the target can")

    def encode(self, prompt: str) -> list[int]:
        """Ids of the prompt before it is perturbed: no one text is sent."""
        return self.target.encode(prompt)

    def capabilities(self) -> Capabilities:
        """Those of the model behind it, without next tokens."""
        able = self.target.capabilities()
        lost = dict.fromkeys(("top_k", "bias_steers", "bias_moves"), _NO_NEXT)
        return replace(able, top_k=0, bias_steers=False, bias_moves=False, reasons={**able.reasons, **lost})


def run(target: LanguageModel, config: Config, ctx: Context) -> Smoothed:
    """The target behind the vote."""
    return Smoothed(target, config, ctx)


SPEC = guard_spec(
    "smoothing", run, "robey2023smoothllm",
    {"default": Config(), "paper": Config(), "smoke": Config(copies=3)},
    access=("prompts before the model sees them", "the model's answers"),
    budget="`copies` queries of the model for each prompt",
    goal="the answer to a prompt does not hang on a few of its characters",
)  # fmt: skip
