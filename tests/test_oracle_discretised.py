"""Discretised samplers: recursions against the schemes written out, convergence order, Monte Carlo, printed tables."""

from pathlib import Path

import numpy as np
import pytest

from ldmjax import oracle
from ldmjax.schedules import (
    LinearVP,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    cosine_levels,
    karras_levels,
    linear_beta_levels,
    rectified_flow_levels,
    scaled_linear_levels,
    spectral_levels,
    uniform_logsnr_levels,
    uniform_logsnr_times,
    uniform_times,
)

SPECTRUM = Path(__file__).parents[2] / "shared" / "data" / "cifar10_spectrum.npy"
VARIANCES = np.array([20.0, 2.0, 1.0, 0.3, 1e-2])
SCHEDULES = [OrnsteinUhlenbeck(t_max=2.0), LinearVP()]


def step(z, noise, *, schedule, t, t_next, scheme, estimated, cap):
    """One step of the scheme on a state, as a program would take it (noise is a standard normal draw)."""

    def score(t, z):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return -np.minimum(cap, 1 / (alpha**2 * estimated + sigma**2)) * z

    dt, w = t - t_next, np.sqrt(schedule.w_squared(t))
    if scheme == "euler_maruyama":  # dz = (z + 2 s) w^2 dt + sqrt(2) w dW
        return z + dt * w**2 * (z + 2 * score(t, z)) + np.sqrt(2 * dt) * w * noise
    if scheme == "exponential":  # the same with the score frozen, integrated exactly in B
        growth = np.exp(schedule.B(t) - schedule.B(t_next))
        return growth * z + 2 * (growth - 1) * score(t, z) + np.sqrt(growth**2 - 1) * noise
    drift = w**2 * (z + score(t, z))  # dz = (z + s) w^2 dt
    if scheme == "euler_ode":
        return z + dt * drift
    predicted = z + dt * drift
    return z + dt / 2 * (drift + schedule.w_squared(t_next) * (predicted + score(t_next, predicted)))


