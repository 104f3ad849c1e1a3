"""General covariances and linear autoencoders that are not orthogonal projections.

The PCA autoencoder of an estimate Oh diag(lamh) Oh^T keeps its first d eigenvectors Oh_d, so the generated covariance
is G = Oh_d diag(g) Oh_d^T. It does not commute with the truth Sigma, and

    (1)  W2^2 = sum g + tr Sigma - 2 || diag(sqrt g) Oh_d^T Sigma^{1/2} ||_*        (nuclear norm)

For rank(estimate) < d < D the estimate leaves the last eigenvectors arbitrary, so only d <= rank and d = D have a law.
Source: arXiv 2510.08409 §6, docs/theory.md (4.2).
"""

import numpy as np
from jaxtyping import Float

from ldmjax.gaussians import check_covariance, covariance_factor, eigh_descending, w2_squared
from ldmjax.oracle.stopped import check_noise_var, stopped_variances
from ldmjax.typing import ArrayLike


def w2_squared_projected(
    covariance: ArrayLike, basis: ArrayLike, generated_variances: ArrayLike
) -> Float[np.ndarray, " K"]:
    """Computes equation (1) for given orthonormal directions and variances along them.

    Args:
      covariance: true covariance ``[D, D]``.
      basis: ``[D, d]``, orthonormal columns.
      generated_variances: ``[d, K]``.

    Returns:
      ``[K]`` squared distances.
    """
    factor = covariance_factor(covariance)
    generated = np.asarray(generated_variances, np.float64)
    # || diag(s) X ||_* depends on X = basis^T factor only through R^T of the QR factors of X^T: a smaller matrix.
    reduced = np.linalg.qr((np.asarray(basis, np.float64).T @ factor).T, mode="r").T
    overlap = np.array([np.linalg.svd(np.sqrt(g)[:, None] * reduced, compute_uv=False).sum() for g in generated.T])
    return np.clip(generated.sum(axis=0) + np.sum(factor**2) - 2.0 * overlap, 0.0, None)


def w2_squared_general(
    covariance: ArrayLike, estimated_covariance: ArrayLike, latent_dim: int, noise_var: ArrayLike
) -> Float[np.ndarray, " K"]:
    """Returns squared W2 of the stopped sampler with PCA of the estimate as autoencoder, exact Bures distance, equation (1).

    Args:
      covariance: true covariance ``[D, D]``.
      estimated_covariance: ``[D, D]``.
      latent_dim: d, at most the rank of the estimate, or D.
      noise_var: scalar or ``[K]``.

    Returns:
      ``[K]``.

    Raises:
      ValueError: if rank < d < D (the PCA basis is arbitrary there), or an argument is out of range.
    """
    values, vectors = eigh_descending(estimated_covariance)
    covariance = check_covariance("covariance", covariance)
    rank, size = int(np.count_nonzero(values)), values.size
    if covariance.shape[0] != size:
        raise ValueError(f"covariances must have one shape, got {covariance.shape[0]} and {size} dimensions")
    if not 1 <= latent_dim <= size or rank < latent_dim < size:
        raise ValueError(f"latent_dim must be 1..{rank} (the rank of the estimate) or {size}, got {latent_dim}")
    generated = stopped_variances(values[:latent_dim], noise_var)
    return w2_squared_projected(covariance, vectors[:, :latent_dim], generated)


def w2_squared_linear_autoencoder(
    covariance: ArrayLike,
    estimated_covariance: ArrayLike,
    encoder: ArrayLike,
    noise_var: ArrayLike,
    *,
    latent_scale: float = 1.0,
) -> Float[np.ndarray, " K"]:
    """Returns squared W2 of the stopped sampler behind any linear encoder P with decoder P^+ (also when P P^T is not I).

    The decoded covariance is P^+ [(1 - nu) P S P^T + nu c^2 I] P^{+T} with S the estimate; a whitening encoder
    (P S P^T = c^2 I) therefore gives a curve that does not depend on nu.

    Args:
      covariance: true covariance ``[D, D]``.
      estimated_covariance: ``[D, D]``.
      encoder: P ``[d, D]``, full row rank.
      noise_var: scalar or ``[K]``.
      latent_scale: c, the number that latents are divided by before diffusion.

    Returns:
      ``[K]``.
    """
    encoder = np.asarray(encoder, np.float64)
    covariance = check_covariance("covariance", covariance)
    if encoder.ndim != 2 or np.linalg.matrix_rank(encoder) < encoder.shape[0]:
        raise ValueError(f"encoder must be [d, D] of full row rank, got shape {list(encoder.shape)}")
    decoder = np.linalg.pinv(encoder)
    latent = encoder @ check_covariance("estimated_covariance", estimated_covariance) @ encoder.T
    identity, zero = np.eye(encoder.shape[0]), np.zeros(encoder.shape[1])
    distances = [
        w2_squared(zero, covariance, zero, decoder @ ((1 - nu) * latent + nu * latent_scale**2 * identity) @ decoder.T)
        for nu in check_noise_var(noise_var)
    ]
    return np.array(distances)
