"""Whether two stores hold the same results: `python -m scripts.compare_stores OLD NEW`.

For a change that must change nothing: run the cells of `leaderboards/plans/smoke.toml` with the code before and after,
each into a store of its own, on one machine. Compared are all fields of a record that say what ran and what came out,
and with them the sha256 of every artifact and every table of evidence. Exit code 1 if any differs or is missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FIELDS = ("id", "status", "role", "cell", "metrics", "published", "flags", "artifact", "evidence", "error")


def main(old: Path, new: Path) -> int:
    """Print each field that differs, and how many records were compared."""
    paths = sorted(old.glob("*/record.json"))
    differing = []
    for path in paths:
        there = new / path.parent.name / "record.json"
        if not there.is_file():
            differing.append(f"{path.parent.name}: missing in {new}")
            continue
        before, after = json.loads(path.read_text()), json.loads(there.read_text())
        differing += [f"{before['id']}: {field}" for field in FIELDS if before[field] != after[field]]
    for line in differing:
        print(line)
    print(f"{len(paths)} records compared, {len(differing)} differences")
    return 1 if differing or not paths else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
