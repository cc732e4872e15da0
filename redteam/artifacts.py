"""What an attack hands to the scorer, saved as `.npz` without pickle and read back with its digest.

A trigger is numbers plus a pure function that knows them (`redteam.triggers`), never a closure.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.dialogue import Question, Script, Session
from redteam.errors import ArtifactError
from redteam.files import atomic_path
from redteam.hashing import canonical_json, digest_arrays, digest_file, digest_json

_META = "meta.json"
# Everything that zipfile, zlib and numpy raise on damaged bytes; RuntimeError: unknown compression.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError,
)  # fmt: skip


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    """Write arrays and JSON metadata into one compressed `.npz`. Returns the file's sha256.

    The bytes depend on the content alone: same arrays, same file.
    """
    packed = {_META: np.frombuffer(canonical_json(dict(meta)).encode(), dtype=np.uint8)}
    with atomic_path(path) as partial:
        with partial.open("wb") as f:
            np.savez_compressed(f, allow_pickle=False, **packed, **{k: arrays[k] for k in sorted(arrays)})
        digest = digest_file(partial)
    return digest


def load_arrays(path: Path, sha256: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote.

    Raises:
        ArtifactError: the file is missing, truncated, holds pickles, or its digest is not `sha256`.
    """
    if not path.is_file():
        raise ArtifactError(f"no artifact at {path}; run the attack again to make it")
    if sha256 is not None and (came := digest_file(path)) != sha256:
        raise ArtifactError(
            f"{path} was changed or truncated: expected sha256 {sha256[:16]}..., got {came[:16]}...; "
            "restore the file, or delete its run folder and run the attack again"
        )
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except _UNREADABLE as error:
        raise ArtifactError(f"{path} is not a readable artifact ({error}); run the attack again") from error
    return arrays, meta


@dataclass(frozen=True)
class Poison:
    """Poisoned training data and the trigger that is to open the backdoor.

    targets: (n,) int64 labels or (n, K) float32 soft labels, for all n training rows.
    indices, images: rows whose pixels were changed, (m,) int64 and (m, H, W, C) uint8.
    trigger: `{"name": ..., **numbers}` for `redteam.triggers.apply`.
    source_class: -1 means every class but the target.
    budget: the largest number of rows the attack was allowed to change.
    """

    kind: ClassVar[str] = "poison"

    targets: np.ndarray
    trigger: Mapping[str, Any]
    source_class: int
    target_class: int
    budget: int
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    images: np.ndarray | None = None

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        arrays = {"targets": self.targets, "indices": self.indices}
        if self.images is not None:
            arrays["images"] = self.images
        meta = {
            "kind": self.kind,
            "trigger": dict(self.trigger),
            "source_class": self.source_class,
            "target_class": self.target_class,
            "budget": self.budget,
        }
        return save_arrays(path, arrays, meta)

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Poison:
        """From what `save` wrote."""
        return cls(**meta, **arrays)


@dataclass(frozen=True)
class Strings:
    """Adversarial prompts, one for each of n strings that a language model is to say exactly.

    ids, targets: the strings, in the data set's order. prompts: what to send. initial: what the search
    began with. finish: how the search of each ended (`redteam.language.Finish`; `stop`: it ran its course).
    lengths: (n,) int64, tokens of each target. found: (n,) bool, whether the search itself saw the exact
    string. queries, tokens: (n,) int64 and usd: (n,) float64, what the search of each spent on the target;
    `*_at`: what it had spent when it first saw the string, -1 if never. proxy_queries: (n,) int64.
    loss: (n,) float64, -log P(target | prompt) in nats, NaN where no exact value is known; a lower bound
    never stands here. trace: table of improvements of the best exact loss: string (row of n), queries,
    tokens, usd, loss; (k,) each. notes: what the search has to say of itself, as plain JSON values.
    """

    kind: ClassVar[str] = "strings"

    ids: tuple[str, ...]
    targets: tuple[str, ...]
    prompts: tuple[str, ...]
    initial: tuple[str, ...]
    finish: tuple[str, ...]
    lengths: np.ndarray
    found: np.ndarray
    queries: np.ndarray
    tokens: np.ndarray
    usd: np.ndarray
    queries_at: np.ndarray
    tokens_at: np.ndarray
    usd_at: np.ndarray
    proxy_queries: np.ndarray
    loss: np.ndarray
    trace: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _STRING_TEXTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_sizes(self, (*_STRING_TEXTS, *_STRING_ARRAYS))

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        arrays = {name: getattr(self, name) for name in _STRING_ARRAYS}
        arrays |= {f"trace.{name}": column for name, column in self.trace.items()}
        meta = {name: list(getattr(self, name)) for name in _STRING_TEXTS}
        return save_arrays(path, arrays, {"kind": self.kind, "notes": dict(self.notes), **meta})

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Strings:
        """From what `save` wrote."""
        trace = {k.removeprefix("trace."): a for k, a in arrays.items() if k.startswith("trace.")}
        parts: dict[str, Any] = {k: a for k, a in arrays.items() if not k.startswith("trace.")}
        return cls(**meta, **parts, trace=trace)


_STRING_TEXTS = ("ids", "targets", "prompts", "initial", "finish")
_STRING_ARRAYS = (
    "lengths", "found", "queries", "tokens", "usd", "queries_at", "tokens_at", "usd_at", "proxy_queries", "loss",
)  # fmt: skip


