"""Samplers on exact denoisers against exact recursions and chains, continuous laws, other programs and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ldmjax import devices, oracle, process, samplers, schedules
from ldmjax.schedules import (
    Ladder,
    LinearVP,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    karras_levels,
    uniform_logsnr_times,
    uniform_times,
)

VARIANCES = np.array([3.0, 0.7, 0.05, 0.0])


def laws_by_steps(sampler, schedule, times, *, cap=np.inf, eta=0.0, variances=VARIANCES, final=0.0):
    """Variances [N+1, D] from the library's own step, linear in z: a state of one standard deviation gives them."""
    with jax.enable_x64(True):
        denoiser = oracle.gaussian_denoiser(variances, schedule, cap=cap)
        step = samplers.make_step(denoiser, schedule, sampler=sampler, eta=eta, final=final)
        update, times = jax.jit(step.update), np.asarray(times, np.float64)
        laws = [schedule.alpha(times[0]) ** 2 * variances + schedule.sigma(times[0]) ** 2]
        state = jnp.sqrt(laws[0])[None]
        memory = step.init(state)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            mean, std, memory = update(state, t, t_next, memory)
            noise = 0.0 if std is None else np.broadcast_to(std, mean.shape)[0]
            laws.append(np.asarray(mean[0]) ** 2 + noise**2)
            # Samplers without noise keep their own state: the memory of 2M belongs to it.
            state = mean if std is None else jnp.sqrt(laws[-1])[None]
    return np.array(laws)


@pytest.mark.parametrize("cap", [np.inf, 5.0])
@pytest.mark.parametrize("schedule", [OrnsteinUhlenbeck(), LinearVP()], ids=["ou", "linear"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS[:4])
def test_step_has_the_exact_recursion(sampler, schedule, cap):
    times = uniform_logsnr_times(schedule, 40, logsnr_min=-3, logsnr_max=6)
    expected = oracle.sampler_variances(VARIANCES, schedule, times, scheme=sampler, cap=cap, start="marginal")
    np.testing.assert_allclose(laws_by_steps(sampler, schedule, times, cap=cap), expected, rtol=1e-9)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0)])