@pytest.mark.parametrize("cap", [np.inf, 5.0])
@pytest.mark.parametrize("scheme", ["euler_maruyama", "exponential", "euler_ode", "heun_ode"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("start", ["marginal", "standard"])
def test_recursion_against_the_scheme(start, schedule, scheme, cap):
    times = np.array([1.0, 0.7, 0.65, 0.3, 0.1, 0.02]) * schedule.t_max
    alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
    expected = [alpha**2 * VARIANCES + sigma**2 if start == "marginal" else np.ones(5)]
    ones, zeros = np.ones(5), np.zeros(5)
    for t, t_next in zip(times, times[1:], strict=False):
        # The step is linear in (state, noise): read off its two coefficients.
        options = {"schedule": schedule, "t": t, "t_next": t_next, "scheme": scheme, "estimated": VARIANCES, "cap": cap}
        gain, spread = step(ones, zeros, **options), step(zeros, ones, **options)
        expected.append(gain**2 * expected[-1] + spread**2)
    found = oracle.sampler_variances(VARIANCES, schedule, times, scheme=scheme, cap=cap, start=start)
    assert found.shape == (6, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-10)  # 1 - 2 m cancels by at most a few digits


def slope(errors, counts):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("start", ["marginal", "standard"])
@pytest.mark.parametrize(
    ("scheme", "order"), [("euler_maruyama", 1), ("exponential", 1), ("euler_ode", 1), ("heun_ode", 2)]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_order_of_convergence_to_the_continuous_law(schedule, scheme, order, start):
    counts, t_min = np.array([200, 400, 800, 1600]), 0.05 * schedule.t_max
    limit = oracle.capped_variances(
        VARIANCES,
        schedule.sigma(t_min) ** 2,
        noise_var_max=schedule.sigma(schedule.t_max) ** 2,
        cap=np.inf,
        start=start,
        dynamics="ode" if scheme.endswith("ode") else "sde",
    )[:, 0]
    ends = [
        oracle.sampler_variances(
            VARIANCES, schedule, uniform_times(schedule, n, t_min=t_min), scheme=scheme, start=start
        )
        for n in counts.tolist()
    ]
    errors = np.array([np.abs(end[-1] - limit) for end in ends])
    for i in range(VARIANCES.size):
        if VARIANCES[i] == 1.0 and order == 2 or errors[0, i] < 1e-10 * limit[i]:
            continue  # lam = 1: the flow does not move, there is no error to fall
        assert abs(slope(errors[:, i], counts) - order) < 0.2, (i, errors[:, i])


def test_convergence_with_a_cap():
    schedule, counts, estimated = OrnsteinUhlenbeck(t_max=2.0), np.array([500, 1000, 2000]), np.array([0.3, 1e-3, 0.0])
    limit = oracle.capped_variances(
        estimated, 0.0, noise_var_max=schedule.sigma(2.0) ** 2, cap=20.0, start="standard", dynamics="sde"
    )[:, 0]
    errors = [
        oracle.sampler_variances(
            estimated, schedule, uniform_times(schedule, n), scheme="euler_maruyama", cap=20.0, start="standard"
        )[-1]
        - limit
        for n in counts.tolist()
    ]
    assert abs(slope(np.max(np.abs(errors), axis=1), counts) - 1) < 0.2


@pytest.mark.parametrize("steps", [200, 1000])
def test_last_euler_maruyama_step_leaves_two_dt(steps):
    # docs/theory.md, section 5: lamh = 0, plug-in score, t = 0.
    schedule = OrnsteinUhlenbeck(t_max=2.0)
    found = oracle.sampler_variances(
        [0.0], schedule, uniform_times(schedule, steps), scheme="euler_maruyama", start="marginal"
    )
    np.testing.assert_allclose(found[-1, 0], 2 * 2.0 / steps, rtol=1e-4)  # relative correction of order dt^3
    linear, dt = LinearVP(), 1.0 / steps
    found = oracle.sampler_variances(
        [0.0], linear, uniform_times(linear, steps), scheme="euler_maruyama", start="marginal"
    )
    # 2 w(dt)^2 dt up to the term (1 + dt w^2 (1 - 2m))^2 V(dt), which vanishes with dt (w^2 is not constant).
    noise = 2 * linear.w_squared(dt) * dt
    weight = 1 / linear.sigma(dt) ** 2
    rest = (1 + dt * linear.w_squared(dt) * (1 - 2 * weight)) ** 2 * found[-2, 0]
    np.testing.assert_allclose(found[-1, 0], noise + rest, rtol=1e-12)


def test_heun_at_time_zero_is_infinite_only_without_variance():
    schedule = OrnsteinUhlenbeck(t_max=2.0)
    found = oracle.sampler_variances(
        [1.0, 1e-10, 0.0], schedule, uniform_times(schedule, 100), scheme="heun_ode", start="marginal"
    )[-1]
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-12)
    assert 1e11 < found[1] < 1e16 and not np.isfinite(found[2])  # docs/theory.md, section 5
    capped = oracle.sampler_variances(
        [0.0], schedule, uniform_times(schedule, 100), scheme="heun_ode", start="marginal", cap=20.0
    )
    assert np.all(np.isfinite(capped))


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "milstein"},
        {"start": "prior"},
        {"cap": 1.0},
        {"times": [0.1, 0.2]},
        {"times": [0.2, 0.2]},
        {"times": [0.2, -0.1]},
        {"schedule": RectifiedFlow()},
    ],
)
def test_bad_sampler_arguments_raise(changes):
    options = {"schedule": LinearVP(), "times": [0.5, 0.1], "scheme": "exponential", "start": "marginal"} | changes
    with pytest.raises(ValueError):
        oracle.sampler_variances([1.0], options.pop("schedule"), options.pop("times"), **options)


