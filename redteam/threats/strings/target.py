"""The language-model target: a model behind its template, and the strings it is to be made to say.

`open_model` opens any backend. The target adds the goals: the first `strings` of the data set, cut to
`target_tokens` tokens of the target's own tokenizer where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.core.errors import CapabilityError, DataError
from redteam.core.types import Spec, TargetKind
from redteam.data.nouns import TextDataset
from redteam.llm.language import Goal, LanguageModel
from redteam.llm.opening import content_of, open_model
from redteam.llm.options import ModelOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig(ModelOptions):
    """The model, and how many strings it is asked for and how often."""

    strings: int | None = knob(None, "how many of the data set's strings, from the first; none: all", low=1)
    target_tokens: int | None = knob(
        None, "cut each string to its first so many tokens of the target's tokenizer; none: whole", low=1
    )
    repeats: int = knob(3, "fresh greedy completions the scorer asks for each string", low=1)
    benign: int = knob(24, "harmless prompts that a defence must let through", low=0)

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        check_ranges(self)

    def options(self) -> ModelOptions:
        """What opens the model."""
        return ModelOptions(**{name: getattr(self, name) for name in ModelOptions.__dataclass_fields__})


@dataclass(frozen=True)
class LanguageTarget:
    """A model, opened when it is first asked, and the strings it is to be made to say.

    undefended: the model as it is; `model`: behind its defences, if it has any.
    """

    dataset: TextDataset
    config: LanguageConfig
    ctx: Context
    kind: TargetKind = "language-model"
    defended: LanguageModel | None = field(default=None, compare=False)

    @cached_property
    def undefended(self) -> LanguageModel:
        """The model without defences."""
        return open_model(self.config.options(), self.ctx)

    @property
    def model(self) -> LanguageModel:
        """What attacks and the scorer talk to."""
        return self.defended or self.undefended

    def behind(self, model: LanguageModel) -> LanguageTarget:
        """The same target, its model behind a defence. What is open stays open."""
        out = replace(self, defended=model)
        out.__dict__["undefended"] = self.undefended
        return out

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        """The strings, cut as the config says.

        Raises:
            CapabilityError: a cut is asked for and the model has no tokenizer.
        """
        model, chosen = self.undefended, self.dataset.first(self.config.strings)
        known = model.capabilities().tokenizer
        if self.config.target_tokens is not None and not known:
            raise CapabilityError(
                f"{self.config.model} has no tokenizer to cut strings with; name one with --target-tokenizer"
            )
        return tuple(
            _goal(model, name, text, self.config.target_tokens, known)
            for name, text in zip(chosen.ids, chosen.texts, strict=True)
        )


def _goal(model: LanguageModel, name: str, text: str, tokens: int | None, known: bool) -> Goal:
    """Cut `text` to at most `tokens` tokens such that the cut text is read as just those tokens."""
    if not known:
        return Goal(name, text, ())
    whole = model.target_ids(text)
    for count in range(min(len(whole), tokens or len(whole)), 0, -1):
        cut = model.detokenize(whole[:count]).strip()
        if text.startswith(cut) and cut and (again := model.target_ids(cut)) == whole[: len(again)]:
            return Goal(name, cut, tuple(again))
    raise DataError(f"the string '{name}' cannot be cut to {tokens} tokens of this tokenizer: {text!r}")


def pinned(target: LanguageTarget) -> Mapping[str, str]:
    """What the config names but does not hold: the digest of a model file."""
    content = content_of(target.config.backend, target.config.name)
    return {"content": content} if content else {}


def configure(dataset: TextDataset, *layers: Mapping[str, Any]) -> LanguageConfig:
    """The default target with `layers` of settings laid over it: see `TextDataset.configured`."""
    return dataset.configured(LanguageConfig, layers)


SPEC = Spec(
    name="language-model",
    kind="target",
    version="1",
    config=LanguageConfig,
    run=LanguageTarget,
    source="hayase2024gcq",
)
