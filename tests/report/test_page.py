"""What holds for the pages of all rooms: one way in, flags with their text, commands and texts as they are shown."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from redteam.report import page, words
from redteam.threats.poisoning.report import render
from tests.leaderboards.helpers import SHADOW, record
from tests.threats.pages import text_of
from tests.threats.poisoning.report_helpers import dataset, write_run

ROOMS = sorted(p.parent for p in Path(page.__file__).parents[1].glob("threats/**/report/page.html.j2"))


def test_every_room_has_one_way_in_and_a_template_on_the_base() -> None:
    assert len(ROOMS) >= 6
    contract = inspect.signature(page.Render.__call__)
    expected = [p.replace(annotation=inspect.Parameter.empty) for p in contract.parameters.values()][1:]
    for folder in ROOMS:
        name = ".".join(("redteam", *folder.relative_to(Path(page.__file__).parents[1]).parts))
        room = importlib.import_module(name)
        parameters = inspect.signature(room.render).parameters.values()
        assert [p.replace(annotation=inspect.Parameter.empty) for p in parameters] == expected, name
        assert room.__all__ == ["render"]
        assert (folder / "page.html.j2").read_text().startswith('{% extends "base.html.j2" %}')


def test_flags_carry_their_text_if_given_and_their_absence_is_told(tmp_path: Path) -> None:
    data = dataset()
    write_run(tmp_path / "flagged", data, flags=("under-budget",))
    write_run(tmp_path / "plain", data)
    assert "under-budget : see docs/flags.md" in text_of(render(tmp_path / "flagged", [], None))
    told = render(tmp_path / "flagged", [], None, flags={"under-budget": "Fewer rows < allowed."})
    assert "<code>under-budget</code>: Fewer rows &lt; allowed." in told
    assert "None was raised." in text_of(render(tmp_path / "plain", [], None))


def test_a_command_names_what_no_command_line_can_carry() -> None:
    made = record(defenses=[SHADOW.model_copy(update={"config": {"labels": [1, 2], "rounds": 2}})])
    told = words.command(made, pinned=("epochs",))
    assert told is not None and "--defense shadow:rounds=2 --adaptive" in told and "target.epochs" not in told
    assert told.endswith("the defaults are taken: shadow.labels=1,2")
    assert words.command(made.model_copy(update={"source": "reported"})) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a" * 601, "a" * 600 + " ... (1 more characters)"),
        ("é漢 a\tb\x00", "é漢 a\\tb\\x00"),
        ("a\nb", "a\u23ce\nb"),
    ],
)
def test_text_is_shown_with_nothing_invisible(text: str, shown: str) -> None:
    assert words.visible(text) == shown
