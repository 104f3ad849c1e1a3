"""Pixels, the classifier and its cache, linear maps, the user's functions, and every refusal."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from experiments.launch.data import FeatureSettings
from experiments.launch.settings import SettingError
from ldmjax import data, devices, features
from ldmjax.features.classifier import classifier
from ldmjax.job import Job

SMALL = features.ClassifierConfig(hidden=32, steps=200, batch_size=64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def dataset_of(images, labels=None):
    return data.from_samples("images", images.reshape(len(images), -1), images.shape[1:], labels=labels)


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_small_pixels_are_the_values(digits):
    found = features.load("pixels", digits)
    assert (found.name, found.dim, found.accuracy) == ("pixels", 64, None)
    images = digits.images(digits.samples)
    np.testing.assert_array_equal(found(images), images.reshape(1797, 64))
    assert found(images).dtype == np.float32 and found(images[:0]).shape == (0, 64)


@pytest.mark.parametrize(
    ("shape", "name", "dim"),
    [
        ((32, 32), "pixels", 1024),
        ((33, 32), "pixels/2", 17 * 16),
        ((64, 48, 3), "pixels/4", 576),
        ((2000,), "pixels", 2000),
    ],
)
def test_large_pixels_are_pooled(shape, name, dim):
    found = features.load("pixels", dataset_of(random_images(4, *shape)))
    assert (found.name, found.dim) == (name, dim)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_average_pool(channels):
    images = random_images(3, 5, 4, *channels)
    pooled = features.average_pool(images)
    assert pooled.shape == (3, 3, 2, *channels)
    np.testing.assert_allclose(pooled[1, 1, 0], (images[1, 2:4, :2]).mean(axis=(0, 1)), atol=1e-12)
    np.testing.assert_allclose(pooled[2, 2, 1], images[2, 4, 2:].mean(axis=0), atol=1e-12)  # the odd row


@pytest.mark.parametrize("shape", [(4, 28, 28, 3), (4, 3, 28, 28), (4, 1, 64, 40), (4, 4, 20, 33)])
def test_pooling_never_mixes_colours(tmp_path, shape):
    """Every colour has its own value; pooled images still hold nothing but them."""
    first = shape[1] <= 4
    colours = np.arange(4.0)[: shape[1] if first else shape[3]] ** 2
    images = np.zeros(shape) + (colours[:, None, None] if first else colours)
    images *= np.arange(1.0, 5.0)[:, None, None, None]
    np.savez(tmp_path / "x.npz", images=images)
    dataset = data.load(str(tmp_path / "x.npz"))
    found = features.load("pixels", dataset)
    height, width = (shape[2], shape[3]) if first else (shape[1], shape[2])
    assert found.dim == -(-height // 2) * -(-width // 2) * len(colours) and found.name == "pixels/2"
    pooled = found(dataset.images(dataset.samples)).reshape(4, -1, len(colours))
    np.testing.assert_allclose(
        pooled,
        np.broadcast_to(images[:, :, :1, :1].reshape(4, 1, -1), pooled.shape)
        if first
        else np.broadcast_to(images[:, :1, 0], pooled.shape),
        atol=1e-5,
    )


def test_pooling_of_arrays_with_channels_first():
    images = random_images(2, 8, 16, 16).astype(np.float32)
    name, function = features.pixels((8, 16, 16), channels_first=True)
    assert name == "pixels/2"
    expected = images.reshape(2, 8, 8, 2, 8, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(function(images), np.moveaxis(expected, 1, -1).reshape(2, -1), atol=1e-6)
    np.testing.assert_array_equal(
        features.pixels((8, 8, 8), channels_first=True)[1](images[:, :, :8, :8]), images[:, :, :8, :8].reshape(2, -1)
    )


def test_users_maps_take_images_as_they_were_given(tmp_path, monkeypatch):
    images, weight = random_images(20, 3, 8, 10), random_images(240, 5)
    np.savez(tmp_path / "x.npz", images=images)
    np.savez(tmp_path / "map.npz", weight=weight)
    (tmp_path / "layout_of_test.py").write_text(
        "def f(x):\n    return x[:, 1, :, 9] if x.shape[1:] == (3, 8, 10) else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dataset = data.load(str(tmp_path / "x.npz"))
    ours = dataset.images(dataset.samples)
    assert ours.shape == (20, 8, 10, 3)
    np.testing.assert_allclose(features.load("layout_of_test:f", dataset)(ours), images[:, 1, :, 9], atol=1e-6)
    linear = features.load(str(tmp_path / "map.npz"), dataset)
    np.testing.assert_allclose(linear(ours), images.reshape(20, 240) @ weight, atol=1e-4)


def test_images_that_are_not_finite_or_have_another_shape(digits, tmp_path):
    np.savez(tmp_path / "sum.npz", weight=np.ones((64, 1)))
    found = features.load(str(tmp_path / "sum.npz"), digits)
    images = digits.images(digits.samples[:3])
    images[1, 2, 3] = np.inf
    values = found(images)
    assert np.isnan(values[1]).all()
    np.testing.assert_allclose(values[[0, 2], 0], images[[0, 2]].sum(axis=(1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"images must be \[N, \(8, 8\)\], got \[3, 64\]"):
        found(images.reshape(3, 64))


def test_linear_map(digits, tmp_path):
    weight, bias = random_images(64, 5), np.arange(5.0)
    np.savez(tmp_path / "map.npz", weight=weight, bias=bias)
    found = features.load(str(tmp_path / "map.npz"), digits)
    images = digits.images(digits.samples)
    assert (found.name, found.dim) == ("map", 5)
    np.testing.assert_allclose(found(images), images.reshape(-1, 64).astype(float) @ weight + bias, atol=1e-4)
    np.savez(tmp_path / "other.npz", weight=weight, bias=bias + 1e-3)
    assert features.load(str(tmp_path / "other.npz"), digits).digest != found.digest
    assert features.load(str(tmp_path / "map.npz"), digits).digest == found.digest


def test_bad_linear_maps(digits, tmp_path):
    cases = {
        "keys": ({"w": np.ones((64, 2))}, "has keys w; needs 'weight'"),
        "rows": ({"weight": np.ones((63, 2))}, r"weight \[D = 64, F\] and bias \[F\], got \[63, 2\] and \[2\]"),
        "bias": ({"weight": np.ones((64, 2)), "bias": np.ones(3)}, r"got \[64, 2\] and \[3\]"),
        "text": ({"weight": np.array(["a"])}, "not a readable"),
        "nan": ({"weight": np.full((64, 2), np.nan)}, "features nan of the first 16 images hold NaN"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            features.load(str(tmp_path / f"{name}.npz"), digits)
    with pytest.raises(ValueError, match="no file"):
        features.load("missing.npz", digits)


USER = """
import numpy as np
def corner(images):
    assert images.dtype == np.float32 and images.shape[1:] == (8, 8) and len(images) <= 1024
    return images[:, :2, 0].astype(np.float64)
