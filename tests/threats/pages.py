"""What the tests of all rooms' pages share: reading a page, and run folders with their evidence."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from redteam.core.errors import ArtifactError, RecordError
from redteam.core.hashing import digest_file
from redteam.core.record import ErrorInfo, Evidence, FileRef, Metric, Record
from redteam.report.words import bounds, fraction

Render = Callable[..., str]


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|svg).*?</\1>", "", page[page.index("<body>") :], flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def decoded(page: str) -> list[np.ndarray]:
    """Every picture of the page as (H, W) or (H, W, 3) uint8, in order."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(f)))) for f in found]


def assert_whole(page: str) -> None:
    """The page loads and runs nothing, its ids are unique, its references lead somewhere, its colours are defined."""
    assert "<script" not in page and "@import" not in page and "<link" not in page and "{%" not in page
    for address in re.findall(r'(?:src|href|action)="([^"]*)"|url\(([^)]*)\)', page):
        assert re.match(r"data:image/png;base64,|#", "".join(address)), address
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert "#fe01" not in page and "#fe02" not in page
    used = {int(i) for i in re.findall(r"var\(--series-(\d+)\)", page)}
    assert used <= {int(i) for i in re.findall(r"--series-(\d+):", page)}


def assert_metrics(
    record: Record, page: str, definitions: Mapping[str, str], *, victims: bool, groups: bool = True
) -> None:
    """Every metric stands in the table with its interval and what it means, and nothing is in percent."""
    seen = text_of(page)
    assert record.metrics and record.id in page and "%" not in seen
    for m in record.metrics:
        if m.group is None:
            counts = f"{m.n} {m.seeds}" if victims else f"{m.n}"
            assert f"{m.name} {fraction(m.value)} {bounds(m.low, m.high)} {counts} {m.method}" in seen
            assert definitions[m.name] in seen
        elif groups:
            assert f"{fraction(m.value)} {bounds(m.low, m.high)}" in seen, (m.name, m.group)


def assert_refuses(render: Render, folder: Path, names: Sequence[str]) -> None:
    """Each of the files is refused when changed and when missing, and so is a run that was not scored."""
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=f"{name} was changed"):
            render(folder, [], None)
        path.unlink()
        with pytest.raises(ArtifactError, match=f"no (artifact|evidence) at .*{name}"):
            render(folder, [], None)
        path.write_bytes(whole)
    record = Record.model_validate_json((folder / "record.json").read_text())
    lost = record.model_copy(update={"evidence": ()})
    (folder / "record.json").write_text(lost.to_json())
    with pytest.raises(ArtifactError, match="lacks the evidence"):
        render(folder, [], None)
    error = ErrorInfo(type="LimitReachedError", message="late")
    failed = record.model_copy(update={"status": "timeout", "error": error, "metrics": ()})
    (folder / "record.json").write_text(failed.to_json())
    with pytest.raises(RecordError, match="status timeout"):
        render(folder, [], None)


def save_run(
    folder: Path, record: Record, artifact: Any, tables: Mapping[str, pd.DataFrame], scored: Any, **fields: Any
) -> Record:  # fmt: skip
    """A finished run in `folder`: the record with the metrics of `scored` and refs to the files."""
    folder.mkdir(parents=True)
    evidence = []
    for name, table in tables.items():
        table.to_parquet(path := folder / f"{name}.parquet", index=False)
        evidence.append(Evidence(path=path.name, rows=len(table), sha256=digest_file(path)))
    metrics = [Metric.of(k, e) for k, e in scored.metrics.items()]
    metrics += [Metric.of(k, e, group) for (k, group), e in scored.grouped.items()]
    sha256 = artifact.save(folder / "artifact.npz")
    made = record.model_copy(update={
        "artifact": FileRef(path="artifact.npz", kind=artifact.kind, sha256=sha256), "evidence": tuple(evidence),
        "metrics": tuple(metrics), "flags": scored.flags, **fields,
    })  # fmt: skip
    (folder / "record.json").write_text(made.to_json(indent=2))
    return made