@pytest.mark.skipif(not SPECTRUM.exists(), reason=f"{SPECTRUM} is not in this checkout")
@pytest.mark.parametrize(
    ("sampler", "ladder", "printed"),
    [
        ("ddim", linear_beta_levels, {8: 0.230, 32: 0.0748, 128: 0.0247, 1000: 0.0060}),
        ("ddim", cosine_levels, {8: 0.421, 32: 0.156, 128: 0.0437, 1000: 0.0062}),
        ("ddim", uniform_logsnr_levels, {8: 0.316, 32: 0.0868, 128: 0.0273, 1000: 0.0113}),
        ("ddim", karras_levels, {8: 0.265, 32: 0.0718, 128: 0.0231, 1000: 0.0107}),
        ("ddim", rectified_flow_levels, {8: 0.397, 32: 0.119, 128: 0.0315, 1000: 0.0041}),
        ("ddim", scaled_linear_levels, {8: 0.268, 32: 0.197, 128: 0.179, 1000: 0.173}),
        ("ddim", spectral_levels, {8: 0.201, 32: 0.0586, 128: 0.0153, 1000: 0.0020}),
        ("heun", karras_levels, {32: 0.0103, 1000: 0.0094}),
        ("dpmpp_2m", uniform_logsnr_levels, {32: 0.0076, 1000: 0.0094}),
    ],
)
def test_table_of_relative_distances(sampler, ladder, printed):
    # docs/t_space.md 1: W2 / sqrt(tr) on the CIFAR-10 spectrum from N(0, I), to the printed digits; the spectral rule to one
    # unit of the last, because its table came from another grid (.05866 at T = 32 where .0586 is printed).
    variances = np.load(SPECTRUM).astype(np.float64)[::-1]
    for count, expected in printed.items():
        levels = ladder(variances, count) if ladder is spectral_levels else ladder(count)
        end = oracle.chain_variances(variances, *levels, sampler=sampler)[-1]
        found = np.sqrt(np.sum((np.sqrt(end) - np.sqrt(variances)) ** 2) / variances.sum())
        digits = 1.0 if ladder is spectral_levels else 0.5
        assert abs(found - expected) <= digits * 10.0 ** -(3 if expected > 0.1 else 4), (count, found)


def test_uniform_angles_are_optimal_for_one_variance():
    # docs/t_space.md, section 1: theta_i = i pi / (2T), each update shrinks the std by cos(pi / 2T); 0.037834 at T = 32.
    theta = np.pi / 2 * np.arange(32, 0, -1) / 32
    end = oracle.chain_variances([1.0], np.cos(theta), np.sin(theta), sampler="ddim")[-1, 0]
    np.testing.assert_allclose(1 - np.sqrt(end), 1 - np.cos(np.pi / 64) ** 32, rtol=1e-12)
    np.testing.assert_allclose(1 - np.sqrt(end), 0.037834, atol=5e-7)
    rng = np.random.default_rng(0)
    for _ in range(20):  # no other ladder of as many levels does better
        other = np.sort(theta + rng.uniform(-1, 1, 32) * np.append(0, np.full(31, 0.01)))[::-1]
        assert oracle.chain_variances([1.0], np.cos(other), np.sin(other), sampler="ddim")[-1, 0] < end


@pytest.mark.parametrize("count", [1, 2, 7])
def test_ddpm_exact_is_exact_at_any_number_of_levels(count):
    levels = karras_levels(count, sigma_max=3.0)
    found = oracle.chain_variances(VARIANCES, *levels, sampler="ddpm_exact", start="marginal")
    expected = levels[0][:, None] ** 2 * VARIANCES + levels[1][:, None] ** 2
    np.testing.assert_allclose(found, np.vstack([expected, VARIANCES]), rtol=1e-10)


def test_ddim_in_angles():
    # std_out / sqrt(lam) = P prod cos(theta_{i+1} - theta_i), theta = atan2(sigma, alpha sqrt(lam)), theta_0 = 0.
    alpha, sigma = karras_levels(16)
    found = oracle.chain_variances(VARIANCES, alpha, sigma, sampler="ddim")[-1]
    theta = np.vstack([np.arctan2(sigma[:, None], alpha[:, None] * np.sqrt(VARIANCES)), np.zeros(5)])
    mismatch = 1 / np.sqrt(alpha[0] ** 2 * VARIANCES + sigma[0] ** 2)
    np.testing.assert_allclose(
        np.sqrt(found / VARIANCES), mismatch * np.prod(np.cos(np.diff(theta, axis=0)), axis=0), rtol=1e-12
    )


