"""Stored latents: every file that is read, or refused by its own name."""

import ml_dtypes
import numpy as np
import pytest

from ldmjax import data

Z = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
FEW = np.arange(6.0).reshape(3, 2)


def load(path, **arrays):
    """(what is read, the lines on it), of one array for an .npy file."""
    if path.suffix == ".npy":
        np.save(path, arrays["z"], allow_pickle=True)
    else:
        np.savez(path, **arrays)
    return data.load_latents(str(path))


# Read.


@pytest.mark.parametrize(
    "array",
    [Z, Z.astype(np.float64), np.asfortranarray(Z), Z.astype(">f4"), Z.reshape(300, 2, 2)[::-1]],
    ids=["float32", "float64", "fortran", "big-endian", "strided"],
)
def test_an_npy_file_is_one_candidate_with_the_files_name(tmp_path, array):
    found, lines = load(tmp_path / "vae f8.npy", z=array)
    assert list(found) == ["vae f8"] and lines == []
    assert found["vae f8"].dtype == np.float32 and found["vae f8"].dtype.isnative
    np.testing.assert_array_equal(found["vae f8"], array)


@pytest.mark.parametrize("name", ["z.npy", "z.npz"])
@pytest.mark.parametrize("shape", [(300, 4), (300, 2, 2, 1)])
def test_bfloat16_is_read_as_that(tmp_path, name, shape):
    array = Z.reshape(shape).astype(ml_dtypes.bfloat16)
    found, lines = load(tmp_path / name, z=array)
    np.testing.assert_array_equal(found["z"], array.astype(np.float32))
    assert len(lines) == 1 and "'z'" in lines[0] and "read as bfloat16" in lines[0]
    np.testing.assert_array_equal(load(tmp_path / f"f{name}", z=np.asfortranarray(array))[0].popitem()[1], found["z"])


@pytest.mark.parametrize("kind", [np.float16, np.int16, np.uint8, np.int64])
def test_other_numbers_are_read_and_integers_named(tmp_path, kind):
    array = (20 * np.abs(Z)).astype(kind)
    found, lines = load(tmp_path / "z.npz", z=array)
    np.testing.assert_array_equal(found["z"], array)
    assert [("'z' holds integers" in line and "codebook" in line) for line in lines] == [True] * (
        array.dtype.kind in "iu"
    )


@pytest.mark.parametrize("key", ["labels", "y"])
@pytest.mark.parametrize(
    "labels", [np.arange(300) % 10, (np.arange(300) % 10).astype(np.uint8), np.full(300, "cat"), Z[:, 0] > 0]
)
def test_labels_beside_latents_are_left_out_with_one_line(tmp_path, key, labels):
    found, lines = load(tmp_path / "z.npz", **{"a": Z, key: labels, "b": Z[:, :2]})
    assert list(found) == ["a", "b"] and len(lines) == 1 and repr(key) in lines[0]
    np.testing.assert_array_equal(found["a"], Z)


# Refused by their own name.


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        (
            "z.npz",
            {"z": Z, "labels": np.arange(299)},
            r"one of 'labels' for each latent, got z \[300, 4\], labels \[299\]",
        ),
        (
            "z.npz",
            {"z": Z, "labels": np.eye(300)},
            r"'labels' must hold a label for each latent, .* got float64 \[300, 300\]",
        ),
        ("z.npz", {"z": Z, "y": Z[:, 0]}, r"a label for each latent, integers \[N\], got float32 \[300\]: give"),
        ("z.npz", {"labels": np.arange(300)}, r"'labels' must hold numbers \[N, ...\], got int64 \[300\]"),
        ("z.npz", {"z": Z, "classes": np.arange(300)}, r"'classes' must hold numbers \[N, ...\], got int64 \[300\]"),
        (
            "z.npz",
            {"z": Z, "extra": np.array([["a", None]])},
            r"'extra' must hold numbers \[N, ...\], got Python objects",
        ),
        ("z.npy", {"z": np.array([["a", None]])}, r"'z' must hold numbers \[N, ...\], got Python objects"),
        ("z.npy", {"z": np.array({"latents": Z})}, "got Python objects"),
        ("z.npy", {"z": Z[:, 0]}, r"'z' must hold numbers \[N, ...\], got float32 \[300\]"),
        ("z.npy", {"z": np.float32(3.0)}, r"'z' must hold numbers \[N, ...\], got float32 \[\]"),
        ("z.npy", {"z": Z > 0}, "'z' must hold numbers .* got bool"),
        (
            "z.npy",
            {"z": Z.astype(ml_dtypes.float8_e4m3fn)},
            r"'z' has a type that numpy does not store, got \|V1: save it as",
        ),
        ("z.npz", {"z": Z, "w": Z.astype(ml_dtypes.float8_e5m2)}, r"'w' has a type that numpy does not store"),
        (
            "z.npy",
            {"z": np.zeros((300, 2), [("mean", "f4"), ("std", "f4")])},
            r"'z' must hold numbers .* got \[\('mean'",
        ),
        ("z.npy", {"z": np.where(Z > 2, np.nan, Z).astype(ml_dtypes.bfloat16)}, "'z' holds NaN, infinity"),
        ("z.npy", {"z": np.where(Z > 2, np.inf, Z).astype(np.float16)}, "'z' holds NaN, infinity"),
        ("z.npy", {"z": Z.astype("datetime64[s]")}, "'z' must hold numbers"),
    ],
)
def test_arrays_that_are_no_latents(tmp_path, name, arrays, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / name, **arrays)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "of one N, got none"),
        ({"a": FEW, "b": FEW[:2]}, r"of one N, got a \[3, 2\], b \[2, 2\]"),
        ({"a": FEW * 1j}, "must hold numbers"),
        ({"a": np.array([["x"]])}, "must hold numbers"),
        ({"a": FEW, "b": np.where(FEW > 2, np.nan, FEW)}, "'b' holds NaN, infinity"),
        ({"a": FEW * 1e300}, "infinity"),
        ({"a": FEW[:, :0]}, "must hold"),
    ],
)
def test_latents_that_do_not_load(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "z.npz", **arrays)


def test_files_that_are_no_latents(tmp_path):
    np.save(tmp_path / "array.npy", FEW)
    cut = (tmp_path / "array.npy").read_bytes()[:-3]
    contents = {"text.npz": b"hello", "empty.npz": b"", "cut.npz": b"PK\x03\x04 and no more", "cut.npy": cut}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable .npz or .npy file") as error:
            data.load_latents(str(tmp_path / name))
        assert "\n" not in str(error.value)
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(ValueError, match="no file"):
            data.load_latents(str(path))
