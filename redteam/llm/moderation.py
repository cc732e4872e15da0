"""Moderation classifiers by name: the embedded one, any transformers classifier, an endpoint.

    embedded:                    ships with the package; hashed n-grams and logistic regression; instant
    hf:ID_OR_PATH[?safe=A,B]     a transformers sequence classifier from local files
    openai:MODEL                 a moderation endpoint; OPENAI_API_KEY and OPENAI_BASE_URL say which

All answer with scores of what is *not* wanted: a label that means "safe" is no category, so the sum of the
scores falls as a text slips past. (The loss of [hayase2024gcq] section 4.5 is that sum.)
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from redteam.core.context import Context
from redteam.core.errors import ConfigError, DataError, nearest
from redteam.core.types import TargetKind
from redteam.data.moderated import WEIGHTS, read_card
from redteam.data.shipped import EMBEDDED_DIR, read_checked
from redteam.llm.language import Finish, TextClassifier, Verdict

BACKENDS = {
    "embedded": "the classifier in the package; instant, no download",
    "hf": "a transformers sequence classifier: hf:ID_OR_PATH, with ?activation=, safe=, threshold=, batch=",
    "openai": "a moderation endpoint: openai:MODEL, with OPENAI_API_KEY and OPENAI_BASE_URL",
}
BUCKETS = 8192
THRESHOLD = 0.5
_SCALE = 10.0

_PIECE = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class Address:
    """A classifier's name taken apart: `BACKEND:NAME?option=value&option=value`."""

    backend: str
    name: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, spec: str) -> Address:
        """Take `spec` apart.

        Raises:
            ConfigError: an unknown backend, a name where none belongs or none where one does, or a bad option.
        """
        backend, colon, rest = spec.partition(":")
        if not colon or backend not in BACKENDS:
            hint = nearest(backend, BACKENDS)
            raise ConfigError(
                f"model: expected embedded:, hf:ID_OR_PATH or openai:MODEL, got '{spec}'. {hint}"
            )
        name, _, query = rest.partition("?")
        if bool(name) is (backend == "embedded"):
            raise ConfigError(f"model: expected {BACKENDS[backend]}; got '{spec}'")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError:
            raise ConfigError(f"model: expected ?option=value&option=value, got '?{query}'") from None
        options = dict(pairs)
        known = ("activation", "safe", "threshold", "batch") if backend == "hf" else ()
        for option in options:
            if option not in known:
                raise ConfigError(f"model: {backend}: has no option '{option}'. {nearest(option, known)}")
        if len(options) < len(pairs):
            raise ConfigError(f"model: an option is given twice in '{spec}'")
        return cls(backend, name, options)


def open_classifier(spec: str, ctx: Context, role: str = "target") -> TextClassifier:
    """The classifier called `spec` (see the module's card). role: under which the ledger counts its queries.

    Raises:
        ConfigError: not a name of a classifier, or the extra `llm` is missing. DataError: its files are missing.
    """
    address = Address.parse(spec)
    if address.backend == "embedded":
        return EmbeddedClassifier.load(ctx, role)
    if address.backend == "hf":
        from redteam.llm.moderation_hf import open_hf

        return open_hf(address, ctx, role)
    from redteam.llm.moderation_api import open_api

    return open_api(address, ctx, role)


def words_in(texts: Sequence[str]) -> int:
    """Words of all texts together: what is counted as tokens where a classifier has no tokenizer."""
    return sum(len(text.split()) for text in texts)


def no_verdict(categories: int, finish: Finish, message: str) -> Verdict:
    """What stands for an answer that did not come: NaN scores, and flagged, so that it never looks like a pass."""
    return Verdict(scores=np.full(categories, np.nan), flagged=True, finish=finish, message=message)


# ---------------------------------------------------------------- the embedded classifier


def _shape(piece: str) -> str:
    """How a word or sign is written, whatever it says: `X` capitals, `Xx` capitalised, `x` lower case, ..."""
    if not piece[0].isalnum():
        return piece if piece in ".!?," else "#"
    if piece.isdigit():
        return "9"
    if piece.isupper():
        return "X" if len(piece) > 1 else "I"
    if piece.islower():
        return "x"
    return "Xx" if piece[0].isupper() and piece[1:].islower() else "m"