def test_ddim_and_ddpm_have_the_exact_chain(sampler, eta):
    schedule = LinearVP()
    times = uniform_logsnr_times(schedule, 30, logsnr_min=-6, logsnr_max=6)
    law = laws_by_steps(sampler, schedule, np.append(times, 0.0), eta=eta)
    chain = oracle.chain_variances(
        VARIANCES,
        schedule.alpha(times),
        schedule.sigma(times),
        sampler="ddim",
        eta=1.0 if sampler == "ddpm" else eta,
        start="marginal",
    )
    np.testing.assert_allclose(law, chain, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [("euler_maruyama", 1), ("exponential", 1), ("euler_ode", 1), ("heun_ode", 2), ("ddim", 1), ("ddpm", 1)],
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


@pytest.mark.parametrize("sampler", ["euler_ode", "heun_ode", "ddim"])
def test_rectified_flow_reaches_the_data(sampler):
    schedule = RectifiedFlow()
    law = laws_by_steps(sampler, schedule, np.linspace(1 - 1e-3, 0, 2001))
    np.testing.assert_allclose(law[-1], VARIANCES, rtol=6e-3, atol=1e-6)  # first-order error at 2000 steps


def run_chain(stops, *, sampler="euler_maruyama", readout="state", schedule=None, count=64, steps=20):
    schedule = schedule or LinearVP()
    times = uniform_logsnr_times(schedule, steps, logsnr_min=-4, logsnr_max=5)
    start = jax.random.normal(jax.random.key(0), (4, count)).T
    return samplers.sample(
        oracle.gaussian_denoiser(VARIANCES, schedule),
        schedule,
        start,
        jax.random.key(1),
        times=times,
        stops=stops,
        statistic=lambda z, t: (z, t),
        sampler=sampler,
        readout=readout,
    )


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
    state, t = run_chain([7, 20], sampler="euler_ode", schedule=schedule)
    rescaled, _ = run_chain([7, 20], sampler="euler_ode", schedule=schedule, readout="rescaled")
    denoised, _ = run_chain([7, 20], sampler="euler_ode", schedule=schedule, readout="denoised")
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
                oracle.gaussian_denoiser(VARIANCES, schedule),
                schedule,
                start,
                jax.random.key(1),
                times=times,
                stops=stops,
                statistic=lambda z, t: jnp.mean(z**2, axis=0),
                sampler="euler_maruyama",
            )

        compiled = jax.jit(chain).lower(jnp.zeros((4096, 4))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state_bytes = 4096 * 4 * 4
    assert temporary_bytes(1000) - temporary_bytes(50) < state_bytes


@pytest.mark.parametrize("stops", [[4, 8, 12], [0, 1, 7, 12], [5]])
@pytest.mark.parametrize("sampler", ["euler_maruyama", "dpmpp_2m"])
def test_on_an_accelerator_states_wait_for_their_statistics(sampler, stops):
    schedule = LinearVP()
    denoiser = oracle.gaussian_denoiser(VARIANCES, schedule)
    options = {
        "times": uniform_logsnr_times(schedule, 12, logsnr_min=-4, logsnr_max=5),
        "stops": stops,
        "sampler": sampler,
        "statistic": lambda z, t: (z.mean(axis=0), t * z[0]),
        "readout": "denoised",
    }
    start = jax.random.normal(jax.random.key(0), (4, 16)).T
    on_the_way = samplers.sample(denoiser, schedule, start, jax.random.key(1), **options)
    with devices.made_for("tpu"):
        program = jax.make_jaxpr(lambda z: samplers.sample(denoiser, schedule, z, jax.random.key(1), **options))(start)
        waiting = samplers.sample(denoiser, schedule, start, jax.random.key(1), **options)
    assert " while[" not in str(program)  # loops of known length are scans
    for a, b in zip(waiting, on_the_way, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stops", [[3], [1, 4, 6], [0, 2]])
@pytest.mark.parametrize("sampler", ["euler_maruyama", "dpmpp_2m"])
def test_one_program_runs_chains_of_different_length(sampler, stops):
    """Traced times and stops: rows padded with their last time, and on an accelerator steps that nobody reads."""
    schedule, start = LinearVP(), jax.random.normal(jax.random.key(0), (4, 16)).T
    denoiser = oracle.gaussian_denoiser(VARIANCES, schedule)
    grids = [uniform_logsnr_times(schedule, n, logsnr_min=-4, logsnr_max=5) for n in (6, 9)]
    rows = np.stack([np.pad(grid, (0, 10 - len(grid)), mode="edge") for grid in grids])

    def run(times, stops):
        how = {"sampler": sampler, "statistic": lambda z, t: (z, t), "readout": "denoised"}
        return samplers.sample(denoiser, schedule, start, jax.random.key(1), times=times, stops=stops, **how)

    alone = [run(grid, stops) for grid in grids]
    both = jnp.asarray(rows, jnp.float32), jnp.asarray([stops, stops])
    together = jax.jit(lambda *rows: jax.lax.map(lambda row: run(*row), rows))
    with devices.made_for("tpu"):
        accelerated = jax.jit(lambda *rows: jax.lax.map(lambda row: run(*row), rows))(*both)
    for found in (together(*both), accelerated):
        for k, expected in enumerate(alone):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a[k], b, rtol=1e-5, atol=1e-6)


def test_a_sampler_of_ones_own():
    """Euler's method written by hand is the suite's, and one with a memory counts its updates."""

    def by_hand(denoiser, schedule):
        def move(z, t, t_next):
            times = jnp.full(len(z), t)
            velocity = process.velocity_from_x0(denoiser(z, times), z, schedule, times)
            return z - (t - t_next) * velocity, None

        return samplers.Step.without_memory(move)

    def counting(denoiser, schedule):
        def update(z, t, t_next, memory):
            return jnp.full_like(z, memory + 1), 0.0 * t, memory + 1

        return samplers.Step(lambda z: 0, update)

    own, named = (
        run_chain([7, 20], sampler=sampler, schedule=RectifiedFlow())[0] for sampler in (by_hand, "euler_ode")
    )
    np.testing.assert_array_equal(own, named)
    np.testing.assert_array_equal(run_chain([7, 20], sampler=counting)[0][:, 0, 0], [7, 20])


def test_noise_by_row_is_that_of_jax():
    """On a flat law of the noise alone: the denoiser says 0, and the step is known."""
    schedule, key = LinearVP(), jax.random.key(3)
    times = np.array([0.5, 0.4])
    found = samplers.sample(
        lambda z, t: 0.0 * z,
        schedule,
        jnp.zeros((8, 3)),
        key,
        times=times,
        stops=[1],
        statistic=lambda z, t: z,
        sampler="exponential",
        noise=samplers.BY_ROW,
    )[0]
    std = np.sqrt(np.expm1(2 * (schedule.B(times[0]) - schedule.B(times[1]))))
    np.testing.assert_allclose(found, std * jax.random.normal(jax.random.fold_in(key, 0), (8, 3)), rtol=1e-5)


def test_bad_arguments():
    schedule = LinearVP()
    denoiser = oracle.gaussian_denoiser(VARIANCES, schedule)
    with pytest.raises(ValueError, match="sampler must be one of"):
        samplers.make_step(denoiser, schedule, sampler="rk4")
    with pytest.raises(ValueError, match="variance-preserving"):
        samplers.make_step(denoiser, RectifiedFlow(), sampler="exponential")
    with pytest.raises(ValueError, match="eta"):
        samplers.make_step(denoiser, schedule, sampler="heun_ode", eta=0.5)
    with pytest.raises(ValueError, match="stops"):
        run_chain([5, 5])
    with pytest.raises(ValueError, match="readout"):
        run_chain([5], readout="latent")


# Samplers on ladders.

LADDERS = {
    "karras": Ladder(*schedules.karras_levels(9)),
    "spectral": Ladder(*schedules.spectral_levels(VARIANCES, 9)),
    "rectified_flow": Ladder(*schedules.rectified_flow_levels(9)),
    # Not variance preserving either, and without the pure noise that heun and ddpm_exact refuse.
    "rectified_flow_tail": Ladder(*(level[1:] for level in schedules.rectified_flow_levels(9))),
    "one_level": Ladder(*schedules.karras_levels(1)),
}
CHAINS = [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0), ("ddpm_exact", 0.0), ("heun", 0.0), ("dpmpp_2m", 0.0)]
# At variance 0 the last law is 0, or the square of what is left of 1 - 1 in float64.
ZERO = 1e-15


