"""Metrics from samples against closed forms between Gaussians and against brute-force leave-one-block-out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, wasserstein_distance

from ldmjax import devices, gaussians, metrics

RNG = np.random.default_rng(0)
DIM, LATENT, COUNT = 5, 3, 8192


def covariance(rng, dim):
    factor = rng.standard_normal((dim, dim))
    return factor @ factor.T / dim + 0.1 * np.eye(dim)


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:, :LATENT]
    target, latent = covariance(rng, DIM), covariance(rng, LATENT)
    draws = rng.multivariate_normal(np.full(DIM, 0.2), target, COUNT)
    reference = metrics.Reference(mean=np.full(DIM, 0.2), covariance=target, samples=draws)
    return basis, latent, reference


def test_estimates_agree_with_closed_forms(setting):
    basis, latent, reference = setting
    rng = np.random.default_rng(2)
    z = rng.multivariate_normal(np.full(LATENT, -0.1), latent, COUNT)
    found = metrics.distances(z, reference, basis=basis, directions=48)
    mean, cov = basis @ np.full(LATENT, -0.1), basis @ latent @ basis.T
    law = (mean, cov, reference.mean, reference.covariance)
    unit = np.random.default_rng([0, 1]).standard_normal((48, DIM))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    within = (basis.T @ reference.mean, basis.T @ reference.covariance @ basis, np.full(LATENT, -0.1), latent)
    exact = {
        "w2": gaussians.w2_squared(*law),
        "mmd": gaussians.mmd_squared(*law, bandwidth=reference.bandwidth),
        "sliced_w2": gaussians.sliced_w2_squared(*law, directions=unit),
        "kl": gaussians.kl_divergence(*within),
    }
    for metric, (value, error) in found.items():
        # The reference's own draws enter mmd and sliced_w2: two samples' errors instead of one.
        spread = error * (np.sqrt(2) if metric in ("mmd", "sliced_w2") else 1)
        assert abs(value - exact[metric]) < 4 * spread, metric


def test_jackknife_removes_the_bias_of_w2():
    """With 512 samples in 16 dimensions the plug-in value is off by many standard errors, the jackknife is not."""
    dim, count, repeats = 16, 512, 40
    rng = np.random.default_rng(3)
    reference = metrics.Reference(mean=np.zeros(dim), covariance=np.eye(dim), samples=np.zeros((64, dim)))
    debiased, plain = [], []
    for _ in range(repeats):
        z = rng.standard_normal((count, dim)) * np.sqrt(1.2)
        moments = [np.asarray(m)[None] for m in metrics.block_moments(jnp.asarray(z, jnp.float32), blocks=64)]
        debiased.append(metrics.moment_pseudo_values(*moments, reference, np.eye(dim))["w2"].mean())
        plain.append(gaussians.w2_squared(z.mean(0), np.cov(z.T, bias=True), np.zeros(dim), np.eye(dim)))
    exact = dim * (np.sqrt(1.2) - 1) ** 2
    error = np.std(debiased) / np.sqrt(repeats)
    assert abs(np.mean(debiased) - exact) < 4 * error
    assert np.mean(plain) - exact > 10 * error


@pytest.mark.parametrize("metric", ["w2", "kl", "mmd"])
def test_pseudo_values_are_leave_one_block_out(setting, metric):
    basis, latent, reference = setting
    blocks, count = 8, 256
    z = np.random.default_rng(4).multivariate_normal(np.zeros(LATENT), latent, count).astype(np.float32)
    encoded = metrics.latent_reference(reference, basis, count=count, kernel_count=count, directions=4)
    statistics = metrics.sample_statistics(jnp.asarray(z), encoded, blocks=blocks)
    statistics = jax.tree.map(lambda x: np.asarray(x)[None], statistics)
    found = metrics.pseudo_values(statistics, reference, basis, count=count, kernel_count=count)[metric][:, 0]

    def value(points):
        points = points.astype(np.float64)
        mean, cov = points.mean(0), np.cov(points.T, bias=True)
        if metric == "w2":
            return gaussians.w2_squared(basis @ mean, basis @ cov @ basis.T, reference.mean, reference.covariance)
        if metric == "kl":
            return gaussians.kl_divergence(basis.T @ reference.mean, basis.T @ reference.covariance @ basis, mean, cov)
        x, y = points @ basis.T, reference.samples[:count]

        def kernel(a, b):
            return np.exp(-0.5 * ((a[:, None] - b) ** 2).sum(-1) / reference.bandwidth**2)

        own = [k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y))]
        pairs = [len(a) * (len(a) - 1) for a in (x, y)]
        return own[0] / pairs[0] + own[1] / pairs[1] - 2 * kernel(x, y).mean()

    full = value(z)
    parts = [value(np.delete(z.reshape(blocks, -1, LATENT), k, axis=0).reshape(-1, LATENT)) for k in range(blocks)]
    expected = blocks * full - (blocks - 1) * np.array(parts)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5 * blocks)  # float32 sums, times K


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_sliced_value_and_derivative(platform):
    """Against sorting in float64, and the derivative in a block's weight by finite difference of repeated samples."""
    rng = np.random.default_rng(5)
    count, blocks = 512, 4
    values, ranks = rng.standard_normal(count), (np.arange(count) + 0.5) / count
    quantiles = np.quantile(rng.standard_normal(4096) * 1.5 + 0.3, ranks)
    with devices.made_for(platform):
        value, potential = metrics.sliced_statistics(
            jnp.asarray(values, jnp.float32)[:, None], jnp.asarray(quantiles, jnp.float32)[None], blocks
        )
    pairs = 0.5 * (quantiles[::2] + quantiles[1::2])
    plain = np.mean((np.sort(values) - quantiles) ** 2)
    halves = np.mean([np.mean((np.sort(half) - pairs) ** 2) for half in (values[:256], values[256:])])
    assert value == pytest.approx(2 * plain - halves, rel=1e-4)
    weights = np.full(count, 1.0 / count)
    step = 1e-3
    weights[: count // blocks] += step / (count // blocks)
    weights /= weights.sum()

    def weighted(w):
        order = np.argsort(values)
        edges = np.concatenate([[0], np.cumsum(w[order])])
        grid = (np.arange(200_000) + 0.5) / 200_000
        x = values[order][np.clip(np.searchsorted(edges, grid, side="right") - 1, 0, count - 1)]
        return np.mean((x - np.interp(grid, ranks, quantiles)) ** 2)

    slope = (weighted(weights) - weighted(np.full(count, 1.0 / count))) / step
    assert float(potential[0]) == pytest.approx(slope, rel=0.05, abs=0.01)
    assert abs(float(potential.sum())) < 1e-4


def test_sliced_matches_scipy_ordering():
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal(1024), rng.standard_normal(1024) + 2
    value, _ = metrics.sliced_statistics(
        jnp.asarray(a, jnp.float32)[:, None], jnp.asarray(np.sort(b), jnp.float32)[None], 64
    )
    assert float(value) >= wasserstein_distance(a, b) ** 2 - 1e-4  # W2 >= W1


def test_padding_and_narrow_latents_change_nothing(setting):
    _, _, reference = setting
    full = np.linalg.qr(np.random.default_rng(7).standard_normal((DIM, DIM)))[0]
    z = np.random.default_rng(8).standard_normal((256, LATENT)).astype(np.float32)
    encoded = metrics.latent_reference(reference, full, count=256, kernel_count=128, directions=8)
    narrow = metrics.sample_statistics(jnp.asarray(z), encoded, blocks=8)
    padded = np.pad(z, [(0, 0), (0, DIM - LATENT)])
    mask = jnp.asarray(np.arange(DIM) < LATENT, jnp.float32)
    wide = metrics.sample_statistics(jnp.asarray(padded), encoded, mask, blocks=8)
    for field in ("kernel", "cross", "sliced", "potential"):
        np.testing.assert_allclose(getattr(narrow, field), getattr(wide, field), rtol=1e-4, atol=1e-4)


def test_kl_is_infinite_on_a_singular_reference():
    reference = metrics.Reference(mean=np.zeros(2), covariance=np.diag([1.0, 0.0]), samples=np.zeros((64, 2)))
    moments = [
        np.asarray(m)[None] for m in metrics.block_moments(jax.random.normal(jax.random.key(0), (64, 2)), blocks=8)
    ]
    theta = metrics.moment_pseudo_values(*moments, reference, np.eye(2))["kl"]
    assert not np.any(np.isfinite(theta))


def test_samples_that_are_not_finite_have_no_distance():
    """One exploded stop must not take the others, or the sweep, with it."""
    reference = metrics.Reference(mean=np.zeros(2), covariance=np.eye(2), samples=np.zeros((64, 2)))
    z = np.random.default_rng(0).standard_normal((2, 64, 2)).astype(np.float32)
    z[1, 5, 0] = np.inf
    moments = [np.stack([np.asarray(metrics.block_moments(jnp.asarray(x), blocks=8)[k]) for x in z]) for k in (0, 1)]
    for values in metrics.moment_pseudo_values(*moments, reference, np.eye(2)).values():
        assert np.all(np.isfinite(values[:, 0])) and not np.any(np.isfinite(values[:, 1]))


def test_too_few_reference_samples_are_refused():
    reference = metrics.Reference(
        mean=np.zeros(2), covariance=np.eye(2), samples=np.ones((5, 2)) * np.arange(5)[:, None]
    )
    with pytest.raises(ValueError, match="at least 64"):
        metrics.distances(np.zeros((128, 2)), reference)


def test_sliced_w2_of_equal_laws_has_no_bias():
    """2048 samples along 64 directions: the plug-in value is all bias."""
    rng, ranks, found, plain = np.random.default_rng(9), (np.arange(2048) + 0.5) / 2048, [], []
    quantiles = np.repeat(norm.ppf(ranks)[None], 64, axis=0)
    for _ in range(20):
        projected = rng.standard_normal((2048, 64))
        value, _ = metrics.sliced_statistics(jnp.asarray(projected, jnp.float32), jnp.asarray(quantiles, jnp.float32))
        found.append(float(value))
        plain.append(np.mean((np.sort(projected, axis=0) - quantiles.T) ** 2))
    assert abs(np.mean(found)) < 0.05 * np.mean(plain)
    kept, _ = metrics.sliced_statistics(
        jnp.asarray(projected, jnp.float32), jnp.asarray(quantiles, jnp.float32), debiased=False
    )
    assert float(kept) == pytest.approx(plain[-1], rel=1e-4)


def test_directions_are_not_the_users_samples():
    samples = np.random.default_rng(0).standard_normal((256, 5))
    reference = metrics.Reference(mean=np.zeros(5), covariance=np.eye(5), samples=samples)
    directions = metrics.latent_reference(reference, np.eye(5), count=128, kernel_count=128, directions=16).directions
    unit = samples / np.linalg.norm(samples, axis=1, keepdims=True)
    assert np.max(np.abs(directions @ unit.T)) < 0.9999


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_a_mean_far_from_zero_costs_no_digits(setting, offset):
    basis, latent, reference = setting
    z = np.random.default_rng(2).multivariate_normal(np.full(LATENT, -0.1), latent, COUNT)
    away = np.random.default_rng(3).standard_normal(LATENT) * offset
    moved = metrics.Reference(
        mean=reference.mean + basis @ away, covariance=reference.covariance, samples=reference.samples + basis @ away
    )
    near, far = (metrics.distances(x, r, basis=basis) for x, r in ((z, reference), (z + away, moved)))
    for metric, (value, error) in near.items():
        assert far[metric][0] == pytest.approx(value, abs=0.5 * error), metric
        assert far[metric][1] == pytest.approx(error, rel=0.1), metric


def test_an_odd_number_of_blocks_has_no_halves():
    with pytest.raises(ValueError, match="blocks must be even, got 7"):
        metrics.sliced_statistics(jnp.zeros((70, 2)), jnp.zeros((2, 70)), 7)
