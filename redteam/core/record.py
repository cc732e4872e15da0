"""Record v1: one frozen, versioned JSON document per cell.

The schema is a contract: fields are added, never renamed. `redteam/schema/record-v1.json` is its
published JSON Schema, made from these models.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

import redteam
from redteam.core.errors import RecordError
from redteam.core.hashing import digest_json
from redteam.core.stats import Estimate

SCHEMA_VERSION = "1"
PACKAGES = (
    "torch", "torchvision", "numpy", "pandas", "scipy", "scikit-learn", "pyarrow", "pydantic", "click", "transformers",
    "openai", "xllamacpp",
)  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _OfFile(_Frozen):
    """A plug-in. sha256: of the file it was read from; absent for an installed one."""

    sha256: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = inner(self)
        return content if self.sha256 is not None else {k: v for k, v in content.items() if k != "sha256"}


class Plugin(_OfFile):
    """An attack as it ran. sha256: of the file it was read from; absent for an installed one."""

    name: str
    version: str
    config: dict[str, Any]
    digest: str


class DefensePlugin(_OfFile):
    """A defence as it ran. oracle: what it was told that a defender would not know. sha256: as of `Plugin`."""

    name: str
    version: str
    config: dict[str, Any]
    oracle: tuple[str, ...] = ()


class TaskInfo(_Frozen):
    """What was attacked: data set (by content), target plug-in and its version, model, and its config."""

    dataset: str
    digest: str
    target: str
    version: str = "1"
    model: str
    config: dict[str, Any]


class Cell(_Frozen):
    """One (task, attack, defences, knowledge, seed). Its hash is the record id."""

    threat: str
    knowledge: Literal["adaptive", "oblivious"]
    seed: int
    task: TaskInfo
    attack: Plugin
    defenses: tuple[DefensePlugin, ...] = ()

    @property
    def id(self) -> str:
        """The first 16 hex digits of the sha256 of the cell's canonical JSON."""
        return digest_json(self.model_dump(mode="json"))[:16]


class Metric(_Frozen):
    """A number with its interval. low and high are null only with a reason in `method`."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    confidence: float | None
    method: str
    seeds: int
    group: str | None = None

    @classmethod
    def of(cls, name: str, e: Estimate, group: str | None = None) -> Metric:
        """A metric from an estimate."""
        return cls(
            name=name, value=e.value, low=e.low, high=e.high, n=e.n, seeds=e.seeds, method=e.method,
            confidence=e.confidence if e.low is not None else None, group=group,
        )  # fmt: skip

    @model_validator(mode="after")
    def _ordered(self) -> Metric:
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"{self.name}: expected low <= value <= high")
        return self


class PublishedNumber(_Frozen):
    """A number from a paper, beside ours. value is null where nobody could check it."""

    metric: str
    value: float | None
    source: str
    where: str


class Cost(_Frozen):
    """What the run took. stages: seconds of wall clock, also for stages that were read back.

    queries, tokens_in, tokens_out: prompts put to the target and their tokens, by attack and scorer.
    requests: calls of any model. other_queries: prompts put to proxies and defences. usd: all of them.
    """

    wall_s: float
    cpu_s: float
    stages: dict[str, float] = Field(default_factory=dict)
    peak_rss_bytes: int | None = None
    device_peak_bytes: int | None = None
    queries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    requests: int = 0
    other_queries: int = 0


class Environment(_Frozen):
    """Where the run happened."""

    suite: str
    git_commit: str | None
    dirty: bool | None
    python: str
    packages: dict[str, str]
    os: str
    cpu: str
    device: str


class FileRef(_Frozen):
    """An artifact file, relative to the record's folder."""

    path: str
    kind: str
    sha256: str


class Evidence(_Frozen):
    """A table of per-example outcomes, relative to the record's folder."""

    path: str
    rows: int
    sha256: str


class ErrorInfo(_Frozen):
    """Why a run has no metrics."""

    type: str
    message: str


class Record(_Frozen):
    """One cell's outcome."""

    schema_version: Literal["1"] = "1"
    id: str
    status: Literal["ok", "error", "timeout", "unscored"]
    role: Literal["attack", "control", "baseline", "audit"]
    source: Literal["measured", "reported", "external"]
    cell: Cell
    metrics: tuple[Metric, ...] = ()
    published: tuple[PublishedNumber, ...] = ()
    flags: tuple[str, ...] = ()
    cost: Cost
    environment: Environment
    artifact: FileRef | None = None
    evidence: tuple[Evidence, ...] = ()
    created: datetime
    error: ErrorInfo | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.id != self.cell.id:
            raise ValueError(f"expected id {self.cell.id}, the hash of the cell, got {self.id}")
        if (self.status == "ok") != (self.error is None):
            raise ValueError("expected an error if and only if the status is not ok")
        return self

    def metric(self, name: str, group: str | None = None) -> Metric | None:
        """The metric of that name and group, if it was measured."""
        return next((m for m in self.metrics if m.name == name and m.group == group), None)

    def to_json(self, indent: int | None = None) -> str:
        """The document as JSON text."""
        return self.model_dump_json(indent=indent)


def parse(text: str, where: str = "record") -> Record:
    """Read a record.

    Raises:
        RecordError: not JSON, of a newer schema, or not valid; it says which field and why.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where} is not JSON: {error}") from None
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise RecordError(
            f"{where} has schema version {found!r}; this redteam {redteam.__version__} reads "
            f"version '{SCHEMA_VERSION}'. Install the redteam that wrote it, or a newer one"
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "record"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise RecordError(f"{where} does not validate: {place}: {first['msg']}{more}") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of Record v1 (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}


def now() -> datetime:
    """The present, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the checkout this code runs from; nothing for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout

    try:
        return ask("rev-parse", "HEAD").strip(), bool(ask("status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} x{os.cpu_count()}"
    return f"{platform.processor() or platform.machine()} x{os.cpu_count()}"


@cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment(device: str) -> Environment:
    """Capture code, packages and hardware."""
    commit, dirty = _git()
    return Environment(
        suite=redteam.__version__, git_commit=commit, dirty=dirty, python=platform.python_version(),
        packages=_packages(), os=f"{platform.system()} {platform.release()}", cpu=_cpu_name(),
        device=_device_name(device),
    )  # fmt: skip


def _device_name(device: str) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return device
