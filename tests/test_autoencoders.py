"""Autoencoders against closed forms, against each other alone and in company, and on shapes that do not divide evenly."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ldmjax.autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    LatentScale,
    fit,
    reconstruction_error,
)

IMAGES = (load_digits().images / 8.0 - 1.0).astype(np.float32)


def fitted(kind, latent_shapes, *, images=IMAGES, seeds=None, **options):
    config = AutoencoderConfig(kind=kind, **options)
    return fit(images, latent_shapes, config, seeds=seeds or [0] * len(latent_shapes), report=lambda line: None)


@pytest.mark.parametrize("count", [len(IMAGES), 40])  # 40 images of 64 pixels: axes from the Gram matrix
def test_pca_loses_exactly_the_dropped_variances(count):
    images = IMAGES[:count]
    variances = np.linalg.eigvalsh(np.cov(images.reshape(count, -1).T.astype(np.float64), bias=True))[::-1]
    for autoencoder in fitted("pca", [(1,), (7,), (40,)], images=images):
        dropped = variances[autoencoder.latent_shape[0] :].sum()
        assert reconstruction_error(autoencoder, images) == pytest.approx(dropped / 64, rel=1e-4, abs=1e-10)
        latents = autoencoder.encode(images)
        assert np.std(latents) ** 2 == pytest.approx(variances[: latents.shape[1]].mean(), rel=1e-5)
        assert autoencoder.latent_std == pytest.approx(np.std(latents), rel=1e-5)


def test_pca_knows_the_mean_of_new_images():
    (autoencoder,) = fitted("pca", [(5,)], images=IMAGES[:900])
    np.testing.assert_allclose(autoencoder.decode(np.zeros((1, 5)))[0], IMAGES[:900].mean(0), atol=1e-5)
    reference = np.linalg.svd((IMAGES[:900] - IMAGES[:900].mean(0)).reshape(900, -1), full_matrices=False)[2][:5]
    projector = reference.T @ reference
    residual = (IMAGES[900:] - IMAGES[:900].mean(0)).reshape(897, -1) @ (np.eye(64) - projector)
    assert reconstruction_error(autoencoder, IMAGES[900:]) == pytest.approx(np.mean(residual**2), rel=1e-4)


def test_identity_is_exact_for_any_image_shape():
    images = np.random.default_rng(0).normal(2.0, 3.0, (5, 3, 4, 2)).astype(np.float32)
    (autoencoder,) = fitted("identity", [(3, 4, 2)], images=images)
    np.testing.assert_array_equal(autoencoder.encode(images), images)
    np.testing.assert_array_equal(autoencoder.decode(images), images)
    assert (autoencoder.latent_mean, autoencoder.latent_std) == pytest.approx((images.mean(), images.std()))


def test_standardised_latents_have_mean_0_and_std_1_and_come_back():
    latents = np.random.default_rng(0).normal(5.0, 0.2, (100, 3)).astype(np.float32)
    scale = LatentScale.measure(latents)
    z = scale.standardise(latents)
    assert z.dtype == np.float32 and abs(z.mean()) < 1e-5 and z.std() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(scale.unstandardise(z), latents, atol=1e-6)
    for bad, message in [(np.ones((4, 2)), "must vary"), (np.array([[1.0, np.nan]]), "must be finite")]:
        with pytest.raises(ValueError, match=message):
            LatentScale.measure(bad)


@pytest.mark.parametrize(("kind", "shape"), [("pca", (3,)), ("identity", (8, 8))])
def test_encode_and_decode_keep_shapes_and_float32(kind, shape):
    (autoencoder,) = fitted(kind, [shape])
    assert isinstance(autoencoder, Autoencoder) and autoencoder.latent_shape == shape
    latents = autoencoder.encode(IMAGES[:5].astype(np.float64))
    assert latents.shape == (5, *shape) and latents.dtype == np.float32
    decoded = autoencoder.decode(latents)
    assert decoded.shape == (5, 8, 8) and decoded.dtype == np.float32
    with pytest.raises(ValueError, match=r"images must have shape \[N, 8, 8\], got \[5, 64\]"):
        autoencoder.encode(IMAGES[:5].reshape(5, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gan"}, "kind must be one of pca, identity, conv, kl, vq, got 'gan'"),
        ({"kind": "conv", "steps": 0}, "steps must be >= 1, got 0"),
        ({"kind": "conv", "downsampling": 3}, "downsampling must be a power of 2, got 3"),
        ({"kind": "kl", "kl_weight": -1.0}, "kl_weight must be >= 0, got -1"),
        ({"kind": "kl", "kl_weight": np.nan}, "kl_weight must be >= 0, got nan"),
        ({"kind": "vq", "codes": 1}, "codes must be >= 2, got 1"),
        ({"kind": "vq", "code_decay": 1.0}, "code_decay must lie strictly between 0 and 1, got 1.0"),
        ({"kind": "conv", "learning_rate": 0.0}, "learning_rate must be > 0, got 0"),
    ],
)
def test_bad_configurations_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**options)


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        ("pca", [(65,)], r"must be \(d,\) with 1 <= d <= 64.*got \(65,\)"),
        ("pca", [(2, 2, 1)], r"must be \(d,\)"),
        ("identity", [(64,)], r"must be the image shape \(8, 8\), got \(64,\)"),
    ],
)
def test_bad_latent_shapes_say_what_is_allowed(kind, shapes, message):
    with pytest.raises(ValueError, match=message):
        fitted(kind, shapes)


def test_bad_images_and_seeds_are_refused():
    with pytest.raises(ValueError, match="one seed per latent shape, got 1 seeds and 2 shapes"):
        fitted("pca", [(1,), (2,)], seeds=[0])
    with pytest.raises(ValueError, match="all finite"):
        fitted("pca", [(1,)], images=np.full((4, 8, 8), np.nan))
