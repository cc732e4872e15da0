"""Digit domains: recipes, originals, pairs, and that no base digit is on two sides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from redteam import data
from redteam.core.errors import DataError, UnknownNameError
from redteam.core.hashing import digest_arrays
from redteam.core.seeding import SeedPath
from redteam.data.access import Access
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.data import digits, starred
from redteam.threats.evasion.data.load import load_domains, load_pair
from redteam.threats.evasion.data.names import DOMAINS
from redteam.threats.evasion.data.textures import crop, textures
from redteam.threats.evasion.domain import DomainDataset, split
from tests.data.make import encode, pixels, write_idx_set, write_parquet_set


def at(folder: Path) -> Access:
    return Access(data_dir=folder, offline=True, download=False)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Recipes draw so many."""
    monkeypatch.setattr(digits, "DRAWN", 60)
    return 60


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A data folder with 80 + 40 made MNIST images, labels 0 to 9 in turn."""
    write_idx_set(tmp_path / "MNIST" / "raw", pixels(80, 28, 28), pixels(40, 28, 28, seed=1))
    return tmp_path


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("draw", [starred.draw_syn, starred.draw_svhn])
def test_drawn_rows_are_balanced_repeatable_and_do_not_depend_on_how_many(draw) -> None:
    images, labels = draw(40)
    assert images.shape == (40, 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [4] * 10
    again, _ = draw(15)
    assert np.array_equal(again, images[:15])
    assert len(np.unique(images.reshape(40, -1), axis=0)) == 40


def test_no_drawn_digit_is_shared_between_recipes_nor_within_one() -> None:
    rows = np.concatenate([starred.draw_syn(100)[0], starred.draw_svhn(100)[0]]).reshape(200, -1)
    assert len(np.unique(rows, axis=0)) == 200


@pytest.mark.parametrize("draw", [starred.draw_syn, starred.draw_svhn])
def test_the_label_is_what_is_drawn(draw) -> None:
    """A nearest-neighbour rule on brightness finds the digits far above chance (0.1), whatever their colours."""
    images, labels = draw(1200)
    grey = images.mean(axis=3)
    edges = grey[:, [0, -1]], grey[:, :, [0, -1]]
    border = np.concatenate([edge.reshape(len(grey), -1) for edge in edges], 1)
    ink = np.abs(grey - np.median(border, axis=1)[:, None, None])[:, 4:28, 4:28].reshape(len(grey), -1)
    ink /= np.linalg.norm(ink, axis=1, keepdims=True)
    nearest = (ink[1000:] @ ink[:1000].T).argmax(axis=1)
    assert (labels[:1000][nearest] == labels[1000:]).mean() > 0.25


def test_drawn_digits_stand_out() -> None:
    for images in (starred.draw_syn(200)[0], starred.draw_svhn(200)[0]):
        luma = (images @ np.array([0.299, 0.587, 0.114]))[:, 4:28, 4:28].reshape(200, -1)
        spread = np.percentile(luma, 98, axis=1) - np.percentile(luma, 2, axis=1)
        assert spread.min() > 15 and np.median(spread) > 45
        assert len(np.unique((images[:, 0, 0] // 64).reshape(200, 3), axis=0)) > 30


def test_blend_is_the_absolute_difference_and_depends_on_the_id_alone() -> None:
    ids = np.array([5, 60_003, 9])
    ground = starred.blend(np.zeros((3, 32, 32), np.uint8), ids)
    ink = pixels(3, 32, 32)
    made = starred.blend(ink, ids)
    assert np.array_equal(made, np.abs(ground.astype(int) - ink[..., None].astype(int)))
    assert np.array_equal(starred.blend(ink[[2]], ids[[2]])[0], made[2])
    assert not np.array_equal(ground[0], ground[1])
    assert ground.std() > 25


def test_textures_are_coloured_and_more_of_them_change_none() -> None:
    seeds = SeedPath(3)
    some = textures(seeds, 12)
    assert some.shape == (12, 96, 96, 3) and some.dtype == np.uint8
    assert np.array_equal(textures(seeds, 4), some[:4])
    assert (some.max(axis=3).astype(int) - some.min(axis=3)).mean() > 10
    assert textures(seeds, 0).shape == (0, 96, 96, 3)
    patch = crop(some, 32, np.random.default_rng(0))
    assert patch.shape == (32, 32, 3)


def test_the_recipe_of_blends_is_pinned() -> None:
    """Whole numbers only, so the same everywhere. If this changes on purpose, raise `starred.VERSION`."""
    made = starred.blend(np.zeros((4, 32, 32), np.uint8), np.arange(4))
    assert digest_arrays({"made": made}) == "3f3de20a174cac2d164c93001c03e4de7fe361b03849bceb5e5d389cad249b3b"


def test_the_drawn_recipes_are_pinned_where_the_tools_are_those_of_the_pin() -> None:
    """If this changes on purpose, raise `starred.VERSION`."""
    pinned = {"Pillow": "13.0.0", "FreeType": "2.14.3", "matplotlib": "3.11.2", "numpy": "2.4.6"}
    if starred.versions() != pinned:
        pytest.skip(f"the pin is for {pinned}; here are {starred.versions()}")
    found = [digest_arrays({"images": f(20)[0]})[:16] for f in (starred.draw_syn, starred.draw_svhn)]
    assert found == ["74d36b50d62162dd", "fc6de131a608b4c9"]


def test_a_font_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starred, "FONTS", ("NoSuchFont",))
    with pytest.raises(DataError, match=r"expected .*NoSuchFont\.ttf.*Reinstall matplotlib"):
        starred.draw_syn(1)


# ---------------------------------------------------------------- pairs


def test_drawn_to_optdigits(few: int, tmp_path: Path) -> None:
    pair = load_pair("syn*-to-optdigits", at(tmp_path))
    assert pair.name == "syn*-to-optdigits" and pair.adapts and pair.classes == tuple("0123456789")
    assert pair.source.images.shape == (few, 32, 32, 3)
    assert pair.target is not None and pair.target.images.shape == (1797, 32, 32, 3)
    assert "not SYN" in pair.origin and "Pillow" in pair.origin and "scikit-learn" in pair.origin
    assert "fonts" in pair.licence and "CC BY 4.0" in pair.licence
    alias = load_pair("syn-star-to-optdigits", at(tmp_path))
    assert (alias.name, alias.digest) == (pair.name, pair.digest)
    assert load_domains("syn*-to-optdigits", data_dir=str(tmp_path), offline=True).digest == pair.digest


def test_drawn_digits_are_cached_and_a_new_recipe_is_not_read_from_it(
    few: int, own_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digits.load_domain("svhn*", at(tmp_path))
    assert len(list((own_folders / "decoded").glob("domain-svhn-star-*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(starred, "draw_svhn", lambda count: pytest.fail("drawn again"))
        assert digits.load_domain("svhn*", at(tmp_path)).images.digest == first.images.digest
    monkeypatch.setattr(starred, "VERSION", starred.VERSION + 1)
    assert digits.load_domain("svhn*", at(tmp_path)).images.digest != first.images.digest


@pytest.mark.parametrize("name", ["mnist-to-mnist-m*", "mnist-m-star-to-mnist"])
def test_a_base_digit_is_on_one_side_only(name: str, mnist: Path) -> None:
    pair = load_pair(name, at(mnist))
    assert pair.target is not None and "no digit is on both sides" in pair.origin
    plain, blended = (pair.source, pair.target) if name.startswith("mnist-to") else (pair.target, pair.source)
    sides = [digits.load_domain(d, at(mnist), half=i) for i, d in enumerate(name.split("-to-"))]
    ids = [side.base for side in sides]
    assert not set(ids[0]) & set(ids[1]) and len(ids[0]) + len(ids[1]) == 120
    assert {side.images.digest for side in sides} == {plain.digest, blended.digest}
    # Independent of ids: taking each blend's ground away again, what is left is none of the plain digits.
    kept = ids[0] if blended is pair.source else ids[1]
    ground = starred.blend(np.zeros((len(kept), 32, 32), np.uint8), kept).astype(int)
    ink = blended.images.astype(int)
    shown = {row.tobytes() for row in plain.images[..., 0].astype(int)}
    for sign in (1, -1):
        assert not any((sign * (g - i))[..., 0].tobytes() in shown for g, i in zip(ground, ink, strict=True))


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=60), st.integers(0, 10**6))
def test_halves_depend_on_the_id_alone(ids: list[int], other: int) -> None:
    of = digits.halves(np.array(ids, np.int64))
    with_other = digits.halves(np.array([other, *ids], np.int64))
    assert np.array_equal(of, with_other[1:]) and set(of.tolist()) <= {0, 1}


def test_halves_are_even() -> None:
    share = digits.halves(np.arange(4000)).mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_mnist_with_another_family_is_used_whole(mnist: Path) -> None:
    pair = load_pair("mnist-to-optdigits", at(mnist))
    assert len(pair.source) == 120 and "halves" not in pair.origin
    assert np.array_equal(pair.source.images[..., 0], pair.source.images[..., 2])


def test_lossy_copies_keep_their_name_and_both_sides_come_from_one_copy(tmp_path: Path) -> None:
    root = tmp_path / "mnist"
    write_parquet_set(root, pixels(40, 28, 28, 1), pixels(20, 28, 28, 1, seed=2), "JPEG", classes=10)
    assert load_pair("mnist-to-optdigits", at(tmp_path)).name == "mnist-jpeg-to-optdigits"
    write_idx_set(tmp_path / "MNIST" / "raw", pixels(30, 28, 28), pixels(10, 28, 28, seed=1))
    pair = load_pair("mnist-jpeg-to-mnist-m*", at(tmp_path))
    assert pair.name == "mnist-jpeg-to-mnist-m*-jpeg"
    assert pair.target is not None and len(pair.source) + len(pair.target) == 60
    assert load_pair("mnist-m-star-to-mnist", at(tmp_path)).name == "mnist-m*-to-mnist"
    assert load_pair("mnist-m*-jpeg-to-mnist", at(tmp_path)).name == "mnist-m*-jpeg-to-mnist-jpeg"


def test_an_ordinary_data_set_is_one_domain(tmp_path: Path) -> None:
    of = load_pair("digits", at(tmp_path))
    assert of.name == "digits" and not of.adapts and of.test is not None and of.target is None
    assert len(of.source) == 1297 and len(of.test) == 500


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("syn*-to-optdigit", UnknownNameError, "unknown domain 'optdigit'. Did you mean 'optdigits'"),
        ("sin*-to-optdigits", UnknownNameError, "unknown domain 'sin\\*'. Did you mean 'syn\\*'"),
        ("usps-star-to-mnist", UnknownNameError, "unknown domain 'usps-star'"),
        ("syn*-jpeg-to-mnist", UnknownNameError, "unknown domain 'syn\\*-jpeg'"),
        ("-to-mnist", UnknownNameError, "unknown domain ''"),
        ("syn*-to-syn-star", DataError, "two different domains, got 'syn\\*' twice"),
        ("mnist-to-mnist-jpeg", DataError, "two different domains, got 'mnist' twice"),
        ("syn*", DataError, "'syn\\*' is one domain; expected a pair such as 'syn\\*-to-usps'"),
        ("optdigits", DataError, "is one domain"),
        ("fashion-mimi", UnknownNameError, "Did you mean 'fashion-mini'"),
        ("random-words", DataError, "set of strings"),
        ("mnist-to-svhn", DataError, "data set 'mnist' is not in"),
    ],
)
def test_names_that_do_not_work_say_why(name: str, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        load_pair(name, at(tmp_path))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("syn*-to-optdigits", "a pair of domains"),
        ("mnist-to-usps", "a pair of domains"),
        ("officehome:/data:Art-to-Product", "a pair of domains"),
        ("syn-star", "a domain, one side of a pair"),
        ("optdigits", "a domain, one side of a pair"),
    ],
)
def test_load_of_images_refuses_domains(name: str, what: str) -> None:
    with pytest.raises(DataError, match=f"is {what}.*expected a set of images"):
        data.load(name)


def test_a_path_with_to_in_it_is_no_pair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder; expected folder:PATH"):
        data.load(f"folder:{tmp_path}/a-to-b")
    with pytest.raises(DataError, match="is no folder; expected folder:PATH"):
        load_pair(f"folder:{tmp_path}/a-to-b", at(tmp_path))


def test_every_domain_has_a_line_and_listing_them_loads_nothing_heavy() -> None:
    assert {"mnist", "syn*", "domains:PATH:A-to-B"} <= set(DOMAINS)
    assert all(text and "\n" not in text and len(text) < 100 for text in DOMAINS.values())
    assert f"{digits.DRAWN:,}" in DOMAINS["syn*"] and f"{digits.DRAWN:,}" in DOMAINS["svhn*"]
    code = (
        "import sys; from redteam.threats.evasion import THREAT; "
        "print(*sorted({'numpy', 'PIL', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    listed = subprocess.run(
        [sys.executable, "-c", "from redteam.cli import main; main(['list'])"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(name in listed for name in DOMAINS)


# ---------------------------------------------------------------- the protocol of the split


@given(st.integers(5, 90), st.integers(5, 90), st.integers(0, 2**32), st.sampled_from([0, 5, 20]))
def test_split_is_80_20_and_60_20_20_and_disjoint(n: int, m: int, seed: int, rows: int) -> None:
    def numbered(count: int, start: int) -> ImageSet:
        """Images that spell their own number."""
        values = np.arange(start, start + count, dtype=np.uint16)
        images = values.view(np.uint8).reshape(count, 1, 2, 1)
        return ImageSet(images, np.zeros(count, np.int64), ("0",))

    def read(images: np.ndarray) -> list[int]:
        return np.ascontiguousarray(images).reshape(-1, 2).view(np.uint16).ravel().tolist()

    whole = DomainDataset("a-to-b", numbered(n, 0), numbered(m, 1000), "made", "none")
    parts = split(whole, SeedPath(seed), rows)
    a = min(n, rows) if rows else n
    b = min(m, rows) if rows else m
    source = [read(p.images) for p in (parts.source, parts.source_val)]
    target = [read(p) for p in (parts.target, parts.target_val.images, parts.test.images)]
    assert [len(p) for p in source] == [round(0.8 * a), a - round(0.8 * a)]
    assert [len(p) for p in target] == [round(0.6 * b), round(0.8 * b) - round(0.6 * b), b - round(0.8 * b)]
    for parts_, low, count in ((source, 0, a), (target, 1000, b)):
        everything = [v for part in parts_ for v in part]
        assert len(set(everything)) == count == len(everything) and min(everything) >= low
    assert max(v for p in source for v in p) < n and len(parts.target_labels) == len(parts.target)
    again = split(whole, SeedPath(seed), rows)
    assert read(again.test.images) == target[2]


def test_split_of_a_real_pair(few: int, tmp_path: Path) -> None:
    parts = split(load_pair("svhn*-to-optdigits", at(tmp_path)), SeedPath(1))
    assert [len(parts.source), len(parts.source_val)] == [48, 12]
    assert [len(parts.target), len(parts.target_val), len(parts.test)] == [1078, 360, 359]


# ---------------------------------------------------------------- originals


def write_mnist_m(root: Path, labels: dict[str, list[int]]) -> None:
    for split_name, found in labels.items():
        folder = root / f"mnist_m_{split_name}"
        folder.mkdir(parents=True)
        for i in range(len(found)):
            (folder / f"{i:08}.png").write_bytes(encode(pixels(32, 32, 3, seed=i)))
        lines = "".join(f"{i:08}.png {label}\n" for i, label in enumerate(found))
        (root / f"mnist_m_{split_name}_labels.txt").write_text(lines)


def test_mnist_m_in_its_own_layout_shares_no_digit_with_mnist(mnist: Path) -> None:
    labels = {"train": [i % 10 for i in range(70)], "test": [i % 10 for i in range(30)]}
    write_mnist_m(mnist / "mnist_m", labels)
    alone = load_pair("mnist-m-to-optdigits", at(mnist))
    assert alone.source.images.shape == (100, 32, 32, 3)
    assert np.bincount(alone.source.labels).tolist() == [10] * 10
    assert np.array_equal(alone.source.images[3], pixels(32, 32, 3, seed=3))
    pair = load_pair("mnist-to-mnist-m", at(mnist))
    a = digits.load_domain("mnist", at(mnist), half=0)
    b = digits.load_domain("mnist-m", at(mnist), half=1)
    assert not set(a.base) & set(b.base) and "no digit is on both sides" in pair.origin
    assert pair.target is not None and pair.target.digest == b.images.digest
    assert len(b.base) == (digits.halves(np.array([*range(70), *range(60_000, 60_030)])) == 1).sum()


def test_mnist_m_in_another_order_is_used_whole_and_says_so(
    mnist: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_mnist_m(mnist / "mnist_m", {"train": [9, 0, 1] * 5, "test": [0, 1]})
    pair = load_pair("mnist-m-to-mnist", at(mnist))
    assert "the same digits may be on both sides" in pair.origin and "may be on both sides" in caplog.text
    assert len(pair.source) == 17 and pair.target is not None and len(pair.target) == 120


def test_mnist_m_in_class_folders(tmp_path: Path) -> None:
    for split_name, n in (("training", 2), ("testing", 1)):
        for digit in range(10):
            folder = tmp_path / "mnist-m" / split_name / str(digit)
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}.png").write_bytes(encode(pixels(28, 28, 3, seed=digit)))
    domain = digits.load_domain("mnist-m", at(tmp_path))
    assert domain.images.images.shape == (30, 32, 32, 3) and domain.base is None
    assert np.bincount(domain.images.labels).tolist() == [3] * 10
    next((tmp_path / "mnist-m" / "testing" / "7").iterdir()).unlink()
    with pytest.raises(DataError, match="class '7' is empty"):
        digits.load_domain("mnist-m", at(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.png 11\n", "line 1 of .*expected `<file> <digit>`, got '0.png 11'"),
        ("0.png\n", "expected `<file>"),
        ("\n", "names no image"),
        ("gone.png 1\n", "cannot read .*gone.png"),
    ],
)
def test_damaged_lists_of_mnist_m(text: str, message: str, tmp_path: Path) -> None:
    write_mnist_m(tmp_path / "mnist_m", {"train": [1], "test": [2]})
    (tmp_path / "mnist_m" / "mnist_m_train_labels.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        digits.load_domain("mnist-m", at(tmp_path))


def write_syn(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split_name, labels in (("train", train), ("test", test)):
        content = {"X": pixels(32, 32, 3, len(labels), seed=len(labels)), "y": labels[:, None]}
        savemat(folder / f"synth_{split_name}_32x32.mat", content)


@pytest.mark.parametrize("folder", ["", "SynthDigits"])
def test_syn_from_its_files(folder: str, tmp_path: Path) -> None:
    write_syn(tmp_path / folder, np.array([1, 2, 10, 9], np.uint8), np.array([4, 5], np.uint8))
    domain = digits.load_domain("syn", at(tmp_path))
    assert domain.images.labels.tolist() == [1, 2, 0, 9, 4, 5]
    assert np.array_equal(domain.images.images[2], pixels(32, 32, 3, 4, seed=4)[..., 2])
    assert load_pair("syn-to-optdigits", at(tmp_path)).name == "syn-to-optdigits"


def test_damaged_syn(tmp_path: Path) -> None:
    write_syn(tmp_path, np.array([1, 2]), np.array([3]))
    path = tmp_path / "synth_test_32x32.mat"
    whole = path.read_bytes()
    for data_, message in (
        (whole[:200], "could not read it"),
        (b"", "could not read it"),
        (b"no", "could not"),
    ):
        path.write_bytes(data_)
        with pytest.raises(DataError, match=message):
            digits.load_domain("syn", at(tmp_path))
    savemat(path, {"X": pixels(32, 32, 3, 1)})
    with pytest.raises(DataError, match="expected a MATLAB file with X and y"):
        digits.load_domain("syn", at(tmp_path))
    savemat(path, {"X": pixels(32, 32, 3, 2), "y": [[1]]})
    with pytest.raises(DataError, match="expected X \\(H, W, 3, N\\) uint8"):
        digits.load_domain("syn", at(tmp_path))
    savemat(path, {"X": pixels(32, 32, 3, 1), "y": [[11]]})
    with pytest.raises(DataError, match="labels from 0 to 10, got \\[11\\]"):
        digits.load_domain("syn", at(tmp_path))
    savemat(path, {"X": pixels(28, 28, 3, 1), "y": [[1]]})
    with pytest.raises(DataError, match="training images are"):
        digits.load_domain("syn", at(tmp_path))


@pytest.mark.parametrize(
    ("name", "looked"), [("mnist-m", "mnist_m/mnist_m_train_labels.txt"), ("syn", "synth_train_32x32.mat")]
)
def test_absent_originals_say_what_was_looked_for(name: str, looked: str, tmp_path: Path) -> None:
    access = Access(data_dir=tmp_path, offline=False, download=True)
    with pytest.raises(DataError) as caught:
        load_pair(f"{name}-to-optdigits", access)
    for part in (f"'{name}'", str(tmp_path), looked, "by hand", f"'{name}*'"):
        assert part in str(caught.value)


# ---------------------------------------------------------------- real data


@pytest.mark.data
def test_real_digits(real_data: Path) -> None:
    for folder in ("mnist", "usps"):
        if not (real_data / folder).is_dir():
            pytest.skip(f"no {folder} in REDTEAM_DATA")
    usps = digits.load_domain("usps", at(real_data))
    mnist = digits.load_domain("mnist", at(real_data), half=0)
    assert len(usps.images) == 9298 and 5_000 <= len(mnist.images) <= 36_000
    for domain in (usps, mnist):
        assert domain.images.images.shape[1:] == (32, 32, 3)
        assert np.bincount(domain.images.labels).min() > 0.07 * len(domain.images)