def test_eta_one_is_ancestral_sampling():
    # Ho et al. (2020), eq. 6-7: posterior mean with x0 replaced by its prediction, variance beta-tilde.
    alpha, sigma = linear_beta_levels(20)
    variance = np.ones(5)
    for k in range(20):
        abar, abar_next = alpha[k] ** 2, alpha[k + 1] ** 2 if k < 19 else 1.0
        ratio = abar / abar_next
        denoiser = alpha[k] * VARIANCES / (abar * VARIANCES + 1 - abar)
        mean = (np.sqrt(abar_next) * (1 - ratio) * denoiser + np.sqrt(ratio) * (1 - abar_next)) / (1 - abar)
        variance = mean**2 * variance + (1 - abar_next) / (1 - abar) * (1 - ratio)
    found = oracle.chain_variances(VARIANCES, alpha, sigma, sampler="ddim", eta=1.0)[-1]
    np.testing.assert_allclose(found, variance, rtol=1e-9)  # 1 - abar loses digits near abar = 1


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_chain_against_monte_carlo(eta):
    alpha, sigma = karras_levels(6, sigma_min=0.05, sigma_max=20.0)
    rng, count = np.random.default_rng(0), 200_000
    assumed = VARIANCES * np.array([1.0, 1.3, 0.7, 1.0, 2.0])
    z = rng.normal(size=(count, 5))
    for a, s, a_next, s_next in zip(alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0), strict=True):
        x0 = a * assumed / (a**2 * assumed + s**2) * z
        epsilon = (z - a * x0) / s
        # Song et al. (DDIM), eq. 12 and 16, in the general (alpha, sigma) form.
        tau = eta * s_next * np.sqrt(1 - (s_next * a / (a_next * s)) ** 2)
        z = a_next * x0 + np.sqrt(s_next**2 - tau**2) * epsilon + tau * rng.normal(size=z.shape)
    found = oracle.chain_variances(VARIANCES, alpha, sigma, sampler="ddim", eta=eta, score_variances=assumed)[-1]
    error = 4 * found * np.sqrt(2 / count)  # 4 standard errors of a Gaussian sample variance
    assert np.all(np.abs(np.mean(z**2, axis=0) - found) < error)


def bridge(z, x0, level, level_next, noise):
    """A draw of z' given z and x_0 in the forward process: the product of N(alpha' x_0, sigma'^2) and of z given z'."""
    (a, s), (a_next, s_next) = level, level_next
    if s_next == 0:
        return x0
    factor = a / a_next  # z = factor z' + noise of variance left
    left = s**2 - factor**2 * s_next**2
    precision = 1 / s_next**2 + factor**2 / left
    return (a_next * x0 / s_next**2 + factor * z / left) / precision + noise / np.sqrt(precision)


def simulate(sampler, levels, assumed, z, rng):
    """The samplers as programs on states ``[B, D]``, with the score of N(0, diag(assumed)); ends on clean data."""
    before = None
    for k, (a, s) in enumerate(levels[:-1]):
        a_next, s_next = levels[k + 1]
        posterior = 1 / (1 / assumed + a**2 / s**2)  # Bayes: x_0 given z is N(posterior a z / s^2, posterior)
        x0 = posterior * a / s**2 * z
        if sampler in ("ddpm", "ddpm_exact"):
            draw = np.sqrt(posterior) * rng.normal(size=z.shape) if sampler == "ddpm_exact" else 0.0
            z = bridge(z, x0 + draw, (a, s), (a_next, s_next), rng.normal(size=z.shape))
            continue
        y, r, r_next = z / a, s / a, s_next / a_next
        slope, log_step = (y - x0) / r, np.log(r / r_next) if s_next else np.inf
        end = y + (r_next - r) * slope
        if sampler == "heun" and s_next:
            end = y + (r_next - r) * (slope + r_next * end / (assumed + r_next**2)) / 2
        if sampler == "dpmpp_2m" and s_next and before is not None:
            # x_0 extrapolated to the middle of the step in log r; y / r moves by (1/r' - 1/r) x_0.
            middle = x0 + (x0 - before[0]) / before[1] * log_step / 2
            end = r_next * (y / r + (1 / r_next - 1 / r) * middle)
        before, z = (x0, log_step), a_next * end
    return z


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_exact", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("start", ["standard", "marginal"])
def test_chains_against_simulation(start, sampler):
    alpha, sigma = karras_levels(5, sigma_min=0.05, sigma_max=20.0)
    levels = [*zip(alpha, sigma, strict=True), (1.0, 0.0)]
    rng, count = np.random.default_rng(0), 100_000
    assumed = VARIANCES * np.array([1.0, 1.3, 0.7, 1.0, 2.0])
    std = np.sqrt(alpha[0] ** 2 * VARIANCES + sigma[0] ** 2) if start == "marginal" else np.ones(5)
    end = simulate(sampler, levels, assumed, std * rng.normal(size=(count, 5)), rng)
    options = {"sampler": "ddim", "eta": 1.0} if sampler == "ddpm" else {"sampler": sampler}
    found = oracle.chain_variances(VARIANCES, alpha, sigma, start=start, score_variances=assumed, **options)[-1]
    error = 4 * found * np.sqrt(2 / count)  # 4 standard errors of a Gaussian sample variance
    assert np.all(np.abs(np.mean(end**2, axis=0) - found) < error)
    # Gains of samplers without noise carry no sampling error.
    if sampler in ("heun", "dpmpp_2m"):
        one = simulate(sampler, levels, assumed, std, rng)
        np.testing.assert_allclose(found, one**2, rtol=1e-10)


