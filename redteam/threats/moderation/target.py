"""The moderation-classifier target: a classifier, and the texts that are to be slipped past it.

Part of the texts may be held out for a universal suffix: it is searched on the others and judged on these.
Which ones is decided by the texts alone, so that neither their order nor a seed moves the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from redteam.core.config import check_ranges, knob, to_json
from redteam.core.context import Context
from redteam.core.types import Preset, Spec, TargetKind
from redteam.data.nouns import TextDataset
from redteam.llm.language import TextClassifier
from redteam.llm.moderation import Address, open_classifier

Split = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModerationConfig:
    """The classifier, the texts it is to flag, and how often the scorer asks it."""

    model: str = knob("embedded:", "embedded:, hf:ID_OR_PATH or openai:MODEL")
    strings: int | None = knob(None, "how many of the data set's texts, from the first; none: all", low=1)
    validation: float = knob(
        0.0, "share of the texts held out: a universal suffix is judged on them", low=0, high=0.99
    )
    repeats: int = knob(3, "fresh verdicts the scorer asks for each text", low=1)
    benign: int = knob(64, "harmless texts that must pass, at most", low=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        Address.parse(self.model)


def split_of(texts: tuple[str, ...], share: float) -> tuple[Split, ...]:
    """`train` or `validation` for each text; round(share * n) are held out, and at least one is not.

    The texts with the smallest sha256 are held out; equal texts count in the order they come.
    """
    held_out = min(round(share * len(texts)), len(texts) - 1)
    ranked = sorted(range(len(texts)), key=lambda i: (hashlib.sha256(texts[i].encode()).digest(), i))
    chosen = set(ranked[:held_out])
    return tuple("validation" if i in chosen else "train" for i in range(len(texts)))


@dataclass(frozen=True)
class ModerationTarget:
    """A classifier, opened when it is first asked, and the texts to slip past it.

    undefended: the classifier as it is; `classifier`: behind its defences, if it has any.
    """

    dataset: TextDataset
    config: ModerationConfig
    ctx: Context
    kind: TargetKind = "text-classifier"
    defended: TextClassifier | None = field(default=None, compare=False)

    @cached_property
    def undefended(self) -> TextClassifier:
        """The classifier without defences."""
        return open_classifier(self.config.model, self.ctx)

    @property
    def classifier(self) -> TextClassifier:
        """What attacks and the scorer talk to."""
        return self.defended or self.undefended

    def behind(self, classifier: TextClassifier) -> ModerationTarget:
        """The same target, its classifier behind a defence. What is open stays open."""
        out = replace(self, defended=classifier)
        out.__dict__["undefended"] = self.undefended
        return out

    @cached_property
    def texts(self) -> TextDataset:
        """The texts in use, with their ids."""
        return self.dataset.first(self.config.strings)

    @cached_property
    def split(self) -> tuple[Split, ...]:
        """`train` or `validation` for each text in use."""
        return split_of(self.texts.texts, self.config.validation)

    @property
    def train(self) -> tuple[int, ...]:
        """Rows of `texts` that a universal suffix may be searched on."""
        return tuple(i for i, part in enumerate(self.split) if part == "train")

    @property
    def validation(self) -> tuple[int, ...]:
        """Rows of `texts` that it is judged on."""
        return tuple(i for i, part in enumerate(self.split) if part == "validation")

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the outcome, as plain JSON values."""
        return {
            "target": SPEC.name, "version": SPEC.version, "config": to_json(self.config),
            "texts": self.texts.digest, "classifier": self.classifier.fingerprint(),
        }  # fmt: skip


def pinned(target: ModerationTarget) -> Mapping[str, str]:
    """What the config names but does not hold: the digest of a local classifier's weights."""
    backend = Address.parse(target.config.model).backend
    if backend == "openai":
        return {}
    known = target.undefended.fingerprint()
    return {"content": str(known["sha256" if backend == "embedded" else "content"])}


def configure(dataset: TextDataset, *layers: Mapping[str, Any]) -> ModerationConfig:
    """The default target with `layers` of settings laid over it: see `TextDataset.configured`."""
    return dataset.configured(ModerationConfig, layers)


SPEC = Spec(
    name="moderation-classifier",
    kind="target",
    version="1",
    config=ModerationConfig,
    run=ModerationTarget,
    presets={
        "default": Preset(config=ModerationConfig()),
        "universal": Preset(config=ModerationConfig(validation=0.75)),
    },
    source="hayase2024gcq",
)
