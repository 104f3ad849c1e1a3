"""Exact distances of a chain that stops on one of its levels, and what estimation from n samples makes of them.

Kept variances lam (of d components), levels (alpha_j, sigma_j) with j = 1 the cleanest and j = 0 clean data, VP noise variance
nu_j = sigma_j^2 / (alpha_j^2 + sigma_j^2), and a diagonal score that assumes lamh in place of lam:

    (1)  lamh_i = lam_i chi2_n / n                                              lamh = lam for n = inf
    (2)  W2^2(j) = sum_i (sqrt(v_i) - sqrt(lam_i))^2,   v = (law after T - j updates) / (alpha_j^2 + sigma_j^2)
    (3)  exact_flow:  v = lamh + nu_j (1 - lamh)                                no discretisation, exact start
    (4)  nu* ~ (1 / 2n) sum_i (3 + lam_i) / sum_i (1 - lam_i)^2 / lam_i         minimises E W2^2 under (3), docs/t_space.md §3
"""

import functools

import numpy as np
from scipy import optimize

from ldmjax import chains, oracle, schedules

SAMPLERS = (*chains.SAMPLERS, "exact_flow")  # the last is equation (3)
MAX_COMPONENTS = 100_000  # in one pass of a chain, which bounds its memory


def noise_vars(ladder: schedules.Ladder) -> np.ndarray:
    """Returns nu_j ``[T + 1]``, entry j for stopping on level j; entry 0 is the end of sampling."""
    levels = np.arange(int(ladder.t_max) + 1)
    alpha, sigma = ladder.alpha(levels), ladder.sigma(levels)
    return sigma**2 / (alpha**2 + sigma**2)


def stopped_variances(
    variances: np.ndarray, estimated: np.ndarray, ladder: schedules.Ladder, sampler: str
) -> np.ndarray:
    """Returns equation (2)'s v ``[T + 1, D]``, row j after stopping on level j, from x_T ~ N(0, I).

    Args:
      variances: ``[D]``, any order; only where "marginal" starts would matter do chains read them.
      estimated: lamh ``[D]``.
      ladder: T levels.
      sampler: one of `SAMPLERS`.
    """
    if sampler == "exact_flow":
        return estimated + noise_vars(ladder)[:, None] * (1.0 - estimated)
    rows = chains.variances(variances, ladder, sampler, score_variances=estimated)
    if sampler == "heun":
        # The chain corrects every update with the level it steps to. Stopping on an untrained level, the sampler cannot:
        # its last update is Euler's in sigma/alpha, which is DDIM's.
        euler = chains.variances(variances, ladder, "ddim", score_variances=estimated)
        rows = np.concatenate([rows[:1], rows[:-1] * euler[1:] / euler[:-1]])
    number = np.arange(int(ladder.t_max) + 1)
    return rows[::-1] / (ladder.alpha(number) ** 2 + ladder.sigma(number) ** 2)[:, None]


def w2_squared(variances: np.ndarray, estimated: np.ndarray, ladder: schedules.Ladder, sampler: str) -> np.ndarray:
    """Returns (2) ``[R, T + 1]`` for R estimates ``[R, d]`` of the kept ``variances`` ``[d]``; column j: stop on level j."""
    parts, per_pass = [], max(1, MAX_COMPONENTS // variances.size)
    for first in range(0, len(estimated), per_pass):
        part = estimated[first : first + per_pass]
        # Components do not interact, so all draws run as one long vector.
        law = stopped_variances(np.tile(variances, len(part)), part.ravel(), ladder, sampler)
        distance = (np.sqrt(law).reshape(-1, *part.shape) - np.sqrt(variances)) ** 2
        parts.append(distance.sum(axis=-1).T)
    return np.concatenate(parts)


@functools.lru_cache(maxsize=64)
def chi2_quadrature(n: float, nodes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Returns Gauss nodes ``[Q]`` and weights ``[Q]`` of chi2_n / n, exact for polynomials up to degree 2Q - 1.

    Golub and Welsch's eigenvalue method on the recurrence of Laguerre polynomials; it never forms Gamma(n/2), which
    overflows. For n = inf the variable is 1.
    """
    if np.isinf(n):
        return np.ones(1), np.ones(1)
    shape, k = 0.5 * n - 1.0, np.arange(nodes)
    off = np.sqrt(k[1:] * (k[1:] + shape))
    roots, vectors = np.linalg.eigh(np.diag(2 * k + 1 + shape) + np.diag(off, 1) + np.diag(off, -1))
    return 2.0 * roots / n, vectors[0] ** 2


def expected_w2_squared(variances: np.ndarray, n: float, ladder: schedules.Ladder, sampler: str) -> np.ndarray:
    """Returns E W2^2 over estimates (1) ``[T + 1]``: components are independent, so one quadrature serves them all."""
    nodes, weights = chi2_quadrature(n)
    return weights @ w2_squared(variances, nodes[:, None] * variances, ladder, sampler)


def formula_noise_var(variances: np.ndarray, n: float) -> float:
    """Returns equation (4); 0 where a kept variance is 0, inf where all are 1."""
    if np.any(variances == 0) or np.isinf(n):
        return 0.0
    spread = np.sum((1.0 - variances) ** 2 / variances)
    return float(np.sum(3.0 + variances) / spread / (2.0 * n)) if spread else np.inf


def expected_best_noise_var(variances: np.ndarray, n: float) -> float:
    """Returns the noise variance in [0, 1] that minimises E W2^2 under (3), for which (4) is an approximation."""
    nodes, weights = chi2_quadrature(n)
    true, estimated = np.tile(variances, nodes.size), (nodes[:, None] * variances).ravel()

    def slope(nu):
        terms = oracle.stopped.slope_terms(true, estimated, np.full(1, nu), 1.0)[:, 0]
        return float(weights @ terms.reshape(nodes.size, -1).sum(axis=1))

    if slope(0.0) >= 0.0:  # W2^2 is convex in nu
        return 0.0
    return 1.0 if slope(1.0) <= 0.0 else float(optimize.brentq(slope, 0.0, 1.0, xtol=1e-12))


def best_dropped(curves: np.ndarray) -> np.ndarray:
    """Returns the argmin over the last axis, the largest of equally good numbers: states that change nothing are not needed."""
    return curves.shape[-1] - 1 - np.argmin(curves[..., ::-1], axis=-1)


def tolerated(curve: np.ndarray, allowance: float) -> int:
    """Returns the largest number of states whose loss raises a curve ``[T + 1]`` by at most ``allowance``."""
    # Rounding of the curve itself is no cost.
    return int(np.flatnonzero(curve <= curve[0] + allowance + 1e-14 * curve[0])[-1])
