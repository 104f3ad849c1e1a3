"""Exact laws with a cap C on the score. Source: arXiv 2510.08409 §5, docs/theory.md (3.1)-(3.4).

With nu the VP noise variance, so alpha^2 = 1 - nu, and the score s = -m z:

    (1)  m_i(nu) = min(C, 1 / g_i(nu)),   g_i(nu) = lamh_i + nu (1 - lamh_i)                          Prop. 4
    (2)  the cap binds for nu < nu*_i = (1/C - lamh_i) / (1 - lamh_i)  if lamh_i < 1/C, else never
    nu >= nu*:  (3) SDE  V = g + (1-nu_T)/(1-nu) (g/g_T)^2 (V_0 - g_T)      (4) flow ODE  V = V_0 g/g_T
    nu <  nu*:  (5) SDE  V = v + e^{-(4C-2)(B*-B)} (V(nu*) - v)      (6) flow ODE  V = V(nu*) e^{-2(C-1)(B*-B)}

where B = -log(1 - nu) / 2, v = 1/(2C-1) and V_0 = g_T (start "marginal") or 1 (start "standard", N(0, I)).
"""

import math

import numpy as np
from jaxtyping import Float

from ldmjax.oracle.stopped import check_noise_var, check_spectra, w2_squared_from_variances
from ldmjax.typing import ArrayLike

STARTS = ("marginal", "standard")
DYNAMICS = ("sde", "ode")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_cap(cap: float) -> float:
    """Returns ``cap`` as a float; ValueError unless it is > 1 (infinity is allowed)."""
    if not cap > 1:
        raise ValueError(f"cap must be > 1 (inf for none), got {cap}")
    return float(cap)


def capped_score_weights(estimated_variances: ArrayLike, noise_var: ArrayLike, cap: float) -> Float[np.ndarray, "D K"]:
    """Returns the minimiser of score matching over diagonal linear scores bounded by ``cap``, equation (1): ``[D, K]``.

    Args:
      estimated_variances: ``[D]``, (1/n) sum of squares of each component.
      noise_var: scalar or ``[K]``.
      cap: C > 1; inf for the plug-in score (which is infinite where lamh = nu = 0).
    """
    (estimated,) = check_spectra(estimated_variances)
    noise_var, cap = check_noise_var(noise_var), check_cap(cap)
    with np.errstate(divide="ignore"):
        return np.minimum(cap, 1.0 / (estimated[:, None] * (1.0 - noise_var) + noise_var))


def capped_variances(
    estimated_variances: ArrayLike,
    noise_var: ArrayLike,
    *,
    noise_var_max: float,
    cap: float,
    start: str,
    dynamics: str,
) -> Float[np.ndarray, "D K"]:
    """Returns variance of each component at every time of the continuous sampler with a capped score, equations (3)-(6).

    Args:
      estimated_variances: ``[D]``.
      noise_var: where to read the law, scalar or ``[K]``, within [0, noise_var_max].
      noise_var_max: where sampling starts, in (0, 1).
      cap: C > 1 or inf.
      start: "marginal" (variance g at ``noise_var_max``) or "standard" (variance 1).
      dynamics: "sde" or "ode" (the probability-flow ODE).

    Returns:
      ``[D, K]``.

    Raises:
      ValueError: if an argument is outside its range.
    """
    (estimated,) = check_spectra(estimated_variances)
    if not 0 < noise_var_max < 1:
        raise ValueError(f"noise_var_max must lie in (0, 1), got {noise_var_max}")
    noise_var, cap = check_noise_var(noise_var, maximum=noise_var_max), check_cap(cap)
    check_choice("start", start, STARTS)
    check_choice("dynamics", dynamics, DYNAMICS)
    estimated = estimated[:, None]
    binds_below = np.clip(cap_binds_below(estimated, cap), 0.0, noise_var_max)

    def free_variance(nu):
        g, g_max = estimated + nu * (1.0 - estimated), estimated + noise_var_max * (1.0 - estimated)
        excess = (1.0 - g_max) if start == "standard" else 0.0
        if dynamics == "ode":
            return (g_max + excess) * (g / g_max)
        return g + (1.0 - noise_var_max) / (1.0 - nu) * (g / g_max) ** 2 * excess

    free = free_variance(np.maximum(noise_var, binds_below))
    if math.isinf(cap):
        return free
    # Integrated time since the cap began to bind, B* - B >= 0.
    elapsed = -0.5 * np.log1p(-np.clip(binds_below - noise_var, 0.0, None) / (1.0 - noise_var))
    if dynamics == "ode":
        return free * np.exp(-2.0 * (cap - 1.0) * elapsed)
    decay = np.exp(-(4.0 * cap - 2.0) * elapsed)
    return free * decay - np.expm1(-(4.0 * cap - 2.0) * elapsed) / (2.0 * cap - 1.0)


