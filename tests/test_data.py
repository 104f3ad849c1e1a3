"""Data sets, spectra, twins, and every refusal."""

import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ldmjax import data


def test_digits_are_scaled_and_centred():
    digits = data.digits()
    assert digits.samples.shape == (1797, 64) and digits.image_shape == (8, 8)
    np.testing.assert_allclose(digits.samples.mean(axis=0), 0, atol=1e-12)
    assert 1 < np.ptp(digits.samples) <= 4
    np.testing.assert_allclose(digits.covariance, np.cov(digits.samples.T, bias=True), atol=1e-12)
    assert digits.digest == data.digits().digest


def test_images_are_the_samples_with_their_mean():
    digits = data.digits()
    source = load_digits()
    images = digits.images(digits.samples)
    assert images.dtype == np.float32 and images.shape == (1797, 8, 8)
    np.testing.assert_array_equal(images, (source.images / 8.0 - 1.0).astype(np.float32))
    np.testing.assert_array_equal(digits.labels, source.target)
    spectrum = data.spectrum("power:1", 3)
    np.testing.assert_array_equal(spectrum.images(np.ones((2, 3))), np.ones((2, 3)))
    for wrong in (np.ones((2, 4)), np.ones(3)):
        with pytest.raises(ValueError, match=r"must have shape \[N, 3\]"):
            spectrum.images(wrong)


def test_samples_given_are_left_alone():
    samples = np.arange(20.0).reshape(5, 4)
    loaded = data.from_samples("s", samples, (4,))
    np.testing.assert_array_equal(samples, np.arange(20.0).reshape(5, 4))
    np.testing.assert_array_equal(loaded.mean, [8, 9, 10, 11])
    assert loaded.labels is None


def test_split_indices_carry_labels_and_images_alike():
    digits = data.digits()
    train, held_out = digits.split_indices(n=500, seed=3)
    np.testing.assert_array_equal(digits.samples[train], digits.split(n=500, seed=3)[0])
    np.testing.assert_array_equal(digits.samples[held_out], digits.split(n=500, seed=3)[1])
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(1797))
    with pytest.raises(ValueError, match="is a spectrum"):
        data.spectrum("power:1", 3).split_indices(n=2, seed=0)


def test_split_is_disjoint_complete_and_seeded():
    digits = data.digits()
    train, held_out = digits.split(n=500, seed=3)
    assert len(train) == 500 and len(train) + len(held_out) == 1797
    everything = np.concatenate([train, held_out])
    np.testing.assert_allclose(np.sort(everything.sum(1)), np.sort(digits.samples.sum(1)), atol=1e-12)
    np.testing.assert_array_equal(train, digits.split(n=500, seed=3)[0])
    assert not np.array_equal(train, digits.split(n=500, seed=4)[0])
    for n in (1, 1796):
        with pytest.raises(ValueError, match=r"n must be 2\.\.1795"):
            digits.split(n=n, seed=0)


def test_twin_has_the_covariance():
    digits = data.digits()
    draws = digits.twin_draws(200_000, seed=0)
    error = np.abs(draws.T @ draws / len(draws) - digits.covariance)
    scale = np.sqrt(np.outer(np.diag(digits.covariance), np.diag(digits.covariance)) * 2 / len(draws))
    assert np.all(error <= 5 * scale + 1e-12)  # 5 standard errors over 4096 entries
    assert not np.array_equal(digits.twin_draws(5, seed=0), digits.twin_draws(5, seed=0, stream=1))


def test_principal_components_diagonalise():
    samples = data.digits().split(n=100, seed=0)[0]
    variances, basis = data.principal_components(samples)
    latents = samples @ basis
    np.testing.assert_allclose(latents.T @ latents / 100, np.diag(variances), atol=1e-12)
    np.testing.assert_allclose(basis.T @ basis, np.eye(64), atol=1e-12)
    assert np.all(np.diff(variances) <= 0) and variances[-1] == 0


