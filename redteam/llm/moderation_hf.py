"""Moderation by a transformers sequence classifier: `hf:ID_OR_PATH?activation=&safe=&threshold=&batch=`.

activation: `sigmoid` (several labels may hold) or `softmax` (exactly one does); without it, as the model's
config says, by the rule of transformers' own pipeline. safe: labels, separated by commas, that mean "not
flagged"; without it, labels of a well-known such name. They are no category: with a softmax all scores sum to
1, and a sum that holds the safe one never falls. threshold: score above which a text is flagged; without it
0.5, and with a softmax of several labels the likeliest decides.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from redteam.core.config import convert
from redteam.core.context import Context
from redteam.core.errors import BackendError, ConfigError, nearest
from redteam.core.types import TargetKind
from redteam.llm.language import Verdict
from redteam.llm.local_load import Source, find_hf, load_tokenizer, need_transformers
from redteam.llm.moderation import THRESHOLD, Address, no_verdict

if TYPE_CHECKING:
    import torch

Activation = Literal["sigmoid", "softmax"]
# Letters of label names that mean "nothing found"; LABEL_0 may mean anything, so it has to be named.
_SAFE = {
    "safe", "ok", "okay", "neutral", "normal", "none", "benign", "harmless", "clean", "acceptable", "nontoxic",
    "nottoxic", "nothate", "nonhate", "unflagged", "notflagged", "notoffensive", "nonoffensive",
}  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """How logits become a verdict. safe: columns that are no category."""

    labels: tuple[str, ...]
    safe: tuple[int, ...]
    activation: Activation
    threshold: float | None

    @property
    def kept(self) -> tuple[int, ...]:
        """Columns of the categories."""
        return tuple(i for i in range(len(self.labels)) if i not in self.safe)

    def verdict(self, logits: np.ndarray) -> Verdict:
        """logits: (labels,) float64."""
        if self.activation == "sigmoid":
            scores = 1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700)))[list(self.kept)]
            over = THRESHOLD if self.threshold is None else self.threshold
            return Verdict(scores=scores, flagged=bool((scores > over).any()))
        weights = np.exp(logits - logits.max())
        scores = (weights / weights.sum())[list(self.kept)]
        if self.threshold is None:
            return Verdict(scores=scores, flagged=int(logits.argmax()) not in self.safe)
        return Verdict(scores=scores, flagged=bool(scores.sum() > self.threshold))


def decision_of(options: Mapping[str, str], labels: Sequence[str], problem_type: str | None) -> Decision:
    """The decision that a name's options and a model's config ask for.

    Raises:
        ConfigError: an option that does not fit, a regression model, or a softmax without a safe label.
    """
    activation = _activation(options.get("activation"), len(labels), problem_type)
    if "safe" in options:
        named = list(dict.fromkeys(n.strip() for n in options["safe"].split(",") if n.strip()))
        for name in named:
            if name not in labels:
                raise ConfigError(f"model: safe: the model has no label '{name}'. {nearest(name, labels)}")
    else:
        named = [name for name in labels if re.sub(r"[^a-z]", "", name.lower()) in _SAFE]
    if activation == "softmax" and not named:
        raise ConfigError(
            f"model: one of the labels {', '.join(labels)} must mean 'not flagged', and none is known to; "
            "name it with ?safe=LABEL"
        )
    if len(named) == len(labels):
        raise ConfigError(f"model: every label ({', '.join(labels)}) is a safe one; nothing would be flagged")
    return Decision(
        tuple(labels), tuple(labels.index(n) for n in named), activation, _threshold(options.get("threshold"))
    )  # fmt: skip


def _activation(named: str | None, labels: int, problem_type: str | None) -> Activation:
    if named is not None:
        choice: Activation = convert("model: activation", named, Activation)
        return choice
    if problem_type == "regression":
        raise ConfigError("model: expected a classifier, got a regression model; give ?activation=sigmoid")
    several = problem_type == "multi_label_classification" or labels == 1
    return "sigmoid" if several else "softmax"


def _threshold(text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = -1.0
    if value is not None and not 0 < value < 1:
        raise ConfigError(f"model: threshold: expected a number between 0 and 1, got '{text}'")
    return value


def _batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"model: batch: expected a whole number of at least 1, got '{text}'")
    return int(text)


@lru_cache(maxsize=2)
def _load(source: Source, device: str) -> Any:
    """The network in evaluation mode, float32.

    Raises:
        BackendError: it is no sequence classifier, or its weights are incomplete.
    """
    library = need_transformers()
    try:
        module, info = library.AutoModelForSequenceClassification.from_pretrained(
            **source.arguments(), use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise BackendError(f"no sequence classifier could be loaded from {source.folder}: {error}") from None
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if absent:
        raise BackendError(
            f"{source.folder}: {len(absent)} weights are missing or misshapen ({absent[0]}, ...) and would be "
            "random; expected a model that was fitted as a sequence classifier"
        )
    return module.float().eval().requires_grad_(False).to(device)


def open_hf(address: Address, ctx: Context, role: str) -> HfClassifier:
    """Open `hf:ID_OR_PATH`; a hub id is downloaded only where the environment says REDTEAM_DOWNLOAD=1.

    Raises:
        ConfigError: not there, the extra `llm` is missing, or an option does not fit. DataError: no safetensors.
        BackendError: weights that cannot be loaded whole.
    """
    batch = _batch(address.options.get("batch", "16"))
    source = find_hf(address.name)
    tokenizer = load_tokenizer(source)
    module = _load(source, ctx.device.name)
    config = module.config
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    decision = decision_of(address.options, labels, config.problem_type)
    return HfClassifier(f"hf:{address.name}", source, module, tokenizer, decision, batch, ctx, role)


@dataclass(frozen=True)
class HfClassifier:
    """A network, its tokenizer and its decision."""

    model: str
    source: Source
    module: Any
    tokenizer: Any
    decision: Decision
    batch: int
    ctx: Context
    role: str
    kind: TargetKind = "text-classifier"

    @property
    def categories(self) -> tuple[str, ...]:
        """The labels that are not safe ones."""
        return tuple(self.decision.labels[i] for i in self.decision.kept)

    @property
    def limit(self) -> int | None:
        """The most tokens of a text, special ones included."""
        config = self.module.config
        positions = getattr(config, "max_position_embeddings", None)
        # The RoBERTa family numbers positions from after the padding id.
        if positions is not None and "roberta" in str(config.model_type):
            positions -= config.pad_token_id + 1
        stated = self.tokenizer.model_max_length  # a huge number where it is not stated
        known = [n for n in (positions, stated) if n is not None and n < 10**9]
        return min(known, default=None)

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each text. A text too long for the model gets an error: cut, its end would not count.

        Raises:
            LimitReachedError: a cap of the ledger or the time is used up.
        """
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        found: dict[int, Verdict] = {}
        for row, tokens in enumerate(ids):
            if not tokens or (self.limit is not None and len(tokens) > self.limit):
                why = f"the text has {len(tokens)} tokens; the classifier takes 1 to {self.limit}"
                found[row] = no_verdict(len(self.categories), "error", why)
        fits = sorted((row for row in range(len(ids)) if row not in found), key=lambda row: len(ids[row]))
        for rows in self._batches(fits):
            self.ctx.limits.check_time()
            batch = [ids[row] for row in rows]
            self.ctx.ledger.count(
                model=self.model, role=self.role, queries=len(batch), tokens_in=sum(map(len, batch)), tokens_out=0
            )  # fmt: skip
            for row, logits in zip(rows, self._logits(batch), strict=True):
                found[row] = self.decision.verdict(logits)
        return [found[row] for row in range(len(ids))]

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        size = self.batch if self.tokenizer.pad_token_id is not None else 1
        yield from (rows[i : i + size] for i in range(0, len(rows), size))

    def _logits(self, batch: list[list[int]]) -> np.ndarray:
        """(n, labels) float64."""
        import torch

        with torch.inference_mode():
            padded = self._padded(batch) if len(batch) > 1 else {"input_ids": torch.tensor(batch)}
            out = self.module(**{k: v.to(self.module.device) for k, v in padded.items()})
        logits: np.ndarray = out.logits.double().cpu().numpy()
        return logits

    def _padded(self, batch: list[list[int]]) -> dict[str, torch.Tensor]:
        padded: Any = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt", verbose=False)
        return {k: padded[k] for k in ("input_ids", "attention_mask")}

    def fingerprint(self) -> dict[str, Any]:
        """Content of the weights (sha256, or a hub id's commit), decision, library versions."""
        return {
            "backend": "hf", "content": self.source.content, "activation": self.decision.activation,
            "safe": [self.decision.labels[i] for i in self.decision.safe],
            "threshold": self.decision.threshold, "categories": list(self.categories),
            "transformers": importlib.metadata.version("transformers"),
            "torch": importlib.metadata.version("torch"),
        }  # fmt: skip
