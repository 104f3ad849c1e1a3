"""Distances between Gaussian laws, in closed form, float64 on the host.

With means mu and covariances A, B (positive semi-definite, possibly singular):

    (1)  W2^2 = |mu_a - mu_b|^2 + tr A + tr B - 2 || A^{1/2} B^{1/2} ||_*            (nuclear norm; the Bures distance)
    (2)  KL(a || b) = (tr B^+ A + (mu_a - mu_b)^T B^+ (mu_a - mu_b) - r + logdet B - logdet A) / 2   on a rank-r support
    (3)  MMD^2 = E k(x,x') + E k(y,y') - 2 E k(x,y),  k(x,y) = exp(-|x-y|^2 / (2 h^2)),
         E k(x,y) = det(I + (A+B)/h^2)^{-1/2} exp(-m^T (h^2 I + A + B)^{-1} m / 2),  m = mu_a - mu_b
    (4)  sliced W2^2 = mean over directions u of the squared W2 between the laws of u.x

**Rank.** An eigenvalue at or below D * eps * (largest eigenvalue of the same matrix), eps = 2.2e-16, counts as zero.
Sources: docs/theory.md (4.1) and section 6; Gretton et al., JMLR 2012, for (3).
"""

import numpy as np
from jaxtyping import Float

from ldmjax.typing import ArrayLike


def covariance_factor(covariance: ArrayLike) -> Float[np.ndarray, "D r"]:
    """Returns L ``[D, r]`` with L L^T = ``covariance`` and r its numerical rank (columns by falling eigenvalue)."""
    values, vectors = eigh_descending(covariance)
    keep = values > 0
    return vectors[:, keep] * np.sqrt(values[keep])


def eigh_descending(covariance: ArrayLike) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """Returns eigenvalues, largest first, with those at the rank tolerance set to exactly 0, and eigenvectors as columns.

    Raises:
      ValueError: as `check_covariance`, and if an eigenvalue is negative beyond float32 rounding (1e-6 of the largest).
    """
    covariance = check_covariance("covariance", covariance)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    if np.min(values, initial=0.0) < -1e-6 * np.max(np.abs(values), initial=0.0):
        raise ValueError(f"covariance must be positive semi-definite, got a negative eigenvalue {values[-1]:.6g}")
    return np.where(values > rank_tolerance(values), values, 0.0), vectors


def rank_tolerance(eigenvalues: np.ndarray) -> float:
    """Returns D * eps * max eigenvalue: at or below it an eigenvalue counts as zero (numpy.linalg.matrix_rank's rule)."""
    return eigenvalues.size * np.finfo(np.float64).eps * max(float(np.max(eigenvalues)), 0.0)


