"""Ladders: T noise levels for training and sampling. Source: docs/t_space.md, section 1; schedules as cited below.

Functions return (alpha ``[T]``, sigma ``[T]``), float64, **noisiest first**; level 1 is the cleanest and the last update
of a chain goes from it to clean data. With r = sigma / alpha and i = 1..T counted from the cleanest level:

    (1) karras           r_i = (r_1^(1/rho) + (i-1)/(T-1) (r_T^(1/rho) - r_1^(1/rho)))^rho       Karras et al., 2206.00364
    (2) uniform logsnr   log r_i evenly spaced
    (3) linear beta      abar_j = prod_{k<=j} (1 - beta_k), beta from 1e-4 to 0.02 in 1000 steps, j = round(1000 i/T)
                         (DDPM: Ho et al., 2006.11239; respaced: Nichol & Dhariwal, 2102.09672)
    (4) scaled linear    as (3) with sqrt(beta) from sqrt(.00085) to sqrt(.012)                  Stable Diffusion, 2112.10752
    (5) cosine           abar_i = f(i/T)/f(0), f(u) = cos^2(pi/2 (u + .008)/1.008), beta clipped at .999   2102.09672
    (6) rectified flow   sigma_i = s u/(1 + (s-1) u), alpha = 1 - sigma, u = i/T, s the shift    Esser et al., 2403.03206
    (7) spectral rule    level i at the quantile i/(T + 1/2) of the density
                         rho(l) ~ sqrt(sum_k lam_k E_k sech^2(l - log(lam_k)/2)),   l = log r
                         E_k = 1 at first, then E_k = (1/8T) int sech^2(l - log(lam_k)/2)/rho

(7) minimises the first-order error of DDIM: E_k is the share of its standard deviation that component k loses.
All but (6) are variance preserving: alpha^2 + sigma^2 = 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax.typing import ArrayLike

TRAINING_STEPS = 1000  # of the schedules (3) and (4), whose levels are chosen among these


@dataclasses.dataclass(frozen=True)
class Ladder:
    """T noise levels as a schedule: time is the level's number, T (noisiest) ... 1 (cleanest), and 0 is clean data.

    Denoisers, samplers and losses take it like any other schedule, at whole times only; with
    ``ladder = Ladder(*karras_levels(32))``, ``samplers.sample(denoiser, ladder, ..., times=ladder.times)`` runs the chain.

    Attributes:
      alpha_levels: ``[T]``, noisiest first, >= 0 (only the first may be 0: pure noise); kept as a tuple.
      sigma_levels: ``[T]``, > 0; sigma / alpha falls strictly; kept as a tuple.

    Raises:
      ValueError: for levels that are not such a ladder, duplicates included.
    """

    alpha_levels: ArrayLike
    sigma_levels: ArrayLike

    def __post_init__(self):
        alpha, sigma = np.asarray(self.alpha_levels, np.float64), np.asarray(self.sigma_levels, np.float64)
        if alpha.ndim != 1 or alpha.size == 0 or alpha.shape != sigma.shape:
            raise ValueError(
                f"alpha and sigma must be [T] with T >= 1, got {list(alpha.shape)} and {list(sigma.shape)}"
            )
        allowed = np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma > 0)
        allowed[1:] &= alpha[1:] > 0
        if not np.all(allowed):
            k = int(np.argmin(allowed))
            raise ValueError(
                "alpha and sigma must be finite and > 0 (the noisiest alpha may be 0), got alpha = "
                f"{alpha[k]:g}, sigma = {sigma[k]:g} at level {alpha.size - k}"
            )
        with np.errstate(divide="ignore"):
            falls = np.diff(sigma / alpha) < 0
        if not np.all(falls):
            number = alpha.size - 1 - int(np.argmin(falls))
            raise ValueError(
                f"sigma / alpha must fall strictly, noisiest level first and no duplicate levels; levels {number + 1} and "
                f"{number} (1 is the cleanest of {alpha.size}) do not"
            )
        object.__setattr__(self, "alpha_levels", tuple(alpha.tolist()))
        object.__setattr__(self, "sigma_levels", tuple(sigma.tolist()))

    @property
    def t_max(self) -> float:
        """T, the number of levels."""
        return float(len(self.alpha_levels))

    @property
    def times(self) -> np.ndarray:
        """T, T-1, ..., 1, 0 ``[T + 1]``: the sampling times of the whole chain."""
        return np.arange(len(self.alpha_levels), -1.0, -1.0)

    def _look_up(self, levels: tuple[float, ...], clean: float, t: ArrayLike):
        table = np.array([clean, *levels[::-1]])
        if isinstance(t, jax.Array):
            return jnp.asarray(table, jnp.result_type(float))[jnp.asarray(t, int)]
        return table[np.asarray(t, int)]

    def alpha(self, t: ArrayLike):
        """Returns signal scale of level t; 1 at t = 0."""
        return self._look_up(self.alpha_levels, 1.0, t)

    def sigma(self, t: ArrayLike):
        """Returns noise scale of level t; 0 at t = 0."""
        return self._look_up(self.sigma_levels, 0.0, t)

    def logsnr(self, t: ArrayLike):
        """Returns 2 log(alpha / sigma) of level t; +inf at t = 0."""
        with np.errstate(divide="ignore"):
            logsnr = 2.0 * (np.log(self.alpha_levels) - np.log(self.sigma_levels))
        return self._look_up(tuple(logsnr.tolist()), np.inf, t)


Levels = tuple[np.ndarray, np.ndarray]


def _check_count(levels: int, largest: float = np.inf) -> None:
    if not 1 <= levels <= largest:
        limit = ">= 1" if largest == np.inf else f"1..{largest} (more would repeat a level)"
        raise ValueError(f"the number of levels must be {limit}, got {levels}")


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max (ratios sigma/alpha), got {sigma_min} and {sigma_max}")


def _variance_preserving(ratio: np.ndarray) -> Levels:
    radius = np.hypot(1.0, ratio)
    return 1.0 / radius, ratio / radius


def karras_levels(levels: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Levels:
    """Computes equation (1). Args: levels: T; one level is sigma_max. sigma_min, sigma_max: ratios sigma/alpha. rho: > 0."""
    _check_count(levels)
    _check_range(sigma_min, sigma_max)
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be a finite number > 0, got {rho}")
    return _variance_preserving(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), levels) ** rho)


def uniform_logsnr_levels(levels: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Levels:
    """Computes equation (2). Args: levels: T; one level is sigma_max. sigma_min, sigma_max: ratios sigma/alpha."""
    _check_count(levels)
    _check_range(sigma_min, sigma_max)
    return _variance_preserving(np.geomspace(sigma_max, sigma_min, levels))


def _respaced(betas: np.ndarray, levels: int) -> Levels:
    _check_count(levels, len(betas))
    log_abar = np.cumsum(np.log1p(-betas))
    chosen = np.round(len(betas) * np.arange(levels, 0, -1) / levels).astype(int) - 1
    return np.exp(0.5 * log_abar[chosen]), np.sqrt(-np.expm1(log_abar[chosen]))


def linear_beta_levels(levels: int) -> Levels:
    """Computes equation (3), T <= 1000."""
    return _respaced(np.linspace(1e-4, 0.02, TRAINING_STEPS), levels)


def scaled_linear_levels(levels: int) -> Levels:
    """Computes equation (4), T <= 1000; its noisiest level keeps 7 % of the signal's amplitude."""
    return _respaced(np.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS) ** 2, levels)


