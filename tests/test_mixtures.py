"""Mixtures: the denoiser against autodiff, regressions and formulas; draws against moments; the Bayes error of both kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ldmjax import mixtures, oracle, process
from ldmjax.mixtures import GaussianMixture
from ldmjax.schedules import Ladder, LinearVP, RectifiedFlow, karras_levels

SCHEDULES = [LinearVP(), RectifiedFlow()]


def three_dimensional():
    """Three components in 3-D: one regular, one flat, one a point; float64."""
    rotation = stats.ortho_group.rvs(3, random_state=0)
    covariances = [(rotation * [1.0, 0.3, 0.05]) @ rotation.T, np.diag([0.5, 0.2, 0.0]), np.zeros((3, 3))]
    means = [[1.0, 0.0, -0.5], [-1.0, 1.0, 0.0], [0.0, -2.0, 1.0]]
    return GaussianMixture(weights=np.array([0.5, 0.3, 0.2]), means=np.array(means), covariances=np.array(covariances))


def single(covariance, mean=None):
    covariance = np.asarray(covariance)
    mean = np.zeros(len(covariance)) if mean is None else mean
    return GaussianMixture(weights=np.ones(1), means=np.array([mean]), covariances=covariance[None])


def denoise(mixture, schedule, z, t):
    """In float64, z ``[B, D]`` at one t."""
    with jax.enable_x64(True):
        z = jnp.asarray(z)
        return np.asarray(mixtures.mixture_denoiser(mixture, schedule)(z, jnp.full(len(z), t)))


@pytest.mark.parametrize("schedule", [*SCHEDULES, Ladder(*karras_levels(4))])
def test_one_component_is_the_gaussian_denoiser(schedule):
    variances = np.array([4.0, 1.0, 1e-2, 1e-5, 0.0])
    z = jax.random.normal(jax.random.key(0), (6, 5))
    t = jnp.arange(1, 5) if isinstance(schedule, Ladder) else jnp.array([0.02, 0.3, 0.6, 0.97]) * schedule.t_max
    gaussian, mixture = oracle.gaussian_denoiser(variances, schedule), single(np.diag(variances))
    for time in t:
        times = jnp.full(6, time)
        found = jax.jit(mixtures.mixture_denoiser(mixture, schedule))(z, times)
        assert found.dtype == jnp.float32 and found.shape == (6, 5)
        np.testing.assert_allclose(found, gaussian(z, times), rtol=1e-5, atol=1e-6)


def test_one_rotated_component_off_the_origin():
    schedule, rotation = LinearVP(), stats.ortho_group.rvs(4, random_state=1)
    variances, mean = np.array([2.0, 0.7, 0.1, 0.0]), np.array([1.0, -2.0, 0.5, 3.0])
    mixture = single((rotation * variances) @ rotation.T, mean)
    z, t = np.random.default_rng(0).normal(size=(5, 4)), 0.4
    with jax.enable_x64(True):
        reference = oracle.rotated_denoiser(oracle.gaussian_denoiser(variances, schedule), rotation)
        expected = mean + reference(jnp.asarray(z - schedule.alpha(t) * mean), jnp.full(5, t))
    np.testing.assert_allclose(denoise(mixture, schedule, z, t), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_score_is_the_gradient_of_the_log_density(schedule, t):
    # Autodiff of a log density written with jax.scipy, in float64.
    mixture, alpha, sigma = three_dimensional(), schedule.alpha(t), schedule.sigma(t)
    z = alpha * mixture.draws(8, seed=0) + sigma * np.random.default_rng(0).normal(size=(8, 3))

    def log_density(z):
        covariances = alpha**2 * mixture.covariances + sigma**2 * np.eye(3)
        parts = [
            jax.scipy.stats.multivariate_normal.logpdf(z, alpha * mean, covariance)
            for mean, covariance in zip(mixture.means, covariances, strict=True)
        ]
        return jax.scipy.special.logsumexp(jnp.stack(parts), b=mixture.weights)

    with jax.enable_x64(True):
        values, expected = jax.vmap(jax.value_and_grad(log_density))(jnp.asarray(z))
        x0, times = jnp.asarray(denoise(mixture, schedule, z, t)), jnp.full(8, t)
        found = process.score_from_x0(x0, jnp.asarray(z), schedule, times)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(mixtures.log_density(mixture, z, alpha=alpha, sigma=sigma), values, rtol=1e-10)
    # Central differences of the library's own log density.
    h = 1e-5
    for axis in range(3):
        up, down = (
            mixtures.log_density(mixture, z + s * h * np.eye(3)[axis], alpha=alpha, sigma=sigma) for s in (1, -1)
        )
        np.testing.assert_allclose((up - down) / (2 * h), np.asarray(found)[:, axis], rtol=1e-5, atol=1e-5)


def test_float32_is_close_to_float64():
    mixture, schedule = mixtures.random_mixture(seed=0), LinearVP()
    denoiser = mixtures.mixture_denoiser(mixture, schedule)
    for t in (0.0, 1e-3, 0.1, 0.5, 1.0):
        noise = np.random.default_rng(0).normal(size=(200, 8))
        z = (schedule.alpha(t) * mixture.draws(200, seed=1) + schedule.sigma(t) * noise).astype(np.float32)
        found = denoiser(jnp.asarray(z), jnp.full(200, t, jnp.float32))
        assert found.dtype == jnp.float32
        expected = denoise(mixture, schedule, z.astype(np.float64), float(np.float32(t)))
        np.testing.assert_allclose(found, expected, atol=1e-4)  # log-likelihoods of size 10 move by 1e-6 each


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_conditional_mean_by_importance_weights(schedule):
    mixture, t = three_dimensional(), 0.6
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0 = mixture.draws(200_000, seed=0)
    z = alpha * mixture.draws(4, seed=1) + sigma * np.random.default_rng(1).normal(size=(4, 3))
    found = denoise(mixture, schedule, z, t)
    for row, expected in zip(z, found, strict=True):
        weight = np.exp(-np.sum((row - alpha * x0) ** 2, axis=1) / (2 * sigma**2))
        mean = weight @ x0 / weight.sum()
        error = np.sqrt(weight**2 @ (x0 - mean) ** 2) / weight.sum()
        assert np.all(np.abs(mean - expected) < 4 * error) and np.all(error < 0.05)


def test_two_points():
    # Half a point at a, half at -a: E[x_0 | z] = a tanh(alpha a.z / sigma^2).
    a, schedule = np.array([1.0, -0.5]), LinearVP()
    mixture = GaussianMixture(weights=np.full(2, 0.5), means=np.stack([a, -a]), covariances=np.zeros((2, 2, 2)))
    z = np.random.default_rng(0).normal(size=(20, 2))
    for t in (0.05, 0.3, 0.8):
        expected = a * np.tanh(schedule.alpha(t) * (z @ a) / schedule.sigma(t) ** 2)[:, None]
        np.testing.assert_allclose(denoise(mixture, schedule, z, t), expected, rtol=1e-9, atol=1e-12)
    # No noise: the nearer point, in float32 as well and however far z is.
    far = jnp.asarray([[3.0, 0.0], [-1e3, 0.0], [1e-3, 0.0]])
    found = mixtures.mixture_denoiser(mixture, schedule)(far, jnp.zeros(3))
    np.testing.assert_allclose(found, [a, -a, a], rtol=1e-6)


def test_pure_noise_gives_the_mean():
    mixture = three_dimensional()
    z = jax.random.normal(jax.random.key(0), (5, 3))
    found = mixtures.mixture_denoiser(mixture, RectifiedFlow())(z, jnp.ones(5))
    np.testing.assert_allclose(found, np.tile(mixture.mean, (5, 1)), atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_noise_gives_the_data(schedule):
    mixture = three_dimensional()
    denoiser, x0 = mixtures.mixture_denoiser(mixture, schedule), mixture.draws(200, seed=0)
    np.testing.assert_allclose(denoiser(jnp.asarray(x0, jnp.float32), jnp.zeros(200)), x0, atol=1e-5)
    # Off every support, with flat components only: the foot of the perpendicular to the nearest.
    flat = GaussianMixture(
        weights=np.full(2, 0.5),
        means=np.array([[0.0, 1.0], [0.0, -1.0]]),
        covariances=np.stack([np.diag([1.0, 0])] * 2),
    )
    z = jnp.asarray([[0.3, 0.4], [0.7, -2.0]])
    found = mixtures.mixture_denoiser(flat, schedule)(z, jnp.zeros(2))
    np.testing.assert_allclose(found, [[0.3, 1.0], [0.7, -1.0]], rtol=1e-6)
    # A point at the origin has no scale of its own.
    np.testing.assert_array_equal(mixtures.mixture_denoiser(single(np.zeros((2, 2))), schedule)(z, jnp.zeros(2)), 0.0)


@pytest.mark.parametrize("mixture", [three_dimensional(), mixtures.random_mixture(5, 4, seed=3)])
def test_draws_have_the_stated_moments(mixture):
    count = 100_000
    samples = mixture.draws(count, seed=0)
    assert samples.dtype == np.float64 and samples.shape == (count, mixture.dim)
    assert np.all(np.abs(samples.mean(axis=0) - mixture.mean) < 4 * samples.std(axis=0) / np.sqrt(count))
    centred = samples - mixture.mean
    products = centred[:, :, None] * centred[:, None, :]
    error = 4 * products.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(products.mean(axis=0) - mixture.covariance) < error)


def test_draws_follow_the_density_and_the_weights():
    # Mean log density of draws is minus the entropy; for far components that is known: sum w (log w - entropy_m).
    means, variances = np.array([[0.0], [100.0]]), np.array([1.0, 4.0])
    weights = np.array([0.3, 0.7])
    mixture = GaussianMixture(weights=weights, means=means, covariances=variances[:, None, None])
    values = mixtures.log_density(mixture, mixture.draws(50_000, seed=0))
    expected = weights @ (np.log(weights) - 0.5 * np.log(2 * np.pi * np.e * variances))
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(50_000)


def test_streams_and_seeds_are_independent():
    mixture = mixtures.random_mixture(seed=0)
    first = mixture.draws(5000, seed=0)
    np.testing.assert_array_equal(first, mixture.draws(5000, seed=0))
    for other in (mixture.draws(5000, seed=1), mixture.draws(5000, seed=0, stream=1)):
        correlation = np.mean(first * other, axis=0) / (first.std(axis=0) * other.std(axis=0))
        assert np.all(np.abs(correlation) < 4 / np.sqrt(5000))


@pytest.mark.parametrize(("components", "dim", "within"), [(8, 8, 0.1), (3, 2, 0.3), (1, 4, 0.1), (4, 1, 0.2)])
def test_random_mixture_is_standardised(components, dim, within):
    mixture = mixtures.random_mixture(components, dim, seed=2, within=within, condition=5.0)
    assert mixture.means.shape == (components, dim)
    np.testing.assert_allclose(mixture.mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(np.trace(mixture.covariance), dim, rtol=1e-12)
    inside = np.trace(mixture.covariances, axis1=1, axis2=2)
    np.testing.assert_allclose(inside, dim if components == 1 else within * dim, rtol=1e-12)
    if dim > 1:
        np.testing.assert_allclose(mixture.eigen[0][:, 0] / mixture.eigen[0][:, -1], 5.0, rtol=1e-10)
    assert np.max(mixture.weights) <= 3 * np.min(mixture.weights)
    assert components == 1 or np.ptp(mixture.weights) > 0


def test_random_mixture_is_separated_until_noise_overlaps_it():
    # Chance that the best guess of the component is wrong; 1e-4 and 0.18 in the docstring are means over 100 seeds.
    def error(mixture, alpha, sigma):
        noise = np.random.default_rng(0).normal(size=(2000, 8))
        z = alpha * mixture.draws(2000, seed=0) + sigma * noise
        parts = [
            np.log(w) + stats.multivariate_normal.logpdf(z, alpha * m, alpha**2 * c + sigma**2 * np.eye(8))
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ]
        return 1 - np.mean(np.exp(np.max(parts, axis=0) - mixtures.log_density(mixture, z, alpha=alpha, sigma=sigma)))

    data = [mixtures.random_mixture(seed=seed) for seed in range(6)]
    assert np.mean([error(mixture, 1.0, 0.0) for mixture in data]) < 1e-3
    assert 0.12 < np.mean([error(mixture, 0.5**0.5, 0.5**0.5) for mixture in data]) < 0.25


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bayes_error_of_a_gaussian(schedule):
    # Closed form against the mean squared error of the exact prediction, in float64; and as a mixture of one.
    variances, t = np.array([5.0, 1.0, 0.03, 0.0]), np.array([0.05, 0.4, 0.9])
    found = oracle.bayes_noise_error(variances, schedule, t)
    assert found.dtype == np.float64 and found.shape == (3,)
    rng, count = np.random.default_rng(0), 100_000
    x0, noise = rng.normal(size=(count, 4)) * np.sqrt(variances), rng.normal(size=(count, 4))
    for value, time in zip(found, t, strict=True):
        squared = squared_error(oracle.gaussian_denoiser(variances, schedule), schedule, x0, noise, time)
        assert abs(squared.mean() - value) < 4 * squared.std() / np.sqrt(count)
    mixed, standard_error = mixtures.bayes_noise_error(single(np.diag(variances)), schedule, t, count=10, seed=0)
    np.testing.assert_allclose(mixed, found, rtol=1e-12)
    np.testing.assert_allclose(standard_error, 0.0, atol=1e-12)


def test_bayes_error_of_a_gaussian_at_the_ends():
    found = oracle.bayes_noise_error([2.0, 1.0, 0.0], RectifiedFlow(), [0.0, 1.0])
    np.testing.assert_array_equal(found, [2.0, 0.0])
    with pytest.raises(ValueError, match="t must be"):
        oracle.bayes_noise_error([1.0], RectifiedFlow(), 0.5)


def squared_error(denoiser, schedule, x0, noise, t):
    with jax.enable_x64(True):
        times = jnp.full(len(x0), t)
        z = process.perturb(jnp.asarray(x0), jnp.asarray(noise), schedule, times)
        prediction = process.epsilon_from_x0(denoiser(z, times), z, schedule, times)
        return np.sum((np.asarray(prediction) - noise) ** 2, axis=1)


@pytest.mark.parametrize("mixture", [three_dimensional(), mixtures.random_mixture(seed=0)])
def test_bayes_error_against_the_error_of_the_exact_prediction(mixture):
    schedule, t, count = LinearVP(), np.array([0.03, 0.2, 0.5, 0.8]), 20_000
    x0, noise = mixture.draws(count, seed=5), np.random.default_rng(6).normal(size=(count, mixture.dim))
    found, error = mixtures.bayes_noise_error(mixture, schedule, t, count=count, seed=0)
    denoiser = mixtures.mixture_denoiser(mixture, schedule)
    for value, se, time in zip(found, error, t, strict=True):
        squared = squared_error(denoiser, schedule, x0, noise, time)
        brute_error = squared.std() / np.sqrt(count)
        assert abs(squared.mean() - value) < 4 * np.hypot(brute_error, se)
        assert se < 0.7 * brute_error  # what the closed part of equation (4) is for


def test_standard_error_is_that_of_the_mean():
    mixture, schedule = mixtures.random_mixture(seed=0), LinearVP()
    runs = [mixtures.bayes_noise_error(mixture, schedule, [0.3], count=200, seed=s) for s in range(200)]
    values, errors = np.array(runs)[..., 0].T
    # 4 standard errors of a sample standard deviation of 200 values, near normal.
    assert abs(values.std() / errors.mean() - 1) < 4 / np.sqrt(400)


def test_bayes_error_at_pure_noise_and_on_a_ladder():
    ladder = Ladder([0.0, 0.6], [1.0, 0.8])
    found, error = mixtures.bayes_noise_error(three_dimensional(), ladder, [2, 1], count=100, seed=0)
    assert abs(found[0]) < 1e-20 and abs(error[0]) < 1e-20 and 0 < found[1] < 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [0.5, 0.6]}, "sum to 1"),
        ({"weights": [1.0, 0.0]}, "sum to 1"),
        ({"weights": [1.0]}, r"\[2\]"),
        ({"means": [0.0, 0.0]}, "means"),
        ({"means": [[np.nan], [0.0]]}, "means"),
        ({"covariances": [[[1.0]]]}, r"\[2, 1, 1\]"),
        ({"covariances": [[[1.0]], [[-1.0]]]}, "semi-definite"),
        (
            {"means": np.zeros((2, 2)), "covariances": [np.eye(2), np.array([[1.0, 0.5], [0.0, 1.0]])]},
            "symmetric",
        ),
        ({"means": np.zeros((2, 2)), "covariances": [np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]])]}, "semi-definite"),
    ],
)
def test_bad_mixtures_raise(changes, message):
    good = {"weights": [0.5, 0.5], "means": [[0.0], [1.0]], "covariances": [[[1.0]], [[2.0]]]}
    GaussianMixture(**{name: np.array(value) for name, value in good.items()})
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{name: np.array(value) for name, value in (good | changes).items()})


def test_bad_arguments_raise():
    mixture = three_dimensional()
    with pytest.raises(ValueError, match="no density"):
        mixtures.log_density(mixture, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="no density"):
        mixtures.log_density(mixtures.random_mixture(seed=0), np.zeros((1, 8)), alpha=0.0)
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        mixtures.log_density(mixture, np.zeros((1, 2)), sigma=1.0)
    with pytest.raises(ValueError, match="count"):
        mixture.draws(0, seed=0)
    with pytest.raises(ValueError, match="count"):
        mixtures.bayes_noise_error(mixture, LinearVP(), [0.5], count=1, seed=0)
    for t in ([0.0], 0.5):
        with pytest.raises(ValueError, match="sigma"):
            mixtures.bayes_noise_error(mixture, LinearVP(), t, count=10, seed=0)
    for options in ({"components": 0}, {"dim": 0}, {"within": 0.0}, {"within": 1.0}, {"condition": 0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            mixtures.random_mixture(seed=0, **options)