def check_covariance(name: str, covariance: ArrayLike) -> Float[np.ndarray, "D D"]:
    """Returns ``covariance`` as float64 ``[D, D]``; ValueError unless symmetric and finite with variances >= 0."""
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"{name} must have shape [D, D], got {list(covariance.shape)}")
    if not np.all(np.isfinite(covariance)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    scale = np.max(np.abs(covariance), initial=0.0)
    if np.max(np.abs(covariance - covariance.T), initial=0.0) > 1e-8 * scale:
        raise ValueError(f"{name} must be symmetric, got entries that differ by more than 1e-8 of the largest")
    if np.min(np.diag(covariance), initial=0.0) < 0:
        raise ValueError(f"{name} must be positive semi-definite, got a negative variance on its diagonal")
    return 0.5 * (covariance + covariance.T)


def w2_squared(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """Returns squared Wasserstein-2 (Fréchet) distance between two Gaussians, equation (1).

    Args:
      mean_a: ``[D]``.
      cov_a: ``[D, D]``, positive semi-definite.
      mean_b: ``[D]``.
      cov_b: ``[D, D]``.

    Returns:
      The squared distance, accurate to about 1e-12 (tr A + tr B) if every eigenvalue is 0 or above about 1e-8 of its
      matrix' largest; one at the rank tolerance is rounding itself and moves the result by up to the root of it.

    Raises:
      ValueError: if a covariance is not square, finite, symmetric and positive semi-definite.
    """
    factor_a, factor_b = covariance_factor(cov_a), covariance_factor(cov_b)
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    # The singular values of A^{1/2} B^{1/2} are those of L_A^T L_B for any factors A = L_A L_A^T.
    overlap = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
    return float(max(difference @ difference + np.sum(factor_a**2) + np.sum(factor_b**2) - 2.0 * overlap, 0.0))


def kl_divergence(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """Returns KL(a || b) in nats, equation (2); +inf when the supports differ.

    The supports are the same when both ranks (module docstring) are equal and the part of a's factor, and of the mean
    difference, outside b's column space is below 1e-7 of its size.

    Args:
      mean_a: ``[D]``.
      cov_a: ``[D, D]``.
      mean_b: ``[D]``.
      cov_b: ``[D, D]``.

    Returns:
      A float >= 0, possibly +inf.
    """
    values_a, vectors_a = eigh_descending(cov_a)
    values_b, vectors_b = eigh_descending(cov_b)
    rank = int(np.count_nonzero(values_b))
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    if np.count_nonzero(values_a) != rank:
        return float("inf")
    basis_a, basis_b = vectors_a[:, :rank], vectors_b[:, :rank]
    outside = basis_a - basis_b @ (basis_b.T @ basis_a)
    mean_outside = difference - basis_b @ (basis_b.T @ difference)
    if np.abs(outside).max(initial=0.0) > 1e-7 or np.linalg.norm(mean_outside) > 1e-7 * np.linalg.norm(difference):
        return float("inf")
    # B^{-1/2} A^{1/2} on the common support; its singular values s give tr - r - logdet as sum(s^2 - 1 - log s^2).
    whitened = (basis_b.T @ basis_a) * np.sqrt(values_a[:rank]) / np.sqrt(values_b[:rank])[:, None]
    ratio = np.linalg.svd(whitened, compute_uv=False) ** 2
    shift = (basis_b.T @ difference) / np.sqrt(values_b[:rank])
    return float(max(0.5 * (np.sum(ratio - 1.0 - np.log(ratio)) + shift @ shift), 0.0))


def mmd_squared(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike, *, bandwidth: float) -> float:
    """Returns squared maximum mean discrepancy with the RBF kernel of width ``bandwidth`` (h), equation (3).

    Args:
      mean_a: ``[D]``.
      cov_a: ``[D, D]``.
      mean_b: ``[D]``.
      cov_b: ``[D, D]``.
      bandwidth: h > 0, in units of the data.

    Returns:
      The squared discrepancy, in [0, 2].
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be > 0, got {bandwidth}")
    cov_a, cov_b = check_covariance("cov_a", cov_a), check_covariance("cov_b", cov_b)
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)

    def expected_kernel(total_covariance, shift):
        values, vectors = np.linalg.eigh(total_covariance)
        values = 1.0 + np.clip(values, 0.0, None) / bandwidth**2
        exponent = np.sum((vectors.T @ shift) ** 2 / values) / bandwidth**2
        return np.exp(-0.5 * (np.sum(np.log(values)) + exponent))

    zero = np.zeros_like(difference)
    within = expected_kernel(2 * cov_a, zero) + expected_kernel(2 * cov_b, zero)
    return float(max(within - 2.0 * expected_kernel(cov_a + cov_b, difference), 0.0))


def sliced_w2_squared(
    mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike, *, directions: ArrayLike
) -> float:
    """Returns squared sliced Wasserstein-2 over given unit ``directions`` ``[P, D]``, equation (4), exact for each of them."""
    directions = np.asarray(directions, np.float64)
    cov_a, cov_b = check_covariance("cov_a", cov_a), check_covariance("cov_b", cov_b)
    shift = directions @ (np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64))
    std_a = np.sqrt(np.einsum("pi,ij,pj->p", directions, cov_a, directions).clip(0.0))
    std_b = np.sqrt(np.einsum("pi,ij,pj->p", directions, cov_b, directions).clip(0.0))
    return float(np.mean(shift**2 + (std_a - std_b) ** 2))
