"""torchvision's layouts: read from disk, fetched over HTTP from a server of our own, refused when damaged."""

from __future__ import annotations

import bz2
import functools
import hashlib
import pickle
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as tv

from redteam.core.errors import DataError
from redteam.data import load
from redteam.data.idx import read_idx
from redteam.data.torchvision_files import _coarse_labels

from .make import pixels, write_idx_set


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_plain_and_packed(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    train, test = pixels(12, 28, 28), pixels(10, 28, 28, seed=1)
    write_idx_set(tmp_path / folder / "raw", train, test, packed=packed)
    data = load(name, data_dir=str(tmp_path), offline=True)
    assert (data.train.images[..., 0] == train).all() and data.test.labels.tolist() == list(range(10))
    assert "original files" in data.source and "12 of 60,000 training" in data.source


def test_idx_agrees_with_torchvision(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw", pixels(12, 28, 28), pixels(10, 28, 28, seed=1))
    theirs = tv.MNIST(str(tmp_path), train=True)
    ours = load("mnist", data_dir=str(tmp_path)).train
    assert (ours.images[..., 0] == theirs.data.numpy()).all()
    assert (ours.labels == theirs.targets.numpy()).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\1aaaa", "is not an IDX file of unsigned bytes"),
        (b"\0\0\x08\3\0\0", "truncated within its header"),
        (b"\0\0\x08\1\0\0\0\5abc", r"expected 13 bytes for shape \(5,\), got 11"),
    ],
)
def test_damaged_idx(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "x")
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path / "x.gz")


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw", pixels(12, 28, 28), pixels(10, 28, 28))
    raw = tmp_path / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(DataError, match="do not belong together"):
        load("mnist", data_dir=str(tmp_path))


def _write_cifar(
    root: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, lists: dict[str, list[str]]
) -> np.ndarray:
    """Batches of 4 images in torchvision's pickles, whose sums torchvision is told."""
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    images = pixels(4, 3, 32, 32)
    batch = {"data": images.reshape(4, -1), "labels": [0, 1, 2, 9]}
    if cls is tv.CIFAR100:
        batch = {"data": batch["data"], "fine_labels": [0, 1, 98, 99], "coarse_labels": [4, 1, 14, 13]}
    for attribute, files in lists.items():
        for file in files:
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
        monkeypatch.setattr(cls, attribute, [[file, _md5(folder / file)] for file in files])
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: ["x"]}, protocol=2))
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": _md5(folder / cls.meta["filename"])})
    return images.transpose(0, 2, 3, 1)


def test_cifar10_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {"train_list": ["data_batch_1", "data_batch_2"], "test_list": ["test_batch"]}
    images = _write_cifar(tmp_path, monkeypatch, tv.CIFAR10, lists)
    data = load("cifar10", data_dir=str(tmp_path))
    assert data.name == "cifar10" and (data.train.images == np.concatenate([images, images])).all()
    assert data.test.labels.tolist() == [0, 1, 2, 9] and data.train.images.flags.c_contiguous
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    with pytest.raises(
        DataError, match=r"'cifar10' in .* is incomplete or damaged .* delete it .* --download"
    ):
        load("cifar10", data_dir=str(tmp_path))


def test_cifar100_fine_and_coarse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_cifar(tmp_path, monkeypatch, tv.CIFAR100, {"train_list": ["train"], "test_list": ["test"]})
    fine, coarse = (load(name, data_dir=str(tmp_path)) for name in ("cifar100", "cifar20"))
    assert fine.train.labels.tolist() == [0, 1, 98, 99] and coarse.test.labels.tolist() == [4, 1, 14, 13]
    assert (fine.classes[0], coarse.classes[4]) == ("apple", "fruit_and_vegetables")
    assert len(fine.classes) == 100 and len(coarse.classes) == 20
    assert (fine.train.images == coarse.train.images).all() and fine.digest != coarse.digest


def test_coarse_labels_run_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit",))

    (tmp_path / "train").write_bytes(pickle.dumps({"coarse_labels": Payload()}))
    with pytest.raises(pickle.UnpicklingError, match=r"unexpected builtins\.exec"):
        _coarse_labels(tmp_path / "train")


def test_svhn_calls_zero_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(5, 32, 32, 3)
    lists = {}
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        labels = np.array([[10], [1], [2], [9], [10]], np.uint8)
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels})
        lists[split] = ["", file.name, _md5(file)]
    monkeypatch.setattr(tv.SVHN, "split_list", lists)
    data = load("svhn", data_dir=str(tmp_path))
    assert (data.train.images == images).all() and data.train.labels.tolist() == [0, 1, 2, 9, 0]


def _write_usps(root: Path, monkeypatch: pytest.MonkeyPatch, url: str = "") -> np.ndarray:
    values = np.linspace(-1, 1, 512).reshape(2, 256)
    lines = [
        f"{label} " + " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(row))
        for label, row in zip((1, 10), values, strict=True)
    ]
    lists = {}
    root.mkdir(exist_ok=True)
    for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode()))
        lists[split] = [f"{url}{file}", file, _md5(root / file)]
    monkeypatch.setattr(tv.USPS, "split_list", lists)
    return values


def test_usps_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _write_usps(tmp_path, monkeypatch)
    data = load("usps", data_dir=str(tmp_path))
    assert data.train.labels.tolist() == [0, 9]
    assert np.abs(data.train.images.reshape(2, 256) - (values + 1) / 2 * 255).max() <= 1
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(b"1 1:0.5"))
    with pytest.raises(DataError, match=r"usps\.t\.bz2 is damaged"):
        load("usps", data_dir=str(tmp_path))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which this machine serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_when_allowed_then_offline(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    write_idx_set(folder, pixels(12, 28, 28), pixels(10, 28, 28, seed=1), packed=True)
    monkeypatch.setattr(tv.MNIST, "mirrors", [url])
    monkeypatch.setattr(tv.MNIST, "resources", [(f.name, _md5(f)) for f in sorted(folder.iterdir())])
    target = tmp_path / "data"
    first = load("mnist", data_dir=str(target), download=True)
    assert (first.train.images[..., 0] == pixels(12, 28, 28)).all()
    for file in folder.iterdir():
        file.unlink()
    assert load("mnist", data_dir=str(target), offline=True).digest == first.digest


def test_a_download_with_the_wrong_sum_is_refused(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    _write_usps(folder, monkeypatch, url)
    (folder / "usps.bz2").write_bytes(bz2.compress(b"1 1:0.5"))
    with pytest.raises(DataError, match=r"the download of 'usps' failed: .* try again"):
        load("usps", data_dir=str(tmp_path / "data"), download=True)


def test_a_server_that_has_nothing(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tv.MNIST, "mirrors", [served[1]])
    with pytest.raises(DataError, match=r"the download of 'mnist' failed: .*404"):
        load("mnist", data_dir=str(tmp_path / "data"), download=True)
