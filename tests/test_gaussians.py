"""Gaussian distances against formulas of another shape, quadrature, Monte Carlo and cases with a known answer."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import sqrtm
from scipy.stats import norm, ortho_group

from ldmjax.gaussians import (
    check_covariance,
    covariance_factor,
    eigh_descending,
    kl_divergence,
    mmd_squared,
    sliced_w2_squared,
    w2_squared,
)

SEEDS = range(4)


def random_covariance(rng, size, *, condition=100.0):
    rotation = ortho_group.rvs(size, random_state=rng)
    values = np.geomspace(1.0, 1.0 / condition, size) * rng.uniform(1.0, 1.5)
    return (rotation * values) @ rotation.T


def random_pair(seed, size=6, **kwargs):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, size))
    return means[0], random_covariance(rng, size, **kwargs), means[1], random_covariance(rng, size, **kwargs)


@pytest.mark.parametrize("seed", SEEDS)
def test_w2_commuting(seed):
    rng = np.random.default_rng(seed)
    rotation = ortho_group.rvs(8, random_state=rng)
    a, b = 10.0 ** rng.uniform(-6, 1, size=(2, 8))
    a[:2], b[1:3] = 0.0, 0.0
    mean = rng.normal(size=8)
    expected = mean @ mean + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = w2_squared(mean, (rotation * a) @ rotation.T, np.zeros(8), (rotation * b) @ rotation.T)
    # An eigenvalue lam > 0 is known to eps * max, so the root of the smallest (1e-6) to about 1e-13; the rank tolerance
    # keeps the zeros exact.
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_w2_matrix_square_root_formula(seed):
    mean_a, a, mean_b, b = random_pair(seed)
    root = sqrtm(a)
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * sqrtm(root @ b @ root))
    np.testing.assert_allclose(w2_squared(mean_a, a, mean_b, b), expected, rtol=1e-10)  # condition 100 throughout


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("size", "rank"), [(5, 1), (8, 3), (40, 7), (6, 6)])
def test_w2_rank_deficient_known_answers(seed, size, rank):
    rng = np.random.default_rng(seed)
    factor, zero = rng.normal(size=(size, rank)), np.zeros(size)
    a = factor @ factor.T
    turn = ortho_group.rvs(rank, random_state=rng) if rank > 1 else -np.eye(1)
    same = (factor @ turn) @ (factor @ turn).T
    allowed = 1e-12 * (np.trace(a) + np.trace(same))  # the stated accuracy
    assert w2_squared(zero, a, zero, a) <= allowed
    assert w2_squared(zero, a, zero, same) <= allowed
    np.testing.assert_allclose(w2_squared(zero, a, zero, 4 * same), np.trace(a), atol=4 * allowed)
    np.testing.assert_allclose(w2_squared(zero, a, zero, 0 * a), np.trace(a), atol=allowed)
    assert w2_squared(zero, 0 * a, zero, 0 * a) == 0.0


def test_w2_rank_one_and_orthogonal_supports():
    rng = np.random.default_rng(0)
    u, v, zero = rng.normal(size=7), rng.normal(size=7), np.zeros(7)
    # X = u xi, Y = v eta: the best coupling is xi = sign(u.v) eta.
    expected = u @ u + v @ v - 2 * abs(u @ v)
    np.testing.assert_allclose(w2_squared(zero, np.outer(u, u), zero, np.outer(v, v)), expected, rtol=1e-12)
    basis = ortho_group.rvs(7, random_state=rng)
    a, b = basis[:, :3] @ basis[:, :3].T, basis[:, 3:5] @ basis[:, 3:5].T
    np.testing.assert_allclose(w2_squared(zero, a, zero, b), 5.0, rtol=1e-12)  # no overlap: tr A + tr B


@pytest.mark.parametrize("seed", SEEDS)
def test_w2_invariances(seed):
    mean_a, a, mean_b, b = random_pair(seed)
    rotation = ortho_group.rvs(a.shape[0], random_state=seed)
    value = w2_squared(mean_a, a, mean_b, b)
    np.testing.assert_allclose(w2_squared(mean_b, b, mean_a, a), value, rtol=1e-12)
    turned = w2_squared(rotation @ mean_a, rotation @ a @ rotation.T, rotation @ mean_b, rotation @ b @ rotation.T)
    np.testing.assert_allclose(turned, value, rtol=1e-12)
    np.testing.assert_allclose(w2_squared(3 * mean_a, 9 * a, 3 * mean_b, 9 * b), 9 * value, rtol=1e-12)


def test_w2_is_the_cost_of_the_best_linear_map():
    rng = np.random.default_rng(1)
    mean_a, a, mean_b, b = random_pair(1, size=4)
    root = sqrtm(a)
    best_map = np.linalg.solve(root, sqrtm(root @ b @ root)) @ np.linalg.inv(root)
    other_map = np.linalg.cholesky(b) @ np.linalg.inv(np.linalg.cholesky(a))
    z = rng.normal(size=(200_000, 4)) @ np.linalg.cholesky(a).T
    value = w2_squared(mean_a, a, mean_b, b)
    for matrix in (best_map, other_map):
        np.testing.assert_allclose(matrix @ a @ matrix.T, b, rtol=1e-8, atol=1e-10)  # both push a onto b
        cost = np.sum((z + mean_a - z @ matrix.T - mean_b) ** 2, axis=1)
        error = 4 * cost.std() / np.sqrt(cost.size)  # 4 standard errors
        assert value <= cost.mean() + error
        if matrix is best_map:
            assert abs(value - cost.mean()) <= error
        else:
            assert value < cost.mean() - error


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_independent_formula(seed):
    mean_a, a, mean_b, b = random_pair(seed, size=7, condition=1e4)
    shift = mean_b - mean_a
    expected = 0.5 * (
        np.trace(np.linalg.solve(b, a))
        + shift @ np.linalg.solve(b, shift)
        - 7
        + np.linalg.slogdet(b)[1]
        - np.linalg.slogdet(a)[1]
    )
    # Condition 1e4 times eps = 2e-12, times a few; KL here is of order 1e3.
    np.testing.assert_allclose(kl_divergence(mean_a, a, mean_b, b), expected, rtol=1e-9)


def test_kl_one_dimension_by_quadrature():
    p, q = norm(0.3, 0.8), norm(-0.5, 1.4)
    expected, _ = quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -12, 12, epsabs=1e-13)
    np.testing.assert_allclose(kl_divergence([0.3], [[0.64]], [-0.5], [[1.96]]), expected, rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_same_singular_support(seed):
    rng = np.random.default_rng(seed)
    basis = ortho_group.rvs(9, random_state=rng)[:, :4]
    mean_a, a, mean_b, b = random_pair(seed, size=4)
    offset = rng.normal(size=9)  # a common shift leaves the (affine) supports equal
    inside = kl_divergence(mean_a, a, mean_b, b)
    found = kl_divergence(offset + basis @ mean_a, basis @ a @ basis.T, offset + basis @ mean_b, basis @ b @ basis.T)
    np.testing.assert_allclose(found, inside, rtol=1e-10)  # condition 100
    assert kl_divergence(offset, basis @ a @ basis.T, offset, basis @ a @ basis.T) < 1e-12


def test_kl_infinite_when_supports_differ():
    rng = np.random.default_rng(0)
    basis, zero = ortho_group.rvs(6, random_state=rng), np.zeros(6)
    full, low = np.eye(6), basis[:, :3] @ basis[:, :3].T
    other = basis[:, 1:4] @ basis[:, 1:4].T
    for a, b in [(full, low), (low, full), (low, other), (0 * low, low), (low, 0 * low)]:
        assert kl_divergence(zero, a, zero, b) == np.inf
    assert kl_divergence(basis[:, 5], low, zero, low) == np.inf  # same directions, shifted off the subspace
    assert np.isfinite(kl_divergence(basis[:, 0], low, zero, low))
    assert kl_divergence(zero, 0 * low, zero, 0 * low) == 0.0
    assert kl_divergence(basis[:, 0], 0 * low, zero, 0 * low) == np.inf


def test_mmd_against_monte_carlo():
    rng = np.random.default_rng(0)
    size, count, bandwidth = 3, 400_000, 1.3
    mean_a, a, mean_b, b = random_pair(2, size=size)

    def kernel(x, y):
        return np.exp(-np.sum((x - y) ** 2, axis=1) / (2 * bandwidth**2))

    x, x2 = mean_a + rng.normal(size=(2, count, size)) @ np.linalg.cholesky(a).T
    y, y2 = mean_b + rng.normal(size=(2, count, size)) @ np.linalg.cholesky(b).T
    terms = kernel(x, x2) + kernel(y, y2) - kernel(x, y2) - kernel(x2, y)
    found = mmd_squared(mean_a, a, mean_b, b, bandwidth=bandwidth)
    error = 4 * terms.std() / np.sqrt(count)  # 4 standard errors, about 1 % of the value
    assert error < 0.02 * found and abs(found - terms.mean()) < error


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 5.0])
def test_mmd_one_dimension_by_quadrature(bandwidth):
    # The trapezoidal rule on an analytic integrand that decays converges geometrically: 1e-12 at this step.
    x = np.linspace(-11, 11, 1401)
    difference = norm.pdf(x, 0.3, 0.8) - norm.pdf(x, -0.5, 1.4)
    kernel = np.exp(-((x[:, None] - x) ** 2) / (2 * bandwidth**2))
    expected = difference @ kernel @ difference * (x[1] - x[0]) ** 2
    found = mmd_squared([0.3], [[0.64]], [-0.5], [[1.96]], bandwidth=bandwidth)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


def test_mmd_limits():
    mean_a, a, mean_b, b = random_pair(5)
    assert mmd_squared(mean_a, a, mean_a, a, bandwidth=1.0) < 1e-14
    # A wide kernel sees the means only: MMD^2 -> |m|^2 / h^2, next term of relative order 1/h^2.
    wide = mmd_squared(mean_a, a, mean_b, b, bandwidth=1e4) * 1e8
    np.testing.assert_allclose(wide, np.sum((mean_a - mean_b) ** 2), rtol=1e-6)
    # Point masses far apart: k(x,x) + k(y,y) - 0 = 2.
    np.testing.assert_allclose(mmd_squared([0.0], [[0.0]], [50.0], [[0.0]], bandwidth=1.0), 2.0, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_sliced_against_one_dimensional_w2(seed):
    rng = np.random.default_rng(seed)
    mean_a, a, mean_b, b = random_pair(seed)
    directions = rng.normal(size=(5, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    quantiles = [
        quad(
            lambda q, u=u: (
                (norm.ppf(q, u @ mean_a, (u @ a @ u) ** 0.5) - norm.ppf(q, u @ mean_b, (u @ b @ u) ** 0.5)) ** 2
            ),
            0,
            1,
            epsabs=1e-10,
        )[0]
        for u in directions
    ]
    found = sliced_w2_squared(mean_a, a, mean_b, b, directions=directions)
    np.testing.assert_allclose(found, np.mean(quantiles), rtol=1e-7)  # endpoint singularities of the quantile function
    single = [w2_squared([u @ mean_a], [[u @ a @ u]], [u @ mean_b], [[u @ b @ u]]) for u in directions]
    np.testing.assert_allclose(found, np.mean(single), rtol=1e-12)
    assert found <= w2_squared(mean_a, a, mean_b, b)  # a projection is 1-Lipschitz


@pytest.mark.parametrize("seed", SEEDS)
def test_factor_and_eigenvalues(seed):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(10, 4))
    covariance = factor @ factor.T
    values, vectors = eigh_descending(covariance)
    assert np.all(np.diff(values) <= 0) and np.count_nonzero(values) == 4
    np.testing.assert_allclose((vectors * values) @ vectors.T, covariance, atol=1e-13 * values[0])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-13)
    found = covariance_factor(covariance)
    assert found.shape == (10, 4)
    np.testing.assert_allclose(found @ found.T, covariance, atol=1e-13 * values[0])


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.ones(3), "shape"),
        (np.ones((2, 3)), "shape"),
        ([[1.0, np.nan], [np.nan, 1.0]], "finite"),
        ([[1.0, 0.5], [0.4, 1.0]], "symmetric"),
        ([[1.0, 0.0], [0.0, -1.0]], "negative"),
        ([[1.0, 2.0], [2.0, 1.0]], "negative"),
    ],
)
def test_bad_covariances_raise(covariance, message):
    good, zero = np.eye(2), np.zeros(2)
    with pytest.raises(ValueError, match=message):
        w2_squared(zero, good, zero, covariance)
    with pytest.raises(ValueError, match=message):
        kl_divergence(zero, covariance, zero, good)


def test_check_covariance_symmetrises_rounding():
    covariance = np.array([[1.0, 0.5], [0.5 + 1e-12, 1.0]])
    np.testing.assert_array_equal(check_covariance("c", covariance), check_covariance("c", covariance).T)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, np.nan])
def test_bad_bandwidth_raises(bandwidth):
    with pytest.raises(ValueError, match="bandwidth"):
        mmd_squared([0.0], [[1.0]], [0.0], [[1.0]], bandwidth=bandwidth)
