"""Angles, weights and optimised ladders against chain_variances, finite differences and the numbers of docs/t_space.md."""

from pathlib import Path

import numpy as np
import pytest

from ldmjax import oracle, schedules

SPECTRUM = Path(__file__).parents[2] / "shared" / "data" / "cifar10_spectrum.npy"
needs_spectrum = pytest.mark.skipif(not SPECTRUM.exists(), reason=f"{SPECTRUM} is not in this checkout")
SPECTRA = {
    "exponential": np.exp(-np.arange(32) / 4),
    "power": 1.0 / np.arange(1, 257),
    "steep": np.append(np.arange(1, 65) ** -2.0, np.zeros(3)),
}


def cifar():
    return np.load(SPECTRUM).astype(np.float64)[::-1]


def from_angles(theta):
    return np.cos(theta), np.sin(theta)


def uniform_angles(count):
    return from_angles(np.pi / 2 * np.arange(count, 0, -1) / count)


def relative_w2(variances, levels):
    end = oracle.chain_variances(variances, *levels, sampler="ddim")[-1]
    return np.linalg.norm(np.sqrt(end) - np.sqrt(variances)) / np.sqrt(np.sum(variances))


def mean_one(variances):
    return variances / variances.mean()


@pytest.mark.parametrize("seed", range(4))
def test_angle_identity(seed):
    # Equation (1), at levels that need not be variance preserving.
    rng = np.random.default_rng(seed)
    variances, size = np.exp(rng.normal(size=7) * 3), rng.uniform(0.5, 2.0, size=9)
    alpha, sigma = size * np.stack(from_angles(np.sort(rng.uniform(0, np.pi / 2, size=9))[::-1]))
    theta = np.arctan2(sigma[:, None], alpha[:, None] * np.sqrt(variances))
    steps = theta - np.vstack([theta[1:], np.zeros(7)])
    mismatch = 1 / np.sqrt(alpha[0] ** 2 * variances + sigma[0] ** 2)
    end = oracle.chain_variances(variances, alpha, sigma, sampler="ddim")[-1]
    np.testing.assert_allclose(np.sqrt(end / variances), mismatch * np.prod(np.cos(steps), axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    "levels",
    [schedules.karras_levels(8), schedules.rectified_flow_levels(5), uniform_angles(6), ([0.3], [2.0])],
)
def test_weights_against_finite_differences(levels):
    count, h = len(levels[0]), 1e-4
    expected = []
    for row in range(count):
        ends = []
        for sign in (1, -1):
            assumed = np.ones((count, 1))
            assumed[row] = np.exp(sign * h)
            chain = oracle.chain_variances([1.0], *levels, sampler="ddim", score_variances=assumed)
            ends.append(np.log(chain[-1, 0]))  # 2 log G
        expected.append((ends[0] - ends[1]) / (2 * h))
    found = oracle.discretisation_weights(*levels)
    assert found.dtype == np.float64 and found.shape == (count,)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_weights_at_uniform_angles():
    # phi_i = i pi/2T: w_i = sin(i pi/T) tan(pi/2T), of which sum w = 1 and sum w^2 = T/2 tan^2(pi/2T).
    weights = oracle.discretisation_weights(*uniform_angles(32))
    np.testing.assert_allclose(weights, np.sin(np.pi * np.arange(32, 0, -1) / 32) * np.tan(np.pi / 64), atol=1e-14)
    np.testing.assert_allclose(oracle.effective_states(weights), 2 / 32 / np.tan(np.pi / 64) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        # docs/t_space.md (2.2), "9-16 of 32 for Karras, uniform logsnr, linear; 26 for uniform angles"; digits as found here.
        (schedules.karras_levels(32), 9.09),
        (schedules.uniform_logsnr_levels(32), 8.79),
        (schedules.linear_beta_levels(32), 16.23),
        (uniform_angles(32), 25.90),
    ],
)
def test_effective_states_of_32(levels, expected):
    assert abs(oracle.effective_states(oracle.discretisation_weights(*levels)) - expected) <= 0.005


def test_effective_states_count_equal_weights():
    np.testing.assert_allclose(oracle.effective_states([0.3, 0.3, 0.0, 0.3]), 3.0, rtol=1e-14)


