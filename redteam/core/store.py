"""Runs on disk: one folder per cell, named by its id, written whole.

STORE/<id>/record.json  cell.json  artifact.npz  outcomes.parquet and other tables  spend.sqlite  unfinished/
STORE/stages/           finished stages, shared by the cells
STORE/answers.sqlite    answers of remote models
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from redteam.core.artifacts import load
from redteam.core.context import UNFINISHED
from redteam.core.errors import ArtifactError, InputError, RecordError, StorageError
from redteam.core.files import atomic_path, write_text
from redteam.core.hashing import digest_file
from redteam.core.record import Cell, Evidence, FileRef, Metric, Record, parse
from redteam.core.types import Artifact

CELL = "cell.json"
RESCORED = "rescored"  # flag of records whose metrics are of a later version than their run


class Store:
    """A folder of runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def stages(self) -> Path:
        """Where finished stages lie."""
        return self.root / "stages"

    @property
    def answers(self) -> Path:
        """Where answers of remote models are kept."""
        return self.root / "answers.sqlite"

    def spend(self, cell_id: str) -> Path:
        """The ledger of a cell: what its models were asked, over all attempts at it."""
        return self.folder(cell_id) / "spend.sqlite"

    def check_writable(self) -> None:
        """Raise `StorageError` before any work if nothing can be written here."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the run folder {self.root}: {error.strerror}") from None
        if not os.access(self.root, os.W_OK):
            raise StorageError(f"no permission to write {self.root}; choose another folder with --store")

    def folder(self, cell_id: str) -> Path:
        """Where a cell's files go."""
        return self.root / cell_id

    def save_artifact(self, cell_id: str, artifact: Artifact) -> FileRef:
        """Write the artifact of a cell."""
        path = self.folder(cell_id) / "artifact.npz"
        return FileRef(path=path.name, kind=artifact.kind, sha256=artifact.save(path))

    def save_evidence(self, cell_id: str, tables: Mapping[str, pd.DataFrame]) -> tuple[Evidence, ...]:
        """Write per-example tables as Parquet."""
        refs = []
        for name in sorted(tables):
            path = self.folder(cell_id) / f"{name}.parquet"
            with atomic_path(path) as partial:
                tables[name].to_parquet(partial, index=False, compression="zstd")
            refs.append(Evidence(path=path.name, rows=len(tables[name]), sha256=digest_file(path)))
        return tuple(refs)

    def save_record(self, record: Record) -> Path:
        """Write the record last: a folder without one is an unfinished run."""
        path = self.folder(record.id) / "record.json"
        write_text(path, record.to_json(indent=2) + "\n")
        return path

    def update(
        self,
        record: Record,
        tables: Mapping[str, pd.DataFrame],
        metrics: Sequence[Metric],
        flags: Sequence[str],
    ) -> Path:
        """Write a run's record anew with metrics that a later version computed from its evidence.

        The old record is kept beside it; its path is returned. What ran, when, where and at what cost stays as it was.
        """
        if record.status != "ok":
            raise RecordError(
                f"the run {record.id} has status {record.status}: there is nothing to score again"
            )
        folder = self.folder(record.id)
        taken = len(list(folder.glob("record.*.json")))
        kept = folder / f"record.{taken + 1}.json"
        shutil.copyfile(folder / "record.json", kept)
        evidence = self.save_evidence(record.id, tables)
        marked = tuple(dict.fromkeys((*flags, RESCORED)))
        changed = {"metrics": tuple(metrics), "flags": marked, "evidence": evidence}
        self.save_record(record.model_copy(update=changed))
        return kept

    def discard(self, cell_id: str) -> None:
        """Remove what an unfinished run left, but not what it spent nor the state of its search."""
        folder = self.folder(cell_id)
        for path in folder.glob("*"):
            if path.is_file() and not path.name.startswith("spend."):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def forget_unfinished(self, cell_id: str) -> None:
        """Remove the state of a search that has come to its end."""
        shutil.rmtree(self.folder(cell_id) / UNFINISHED, ignore_errors=True)

    def start_afresh(self, cell_id: str) -> None:
        """Forget an unfinished search; what was spent on it stays, under another name."""
        self.forget_unfinished(cell_id)
        old = self.spend(cell_id)
        if old.is_file():
            taken = len(list(old.parent.glob("spend.*.sqlite")))
            for path in old.parent.glob("spend.sqlite*"):
                path.rename(path.with_name(path.name.replace("spend.", f"spend.{taken + 1}.", 1)))

    def begin(self, cell: Cell) -> None:
        """Say in the run's folder what is being run, so that an unfinished run can be told from another."""
        write_text(self.folder(cell.id) / CELL, cell.model_dump_json(indent=2) + "\n")

    def begun(self, run: str) -> Cell:
        """The cell of a run, finished or not, by the start of its id.

        Raises:
            InputError: none or several.
        """
        found = [p for p in self.root.glob(f"*/{CELL}") if run and p.parent.name.startswith(run)]
        if len(found) != 1:
            many = f"{len(found)} runs start so" if found else "there is no such run"
            raise InputError(f"expected the start of a run's id in {self.root}, got '{run}': {many}")
        return Cell.model_validate_json(found[0].read_text())

    def find(self, cell_id: str) -> Record | None:
        """The record of a finished cell."""
        path = self.folder(cell_id) / "record.json"
        return read_record(path) if path.is_file() else None

    def records(self) -> Iterator[Record]:
        """Every record in the store, by id."""
        for path in sorted(self.root.glob("*/record.json")):
            yield read_record(path)

    def locate(self, run: str) -> Path:
        """The run folder that a path, an id or the start of an id names.

        Raises:
            InputError: none or several.
        """
        for path in (Path(run), Path(run).parent):
            if (path / "record.json").is_file() and (path == Path(run) or Path(run).name == "record.json"):
                return path
        found = [p.parent for p in self.root.glob("*/record.json") if run and p.parent.name.startswith(run)]
        if len(found) != 1:
            many = f"{len(found)} runs start so" if found else "there is no such run"
            raise InputError(
                f"expected a run folder or the start of a run's id in {self.root}, got '{run}': {many}"
            )
        return found[0]


def read_record(path: Path) -> Record:
    """Read one record file.

    Raises:
        RecordError: unreadable or invalid.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from None
    return parse(text, str(path))


def read_run(folder: Path) -> tuple[Record, Artifact, dict[str, pd.DataFrame]]:
    """A run's record, artifact and evidence, each checked against its digest.

    Raises:
        RecordError, ArtifactError: something is missing, was changed, or does not validate.
    """
    record = read_record(folder / "record.json")
    if record.artifact is None:
        raise ArtifactError(f"the run in {folder} has no artifact: {record.error and record.error.message}")
    artifact = load(folder / record.artifact.path, record.artifact.sha256)
    tables = {}
    for ref in record.evidence:
        path = folder / ref.path
        if not path.is_file():
            raise ArtifactError(f"no evidence at {path}; run the attack again to make it")
        if (came := digest_file(path)) != ref.sha256:
            raise ArtifactError(
                f"{path} was changed or truncated: expected sha256 {ref.sha256[:16]}..., got {came[:16]}...; "
                "restore it, or delete its run folder and run the attack again"
            )
        tables[path.stem] = pd.read_parquet(path)
    return record, artifact, tables
