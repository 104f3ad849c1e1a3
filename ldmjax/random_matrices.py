r"""What sample covariances say of population covariances when there are few rows for many features.

Let A and R be covariances ``[F, F]``, Sigma = A^{1/2} R A^{1/2}, and lam_k, k = 1..r, the positive eigenvalues of the same
product of *sample* covariances with N and M degrees of freedom. The sum of sqrt(lam_k), which the squared Fréchet distance
needs, is too small by a share of about r (1/M + 1/N) / 8: as r / M stays the same, more features do not make that go away.
But sample covariances tell the function t(u) = tr Sigma (1 + u Sigma)^{-1} of their population with an error that vanishes
beside it as r grows (Marchenko & Pastur 1967; Silverstein 1995), and that is enough:

    (1)  tr Sigma^{1/2} = 1/pi int_0^inf t(u) u^{-1/2} du.

The curve t(u) is given by a parameter x from inf to 0. With s(x) the sum of 1 / (lam_k + x),

    (2)  u = x a_M a_N,      u t = sum of lam_k / (lam_k + x),      a_M = (s + (M - r) / x) / M,   a_N likewise,

and a_N = 1/x if A is known, N = inf. An eigenvalue's weight in (1), 1/2 lam_k^{-1/2} for many rows, is the derivative

    (3)  w_k = 1/pi int_0^inf u(x)^{-1/2} (lam_k + x)^{-2} dx.

**Unseen directions.** Where rows are fewer than the population's dimensions (r = M or N), u ends at a finite u_c: directions
that no row shows add an unknown amount to (1). As t falls and u t rises to at most the rank p of the population, what lies
beyond is between 2 t u_c^{1/2} / pi and (4 (p t)^{1/2} - 2 t u_c^{1/2}) / pi, with t = t(u_c); a power law through u_c, up to
p / u, stands in.

Source for another form of (1): Tiomoko & Couillet, arXiv 1903.03447. (1)-(3) were derived anew, and are checked by simulation.
"""

from typing import NamedTuple

import numpy as np

NEGLIGIBLE = 1e-12  # eigenvalues below this share of the largest are rounding
NEAR, UNSURE = 1.2, 3  # numbers of rows count as r up to that factor; so many eigenvalues are then not used
STEPS = 8  # of the integrals' grid, per factor e in x
BEYOND = 10.0  # by how many factors e the grid goes beyond the eigenvalues


class RootTrace(NamedTuple):
    """An estimate of tr Sigma^{1/2}.

    Attributes:
      value: the estimate.
      unknown: what no row shows: the truth may lie that far off on top of its sampling error. 0 if r < M and N.
      weights: ``[K]``, derivative of ``value`` in each of the given eigenvalues, equation (3), without that of the unseen
        part; 0 for negligible ones.
    """

    value: float
    unknown: float
    weights: np.ndarray


def root_trace(eigenvalues: np.ndarray, *, rows: float, other_rows: float = np.inf, rank: int) -> RootTrace:
    """Estimates tr Sigma^{1/2}, equations (1)-(3).

    Args:
      eigenvalues: ``[K]`` of a product of two sample covariances (divided by their degrees of freedom), ascending.
      rows: M, degrees of freedom of the one.
      other_rows: N, those of the other; infinite if that covariance is known.
      rank: p, the largest rank that the population's product can have; only used where rows are too few to show it.
    """
    kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1]
    lam = eigenvalues[kept]
    if not lam.size:
        return RootTrace(0.0, 0.0, np.zeros(len(eigenvalues)))
    ends = np.log(lam[-1]) + BEYOND, np.log(lam[0]) - BEYOND
    x = np.exp(np.linspace(*ends, int(STEPS * (ends[0] - ends[1]))))
    resolvent = 1.0 / (lam + x[:, None])
    u, total = x, resolvent.sum(axis=1)
    for count in (rows, other_rows):
        u = u * (1.0 / x if np.isinf(count) else (total + (count - lam.size) / x) / count)
    weights = np.zeros(len(eigenvalues))
    within = -np.trapezoid(resolvent**2 * (x / np.sqrt(u))[:, None], np.log(x), axis=0)
    weights[kept] = (within + 2.0 / np.sqrt(x[0])) / np.pi
    # Where both numbers of rows are about r, the smallest eigenvalues are chance, and u turns around.
    last = np.argmax(u) + 1
    if max(rows, other_rows) < NEAR * lam.size:
        last = min(last, int(np.count_nonzero(x > lam[min(UNSURE, lam.size - 1)])))
    u, t = u[:last], (resolvent @ lam)[:last] / u[:last]
    value = np.trapezoid(t * np.sqrt(u), np.log(u)) + 2.0 * t[0] * np.sqrt(u[0])
    least = most = beyond = 2.0 * t[-1] * np.sqrt(u[-1])
    if lam.size >= min(rows, other_rows):
        most = max(4.0 * np.sqrt(rank * t[-1]) - least, least)
        beyond = np.clip(_power_law_tail(t, u, rank), least, most)
    return RootTrace(float((value + beyond) / np.pi), float(max(most - beyond, beyond - least) / np.pi), weights)


def _power_law_tail(t, u, rank):
    """Returns the integral of (1) beyond the last u, with t going on as the power that it ends with until it meets rank / u."""
    before = max(len(u) - 1 - STEPS, 0)
    slope = np.clip(np.log(t[-1] / t[before]) / np.log(u[-1] / u[before]), -0.999, 0.0)
    reach = np.log(max(rank / (t[-1] * u[-1]), 1.0)) / (1.0 + slope)
    power = slope + 0.5
    until = reach if abs(power) < 1e-9 else np.expm1(power * reach) / power
    return np.sqrt(u[-1]) * t[-1] * until + 2.0 * rank * np.exp(-0.5 * reach) / np.sqrt(u[-1])


def twin_estimates(variances: np.ndarray, *, n: int, draws: int, seed: int) -> np.ndarray:
    """Returns ``[draws, D]``: lam_i chi2_n / n, the mean squares of n Gaussian samples. Draw r does not depend on ``draws``."""
    keys = ([seed, n, r] for r in range(draws))
    return np.stack([variances * np.random.default_rng(k).chisquare(n, variances.size) / n for k in keys])
