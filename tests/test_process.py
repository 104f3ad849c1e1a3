"""The five predictions: round trips, definitions, and velocities against autodiff of the path. float32 throughout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import process
from ldmjax.schedules import LinearVP, OrnsteinUhlenbeck, RectifiedFlow

SCHEDULES = [OrnsteinUhlenbeck(t_max=2.0), LinearVP(), RectifiedFlow()]


def draw(schedule, count=9, dim=4):
    keys = jax.random.split(jax.random.key(1))
    x0, noise = (jax.random.normal(key, (count, dim)) for key in keys)
    t = jnp.linspace(0.05, 0.6, count) * schedule.t_max
    return x0, noise, t, process.perturb(x0, noise, schedule, t)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_perturb_is_the_path(schedule):
    x0, noise, t, z = draw(schedule)
    alpha, sigma = (np.asarray(f(t), np.float64)[:, None] for f in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(z, alpha * np.asarray(x0) + sigma * np.asarray(noise), rtol=1e-5, atol=1e-6)
    # A scalar time and a leading batch axis broadcast the same way.
    one = process.perturb(x0, noise, schedule, t[3])
    np.testing.assert_allclose(one[3], z[3], rtol=1e-6)
    stacked = process.perturb(jnp.stack([x0, x0]), jnp.stack([noise, noise]), schedule, t)
    np.testing.assert_allclose(stacked[1], z, rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_definitions(schedule):
    x0, noise, t, z = draw(schedule)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    # (z - alpha x0) / sigma loses what 1 / sigma >= 1 / 0.05 amplifies: 1e-5 absolute.
    np.testing.assert_allclose(process.epsilon_from_x0(x0, z, schedule, t), noise, rtol=1e-5, atol=2e-5)
    score = process.score_from_x0(x0, z, schedule, t)
    np.testing.assert_allclose(score * sigma, -noise, rtol=1e-5, atol=2e-5)
    v = process.v_from_x0(x0, z, schedule, t)
    radius = jnp.sqrt(alpha**2 + sigma**2)
    np.testing.assert_allclose(v, (alpha * noise - sigma * x0) / radius, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_score_is_the_gradient_of_the_log_density(schedule):
    x0, _, t, z = draw(schedule)

    def log_density(z, x0, t):  # of z given x0
        return -0.5 * jnp.sum(((z - schedule.alpha(t) * x0) / schedule.sigma(t)) ** 2)

    expected = jax.vmap(jax.grad(log_density))(z, x0, t)
    np.testing.assert_allclose(process.score_from_x0(x0, z, schedule, t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_velocity_is_the_time_derivative_of_the_path(schedule):
    x0, noise, t, z = draw(schedule)

    def path(t, x0, noise):
        return schedule.alpha(t) * x0 + schedule.sigma(t) * noise

    expected = jax.vmap(jax.jacfwd(path))(t, x0, noise)
    np.testing.assert_allclose(process.velocity_from_x0(x0, z, schedule, t), expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_v_is_the_derivative_along_the_angle(schedule):
    # Salimans & Ho: with alpha = r cos phi, sigma = r sin phi, v = d(z / r)/d phi.
    x0, noise, t, z = draw(schedule)
    phi = jnp.arctan2(schedule.sigma(t), schedule.alpha(t))
    expected = jax.vmap(jax.jacfwd(lambda p, x, e: jnp.cos(p) * x + jnp.sin(p) * e))(phi, x0, noise)
    np.testing.assert_allclose(process.v_from_x0(x0, z, schedule, t), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["epsilon", "score", "velocity", "v"])
def test_round_trip(schedule, name):
    x0, _, t, z = draw(schedule)
    there, back = getattr(process, f"{name}_from_x0"), getattr(process, f"x0_from_{name}")
    # Both directions are linear with condition at most about 1 / (alpha sigma) = 20 over these times.
    np.testing.assert_allclose(back(there(x0, z, schedule, t), z, schedule, t), x0, rtol=1e-4, atol=5e-5)
    prediction = there(x0, z, schedule, t) + 0.1
    np.testing.assert_allclose(
        there(back(prediction, z, schedule, t), z, schedule, t), prediction, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_v_is_finite_at_both_ends(schedule):
    x0, noise, _, _ = draw(schedule)
    for t in [0.0, schedule.t_max]:
        t = jnp.full(x0.shape[0], t)
        z = process.perturb(x0, noise, schedule, t)
        assert np.all(np.isfinite(process.x0_from_v(noise, z, schedule, t)))
    np.testing.assert_allclose(process.x0_from_v(noise, x0, schedule, jnp.zeros(x0.shape[0])), x0, rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_probability_flow_of_a_gaussian_keeps_the_marginal(schedule):
    # The velocity with the exact denoiser must move the variance of z as alpha^2 lam + sigma^2 does.
    t, lam = jnp.linspace(0.1, 0.9, 5) * schedule.t_max, 0.4

    def log_std(t):
        return 0.5 * jnp.log(schedule.alpha(t) ** 2 * lam + schedule.sigma(t) ** 2)

    gain = schedule.alpha(t) * lam * jnp.exp(-2 * log_std(t))
    slope = process.velocity_from_x0(gain[:, None], jnp.ones((5, 1)), schedule, t)[:, 0]
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(log_std))(t), rtol=1e-4, atol=1e-4)  # float32, over sigma