def test_effective_states_are_the_price_in_samples():
    # log G has the same variance from n samples per level, independent, as from one estimate of N_eff n for all levels.
    levels, n, draws = schedules.karras_levels(16), 2000, 4000
    weights = oracle.discretisation_weights(*levels)
    n_eff = oracle.effective_states(weights)
    rng = np.random.default_rng(0)
    independent = rng.chisquare(n, size=(draws, 16)) / n
    joint = rng.chisquare(n * n_eff, size=(draws, 1)) / (n * n_eff)

    def spread(estimates):
        # One component per draw: the score's variances are [T, D] with D draws of variance 1.
        assumed = np.broadcast_to(estimates.T, (16, draws))
        end = oracle.chain_variances(np.ones(draws), *levels, sampler="ddim", score_variances=assumed)[-1]
        return np.var(np.log(end))

    # 4 standard errors of the ratio of two sample variances.
    assert abs(spread(independent) / spread(joint) - 1) < 4 * np.sqrt(4 / draws)


@pytest.mark.parametrize("pure_noise", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_no_level_can_be_moved_to_advantage(name, pure_noise):
    variances = SPECTRA[name]
    levels = oracle.optimised_levels(variances, 12, pure_noise=pure_noise)
    np.testing.assert_allclose(np.hypot(*levels), 1.0, rtol=1e-14)
    assert (levels[0][0] == 0) == pure_noise
    best = relative_w2(variances, levels)
    with np.errstate(divide="ignore"):
        ratio = levels[1] / levels[0]  # infinite for pure noise, which then does not move
    for i in range(12):
        for change in (0.99, 0.9999, 1.0001, 1.01):
            moved = ratio.copy()
            moved[i] *= change
            assert relative_w2(variances, from_angles(np.arctan(moved))) >= best * (1 - 1e-9), (i, change)


@pytest.mark.parametrize("variance", [1.0, 0.01, 300.0])
def test_uniform_angles_are_optimal_for_one_variance(variance):
    # docs/t_space.md, section 1: from pure noise, whatever the variance, 1 - cos(pi/2T)^T = 0.037834 at T = 32.
    alpha, sigma = oracle.optimised_levels([variance], 32, pure_noise=True)
    np.testing.assert_allclose(relative_w2(np.array([variance]), (alpha, sigma)), 0.037834, atol=5e-7)
    theta = np.arctan2(sigma, alpha * np.sqrt(variance))
    np.testing.assert_allclose(theta, np.pi / 2 * np.arange(32, 0, -1) / 32, atol=1e-5)
    np.testing.assert_allclose(relative_w2(np.ones(1), uniform_angles(32)), 1 - np.cos(np.pi / 64) ** 32, rtol=1e-12)


def test_the_mismatch_of_the_start_may_pay_for_the_chain():
    def optimum(variances):
        levels = oracle.optimised_levels(variances, 32)
        schedules.Ladder(*levels)  # a ladder even where the optimum is none
        return relative_w2(variances, levels)

    # A variance below 1: one noisiest level has a mismatch that cancels DDIM's loss. N(0, I) is the data already.
    assert optimum(np.array([0.1])) < 1e-7 and optimum(np.ones(1)) < 1e-5
    crowded = oracle.optimised_levels([1.0], 8, initial=schedules.karras_levels(8))
    assert relative_w2(np.ones(1), crowded) < 1e-5 and schedules.Ladder(*crowded)
    # Above 1 the mismatch adds to the loss.
    assert 0.036 < optimum(np.array([10.0])) < 0.037834
    for name, variances in SPECTRA.items():  # largest variance 1: no rule that ignores the start comes near
        assert optimum(variances) < 0.5 * relative_w2(variances, schedules.spectral_levels(variances, 32)), name


def test_optimum_does_not_depend_on_the_initial_levels():
    variances = mean_one(SPECTRA["exponential"])
    expected = oracle.optimised_levels(variances, 10)
    for initial in (schedules.karras_levels(10), schedules.uniform_logsnr_levels(10, sigma_min=0.01)):
        found = oracle.optimised_levels(variances, 10, initial=initial)
        np.testing.assert_allclose(np.log(found), np.log(expected), atol=1e-4)
    pure = oracle.optimised_levels(variances, 10, pure_noise=True)
    found = oracle.optimised_levels(variances, 10, pure_noise=True, initial=schedules.rectified_flow_levels(10))
    np.testing.assert_allclose(found, pure, atol=1e-4)


def test_optimum_from_pure_noise_scales_with_the_data():
    alpha, sigma = oracle.optimised_levels(SPECTRA["power"], 9, pure_noise=True)
    scaled_alpha, scaled_sigma = oracle.optimised_levels(25.0 * SPECTRA["power"], 9, pure_noise=True)
    np.testing.assert_allclose(scaled_sigma[1:] / scaled_alpha[1:], 5 * sigma[1:] / alpha[1:], rtol=1e-4)


def test_zero_variances_and_order_do_not_matter():
    variances = SPECTRA["steep"]
    shuffled = np.random.default_rng(0).permutation(variances)
    expected = oracle.optimised_levels(variances[variances > 0], 6)
    np.testing.assert_allclose(oracle.optimised_levels(shuffled, 6), expected, rtol=1e-5)


def test_few_levels():
    # T = 1: G = sqrt(lam) alpha / (alpha^2 lam + sigma^2), largest at alpha^2 = 1/(lam - 1) if lam > 2.
    alpha, sigma = oracle.optimised_levels([10.0], 1)
    np.testing.assert_allclose([alpha[0] ** 2, sigma[0] ** 2], [1 / 9, 8 / 9], rtol=1e-6)
    # T = 2 from pure noise: the other level in the middle of the angles, pi/4.
    alpha, sigma = oracle.optimised_levels([10.0], 2, pure_noise=True)
    np.testing.assert_allclose(sigma[1] / alpha[1], np.sqrt(10.0), rtol=1e-5)


@needs_spectrum
@pytest.mark.parametrize(("count", "printed"), [(8, 0.196), (32, 0.0582), (128, 0.0153)])
def test_optimised_levels_of_the_table(count, printed):
    # docs/t_space.md, table of section 1, row "optimised levels (bound)", to the printed digits.
    variances = cifar()
    found = relative_w2(variances, oracle.optimised_levels(variances, count))
    assert abs(found - printed) <= 0.5 * 10.0 ** -(3 if printed > 0.1 else 4)


@pytest.mark.parametrize("name", [pytest.param("cifar", marks=needs_spectrum), *SPECTRA])
def test_spectral_rule_is_within_two_percent_of_the_optimum(name):
    # docs/t_space.md, section 1, for variances of mean 1 (as there in section 3), and at any scale for chains from pure noise.
    # At a largest variance of 1 the optimum lives on the mismatch of the start instead, as tested above.
    variances = cifar() if name == "cifar" else mean_one(SPECTRA[name])
    alpha, sigma = schedules.spectral_levels(variances, 32)
    best = relative_w2(variances, oracle.optimised_levels(variances, 32))
    assert best <= relative_w2(variances, (alpha, sigma)) < 1.02 * best
    alpha[0], sigma[0] = 0.0, 1.0
    best = relative_w2(variances, oracle.optimised_levels(variances, 32, pure_noise=True))
    assert best <= relative_w2(variances, (alpha, sigma)) < 1.02 * best


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, -1.0], 4), {}, "variances"),
        (([0.0, 0.0], 4), {}, "variance > 0"),
        (([1.0], 0), {}, "levels >= 1"),
        (([1.0], 1), {"pure_noise": True}, "levels >= 2"),
        (([1.0], 4), {"initial": schedules.karras_levels(5)}, "4 levels"),
        (([1.0], 4), {"initial": schedules.rectified_flow_levels(4)}, "alpha > 0"),
        (([1.0], 2), {"initial": ([0.9, 0.1], [0.1, 0.9])}, "noisiest"),
    ],
)
def test_bad_optimisation_raises(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        oracle.optimised_levels(*arguments, **options)


def test_bad_weights_raise():
    with pytest.raises(ValueError, match="noisiest"):
        oracle.discretisation_weights([0.9, 0.1], [0.1, 0.9])
    for weights in ([0.0, 0.0], [1.0, -1.0], [np.nan], [[1.0]], []):
        with pytest.raises(ValueError, match="weights"):
            oracle.effective_states(weights)