@pytest.mark.parametrize("key", ["images", "x"])
def test_npz(tmp_path, key):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", **{key: rng.integers(0, 256, (20, 3, 4), dtype=np.uint8)})
    loaded = data.load(str(tmp_path / "a.npz"))
    assert loaded.name == "a" and loaded.samples.shape == (20, 12) and loaded.image_shape == (3, 4)
    assert np.ptp(loaded.samples) <= 2.0 * 2


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((3, 32, 32), True),
        ((1, 28, 28), True),
        ((4, 5, 9), True),
        ((3, 40, 30), True),
        ((1, 5, 5), True),
        ((32, 32, 3), False),
        ((28, 28, 1), False),
        ((3, 32, 3), False),
        ((3, 4, 5), False),
        ((2, 32, 32), False),
        ((32, 32), False),
        ((3, 32), False),
        ((3,), False),
        ((3, 8, 8, 8), False),
    ],
)
def test_channels_go_last(tmp_path, shape, first):
    images = np.random.default_rng(0).standard_normal((6, *shape))
    np.savez(tmp_path / "a.npz", images=images)
    loaded = data.load(str(tmp_path / "a.npz"))
    assert loaded.channels_first == first
    expected = np.moveaxis(images, 1, -1) if first else images
    assert loaded.image_shape == expected.shape[1:]
    np.testing.assert_allclose(loaded.images(loaded.samples), expected, atol=1e-6)
    if len(shape) == 3:
        for layout in ("first", "last"):
            loaded = data.load(str(tmp_path / "a.npz"), layout=layout)
            assert loaded.image_shape == ((*shape[1:], shape[0]) if layout == "first" else shape)
            assert loaded.channels_first == (layout == "first")
    else:
        with pytest.raises(
            ValueError, match=r"a.npz' must hold images \[N, C, H, W\] to have channels first, got \[6, 3"
        ):
            data.load(str(tmp_path / "a.npz"), layout="first")


def test_channels_of_latents():
    first = [(16, 8, 8), (4, 32, 32), (3, 8, 12), (64, 2, 2), (16, 48, 64)]
    last = [(8, 8, 16), (32, 32, 4), (8, 12, 3), (2, 2, 64), (8, 8, 8), (8, 8), (7,), (8, 4, 8), (48, 64, 16)]
    assert [data.channels.of_latents_are_first(shape) for shape in [*first, *last]] == [True] * 5 + [False] * 9


@pytest.mark.parametrize("key", ["labels", "y", "train_labels", "y_train"])
@pytest.mark.parametrize("image_key", ["train_images", "x_train"])
def test_npz_labels(tmp_path, image_key, key):
    images, labels = np.random.default_rng(0).standard_normal((6, 2, 2)), np.array([3, 0, 1, 1, 0, 3], np.uint8)
    np.savez(tmp_path / "a.npz", **{image_key: images, key: labels, "x_test": images[:1]})
    loaded = data.load(str(tmp_path / "a.npz"))
    assert loaded.labels.tolist() == [3, 0, 1, 1, 0, 3]
    np.testing.assert_allclose(loaded.images(loaded.samples), images, atol=1e-6)
    np.savez(tmp_path / "column.npz", **{image_key: images, key: labels[:, None]})  # as Keras has CIFAR's
    np.testing.assert_array_equal(data.load(str(tmp_path / "column.npz")).labels, labels)


@pytest.mark.parametrize(
    "labels", [np.arange(5), np.arange(6.0), np.array(list("abcdef")), np.array(3), np.arange(6).reshape(2, 3)]
)
def test_bad_labels(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).standard_normal((6, 4)), y=labels)
    with pytest.raises(ValueError, match=r"a.npz' must be whole numbers \[6\], one per image, got"):
        data.load(str(tmp_path / "a.npz"))


