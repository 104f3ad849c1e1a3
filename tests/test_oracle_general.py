"""General covariances (docs/theory.md, section 4) against the diagonal case and W2 of the generated covariance written out."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from ldmjax import oracle
from ldmjax.gaussians import w2_squared

SEEDS = range(4)
NOISE_VAR = np.array([0.0, 1e-4, 0.05, 0.5, 0.98])


def rotated(rotation, values):
    return (rotation * values) @ rotation.T


def sample_covariance(rng, covariance, count):
    x = rng.multivariate_normal(np.zeros(len(covariance)), covariance, size=count, method="eigh")
    return x.T @ x / count


def truth(rng, size):
    variances = np.sort(10.0 ** rng.uniform(-3, 1, size))[::-1]
    return variances, rotated(ortho_group.rvs(size, random_state=rng), variances)


def explicit_distance(covariance, basis, kept_variances):
    zero = np.zeros(len(covariance))
    return w2_squared(zero, covariance, zero, (basis * kept_variances) @ basis.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_commuting_covariances_give_the_diagonal_curve(seed):
    rng = np.random.default_rng(seed)
    variances = 2.0 ** -np.arange(8.0)
    estimated = variances * rng.uniform(0.8, 1.2, 8)  # the order of the estimate is that of the truth
    rotation = ortho_group.rvs(8, random_state=rng)
    curve = oracle.w2_squared_curve(variances, estimated, NOISE_VAR)
    for d in range(1, 9):
        found = oracle.w2_squared_general(rotated(rotation, variances), rotated(rotation, estimated), d, NOISE_VAR)
        np.testing.assert_allclose(found, curve[d - 1], atol=1e-10 * variances.sum(), rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_noncommuting_covariances_against_explicit_bures(seed):
    rng = np.random.default_rng(seed)
    _, covariance = truth(rng, 7)
    estimate = sample_covariance(rng, covariance, 30)
    values, vectors = np.linalg.eigh(estimate)
    values, vectors = values[::-1], vectors[:, ::-1]
    for d in range(1, 8):
        found = oracle.w2_squared_general(covariance, estimate, d, NOISE_VAR)
        expected = [explicit_distance(covariance, vectors[:, :d], (1 - nu) * values[:d] + nu) for nu in NOISE_VAR]
        np.testing.assert_allclose(found, expected, rtol=1e-11)
    # They do not commute, so the spectra alone give another (smaller) number.
    diagonal = oracle.w2_squared_curve(np.linalg.eigvalsh(covariance)[::-1], values, NOISE_VAR)[-1]
    assert np.all(found > diagonal * (1 + 1e-6))


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_deficient_estimate(seed):
    rng = np.random.default_rng(seed)
    _, covariance = truth(rng, 9)
    estimate = sample_covariance(rng, covariance, 4)
    for d in [1, 4]:
        assert oracle.w2_squared_general(covariance, estimate, d, NOISE_VAR).shape == NOISE_VAR.shape
    for d in [5, 8]:
        with pytest.raises(ValueError, match="latent_dim"):
            oracle.w2_squared_general(covariance, estimate, d, NOISE_VAR)
    # At d = D the noise is isotropic on what the estimate leaves out: no basis is needed.
    zero = np.zeros(9)
    expected = [w2_squared(zero, covariance, zero, (1 - nu) * estimate + nu * np.eye(9)) for nu in NOISE_VAR]
    np.testing.assert_allclose(
        oracle.w2_squared_general(covariance, estimate, 9, NOISE_VAR),
        expected,
        atol=1e-11 * np.trace(covariance),
        rtol=0,
    )


@pytest.mark.parametrize("dim", [0, -1, 4])
def test_latent_dim_out_of_range_raises(dim):
    with pytest.raises(ValueError, match="latent_dim"):
        oracle.w2_squared_general(np.eye(3), np.eye(3), dim, 0.1)


def test_shapes_must_agree():
    with pytest.raises(ValueError):
        oracle.w2_squared_general(np.eye(3), np.eye(2), 1, 0.1)
    with pytest.raises(ValueError, match="encoder"):
        oracle.w2_squared_linear_autoencoder(np.eye(3), np.eye(3), np.ones((2, 3)), 0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_covariance_follows_proposition_6(seed):
    # Sigma-hat = Sigma: Prop. 2 with eigenvalues, whatever the eigenvectors.
    rng = np.random.default_rng(seed)
    variances, covariance = truth(rng, 6)
    table = np.array([oracle.w2_squared_general(covariance, covariance, d, NOISE_VAR) for d in range(1, 7)])
    change = np.diff(np.vstack([np.full(NOISE_VAR.size, variances.sum()), table]), axis=0)
    useful = oracle.component_is_useful(variances, variances, NOISE_VAR)
    clear = np.abs(change) > 1e-10 * variances.sum()
    np.testing.assert_array_equal(useful[clear], change[clear] < 0)


@pytest.mark.parametrize(("size", "kept", "rank"), [(6, 3, 6), (6, 6, 6), (9, 5, 3), (4, 1, 4), (8, 2, 8)])
def test_projected_distance(size, kept, rank):
    rng = np.random.default_rng(size)
    factor = rng.normal(size=(size, rank))
    basis = ortho_group.rvs(size, random_state=rng)[:, :kept]
    generated = 10.0 ** rng.uniform(-4, 1, size=(kept, 3))
    found = oracle.w2_squared_projected(factor @ factor.T, basis, generated)
    expected = [explicit_distance(factor @ factor.T, basis, g) for g in generated.T]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_orthonormal_encoder_is_the_pca_case(seed):
    rng = np.random.default_rng(seed)
    _, covariance = truth(rng, 6)
    estimate = sample_covariance(rng, covariance, 20)
    vectors = np.linalg.eigh(estimate)[1][:, ::-1]
    for d in [1, 4, 6]:
        expected = oracle.w2_squared_general(covariance, estimate, d, NOISE_VAR)
        turn = ortho_group.rvs(d, random_state=rng) if d > 1 else np.eye(1)
        for encoder in [vectors[:, :d].T, turn @ vectors[:, :d].T]:  # a rotation of the latents changes nothing
            found = oracle.w2_squared_linear_autoencoder(covariance, estimate, encoder, NOISE_VAR)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.trace(covariance))


@pytest.mark.parametrize("seed", SEEDS)
def test_any_encoder_against_its_definition(seed):
    # Decode P^+ (sqrt(1 - nu) P x + sqrt(nu) c eps): covariance from a linear map of independent unit variables.
    rng = np.random.default_rng(seed)
    _, covariance = truth(rng, 5)
    estimate, encoder, c = sample_covariance(rng, covariance, 20), rng.normal(size=(3, 5)), 0.7
    decoder = encoder.T @ np.linalg.inv(encoder @ encoder.T)
    root, zero = np.linalg.cholesky(estimate), np.zeros(5)
    expected = []
    for nu in NOISE_VAR:
        mixing = np.hstack([np.sqrt(1 - nu) * decoder @ encoder @ root, np.sqrt(nu) * c * decoder])
        expected.append(w2_squared(zero, covariance, zero, mixing @ mixing.T))
    found = oracle.w2_squared_linear_autoencoder(covariance, estimate, encoder, NOISE_VAR, latent_scale=c)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_whitening_encoder_is_flat(scale):
    rng = np.random.default_rng(2)
    _, covariance = truth(rng, 7)
    estimate = sample_covariance(rng, covariance, 40)
    values, vectors = np.linalg.eigh(estimate)
    encoder = scale * (vectors[:, -4:] / np.sqrt(values[-4:])).T
    curve = oracle.w2_squared_linear_autoencoder(covariance, estimate, encoder, NOISE_VAR, latent_scale=scale)
    np.testing.assert_allclose(curve, curve[0], rtol=1e-11)
    other = oracle.w2_squared_linear_autoencoder(covariance, estimate, encoder, NOISE_VAR, latent_scale=2 * scale)
    assert np.ptp(other) > 0.1 * curve[0]
