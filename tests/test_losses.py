"""Score-matching losses: one against the other, minimisers against Prop. 4, and the score error against a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import losses, oracle
from ldmjax.schedules import LinearVP

SCHEDULE = LinearVP()
LOGSNRS = np.linspace(-6, 6, 7)
T = jnp.asarray(SCHEDULE.inverse_logsnr(LOGSNRS), jnp.float32)


def batch(dim=3, count=64):
    keys = jax.random.split(jax.random.key(0), 2)
    return tuple(jax.random.normal(k, (dim, count)).T for k in keys)


def test_linear_loss_is_denoising_score_matching():
    x0, noise = batch()
    weights = 0.3 + jnp.abs(jax.random.normal(jax.random.key(1), (len(T), 3)))

    def denoiser(z, t):
        alpha, sigma = SCHEDULE.alpha(t)[..., None], SCHEDULE.sigma(t)[..., None]
        return (1 - sigma**2 * weights[:, None]) / alpha * z

    times = T[:, None]
    weight = (SCHEDULE.alpha(times) / SCHEDULE.sigma(times)) ** 2
    shape = (len(T), *noise.shape)
    plain = losses.denoising_score_matching(
        denoiser, x0, jnp.broadcast_to(noise, shape), times, weight, schedule=SCHEDULE, dim=3
    )
    fast = losses.linear_score_matching(weights, x0, noise, T, schedule=SCHEDULE, dim=3)
    assert float(fast) == pytest.approx(float(plain), rel=1e-4)


def test_linear_loss_is_least_at_prop_4():
    """With all moments at their expectation the gradient vanishes at m = 1 / (sigma^2 + alpha^2 lamh)."""
    scale = jnp.asarray([2.0, 0.5, 0.01])
    signs = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    x0, noise = (
        signs[:, :1] * scale,
        jnp.broadcast_to(signs[:, 1:], (4, 3)),
    )  # <x0^2> = scale^2, <x0 eps> = 0, <eps^2> = 1
    exact = oracle.capped_score_weights(
        np.asarray(scale) ** 2, SCHEDULE.sigma(np.asarray(T, np.float64)) ** 2, np.inf
    ).T
    loss = lambda m: losses.linear_score_matching(m, x0, noise, T, schedule=SCHEDULE, dim=3)  # noqa: E731
    gradient = jax.grad(loss)(jnp.asarray(exact, jnp.float32)) * exact  # per relative change
    assert np.max(np.abs(gradient)) < 1e-5
    for factor in (0.9, 1.1):
        assert loss(jnp.asarray(exact * factor, jnp.float32)) > loss(jnp.asarray(exact, jnp.float32))


def test_edm_weight_is_one_on_the_raw_output():
    """c_out^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2): the weight is its inverse."""
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    c_out = sigma * 0.7 / jnp.sqrt(alpha**2 * 0.49 + sigma**2)
    np.testing.assert_allclose(losses.edm_weight(SCHEDULE, T, jnp.asarray(0.7)) * c_out**2, 1, rtol=1e-5)


@pytest.mark.parametrize("cap", [np.inf, 2.0])
def test_noise_prediction_errors(cap):
    """Zero for the exact denoiser; for a score scaled by 1.1 the relative error is 0.1 at every level."""
    variances, rotation = np.array([2.0, 0.3]), np.array([[0.6, -0.8], [0.8, 0.6]])
    exact = oracle.rotated_denoiser(oracle.gaussian_denoiser(variances, SCHEDULE, cap=cap), rotation)

    def scaled(z, t):
        alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
        return (z - 1.1 * (z - alpha * exact(z, t))) / alpha + 0 * sigma

    arguments = (jnp.asarray(variances), jnp.asarray(rotation), jnp.asarray(cap), jax.random.key(0))
    options = {"schedule": SCHEDULE, "logsnrs": jnp.asarray(LOGSNRS), "count": 50}
    errors, norms = losses.noise_prediction_errors(exact, *arguments, **options)
    assert np.all(np.sqrt(errors / norms) < 1e-4)
    errors, norms = losses.noise_prediction_errors(scaled, *arguments, **options)
    np.testing.assert_allclose(np.sqrt(errors / norms), 0.1, rtol=1e-3)