def test_bad_npz(tmp_path):
    good = np.random.default_rng(0).standard_normal((10, 4))
    cases = {
        "wrong": ({"data": good}, "needs 'images' or 'x'"),
        "nan": ({"x": np.where(good > 1, np.nan, good)}, "NaN or infinity"),
        "flat": ({"x": good[:, 0]}, "must hold numbers"),
        "text": ({"x": np.array([["a", "b"]] * 5)}, "must hold numbers"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            data.load(str(tmp_path / f"{name}.npz"))
    np.savez(tmp_path / "cut.npz", x=good)
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable"):
        data.load(str(tmp_path / "cut.npz"))
    with pytest.raises(ValueError, match="no file"):
        data.load(str(tmp_path / "missing.npz"))
    with pytest.raises(ValueError, match="unknown data"):
        data.load("imagenet")


def test_what_float32_cannot_hold():
    x = np.random.default_rng(0).standard_normal((200, 3, 4))

    def problem(values):
        """As the data set gives it, centred and with its mean, and as an array gives it: they say the same."""
        flat = np.asarray(values, np.float64).reshape(200, -1)
        mean = flat.mean(axis=0)
        found = data.float32_problem(flat - mean, mean=mean)
        assert (found is None) == (data.float32_problem(values) is None)
        return found

    assert problem(x) is None and problem(x * 1e17) is None and problem(x * 1e-15) is None
    assert problem(x + 1e5) is None and problem(x.astype(np.float32)) is None
    x /= x.std(axis=0)
    assert "varies by 1 around 1e+08, where float32 has steps of 8: subtract the offset" in problem(x + 1e8)
    for offset in (-1e8, 1e14, 4e6):
        assert "subtract the offset" in problem(x + offset)
    for large in (x * 1e30, x + 1e30, x * 1e19, x * 1e-30 + 1e20):
        assert "whose squares float32 cannot hold: rescale" in problem(large)
    assert "varies by" in problem(x * 1e-30) and "rescale" in problem(x * 1e-30)
    # What is the same in all samples may be anything that float32 has.
    constant = x.copy()
    constant[:, 0, 0] = 1e8
    assert problem(constant) is None and problem(np.ones((200, 3))) is None
    constant[::2, 0, 0] += 1.0
    assert "around 1e+08" in problem(constant)


def test_numbers_that_no_square_holds(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).standard_normal((10, 4)) * 1e200)
    with pytest.raises(ValueError, match=r"a.npz' holds values up to .*e\+200, whose squares no number can hold"):
        data.load(str(tmp_path / "a.npz"))


def test_spectra():
    np.testing.assert_allclose(data.spectrum_variances("power:1.5", 4), [1, 2**-1.5, 3**-1.5, 1 / 8])
    np.testing.assert_allclose(data.spectrum_variances("exponential:0.5", 3), np.exp([0, -0.5, -1]))
    np.testing.assert_array_equal(data.spectrum_variances("lowrank:2", 4), [1, 1, 0, 0])
    assert data.spectrum("lowrank:2", 4).samples is None


def test_spectrum_file(tmp_path):
    np.save(tmp_path / "s.npy", np.array([0.1, 3.0, -1e-9, 1.0], np.float32))
    np.testing.assert_allclose(data.spectrum_variances(str(tmp_path / "s.npy"), 7), [3, 1, 0.1, 0], rtol=1e-6)
    np.save(tmp_path / "negative.npy", np.array([1.0, -0.5]))
    with pytest.raises(ValueError, match="negative variance"):
        data.spectrum_variances(str(tmp_path / "negative.npy"), 2)


@pytest.mark.parametrize("text", "power power: power:x cubic:2 lowrank:0 lowrank:2.5 lowrank:9 power:nan".split())
def test_bad_spectra(text):
    with pytest.raises(ValueError, match="spectrum"):
        data.spectrum_variances(text, 8)


def save_pictures(folder, pictures, classes="ab"):
    """Pictures, one per entry, into class subfolders in turn."""
    for i, picture in enumerate(pictures):
        path = folder / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_folder_of_pictures(tmp_path, channels):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 5, 4, *channels), dtype=np.uint8)
    save_pictures(tmp_path / "faces", pictures)
    (tmp_path / "faces" / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "faces" / "a" / "._0.png").write_bytes(b"nor this")
    loaded = data.load(str(tmp_path / "faces"))
    assert loaded.name == "faces" and loaded.image_shape == (5, 4, *channels)
    np.testing.assert_array_equal(loaded.labels, [0, 0, 0, 1, 1, 1])
    in_order = pictures[[0, 2, 4, 1, 3, 5]]
    np.testing.assert_allclose(loaded.images(loaded.samples), in_order / 127.5 - 1.0, atol=1e-6)
    np.savez(tmp_path / "same.npz", images=in_order)
    assert data.load(str(tmp_path / "same.npz")).digest == loaded.digest


def test_folder_without_classes_and_other_formats(tmp_path):
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (5, 4), dtype=np.uint8), rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    for name in ("a.PNG", "b.bmp", "c.JPEG"):
        Image.fromarray(grey).save(tmp_path / name)
    Image.fromarray(colour).save(tmp_path / "d.webp", lossless=True)
    loaded = data.load_folder(str(tmp_path))
    images = (loaded.images(loaded.samples) + 1.0) * 127.5
    assert loaded.labels is None and images.shape == (4, 5, 4, 3)  # one picture has colour: all get three channels
    np.testing.assert_allclose(images[:2], np.broadcast_to(grey[..., None], (2, 5, 4, 3)), atol=1e-4)
    np.testing.assert_allclose(images[3], colour, atol=1e-4)


