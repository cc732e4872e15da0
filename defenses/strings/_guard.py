"""What every defence of a language model shares: a model behind a gate, refusals, memory of past prompts.

A `Guard` wraps a model and is one, so defences nest in any order; it hands on whatever it does not
change. A refused prompt never reaches the model behind it and costs it no query.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from redteam.core.config import to_json
from redteam.core.errors import ConfigError
from redteam.core.types import Preset, Spec, TargetKind, ThreatModel
from redteam.llm.language import ANSWERED, Capabilities, Completion, Finish, NextToken, Sampling, Scores
from redteam.llm.options import ModelOptions

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.llm.language import LanguageModel, Template

T = TypeVar("T")

REFUSAL = "I can't help with that."


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A prompt or an answer that is held back. message: why. finish: `refused`, or why nothing can be said."""

    message: str
    finish: Finish = "refused"

    def completion(self) -> Completion:
        """What the user gets: the canned refusal, or an empty text if the defence itself failed."""
        text = REFUSAL if self.finish == "refused" else ""
        return Completion(text=text, finish=self.finish, message=self.message)

    def scores(self) -> Scores:
        """Nothing scored, infinite loss."""
        return Scores(logprobs=np.zeros(0), finish=self.finish, message=self.message)

    def next_token(self) -> NextToken:
        """No token."""
        return NextToken(top={}, chosen=-1, finish=self.finish, message=self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a filter makes of one text. suspicion: in its own unit. finish: not `stop` if it gave no answer.

    message: what was noticed, or why there is no answer.
    """

    suspicion: float
    message: str = ""
    finish: Finish = "stop"

    def blocked(self, threshold: float) -> Blocked | None:
        """Whether the text is held back, and why. A filter that gave no answer lets nothing through."""
        if self.finish not in ANSWERED:
            return Blocked(message=f"the filter gave no answer: {self.message}", finish=self.finish)
        if self.suspicion > threshold:
            note = f" ({self.message})" if self.message else ""
            return Blocked(message=f"suspicion {self.suspicion:.4g} is above {threshold:.4g}{note}")
        return None


Judge = Callable[[list[str]], list[Judgement]]
Rewrite = Callable[[list[str]], list[str | Blocked]]


class Memo(Generic[T]):
    """A function of texts that remembers the last `size` results worth keeping; attacks ask often."""

    def __init__(
        self, compute: Callable[[list[str]], list[T]], keep: Callable[[T], bool], size: int = 65536
    ) -> None:
        self._compute, self._keep, self._size = compute, keep, size
        self._known: OrderedDict[str, T] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> list[T]:
        """One result for each text; each unknown text is computed once."""
        found: dict[str, T] = {}
        for text in texts:
            if text in self._known:
                self._known.move_to_end(text)
                found[text] = self._known[text]
        new = [text for text in dict.fromkeys(texts) if text not in found]
        for text, result in zip(new, self._compute(new) if new else [], strict=True):
            found[text] = result
            if self._keep(result):
                self._known[text] = result
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return [found[text] for text in texts]


def gated(
    admitted: Sequence[str | Blocked], ask: Callable[[list[str]], list[T]], refuse: Callable[[Blocked], T]
) -> list[T]:
    """Ask for what was admitted, in one call, and refuse the rest; answers in the order of `admitted`."""
    passed = [p for p in admitted if not isinstance(p, Blocked)]
    answers = ask(passed) if passed else []
    assert len(answers) == len(passed), "a model gives one answer for each prompt"
    rest = iter(answers)
    return [refuse(p) if isinstance(p, Blocked) else next(rest) for p in admitted]


class Guard:
    """A language model behind a defence; this base changes nothing but the fingerprint.

    target: the model behind it. details: what else decides its answers, as plain JSON values: a
    calibrated threshold, the fingerprint of a helper model, the seed path of its randomness.
    """

    def __init__(
        self, target: LanguageModel, spec: Spec, config: Any, details: Mapping[str, Any] | None = None
    ) -> None:
        self.target = target
        self._identity = {"defense": spec.name, "version": spec.version, "config": to_json(config)}
        self._identity |= details or {}

    def admit(self, prompts: Sequence[str]) -> list[str | Blocked]:
        """What is sent in place of each prompt, or why nothing is."""
        return list(prompts)

    @property
    def kind(self) -> TargetKind:
        """`language-model`."""
        return self.target.kind

    @property
    def template(self) -> Template:
        """The template of the model behind it."""
        return self.target.template

    @property
    def options(self) -> ModelOptions | None:
        """How the innermost model was opened, where that is known."""
        return getattr(self.target, "options", None)

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Completions of admitted prompts, refusals of the others."""
        return gated(
            self.admit(prompts), lambda passed: self.target.generate(passed, sampling), Blocked.completion
        )

    def score(self, prompts: Sequence[str], target: str) -> list[Scores]:
        """Scores after admitted prompts; nothing scored for the others."""
        return gated(self.admit(prompts), lambda passed: self.target.score(passed, target), Blocked.scores)

    def next_token(
        self, prompt: str, answer: Sequence[int], *, k: int, bias: Mapping[int, float] | None = None
    ) -> NextToken:
        """The most likely next tokens after an admitted prompt."""
        (sent,) = self.admit([prompt])
        if isinstance(sent, Blocked):
            return sent.next_token()
        return self.target.next_token(sent, answer, k=k, bias=bias)

    def tokenize(self, text: str) -> list[int]:
        """Ids of bare text, as the model behind it has them."""
        return self.target.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.target.detokenize(ids)

    def encode(self, prompt: str) -> list[int]:
        """Ids of the prompt as its sender writes it: what the defence makes of it is the defence's."""
        return self.target.encode(prompt)

    def target_ids(self, target: str) -> list[int]:
        """Ids of `target` at the beginning of an answer."""
        return self.target.target_ids(target)

    @property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64 ids of ordinary tokens."""
        return self.target.vocabulary

    def capabilities(self) -> Capabilities:
        """What the model behind it can do."""
        return self.target.capabilities()

    def fingerprint(self) -> dict[str, Any]:
        """The defence, what it was resolved to, and the fingerprint of the model behind it."""
        return {**self._identity, "target": self.target.fingerprint()}


class FilterGuard(Guard):
    """A model that refuses suspicious prompts; a `redteam.llm.language.PromptFilter`.

    A defence that stands in front of this one hides `suspicion`: what it lets through, or makes of a
    prompt, is its own. `target` leads back here.
    """

    def __init__(
        self,
        target: LanguageModel,
        spec: Spec,
        config: Any,
        *,
        judge: Judge,
        threshold: float,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target, spec, config, {**(details or {}), "threshold": threshold})
        self._threshold = threshold
        self._judge = Memo(judge, keep=_answered)

    @property
    def threshold(self) -> float:
        """Prompts whose suspicion is above it are refused."""
        return self._threshold

    def suspicion(self, prompts: Sequence[str]) -> np.ndarray:
        """(n,) float64 in the filter's unit; infinite where the filter gave no answer."""
        found = self._judge(prompts)
        return np.array([j.suspicion if _answered(j) else np.inf for j in found], dtype=np.float64)

    def admit(self, prompts: Sequence[str]) -> list[str | Blocked]:
        """The prompts themselves, where they are not suspicious."""
        judged = zip(prompts, self._judge(prompts), strict=True)
        return [judgement.blocked(self._threshold) or prompt for prompt, judgement in judged]


class Rewritten(Guard):
    """A model that sees every prompt rewritten; the same prompt is always rewritten in the same way."""

    def __init__(
        self,
        target: LanguageModel,
        spec: Spec,
        config: Any,
        *,
        rewrite: Rewrite,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target, spec, config, details)
        self._rewrite = Memo(rewrite, keep=lambda sent: not isinstance(sent, Blocked))

    def admit(self, prompts: Sequence[str]) -> list[str | Blocked]:
        """The rewritten prompts. One of which nothing is left is refused."""
        pairs = zip(prompts, self._rewrite(prompts), strict=True)
        return [_emptied(prompt, sent) or sent for prompt, sent in pairs]


def _answered(judgement: Judgement) -> bool:
    return judgement.finish in ANSWERED


def _emptied(prompt: str, sent: str | Blocked) -> Blocked | None:
    if isinstance(sent, str) and prompt.strip() and not sent.strip():
        return Blocked(message="the rewriting left nothing of the prompt")
    return None


def guard_spec(
    name: str,
    run: Callable[..., Guard],
    source: str,
    presets: Mapping[str, Any],
    *,
    budget: str,
    goal: str,
    access: tuple[str, ...] = ("prompts before the model sees them",),
    knowledge: tuple[str, ...] = ("nothing of the attack",),
    version: str = "1",
) -> Spec:
    """The `SPEC` of a defence of language models. presets: configs by name."""
    threat = ThreatModel(
        kind="strings", target="language-model", access=access, budget=budget, knowledge=knowledge, goal=goal
    )
    return Spec(
        name=name, kind="defense", version=version, config=type(presets["default"]), run=run, source=source,
        presets={title: Preset(config=config) for title, config in presets.items()}, threat=threat,
    )  # fmt: skip


def helper_model(model: str, target: LanguageModel, ctx: Context, *, template: Template) -> LanguageModel:
    """A model that works for a defence, opened apart from the target so that it costs the target no query.

    model: `BACKEND:NAME`, or `target` for the weights of the innermost model under `template`. Where
    nobody knows how that model was opened, it is used itself, and then what it is asked counts as its own.

    Raises:
        ConfigError: the target's weights cannot be had under that template.
    """
    options: ModelOptions | None = ModelOptions(model=model, template=template) if model != "target" else None
    if options is None:
        while isinstance(target, Guard):
            target = target.target
        if known := getattr(target, "options", None):
            options = replace(known, template=template, system=None)
    if options is not None:
        from redteam.llm.opening import open_model

        return open_model(options, ctx, role="defense")
    if target.template != template:
        raise ConfigError(
            f"model=target: expected a target with the template '{template}', or one that says how it was opened, "
            f"got '{target.template}'; name a model, such as model=gguf:smollm2"
        )
    return target
