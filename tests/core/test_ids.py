"""Ids are for ever: the cells of a plan have the ids that they had before the house was rebuilt."""

from pathlib import Path

from redteam.core.device import Device
from redteam.core.plan import plan, read_plan
from redteam.core.threat import DataSource

GOLDEN = Path(__file__).parent / "golden"


def test_cells_of_every_threat_keep_their_ids():
    jobs = [job for r in read_plan(GOLDEN / "cells.toml") for job in plan(r, DataSource(), Device("cpu"))]
    found = [f"{job.cell.id} {job.cell.attack.name}" for job in jobs]
    assert found == (GOLDEN / "ids.txt").read_text().splitlines()
    assert len({(job.cell.threat, job.cell.task.target) for job in jobs}) == 6