def exact_chain(sampler, ladder, *, eta=0.0, variances=VARIANCES, start="marginal"):
    sampler, eta = ("ddim", 1.0) if sampler == "ddpm" else (sampler, eta)
    levels = ladder.alpha_levels, ladder.sigma_levels
    return oracle.chain_variances(variances, *levels, sampler=sampler, eta=eta, start=start)


def run_ladder(sampler, ladder, start, denoiser=None, *, times=None, stops=None, **options):
    """States ``[S, B, D]`` at the stops (default: all) of a chain over the ladder."""
    denoiser = denoiser or oracle.gaussian_denoiser(VARIANCES, ladder)
    times = ladder.times if times is None else times
    stops = np.arange(len(times)) if stops is None else stops
    return samplers.sample(
        denoiser,
        ladder,
        start,
        jax.random.key(1),
        times=times,
        stops=stops,
        statistic=lambda z, t: z,
        sampler=sampler,
        **options,
    )


@pytest.mark.parametrize("name", list(LADDERS))
@pytest.mark.parametrize(("sampler", "eta"), CHAINS)
def test_ladder_steps_have_the_exact_chain(sampler, eta, name):
    ladder = LADDERS[name]
    if name == "rectified_flow" and sampler in ("heun", "ddpm_exact"):
        with pytest.raises(ValueError, match=f"{sampler} needs alpha > 0.*pure noise"):
            laws_by_steps(sampler, ladder, ladder.times)
        return
    law = laws_by_steps(sampler, ladder, ladder.times, eta=eta)
    assert law.shape == (len(ladder.times), 4)
    np.testing.assert_allclose(law, exact_chain(sampler, ladder, eta=eta), rtol=1e-9, atol=ZERO)