def _bucket(gram: str) -> int:
    return zlib.crc32(gram.encode("utf-8", "surrogatepass")) % BUCKETS


@lru_cache(maxsize=1 << 15)
def _of_word(word: str) -> tuple[int, ...]:
    """Buckets of a word and of its 3- and 4-grams of letters; attacks bring the same words again and again."""
    framed = f"<{word}>"
    letters = (f"c {framed[i : i + n]}" for n in (3, 4) for i in range(len(framed) - n + 1))
    return tuple(_bucket(gram) for gram in (f"w1 {word}", *letters))


def _buckets(text: str) -> Iterator[int]:
    pieces = _PIECE.findall(text)
    words = [piece.lower() for piece in pieces]
    for word in words:
        yield from _of_word(word)
    yield from (_bucket(f"w2 {a} {b}") for a, b in pairwise(words))
    shapes = [_shape(piece) for piece in pieces]
    for n in (1, 2, 3):
        yield from (_bucket(f"s{n} " + " ".join(shapes[i : i + n])) for i in range(len(shapes) - n + 1))


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Hashed n-grams of a text: distinct buckets (k,) int64, ascending, and their values (k,) float64.

    Word 1- and 2-grams and the 3- and 4-grams of each word's letters in lower case, and 1- to 3-grams of how
    words are written. A bucket (CRC-32 modulo `BUCKETS`) met c times has (1 + log c) / `_SCALE`. Values are not
    brought to norm 1: with that, 20 random words got 52 % of the flagged texts of `moderated-topics` past the
    classifier, without it 16 %. A text without a word or sign has k = 0.
    """
    counts = Counter(_buckets(text))
    index = np.array(sorted(counts), np.int64)
    return index, (1.0 + np.log(np.array([counts[i] for i in index], np.float64))) / _SCALE


@dataclass(frozen=True)
class EmbeddedClassifier:
    """One logistic regression a category on `features`.

    weights: (categories, BUCKETS) float64. bias: (categories,) float64. A text is flagged if a score is above
    `threshold`. About 0.5 ms a text of 20 words on one core.
    """

    categories: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray
    threshold: float
    sha256: str
    ctx: Context
    role: str
    kind: TargetKind = "text-classifier"

    @classmethod
    def load(cls, ctx: Context, role: str = "target") -> EmbeddedClassifier:
        """The classifier that ships with the package.

        Raises:
            DataError: its files are missing or were changed.
        """
        card = read_card()
        data = read_checked(EMBEDDED_DIR / WEIGHTS, card["sha256"])
        with np.load(io.BytesIO(data), allow_pickle=False) as npz:
            weights, bias = npz["weights"].astype(np.float64), npz["bias"]
        if weights.shape != (len(card["categories"]), BUCKETS) or bias.shape != weights.shape[:1]:
            raise DataError(f"embedded weights have shape {weights.shape}; reinstall redteam")
        return cls(tuple(card["categories"]), weights, bias, card["threshold"], card["sha256"], ctx, role)

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each text; the ledger counts words as tokens.

        Raises:
            LimitReachedError: a cap of the ledger would be passed; nothing is asked.
        """
        if not texts:
            return []
        self.ctx.limits.check_time()
        self.ctx.ledger.count(
            model="embedded:", role=self.role, queries=len(texts), tokens_in=words_in(texts), tokens_out=0
        )
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        index, value = features(text)
        logits = self.weights[:, index] @ value + self.bias
        scores = 1.0 / (1.0 + np.exp(-logits))
        return Verdict(scores=scores, flagged=bool((scores > self.threshold).any()))

    def fingerprint(self) -> dict[str, Any]:
        """Digest of the weights, threshold and categories."""
        return {
            "backend": "embedded", "sha256": self.sha256, "threshold": self.threshold,
            "categories": list(self.categories), "features": "crc32-ngrams-1",
        }  # fmt: skip
