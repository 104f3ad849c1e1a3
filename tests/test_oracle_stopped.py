"""Laws and optima without a cap (docs/theory.md 2, 9, 10) against loops, ODE integration and numerical minimisation."""

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize_scalar

from ldmjax import gaussians, oracle
from ldmjax.schedules import LinearVP, OrnsteinUhlenbeck, RectifiedFlow, noise_var_from_logsnr

SPECTRUM = Path(__file__).parents[2] / "shared" / "data" / "cifar10_spectrum.npy"
SEEDS = range(8)


def random_spectra(seed, *, size=7, with_zeros=False):
    """Variances over six decades on both sides of 1, and estimates of them that are off by factors up to 3."""
    rng = np.random.default_rng(seed)
    variances = np.sort(10.0 ** rng.uniform(-5, 1, size))[::-1]
    estimated = variances * 3.0 ** rng.uniform(-1, 1, size)
    if with_zeros:
        variances[-1], estimated[2:4], estimated[-1] = 0.0, 0.0, 0.0
    return variances, estimated


def stopped_variance(estimated, noise_var, scale=1.0):
    return (1 - noise_var) * estimated + noise_var * scale**2


def w2_squared_by_loop(variances, estimated, latent_dim, noise_var, scale=1.0):
    total = 0.0
    for i in range(len(variances)):
        kept = stopped_variance(estimated[i], noise_var, scale) if i < latent_dim else 0.0
        total += (kept**0.5 - variances[i] ** 0.5) ** 2
    return total