def test_eta_interpolates():
    ends = [
        oracle.chain_variances(VARIANCES, *karras_levels(12), sampler="ddim", eta=eta)[-1]
        for eta in np.linspace(0, 1, 11)
    ]
    assert np.all(np.ptp(ends, axis=0) > 0) and np.all(np.abs(np.diff(ends, axis=0)) < np.ptp(ends, axis=0) * 0.5)


def test_one_score_per_level():
    rows = VARIANCES * np.linspace(0.5, 2, 9)[:, None]
    levels = karras_levels(9)
    joint = oracle.chain_variances(VARIANCES, *levels, sampler="ddim", score_variances=rows, start="marginal")
    for k, row in enumerate(rows):  # update k uses row k only
        alone = oracle.chain_variances(VARIANCES, *levels, sampler="ddim", score_variances=row, start="marginal")
        np.testing.assert_allclose(joint[k + 1] / joint[k], alone[k + 1] / alone[k], rtol=1e-12)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_chains(sampler, order):
    # From the marginal start the exact flow is at the marginal of the cleanest level before the last update.
    counts = np.array([64, 128, 256, 512])
    errors = []
    for count in counts.tolist():
        alpha, sigma = uniform_logsnr_levels(count) if sampler == "dpmpp_2m" else karras_levels(count)
        found = oracle.chain_variances(VARIANCES, alpha, sigma, sampler=sampler, start="marginal")[-2]
        errors.append(np.abs(np.sqrt(found) - np.sqrt(alpha[-1] ** 2 * VARIANCES + sigma[-1] ** 2)))
    for i in range(VARIANCES.size):
        assert abs(slope(np.array(errors)[:, i], counts) - order) < 0.2, i


def test_second_order_chains_beat_ddim_on_the_same_32_levels():
    def distance(sampler):
        end = oracle.chain_variances(VARIANCES, *uniform_logsnr_levels(32), sampler=sampler, start="marginal")[-1]
        return np.linalg.norm(np.sqrt(end) - np.sqrt(VARIANCES))

    assert distance("dpmpp_2m") < 0.2 * distance("ddim") and distance("heun") < 0.5 * distance("ddim")


def multistep_state(alpha, sigma, lam):
    """DPM-Solver++(2M) on the state 1, from the text of docs/t_space.md, section 1."""
    x, previous, h_previous = 1.0, None, None
    half_logsnr = np.log(alpha / sigma)
    for k in range(alpha.size):
        d0 = alpha[k] * lam / (alpha[k] ** 2 * lam + sigma[k] ** 2) * x
        if k == alpha.size - 1:
            return d0
        h = half_logsnr[k + 1] - half_logsnr[k]
        d = d0 if previous is None else (1 + h / (2 * h_previous)) * d0 - h / (2 * h_previous) * previous
        x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * np.expm1(-h) * d
        previous, h_previous = d0, h