@dataclass(frozen=True)
class Suffixes:
    """n texts with the suffixes that are to slip them past a moderation classifier.

    texts: as they were. sent: text and suffix. control: text and a random suffix of the same length.
    split: `train` or `validation` (texts that a universal suffix was not searched on). finish: how the
    search of each ended. queries: (n,) int64. score_before, score_after: (n,) float64, sums of category
    scores as the search saw them.
    """

    kind: ClassVar[str] = "suffixes"

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    sent: tuple[str, ...]
    control: tuple[str, ...]
    split: tuple[str, ...]
    finish: tuple[str, ...]
    queries: np.ndarray
    score_before: np.ndarray
    score_after: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _SUFFIX_TEXTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_sizes(self, (*_SUFFIX_TEXTS, *_SUFFIX_ARRAYS))

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        meta = {name: list(getattr(self, name)) for name in _SUFFIX_TEXTS}
        arrays = {name: getattr(self, name) for name in _SUFFIX_ARRAYS}
        return save_arrays(path, arrays, {"kind": self.kind, "notes": dict(self.notes), **meta})

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Suffixes:
        """From what `save` wrote."""
        return cls(**meta, **arrays)


def _check_sizes(artifact: Any, names: tuple[str, ...]) -> None:
    sizes = {name: len(getattr(artifact, name)) for name in names}
    if len(set(sizes.values())) != 1:
        raise ArtifactError(f"expected one entry an example in every part, got {sizes}")


_SUFFIX_TEXTS = ("ids", "texts", "sent", "control", "split", "finish")
_SUFFIX_ARRAYS = ("queries", "score_before", "score_after")


@dataclass(frozen=True)
class Scripts:
    """What a third party will say to an agent: a script for each of n questions, in the planned order.

    finish: how the making of each ended (`redteam.language.Finish`; `stop`: it ran its course). queries: (n,)
    int64, messages it put to the agent. notes: what the attack has to say of itself, as plain JSON values.
    """

    kind: ClassVar[str] = "scripts"

    scripts: tuple[Script, ...]
    finish: tuple[str, ...]
    queries: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scripts", tuple(self.scripts))
        object.__setattr__(self, "finish", tuple(self.finish))
        _check_sizes(self, ("scripts", "finish", "queries"))

    @property
    def ids(self) -> tuple[str, ...]:
        """The questions' ids."""
        return tuple(s.question.id for s in self.scripts)

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        scripts = [
            {"question": asdict(s.question), "sessions": [asdict(one) for one in s.sessions]}
            for s in self.scripts
        ]
        meta = {"kind": self.kind, "scripts": scripts, "finish": list(self.finish), "notes": dict(self.notes)}
        return save_arrays(path, {"queries": self.queries}, meta)

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Scripts:
        """From what `save` wrote."""
        scripts = tuple(
            Script(
                question=Question(**s["question"]),
                sessions=tuple(
                    Session(**{**one, "messages": tuple(one["messages"])}) for one in s["sessions"]
                ),
            )
            for s in meta["scripts"]
        )
        return cls(**{**meta, "scripts": scripts}, **arrays)


@dataclass(frozen=True)
class Clients:
    """Malicious clients of a federation: who they are, what their data say, and how they act.

    ids: (m,) int64, ascending. labels: (m, n) int64, what each gives for the n rows it holds. stamped: (m, n)
    bool, which of those wear the trigger. trigger, source_class, target_class: as in `Poison`. budget: the
    most clients the attack may hold. presence: `fixed` (the same share of every round) or `drawn` (clients are
    sampled blindly). conduct: numbers and words of `redteam.federated.conduct.Conduct`.
    """

    kind: ClassVar[str] = "clients"

    ids: np.ndarray
    labels: np.ndarray
    stamped: np.ndarray
    trigger: Mapping[str, Any]
    source_class: int
    target_class: int
    budget: int
    presence: str = "fixed"
    conduct: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_sizes(self, ("ids", "labels", "stamped"))
        if self.presence not in ("fixed", "drawn"):
            raise ArtifactError(f"presence: expected fixed or drawn, got {self.presence!r}")

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _CLIENT_ARRAYS}
        return digest_json([digest_arrays(arrays), self._meta()])

    def _meta(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "trigger": dict(self.trigger), "source_class": self.source_class,
            "target_class": self.target_class, "budget": self.budget, "presence": self.presence,
            "conduct": dict(self.conduct),
        }  # fmt: skip

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        return save_arrays(path, {name: getattr(self, name) for name in _CLIENT_ARRAYS}, self._meta())

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Clients:
        """From what `save` wrote."""
        return cls(**meta, **arrays)


_CLIENT_ARRAYS = ("ids", "labels", "stamped")

Artifact = Poison | Strings | Suffixes | Scripts | Clients
_KINDS: dict[str, Any] = {cls.kind: cls.of for cls in (Poison, Strings, Suffixes, Scripts, Clients)}


def load(path: Path, sha256: str | None = None) -> Artifact:
    """Read an artifact of any kind.

    Raises:
        ArtifactError: see `load_arrays`; also for an unknown kind or missing parts.
    """
    arrays, meta = load_arrays(path, sha256)
    kind = meta.pop("kind", None)
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise ArtifactError(f"{path} holds an artifact of kind {kind!r}; this version reads: {known}")
    try:
        artifact: Artifact = _KINDS[kind](meta, arrays)
        return artifact
    except TypeError as error:
        raise ArtifactError(f"{path} lacks or adds parts: {error}") from error