@pytest.mark.parametrize(
    ("sampler", "name"),
    [("ddim", "rectified_flow"), ("heun", "karras"), ("dpmpp_2m", "karras"), ("dpmpp_2m", "rectified_flow")],
)
def test_sample_runs_the_chain_at_every_stop(sampler, name):
    ladder = LADDERS[name]
    expected = np.sqrt(exact_chain(sampler, ladder, start="standard"))
    with jax.enable_x64(True):
        states = run_ladder(sampler, ladder, jnp.ones((2, 4)))
        np.testing.assert_allclose(np.abs(states[:, 1]), expected, rtol=1e-9, atol=ZERO)
        if sampler == "dpmpp_2m":  # its memory passes through stops, whichever they are
            few = run_ladder(sampler, ladder, jnp.ones((2, 4)), stops=[2, 5, 9])
            np.testing.assert_allclose(few, states[np.array([2, 5, 9])], rtol=1e-14, atol=ZERO)
    in_float32 = run_ladder(sampler, ladder, jnp.ones((2, 4)))
    assert in_float32.dtype == jnp.float32
    # 1 - sigma' alpha / (alpha' sigma) and z - alpha x_0 lose a digit in float32; the last state of variance 0 is 0.
    np.testing.assert_allclose(np.abs(in_float32[:, 1]), expected, rtol=2e-5, atol=1e-6)


def test_dpmpp_2m_starts_anew_after_pure_noise():
    # The step of log(alpha/sigma) from pure noise is infinite: nothing to extrapolate from in the update after it.
    whole, tail = LADDERS["rectified_flow"], LADDERS["rectified_flow_tail"]
    with jax.enable_x64(True):
        first = run_ladder("ddim", whole, jnp.ones((2, 4)), stops=[1])[0]
        states = run_ladder("dpmpp_2m", whole, jnp.ones((2, 4)))[1:]
        np.testing.assert_allclose(states, run_ladder("dpmpp_2m", tail, first), rtol=1e-12, atol=ZERO)


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize(
    "make",
    [
        schedules.karras_levels,
        schedules.cosine_levels,
        lambda levels: [level[1:] for level in schedules.rectified_flow_levels(levels + 1, shift=3.0)],
        lambda levels: schedules.spectral_levels(VARIANCES, levels),
    ],
    ids=["karras", "cosine", "rectified_flow_tail", "spectral"],
)
def test_ddpm_exact_is_exact_on_few_levels(make, levels):
    ladder = Ladder(*make(levels))
    law = laws_by_steps("ddpm_exact", ladder, ladder.times)
    expected = ladder.alpha(ladder.times)[:, None] ** 2 * VARIANCES + ladder.sigma(ladder.times)[:, None] ** 2
    np.testing.assert_allclose(law, expected, rtol=1e-10, atol=ZERO)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.5), ("ddpm", 0.0), ("ddpm_exact", 0.0)])
def test_monte_carlo_law_on_a_ladder(sampler, eta):
    ladder, count = Ladder(*schedules.karras_levels(5, sigma_min=0.05, sigma_max=10.0)), 40_000
    start = jax.random.normal(jax.random.key(0), (4, count)).T
    states = np.asarray(run_ladder(sampler, ladder, start, eta=eta), np.float64)
    exact = exact_chain(sampler, ladder, eta=eta, start="standard")
    # 4 standard errors of a Gaussian sample's variance; ZERO: the last law of the component of variance 0.
    assert np.all(np.abs(np.mean(states**2, axis=1) - exact) < 4 * exact * np.sqrt(2 / count) + ZERO)
    independent = np.corrcoef(states[-1][:, :3].T) - np.eye(3)
    assert np.all(np.abs(independent) < 4 / np.sqrt(count))


