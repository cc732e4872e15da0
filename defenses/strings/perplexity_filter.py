"""Perplexity filter: refuse prompts that hold a run of tokens a language model finds improbable.

Threat: strings. The defender sees each prompt before the model does, scores it with a filter model,
and refuses it if its windowed negative log-likelihood is above a threshold. A refusal costs the model
no query. Against searches over tokens, whose results are mostly gibberish.

Method. Suspicion of a prompt: the largest mean negative log-likelihood, in nats a token, of a window
of `window` tokens of its text under the filter model, `window=0` taking the whole text; its exponent is
a perplexity. Windows lie side by side and the last may be short, or begin every `stride` tokens. Unless
a threshold is given, it is the smallest that lets `pass_rate` of the suite's benign calibration prompts
through; these are disjoint from the prompts that a defence is evaluated on. No adversarial prompt is used.
Source: [jain2023baseline] and, for the filter without windows, [alon2023perplexity]. Windows of 10 tokens side by
side with a short last one, and the rule that every window must pass, are read from the code released
with the former; neither paper's text was at hand, so no section is cited.

Deviations: the released code takes as threshold the largest value over the harmful instructions to be
defended, of the whole text also for windows; here the windowed value of benign prompts is calibrated, at
a quantile. The filter model scores the text from its first token on, as the answer to an empty prompt, or
to a line break where an empty prompt has no token to go on from; the released code leaves out what
comes first.

Limits: the last window may be a single token, which makes both suspicion and threshold noisier than
`stride=1`. Ordinary words that are repeated, or any fluent text, pass: report adaptive attacks, which
may ask this defence for `suspicion` and `threshold`. Expect nothing against text that reads well.

Expect, with 64 calibration prompts, 24 benign prompts and 16 prompts of 20 random tokens each, on a CPU:
smollm2 refuses 0 and 16 (threshold 8.1 nats; about 0.5 s a prompt). The embedded tiny: reads bytes, of
which 10 say little, and knows no foreign script: with the defaults it refuses 0 and 0. Whole prompts
and `pass_rate=0.95` (preset `bytes`) refuse all 16 random ones, and 3 of 64 benign prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from defenses.strings._guard import FilterGuard, Judgement, guard_spec, helper_model
from redteam.core.config import check_ranges, knob
from redteam.core.errors import BackendError, CapabilityError, ConfigError
from redteam.core.hashing import digest_json
from redteam.llm.language import ANSWERED

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.llm.language import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The filter. Defaults are the released code's, but for the threshold."""

    model: str = knob("target", "filter model: target (the target's own weights, raw), or BACKEND:NAME")
    window: int = knob(10, "tokens a window; 0: the whole prompt", low=0)
    stride: int = knob(0, "tokens from one window to the next; 0: side by side", low=0)
    threshold: float | None = knob(None, "nats a token above which to refuse; none: calibrated", low=0)
    pass_rate: float = knob(0.99, "share of the calibration prompts that must pass", above=0, high=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.stride > self.window:
            raise ConfigError(
                f"stride: expected at most window ({self.window}), else tokens are skipped; got {self.stride}"
            )


def windowed_nll(nll: np.ndarray, window: int, stride: int = 0) -> float:
    """The largest mean of `nll` over windows of `window` values that begin every `stride` values.

    nll: (t,) negative log-likelihoods in nats. window 0: all of them. stride 0: side by side. Windows
    begin until one reaches the end; that one may be short. 0 for an empty text.
    """
    if not len(nll):
        return 0.0
    window = window or len(nll)
    stride = stride or window
    starts = range(0, max(len(nll) - window, 0) + stride, stride)
    return float(max(nll[start : start + window].mean() for start in starts))


def threshold_for(values: np.ndarray, pass_rate: float) -> float:
    """The smallest of `values` (n,) that at least `pass_rate * n` of them do not exceed."""
    rank = ceil(pass_rate * len(values) - 1e-9)
    return float(np.sort(values)[max(rank, 1) - 1])


def opening(model: LanguageModel) -> str:
    """The prompt to which a text is scored as the answer: empty if that sends at least one token."""
    return "\n" if model.capabilities().tokenizer and not model.encode("") else ""


def judge(model: LanguageModel, config: Config, texts: Sequence[str]) -> list[Judgement]:
    """Windowed negative log-likelihood of each text under the filter model, one call for each."""
    judged, before = [], opening(model)
    for text in texts:
        if not text:
            judged.append(Judgement(suspicion=0.0))
            continue
        try:
            (scores,) = model.score([before], text)
        except CapabilityError as error:  # of this text: it would become control tokens
            judged.append(Judgement(suspicion=np.inf, message=str(error), finish="error"))
            continue
        value = windowed_nll(-scores.logprobs, config.window, config.stride)
        message = "nats a token" if scores.finish in ANSWERED else scores.message
        judged.append(Judgement(suspicion=value, message=message, finish=scores.finish))
    return judged


def calibrate(model: LanguageModel, config: Config, ctx: Context) -> float:
    """The threshold that lets `pass_rate` of the calibration prompts through, in nats a token.

    Raises:
        BackendError: the filter model cannot score one of them.
    """
    from redteam.data.texts import calibration_prompts

    prompts = list(calibration_prompts())

    def measure() -> dict[str, np.ndarray]:
        judged = judge(model, config, prompts)
        for prompt, j in zip(prompts, judged, strict=True):
            if j.finish not in ANSWERED or not np.isfinite(j.suspicion):
                raise BackendError(
                    f"perplexity-filter: the filter model did not score the calibration prompt {prompt[:40]!r} "
                    f"({j.finish}: {j.message}); give threshold=..., or another model=..."
                )
        return {"suspicion": np.array([j.suspicion for j in judged])}

    key = {
        "defense": SPEC.name, "version": SPEC.version, "filter": model.fingerprint(),
        "window": config.window, "stride": config.stride, "prompts": digest_json(prompts),
    }  # fmt: skip
    values = ctx.stage("calibrate-perplexity", key, measure)["suspicion"]
    return threshold_for(values, config.pass_rate)


def run(target: LanguageModel, config: Config, ctx: Context) -> FilterGuard:
    """The target behind the filter.

    Raises:
        CapabilityError: the filter model gives no log-probabilities of a prompt.
    """
    model = helper_model(config.model, target, ctx, template="raw")
    able = model.capabilities()
    if not able.prompt_logprobs:
        why = able.reasons.get("prompt_logprobs", "no reason was given")
        raise CapabilityError(
            f"perplexity-filter: model={config.model}: expected a model that scores a given text, which this "
            f"one does not ({why}); name another, such as model=gguf:smollm2"
        )
    threshold = calibrate(model, config, ctx) if config.threshold is None else config.threshold
    return FilterGuard(
        target, SPEC, config, judge=partial(judge, model, config), threshold=threshold,
        details={"filter": model.fingerprint()},
    )  # fmt: skip


SPEC = guard_spec(
    "perplexity-filter", run, "jain2023baseline",
    {
        "default": Config(),
        "unwindowed": Config(window=0),
        "bytes": Config(window=0, pass_rate=0.95),
        "sliding": Config(stride=1),
    },
    budget="one pass of a filter model over each prompt", knowledge=("benign calibration prompts",),
    goal="improbable prompts are refused, benign ones answered as before",
)  # fmt: skip
