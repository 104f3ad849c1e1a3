"""Samplers on the exact denoiser against exact recursions, continuous laws and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import oracle, samplers
from ldmjax.schedules import LinearVP, OrnsteinUhlenbeck, RectifiedFlow, uniform_logsnr_times, uniform_times

VARIANCES = np.array([3.0, 0.7, 0.05, 0.0])
RECURSION = {"euler_maruyama": "euler_maruyama", "exponential": "exponential", "euler": "euler_ode", "heun": "heun_ode"}


def laws_by_steps(sampler, schedule, times, *, cap=np.inf, eta=0.0):
    """Variances [N+1, D] from the library's own step: linear in z, so one state of ones gives every factor."""
    with jax.enable_x64(True):
        denoiser = oracle.gaussian_denoiser(VARIANCES, schedule, cap=cap)
        step = samplers.make_step(denoiser, schedule, sampler=sampler, eta=eta)
        memory = step.init(jnp.ones((1, len(VARIANCES))))
        variances = [schedule.alpha(times[0]) ** 2 * VARIANCES + schedule.sigma(times[0]) ** 2]
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            mean, std, memory = step.update(jnp.ones((1, len(VARIANCES))), jnp.asarray(t), jnp.asarray(t_next), memory)
            variances.append(np.asarray(mean[0]) ** 2 * variances[-1] + (0.0 if std is None else np.asarray(std)) ** 2)
    return np.array(variances)


@pytest.mark.parametrize("cap", [np.inf, 5.0])
@pytest.mark.parametrize("schedule", [OrnsteinUhlenbeck(), LinearVP()], ids=["ou", "linear"])
@pytest.mark.parametrize("sampler", list(RECURSION))
def test_step_has_the_exact_recursion(sampler, schedule, cap):
    times = uniform_logsnr_times(schedule, 40, logsnr_min=-3, logsnr_max=6)
    expected = oracle.sampler_variances(
        VARIANCES, schedule, times, scheme=RECURSION[sampler], cap=cap, start="marginal"
    )
    np.testing.assert_allclose(laws_by_steps(sampler, schedule, times, cap=cap), expected, rtol=1e-9)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0)])
def test_ddim_and_ddpm_have_the_exact_chain(sampler, eta):
    schedule = LinearVP()
    times = uniform_logsnr_times(schedule, 30, logsnr_min=-6, logsnr_max=6)
    law = laws_by_steps(sampler, schedule, np.append(times, 0.0), eta=eta)
    chain = oracle.chain_variances(
        VARIANCES, schedule.alpha(times), schedule.sigma(times), sampler="ddim",
        eta=1.0 if sampler == "ddpm" else eta, start="marginal",
    )  # fmt: skip
    np.testing.assert_allclose(law, chain, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [("euler_maruyama", 1), ("exponential", 1), ("euler", 1), ("heun", 2), ("ddim", 1), ("ddpm", 1)],
)
def test_order_of_convergence(sampler, order):
    """Slope of the error of the standard deviation against the exact flow, within 0.2."""
    schedule, steps = OrnsteinUhlenbeck(t_max=1.5), np.array([64, 128, 256])
    errors = []
    for n in steps.tolist():
        times = uniform_times(schedule, n, t_min=0.3)
        law = laws_by_steps(sampler, schedule, times)[-1]
        exact = schedule.alpha(times[-1]) ** 2 * VARIANCES + schedule.sigma(times[-1]) ** 2
        errors.append(np.linalg.norm(np.sqrt(law) - np.sqrt(exact)))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_rectified_flow_reaches_the_data(sampler):
    schedule = RectifiedFlow()
    law = laws_by_steps(sampler, schedule, np.linspace(1 - 1e-3, 0, 2001))
    np.testing.assert_allclose(law[-1], VARIANCES, rtol=6e-3, atol=1e-6)  # first-order error at 2000 steps