@pytest.mark.parametrize(
    ("sampler", "make", "order"),
    [
        ("ddim", schedules.karras_levels, 1),
        ("ddim", schedules.uniform_logsnr_levels, 1),
        ("heun", schedules.karras_levels, 2),
        ("heun", schedules.uniform_logsnr_levels, 2),
        ("dpmpp_2m", schedules.karras_levels, 2),
        ("dpmpp_2m", schedules.uniform_logsnr_levels, 2),
    ],
)
def test_order_in_the_number_of_levels(sampler, make, order):
    """Slope of relW2 over T = 16..128 from the marginal start, within 0.2.

    The floor is what the last update loses, lam (1 - cos(atan(r_1 / sqrt(lam))))^2 ~ (r_1^2 / 2 lam)^2 lam: 6e-6 in relW2
    at r_1 = .002 and these variances, against errors of 3e-4 and more at T = 128. (On ladders whose outer steps of log r
    do not shrink with T, rectified flow and the spectral rule, 2M stays below order 2.)
    """
    variances, counts, errors = np.array([3.0, 1.0, 0.3]), np.array([16, 32, 64, 128]), []
    for count in counts.tolist():
        ladder = Ladder(*make(count, sigma_min=0.002, sigma_max=20.0))
        law = laws_by_steps(sampler, ladder, ladder.times, variances=variances)[-1]
        errors.append(np.sqrt(np.sum((np.sqrt(law) - np.sqrt(variances)) ** 2) / variances.sum()))
    assert errors[-1] > 2e-4
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - order) < 0.2, errors


CENTRES = np.array([1.0, 0.3, 2.0])
STARTS = np.array([[-1.5, -0.2, 0.6], [0.4, 2.0, -0.7], [0.05, 1.0, 0.3], [-0.1, 0.5, -2.0]])


def two_points(y, ratio, xp=np):
    """E[x_0 | y] with y = x_0 + ratio eps, where every component of x_0 is +-centre with equal weight."""
    return CENTRES.astype(y.dtype) * xp.tanh(CENTRES.astype(y.dtype) * y / ratio**2)


def two_point_denoiser(ladder):
    def denoise(z, t):
        alpha = ladder.alpha(t)[:, None]
        return two_points(z / alpha, ladder.sigma(t)[:, None] / alpha, jnp)

    return denoise


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_on_two_points(sampler, order):
    """Not linear in z: the flow dy / dlog r = y - E[x_0 | y] by scipy, from r = 10 to r = .5, where it is not over yet."""
    high, low, counts = 10.0, 0.5, np.array([16, 32, 64, 128])

    def flow(log_ratio, y):
        y = y.reshape(STARTS.shape)
        return (y - two_points(y, np.exp(log_ratio))).ravel()

    interval = (np.log(high), np.log(low))
    exact = solve_ivp(flow, interval, high * STARTS.ravel(), method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    errors = []
    for count in counts.tolist():
        ladder = Ladder(*schedules.uniform_logsnr_levels(count, sigma_min=low, sigma_max=high))
        with jax.enable_x64(True):
            start = jnp.asarray(high * STARTS * ladder.alpha_levels[0])
            end = run_ladder(
                sampler, ladder, start, two_point_denoiser(ladder), times=ladder.times[:-1], stops=[count - 1]
            )
        errors.append(np.linalg.norm(np.asarray(end[0]).ravel() / ladder.alpha_levels[-1] - exact))
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - order) < 0.2, errors


def dpmpp_2m_program(y, ratios):
    """Lu et al., algorithm 2, in the state x_0 + r eps; r_ = h_last / h; the first and the last update are of order 1."""
    before = None
    for k, r in enumerate(ratios):
        r_next = ratios[k + 1] if k + 1 < len(ratios) else 0.0
        x0 = two_points(y, r)
        if before is None or r_next == 0.0:
            y = (r_next / r) * y + (1 - r_next / r) * x0
        else:
            h, h_last = np.log(r / r_next), np.log(ratios[k - 1] / r)
            r_ = h_last / h
            y = (r_next / r) * y - np.expm1(-h) * ((1 + 1 / (2 * r_)) * x0 - 1 / (2 * r_) * before)
        before = x0
    return y