class Net:
    @staticmethod
    def total(images): return images.sum((1, 2))[:, None]
def flat(images): return images.sum((1, 2))
def short(images): return images[:-1, 0]
def nan(images): return images[:, 0] * np.nan
def fails(images): raise RuntimeError("out of memory")
def uneven(images): return images[:, 0, : 2 if len(images) == 16 else 3]
number = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A user's module in the current directory, of a name that no other test has."""
    name = f"user_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(USER)
    (tmp_path / f"broken_{name}.py").write_text("import torch_that_is_missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return name


def test_user_function(digits, user_module):
    found = features.load(f"{user_module}:corner", digits)
    images = digits.images(digits.samples)
    assert (found.name, found.dim) == (f"{user_module}:corner", 2)
    np.testing.assert_array_equal(found(images), images[:, :2, 0])
    assert features.load(f"{user_module}:Net.total", digits).dim == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{}:flat", r"of 16 images must be \[16, F\], got \[16\]"),
        ("{}:short", r"must be \[16, F\], got \[15, 8\]"),
        ("{}:nan", "of the first 16 images hold NaN"),
        ("{}:fails", "RuntimeError: out of memory"),
        ("{}:missing", "has no 'missing'"),
        ("{}:number", "must be callable, got int"),
        ("{}:", "must have the form package.module:name"),
        ("no_such_module_of_anyone:f", "does not load: ModuleNotFoundError"),
        ("broken_{}:f", "does not load: ModuleNotFoundError: No module named 'torch_that_is_missing'"),
        ("inception", r"unknown features 'inception': allowed are pixels \| classifier"),
    ],
)
def test_bad_descriptions(digits, user_module, word, message):
    with pytest.raises(ValueError, match=message) as caught:
        features.load(word.format(user_module), digits)
    assert "\n" not in str(caught.value)


def test_user_function_that_changes_its_width(digits, user_module):
    found = features.load(f"{user_module}:uneven", digits)
    with pytest.raises(ValueError, match="got 3 per image here and 2 before"):
        found(digits.images(digits.samples[:20]))


def test_data_without_samples_or_labels():
    for description in ("pixels", "classifier"):
        with pytest.raises(ValueError, match="features need images"):
            features.load(description, data.spectrum("power:1", 8))
    with pytest.raises(ValueError, match="images has no labels"):
        features.load("classifier", dataset_of(random_images(8, 4, 4)))
    with pytest.raises(ValueError, match="labels of one class"):
        features.load("classifier", dataset_of(random_images(8, 4, 4), np.ones(8, int)))


