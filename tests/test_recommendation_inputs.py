"""What users bring to recommend: functions, objects, images and latents, each made a candidate or refused."""

import numpy as np
import pytest

import ldmjax
from ldmjax import autoencoders, data, stopping
from ldmjax.job import Job
from ldmjax.recommendation import candidates


class TorchLike:
    """Neither an array nor a list, but numpy can read it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype or np.float64)


def test_batches_are_cut_checked_and_joined():
    sizes = []

    def function(x):
        sizes.append(len(x))
        return TorchLike(2.0 * x.reshape(len(x), -1))

    x = np.arange(7 * 4, dtype=np.float32).reshape(7, 2, 2)
    found = candidates.batched("encode", function, 3)(x)
    assert sizes == [3, 3, 1] and found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * x.reshape(7, 4))
    shaped = candidates.batched("decode", function, 100, shape=(2, 2))(x)
    np.testing.assert_array_equal(shaped, 2 * x)


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        (lambda x: 1 / 0, None, "own: ZeroDivisionError: division by zero"),
        (lambda x: x[:1], None, r"own: of 2 rows must come \[2, ...\], got \[1, 3\]"),
        (lambda x: x[:, 0], None, r"own: of 2 rows must come \[2, ...\], got \[2\]"),
        (lambda x: None, None, "own: "),
        (lambda x: [["a"] * 3] * 2, None, "own: ValueError"),
        (lambda x: x / 0, None, "own: returned NaN or infinity"),
        (lambda x: x, (2, 2), r"own: images must have shape \[2, 2\], got \[3\]"),
    ],
)
def test_what_a_users_function_may_not_return(function, shape, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message) as error:
        candidates.batched("own", function, 2, shape=shape)(np.ones((4, 3), np.float32))
    assert "\n" not in str(error.value)


def test_decoded_images_that_are_not_finite_are_the_distances_business():
    call = candidates.batched("own", lambda x: np.full_like(x, np.inf), 2, shape=(3,))
    assert np.isinf(call(np.ones((2, 3)))).all()


def test_users_objects_become_candidates():
    rng = np.random.default_rng(9)
    training, held_out = rng.standard_normal((130, 2, 3)).astype(np.float32), rng.standard_normal((128, 2, 3))
    measures = candidates.measures_of({"pixels": lambda x: x.reshape(len(x), -1)}, held_out, 0)

    class Own:
        def encode(self, x):
            return TorchLike(x.reshape(len(x), 6)[:, :4].reshape(-1, 2, 2))

        def decode(self, z):
            return TorchLike(np.pad(z.reshape(len(z), 4), [(0, 0), (0, 2)]))

    (found,) = candidates.of_autoencoders({"own": Own()}, training, measures, batch=50)
    assert found.latent_dim == 4 and found.latents.shape == (130, 2, 2) and found.training is training
    images = found.decode(found.latents)
    np.testing.assert_array_equal(images.reshape(130, 6)[:, :4], training.reshape(130, 6)[:, :4])
    assert images.shape == training.shape and images.dtype == np.float32

    rows = np.array([5, 1, 7])
    stored = {"z": rng.standard_normal((10, 4)).astype(np.float32)}
    (found,) = candidates.of_latents(stored, rows, Own().decode, training[:3], measures, batch=50)
    np.testing.assert_array_equal(found.latents, stored["z"][rows])
    np.testing.assert_array_equal(found.decode(found.latents).reshape(3, 6)[:, :4], stored["z"][rows])
    with pytest.raises(ValueError, match="decoder of z: images must have shape"):
        candidates.of_latents(stored, rows, lambda z: z, training[:3], measures, batch=50)


def test_latents_alone_are_compared_with_latents():
    rng = np.random.default_rng(10)
    z = (rng.standard_normal((500, 2, 2, 1)) * 3 + 7).astype(np.float32)
    (found,) = candidates.of_latents_alone({"z": z}, n=200, reference=150, seed=0)
    assert found.latents.shape == (200, 2, 2, 1) and list(found.measures) == ["latents"]
    reference = found.measures["latents"].reference.features
    assert reference.shape == (150, 4)
    kept = found.latents.reshape(200, 4)
    scale = kept.mean(), kept.std()
    held_out = reference * scale[1] + scale[0]
    everything = z.reshape(500, 4)
    places = [np.abs(everything - row).sum(axis=1).argmin() for row in np.concatenate([kept, held_out])]
    assert len(set(places)) == 350  # training and held-out latents are different ones
    np.testing.assert_allclose(np.concatenate([kept, held_out]), everything[places], atol=1e-4)
    np.testing.assert_allclose(found.decode(found.latents), (found.latents - scale[0]) / scale[1], atol=1e-5)
    np.testing.assert_array_equal(found.training, found.decode(found.latents))


class Flat:
    """Flattened colours; says in which order it got them."""

    def __init__(self, flat):
        self.flat, self.shapes = flat, set()

    def encode(self, images):
        self.shapes.add(images.shape[1:])
        return images.reshape(len(images), -1)

    def decode(self, z):
        return z if self.flat else z.reshape(-1, *next(iter(self.shapes)))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_users_functions_get_and_give_the_order_of_the_data(flat, channels_first):
    x = np.random.default_rng(3).standard_normal((140, 8, 6, 3)).astype(np.float32)
    measures = candidates.measures_of({"pixels": lambda images: images.reshape(len(images), -1)}, x[:130], 0)
    own = Flat(flat)
    (found,) = candidates.of_autoencoders({"own": own}, x, measures, batch=50, channels_first=channels_first)
    assert own.shapes == {(3, 8, 6) if channels_first else (8, 6, 3)}
    expected = np.moveaxis(x, -1, 1) if channels_first else x
    np.testing.assert_array_equal(found.latents, expected.reshape(140, -1))
    np.testing.assert_array_equal(found.decode(found.latents), x)
    stored = {"z": found.latents}
    (found,) = candidates.of_latents(
        stored, np.arange(140), own.decode, x, measures, batch=50, channels_first=channels_first
    )
    np.testing.assert_array_equal(found.decode(found.latents), x)
    wrong = "[3, 8, 6]" if channels_first else "[8, 6, 3]"
    with pytest.raises(ValueError, match="images must have shape") as error:
        candidates.of_latents(
            stored, np.arange(140), lambda z: z[:, :10], x, measures, batch=50, channels_first=channels_first
        )
    assert wrong in str(error.value)


def test_pooled_latents_keep_their_channels_apart():
    z = np.random.default_rng(1).standard_normal((300, 8, 16, 16)).astype(np.float32)
    z += 10 * np.arange(8)[:, None, None]
    (found,) = candidates.of_latents_alone({"z": z}, n=100, reference=150, seed=0)
    (space,) = found.measures
    reference = found.measures[space].reference.features
    assert space == "latents/2" and reference.shape == (150, 8 * 8 * 8)
    mean = reference.reshape(150, 64, 8).mean(axis=(0, 1)) * z.std() + z.mean()
    np.testing.assert_allclose(mean, 10 * np.arange(8), atol=0.3)


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_decoder_with_channels_in_the_other_place_is_taken_right(channels_first):
    x = np.random.default_rng(3).standard_normal((140, 8, 6, 3)).astype(np.float32)
    given = x if channels_first else np.moveaxis(x, -1, 1)
    decode = candidates.decoding("decode", lambda z: given[: len(z)], 200, x.shape[1:], channels_first)
    np.testing.assert_array_equal(decode(np.zeros((140, 2))), x)


# The function for notebooks.

FAST = {"samples": 300, "stops": 4, "passes": 1}


@pytest.fixture(scope="module")
def digits():
    dataset = data.digits()
    return dataset.images(dataset.samples[:600])


@pytest.fixture(scope="module")
def pca(digits):
    config = autoencoders.AutoencoderConfig(kind="pca")
    fitted = autoencoders.fit(digits, [(3,), (12,)], config, seeds=[0, 0])
    return {f"pca {d}": one for d, one in zip((3, 12), fitted, strict=True)}


def test_recommend_in_a_notebook(digits, pca, tmp_path):
    lines = []
    found = ldmjax.recommend(digits, pca, job=Job(tmp_path, show=lines.append), **FAST)
    assert {r["name"] for r in found.records} == set(pca) and len(found.recommendations) == 3
    best = found.recommendations[0]
    assert best["name"] == "pca 12" and best["verdict"] in stopping.VERDICTS and best["advice"] in found.answer
    assert found.answer.startswith("pca 12 (latent dimension 12") and found.table() in repr(found)
    assert {*pca, "training images"} <= {line.get_label() for line in found.figure().axes[0].lines}
    assert set(found.findings) < set(lines)
    again = ldmjax.recommend(digits, pca, job=Job(tmp_path), **FAST)
    assert again.records == found.records and again.seconds == found.seconds  # from the job's directory
    other = ldmjax.recommend(digits, pca, seed=1, **FAST)
    assert other.records[0]["end"] != found.records[0]["end"]


def test_recommend_with_a_reference_set_features_and_a_sampler(digits, pca):
    features, how = {"rows": lambda images: images.mean(axis=2)}, FAST | {"sampler": "flow_matching", "shift": 3}
    # Of the reference, 20 images are among the training ones and are used once.
    found = ldmjax.recommend(digits[:300], pca, reference=digits[280:560], features=features, sampling_steps=28, **how)
    record = found.records[0]
    assert (record["training_images"], record["reference_images"]) == (300, 260)
    assert "20 of 580 images repeat" in found.noticed[0]
    assert (record["features"], record["feature_dim"], record["sampler"]) == ("rows", 8, "flow_matching")
    assert 0 < (record["step"] or 28) <= 28 and record["data"] == "images"


def test_recommend_from_latents(digits, pca):
    z = {name: one.encode(digits) for name, one in pca.items()}
    alone = ldmjax.recommend(latents=z, **FAST)
    assert [r["name"] for r in alone.recommendations if r["metric"] == "w2"] == list(pca)
    assert alone.compared == "latents" and len(alone.answer.splitlines()) == 2 and "image" not in alone.answer
    with_decoder = ldmjax.recommend(digits, latents={"z": z["pca 12"]}, decoder=pca["pca 12"].decode, **FAST)
    encoded = ldmjax.recommend(digits, {"z": pca["pca 12"]}, **FAST)
    for one, other in zip(with_decoder.records, encoded.records, strict=True):
        assert one["end"] == pytest.approx(other["end"], rel=1e-5)


@pytest.mark.parametrize(("noise", "copies"), [(0.0, 2), (0.01, 1)])
def test_repeats_do_not_change_the_answer(digits, pca, noise, copies):
    """Other images are held out, so the numbers differ within their errors."""
    rng, how = np.random.default_rng(0), FAST | {"samples": 1200}
    more = [digits + noise * rng.standard_normal(digits.shape).astype(np.float32) for _ in range(copies)]
    found = ldmjax.recommend(np.concatenate([digits, *more]), pca, **how)
    (line,) = [line for line in found.noticed if "repeat" in line]
    assert f"of {600 * (copies + 1)} images" in line and ("exactly" in line) == (noise == 0)
    for a, b in zip(found.records, ldmjax.recommend(digits, pca, **how).records, strict=True):
        assert 600 <= a["training_images"] + a["reference_images"] < 605
        error = np.hypot(a["end_standard_error"], b["end_standard_error"])
        assert abs(a["end"] - b["end"]) < 4 * error and 0.5 < a["end_standard_error"] / b["end_standard_error"] < 2.0
        assert a["gain_low"] <= b["gain_high"] and b["gain_low"] <= a["gain_high"]


def test_arguments_that_do_not_go_together(digits, pca):
    z = {"z": digits.reshape(600, 64)[:, :3]}
    for arguments, message in (
        ({}, "got nothing"),
        ({"images": digits}, "got images$"),
        ({"images": digits, "autoencoders": pca, "latents": z}, "give images and autoencoders, or"),
        ({"images": digits, "latents": z}, "got images, latents"),
        ({"latents": z, "features": {"f": np.mean}}, "got features, latents"),
        ({"images": digits, "autoencoders": {}}, "autoencoders: must hold at least one"),
        ({"images": digits[:200], "autoencoders": pca}, "images: needs at least 256 images, got 200"),
        ({"images": digits, "autoencoders": pca, "n": 500}, "n: must be 64..472"),
        ({"images": digits, "autoencoders": pca, "reference": digits[:100]}, "reference: needs at least"),
        ({"images": digits, "autoencoders": pca, "reference": digits[:, :4]}, r"reference: must hold images \[8, 8\]"),
        (
            {"images": digits, "latents": {"z": z["z"][:9]}, "decoder": np.sin},
            "latents: must have one row for each of 600",
        ),
        ({"latents": {"z": np.full((300, 2), np.nan)}}, "must hold finite numbers"),
        ({"latents": {"a": z["z"], "b": z["z"][:300]}}, "one number of rows, got 600, 300"),
        ({"images": digits + np.float64(1e9), "autoencoders": pca}, "float32 can hold"),
        (
            {"images": (digits + 1) / 2, "autoencoders": {"own": Clipped(pca["pca 12"])}},
            r"brought from \[0, 1\] to \[-1, 1\]",
        ),
        ({"images": digits, "autoencoders": pca, "features": {"f": lambda x: x}}, r"features f of .* images must be"),
        ({"images": digits, "autoencoders": pca, "sampler": "edm", "shift": 3}, "shift: allowed only"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            ldmjax.recommend(**arguments)
        assert "\n" not in str(error.value)


class Clipped:
    """Gives values in [-1, 1], as networks do."""

    def __init__(self, inner):
        self.inner = inner

    def encode(self, images):
        return self.inner.encode(images)

    def decode(self, latents):
        return np.clip(self.inner.decode(latents), -1, 1)