def test_bad_folders(tmp_path):
    pictures = [np.full((4, 4), i, np.uint8) for i in range(5)]
    save_pictures(tmp_path / "sizes", [*pictures, np.zeros((4, 6), np.uint8)], "a")
    save_pictures(tmp_path / "few", pictures[:3])
    save_pictures(tmp_path / "deep", [*pictures, np.zeros((4, 4), np.uint16)], "a")
    save_pictures(tmp_path / "torn", pictures)
    (tmp_path / "torn" / "b" / "9.png").write_bytes((tmp_path / "torn" / "a" / "0.png").read_bytes()[:45])
    (tmp_path / "empty").mkdir()
    cases = {
        "sizes": r"one size, but '.*a/0.png' is 4 x 4 and '.*a/5.png' is 6 x 4",
        "few": "N >= 4",
        "deep": r"5.png' has pixels of mode I(;16)?; allowed are 8 bits",
        "torn": r"9.png' is not a readable picture",
        "empty": "no pictures in",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            data.load(str(tmp_path / name))
    for name in (str(tmp_path / "sizes"), "digits"):
        with pytest.raises(ValueError, match="has no channels first"):
            data.load(name, layout="first")


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A directory of saved data sets made of eight labelled colour pictures; the pictures' pixels."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("hf")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
    types = {"name": datasets.Value("string"), "img": datasets.Image(), "kind": datasets.ClassLabel(num_classes=3)}
    columns = {"name": list("abcdefgh"), "img": [Image.fromarray(p) for p in pixels], "kind": [0, 1, 2, 0, 1, 2, 0, 1]}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    table.save_to_disk(root / "table")
    datasets.DatasetDict({"train": table, "test": table.select(range(4))}).save_to_disk(root / "splits")
    table.to_parquet(root / "file.parquet")
    columns["kind"] = [-1] * 8
    unlabelled = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    unlabelled.save_to_disk(root / "unlabelled")
    unlabelled.remove_columns("img").save_to_disk(root / "text")
    arrays = datasets.Features({"x": datasets.Array2D((4, 3), "float32")})
    datasets.Dataset.from_dict({"x": pixels[:, 0] / 8.0}, features=arrays).save_to_disk(root / "arrays")
    return root, pixels


@pytest.mark.parametrize(
    ("name", "count"),
    [("table", 8), ("splits", 8), ("splits:test", 4), ("file.parquet", 8), ("file.parquet:train[:5]", 5)],
)
def test_hugging_face(hugging_face, name, count, monkeypatch, tmp_path):
    root, pixels = hugging_face
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    loaded = data.load(f"hf:{root}/{name}")
    assert loaded.name == name.partition(":")[0].removesuffix(".parquet")
    np.testing.assert_allclose(loaded.images(loaded.samples), pixels[:count] / 127.5 - 1.0, atol=1e-6)
    np.testing.assert_array_equal(loaded.labels, [0, 1, 2, 0, 1, 2, 0, 1][:count])


def test_hugging_face_without_labels_and_arrays(hugging_face):
    root, pixels = hugging_face
    assert data.load(f"hf:{root}/unlabelled").labels is None
    arrays = data.load(f"hf:{root}/arrays")
    assert arrays.image_shape == (4, 3)
    np.testing.assert_allclose(arrays.images(arrays.samples), pixels[:, 0] / 8.0, atol=1e-6)


def test_bad_hugging_face(hugging_face, monkeypatch):
    root, _ = hugging_face
    (root / "notes.txt").write_text("no table")
    cases = {
        "text": r"one column of type Image, Array2D or Array3D, got 0 of them among name, kind",
        "table:test": "saved as one table without splits",
        "splits:valid": "no split 'valid'; it has train, test",
        "missing": "no such file or directory",
        "notes.txt": "allowed files are .parquet",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            data.load(f"hf:{root}/{name}")
    with pytest.raises(ValueError, match="has no channels first: column img holds pictures"):
        data.load(f"hf:{root}/table", layout="first")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[data\]'"):
        data.load(f"hf:{root}/table")
