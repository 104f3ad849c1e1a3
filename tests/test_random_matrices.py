"""Roots of product covariances from few rows: against simulation, limits, finite differences and bounds."""

import numpy as np
import pytest

from ldmjax.random_matrices import root_trace

DIM = 96
SPECTRA = {
    "three decades": np.geomspace(4.0, 0.004, DIM),
    "flat": np.ones(DIM),
    "two levels": np.repeat([1.0, 1e-3], DIM // 2),
}


def product_eigenvalues(rng, variances, *, rows, other_rows):
    """Of R^{1/2} A R^{1/2} for sample covariances of the same law; A is exact if ``other_rows`` is infinite."""
    x = rng.standard_normal((rows, DIM)) * np.sqrt(variances)
    if np.isinf(other_rows):
        root = np.diag(np.sqrt(variances))
    else:
        y = rng.standard_normal((other_rows, DIM)) * np.sqrt(variances)
        root = y / np.sqrt(other_rows)
    singular = np.linalg.svd(x / np.sqrt(rows) @ root.T, compute_uv=False)
    return np.sort(singular**2), np.sum(x**2) / rows, np.sum(root**2)


@pytest.mark.parametrize("other_rows", [np.inf, 300])
@pytest.mark.parametrize("rows", [DIM, 2 * DIM, 8 * DIM])
@pytest.mark.parametrize("spectrum", list(SPECTRA))
def test_the_bias_is_gone_at_every_ratio_of_rows_to_features(spectrum, rows, other_rows):
    """Of the squared Fréchet distance between equal laws, twice the root's trace and the two traces."""
    variances, rng = SPECTRA[spectrum], np.random.default_rng(0)
    plain, found = [], []
    for _ in range(20):
        eigenvalues, *traces = product_eigenvalues(rng, variances, rows=rows, other_rows=other_rows)
        root = root_trace(eigenvalues, rows=rows, other_rows=other_rows, rank=DIM)
        assert root.unknown < 1e-5 * DIM
        plain.append(sum(traces) - 2 * np.sqrt(eigenvalues.clip(0.0)).sum())
        found.append(sum(traces) - 2 * root.value)
    assert abs(np.mean(found)) < 0.05 * np.mean(plain)
    # One term of a size of features / rows^2 of the trace stays.
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(20) + 0.6 * np.sum(variances) / rows


@pytest.mark.parametrize("spectrum", list(SPECTRA))
def test_what_no_row_shows_is_between_the_bounds(spectrum):
    variances, rng = SPECTRA[spectrum], np.random.default_rng(1)
    for _ in range(5):
        eigenvalues, trace, _ = product_eigenvalues(rng, variances, rows=DIM // 2, other_rows=np.inf)
        root = root_trace(eigenvalues, rows=DIM // 2, rank=DIM)
        # The trace's own error is common to both.
        error = root.value - 0.5 * (trace + np.sum(variances))
        assert root.unknown > 0.0 and abs(error) < 1.1 * root.unknown
    # Half of the directions have a variance that all rows together do not resolve: that much is known.
    assert root.unknown < np.sum(variances)


def test_the_two_numbers_of_rows_are_alike():
    eigenvalues = np.sort(np.random.default_rng(5).uniform(0.01, 3.0, 20))
    one, other = (root_trace(eigenvalues, rows=a, other_rows=b, rank=40) for a, b in ((25, 60), (60, 25)))
    assert one.value == pytest.approx(other.value) and one.unknown == pytest.approx(other.unknown)


@pytest.mark.parametrize(("rows", "other_rows"), [(50, 50), (51, 50), (50, 51), (50, 60)])
def test_as_many_rows_of_both_as_eigenvalues(rows, other_rows):
    """96 equal variances, 50 rows of both: the bounds stay finite, hold the truth, and the weights do not explode."""
    rng = np.random.default_rng(6)
    for _ in range(5):
        eigenvalues, *_ = product_eigenvalues(rng, np.ones(DIM), rows=rows, other_rows=other_rows)
        root = root_trace(eigenvalues, rows=rows, other_rows=other_rows, rank=DIM)
        assert abs(root.value - DIM) < 1.2 * root.unknown < 4 * DIM
        assert np.all(np.isfinite(root.weights)) and np.all(root.weights >= 0)


def test_many_rows_change_nothing():
    eigenvalues = np.sort(np.random.default_rng(2).uniform(0.01, 3.0, 30))
    root = root_trace(eigenvalues, rows=10**9, rank=30)
    assert root.value == pytest.approx(np.sqrt(eigenvalues).sum(), rel=1e-4)
    np.testing.assert_allclose(root.weights, 0.5 / np.sqrt(eigenvalues), rtol=1e-3)


@pytest.mark.parametrize("other_rows", [np.inf, 100])
def test_weights_are_derivatives(other_rows):
    eigenvalues = np.sort(np.random.default_rng(3).uniform(0.01, 3.0, 30))
    how = {"rows": 60, "other_rows": other_rows, "rank": 30}
    weights = root_trace(eigenvalues, **how).weights
    for k in (0, 10, 29):
        step = np.where(np.arange(30) == k, 1e-4, 0.0)
        up, down = (root_trace(eigenvalues * (1 + s * step), **how).value for s in (1, -1))
        assert weights[k] == pytest.approx((up - down) / (2e-4 * eigenvalues[k]), rel=0.01)


def test_a_scale_comes_out_as_its_root_and_zeros_as_nothing():
    eigenvalues = np.sort(np.random.default_rng(4).uniform(0.1, 3.0, 20))
    how = {"rows": 40, "other_rows": 70, "rank": 20}
    root, scaled = root_trace(eigenvalues, **how), root_trace(1e6 * eigenvalues, **how)
    assert scaled.value == pytest.approx(1e3 * root.value)
    padded = root_trace(np.concatenate([[-1e-17, 0.0, 1e-16], eigenvalues]), **how)
    assert padded.value == pytest.approx(root.value)
    np.testing.assert_array_equal(padded.weights[:3], 0.0)
    assert root_trace(np.zeros(3), **how)[:2] == (0.0, 0.0)
