"""The command line from within a test, and the records it leaves."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from jsonschema import Draft202012Validator

from redteam.cli import main
from redteam.core.device import Device
from redteam.core.plan import plan
from redteam.core.progress import NoProgress
from redteam.core.record import json_schema
from redteam.core.run import Settings, run_jobs
from redteam.core.stats import Estimate, across_cells
from redteam.core.threat import DataSource


def run(capsys, *words, code=0):
    """(stdout, stderr) of a command, after checking its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    out, err = capsys.readouterr()
    assert stop.value.code == code, err + out
    assert "Traceback" not in err
    return out, err


def quietly(*words):
    """What a command that succeeds prints on a wide terminal."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as wide,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        wide.setenv("COLUMNS", "200")
        main(list(map(str, words)))
    assert stop.value.code == 0, err.getvalue()
    return out.getvalue()


def records(store):
    """Every record of a store as it stands in its file; each follows the published schema."""
    found = [json.loads(p.read_text()) for p in sorted(store.glob("*/record.json"))]
    for record in found:
        Draft202012Validator(json_schema()).validate(record)
    return found


def metrics(record):
    """Ungrouped metrics by name."""
    return {m["name"]: m for m in record["metrics"] if m["group"] is None}


def finished(request, store):
    """Records of a request's cells, each of which ended well."""
    source, device = DataSource(), Device("cpu")
    jobs = plan(request, source, device)
    found = [r for _, r, _ in run_jobs(jobs, Settings(store, device, source), NoProgress())]
    assert all(r.status == "ok" for r in found), [r.error for r in found]
    return found


def pooled(found, name):
    """The mean of a metric over records of several seeds."""
    parts = [r.metric(name) for r in found]
    return across_cells([Estimate(m.value, m.low, m.high, m.n, m.seeds, m.method) for m in parts])