def heun_program(y, ratios):
    """Karras et al., algorithm 1 with sigma(t) = t, s = 1."""
    for r, r_next in zip(ratios, [*ratios[1:], 0.0], strict=True):
        d = (y - two_points(y, r)) / r
        y_next = y + (r_next - r) * d
        if r_next != 0.0:
            y_next = y + (r_next - r) * (d / 2 + (y_next - two_points(y_next, r_next)) / r_next / 2)
        y = y_next
    return y


@pytest.mark.parametrize("levels", [1, 2, 3, 7])
@pytest.mark.parametrize(("sampler", "program"), [("dpmpp_2m", dpmpp_2m_program), ("heun", heun_program)])
def test_against_another_program_on_two_points(sampler, program, levels):
    # A ladder that is not variance preserving, with steps of log r of different length.
    alpha, sigma = (level[1:] for level in schedules.rectified_flow_levels(levels + 1, shift=2.0))
    ladder = Ladder(alpha, sigma)
    with jax.enable_x64(True):
        start = jnp.asarray(STARTS * sigma[0])
        found = run_ladder(sampler, ladder, start, two_point_denoiser(ladder), stops=[levels])[0]
    np.testing.assert_allclose(found, program(STARTS * sigma[0] / alpha[0], sigma / alpha), rtol=1e-10, atol=1e-13)


def test_ddpm_exact_has_the_first_two_moments_of_any_data():
    # From the marginal of two points at one level, one update has the variance of the next (law of total variance),
    # though not its shape; the last update returns to the data's.
    ladder = Ladder(*schedules.karras_levels(3, sigma_min=0.4, sigma_max=3.0))
    with jax.enable_x64(True):
        update = jax.jit(samplers.make_step(two_point_denoiser(ladder), ladder, sampler="ddpm_exact").update)
        for t in [3.0, 2.0, 1.0]:
            (alpha, alpha_next), (sigma, sigma_next) = (f(np.array([t, t - 1])) for f in (ladder.alpha, ladder.sigma))
            z = np.linspace(-20, 20, 4001)[:, None] * np.ones(3)  # trapezoid: exact for Gaussians 0.6 wide and wider
            density = sum(np.exp(-((z + sign * alpha * CENTRES) ** 2) / (2 * sigma**2)) for sign in (-1, 1))
            density /= density.sum(axis=0)
            mean, std, _ = update(z, t, t - 1, ())
            moments = np.sum(density * np.asarray(mean**2 + std**2), axis=0)
            np.testing.assert_allclose(moments, alpha_next**2 * CENTRES**2 + sigma_next**2, rtol=1e-9)


def test_ddpm_exact_reads_the_posterior_variance_of_each_component():
    # A Gaussian with correlations: Cov(z_0 | z) = (Sigma^-1 + alpha^2/sigma^2)^-1, of which std has the diagonal.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    variances, ladder = np.array([3.0, 0.7, 0.05, 0.4]), LADDERS["karras"]
    t, t_next = 4.0, 3.0
    alpha, sigma, alpha_next, sigma_next = ladder.alpha(t), ladder.sigma(t), ladder.alpha(t_next), ladder.sigma(t_next)
    posterior = np.diag(basis @ np.diag(1 / (1 / variances + alpha**2 / sigma**2)) @ basis.T)
    # Bayes on z' given z_0 and z: z' = alpha' z_0 + sigma' e', z = (alpha/alpha') z' + noise of the variance left.
    left = sigma**2 - (alpha / alpha_next) ** 2 * sigma_next**2
    bridge = 1 / (1 / sigma_next**2 + (alpha / alpha_next) ** 2 / left)
    expected = np.sqrt(bridge + (bridge * alpha_next / sigma_next**2) ** 2 * posterior)
    with jax.enable_x64(True):
        denoiser = oracle.rotated_denoiser(oracle.gaussian_denoiser(variances, ladder), basis)
        update = jax.jit(samplers.make_step(denoiser, ladder, sampler="ddpm_exact").update)
        _, std, _ = update(rng.normal(size=(6, 4)), t, t_next, ())
    np.testing.assert_allclose(std, np.tile(expected, (6, 1)), rtol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "stop"),
    [("heun", 0), ("heun", 2), ("dpmpp_2m", 0), ("dpmpp_2m", 2), ("ddim", 2), ("ddpm_exact", 2)],
)
def test_every_level_is_evaluated_but_the_one_to_stop_on(sampler, stop):
    ladder = Ladder(*schedules.karras_levels(5))
    exact = oracle.gaussian_denoiser(VARIANCES, ladder)

    def finite(broken):
        """Whether the chain survives a denoiser that is NaN at level ``broken``."""

        def denoise(z, t):
            return jnp.where((t == broken)[:, None], jnp.nan, exact(z, t))

        times = ladder.times[: 5 - stop + 1]
        return jnp.all(jnp.isfinite(run_ladder(sampler, ladder, jnp.ones((2, 4)), denoise, times=times)[-1]))

    # Times fall from 5 to the stop.
    np.testing.assert_array_equal(jax.jit(jax.vmap(finite))(jnp.arange(6)), np.arange(6) <= stop)


