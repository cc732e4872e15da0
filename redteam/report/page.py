"""One HTML page about a run: a room says what is its own in a `Layout` and a template that extends the base.

`read` checks a run's files and its data set; `render` adds what every page shows: headline, flags, metrics,
published numbers, cost, the reproducing command, settings and environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from redteam.core.errors import ArtifactError, DataError, RecordError
from redteam.core.record import Record
from redteam.core.store import read_run
from redteam.report import figures, words

A = TypeVar("A")
_SHARED = Path(__file__).parent


class Render(Protocol):
    """What every room's `report` package gives as `render`: the page of a run as HTML that loads nothing.

    Args:
        run: the run's folder.
        siblings: other records of the store; the room says which of them stand beside the run.
        dataset: the data set of the run, to show its examples and the names of its classes, or None.
        flags: the explanation of each flag id; those without one refer to the documentation.

    Raises:
        RecordError, ArtifactError, DataError: see `read`.
    """

    def __call__(
        self, run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
    ) -> str: ...  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout(Generic[A]):
    """What one room's page is made of.

    Args:
        template: the room's Jinja template, which extends `base.html.j2`.
        artifact: class of the artifacts that the page is about.
        tables: names of the evidence tables it cannot do without.
        subject: title of the target's settings, such as `Victim`.
        headline: metrics shown large, in order, where the record has them.
        definitions: each metric of the threat in one sentence.
        victims: whether an estimate is over several trained victims, whose number stands beside n.
        grouped: whether the table of metrics holds those of groups too.
        notes: title of what the artifact says of itself.
        pinned: settings of the target that pin its data or model and are no option of a command.
    """

    template: Path
    artifact: type[A]
    tables: tuple[str, ...]
    subject: str
    headline: tuple[str, ...]
    definitions: Mapping[str, str]
    victims: bool = True
    grouped: bool = False
    notes: str = "What the attack says of itself"
    pinned: tuple[str, ...] = ()


def read(
    layout: Layout[A], run: Path, dataset: Any | None = None
) -> tuple[Record, A, dict[str, pd.DataFrame]]:
    """The record, artifact and evidence of the run in folder `run`, by name of the table.

    Raises:
        RecordError: the record does not validate, or its run was not scored.
        ArtifactError: a file is missing or was changed, or the run is not one that this page is about.
        DataError: `dataset` is not the one that was attacked.
    """
    record, artifact, tables = read_run(run)
    if not isinstance(artifact, layout.artifact):
        wanted = getattr(layout.artifact, "kind", layout.artifact.__name__)
        raise ArtifactError(f"expected a run that made {wanted}, got one that made {artifact.kind}")
    if record.status != "ok":
        raise RecordError(
            f"the run in {run} has status {record.status}: a report needs a run that was scored"
        )
    if missing := set(layout.tables) - set(tables):
        raise ArtifactError(f"{run} lacks the evidence {', '.join(sorted(missing))}; run the attack again")
    if dataset is not None and dataset.digest != record.cell.task.digest:
        raise DataError(
            f"'{dataset.name}' is not the data of this run: expected content digest "
            f"{record.cell.task.digest[:16]}..., got {dataset.digest[:16]}...; give the right one, or none"
        )
    return record, artifact, tables


def render(
    layout: Layout[Any], record: Record, *, title: str, summary: Sequence[str], behind: str | None = None,
    flags: Mapping[str, str] | None = None, notes: Mapping[str, Any] | None = None, left_out: int = 0, **sections: Any,
) -> str:  # fmt: skip
    """The page as HTML that loads nothing.

    Args:
        title: heading of the page.
        summary: paragraphs under the headline.
        behind: the defences in words; by default their names.
        flags: the explanation of each flag id; those without one refer to the documentation.
        notes: what the artifact says of itself, shown among the settings.
        left_out: how many records beside the run are shown nowhere.
        sections: what the room's own template needs.
    """
    html = _environment(layout.template.parent).get_template(layout.template.name).render(
        record=record, title=title, summary=summary, behind=behind or words.behind(record), left_out=left_out,
        headline=[m for name in layout.headline if (m := record.metric(name)) is not None],
        metrics=[m for m in record.metrics if layout.grouped or m.group is None],
        definitions=layout.definitions, victims=layout.victims,
        flags=[(flag, (flags or {}).get(flag)) for flag in record.flags],
        command=words.command(record, layout.pinned),
        **_provenance(layout, record, notes or {}), **sections,
    )  # fmt: skip
    return html + "\n"


def left_out(siblings: Sequence[Record], *shown: Sequence[Record]) -> int:
    """How many of the siblings are among none of the records `shown`."""
    return len({s.id for s in siblings} - {r.id for records in shown for r in records})


def _environment(folder: Path) -> Environment:
    """Jinja over the templates of a room and the shared ones; undefined names raise."""
    out = Environment(
        loader=FileSystemLoader([folder, _SHARED]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    out.filters |= {"interval": words.with_interval, "fraction": words.fraction, "visible": words.visible}
    out.globals |= {
        "bounds": words.bounds, "count": words.count, "settings": words.settings, "glyph": figures.glyph,
        "colour": figures.colour,
    }  # fmt: skip
    return out


def _provenance(layout: Layout[Any], record: Record, notes: Mapping[str, Any]) -> dict[str, Any]:
    cell, cost, env = record.cell, record.cost, record.environment
    longest = max([*cost.stages.values(), 1e-9])
    configs: list[tuple[str, Mapping[str, Any]]] = [
        (layout.subject, {**cell.task.config, "model": cell.task.model}), ("Attack", cell.attack.config),
        *((f"Defence {d.name}", d.config) for d in cell.defenses), *([(layout.notes, notes)] if notes else []),
    ]  # fmt: skip
    commit = f"{env.git_commit or 'not recorded'}" + (" with uncommitted changes" if env.dirty else "")
    return {
        "published": [(p, record.metric(p.metric)) for p in record.published],
        "stages": [(s, seconds, seconds / longest) for s, seconds in cost.stages.items()],
        "configs": [(name, words.settings(config)) for name, config in configs],
        "environment": [
            ("suite", env.suite), ("commit", commit), ("python", env.python), ("system", env.os),
            ("cpu", env.cpu), ("device", env.device), *sorted(env.packages.items()),
        ],
    }  # fmt: skip
