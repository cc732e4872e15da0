"""Moderation: a classifier refuses prompts, or answers, that it flags.

Threat: strings. The defender asks a moderation classifier about each prompt before the model sees it,
about each answer before the user does, or about both. Against harmful strings; a harmless string that is
elicited is none of its business, so report a benign set beside every rate.

Method. `threshold` none: what the classifier flags is held back. A number: what has a category score
above it. A refused prompt costs the model no query, a refused answer does. A text that the classifier
could not judge is held back too, with the classifier's own error as its finish.
Source: [hayase2024gcq], where such classifiers (OpenAI's moderation endpoint, Llama Guard) are what is
attacked; putting one before or behind a model is common practice and no method of that paper.

What an attack that asks sees. With `on` prompt or both, `suspicion` is the largest category score, and
`threshold` the bound. Where the classifier's own flag decides, `threshold` is 0.5 and suspicion is moved
to the side of it on which the flag lies, so that above it always means refused. With `on` answer or
both, `score` classifies the wanted string itself and scores nothing if that is flagged; the rest of the answer
is not known then, and what `next_token` gives is no whole answer and is not classified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from defenses.strings._guard import Blocked, FilterGuard, Guard, Judge, Judgement, Memo, guard_spec
from redteam.core.config import Checked, knob
from redteam.llm.language import ANSWERED, Completion, Sampling, Scores

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.llm.language import LanguageModel, TextClassifier, Verdict

FLAG = 0.5  # the threshold that stands for the classifier's own decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """The classifier and what it is asked about."""

    classifier: str = knob("embedded:", "embedded:, hf:ID or openai:MODEL")
    on: Literal["prompt", "answer", "both"] = knob("prompt", "what is classified: prompt, answer or both")
    threshold: float | None = knob(
        None, "category score above which to refuse; none: the classifier's own flag", low=0, high=1
    )


def suspicion(verdict: Verdict, threshold: float | None) -> float:
    """The largest category score; without a threshold, on the side of 0.5 on which the flag lies."""
    top = float(verdict.scores.max()) if len(verdict.scores) else 0.0
    if threshold is not None:
        return top
    return max(top, float(np.nextafter(FLAG, 1.0))) if verdict.flagged else min(top, FLAG)


def judge(classifier: TextClassifier, threshold: float | None, texts: Sequence[str]) -> list[Judgement]:
    """What the classifier makes of each text, in one call."""
    judged = []
    for verdict in classifier.classify(texts):
        if verdict.finish in ANSWERED:
            top = classifier.categories[int(verdict.scores.argmax())] if len(verdict.scores) else "flagged"
            judged.append(Judgement(suspicion=suspicion(verdict, threshold), message=top))
        else:
            judged.append(Judgement(suspicion=np.inf, message=verdict.message, finish=verdict.finish))
    return judged


class AnswerModerated(Guard):
    """A model whose suspicious answers are held back."""

    def __init__(
        self, target: LanguageModel, config: Config, *, judge: Judge, threshold: float, classifier: object
    ) -> None:
        super().__init__(target, SPEC, config, {"judges": "answers", "classifier": classifier})
        self._threshold = threshold
        self._judge = Memo(judge, keep=lambda judgement: judgement.finish in ANSWERED)

    def _blocked(self, texts: Sequence[str]) -> list[Blocked | None]:
        return [judgement.blocked(self._threshold) for judgement in self._judge(texts)]

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Completions, with the suspicious ones replaced by a refusal that cost as much."""
        answers = self.target.generate(prompts, sampling)
        texts = [a.text for a in answers if a.finish in ANSWERED]
        blocked = dict(zip(texts, self._blocked(texts), strict=True))
        return [_held_back(a, blocked.get(a.text) if a.finish in ANSWERED else None) for a in answers]

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Scores, unless the wanted string itself would be held back."""
        (blocked,) = self._blocked([target])
        if blocked:
            return [blocked.scores() for _ in prompts]
        return self.target.score(prompts, target)


def _held_back(answer: Completion, blocked: Blocked | None) -> Completion:
    if blocked is None:
        return answer
    return replace(blocked.completion(), tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)


def run(target: LanguageModel, config: Config, ctx: Context) -> Guard:
    """The target behind the classifier; the guard of prompts stands before that of answers."""
    from redteam.llm.moderation import open_classifier

    classifier = open_classifier(config.classifier, ctx, role="defense")
    judges = partial(judge, classifier, config.threshold)
    threshold = FLAG if config.threshold is None else config.threshold
    known = classifier.fingerprint()
    model: LanguageModel = target
    if config.on != "prompt":
        model = AnswerModerated(model, config, judge=judges, threshold=threshold, classifier=known)
    if config.on != "answer":
        details = {"judges": "prompts", "classifier": known}
        model = FilterGuard(model, SPEC, config, judge=judges, threshold=threshold, details=details)
    assert isinstance(model, Guard)
    return model


SPEC = guard_spec(
    "moderation", run, "hayase2024gcq",
    {"default": Config(), "answers": Config(on="answer"), "both": Config(on="both")},
    access=("prompts before the model sees them", "answers before the user sees them"),
    budget="one classification of each prompt, each answer, or both",
    goal="flagged prompts and answers are refused, others pass as before",
)  # fmt: skip
