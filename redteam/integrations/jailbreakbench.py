"""Adversarial strings as a JailbreakBench artifact: one JSON file of prompts, answers and verdicts.

The fields are those of `AttackArtifact` in the wheel `jailbreakbench` 1.0.0 (`artifact.py`, `config.py`
and `submission.py` were read, and a stored artifact of its repository). Three things differ, because
this suite's runs are other than that tool's:

- `model` is free text here; that tool's own reader takes four models alone.
- `jailbroken` is this suite's verdict, the exact string in most fresh completions, not an LLM judge's;
  so `goal` is the string, `behavior` its id and `category` the data set.
- tokens of prompts and answers are null, for a search counts them together; their sum over the
  search is in `method_parameters`. `number_of_queries` and `queries_to_jailbreak` are the search's.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from redteam.core.errors import ArtifactError, DataError, RecordError
from redteam.core.hashing import canonical_json
from redteam.core.record import Record
from redteam.core.store import read_run
from redteam.core.threat import of_artifact
from redteam.llm.language import ANSWERED

STRINGS = "strings"  # the kind of artifact that this format is for
AttackType = Literal["white_box", "black_box", "transfer", "manual"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Jailbreak(_Frozen):
    """One string. Counts are null where nobody counted."""

    index: int
    goal: str
    behavior: str
    category: str
    prompt: str | None
    response: str | None
    number_of_queries: int | None
    queries_to_jailbreak: int | None
    prompt_tokens: int | None
    response_tokens: int | None
    jailbroken: bool


class Parameters(_Frozen):
    """What was attacked, how, and what came out. attack_success_rate: over all strings of the run."""

    method: str
    model: str
    attack_type: AttackType
    defense: str | None
    attack_success_rate: float = Field(ge=0, le=1)
    total_number_of_jailbreaks: int
    number_of_submitted_prompts: int
    total_number_of_queries: int | None
    total_prompt_tokens: int | None
    total_response_tokens: int | None
    evaluation_date: datetime.date
    evaluation_llm_provider: str
    method_parameters: dict[str, str | int | float]


class JailbreakArtifact(_Frozen):
    """One attack on one model."""

    parameters: Parameters
    jailbreaks: tuple[Jailbreak, ...]

    @model_validator(mode="after")
    def _consistent(self) -> JailbreakArtifact:
        hits = sum(j.jailbroken for j in self.jailbreaks)
        if hits != self.parameters.total_number_of_jailbreaks:
            raise ValueError(f"expected total_number_of_jailbreaks {hits}, as the list has it")
        return self


def of_run(run: Path, attack_type: AttackType = "black_box") -> JailbreakArtifact:
    """The artifact of the run in folder `run`.

    attack_type: the benchmark's word for the access, which a record does not hold.

    Raises:
        RecordError: the record does not validate, or its run was not scored.
        ArtifactError: a file is missing or was changed.
        DataError: the run is none of adversarial strings.
    """
    record, artifact, tables = read_run(run)
    if artifact.kind != STRINGS:
        raise DataError(f"expected a run that made adversarial strings, got one that made {artifact.kind}")
    if record.status != "ok":
        raise RecordError(f"the run in {run} has status {record.status}: only scored runs can be exported")
    if "outcomes" not in tables or "search" not in tables:
        raise ArtifactError(f"{run} lacks its evidence; run the attack again")
    return of_tables(record, artifact, tables["outcomes"], attack_type)


def of_tables(
    record: Record, artifact: Any, outcomes: pd.DataFrame, attack_type: AttackType
) -> JailbreakArtifact:
    """The artifact of a run that was read. outcomes: see `redteam.threats.strings.metrics`."""
    offers = of_artifact(STRINGS, "a JailbreakBench artifact").offers
    outcomes = offers.judged(outcomes)
    search = pd.DataFrame({"id": artifact.ids, "finish": artifact.finish})
    scored = offers.answers(outcomes, search)
    won = dict(zip(scored.ids, scored.success.tolist(), strict=True))
    said = _responses(outcomes, won)
    jailbreaks = tuple(
        Jailbreak(
            index=i, goal=artifact.targets[i], behavior=name, category=record.cell.task.dataset,
            prompt=artifact.prompts[i], response=said[name], number_of_queries=int(artifact.queries[i]),
            queries_to_jailbreak=int(artifact.queries_at[i]) if won[name] and artifact.found[i] else None,
            prompt_tokens=None, response_tokens=None, jailbroken=won[name],
        )
        for i, name in enumerate(artifact.ids)
    )  # fmt: skip
    return JailbreakArtifact(
        parameters=_parameters(record, artifact, sum(won.values()), attack_type), jailbreaks=jailbreaks
    )


def _responses(outcomes: pd.DataFrame, won: Mapping[str, bool]) -> dict[str, str | None]:
    """For each string the first fresh answer that agrees with the verdict; null if none came."""
    attack = outcomes[outcomes["arm"] == "attack"].sort_values("sample", kind="stable")
    said: dict[str, str | None] = dict.fromkeys(won)
    columns = (attack[c].tolist() for c in ("id", "text", "finish", "exact"))
    for name, text, finish, exact in zip(*columns, strict=True):
        if said[name] is None and finish in ANSWERED and exact == won[name]:
            said[name] = text
    return said


def _parameters(record: Record, artifact: Any, hits: int, attack_type: AttackType) -> Parameters:
    cell, n = record.cell, len(artifact.ids)
    settings = {k: _plain(v) for k, v in cell.attack.config.items()}
    return Parameters(
        method=cell.attack.name, model=cell.task.model, attack_type=attack_type,
        defense="+".join(d.name for d in cell.defenses) or None, attack_success_rate=hits / n,
        total_number_of_jailbreaks=hits, number_of_submitted_prompts=n,
        total_number_of_queries=int(artifact.queries.sum()), total_prompt_tokens=None,
        total_response_tokens=None, evaluation_date=record.created.date(),
        evaluation_llm_provider=cell.task.model.partition(":")[0],
        method_parameters={
            **settings, "redteam_record": record.id, "redteam_version": record.environment.suite,
            "redteam_search_tokens": int(artifact.tokens.sum()),
        },
    )  # fmt: skip


def _plain(value: Any) -> str | int | float:
    """A setting as the benchmark's flat table takes it: a number or text."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return canonical_json(value)


def to_json(artifact: JailbreakArtifact) -> str:
    """The file's text."""
    return json.dumps(artifact.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def parse(text: str, where: str = "artifact") -> JailbreakArtifact:
    """Read what `to_json` wrote, or an artifact of the benchmark itself; keys unknown here are left out.

    Raises:
        ArtifactError: not JSON, or a field is missing or does not fit; it says which.
    """
    try:
        return JailbreakArtifact.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{where} is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "artifact"
        raise ArtifactError(f"{where} is no JailbreakBench artifact: {place}: {first['msg']}") from None