def heun_state(alpha, sigma, lam):
    """Heun's method on dy/dr = r y / (lam + r^2), y = x / alpha; the last update Euler."""
    y, ratio = 1.0 / alpha[0], np.append(sigma / alpha, 0.0)
    for r, r_next in zip(ratio, ratio[1:], strict=False):
        here = r * y / (lam + r**2)
        predicted = y + (r_next - r) * here
        y = predicted if r_next == 0 else y + (r_next - r) / 2 * (here + r_next * predicted / (lam + r_next**2))
    return y


@pytest.mark.parametrize(("sampler", "reference"), [("dpmpp_2m", multistep_state), ("heun", heun_state)])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_multistep_and_heun_against_the_scheme(sampler, reference, count):
    alpha, sigma = karras_levels(count, sigma_max=3.0)
    found = oracle.chain_variances(VARIANCES, alpha, sigma, sampler=sampler)[-1]
    np.testing.assert_allclose(found, [reference(alpha, sigma, lam) ** 2 for lam in VARIANCES], rtol=1e-11)


def test_pure_noise_first_level():
    # alpha = 0 (rectified flow at s = 1) is the limit of a small alpha.
    alpha, sigma = rectified_flow_levels(8)
    for sampler in ["ddim", "ddpm_exact", "dpmpp_2m"]:
        found = oracle.chain_variances(VARIANCES, alpha, sigma, sampler=sampler)
        near = oracle.chain_variances(VARIANCES, np.maximum(alpha, 1e-9), sigma, sampler=sampler)
        # The first step of 2M then is 20 units of log-ratio long instead of infinite: 1/h enters the second.
        np.testing.assert_allclose(found, near, rtol=1e-6 if sampler != "dpmpp_2m" else 0.1)
    with pytest.raises(ValueError, match="heun"):
        oracle.chain_variances(VARIANCES, alpha, sigma, sampler="heun")


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "euler"},
        {"start": "prior"},
        {"eta": 1.5},
        {"sampler": "heun", "eta": 0.5},
        {"alpha": [0.5, 0.0]},
        {"alpha": [-0.5, 0.9]},
        {"sigma": [0.5, 0.0]},
        {"sigma": [0.1, 0.8]},
        {"alpha": [0.9, 0.9], "sigma": [0.4, 0.4]},
        {"alpha": [], "sigma": []},
        {"alpha": [0.5], "sigma": [0.5, 0.4]},
    ],
)
def test_bad_chain_arguments_raise(changes):
    options = {"alpha": [0.5, 0.9], "sigma": [0.8, 0.4], "sampler": "ddim"} | changes
    with pytest.raises(ValueError):
        oracle.chain_variances([1.0], options.pop("alpha"), options.pop("sigma"), **options)


def distance_by_prefix(variances, generated):
    return [
        np.sum((np.sqrt(generated[:d]) - np.sqrt(variances[:d])) ** 2) + variances[d:].sum()
        for d in range(1, variances.size + 1)
    ]


