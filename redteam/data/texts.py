"""Sets of strings by name: what attacks on language models are to elicit, and prompts a defence must let through.

Everything embedded is harmless and was written for this project. A list of your own is read with `file:PATH`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from redteam.core.errors import DataError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.data.catalog import TEXTS
from redteam.data.nouns import TextDataset
from redteam.data.words import Draws, common_words, read_sections

COLUMNS = ("target", "goal", "text")
FILES = (".txt", ".csv", ".jsonl")
LICENCE = "MIT, written for redteam"
RANDOM_STRINGS, RANDOM_WORDS = 100, 10


def load_texts(name: str) -> TextDataset:
    """`harmless-strings`, `random-words`, `moderated-topics`, or `file:PATH` (.txt, .csv or .jsonl).

    Strings of a file lose white space at both ends, and all but the first of equal ones are dropped.

    Raises:
        UnknownNameError: no such name. DataError: a file that is missing, empty, or not what is expected.
    """
    if name.startswith("file:"):
        return _from_file(name, Path(name.removeprefix("file:")).expanduser())
    if name == "moderated-topics":
        from redteam.data.moderated import load_moderated

        return load_moderated(name)
    loaders = {"harmless-strings": _harmless_strings, "random-words": _random_words}
    if name not in loaders:
        raise UnknownNameError("set of strings", name, TEXTS)
    return loaders[name]()


def benign_prompts() -> tuple[str, ...]:
    """Everyday prompts that a defence must let through: every other one of each kind."""
    return _prompts(0)


def calibration_prompts() -> tuple[str, ...]:
    """The other half, for setting a defence's threshold. None of them is a benign prompt of a data set."""
    return _prompts(1)


@cache
def _prompts(half: int) -> tuple[str, ...]:
    return tuple(p for section in read_sections("benign-prompts.txt").values() for p in section[half::2])


@cache
def _harmless_strings() -> TextDataset:
    """The kinds take turns, so that the first few are a mix."""
    sections = read_sections("harmless-strings.txt")
    numbered = [[(f"{kind}-{i:02d}", t) for i, t in enumerate(found, 1)] for kind, found in sections.items()]
    rows = [row for turn in zip(*numbered, strict=True) for row in turn]
    return TextDataset(
        name="harmless-strings",
        ids=tuple(i for i, _ in rows),
        texts=tuple(t for _, t in rows),
        source="sentences, lists, numbers, invented products and lines of code; shipped with redteam",
        licence=LICENCE,
        benign=benign_prompts(),
    )


@cache
def _random_words() -> TextDataset:
    """Strings of different common words, each drawn from a stream of its own."""
    draws = [Draws(SeedPath(0, ("random-words", str(i)))) for i in range(RANDOM_STRINGS)]
    return TextDataset(
        name="random-words",
        ids=tuple(f"words-{i:03d}" for i in range(RANDOM_STRINGS)),
        texts=tuple(" ".join(d.pick_different(common_words(), RANDOM_WORDS)) for d in draws),
        source=f"{RANDOM_WORDS} words each, drawn from the embedded word list with seed 0",
        licence=LICENCE,
        benign=benign_prompts(),
    )


# ---------------------------------------------------------------- files of the user


def _from_file(name: str, path: Path) -> TextDataset:
    readers: dict[str, Callable[[Path, str], list[tuple[str | None, str]]]] = {
        ".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl,
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise DataError(f"'{name}': expected a file that ends in {', '.join(FILES)}, got '{path.name}'")
    rows = readers[path.suffix.lower()](path, read_text(path, "file:PATH with the path of a list"))
    rows = [(given, text.strip()) for given, text in rows if text.strip()]
    for _, text in rows:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError(f"{path}: expected text, got half of a surrogate pair in {text[:40]!a}")
    if not rows:
        raise DataError(f"{path}: expected at least one string, found none")
    # The first of several equal strings stays; an id that the file gives belongs to it.
    kept: dict[str, str | None] = {}
    for given, text in rows:
        kept.setdefault(text, given)
    dropped = len(rows) - len(kept)
    return TextDataset(
        name=name,
        ids=_ids(path, list(kept.values())),
        texts=tuple(kept),
        source=f"{path.name}" + (f", {dropped} duplicate{'s' * (dropped > 1)} dropped" if dropped else ""),
        licence="the user's own file",
        benign=benign_prompts(),
    )


def _ids(path: Path, given: Sequence[str | None]) -> tuple[str, ...]:
    """The file's own ids, and `line-NNN` by order where it gives none.

    Raises:
        DataError: an id that stands at two strings.
    """
    out = tuple(name or f"line-{i:03d}" for i, name in enumerate(given, 1))
    seen: set[str] = set()
    for name in out:
        if name in seen:
            raise DataError(f"{path}: expected each id once, got '{name}' for two different strings")
        seen.add(name)
    return out


def read_text(path: Path, wanted: str) -> str:
    """A UTF-8 file. wanted: what was to be given. Raises DataError: missing, not readable, or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; expected {wanted}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, got the byte 0x{error.object[error.start]:02x} at {error.start}; save it as UTF-8"
        ) from None


def _read_txt(path: Path, content: str) -> list[tuple[str | None, str]]:
    """One string a line. `#` is no comment: a target may begin with it."""
    return [(None, line) for line in io.StringIO(content, newline=None)]


def _read_csv(path: Path, content: str) -> list[tuple[str | None, str]]:
    """The column `target`, else `goal`, else `text`, else the only one; `id` where there is one."""
    try:
        table = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}") from None
    if not table:
        raise DataError(f"{path}: expected a line of column names and at least one string, found nothing")
    header, rows = [cell.strip() for cell in table[0]], [row for row in table[1:] if any(row)]
    column = next((c for c in COLUMNS if c in header), header[0] if len(header) == 1 else None)
    if column is None:
        raise DataError(
            f"{path}: expected a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}, or one column alone; "
            f"found {', '.join(header)}"
        )
    for row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}: expected {len(header)} cells in a row as in its header, got {len(row)}: {row[0][:40]!r}; "
                "put a text with commas in double quotes"
            )
    at, named = header.index(column), header.index("id") if "id" in header else None
    return [(row[named].strip() or None if named is not None else None, row[at]) for row in rows]


def _read_jsonl(path: Path, content: str) -> list[tuple[str | None, str]]:
    """A JSON string or object a line; of an object the key `target`, else `goal`, else `text`, and its `id`."""
    out = []
    for number, line in enumerate(io.StringIO(content, newline=None), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: expected JSON ({error})") from None
        out.append(_entry(f"{path}, line {number}", value))
    return out


def _entry(where: str, value: Any) -> tuple[str | None, str]:
    if isinstance(value, str):
        return None, value
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a string or an object, got {type(value).__name__}")
    key = next((c for c in COLUMNS if c in value), None)
    if key is None or not isinstance(value[key], str):
        raise DataError(
            f"{where}: expected a string under {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}, "
            f"found the keys {', '.join(map(str, value)) or 'none'}"
        )
    return (str(value["id"]) if value.get("id") not in (None, "") else None), value[key]