def run_chain(stops, *, sampler="euler_maruyama", readout="state", schedule=None, count=64, steps=20):
    schedule = schedule or LinearVP()
    times = uniform_logsnr_times(schedule, steps, logsnr_min=-4, logsnr_max=5)
    start = jax.random.normal(jax.random.key(0), (4, count)).T
    return samplers.sample(
        oracle.gaussian_denoiser(VARIANCES, schedule), schedule, start, jax.random.key(1), times=times, stops=stops,
        statistic=lambda z, t: (z, t), sampler=sampler, readout=readout,
    )  # fmt: skip


def test_noise_does_not_depend_on_the_stops():
    many, few = run_chain([3, 10, 20])[0], run_chain([10])[0]
    np.testing.assert_array_equal(many[1], few[0])


def test_monte_carlo_law_at_every_stop():
    count, stops = 40_000, [0, 5, 13, 20]
    schedule = LinearVP()
    times = uniform_logsnr_times(schedule, 20, logsnr_min=-4, logsnr_max=5)
    states = np.asarray(run_chain(stops, count=count)[0], np.float64)
    exact = oracle.sampler_variances(VARIANCES, schedule, times, scheme="euler_maruyama", start="standard")[stops]
    error = exact * np.sqrt(2.0 / count)
    assert np.all(np.abs(states.var(axis=1) - exact) < 4 * error)


def test_readouts():
    schedule = RectifiedFlow()
    state, t = run_chain([7, 20], sampler="euler", schedule=schedule)
    rescaled, _ = run_chain([7, 20], sampler="euler", schedule=schedule, readout="rescaled")
    denoised, _ = run_chain([7, 20], sampler="euler", schedule=schedule, readout="denoised")
    radius = schedule.radius(t)[:, None, None]
    np.testing.assert_allclose(rescaled, state / radius, rtol=1e-5)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    gain = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
    np.testing.assert_allclose(denoised, gain * state, rtol=1e-5, atol=1e-6)


def test_respaced_rows_are_chains_of_their_own():
    schedule = LinearVP()
    grids = np.stack([uniform_logsnr_times(schedule, 12, logsnr_min=-4, logsnr_max=end) for end in (1.0, 5.0)])
    denoiser = oracle.gaussian_denoiser(VARIANCES, schedule)
    start = jax.random.normal(jax.random.key(0), (4, 16)).T
    keep = {"statistic": lambda z, t: z, "sampler": "euler_maruyama"}
    both = samplers.sample_respaced(denoiser, schedule, start, jax.random.key(1), time_grids=grids, **keep)
    for row, grid in zip(both, grids, strict=True):
        alone = samplers.sample(denoiser, schedule, start, jax.random.key(1), times=grid, stops=[12], **keep)
        np.testing.assert_allclose(row, alone[0], rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_steps():
    def temporary_bytes(steps):
        schedule = LinearVP()
        times = uniform_logsnr_times(schedule, steps, logsnr_min=-4, logsnr_max=5)
        stops = np.linspace(0, steps, 11).astype(int)[1:]

        def chain(start):
            return samplers.sample(
                oracle.gaussian_denoiser(VARIANCES, schedule), schedule, start, jax.random.key(1), times=times,
                stops=stops, statistic=lambda z, t: jnp.mean(z**2, axis=0), sampler="euler_maruyama",
            )  # fmt: skip

        compiled = jax.jit(chain).lower(jnp.zeros((4096, 4))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state_bytes = 4096 * 4 * 4
    assert temporary_bytes(1000) - temporary_bytes(50) < state_bytes


def test_bad_arguments():
    schedule = LinearVP()
    denoiser = oracle.gaussian_denoiser(VARIANCES, schedule)
    with pytest.raises(ValueError, match="sampler must be one of"):
        samplers.make_step(denoiser, schedule, sampler="rk4")
    with pytest.raises(ValueError, match="variance-preserving"):
        samplers.make_step(denoiser, RectifiedFlow(), sampler="exponential")
    with pytest.raises(ValueError, match="eta"):
        samplers.make_step(denoiser, schedule, sampler="heun", eta=0.5)
    with pytest.raises(ValueError, match="stops"):
        run_chain([5, 5])
    with pytest.raises(ValueError, match="readout"):
        run_chain([5], readout="latent")
