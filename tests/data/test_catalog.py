"""Names, lazy imports, and what is said when data is not at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import redteam.data
from redteam.core.errors import DataError, UnknownNameError
from redteam.data.access import Access, Origin, cache_dir
from redteam.data.catalog import TEXTS

DOWNLOADS = {
    "cifar10": ("University of Toronto", "171 MB"),
    "cifar100": ("University of Toronto", "169 MB"),
    "cifar20": ("University of Toronto", "169 MB"),
    "fashion-mnist": ("Zalando Research", "31 MB"),
    "mnist": ("PyTorch's mirror", "12 MB"),
    "svhn": ("Stanford University", "246 MB"),
    "usps": ("LIBSVM", "8 MB"),
    "tiny-imagenet": ("CS231n", "248 MB"),
}


def test_importing_and_listing_loads_nothing_heavy() -> None:
    code = (
        "import sys, redteam.data; redteam.data.names(); "
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'pyarrow', 'PIL', 'pandas', 'datasets'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_names_have_one_line_each() -> None:
    listed = redteam.data.names()
    images = {*DOWNLOADS, "digits", "fashion-mini", "fashion-mnist-14", "folder:PATH", "hf:PATH_OR_ID"}
    assert images | set(TEXTS) == set(listed)
    assert all(text and "\n" not in text and len(text) < 100 for text in listed.values())


@pytest.mark.parametrize("name", ["cifar-10", "cifr10-jpeg"])
def test_unknown_name_suggests_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown data set '.*'\. Did you mean 'cifar10'\?"):
        redteam.data.load(name)


@pytest.mark.parametrize("name", sorted(DOWNLOADS))
def test_absent_data_says_what_would_be_downloaded(name: str, tmp_path: Path) -> None:
    who, size = DOWNLOADS[name]
    with pytest.raises(DataError) as caught:
        redteam.data.load(name, data_dir=str(tmp_path))
    message = str(caught.value)
    for part in (f"'{name}'", who, size, f"into {tmp_path}", "--download", "--data-dir", "REDTEAM_DATA"):
        assert part in message
    assert "no such folder" not in message


@pytest.mark.parametrize("name", sorted(DOWNLOADS))
def test_offline_forbids_even_what_download_allows(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--offline forbids downloading it from") as caught:
        redteam.data.load(name, data_dir=str(tmp_path), offline=True, download=True)
    assert DOWNLOADS[name][1] in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_data_folder_that_does_not_exist_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere \(no such folder\)"):
        redteam.data.load("mnist", data_dir=str(tmp_path / "nowhere"))


def test_data_dir_comes_from_argument_then_environment_then_user_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Access.resolve(None, offline=False, download=False).data_dir.name == "redteam"
    monkeypatch.setenv("REDTEAM_DATA", str(tmp_path))
    assert Access.resolve(None, offline=False, download=False).data_dir == tmp_path
    assert Access.resolve("/other", offline=False, download=False).data_dir == Path("/other")
    monkeypatch.delenv("REDTEAM_CACHE")
    assert cache_dir().name == "redteam"


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A folder this process may read and not write, whoever runs the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    was_root = os.geteuid() == 0
    if was_root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("root that cannot drop its privileges")
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_an_unwritable_folder_is_refused_before_the_download(unwritable: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written .* writable one with --data-dir"):
        redteam.data.load("mnist", data_dir=str(unwritable), download=True)
    assert not list(unwritable.iterdir())


def test_a_file_in_place_of_the_data_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    access = Access(data_dir=tmp_path / "file" / "below", offline=False, download=True)
    with pytest.raises(DataError, match="cannot be written"):
        access.permit("mnist", Origin(who="someone", megabytes=1), "files")


def test_permission_leaves_nothing_behind(tmp_path: Path) -> None:
    access = Access(data_dir=tmp_path / "new", offline=False, download=True)
    access.permit("mnist", Origin(who="someone", megabytes=1), "files")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
