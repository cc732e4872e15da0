"""Domains in folders: found by name, with the same classes on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ConfigError, DataError
from redteam.data.access import Access
from redteam.threats.evasion.data import folders
from redteam.threats.evasion.data.folders import load_folder_pair
from redteam.threats.evasion.data.load import load_pair
from tests.data.make import pixels, write_folder

OFFICE = ("Art", "Clipart", "Product", "Real World")


def tree(
    root: Path, domains: tuple[str, ...], classes: tuple[str, ...] = ("cat", "dog"), side: int = 8
) -> Path:
    """Two colour images a class and domain; domain i has pixels of seed i."""
    content = {
        f"{domain}/{c}": pixels(2, side, side, 3, seed=10 * i + j)
        for i, domain in enumerate(domains)
        for j, c in enumerate(classes)
    }
    return write_folder(root, content)


def test_officehome_by_name_whatever_else_lies_there(tmp_path: Path) -> None:
    root = tree(tmp_path / "OfficeHome", OFFICE)
    (root / ".cache").mkdir()
    (root / "ImageInfo.csv").write_text("x")
    access = Access(data_dir=tmp_path, offline=True, download=False)
    pair = load_pair(f"officehome:{root}:Clipart-to-Real World?size=8", access)
    assert pair.name == f"officehome:{root}:Clipart-to-Real World?size=8"
    assert pair.classes == ("cat", "dog") and pair.source.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(pair.source.images[:2], pixels(2, 8, 8, 3, seed=10))
    assert pair.target is not None and np.array_equal(pair.target.images[2:], pixels(2, 8, 8, 3, seed=31))
    assert "2 of 65 classes" in pair.origin and "4 images of Clipart and 4 of Real World" in pair.origin
    # An extra folder that sorts first shifts nothing.
    tree(root, ("AAA",))
    assert load_folder_pair(pair.name).digest == pair.digest


@pytest.mark.parametrize("spelling", ["real world", "Real_World", "RealWorld", "REAL-WORLD"])
def test_spelling_of_domains_does_not_matter(spelling: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "home", OFFICE)
    pair = load_folder_pair(f"officehome:{root}:{spelling}-to-art?size=8")
    assert pair.name == f"officehome:{root}:Real World-to-Art?size=8"


def test_the_folder_may_be_spelled_otherwise(tmp_path: Path) -> None:
    root = tree(tmp_path / "home", ("Art", "RealWorld"))
    pair = load_folder_pair(f"officehome:{root}:Real World-to-Art?size=8")
    assert pair.name.endswith("RealWorld-to-Art?size=8")
    tree(root, ("Real_World",))
    with pytest.raises(DataError, match="any of the folders RealWorld, Real_World"):
        load_folder_pair(f"officehome:{root}:Real World-to-Art?size=8")
    load_folder_pair(f"officehome:{root}:Real_World-to-Art?size=8")


def test_the_three_are_224_unless_said_otherwise(tmp_path: Path) -> None:
    root = tree(tmp_path / "pacs", ("art_painting", "sketch"))
    pair = load_folder_pair(f"pacs:{root}:art_painting-to-sketch")
    assert pair.source.images.shape == (4, 224, 224, 3) and pair.name.endswith("?size=224")
    assert load_folder_pair(pair.name).digest == pair.digest
    root = tree(tmp_path / "visda", ("train", "validation"))
    pair = load_folder_pair(f"visda:{root}:train-to-validation?size=16")
    assert pair.source.images.shape == (4, 16, 16, 3) and "VisDA-17" in pair.origin


def test_any_folders_keep_their_size(tmp_path: Path) -> None:
    root = tree(tmp_path / "any", ("red", "blue"))
    pair = load_folder_pair(f"domains:{root}:red-to-blue")
    assert pair.source.images.shape == (4, 8, 8, 3) and pair.name == f"domains:{root}:red-to-blue"
    tree(root, ("big",), side=12)
    with pytest.raises(DataError, match=r"8x8 \(red\) and 12x12 \(big\).*\?size=32"):
        load_folder_pair(f"domains:{root}:red-to-big")
    assert load_folder_pair(f"domains:{root}:red-to-big?size=6").source.images.shape == (4, 6, 6, 3)


def test_grey_meets_colour(tmp_path: Path) -> None:
    write_folder(tmp_path, {"grey/a": pixels(2, 8, 8), "colour/a": pixels(2, 8, 8, 3)})
    pair = load_folder_pair(f"domains:{tmp_path}:grey-to-colour")
    assert pair.source.images.shape == (2, 8, 8, 3)


def test_paths_and_domains_with_to_in_them(tmp_path: Path) -> None:
    root = tree(tmp_path / "sim-to-real:1" / "a-to-b", ("day-to-dusk", "night", "day"))
    pair = load_folder_pair(f"domains:{root}:day-to-dusk-to-night")
    assert pair.name.endswith(":day-to-dusk-to-night") and "4 images of day-to-dusk and" in pair.origin
    assert "of night and 4 of day-to-dusk" in load_folder_pair(f"domains:{root}:night-to-day-to-dusk").origin
    assert "of day and 4 of night" in load_folder_pair(f"domains:{root}:day-to-night").origin


@given(
    st.text(st.sampled_from("ab-to:/?size= "), max_size=12), st.sampled_from(["A", "Real World", "x-to-y"]),
    st.sampled_from(["", "?size=7", "?size=224"]),
)  # fmt: skip
def test_parsing_finds_path_pair_and_size(tmp_path_factory, part: str, domain: str, size: str) -> None:
    root = tmp_path_factory.getbasetemp()
    path = f"{root}/./{part}/.." if (root / part).is_dir() else f"{root}"
    kind, found, pair, number = folders._parse(f"domains:{path}:{domain}-to-B{size}")
    assert (kind, str(found), pair) == ("domains", str(Path(path)), f"{domain}-to-B")
    assert number == (int(size[6:]) if size else None)


@pytest.mark.parametrize(
    "text",
    ["Art-to-Product", "{root}", "{root}:Art", "{root}:Art-to-Product?size=0", "{root}:A-to-B?crop=2", ""],
)
def test_names_of_another_form(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected officehome:PATH:Art-to-Clipart or .*\?size=N"):
        load_folder_pair(f"officehome:{text.format(root=tmp_path)}")


def test_wrong_domains_say_what_there_is(tmp_path: Path) -> None:
    root = tree(tmp_path / "home", OFFICE[:2])
    with pytest.raises(
        DataError, match="no such|is no folder; expected officehome:PATH.*Nothing is downloaded"
    ):
        load_folder_pair(f"officehome:{tmp_path}/gone:Art-to-Clipart")
    with pytest.raises(DataError, match="OfficeHome has no domain 'Clipprt'. Did you mean 'Clipart'"):
        load_folder_pair(f"officehome:{root}:Art-to-Clipprt")
    with pytest.raises(DataError, match="PACS has no domain 'art'.*Its domains: art_painting, cartoon"):
        load_folder_pair(f"pacs:{root}:art-to-sketch")
    with pytest.raises(DataError, match="expected a folder of the domain 'Product' in .*there: Art, Clipart"):
        load_folder_pair(f"officehome:{root}:Art-to-Product")
    with pytest.raises(DataError, match="expected a folder of the domain 'Arts'.*Did you mean 'Art'"):
        load_folder_pair(f"domains:{root}:Arts-to-Clipart")
    with pytest.raises(DataError, match="two different domains, got 'Art' twice"):
        load_folder_pair(f"officehome:{root}:Art-to-art")


def test_classes_must_agree(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", ("A", "B"))
    tree(root, ("C",), ("cat", "cow"))
    with pytest.raises(
        DataError, match=r"the domains' \(A, C\) classes differ; only in .*A: dog; only in .*C: cow"
    ):
        load_folder_pair(f"domains:{root}:A-to-C")
    (root / "B" / "emu").mkdir()
    with pytest.raises(DataError, match="class 'emu' is empty"):
        load_folder_pair(f"domains:{root}:A-to-B")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="expected one folder per class in .*empty"):
        load_folder_pair(f"domains:{root}:empty-to-A")


def test_what_cannot_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "d", ("A", "B"))
    monkeypatch.setattr(folders.os, "sysconf", lambda what: 512)
    with pytest.raises(DataError, match=r"8 images at 224x224 take 0.0 GB.*choose a smaller \?size="):
        load_folder_pair(f"domains:{root}:A-to-B?size=224")
    load_folder_pair(f"domains:{root}:A-to-B?size=32")