def cap_binds_below(estimated_variances: np.ndarray, cap: float) -> np.ndarray:
    """Returns noise variance nu* under which the cap binds, equation (2); 0 where it never does. Same shape as the input."""
    inverse = 1.0 / cap
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = (inverse - estimated_variances) / (1.0 - estimated_variances)
    return np.where(estimated_variances < inverse, threshold, 0.0)


def best_capped_stop(
    variances: ArrayLike,
    estimated_variances: ArrayLike,
    *,
    noise_vars: ArrayLike,
    caps: ArrayLike,
    noise_var_max: float,
    start: str,
    dynamics: str,
) -> tuple[int, float, float, float]:
    """Returns joint optimum over latent dimension, stopping time and cap, on the given grids.

    Returns:
      ``(latent_dim, noise_var, cap, w2_squared)``; ties go to the earlier cap, then the smaller dimension.
    """
    variances, estimated = check_spectra(variances, estimated_variances)
    noise_vars = check_noise_var(noise_vars, maximum=noise_var_max)
    best = (0, math.nan, math.nan, math.inf)
    for cap in np.atleast_1d(np.asarray(caps, np.float64)):
        generated = capped_variances(
            estimated, noise_vars, noise_var_max=noise_var_max, cap=cap, start=start, dynamics=dynamics
        )
        curve = w2_squared_from_variances(variances, generated)
        d, k = np.unravel_index(np.argmin(curve), curve.shape)
        if curve[d, k] < best[3]:
            best = (int(d) + 1, float(noise_vars[k]), float(cap), float(curve[d, k]))
    return best


def dimension_bounds(variances: ArrayLike, estimated_variances: ArrayLike, cap: float) -> tuple[int, int]:
    """Prop. 5's bounds (d1, d2) on the best latent dimension at the end of sampling from N(0, I) with the SDE, 1-based.

    d1 = max{i: 1/C <= lamh_i} (1 if none) and d2 = min{i: 1/(2C-1) >= 4 lam_i} (D if none). They hold on the event
    lamh_i <= 2 lam_i for all i and for B_T >= (ln 2)/2; they do not hold for the flow ODE.
    """
    variances, estimated = check_spectra(variances, estimated_variances)
    cap = check_cap(cap)
    above = np.flatnonzero(estimated >= 1.0 / cap)
    below = np.flatnonzero(4.0 * variances <= 1.0 / (2.0 * cap - 1.0))
    return (int(above[-1]) + 1 if above.size else 1), (int(below[0]) + 1 if below.size else variances.size)


def corollary_dimensions(estimated_variances: ArrayLike, cap: float) -> tuple[int, int]:
    """Corollary 1: for lam_i = q^-i, q > 16, q <= C <= q^D the best latent dimension is one of the two returned.

    They are (d, d+1) with lamh_{d+1} <= 1/C <= lamh_d. Like `dimension_bounds` for the SDE from N(0, I) with
    B_T >= (ln 2)/2, on the event lam/2 <= lamh <= 2 lam.

    Returns:
      ``(d, min(d + 1, D))`` with d the number of estimated variances >= 1/C (at least 1).
    """
    (estimated,) = check_spectra(estimated_variances)
    d = max(1, int(np.count_nonzero(estimated >= 1.0 / check_cap(cap))))
    return d, min(d + 1, estimated.size)