def cosine_levels(levels: int) -> Levels:
    """Computes equation (5), built at T steps."""
    _check_count(levels)
    f = np.cos(0.5 * np.pi * (np.arange(levels + 1) / levels + 0.008) / 1.008) ** 2
    log_abar = np.cumsum(np.log1p(-np.minimum(1.0 - f[1:] / f[:-1], 0.999)))[::-1]
    return np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))


def rectified_flow_levels(levels: int, *, shift: float = 1.0) -> Levels:
    """Computes (6): the noisiest level is pure noise, alpha = 0. Args: shift: > 1 spends more on the noisy end."""
    _check_count(levels)
    if not 0 < shift < np.inf:
        raise ValueError(f"shift must be a finite number > 0, got {shift}")
    time = np.arange(levels, 0, -1) / levels
    scale = 1.0 + (shift - 1.0) * time
    return (1.0 - time) / scale, shift * time / scale


def spectral_levels(variances: ArrayLike, levels: int, *, iterations: int = 5) -> Levels:
    """Returns the spectral rule (7): where DDIM loses least on a Gaussian with this covariance spectrum.

    Args:
      variances: covariance spectrum ``[D]``, in any order; zeros drop out.
      levels: T.
      iterations: fixed-point iterations; 0 is the rule with E_k = 1.

    Returns:
      (alpha ``[T]``, sigma ``[T]``), noisiest first.

    Raises:
      ValueError: if no variance is positive, or ``levels`` < 1 or ``iterations`` < 0.
    """
    _check_count(levels)
    variances = np.asarray(variances, np.float64)
    variances = variances[variances != 0]
    if iterations < 0:
        raise ValueError(f"iterations must be >= 0, got {iterations}")
    wrong = variances[~((variances > 0) & np.isfinite(variances))]
    if variances.size == 0 or wrong.size:
        got = f"{wrong[0]:g} among them" if wrong.size else "none"
        raise ValueError(f"variances must be finite and >= 0, one of them > 0, got {got}")
    centres = 0.5 * np.log(variances)
    # sech^2 falls as exp(-2 |l|): 12 beyond the outermost centres leaves 1e-5 of rho ~ sech outside.
    log_ratio = np.linspace(centres.min() - 12.0, centres.max() + 12.0, 4001)
    bump = 1.0 / np.cosh(log_ratio - centres[:, None]) ** 2
    loss = np.ones(len(variances))
    for iteration in range(iterations + 1):
        density = np.sqrt((variances * loss) @ bump)
        density /= np.trapezoid(density, log_ratio)
        if iteration < iterations:
            loss = np.trapezoid(bump / density, log_ratio, axis=1) / (8.0 * levels)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(log_ratio))])
    chosen = np.interp(np.arange(levels, 0, -1) / (levels + 0.5), mass, log_ratio)
    return _variance_preserving(np.exp(chosen))


