"""What a ladder of T noise levels costs DDIM on Gaussian data, and the ladder that costs least.

Source: docs/t_space.md (1.4), (2.2).

Levels i = T (noisiest) ... 1 (cleanest), the order of the arrays, have l_i = log(sigma_i / alpha_i); angles are theta_i =
atan2(sigma_i, alpha_i sqrt(lam)), phi_i = atan2(sigma_i, alpha_i), and theta_0 = phi_0 = 0 for clean data, where the last
update ends. From N(0, I) the chain brings a component of variance lam to

    (1)  std_out / sqrt(lam) = G = P prod_{i=1..T} cos(theta_i - theta_{i-1}),    P = 1 / sqrt(alpha_T^2 lam + sigma_T^2)

with P the mismatch of the start. `optimised_levels` minimises, over variance-preserving levels,

    (2)  W2^2 = sum_k lam_k (1 - G_k)^2
    (3)  d log G / d l_i = sin(theta_i) cos(theta_i) (tan(theta_{i+1} - theta_i) - tan(theta_i - theta_{i-1}))
                           the first tangent replaced at i = T by the mismatch: + sin^2(phi_T) - sin^2(theta_T)

If level i has a model of its own that assumes the variance v_i, then at v_i = lam = 1

    (4)  w_i = 2 d log G / d log v_i = sin(2 phi_i) tan(phi_i - phi_{i-1})
    (5)  N_eff = (sum w)^2 / sum w^2

Estimates of the v_i from n samples each, independent between levels, give log G the variance of one estimate from N_eff n
samples used at every level: one model per level needs T / N_eff times the samples of a joint one.
"""

import numpy as np
from jaxtyping import Float
from scipy import optimize

from ldmjax.oracle.stopped import check_spectra
from ldmjax.schedules import Ladder, spectral_levels
from ldmjax.typing import ArrayLike


def discretisation_weights(alpha: ArrayLike, sigma: ArrayLike) -> Float[np.ndarray, " T"]:
    """Returns how much each level's assumed variance matters for the std gain of the DDIM chain, equation (4).

    Args:
      alpha: ``[T]``, noisiest level first.
      sigma: ``[T]``.

    Returns:
      w ``[T]``, >= 0, noisiest level first.

    Raises:
      ValueError: if the levels are not a `Ladder`.
    """
    ladder = Ladder(alpha, sigma)
    phi = np.arctan2(ladder.sigma_levels, ladder.alpha_levels)
    return np.sin(2.0 * phi) * np.tan(-np.diff(phi, append=0.0))


def effective_states(weights: ArrayLike) -> float:
    """Returns N_eff of equation (5), between 1 and T, from `discretisation_weights` ``[T]``.

    Raises:
      ValueError: unless the weights are ``[T]``, finite and >= 0, and one of them is > 0.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not np.all(np.isfinite(weights) & (weights >= 0)) or not np.any(weights > 0):
        raise ValueError(f"weights must be [T], finite and >= 0, one of them > 0, got {weights.tolist()}")
    return float(np.sum(weights) ** 2 / np.sum(weights**2))


def optimised_levels(
    variances: ArrayLike,
    levels: int,
    *,
    initial: tuple[ArrayLike, ArrayLike] | None = None,
    pure_noise: bool = False,
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Returns the levels from which DDIM, started from N(0, I), ends nearest to N(0, diag(variances)): a minimum of (2).

    The start's mismatch is part of what is minimised. It *raises* variances below 1, so unless the largest variances are
    well above 1 the optimum has a mild noisiest level whose mismatch cancels DDIM's loss of variance (several local minima
    may exist, ``initial`` then chooses); on N(0, I) it tends to no noise at all. With ``pure_noise`` there is no mismatch
    (P = 1), only what the updates lose, and the optimum scales with the data: sigma/alpha as the root of the variances.

    Args:
      variances: ``[D]``, any order; zeros drop out.
      levels: T.
      initial: where the search starts, (alpha ``[T]``, sigma ``[T]``), default `schedules.spectral_levels`.
      pure_noise: keep the noisiest level at alpha = 0 and search for the others; T >= 2.

    Returns:
      (alpha ``[T]``, sigma ``[T]``), noisiest first, alpha^2 + sigma^2 = 1.

    Raises:
      ValueError: if no variance is positive, ``levels`` is too small, or ``initial`` is not a `Ladder` of ``levels``
        levels, all with alpha > 0 unless ``pure_noise``.
    """
    (variances,) = check_spectra(variances)
    variances = variances[variances > 0]
    if variances.size == 0 or levels < 1 + pure_noise:
        raise ValueError(
            f"need levels >= {1 + pure_noise} and a variance > 0, got {levels} and {variances.size} of them"
        )
    ladder = Ladder(*(spectral_levels(variances, levels) if initial is None else initial))
    if ladder.t_max != levels or not (ladder.alpha_levels[0] > 0 or pure_noise):
        raise ValueError(
            f"initial must have {levels} levels, with alpha > 0 unless pure_noise, got {ladder.t_max:.0f} and a first alpha "
            f"of {ladder.alpha_levels[0]}"
        )
    pinned = [np.inf] if pure_noise else []
    searched = -0.5 * ladder.logsnr(ladder.times[len(pinned) : -1])
    unit = _w2_squared(np.append(pinned, searched), variances)[0]

    # The noisiest searched log ratio and the logs of the gaps below it: levels stay in order.
    def log_ratios(x):
        return np.append(pinned, np.cumsum(np.append(x[0], -np.exp(x[1:]))))

    def objective(x):
        value, gradient = _w2_squared(log_ratios(x), variances)
        below = np.cumsum(gradient[::-1])[::-1][len(pinned) :]  # a gap moves every level below it
        return value / unit, below * np.append(1.0, -np.exp(x[1:])) / unit

    found = optimize.minimize(
        objective,
        np.append(searched[0], np.log(-np.diff(searched))),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] + [(-10.0, 4.0)] * (len(searched) - 1),  # gaps neither vanish nor overflow
        options={"maxcor": 30, "ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000},
    )
    log_ratio = log_ratios(found.x)
    return np.exp(-0.5 * np.logaddexp(0.0, 2.0 * log_ratio)), np.exp(-0.5 * np.logaddexp(0.0, -2.0 * log_ratio))


def _w2_squared(log_ratio: np.ndarray, variances: np.ndarray) -> tuple[float, np.ndarray]:
    """Computes equation (2) and its gradient ``[T]`` in the log ratios ``[T]``, from (1) and (3); +inf is pure noise."""
    theta = np.arctan(np.exp(log_ratio[:, None] - 0.5 * np.log(variances)))
    phi = np.arctan(np.exp(log_ratio[0]))
    step = -np.diff(theta, axis=0, append=0.0)
    gain = np.prod(np.cos(step), axis=0) / np.sqrt(np.cos(phi) ** 2 * variances + np.sin(phi) ** 2)
    tangent = np.tan(step)
    slope = 0.5 * np.sin(2.0 * theta) * -np.diff(tangent, axis=0, prepend=0.0)
    slope[0] += np.sin(phi) ** 2 - np.sin(theta[0]) ** 2
    return float(np.sum(variances * (1.0 - gain) ** 2)), slope @ (-2.0 * variances * gain * (1.0 - gain))