@pytest.mark.parametrize(("stop", "evaluated"), [(0, [5, 4, 4, 3, 3, 2, 2, 1, 1]), (2, [5, 4, 4, 3, 3])])
def test_heun_asks_the_denoiser_no_more_than_it_needs(stop, evaluated):
    # Not even to throw the answer away: a network trained on the levels above the stop knows nothing of it.
    ladder, asked = Ladder(*schedules.karras_levels(5)), []
    exact = oracle.gaussian_denoiser(VARIANCES, ladder)

    def denoise(z, t):
        jax.debug.callback(lambda level: asked.append(int(level)), t[0], ordered=True)
        return exact(z, t)

    times = ladder.times[: 5 - stop + 1]
    jax.block_until_ready(run_ladder("heun", ladder, jnp.ones((2, 4)), denoise, times=times, stops=[len(times) - 1]))
    jax.effects_barrier()
    assert asked == evaluated


def test_padding_does_not_change_a_chain():
    ladder = Ladder(*schedules.karras_levels(3))
    wide, narrow = jnp.ones((5, 4)) * jnp.array([1.0, 1, 0, 0]), jnp.ones((5, 2))
    padded = run_ladder("ddpm_exact", ladder, wide, mask=jnp.array([1.0, 1, 0, 0]))
    exact = oracle.gaussian_denoiser(VARIANCES[:2], ladder)
    np.testing.assert_allclose(padded[..., :2], run_ladder("ddpm_exact", ladder, narrow, exact), rtol=1e-6)
    np.testing.assert_array_equal(padded[..., 2:], 0.0)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
def test_respaced_rows_on_a_ladder(sampler):
    # Rows end on levels of their own, each the chain of a ladder made of its levels.
    ladder, grids = LADDERS["karras"], np.array([[9.0, 7, 5, 3], [9, 6, 4, 1], [9, 5, 1, 0]])
    with jax.enable_x64(True):
        start, exact = jnp.ones((2, 4)), oracle.gaussian_denoiser(VARIANCES, ladder)

        def denoise(z, t):  # NaN where rows end; not at 1, which the third row passes through
            return jnp.where(((t == 3) | (t == 0))[:, None], jnp.nan, exact(z, t))

        rows = samplers.sample_respaced(
            denoise, ladder, start, jax.random.key(1), time_grids=grids, statistic=lambda z, t: z, sampler=sampler
        )
        for row, grid in zip(rows, grids, strict=True):
            own = Ladder(ladder.alpha(grid[grid > 0]), ladder.sigma(grid[grid > 0]))
            alone = run_ladder(sampler, own, start, times=own.times[:4], stops=[3])[0]
            np.testing.assert_allclose(row, alone, rtol=1e-12, atol=ZERO)
    np.testing.assert_allclose(row[0] ** 2, exact_chain(sampler, own, start="standard")[-1], rtol=1e-9, atol=ZERO)


