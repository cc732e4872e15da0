"""Boards from records: read, build, show, verify. Nothing here runs an experiment.

A board is a pure function of records and rules: the same records, in any order and in any files,
give the same bytes. Grouping is in `leaderboards.sections`, formats in `leaderboards.render`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from leaderboards.render import show, to_csv, to_markdown
from leaderboards.rules import Rules, board_of, load_rules
from redteam.core.errors import ConfigError, RecordError
from redteam.core.files import write_text
from redteam.core.record import Record, parse

__all__ = ["build", "load_rules", "read_records", "show", "to_csv", "to_markdown", "verify"]


def read_records(paths: Iterable[Path]) -> list[Record]:
    """Records by id, each once.

    paths: `.jsonl` files (a record a line), `.json` files (one record), and folders, in which every
    `*.jsonl` and every `*/record.json` is read. Of several records of one cell the latest counts.

    Raises:
        RecordError: the first file that cannot be read, or line that is no valid record.
    """
    found = []
    for item in _scan(paths):
        if isinstance(item, RecordError):
            raise item
        found.append(item)
    return _latest(found)


def _latest(records: Iterable[Record]) -> list[Record]:
    """One record per id: the latest `created`; of two from one second, the greater JSON text."""
    kept: dict[str, tuple[tuple[float, str], Record]] = {}
    for record in records:
        order = record.created.timestamp(), record.to_json()
        if record.id not in kept or kept[record.id][0] < order:
            kept[record.id] = order, record
    return [kept[i][1] for i in sorted(kept)]


def _scan(paths: Iterable[Path]) -> Iterator[Record | RecordError]:
    """Every record under `paths`, or what is wrong with it."""
    for path in paths:
        if path.is_dir():
            for file in (*sorted(path.glob("*.jsonl")), *sorted(path.glob("*/record.json"))):
                yield from _scan_file(file)
        elif path.suffix in (".json", ".jsonl"):
            yield from _scan_file(path)
        else:
            yield RecordError(f"expected a folder, a .jsonl or a .json file of records, got {path}")


def _scan_file(path: Path) -> Iterator[Record | RecordError]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield RecordError(f"cannot read {path}: {error}")
        return
    # Only a line feed ends a line: text in a record may hold other separators.
    lines = enumerate(text.split("\n"), 1) if path.suffix == ".jsonl" else [(0, text)]
    for number, line in lines:
        if not line.strip() and number:
            continue
        try:
            yield parse(line, f"{path}:{number}" if number else str(path))
        except RecordError as error:
            yield error


def _files(records: Iterable[Record], rules: Rules) -> dict[str, str]:
    """Board texts by file name."""
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kinds[board_of(record.cell.threat, record.cell.task.target, rules)].append(record)
    out: dict[str, str] = {}
    for kind in sorted(kinds):
        markdown, table = to_markdown(kinds[kind], rules), to_csv(kinds[kind], rules)
        out |= {f"{kind}.md": markdown, f"{kind}.csv": table}
    return out


def build(paths: Iterable[Path], out: Path) -> list[Path]:
    """Write `<threat>.md` and `<threat>.csv` of every threat kind among the records into `out`.

    Raises:
        RecordError: an invalid record, or a threat kind without rules. StorageError: `out` cannot
            be written.
    """
    written = []
    for name, text in _files(read_records(paths), load_rules()).items():
        write_text(out / name, text)
        written.append(out / name)
    return written


def verify(paths: Iterable[Path], boards: Path) -> list[str]:
    """Every problem found: invalid records, and boards that the valid records do not give.

    paths: as for `read_records`. boards: the folder that `build` wrote.
    """
    records, problems = [], []
    for item in _scan(paths):
        if isinstance(item, RecordError):
            problems.append(str(item))
        else:
            records.append(item)
    try:
        rules = load_rules()
        expected = _files(_latest(records), rules)
    except (RecordError, ConfigError) as error:
        return [*problems, str(error)]
    for name, text in expected.items():
        path = boards / name
        if not path.is_file():
            problems.append(f"no board at {path}; run `redteam leaderboard build`")
        elif path.read_bytes() != text.encode():
            problems.append(f"{path} does not follow from the records; run `redteam leaderboard build`")
    for kind in sorted(rules):
        for path in (boards / f"{kind}.md", boards / f"{kind}.csv"):
            if path.is_file() and path.name not in expected:
                problems.append(f"{path} has no records behind it; delete it, or give its records")
    return problems
