"""Files and artifacts: whole or absent, checked, and free of pickle."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.arrays import load_arrays, save_arrays
from redteam.core.artifacts import load
from redteam.core.errors import ArtifactError, StorageError
from redteam.core.files import atomic_path, write_bytes
from redteam.core.hashing import canonical_json, digest_arrays
from redteam.threats.poisoning.artifact import Poison


def poison(**changes):
    parts = {
        "targets": np.array([0, 1, 2]), "trigger": {"name": "1xl"}, "source_class": 1, "target_class": 0,
        "budget": 2, "indices": np.array([1]), "images": np.full((1, 4, 4, 1), 7, np.uint8),
    }  # fmt: skip
    return Poison(**{**parts, **changes})


def same(a: Poison, b: Poison) -> bool:
    arrays = all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("targets", "indices", "images"))
    return arrays and (a.trigger, a.source_class, a.target_class, a.budget) == (
        b.trigger, b.source_class, b.target_class, b.budget,
    )  # fmt: skip


def test_artifact_survives_the_disk_and_equal_content_gives_equal_bytes(tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    assert poison().save(first) == poison().save(second)
    assert first.read_bytes() == second.read_bytes()
    assert same(load(first), poison())
    assert poison(budget=3).save(second) != poison().save(first)


@given(st.integers(0, 10**6), st.sampled_from(["truncate", "flip"]))
def test_damage_is_found(tmp_path_factory, where, how):
    path = tmp_path_factory.mktemp("a") / "a.npz"
    digest = poison().save(path)
    raw = bytearray(path.read_bytes())
    if how == "truncate":
        raw = raw[: where % len(raw)]
    else:
        raw[where % len(raw)] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match="changed or truncated: expected sha256"):
        load(path, digest)


def test_truncated_without_a_digest_is_an_artifact_error(tmp_path):
    path = tmp_path / "a.npz"
    poison().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="not a readable artifact"):
        load(path)
    with pytest.raises(ArtifactError, match="no artifact at"):
        load(tmp_path / "none.npz")


def test_any_flipped_byte_gives_the_artifact_or_an_artifact_error(tmp_path):
    """Without a digest to check, a damaged file may still not escape as another kind of error."""
    path = tmp_path / "a.npz"
    poison(targets=np.arange(300) % 7).save(path)
    raw = path.read_bytes()
    errors = 0
    for where in range(0, len(raw), 2):
        path.write_bytes(raw[:where] + bytes([raw[where] ^ 0x55]) + raw[where + 1 :])
        try:
            load(path)
        except ArtifactError:
            errors += 1
    assert errors > len(raw) // 8


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{"meta.json": np.zeros(1), "targets": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ArtifactError, match="not a readable artifact"):
        load_arrays(path)


def test_other_kind_is_refused(tmp_path):
    save_arrays(tmp_path / "a.npz", {}, {"kind": "prompts"})
    with pytest.raises(ArtifactError, match="kind 'prompts'"):
        load(tmp_path / "a.npz")


def test_nothing_half_written_stays_when_the_disk_fills(tmp_path):
    path = tmp_path / "sub" / "x.bin"
    with pytest.raises(StorageError, match="no space left"), atomic_path(path) as partial:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_bytes(b"new, half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_digest_sees_dtype_shape_and_name_but_not_layout():
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    digest = digest_arrays({"a": a})
    assert digest == digest_arrays({"a": np.asfortranarray(a)})
    assert digest != digest_arrays({"a": a.reshape(3, 2)})
    assert digest != digest_arrays({"a": a.astype(np.uint32)})
    assert digest != digest_arrays({"b": a})


def test_canonical_json_refuses_nan():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})
