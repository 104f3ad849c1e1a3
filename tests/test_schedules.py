"""Schedules against the definitions of docs/theory.md (1.2): complex-step derivatives, quadrature of the drift, round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from ldmjax.schedules import (
    LinearVP,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    logsnr_from_noise_var,
    noise_var_from_logsnr,
    uniform_logsnr_times,
    uniform_times,
)

VP = [OrnsteinUhlenbeck(t_max=2.0), LinearVP(), LinearVP(beta_min=0.3, beta_max=7.0, t_max=2.5)]
ALL = [*VP, RectifiedFlow()]
METHODS = ["alpha", "sigma", "logsnr", "alpha_dot", "sigma_dot"]


def inner_times(schedule, count=13):
    return np.linspace(0.02, 0.98, count) * schedule.t_max


@pytest.mark.parametrize("schedule", VP)
def test_variance_preserving(schedule):
    t = np.geomspace(1e-12, 1.0, 60) * schedule.t_max
    # Two squares of numbers below 1: a few units in the last place.
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, rtol=1e-15, atol=0)


@pytest.mark.parametrize("schedule", VP)
def test_integrated_drift_is_the_integral_of_the_rate(schedule):
    for t in inner_times(schedule):
        expected, _ = quad(schedule.w_squared, 0.0, t, epsabs=0, epsrel=1e-13)
        np.testing.assert_allclose(schedule.B(t), expected, rtol=1e-13)  # the rate is linear: quadrature is exact
        np.testing.assert_allclose(schedule.inverse_B(schedule.B(t)), t, rtol=1e-13)
        # The definition of alpha: d log alpha / dt = -w^2.
        np.testing.assert_allclose(schedule.alpha(t), np.exp(-expected), rtol=1e-13)


def test_linear_vp_rate_is_half_of_songs_beta():
    # docs/theory.md (1.2): beta 0.1..20 becomes w^2 = 0.05 + 9.95 t on [0, 1].
    t = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(LinearVP().w_squared(t), 0.05 + 9.95 * t, rtol=1e-15)
    np.testing.assert_allclose(LinearVP().beta(t), 0.1 + 19.9 * t, rtol=1e-15)
    # Song et al., appendix C: log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.
    np.testing.assert_allclose(np.log(LinearVP().alpha(t)), -(t**2) * 19.9 / 4 - t * 0.05, rtol=1e-14)


@pytest.mark.parametrize("schedule", ALL)
def test_derivatives_against_complex_step(schedule):
    t = inner_times(schedule)
    step = 1e-30  # a complex step has no cancellation, so the comparison is at rounding
    np.testing.assert_allclose(schedule.alpha_dot(t), schedule.alpha(t + 1j * step).imag / step, rtol=1e-13)
    np.testing.assert_allclose(schedule.sigma_dot(t), schedule.sigma(t + 1j * step).imag / step, rtol=1e-13)


@pytest.mark.parametrize("schedule", ALL)
def test_derivatives_against_autodiff(schedule):
    t = jnp.asarray(inner_times(schedule), jnp.float32)
    for value, slope in [(schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)]:
        # float32 path; atol: the slopes reach 1e-4 next to values of 1
        np.testing.assert_allclose(slope(t), jax.vmap(jax.grad(value))(t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ALL)
def test_logsnr_is_log_of_signal_to_noise(schedule):
    t = inner_times(schedule)
    expected = np.log(schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2)
    np.testing.assert_allclose(schedule.logsnr(t), expected, rtol=1e-13, atol=1e-13)  # atol: logsnr crosses 0
    assert np.all(np.diff(schedule.logsnr(t)) < 0)
    assert schedule.logsnr(0.0) == np.inf


@pytest.mark.parametrize("schedule", ALL)
def test_inverse_logsnr_round_trip(schedule):
    # Rectified flow near s = 1 stores logsnr in 1 - s, of which float64 keeps 16 digits only down to about -15.
    lowest = -15.0 if isinstance(schedule, RectifiedFlow) else -30.0
    logsnr = np.linspace(lowest, 40.0, 141)
    back = schedule.logsnr(schedule.inverse_logsnr(logsnr))
    np.testing.assert_allclose(back, logsnr, rtol=1e-12, atol=1e-13)
    t = inner_times(schedule)
    np.testing.assert_allclose(schedule.inverse_logsnr(schedule.logsnr(t)), t, rtol=1e-12)


def test_extreme_logsnr_neither_overflows_nor_vanishes():
    schedule = OrnsteinUhlenbeck(t_max=800.0)
    np.testing.assert_allclose(schedule.logsnr(800.0), -1600.0, rtol=1e-15)
    np.testing.assert_allclose(schedule.logsnr(1e-200), -np.log(2e-200), rtol=1e-15)
    np.testing.assert_allclose(schedule.inverse_logsnr(-1600.0), 800.0, rtol=1e-15)


def test_noise_var_of_logsnr():
    logsnr = np.linspace(-30, 30, 61)
    np.testing.assert_allclose(noise_var_from_logsnr(logsnr), 1 / (1 + np.exp(logsnr)), rtol=1e-14)
    assert noise_var_from_logsnr(800.0) == 0.0 and noise_var_from_logsnr(-800.0) == 1.0
    np.testing.assert_allclose(noise_var_from_logsnr(700.0), np.exp(-700.0), rtol=1e-12)
    noise_var = np.array([1e-300, 1e-9, 0.3, 0.5, 1 - 1e-9])
    np.testing.assert_allclose(noise_var_from_logsnr(logsnr_from_noise_var(noise_var)), noise_var, rtol=1e-12)
    assert logsnr_from_noise_var(0.0) == np.inf and logsnr_from_noise_var(1.0) == -np.inf


@pytest.mark.parametrize("schedule", ALL)
def test_noise_var_is_the_noise_share_of_the_variance(schedule):
    t = inner_times(schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    expected = sigma**2 / (alpha**2 + sigma**2)
    np.testing.assert_allclose(noise_var_from_logsnr(schedule.logsnr(t)), expected, rtol=1e-13)


def test_rectified_flow_formulas():
    flow, s = RectifiedFlow(), np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(flow.alpha(s), [0.9, 0.5, 0.1], rtol=1e-15)
    np.testing.assert_allclose(flow.sigma(s), s, rtol=0)
    np.testing.assert_allclose(flow.radius(s), np.sqrt((1 - s) ** 2 + s**2), rtol=1e-15)
    np.testing.assert_allclose(flow.logsnr(s), 2 * np.log((1 - s) / s), rtol=1e-14, atol=1e-15)
    # Divided by the radius it is the VP variable of the same logsnr.
    noise_var = noise_var_from_logsnr(flow.logsnr(s))
    np.testing.assert_allclose((flow.sigma(s) / flow.radius(s)) ** 2, noise_var, rtol=1e-14)
    np.testing.assert_allclose((flow.alpha(s) / flow.radius(s)) ** 2, 1 - noise_var, rtol=1e-14)
    assert flow.logsnr(1.0) == -np.inf and flow.alpha(1.0) == 0.0 and flow.t_max == 1.0


@pytest.mark.parametrize("schedule", ALL)
def test_array_kind_is_kept(schedule):
    host, device = inner_times(schedule), jnp.asarray(inner_times(schedule), jnp.float32)
    for name in METHODS:
        on_host, on_device = getattr(schedule, name)(host), getattr(schedule, name)(device)
        assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float64, name
        assert isinstance(on_device, jax.Array) and on_device.dtype == jnp.float32, name
        np.testing.assert_allclose(on_device, on_host, rtol=2e-5, atol=1e-5)  # float32; atol: logsnr crosses 0
    logsnr = np.linspace(-5.0, 9.0, 7)
    assert isinstance(schedule.inverse_logsnr(logsnr), np.ndarray)
    assert isinstance(schedule.inverse_logsnr(jnp.asarray(logsnr)), jax.Array)
    np.testing.assert_allclose(schedule.inverse_logsnr(jnp.asarray(logsnr)), schedule.inverse_logsnr(logsnr), rtol=1e-5)
    for function in [noise_var_from_logsnr, lambda x: logsnr_from_noise_var(1 / (1 + x**2))]:
        assert isinstance(function(logsnr), np.ndarray) and isinstance(function(jnp.asarray(logsnr)), jax.Array)


@pytest.mark.parametrize("schedule", ALL)
def test_methods_trace_under_jit(schedule):
    t = jnp.asarray(inner_times(schedule), jnp.float32)
    for name in METHODS:
        method = getattr(schedule, name)
        np.testing.assert_allclose(jax.jit(method)(t), method(t), rtol=1e-5, atol=1e-6)  # float32 fusion


@pytest.mark.parametrize(
    "make",
    [
        lambda: OrnsteinUhlenbeck(t_max=0.0),
        lambda: OrnsteinUhlenbeck(t_max=np.inf),
        lambda: OrnsteinUhlenbeck(t_max=np.nan),
        lambda: LinearVP(beta_min=0.0),
        lambda: LinearVP(beta_min=-1.0),
        lambda: LinearVP(beta_min=2.0, beta_max=1.0),
        lambda: LinearVP(t_max=-1.0),
        lambda: uniform_logsnr_times(LinearVP(), 0, logsnr_min=-1.0, logsnr_max=1.0),
        lambda: uniform_logsnr_times(LinearVP(), 5, logsnr_min=1.0, logsnr_max=1.0),
        lambda: uniform_logsnr_times(LinearVP(), 5, logsnr_min=1.0, logsnr_max=np.inf),
        lambda: uniform_times(LinearVP(), 0),
        lambda: uniform_times(LinearVP(), 5, t_min=1.0),
        lambda: uniform_times(LinearVP(), 5, t_min=-0.1),
    ],
)
def test_bad_arguments_raise(make):
    with pytest.raises(ValueError):
        make()


def test_constant_rate_linear_vp_is_an_ornstein_uhlenbeck():
    linear, ou, t = (
        LinearVP(beta_min=2.0, beta_max=2.0, t_max=2.0),
        OrnsteinUhlenbeck(t_max=2.0),
        np.linspace(0.1, 2, 5),
    )
    for name in METHODS:
        np.testing.assert_allclose(getattr(linear, name)(t), getattr(ou, name)(t), rtol=1e-14)
    np.testing.assert_allclose(linear.inverse_B(t), t, rtol=1e-14)


@pytest.mark.parametrize("schedule", ALL)
def test_uniform_logsnr_times(schedule):
    times = uniform_logsnr_times(schedule, 7, logsnr_min=-3.0, logsnr_max=11.0)
    assert times.shape == (8,) and times.dtype == np.float64 and np.all(np.diff(times) < 0)
    np.testing.assert_allclose(np.diff(schedule.logsnr(times)), 2.0, rtol=1e-11)  # differences of numbers up to 11
    np.testing.assert_allclose(schedule.logsnr(times[[0, -1]]), [-3.0, 11.0], rtol=1e-12)


@pytest.mark.parametrize("schedule", ALL)
def test_uniform_times(schedule):
    times = uniform_times(schedule, 4, t_min=0.2)
    np.testing.assert_allclose(np.diff(times), -(schedule.t_max - 0.2) / 4, rtol=1e-13)
    assert times[0] == schedule.t_max and times[-1] == 0.2 and uniform_times(schedule, 3)[-1] == 0.0