def test_stopping_on_a_level_ends_with_a_first_order_step():
    # Where sampling stops heun has no second slope: the last update is DDIM's.
    ladder = LADDERS["karras"]

    @jax.jit
    def from_five_to_four(final):
        denoiser = oracle.gaussian_denoiser(VARIANCES, ladder)
        steps = [samplers.make_step(denoiser, ladder, sampler=name, final=final) for name in ("heun", "ddim")]
        return [step.update(jnp.ones((1, 4)), jnp.asarray(5.0), jnp.asarray(4.0), ())[0] for step in steps]

    with jax.enable_x64(True):
        for final, euler in [(0.0, False), (3.0, False), (4.0, True)]:
            assert np.allclose(*from_five_to_four(final), rtol=1e-12, atol=0) is euler


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_continuous_schedule_and_its_ladder_agree(sampler):
    schedule = LinearVP()
    times = uniform_logsnr_times(schedule, 12, logsnr_min=-6, logsnr_max=6)
    ladder = Ladder(schedule.alpha(times), schedule.sigma(times))
    with jax.enable_x64(True):
        start = jax.random.normal(jax.random.key(0), (3, 4))
        on_ladder = run_ladder(sampler, ladder, start)
        continuous = run_ladder(sampler, schedule, start, times=np.append(times, 0.0))
        np.testing.assert_allclose(continuous, on_ladder, rtol=1e-10, atol=ZERO)


@pytest.mark.parametrize("sampler", ["euler_maruyama", "exponential", "euler_ode", "rk4"])
def test_samplers_that_need_continuous_time_raise_on_a_ladder(sampler):
    ladder = LADDERS["karras"]
    with pytest.raises(ValueError, match=sampler):
        samplers.make_step(oracle.gaussian_denoiser(VARIANCES, ladder), ladder, sampler=sampler)


def test_bad_eta_on_a_ladder_raises():
    ladder = LADDERS["karras"]
    denoiser = oracle.gaussian_denoiser(VARIANCES, ladder)
    for sampler, eta in [("dpmpp_2m", 0.5), ("ddpm_exact", 1.0), ("ddpm", 0.5), ("ddim", 1.5), ("ddim", -0.1)]:
        with pytest.raises(ValueError, match=f"got {eta} with '{sampler}'"):
            samplers.make_step(denoiser, ladder, sampler=sampler, eta=eta)


def test_times_on_a_ladder_are_level_numbers():
    ladder = Ladder(*karras_levels(4))
    denoiser, start = oracle.gaussian_denoiser(VARIANCES, ladder), jnp.ones((2, len(VARIANCES)))
    options = {"stops": [1], "statistic": lambda z, t: z, "sampler": "ddim"}
    for times in ([5.0, 4.0], [4.0, 2.5], [1.0, -1.0]):
        with pytest.raises(ValueError, match="level numbers, 0..4"):
            samplers.sample(denoiser, ladder, start, jax.random.key(0), times=np.array(times), **options)


def test_ddpm_exact_refuses_pure_noise():
    """Its posterior variance is 0 / 0 at alpha = 0, which gave NaN."""
    schedule = schedules.RectifiedFlow()
    denoiser = oracle.gaussian_denoiser(np.array([2.0, 0.5]), schedule)
    how = {"stops": [4], "sampler": "ddpm_exact", "statistic": lambda z, t: z.var(axis=0)}
    start, key = jax.random.normal(jax.random.key(0), (20_000, 2)), jax.random.key(1)
    with pytest.raises(ValueError, match="ddpm_exact needs alpha > 0 at times.0., got pure noise"):
        samplers.sample(denoiser, schedule, start, key, times=np.linspace(1.0, 0.0, 5), **how)
    with pytest.raises(ValueError, match="pure noise"):  # in float32, as the chain runs
        samplers.sample(denoiser, schedule, start, key, times=np.linspace(1.0 - 1e-9, 0.0, 5), **how)
    times = np.append(0.999, np.linspace(0.75, 0.0, 4))
    found = samplers.sample(denoiser, schedule, start, key, times=times, **how)[0]
    np.testing.assert_allclose(found, [2.0, 0.5], rtol=0.05)