@pytest.mark.parametrize("scheme", ["euler_maruyama", "heun_ode"])
def test_error_split(scheme):
    schedule, cap = LinearVP(), 30.0
    estimated = VARIANCES * np.array([1.1, 0.8, 1.0, 1.3, 0.6])
    times = uniform_logsnr_times(schedule, 200, logsnr_min=-8.0, logsnr_max=4.0)
    split = oracle.error_split(VARIANCES, estimated, schedule, times, scheme=scheme, cap=cap)
    alpha_t, sigma_t = schedule.alpha(times[0]), schedule.sigma(times[0])
    g_t = alpha_t**2 * VARIANCES + sigma_t**2
    # Initialisation: the backward process forgets the start by (alpha_T lam / g_T)^2 (SDE), or keeps V_0 / g_T (flow).
    wrong_start = 1 - g_t
    if scheme == "heun_ode":
        end = VARIANCES / g_t
    else:
        end = VARIANCES + (alpha_t * VARIANCES / g_t) ** 2 * wrong_start
    np.testing.assert_allclose(split["initialisation"], distance_by_prefix(VARIANCES, end), rtol=1e-7, atol=1e-14)
    at_eps = schedule.alpha(times[-1]) ** 2 * VARIANCES + schedule.sigma(times[-1]) ** 2
    np.testing.assert_allclose(split["truncation"], distance_by_prefix(VARIANCES, at_eps), rtol=1e-10)
    stepped = oracle.sampler_variances(VARIANCES, schedule, times, scheme=scheme, start="marginal")[-1]
    kept = [np.sum((np.sqrt(stepped[:d]) - np.sqrt(at_eps[:d])) ** 2) for d in range(1, 6)]
    np.testing.assert_allclose(split["discretisation"], kept, rtol=1e-10)
    dynamics = "ode" if scheme == "heun_ode" else "sde"
    learned = oracle.capped_variances(
        estimated, 0.0, noise_var_max=sigma_t**2, cap=cap, start="marginal", dynamics=dynamics
    )[:, 0]
    np.testing.assert_allclose(split["score"], distance_by_prefix(VARIANCES, learned), rtol=1e-10)
    total = oracle.sampler_variances(estimated, schedule, times, scheme=scheme, start="standard", cap=cap)[-1]
    np.testing.assert_allclose(split["total"], distance_by_prefix(VARIANCES, total), rtol=1e-10)
    # With few steps the discretisation is the largest part, with many it vanishes.
    fine = uniform_logsnr_times(schedule, 4000, logsnr_min=-8.0, logsnr_max=4.0)
    finer = oracle.error_split(VARIANCES, VARIANCES, schedule, fine, scheme=scheme)
    assert finer["discretisation"][-1] < 0.01 * split["discretisation"][-1]
    np.testing.assert_allclose(finer["score"], distance_by_prefix(VARIANCES, VARIANCES), atol=1e-13)


def test_more_components_than_are_handled_at_once():
    """130 components in three blocks, and any number of steps, give what each component gives alone."""
    schedule = SCHEDULES[0]
    variances = np.linspace(3.0, 0.01, 130)
    for steps in (1, 2, 37):
        times = np.linspace(1.0, 0.01, steps + 1) * schedule.t_max
        options = {"scheme": "euler_maruyama", "start": "standard"}
        together = oracle.sampler_variances(variances, schedule, times, **options)
        for i in (0, 63, 64, 127, 128, 129):
            alone = oracle.sampler_variances(variances[i : i + 1], schedule, times, **options)
            np.testing.assert_array_equal(together[:, i], alone[:, 0])


def test_what_a_sampler_keeps_of_a_variance():
    """Euler on rectified flow by hand; the whole of it with many steps; refusals."""
    lam, steps = 0.3, 4
    logsnr, kept = oracle.variance_kept([lam], RectifiedFlow(), steps, sampler="euler_ode")
    s, variance = 1.0, 1.0
    for k in range(steps):
        alpha, sigma, after = 1 - s, s, s - 0.25
        velocity = (sigma - alpha * lam) / (alpha**2 * lam + sigma**2)  # (eps - x0) / z, of the exact score
        variance *= (1 - 0.25 * velocity) ** 2
        exact = (1 - after) ** 2 * lam + after**2
        assert kept[k, 0] == pytest.approx(variance / exact)
        assert logsnr[k] == (pytest.approx(2 * np.log((1 - after) / after)) if after else np.inf)
        s = after
    np.testing.assert_allclose(kept, oracle.variance_kept([lam], RectifiedFlow(), steps, sampler="ddim")[1])
    for sampler in oracle.KEPT_BY:
        for schedule in (RectifiedFlow(), LinearVP()):
            logsnr, many = oracle.variance_kept([2.0, 0.3, 0.0], schedule, 4000, sampler=sampler)
            assert np.all(np.diff(logsnr) > 0)
            # DPM-Solver++(2M) is of second order; where alpha is tiny the last variance, 0, is all loss or none.
            np.testing.assert_allclose(many[-2:, :2], 1.0, atol=5e-3)
            few = oracle.variance_kept([2.0, 0.3], schedule, 20, sampler=sampler)[1]
            assert np.max(np.abs(few[-1] - 1)) > 4 * np.max(np.abs(many[-1, :2] - 1))
    with pytest.raises(ValueError, match="sampler"):
        oracle.variance_kept([1.0], RectifiedFlow(), 4, sampler="heun")
    with pytest.raises(ValueError, match="steps must be >= 2, got 1"):
        oracle.variance_kept([1.0], RectifiedFlow(), 1, sampler="euler_ode")