@pytest.mark.parametrize("scale", [1.0, 0.3, 5.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_curve_against_loops(seed, scale):
    variances, estimated = random_spectra(seed, with_zeros=seed % 2 == 1)
    noise_var = np.array([0.0, 1e-8, 1e-3, 0.4, 0.98, 1.0])
    curve = oracle.w2_squared_curve(variances, estimated, noise_var, latent_scale=scale)
    expected = [
        [w2_squared_by_loop(variances, estimated, d, nu, scale) for nu in noise_var]
        for d in range(1, variances.size + 1)
    ]
    # The loop subtracts roots; the difference of two roots near sqrt(10) carries 1e-15 of them.
    np.testing.assert_allclose(curve, expected, rtol=1e-12, atol=1e-14 * variances.sum())
    generated = oracle.stopped_variances(estimated, noise_var, latent_scale=scale)
    np.testing.assert_allclose(generated, [[stopped_variance(e, nu, scale) for nu in noise_var] for e in estimated])
    from_variances = oracle.w2_squared_from_variances(variances, generated)
    np.testing.assert_allclose(from_variances, curve, rtol=1e-12, atol=1e-14 * variances.sum())


@pytest.mark.parametrize("schedule", [LinearVP(), OrnsteinUhlenbeck(t_max=2.0)])
def test_law_against_integration_of_the_backward_sde(schedule):
    # dz = (z + 2 s) w^2 dt + sqrt(2) w dW backward in t with s = -z / (sigma^2 + alpha^2 lamh) moves the variance by
    # dV = (2 (1 - 2 m) V + 2) w^2 dt. In B it does not know the schedule, so t is integrated as it stands.
    variances, estimated = random_spectra(3)
    stops = np.array([0.9, 0.3, 0.02]) * schedule.t_max

    def rate(t, log_v):
        alpha_squared = np.exp(-2 * schedule.B(t))
        m = 1.0 / (1 - alpha_squared + alpha_squared * estimated)
        return -schedule.w_squared(t) * (2 * (1 - 2 * m) + 2 * np.exp(-log_v))

    end = np.exp(-2 * schedule.B(schedule.t_max))
    start = np.log(1 - end + end * estimated)
    solution = solve_ivp(
        rate, (schedule.t_max, stops[-1]), start, method="DOP853", t_eval=stops, rtol=1e-12, atol=1e-13
    )
    noise_var = noise_var_from_logsnr(schedule.logsnr(stops))
    # The integrator's tolerance, accumulated over a few hundred steps.
    np.testing.assert_allclose(np.exp(solution.y), oracle.stopped_variances(estimated, noise_var), rtol=1e-9)
    expected = [
        [np.sum((np.exp(y[:d] / 2) - variances[:d] ** 0.5) ** 2) + variances[d:].sum() for y in solution.y.T]
        for d in range(1, 8)
    ]
    curve = oracle.w2_squared_curve(variances, estimated, noise_var)
    np.testing.assert_allclose(curve, expected, rtol=1e-9)


def test_curve_is_accurate_where_the_distance_is_tiny():
    # lamh = lam (1 + 1e-9): W2^2 = lam (1e-9 / 2)^2, which subtracting roots would lose entirely.
    curve = oracle.w2_squared_curve([2.0, 1.0], [2.0 * (1 + 1e-9), 1.0 + 1e-9], 0.0)
    np.testing.assert_allclose(curve[1, 0], 3.0 * 0.25e-18, rtol=1e-6)  # 1 + 1e-9 itself is rounded to 1e-7 of 1e-9


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("noise_var_max", [0.98, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_best_noise_var_against_minimisation(seed, noise_var_max, scale):
    variances, estimated = random_spectra(seed, with_zeros=seed % 2 == 1)
    best = oracle.best_noise_var(variances, estimated, noise_var_max=noise_var_max, latent_scale=scale)
    assert best.shape == variances.shape and np.all((best >= 0) & (best <= noise_var_max))
    grid = np.union1d(np.linspace(0, noise_var_max, 500), np.geomspace(1e-9, 1, 500) * noise_var_max)
    for d in range(1, variances.size + 1):

        def distance(noise_var, d=d):
            return w2_squared_by_loop(variances, estimated, d, noise_var, scale)

        found = minimize_scalar(distance, bounds=(0, noise_var_max), method="bounded", options={"xatol": 1e-10})
        lowest = min(found.fun, *(distance(nu) for nu in grid))
        assert distance(best[d - 1]) <= lowest + 1e-13 * (variances.sum() + estimated.sum())  # rounding of the sums


@pytest.mark.parametrize("seed", range(20))
def test_best_noise_var_is_the_root_of_the_slope(seed):
    variances, estimated = random_spectra(seed)
    best = oracle.best_noise_var(variances, estimated, noise_var_max=0.98)
    for d in range(1, variances.size + 1):

        def distance(noise_var, d=d):
            g = stopped_variance(estimated[:d], noise_var)
            return np.sum((np.sqrt(g) - np.sqrt(variances[:d])) ** 2)

        def slope(noise_var, distance=distance):
            return distance(noise_var + 1e-40j).imag / 1e-40  # complex step: exact derivative

        if slope(0.0) >= 0:
            assert best[d - 1] == 0.0
        elif slope(0.98) <= 0:
            assert best[d - 1] == 0.98
        else:
            expected = brentq(slope, 0.0, 0.98, xtol=1e-300, rtol=1e-14)
            # A slope off by 1e-15 of its terms moves a root by the inverse of the curvature there.
            np.testing.assert_allclose(best[d - 1], expected, rtol=1e-9)


def test_slip_in_proposition_8_has_its_optimum_at_the_largest_noise():
    # docs/theory.md, section 9, item 2: the slope never reaches 0 on [0, 1), so the best stop is nu_T.
    best = oracle.best_noise_var([1.0, 1.0, 1.0], [1.1, 1.0, 0.9], noise_var_max=0.97)
    assert best[2] == 0.97
    np.testing.assert_array_equal(oracle.best_noise_var([1.0] * 3, [1.1, 1.0, 0.9], noise_var_max=1.0)[[0, 1]], 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_score_never_gains(seed):
    variances, _ = random_spectra(seed, with_zeros=seed % 2 == 1)
    assert np.all(oracle.best_noise_var(variances, variances, noise_var_max=0.98) == 0.0)
    curve = oracle.w2_squared_curve(variances, variances, np.linspace(0, 0.98, 100))
    assert np.all(np.diff(curve, axis=1) >= 0)
    dropped = [variances[d:].sum() for d in range(1, variances.size + 1)]
    np.testing.assert_allclose(curve[:, 0], dropped, rtol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 0.7, 3.3])
def test_whitened_latents_are_flat(scale):
    rng = np.random.default_rng(0)
    variances = np.sort(rng.uniform(0, 4, 9))[::-1]
    # Rounding of the estimate must not turn a flat curve into a gain either.
    for estimated in [np.full(9, scale**2), np.full(9, scale**2) * (1 + 4e-16 * rng.integers(-3, 4, 9))]:
        curve = oracle.w2_squared_curve(variances, estimated, np.linspace(0, 1, 40), latent_scale=scale)
        np.testing.assert_allclose(curve, curve[:, :1] * np.ones(40), rtol=1e-12)
        assert np.all(oracle.best_noise_var(variances, estimated, noise_var_max=0.9, latent_scale=scale) == 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_latent_scale_rule(seed):
    # Multiplying data and c by the same number is a change of units: W2^2 scales by its square, optima do not move.
    variances, estimated = random_spectra(seed)
    noise_var, c = np.linspace(0, 0.98, 11), 3.7
    plain = oracle.w2_squared_curve(variances, estimated, noise_var, latent_scale=0.6)
    scaled = oracle.w2_squared_curve(c**2 * variances, c**2 * estimated, noise_var, latent_scale=0.6 * c)
    np.testing.assert_allclose(scaled, c**2 * plain, rtol=1e-10)
    best = [
        oracle.best_noise_var(k**2 * variances, k**2 * estimated, noise_var_max=0.98, latent_scale=0.6 * k)
        for k in (1.0, c)
    ]
    np.testing.assert_allclose(best[0], best[1], rtol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_useful_components_lower_the_distance(seed):
    variances, estimated = random_spectra(seed, with_zeros=seed % 2 == 1)
    noise_var = np.linspace(0.001, 0.98, 60)
    useful = oracle.component_is_useful(variances, estimated, noise_var)
    interval = oracle.useful_noise_var(variances, estimated)
    for i in range(variances.size):
        for k, nu in enumerate(noise_var):
            change = w2_squared_by_loop([variances[i]], [estimated[i]], 1, nu) - variances[i]
            if abs(change) > 1e-12:  # below it the sign is rounding
                assert useful[i, k] == (change < 0)
                assert useful[i, k] == (interval[i, 0] <= nu <= interval[i, 1])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_useful_components_follow_the_latent_scale(scale):
    variances, estimated = random_spectra(4)
    useful = oracle.component_is_useful(variances, estimated, [0.3], latent_scale=scale)[:, 0]
    change = [w2_squared_by_loop([v], [e], 1, 0.3, scale) - v for v, e in zip(variances, estimated, strict=True)]
    np.testing.assert_array_equal(useful, np.array(change) < 0)


def test_useful_interval_by_cases():
    variances = np.array([1.0, 0.2, 0.1, 0.1, 0.1])
    estimated = np.array([6.0, 0.9, 0.9, 0.2, 1.0])
    interval = oracle.useful_noise_var(variances, estimated)
    # lamh > 4 lam >= 1: useful from (4 - 6)/(1 - 6) = .4 on; nowhere; nowhere; up to (.4 - .2)/(1 - .2); nowhere.
    np.testing.assert_allclose(
        interval, [[0.4, 1.0], [np.nan] * 2, [np.nan] * 2, [0.0, 0.25], [np.nan] * 2], rtol=1e-14
    )
    exact = oracle.useful_noise_var([0.5, 0.1, 0.0], [0.5, 0.1, 0.0])
    np.testing.assert_allclose(exact, [[0.0, 1.0], [0.0, 0.3 / 0.9], [0.0, 0.0]], rtol=1e-14)  # 3 lam / (1 - lam)


def test_figure_4_thresholds():
    # docs/theory.md, section 9, item 6: backward time, Ornstein-Uhlenbeck, T = 2, exact score; t_4..t_8.
    variances = np.append(0.6 ** np.arange(7), [1e-10, 1e-10])
    highest = oracle.useful_noise_var(variances, variances)[3:8, 1]
    backward = 2.0 - OrnsteinUhlenbeck(t_max=2.0).inverse_logsnr(np.log1p(-highest) - np.log(highest))
    np.testing.assert_allclose(backward, [1.12412, 1.70408, 1.85419, 1.92061, 2.0], atol=5.1e-6)  # printed digits


@pytest.mark.parametrize("seed", SEEDS)
def test_best_dimension_and_best_stop_against_brute_force(seed):
    variances, estimated = random_spectra(seed, with_zeros=seed % 2 == 1)
    noise_var = np.append(0.0, np.geomspace(1e-7, 0.98, 400))
    table = np.array([[w2_squared_by_loop(variances, estimated, d, nu) for nu in noise_var] for d in range(1, 8)])
    dims = oracle.best_latent_dim(variances, estimated, noise_var)
    chosen = table[dims - 1, np.arange(noise_var.size)]
    allowed = 1e-13 * (variances.sum() + estimated.sum())
    np.testing.assert_allclose(chosen, table.min(axis=0), atol=allowed, rtol=0)
    dim, best_nu, value = oracle.best_stop(variances, estimated, noise_var_max=0.98)
    assert isinstance(dim, int) and 1 <= dim <= 7 and 0 <= best_nu <= 0.98
    np.testing.assert_allclose(value, w2_squared_by_loop(variances, estimated, dim, best_nu), rtol=1e-10, atol=allowed)
    assert value <= table.min() + allowed
    # Golden-section in nu for each d finds nothing lower.
    for d in range(1, 8):
        found = minimize_scalar(
            lambda nu, d=d: w2_squared_by_loop(variances, estimated, d, nu), bounds=(0, 0.98), method="bounded"
        )
        assert value <= found.fun + allowed


def test_ties_go_to_the_smallest_dimension():
    # Components 2 and 3 have nothing to give, and at nu = 0 nothing to lose.
    assert oracle.best_stop([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], noise_var_max=0.9)[0] == 1
    np.testing.assert_array_equal(oracle.best_latent_dim([1.0, 0.0], [1.0, 0.0], [0.0, 0.5]), [1, 1])
    # Nothing is useful: d = 1 all the same.
    assert oracle.best_latent_dim([0.01, 0.01], [2.0, 2.0], 0.0)[0] == 1


def test_best_stop_beyond_one_block():
    # 600 components are searched in blocks of 256: the answer must not depend on it.
    rng = np.random.default_rng(0)
    variances = np.sort(10.0 ** rng.uniform(-6, 0, 600))[::-1]
    estimated = variances * rng.chisquare(40, 600) / 40
    dim, noise_var, value = oracle.best_stop(variances, estimated, noise_var_max=0.98)
    best = oracle.best_noise_var(variances, estimated, noise_var_max=0.98)
    all_values = oracle.w2_squared_curve(variances, estimated, best).diagonal()
    assert dim == 1 + np.argmin(all_values) and noise_var == best[dim - 1]
    np.testing.assert_allclose(value, min(all_values), rtol=1e-13)
    for d in [1, 255, 256, 257, 512, 600]:
        alone = oracle.best_noise_var(variances[:d], estimated[:d], noise_var_max=0.98)[-1]
        np.testing.assert_allclose(best[d - 1], alone, rtol=1e-8, atol=1e-14)  # summation order


@pytest.mark.parametrize("noise_var_max", [1.0, 0.9, 1e-3])
@pytest.mark.parametrize("relative", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_tolerance_against_root_finding(seed, relative, noise_var_max):
    rng = np.random.default_rng(seed)
    variances = np.sort(10.0 ** rng.uniform(-8, 3, 6))[::-1]
    found = oracle.tolerance_noise_var(variances, relative=relative, noise_var_max=noise_var_max)
    assert found[-1] == 0.0  # the last dimension drops nothing: no cost is allowed
    for d in range(1, 6):
        kept, allowed = variances[:d], relative * variances[d:].sum()

        def excess(log_nu, kept=kept, allowed=allowed):
            growth = np.exp(log_nu) * (1 - kept)
            return np.log(np.sum((growth / (np.sqrt(kept + growth) + np.sqrt(kept))) ** 2) / allowed)

        if excess(np.log(noise_var_max)) <= 0:
            assert found[d - 1] == noise_var_max
        else:
            expected = np.exp(brentq(excess, -60.0, np.log(noise_var_max), xtol=1e-15, rtol=1e-14))
            np.testing.assert_allclose(found[d - 1], expected, rtol=1e-11)


@pytest.mark.skipif(not SPECTRUM.exists(), reason=f"{SPECTRUM} is not in this checkout")
def test_tolerance_on_cifar10():
    # docs/theory.md, section 10: noise left that costs 1 % of the distance, in Ornstein-Uhlenbeck time, and it falls with d.
    variances = np.load(SPECTRUM).astype(np.float64)[::-1]
    noise_var = oracle.tolerance_noise_var(variances, relative=0.01, noise_var_max=0.98)
    times = -0.5 * np.log1p(-noise_var)
    np.testing.assert_allclose(times[[0, 63]], [0.171, 0.044], atol=5e-4)  # printed digits
    np.testing.assert_allclose(times[1023], 0.0009, atol=5e-5)
    assert np.all(np.diff(noise_var[:-1]) < 0)
    curve = oracle.w2_squared_curve(variances, variances, noise_var[[0, 63, 1023]])
    np.testing.assert_allclose(
        curve[[0, 63, 1023], range(3)] / [variances[d:].sum() for d in (1, 64, 1024)], 1.01, rtol=1e-9
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_rectified_flow(seed):
    variances, estimated = random_spectra(seed)
    times, flow = np.array([0.0, 1e-3, 0.2, 0.7, 1.0]), RectifiedFlow()
    plain = oracle.rectified_flow_w2_squared_curve(variances, estimated, times, rescaled=False)
    rescaled = oracle.rectified_flow_w2_squared_curve(variances, estimated, times, rescaled=True)
    for k, s in enumerate(times):
        kept = (1 - s) ** 2 * estimated + s**2
        for readout, table in [(kept, plain), (kept / ((1 - s) ** 2 + s**2), rescaled)]:
            for d in range(1, 8):
                expected = np.sum((np.sqrt(readout[:d]) - np.sqrt(variances[:d])) ** 2) + variances[d:].sum()
                np.testing.assert_allclose(table[d - 1, k], expected, rtol=1e-11, atol=1e-14 * variances.sum())
    # Divided by the radius it is the VP sample of the same logsnr.
    noise_var = noise_var_from_logsnr(flow.logsnr(times))
    np.testing.assert_allclose(rescaled, oracle.w2_squared_curve(variances, estimated, noise_var), rtol=1e-10)


def test_unrescaled_rectified_flow_gains_from_overestimated_variance():
    # docs/theory.md, section 10: near s = 0 iff sum sqrt(lamh) (sqrt(lamh) - sqrt(lam)) > 0.
    for factor, gains in [(1.2, True), (0.8, False)]:
        curve = oracle.rectified_flow_w2_squared_curve(
            [3.0, 2.0], [3 * factor, 2 * factor], [0.0, 1e-4], rescaled=False
        )
        assert np.all((curve[:, 1] < curve[:, 0]) == gains)


@pytest.mark.parametrize("seed", SEEDS)
def test_latent_kl_against_gaussians(seed):
    variances, estimated = random_spectra(seed)
    generated = oracle.stopped_variances(estimated, [0.0, 0.01, 0.5])
    to_generated, to_data = oracle.latent_kl_divergences(variances, generated)
    for d in range(1, 8):
        zero, data = np.zeros(d), np.diag(variances[:d])
        for k in range(3):
            model = np.diag(generated[:d, k])
            # 1e-9: the sum of (ratio - 1 - log ratio) cancels where the two laws are close.
            np.testing.assert_allclose(
                to_generated[d - 1, k], gaussians.kl_divergence(zero, data, zero, model), rtol=1e-9
            )
            np.testing.assert_allclose(to_data[d - 1, k], gaussians.kl_divergence(zero, model, zero, data), rtol=1e-9)


def test_latent_kl_with_zeros():
    to_generated, to_data = oracle.latent_kl_divergences([1.0, 0.5, 0.0], np.array([[2.0], [0.5], [0.0]]))
    np.testing.assert_allclose(to_generated[:, 0], 0.5 * (0.5 - 1 + np.log(2)), rtol=1e-14)  # zeros agree
    np.testing.assert_allclose(to_data[:, 0], 0.5 * (2 - 1 - np.log(2)), rtol=1e-14)
    for data, model in [([1.0, 0.0], [[1.0], [0.1]]), ([1.0, 0.1], [[1.0], [0.0]])]:
        for direction in oracle.latent_kl_divergences(data, np.array(model)):
            np.testing.assert_array_equal(direction[:, 0], [0.0, np.inf])


def test_shapes():
    variances, estimated = random_spectra(0)
    assert oracle.w2_squared_curve(variances, estimated, 0.1).shape == (7, 1)
    assert oracle.w2_squared_curve(variances, estimated, [0.1, 0.2]).shape == (7, 2)
    assert oracle.component_is_useful(variances, estimated, 0.1).dtype == bool
    assert oracle.w2_squared_curve([2.0], [1.0], 0.0).shape == (1, 1)


@pytest.mark.parametrize(
    ("variances", "estimated", "noise_var", "scale"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.1, 1.0),  # not sorted
        ([2.0, -1.0], [2.0, 1.0], 0.1, 1.0),
        ([2.0, 1.0], [2.0, -1.0], 0.1, 1.0),
        ([2.0, 1.0], [2.0], 0.1, 1.0),
        ([2.0, np.nan], [2.0, 1.0], 0.1, 1.0),
        ([], [], 0.1, 1.0),
        ([2.0, 1.0], [2.0, 1.0], 1.1, 1.0),
        ([2.0, 1.0], [2.0, 1.0], -0.1, 1.0),
        ([2.0, 1.0], [2.0, 1.0], np.nan, 1.0),
        ([2.0, 1.0], [2.0, 1.0], [[0.1]], 1.0),
        ([2.0, 1.0], [2.0, 1.0], 0.1, 0.0),
        ([2.0, 1.0], [2.0, 1.0], 0.1, np.inf),
    ],
)
def test_bad_arguments_raise(variances, estimated, noise_var, scale):
    with pytest.raises(ValueError):
        oracle.w2_squared_curve(variances, estimated, noise_var, latent_scale=scale)


@pytest.mark.parametrize("noise_var_max", [0.0, 1.1, np.nan])
def test_bad_noise_var_max_raises(noise_var_max):
    with pytest.raises(ValueError, match="noise_var_max"):
        oracle.best_noise_var([1.0], [1.0], noise_var_max=noise_var_max)


def test_bad_generated_variances_raise():
    for generated in [np.ones(2), np.ones((3, 1)), -np.ones((2, 1)), np.full((2, 1), np.nan)]:
        with pytest.raises(ValueError, match="generated_variances"):
            oracle.w2_squared_from_variances([2.0, 1.0], generated)
