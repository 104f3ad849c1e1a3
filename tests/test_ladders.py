"""Ladders against their definitions written out level by level, the schedule that a ladder is, subsets, the spectral rule."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize

from ldmjax import oracle, schedules
from ldmjax.process import perturb
from ldmjax.schedules import ContinuousSchedule, Ladder, Schedule

VARIANCES = np.array([3.0, 0.7, 0.05])
COUNTS = [1, 2, 3, 8, 32, 1000]
LADDERS = {
    "karras": schedules.karras_levels,
    "uniform_logsnr": schedules.uniform_logsnr_levels,
    "linear_beta": schedules.linear_beta_levels,
    "scaled_linear": schedules.scaled_linear_levels,
    "cosine": schedules.cosine_levels,
    "rectified_flow": schedules.rectified_flow_levels,
    "spectral": lambda levels: schedules.spectral_levels(VARIANCES, levels),
}


def from_ratios(ratios):
    """Variance-preserving (alpha, sigma) of ratios given cleanest first, as levels are numbered; angles, not square roots."""
    angles = [math.atan(r) for r in reversed(ratios)]
    return np.array([math.cos(a) for a in angles]), np.array([math.sin(a) for a in angles])


def karras_reference(levels, *, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return from_ratios([(low + (i - 1) / (levels - 1) * (high - low)) ** rho for i in range(1, levels + 1)])


def uniform_logsnr_reference(levels, *, sigma_min=0.002, sigma_max=80.0):
    low, high = math.log(sigma_min), math.log(sigma_max)
    return from_ratios([math.exp(low + (i - 1) / (levels - 1) * (high - low)) for i in range(1, levels + 1)])


def respaced_reference(betas, levels):
    kept, everything = [], 1.0
    wanted = {round(1000 * i / levels) for i in range(1, levels + 1)}
    for step, beta in enumerate(betas, start=1):
        everything *= 1.0 - beta
        if step in wanted:
            kept.append(everything)
    kept = np.array(kept[::-1])
    return np.sqrt(kept), np.sqrt(1.0 - kept)


def linear_beta_reference(levels):
    return respaced_reference([1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)], levels)


def scaled_linear_reference(levels):
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return respaced_reference([(low + (high - low) * k / 999) ** 2 for k in range(1000)], levels)


def cosine_reference(levels):
    # Nichol & Dhariwal, eq. 17, and their clipping of beta (so the noisiest abar is not 0).
    def signal(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    kept, everything = [], 1.0
    for i in range(1, levels + 1):
        everything *= 1.0 - min(1.0 - signal(i / levels) / signal((i - 1) / levels), 0.999)
        kept.append(everything)
    kept = np.array(kept[::-1])
    return np.sqrt(kept), np.sqrt(1.0 - kept)


def rectified_flow_reference(levels, *, shift=1.0):
    sigma = np.array([shift * i / levels / (1 + (shift - 1) * i / levels) for i in range(levels, 0, -1)])
    return 1.0 - sigma, sigma


@pytest.mark.parametrize("levels", [2, 3, 8, 37, 1000])
@pytest.mark.parametrize(
    ("function", "reference", "options"),
    [
        (schedules.karras_levels, karras_reference, {}),
        (schedules.karras_levels, karras_reference, {"sigma_min": 0.1, "sigma_max": 5.0, "rho": 3.0}),
        (schedules.uniform_logsnr_levels, uniform_logsnr_reference, {}),
        (schedules.uniform_logsnr_levels, uniform_logsnr_reference, {"sigma_min": 0.1, "sigma_max": 5.0}),
        (schedules.linear_beta_levels, linear_beta_reference, {}),
        (schedules.scaled_linear_levels, scaled_linear_reference, {}),
        (schedules.cosine_levels, cosine_reference, {}),
        (schedules.rectified_flow_levels, rectified_flow_reference, {}),
        (schedules.rectified_flow_levels, rectified_flow_reference, {"shift": 3.0}),
        (schedules.rectified_flow_levels, rectified_flow_reference, {"shift": 0.5}),
    ],
)
def test_levels_against_the_definition(function, reference, options, levels):
    alpha, sigma = function(levels, **options)
    expected_alpha, expected_sigma = reference(levels, **options)
    # atol: alpha = 1 - sigma ends at 0; rtol: 1 - abar keeps 12 digits at abar = 1 - 1e-4 after 1000 products.
    np.testing.assert_allclose(alpha, expected_alpha, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(sigma, expected_sigma, rtol=1e-11)


@pytest.mark.parametrize("levels", COUNTS)
@pytest.mark.parametrize("name", list(LADDERS))
def test_noisiest_first_and_normalised(name, levels):
    alpha, sigma = LADDERS[name](levels)
    assert alpha.shape == sigma.shape == (levels,) and alpha.dtype == sigma.dtype == np.float64
    assert np.all(alpha[1:] > 0) and np.all(sigma > 0)
    # alpha / sigma instead of its inverse: finite at pure noise.
    assert np.all(np.diff(alpha / sigma) > 0)
    total = alpha + sigma if name == "rectified_flow" else alpha**2 + sigma**2
    np.testing.assert_allclose(total, 1.0, rtol=1e-14)
    assert (alpha[0] == 0) == (name == "rectified_flow")
    ladder = Ladder(alpha, sigma)
    assert ladder.t_max == levels


def test_known_ends():
    for levels in [1, 2, 50]:
        # Products of 1 - beta over the 1000 training steps: DDPM keeps 4.0358e-5 of the variance, Stable Diffusion
        # .0046600 (6.8 % of the amplitude); the noisiest level is the last training step at every T.
        np.testing.assert_allclose(schedules.linear_beta_levels(levels)[0][0] ** 2, 4.0358e-5, rtol=1e-4)
        np.testing.assert_allclose(schedules.scaled_linear_levels(levels)[0][0] ** 2, 0.0046600, rtol=1e-4)
        for function in [schedules.karras_levels, schedules.uniform_logsnr_levels]:
            alpha, sigma = function(levels, sigma_min=0.03, sigma_max=7.0)
            np.testing.assert_allclose(sigma[0] / alpha[0], 7.0, rtol=1e-13)
            if levels > 1:
                np.testing.assert_allclose(sigma[-1] / alpha[-1], 0.03, rtol=1e-13)
    np.testing.assert_allclose(schedules.linear_beta_levels(1000)[1][-1], 0.01, rtol=1e-12)  # beta_1 = 1e-4


def test_rho_runs_from_uniform_ratios_to_uniform_logsnr():
    options = {"sigma_min": 0.1, "sigma_max": 5.0}
    alpha, sigma = schedules.karras_levels(6, rho=1.0, **options)
    np.testing.assert_allclose(sigma / alpha, np.linspace(5.0, 0.1, 6), rtol=1e-13)
    # rho -> inf is the geometric ladder, with an error of order 1 / rho.
    near, limit = schedules.karras_levels(6, rho=1e7, **options), schedules.uniform_logsnr_levels(6, **options)
    np.testing.assert_allclose(near, limit, rtol=1e-6)


def test_shift_multiplies_the_ratio():
    # Esser et al., eq. 23: sigma/alpha of the shifted time is s times the one of u.
    alpha, sigma = schedules.rectified_flow_levels(9)
    shifted_alpha, shifted_sigma = schedules.rectified_flow_levels(9, shift=4.0)
    ratio, shifted = sigma[1:] / alpha[1:], shifted_sigma[1:] / shifted_alpha[1:]
    np.testing.assert_allclose(shifted, 4.0 * ratio, rtol=1e-13)
    assert shifted_alpha[0] == 0.0 and shifted_sigma[0] == 1.0


@pytest.mark.parametrize(
    ("make", "got"),
    [
        *[(lambda f=f, n=n: f(n), f"got {n}") for f in LADDERS.values() for n in (0, -3)],
        (lambda: schedules.linear_beta_levels(1001), "1..1000.*got 1001"),
        (lambda: schedules.scaled_linear_levels(1001), "1..1000.*got 1001"),
        (lambda: schedules.karras_levels(4, sigma_min=0.0), "got 0.0 and 80.0"),
        (lambda: schedules.karras_levels(4, sigma_min=2.0, sigma_max=2.0), "got 2.0 and 2.0"),
        (lambda: schedules.karras_levels(4, sigma_max=np.inf), "got 0.002 and inf"),
        (lambda: schedules.karras_levels(4, sigma_max=np.nan), "got 0.002 and nan"),
        (lambda: schedules.karras_levels(4, rho=0.0), "got 0.0"),
        (lambda: schedules.karras_levels(4, rho=-7.0), "got -7.0"),
        (lambda: schedules.karras_levels(4, rho=np.inf), "got inf"),
        (lambda: schedules.uniform_logsnr_levels(4, sigma_min=-1.0), "got -1.0 and 80.0"),
        (lambda: schedules.uniform_logsnr_levels(4, sigma_min=3.0, sigma_max=2.0), "got 3.0 and 2.0"),
        (lambda: schedules.rectified_flow_levels(4, shift=0.0), "got 0.0"),
        (lambda: schedules.rectified_flow_levels(4, shift=np.nan), "got nan"),
        (lambda: schedules.nested_subsets(5, (2, 7)), r"1..5, got \[2, 7\]"),
        (lambda: schedules.nested_subsets(5, (0, 3)), r"1..5, got \[0, 3\]"),
        (lambda: schedules.nested_subsets(5, (3, 2, 3)), r"got \[3, 2, 3\]"),
        (lambda: Ladder([], []), r"got \[0\] and \[0\]"),
        (lambda: Ladder([0.5, 0.9], [0.4]), r"got \[2\] and \[1\]"),
        (lambda: Ladder([[0.5, 0.9]], [[0.8, 0.4]]), r"got \[1, 2\] and \[1, 2\]"),
        (lambda: Ladder(0.5, 0.5), r"got \[\] and \[\]"),
        # Which pair is wrong, by the levels' numbers: 1 is the cleanest.
        (lambda: Ladder([0.9, 0.5], [0.4, 0.8]), "levels 2 and 1 "),
        (lambda: Ladder([0.5, 0.6, 0.6, 0.9], [0.8, 0.7, 0.7, 0.1]), "levels 3 and 2 "),
        (lambda: Ladder([0.5, 0.6, 0.9, 0.9], [0.8, 0.7, 0.1, 0.1]), "levels 2 and 1 "),
        (lambda: Ladder([0.6, 0.6, 0.8, 0.9], [0.7, 0.7, 0.3, 0.1]), "levels 4 and 3 "),
    ],
)
def test_bad_arguments_say_what_was_got(make, got):
    with pytest.raises(ValueError, match=got):
        make()


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [
        ([0.5, 0.0], [0.8, 0.4]),  # pure noise anywhere but first
        ([0.0, 0.0, 0.9], [1.0, 0.9, 0.1]),
        ([-0.5, 0.9], [0.8, 0.4]),
        ([0.5, 0.9], [0.8, 0.0]),
        ([0.5, 0.9], [0.8, -0.1]),
        ([0.5, np.nan], [0.8, 0.4]),
        ([0.5, 0.9], [np.nan, 0.4]),
    ],
)
def test_levels_without_signal_or_noise_raise(alpha, sigma):
    with pytest.raises(ValueError, match="> 0"):
        Ladder(alpha, sigma)


@pytest.mark.parametrize(
    ("alpha", "sigma"), [([0.5, 0.9], [np.inf, 0.4]), ([0.0, 0.9], [np.inf, 0.4]), ([0.5, np.inf], [0.8, 0.4])]
)
def test_infinite_levels_raise(alpha, sigma):
    with pytest.raises(ValueError):
        Ladder(alpha, sigma)


SPECTRAL_MISTAKES = [([0.0, 0.0], 5), ([], 5), ([1.0, -2.0], 5), ([1.0, np.inf], 5), ([1.0, np.nan], 5), ([1.0], -1)]


@pytest.mark.parametrize(("variances", "iterations"), SPECTRAL_MISTAKES)
def test_bad_spectral_arguments_raise(variances, iterations):
    with pytest.raises(ValueError, match="variances|iterations"):
        schedules.spectral_levels(variances, 4, iterations=iterations)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: schedules.spectral_levels([1.0, -2.0], 4), "got.*-2"),
        (lambda: schedules.spectral_levels([1.0], 4, iterations=-1), "got.*-1"),
        (lambda: Ladder([0.5, 0.9], [0.8, -0.1]), "got.*-0.1"),
    ],
)
def test_messages_that_should_say_what_was_got(make, got):
    with pytest.raises(ValueError, match=got):
        make()


LEVELS = (np.array([0.0, 0.3, 0.6, 0.9]), np.array([1.0, 0.8, 0.5, 0.2]))


def test_ladder_is_a_schedule_of_level_numbers():
    ladder = Ladder(*LEVELS)
    assert isinstance(ladder, Schedule) and not isinstance(ladder, ContinuousSchedule)
    assert ladder.t_max == 4.0
    np.testing.assert_array_equal(ladder.times, [4.0, 3.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(Ladder([0.5], [0.5]).times, [1.0, 0.0])
    # Level 1 is the cleanest, 0 is clean data.
    np.testing.assert_array_equal(ladder.alpha(np.arange(5)), [1.0, 0.9, 0.6, 0.3, 0.0])
    np.testing.assert_array_equal(ladder.sigma(np.arange(5)), [0.0, 0.2, 0.5, 0.8, 1.0])
    expected = [np.inf, math.log(0.81 / 0.04), math.log(0.36 / 0.25), math.log(0.09 / 0.64), -np.inf]
    np.testing.assert_allclose(ladder.logsnr(np.arange(5)), expected, rtol=1e-14)
    np.testing.assert_array_equal(ladder.alpha(ladder.times), [*LEVELS[0], 1.0])
    np.testing.assert_array_equal(ladder.sigma(ladder.times), [*LEVELS[1], 0.0])


def test_ladder_is_a_value():
    ladder = Ladder(*LEVELS)
    assert ladder.alpha_levels == tuple(LEVELS[0]) and ladder.sigma_levels == tuple(LEVELS[1])
    for same in [
        Ladder(LEVELS[0].tolist(), LEVELS[1].tolist()),
        Ladder(alpha_levels=LEVELS[0], sigma_levels=LEVELS[1]),
    ]:
        assert same == ladder and hash(same) == hash(ladder)
    assert Ladder(LEVELS[0][1:], LEVELS[1][1:]) != ladder
    with pytest.raises(dataclasses.FrozenInstanceError):
        ladder.alpha_levels = ()
    halves = Ladder(jnp.asarray([0.25, 0.5]), jnp.asarray([1.0, 0.5]))  # jax arrays, numbers exact in float32
    assert halves == Ladder([0.25, 0.5], [1.0, 0.5])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("name", ["alpha", "sigma", "logsnr"])
def test_lookups_keep_kind_and_shape(name, shape):
    method = getattr(Ladder(*LEVELS), name)
    numbers = np.random.default_rng(0).integers(0, 5, shape)
    table = np.array([method(float(t)) for t in range(5)])
    for times in [numbers, numbers.astype(float), numbers.astype(np.float32)]:
        found = method(times)
        assert isinstance(found, np.ndarray | np.float64) and np.shape(found) == shape and found.dtype == np.float64
        np.testing.assert_array_equal(found, table[numbers])
    for times in [jnp.asarray(numbers), jnp.asarray(numbers, jnp.float32)]:
        found = jax.jit(method)(times)
        assert isinstance(found, jax.Array) and found.shape == shape and found.dtype == jnp.float32
        np.testing.assert_array_equal(found, table[numbers].astype(np.float32))


def test_lookups_without_jit_and_in_float64():
    ladder, numbers = Ladder(*LEVELS), jnp.arange(5)
    assert isinstance(ladder.alpha(numbers), jax.Array)
    np.testing.assert_array_equal(ladder.alpha(numbers), np.float32([1.0, 0.9, 0.6, 0.3, 0.0]))
    with jax.enable_x64(True):
        for name in ["alpha", "sigma", "logsnr"]:
            method = getattr(ladder, name)
            found = jax.jit(method)(jnp.arange(5.0))
            assert found.dtype == jnp.float64
            np.testing.assert_array_equal(found, method(np.arange(5)))


def test_perturb_and_denoise_on_a_ladder():
    ladder, t = Ladder(*LEVELS), jnp.asarray([4.0, 2.0, 0.0])
    rng = np.random.default_rng(1)
    x0, noise = rng.normal(size=(2, 3, 4))
    z = perturb(jnp.asarray(x0), jnp.asarray(noise), ladder, t)
    np.testing.assert_allclose(z, [noise[0], 0.6 * x0[1] + 0.5 * noise[1], x0[2]], rtol=1e-6, atol=1e-7)
    variances = np.array([*VARIANCES, 0.0])
    found = oracle.gaussian_denoiser(variances, ladder)(z, t)
    gain = 0.6 * variances / (0.36 * variances + 0.25)
    # Pure noise says nothing about the data; clean data, all of it (a component of variance 0 is 0).
    expected = [np.zeros(4), gain * np.asarray(z[1]), x0[2] * (variances > 0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("counts", [(32, 16, 8, 4), (4, 8, 16, 32), (30, 20, 7, 1), (3, 17), (31,), (1,)])
def test_nested_subsets(counts):
    subsets = schedules.nested_subsets(32, counts)
    assert tuple(subsets) == counts
    ladder = schedules.karras_levels(32)
    for count, chosen in subsets.items():
        assert chosen.shape == (count,) and chosen[0] == 0 and chosen[-1] < 32 and np.all(np.diff(chosen) > 0)
        assert Ladder(ladder[0][chosen], ladder[1][chosen]).t_max == count
        for larger, among in subsets.items():
            assert larger < count or set(chosen) <= set(among)


def test_nested_subsets_of_all_sizes():
    subsets = schedules.nested_subsets(40, tuple(range(1, 41)))
    for count in range(1, 40):
        assert subsets[count][0] == 0 and subsets[count].size == count
        assert set(subsets[count]) < set(subsets[count + 1])
    np.testing.assert_array_equal(subsets[40], np.arange(40))


def test_subsets_are_evenly_spread():
    for count, chosen in schedules.nested_subsets(32, (32, 16, 8, 4, 2, 1)).items():
        np.testing.assert_array_equal(chosen, np.arange(0, 32, 32 // count))  # halving: every second level
    for levels in [7, 32, 1000]:
        for count in range(1, levels + 1, max(1, levels // 30)):
            gaps = np.diff([*schedules.nested_subsets(levels, (count,))[count], levels])
            assert np.ptp(gaps) <= 1  # ... counting the gap to clean data
    # One subset of the 1000 training steps is what respacing the schedule gives.
    whole = schedules.linear_beta_levels(1000)
    for count in [6, 7, 250]:
        chosen = schedules.nested_subsets(1000, (count,))[count]
        np.testing.assert_array_equal([level[chosen] for level in whole], schedules.linear_beta_levels(count))


def spectral_reference(variances, levels, *, iterations):
    """The log ratios of the rule, noisiest first, by adaptive quadrature and root finding, no grid."""
    centres = [0.5 * math.log(v) for v in variances]
    low, high = min(centres) - 18.0, max(centres) + 18.0  # leaves 1e-8 of the mass outside
    shares = [1.0] * len(variances)

    def bump(k, x):
        return math.cosh(x - centres[k]) ** -2

    def density(x):
        return math.sqrt(sum(v * e * bump(k, x) for k, (v, e) in enumerate(zip(variances, shares, strict=True))))

    def integral(function, a, b):
        return quad(function, a, b, points=[c for c in centres if a < c < b] or None, limit=200, epsrel=1e-10)[0]

    for _ in range(iterations):
        mass = integral(density, low, high)
        shares = [
            integral(lambda x, k=k: bump(k, x) * mass / density(x), low, high) / (8 * levels)  # noqa: B023
            for k in range(len(variances))
        ]
    mass = integral(density, low, high)
    return np.array(
        [
            brentq(lambda x, i=i: integral(density, low, x) / mass - i / (levels + 0.5), low, high, xtol=1e-9)
            for i in range(levels, 0, -1)
        ]
    )


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_spectral_rule_against_quadrature(iterations):
    for variances in [[3.0, 0.7, 0.05], [20.0, 1e-3]]:
        alpha, sigma = schedules.spectral_levels(variances, 5, iterations=iterations)
        expected = spectral_reference(variances, 5, iterations=iterations)
        np.testing.assert_allclose(
            np.log(sigma / alpha), expected, atol=2e-4
        )  # the library's grid stops at 1e-5 of mass


def log_ratios(variances, levels=11, **options):
    alpha, sigma = schedules.spectral_levels(variances, levels, **options)
    return np.log(sigma / alpha)


@pytest.mark.parametrize("iterations", [0, 5])
def test_spectral_rule_invariances(iterations):
    base = log_ratios(VARIANCES, iterations=iterations)
    scale = 7.0
    # Scaling the data by c scales sigma / alpha by c: the grid moves along, so only rounding is left.
    moved = log_ratios(scale**2 * VARIANCES, iterations=iterations)
    np.testing.assert_allclose(moved - base, math.log(scale), rtol=1e-9)
    for same in [np.repeat(VARIANCES, 3), np.append(VARIANCES, [0.0, 0.0]), VARIANCES[::-1], VARIANCES.tolist()]:
        np.testing.assert_allclose(log_ratios(same, iterations=iterations), base, rtol=1e-9, atol=1e-9)
    # The duplicates of one variance alone do change it: it weighs more.
    assert log_ratios([3.0, 0.7, *[0.05] * 50], iterations=iterations)[5] < base[5] - 0.1


def test_default_is_five_iterations():
    np.testing.assert_array_equal(log_ratios(VARIANCES), log_ratios(VARIANCES, iterations=5))
    assert np.max(np.abs(log_ratios(VARIANCES) - log_ratios(VARIANCES, iterations=0))) > 0.01


@pytest.mark.parametrize("variance", [1e-6, 1.0, 40.0])
def test_one_variance_gives_uniform_angles(variance):
    # rho ~ sech: its quantiles are log tan(pi/2 q), so theta = atan(r / sqrt(lam)) = pi/2 i/(T + 1/2).
    angles = np.arctan(np.exp(log_ratios([variance], levels=32)) / math.sqrt(variance))
    np.testing.assert_allclose(angles, np.pi / 2 * np.arange(32, 0, -1) / 32.5, atol=1e-5)


def ddim_error(log_ratio, variances):
    """relW2 of DDIM from N(0, I) in angles: each update shrinks the std by the cosine of its angle (docs/t_space.md (1.4))."""
    ratio = np.exp(log_ratio)[:, None]
    theta = np.vstack([np.arctan(ratio / np.sqrt(variances)), np.zeros(len(variances))])
    mismatch = np.sqrt((1 + ratio[0] ** 2) / (variances + ratio[0] ** 2))
    gain = mismatch * np.prod(np.cos(np.diff(theta, axis=0)), axis=0)
    return np.sqrt(np.sum(variances * (1 - gain) ** 2) / np.sum(variances))


def test_spectral_rule_is_nearly_optimal():
    # docs/t_space.md, section 1: 3 % above the optimum with E_k = 1, 1.6 % after five iterations; tuned uniform logsnr 14-20 %.
    variances = 1 / np.arange(1.0, 13.0) ** 2
    variances /= variances.mean()
    start = log_ratios(variances, levels=32)
    best = minimize(ddim_error, start, args=(variances,), method="BFGS", options={"gtol": 1e-7}).fun
    uniform = [np.linspace(high, low, 32) for high in np.linspace(1.5, 4.5, 13) for low in np.linspace(-4, -1, 13)]
    assert best < ddim_error(start, variances) < 1.016 * best
    assert best < ddim_error(log_ratios(variances, levels=32, iterations=0), variances) < 1.03 * best
    assert 1.14 * best < min(ddim_error(ladder, variances) for ladder in uniform) < 1.20 * best


@pytest.mark.parametrize("name", schedules.LADDERS)
def test_names_stand_for_ladders(name):
    limits = {"sigma_min": 0.01, "sigma_max": 50.0}
    made = schedules.make_ladder(name, 9, VARIANCES, **limits)
    arguments = (VARIANCES, 9) if name == "spectral" else (9,)
    own = limits if name in ("karras", "uniform_logsnr") else {}
    assert made == Ladder(*getattr(schedules, f"{name}_levels")(*arguments, **own))
    with pytest.raises(ValueError, match="got 'sigmoid'"):
        schedules.make_ladder("sigmoid", 9, VARIANCES)