def test_classifier_features_tell_classes_apart(digits):
    """Nearest class mean in 64 features, on images that it was not trained on, against the same on pixels."""
    train, held_out = digits.split_indices(n=1400, seed=5)
    images = digits.images(digits.samples)
    known = data.from_samples("known", images[train].reshape(-1, 64), (8, 8), labels=digits.labels[train] + 7)
    function, accuracy = classifier(known, SMALL)

    def nearest_mean_accuracy(map_):
        values, labels = map_(images), digits.labels
        means = np.stack([values[train][labels[train] == c].mean(axis=0) for c in range(10)])
        distances = ((values[held_out][:, None] - means) ** 2).sum(axis=2)
        return np.mean(distances.argmin(axis=1) == labels[held_out])

    learned, plain = nearest_mean_accuracy(function), nearest_mean_accuracy(lambda x: x.reshape(-1, 64))
    assert function(images).shape == (1797, 64)
    assert learned > plain + 0.02 and learned > 0.93
    # The accuracy that it states is that of 140 images: three standard errors of a share near 0.95.
    assert abs(accuracy - learned) < 0.06


def test_classifier_that_cannot_know_is_at_chance():
    """Labels that do not depend on the images: the accuracy is that of held-out images, not of trained ones."""
    labels = np.random.default_rng(1).integers(0, 2, 400)
    accuracy = classifier(dataset_of(random_images(400, 16, 16), labels), SMALL)[1]
    assert abs(accuracy - 0.5) < 4 * 0.5 / np.sqrt(40)


def test_classifier_is_trained_once(cache, digits):
    lines = []
    first, accuracy = classifier(digits, SMALL, job=Job(show=lines.append, line_every=0.0))
    images = digits.images(digits.samples[:40])
    values = first(images)
    assert sum("steps/s" in line and "s left" in line for line in lines) == 4 and "held-out images right" in lines[-1]
    files = list(cache.iterdir())
    assert len(files) == 1 and files[0].suffix == ".npz"

    def again(expected_trainings, dataset=digits, config=SMALL):
        lines.clear()
        function, same = classifier(dataset, config, job=Job(show=lines.append, line_every=0.0))
        assert sum("steps/s" in line for line in lines) == 4 * expected_trainings
        return function(images), same

    values_again, same = again(0)
    np.testing.assert_array_equal(values_again, values)
    assert same == accuracy
    content = files[0].read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:300] + bytes([content[300] ^ 255]) + content[301:]):
        files[0].write_bytes(damaged)
        np.testing.assert_array_equal(again(1)[0], values)  # the seed is fixed: trained anew, the same numbers
        assert files[0].read_bytes() == content
    np.savez(files[0], parameters=np.zeros(3, np.float32), accuracy=1.0)
    np.testing.assert_array_equal(again(1)[0], values)
    other = dataclasses.replace(digits, labels=digits.labels[::-1].copy())
    assert again(1, other)[1] != accuracy
    assert len(list(cache.iterdir())) == 2
    with devices.made_for("gpu"):  # whose products round otherwise
        again(1)
    assert len(list(cache.iterdir())) == 3


def test_classifier_without_a_place_for_its_cache(cache, digits):
    cache.write_text("a file where the directory should be")
    lines = []
    classifier(digits, SMALL, job=Job(show=lines.append, line_every=0.0))
    assert any("not kept for the next time" in line for line in lines)


def test_only_the_first_process_writes_the_cache(cache, digits, monkeypatch):
    with monkeypatch.context() as other_process:
        other_process.setattr(jax, "process_index", lambda: 1)
        own = classifier(digits, SMALL)[1]
    assert not cache.exists()
    assert classifier(digits, SMALL)[1] == own and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", 0), ("features", 0), ("batch_size", 0), ("steps", 3), ("steps", 202), ("held_out", 1.0)],
)
def test_bad_configuration(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
        features.ClassifierConfig(**{field: value})


def test_feature_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twin").mkdir()
    for name in ("map.npz", "twin/map.npz"):
        np.savez(tmp_path / name, weight=np.ones((64, 3)))
    found = FeatureSettings(features=("pixels", "map.npz")).load_features(data.digits())
    assert [(f.name, f.dim) for f in found] == [("pixels", 64), ("map", 3)]
    for refused in (("pixels", "pixels"), ("pixels", "inception")):
        with pytest.raises(SettingError, match="features="):
            FeatureSettings(features=refused)
    with pytest.raises(SettingError, match="must have different names, got map, map"):
        FeatureSettings(features=("map.npz", "twin/map.npz")).load_features(data.digits())
