"""Autoencoders against closed forms, against each other alone and in company, and on shapes that do not divide evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ldmjax import devices, loops
from ldmjax.autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    LatentScale,
    fit,
    neural,
    reconstruction_error,
)
from ldmjax.autoencoders.convolutional import ConvolutionalNetwork, Doubling, Halving, geometry_of
from ldmjax.autoencoders.fitting import (
    AutoencoderSpec,
    batch_loss,
    coding_programs,
    kl_to_standard_normal,
    train_autoencoders,
    training_program,
)
from ldmjax.autoencoders.quantiser import DEAD, Codebook, nearest, reseed, straight_through, updated
from ldmjax.job import Job

SMALL = {"channels": 16, "downsampling": 2, "eval_batch": 500}
IMAGES = (load_digits().images / 8.0 - 1.0).astype(np.float32)


def fitted(kind, latent_shapes, *, images=IMAGES, seeds=None, **options):
    config = AutoencoderConfig(kind=kind, **options)
    return fit(images, latent_shapes, config, seeds=seeds or [0] * len(latent_shapes))


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


@pytest.fixture(scope="module")
def trained():
    return fitted("conv", [(2,), (6,)], seeds=[3, 4], steps=800, batch_size=32, learning_rate=0.01, **SMALL)


@pytest.fixture(scope="module")
def quantised():
    return fitted("vq", [(4,), (8,)], steps=150, batch_size=32, codes=16, learning_rate=0.01, **SMALL)


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
        ("conv", [(3, 4, 1)], r"must have sides \(4, 4\), \(2, 2\), \(1, 1\), got \(3, 4\)"),
        ("conv", [(2, 2)], r"must be \(d,\) or \(h, w, c\), all >= 1, got \(2, 2\)"),
        ("vq", [(4,), (3,)], r"multiples of code_dim = 2, got \(3,\)"),
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
    with pytest.raises(ValueError, match=r"images must be \[N, H, W\] or \[N, H, W, C\], got \[N, 64\]"):
        fitted("conv", [(1,)], images=IMAGES.reshape(-1, 64))


def test_convolutional_autoencoders_beat_pca_at_equal_latent_dimension(trained):
    for autoencoder, pca in zip(trained, fitted("pca", [(2,), (6,)]), strict=True):
        assert reconstruction_error(autoencoder, IMAGES) < 0.9 * reconstruction_error(pca, IMAGES)
        assert autoencoder.failed_at == -1 and autoencoder.losses.shape == (8,)


def test_a_run_in_company_equals_the_run_alone(trained):
    options = dict(steps=800, batch_size=32, learning_rate=0.01, **SMALL)
    for company, shape, seed in zip(trained, [(2,), (6,)], [3, 4], strict=True):  # (2,) alone is a narrower program
        (alone,) = fitted("conv", [shape], seeds=[seed], **options)
        # Float rounding differs with the width and grows over 800 steps; another draw would differ by the whole error.
        np.testing.assert_allclose(alone.losses, company.losses, rtol=2e-3)
        error = reconstruction_error(company, IMAGES)
        assert reconstruction_error(alone, IMAGES) == pytest.approx(error, rel=1e-2)


def test_the_seed_decides_everything(trained):
    options = dict(steps=800, batch_size=32, learning_rate=0.01, **SMALL)
    again, other = fitted("conv", [(6,), (6,)], seeds=[4, 5], **options)
    np.testing.assert_array_equal(again.encode(IMAGES[:20]), trained[1].encode(IMAGES[:20]))
    assert np.abs(other.encode(IMAGES[:20]) - again.encode(IMAGES[:20])).max() > 0.1


@pytest.mark.parametrize("kind", ["conv", "kl", "vq"])
def test_a_loop_of_fixed_length_does_the_same_steps(kind, monkeypatch):
    """What an accelerator runs: all runs at once, steps beyond the last that change nothing, codebooks among it."""
    monkeypatch.setattr(loops, "MOST_PER_CALL", 20)
    config = AutoencoderConfig(kind=kind, steps=30, batch_size=16, codes=8, warm_up=0, **SMALL)
    geometry = geometry_of((8, 8), (4,), downsampling=2)
    specs = [AutoencoderSpec(name="fixed", seed=seed, latent_dim=d) for seed, d in enumerate((2, 4))]

    def trained():
        pixels, options = IMAGES[:200, ..., None], {"runs_per_batch": None, "job": Job()}
        return train_autoencoders(specs, pixels, config, geometry, **options)

    told = trained()
    with devices.made_for("tpu"):
        fixed = trained()
    np.testing.assert_allclose(fixed[1], told[1], rtol=2e-5)
    for a, b in zip(jax.tree.leaves(fixed[0]), jax.tree.leaves(told[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_convolutions_equal_those_of_jax():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    dims = ("NHWC", "HWIO", "NHWC")
    halving = Halving(3, 5, rng=np.random.default_rng(1))
    kernel = halving.kernel[...].reshape(4, 4, 3, 5)
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims)
    np.testing.assert_allclose(halving(x), expected, atol=1e-5)
    doubling = Doubling(3, 5, rng=np.random.default_rng(2))
    # Columns are (block row, block column, row in block, column in block, channel).
    kernel = doubling.kernel[...].reshape(3, 2, 2, 2, 2, 5).transpose(1, 3, 2, 4, 0, 5).reshape(4, 4, 3, 5)
    # A stride-2 kernel-4 transposed convolution is the adjoint of the forward one with inputs and outputs exchanged.
    forward = lambda y: jax.lax.conv_general_dilated(  # noqa: E731
        y, kernel.transpose(0, 1, 3, 2), (2, 2), "SAME", dimension_numbers=dims
    )
    (expected,) = jax.linear_transpose(forward, jax.ShapeDtypeStruct((2, 12, 16, 5), jnp.float32))(x)
    np.testing.assert_allclose(doubling(x), expected, atol=1e-5)


def test_kl_against_the_closed_form_and_monte_carlo():
    mean, log_var = np.array([0.7, -1.5, 0.0]), np.array([-1.0, 0.5, 0.0])
    kl = kl_to_standard_normal(jnp.asarray(mean), jnp.asarray(log_var))
    # -0.5 * (1 + v - mu^2 - e^v), Kingma & Welling, arXiv 1312.6114, appendix B.
    np.testing.assert_allclose(kl, -0.5 * (1 + log_var - mean**2 - np.exp(log_var)), atol=1e-6)
    std = np.exp(0.5 * log_var)
    z = mean + std * np.random.default_rng(0).standard_normal((40_000, 3))
    ratio = 0.5 * z**2 - 0.5 * ((z - mean) / std) ** 2 - 0.5 * log_var
    assert np.all(np.abs(ratio.mean(0) - kl) <= 4 * ratio.std(0) / 200 + 1e-6)


def loss_parts(kind, **options):
    """A network, its codebook and the loss of one batch at initialisation."""
    config = AutoencoderConfig(kind=kind, codes=4, **SMALL, **options)
    geometry = geometry_of((8, 8), (4,), downsampling=2)
    network = ConvolutionalNetwork(geometry, config, latent_dim=4, rng=np.random.default_rng(0))
    codebook = (
        Codebook(jnp.full(4, 50.0), 50.0 * jax.random.normal(jax.random.key(5), (4, 2))) if kind == "vq" else None
    )
    x = jnp.asarray(IMAGES[:16, ..., None])
    loss, after = batch_loss(config, geometry, network, codebook, jnp.asarray(4), x=x, key=jax.random.key(1))
    return network, codebook, x, float(loss), after


def test_the_losses_are_the_equations():
    network, _, x, loss, _ = loss_parts("conv")
    z, _ = network.encode(x, jnp.ones(4))
    assert loss == pytest.approx(float(jnp.mean((network.decode(z, jnp.ones(4)) - x) ** 2)), rel=1e-5)
    network, _, x, loss, _ = loss_parts("kl", kl_weight=3.0)
    z, _ = network.encode(x, jnp.ones(4))  # log variance 0 at initialisation: KL = |mu|^2 / 2
    noisy = z + jax.random.normal(jax.random.key(1), (4, 16)).T
    error = np.mean((network.decode(noisy, jnp.ones(4)) - x) ** 2)
    assert loss == pytest.approx(float(error + 3.0 * jnp.mean(jnp.sum(z**2, axis=1)) / 2 / 64), rel=1e-5)
    network, codebook, x, loss, _ = loss_parts("vq", commitment=0.7)
    z, _ = network.encode(x, jnp.ones(4))
    distances = np.linalg.norm(np.asarray(z).reshape(16, 2, 1, 2) - np.asarray(codebook.codes), axis=-1)
    quantised = np.asarray(codebook.codes)[distances.argmin(-1)].reshape(16, 4)
    error = np.mean((network.decode(jnp.asarray(quantised), jnp.ones(4)) - x) ** 2)
    assert loss == pytest.approx(float(error + 0.7 * jnp.mean((z - quantised) ** 2)), rel=1e-5)


def test_the_gradient_passes_straight_through_the_quantiser():
    codes = jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
    z = jnp.asarray([[0.2, 0.1], [0.9, 0.6]])
    weights = jnp.asarray([[1.0, -2.0], [3.0, 0.5]])

    def decoder(q):
        return jnp.sum(weights * q**3)

    def through(z):
        return decoder(straight_through(z, codes[nearest(codes, z)]))

    assert float(through(z)) == pytest.approx(float(decoder(codes)))
    np.testing.assert_allclose(jax.grad(through)(z), jax.grad(decoder)(codes), atol=1e-6)


def test_the_codebook_moves_as_the_equation_says():
    codebook = Codebook(jnp.asarray([2.0, 4.0]), jnp.asarray([[2.0, 0.0], [0.0, 8.0]]))
    np.testing.assert_allclose(codebook.codes, [[1.0, 0.0], [0.0, 2.0]])
    pieces = jnp.asarray([[[1.0, 0.2], [0.1, 1.5], [9.0, 9.0]], [[0.0, 3.0], [0.0, 2.5], [9.0, 9.0]]])
    index = nearest(codebook.codes, pieces)
    np.testing.assert_array_equal(index[:, :2], [[0, 1], [1, 1]])
    after = updated(codebook, pieces, index, 2, decay=0.9)  # the third piece of each image is padding
    np.testing.assert_allclose(after.count, [0.9 * 2 + 0.1, 0.9 * 4 + 0.3], rtol=1e-6)
    np.testing.assert_allclose(after.total, [[1.8 + 0.1, 0.02], [0.01, 7.2 + 0.7]], rtol=1e-5)
    np.testing.assert_allclose(after.codes[1], [0.01 / 3.9, 7.9 / 3.9], rtol=1e-5)


def test_dead_codes_move_to_pieces_of_the_batch_and_living_ones_stay():
    pieces = jax.random.normal(jax.random.key(0), (5, 3, 2))
    share = 5 * 2 / 24  # 2 real pieces of 3 in each of 5 images, 24 codes
    count = jnp.zeros(24).at[:3].set(jnp.asarray([1.01 * DEAD * share, 0.99 * DEAD * share, 7.0]))
    codebook = Codebook(count, jnp.ones((24, 2)) * count[:, None])
    after = reseed(codebook, pieces, 2, jax.random.key(1))
    alive = np.isin(np.arange(24), [0, 2])
    np.testing.assert_allclose(after.count, np.where(alive, count, share), rtol=1e-6)
    np.testing.assert_allclose(after.codes[alive], 1.0, rtol=1e-6)
    distances = np.linalg.norm(pieces[:, :2].reshape(-1, 1, 2) - after.codes[~alive], axis=-1)
    assert distances.min(axis=0).max() < 1e-5  # every one of the 22 is a real piece
    assert len(set(distances.argmin(axis=0))) > 3


def test_padded_latent_entries_are_zero_and_not_read():
    network, _, x, _, _ = loss_parts("kl")
    network.log_var[...] = jnp.ones_like(network.log_var[...])
    mask = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    for latents in network.encode(x, mask):
        assert np.all(latents[:, 2:] == 0) and np.all(latents[:, :2] != 0)
    z = network.encode(x, mask)[0]
    np.testing.assert_array_equal(network.decode(z, mask), network.decode(z + 9.0 * (1.0 - mask), mask))


def test_vq_decodes_the_quantised_latent_and_counts_its_codes(quantised):
    for autoencoder in quantised:
        latents = autoencoder.encode(IMAGES)
        codes, numbers = np.asarray(autoencoder.codes), autoencoder.code_numbers(latents)
        pieces = latents.reshape(len(latents), -1, 2)
        assert numbers.shape == pieces.shape[:2]
        distances = np.linalg.norm(pieces[..., None, :] - codes, axis=-1)
        np.testing.assert_array_equal(numbers, distances.argmin(-1))
        snapped = codes[numbers].reshape(latents.shape)
        assert np.abs(snapped - latents).max() > 0.01  # encode does not quantise
        np.testing.assert_allclose(autoencoder.decode(latents), autoencoder.decode(snapped), atol=1e-5)
        shares = np.bincount(numbers.ravel()) / numbers.size
        perplexity = np.prod(np.where(shares > 0, shares, 1.0) ** -shares)
        assert autoencoder.perplexity == pytest.approx(perplexity, rel=1e-5) and 4 < perplexity <= 16
    assert reconstruction_error(quantised[1], IMAGES) < 0.5 * IMAGES.var(axis=0).mean()


def test_vq_alone_equals_vq_in_company(quantised):
    (alone,) = fitted("vq", [(4,)], steps=150, batch_size=32, codes=16, learning_rate=0.01, **SMALL)
    np.testing.assert_allclose(alone.losses, quantised[0].losses, rtol=1e-2)


@pytest.mark.parametrize(
    ("kind", "image_shape", "latent_shapes"),
    [pytest.param("kl", (7, 5), [(3,), (1,)], marks=pytest.mark.slow), ("vq", (7, 5, 2), [(4, 3, 2), (4, 3, 1)])],
)
def test_odd_sides_and_maps_keep_shapes_and_float32(kind, image_shape, latent_shapes):
    images = np.random.default_rng(0).normal(size=(7, *image_shape)).astype(np.float32)
    lines = []
    config = AutoencoderConfig(kind=kind, channels=4, downsampling=4, steps=101, batch_size=4, codes=3, eval_batch=4)
    made = fit(
        images, latent_shapes, config, seeds=[0] * len(latent_shapes), job=Job(show=lines.append, line_every=0.0)
    )
    assert len(lines) == 3 and f"{len(made)} runs of 101 steps" in lines[0] and "step 101/101, loss " in lines[2]
    for autoencoder, shape in zip(made, latent_shapes, strict=True):
        latents = autoencoder.encode(images)
        assert autoencoder.latent_shape == shape and latents.shape == (7, *shape) and latents.dtype == np.float32
        assert (autoencoder.latent_mean, autoencoder.latent_std) == pytest.approx(
            (latents.mean(), latents.std()), rel=1e-4
        )
        decoded = autoencoder.decode(latents)
        assert decoded.shape == images.shape and decoded.dtype == np.float32 and np.all(np.isfinite(decoded))
        # 7 images in batches of 4: one program, and the images of a short batch are not changed by its padding.
        np.testing.assert_allclose(autoencoder.encode(images[:1]), latents[:1], atol=1e-6)
        np.testing.assert_allclose(autoencoder.decode(latents[6:]), decoded[6:], atol=1e-6)
        assert autoencoder.encode(images[:0]).shape == (0, *shape)
    coding = coding_programs(config, made[0].geometry)
    assert [program._cache_size() for program in (coding.encode, coding.decode)] == [1, 1]
    assert training_program(config, made[0].geometry, None).compilations == 1


def test_a_diverged_run_is_marked_its_scale_is_nan_and_the_others_are_untouched(quantised, monkeypatch):
    def diverging(*args, **options):
        state, losses = train_autoencoders(*args, **options)
        return state._replace(failed_at=state.failed_at.at[0].set(7)), losses

    monkeypatch.setattr(neural, "train_autoencoders", diverging)
    bad, good = fitted("vq", [(4,), (8,)], steps=150, batch_size=32, codes=16, learning_rate=0.01, **SMALL)
    assert bad.failed_at == 7 and np.isnan([bad.latent_std, bad.latent_mean, bad.perplexity]).all()
    assert good.failed_at == -1 and good.scale == quantised[1].scale and good.perplexity == quantised[1].perplexity