def nested_subsets(levels: int, counts: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Subsets of a ladder such that every smaller one lies in every larger one, evenly spread, all with the noisiest level.

    A model trained on the large ladder then serves every chain, and few states are compared with many on common ground.

    Args:
      levels: T of the whole ladder.
      counts: distinct sizes in 1..T.

    Returns:
      For each size the indices ``[size]`` into the noisiest-first ladder, increasing.
    """
    if len(set(counts)) < len(counts) or not all(1 <= count <= levels for count in counts):
        raise ValueError(f"counts must be distinct and 1..{levels}, got {list(counts)}")
    chosen, subsets = np.arange(levels), {}
    for count in sorted(counts, reverse=True):
        chosen = chosen[len(chosen) - np.round(len(chosen) * np.arange(count, 0, -1) / count).astype(int)]
        subsets[count] = chosen
    return {count: subsets[count] for count in counts}


LADDERS = {
    "karras": karras_levels,
    "uniform_logsnr": uniform_logsnr_levels,
    "linear_beta": linear_beta_levels,
    "scaled_linear": scaled_linear_levels,
    "cosine": cosine_levels,
    "rectified_flow": rectified_flow_levels,
    "spectral": spectral_levels,
}


def make_ladder(
    name: str, levels: int, variances: np.ndarray, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Ladder:
    """Returns the ladder that a name of `LADDERS` stands for.

    Args:
      name: one of `LADDERS`.
      levels: T.
      variances: covariance spectrum ``[D]`` of the data that is noised, for "spectral".
      sigma_min: cleanest ratio sigma/alpha of "karras" and "uniform_logsnr"; the others have a range of their own.
      sigma_max: their noisiest.

    Raises:
      ValueError: for an unknown name, or a number of levels or a range that the ladder does not allow.
    """
    if name not in LADDERS:
        raise ValueError(f"ladder must be one of {', '.join(LADDERS)}, got {name!r}")
    if name == "spectral":
        return Ladder(*spectral_levels(variances, levels))
    limits = {"sigma_min": sigma_min, "sigma_max": sigma_max} if name in ("karras", "uniform_logsnr") else {}
    return Ladder(*LADDERS[name](levels, **limits))
