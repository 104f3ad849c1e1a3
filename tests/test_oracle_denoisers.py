"""The exact Gaussian denoiser against conditional expectations and, through process.py, against the score -m z."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group

from ldmjax import oracle, process
from ldmjax.schedules import LinearVP, OrnsteinUhlenbeck, RectifiedFlow

SCHEDULES = [OrnsteinUhlenbeck(t_max=2.0), LinearVP(), RectifiedFlow()]
VARIANCES = np.array([50.0, 1.0, 0.3, 1e-2, 1e-5, 0.0])


def batch(schedule, count=12, first=0.01):
    t = jnp.linspace(first, 0.97, count) * schedule.t_max
    return jax.random.normal(jax.random.key(0), (count, VARIANCES.size)), t.astype(jnp.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_denoiser_is_the_conditional_expectation(schedule):
    # Regression of z_0 on z_t = alpha z_0 + sigma eps: Cov(z_0, z_t) / Var(z_t), in float64.
    z, t = batch(schedule)
    alpha, sigma = (f(np.asarray(t, np.float64))[:, None] for f in (schedule.alpha, schedule.sigma))
    expected = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * np.asarray(z, np.float64)
    found = oracle.gaussian_denoiser(VARIANCES, schedule)(z, t)
    assert found.dtype == jnp.float32 and found.shape == z.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32


@pytest.mark.parametrize("cap", [np.inf, 1.5, 4.0, 1e4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_score_is_minus_capped_weight_times_z(schedule, cap):
    z, t = batch(schedule, first=0.05)
    score = process.score_from_x0(oracle.gaussian_denoiser(VARIANCES, schedule, cap=cap)(z, t), z, schedule, t)
    alpha, sigma = (f(np.asarray(t, np.float64))[:, None] for f in (schedule.alpha, schedule.sigma))
    weight = np.minimum(cap, 1 / (sigma**2 + alpha**2 * VARIANCES))
    # float32; z - alpha x0 cancels where x0 is close to z / alpha, so the rounding is that of z over sigma^2.
    np.testing.assert_allclose(sigma**2 * score, -(sigma**2) * weight * np.asarray(z), rtol=1e-5, atol=2e-6)
    if np.isfinite(cap) and cap < 100:
        assert np.any(weight == cap) and np.any(weight < cap)


@pytest.mark.parametrize("cap", [1.5, 20.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_capped_denoiser_formula(schedule, cap):
    z, t = batch(schedule)
    alpha, sigma = (f(np.asarray(t, np.float64))[:, None] for f in (schedule.alpha, schedule.sigma))
    weight = np.minimum(cap, 1 / (sigma**2 + alpha**2 * VARIANCES))
    expected = (1 - sigma**2 * weight) / alpha * np.asarray(z, np.float64)  # Tweedie
    found = oracle.gaussian_denoiser(VARIANCES, schedule, cap=cap)(z, t)
    # float32; 1 - sigma^2 m cancels for small variances, so the rounding is that of z over alpha.
    np.testing.assert_allclose(alpha * found, alpha * expected, rtol=1e-5, atol=2e-6)


def test_capped_weights_agree_with_the_oracle():
    schedule = LinearVP()
    z, t = batch(schedule, first=0.05)
    noise_var = schedule.sigma(np.asarray(t, np.float64)) ** 2
    weight = oracle.capped_score_weights(VARIANCES, noise_var, 20.0).T
    score = process.score_from_x0(oracle.gaussian_denoiser(VARIANCES, schedule, cap=20.0)(z, t), z, schedule, t)
    scale = noise_var[:, None]
    np.testing.assert_allclose(scale * score, -scale * weight * np.asarray(z), rtol=1e-5, atol=2e-6)  # as above


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_variance_and_zero_time_are_safe(schedule):
    z = jnp.ones((2, VARIANCES.size))
    t = jnp.array([0.0, 0.5 * schedule.t_max])
    found = np.asarray(oracle.gaussian_denoiser(VARIANCES, schedule)(z, t))
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found[:, -1], 0.0)  # a component of variance 0 is known: 0
    np.testing.assert_allclose(found[0, :-1], 1.0, rtol=1e-6)  # at t = 0 the state is the data
    capped = np.asarray(oracle.gaussian_denoiser(VARIANCES, schedule, cap=20.0)(z, t))
    np.testing.assert_allclose(capped[0], 1.0, rtol=1e-6)  # sigma^2 m = 0 when m is bounded
    assert np.all(np.isfinite(capped))


def test_rectified_flow_at_pure_noise():
    for cap in (np.inf, 1.5):
        found = oracle.gaussian_denoiser(VARIANCES, RectifiedFlow(), cap=cap)(jnp.ones((1, 6)), jnp.ones(1))
        np.testing.assert_array_equal(found, 0.0)  # the state says nothing: the mean


def test_denoiser_jits():
    z, t = batch(LinearVP())
    denoiser = oracle.gaussian_denoiser(VARIANCES, LinearVP(), cap=20.0)
    np.testing.assert_allclose(jax.jit(denoiser)(z, t), denoiser(z, t), rtol=1e-5, atol=1e-5)


def test_rotated_denoiser():
    # For N(0, R diag R^T) the denoiser is alpha S (alpha^2 S + sigma^2)^{-1} z with S the full covariance.
    schedule, rotation = LinearVP(), ortho_group.rvs(6, random_state=0)
    z, t = batch(schedule)
    found = oracle.rotated_denoiser(oracle.gaussian_denoiser(VARIANCES, schedule), rotation)(z, t)
    covariance = (rotation * VARIANCES) @ rotation.T
    for row, z_row, t_row in zip(np.asarray(found), np.asarray(z, np.float64), np.asarray(t, np.float64), strict=True):
        alpha, sigma = schedule.alpha(t_row), schedule.sigma(t_row)
        expected = alpha * covariance @ np.linalg.solve(alpha**2 * covariance + sigma**2 * np.eye(6), z_row)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)  # float32 products


@pytest.mark.parametrize("cap", [1.0, 0.5, np.nan])
def test_bad_cap_raises(cap):
    with pytest.raises(ValueError, match="cap"):
        oracle.gaussian_denoiser(VARIANCES, LinearVP(), cap=cap)
