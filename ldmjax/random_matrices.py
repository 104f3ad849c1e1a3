r"""What sample covariances say of population covariances when there are few rows for many features.

Let A and R be covariances with roots of product Sigma = A^{1/2} R A^{1/2}, and lam_k the r positive eigenvalues of the same
product of *sample* covariances, with N and M degrees of freedom. The sum of sqrt(lam_k) that the Fréchet distance needs is too
small, by about r^2 / 8M of its mean: with r / M fixed no number of features makes that go away. But a sample covariance tells
the function trace Sigma (1 + u Sigma)^{-1} of its population without bias as r grows (Marchenko & Pastur 1967; Silverstein
1995), and

    (1)  tr Sigma^{1/2} = 1/pi int_0^inf t(u) u^{-1/2} du,      t(u) = tr Sigma (1 + u Sigma)^{-1}

needs no more. Along x in (0, inf), with s(x) the sum of 1 / (lam_k + x) and the samples' own equation applied to R, then to A,

    (2)  v = (s + (M - r) / x) / M,      u = v (1 - M/N (1 - x v)),      t = N (1/u - 1/v),      or M (1/v - x) if A is known.

An eigenvalue's weight in (1), 1/2 lam^{-1/2} without all this, is the derivative

    (3)  w_k = 1/pi int_0^inf u(x)^{-1/2} (lam_k + x)^{-2} dx.

Where rows are fewer than dimensions of the population (r = M), u ends at a finite u_c: directions that no row shows add an
unknown amount to (1). As t falls and u t rises to at most the population's rank p, what lies beyond u_c is between 2 t
sqrt(u_c) / pi and
(4 sqrt(p t) - 2 t sqrt(u_c)) / pi, t = t(u_c); a power law through u_c, up to p / u, stands in between.

Source for two samples and another form of the integral: Tiomoko & Couillet, arXiv 1903.03447. (1)-(3) were derived anew and are
checked by simulation.
"""

from typing import NamedTuple

import numpy as np

NEGLIGIBLE = 1e-12  # eigenvalues below this share of the largest are rounding
STEPS = 8  # of the integrals' grid, per factor e in x
BEYOND = 10.0  # by how many factors e the grid goes beyond the eigenvalues


class RootTrace(NamedTuple):
    """An estimate of tr Sigma^{1/2}.

    Attributes:
      value: the estimate.
      unknown: half-width of what no row shows: the truth may lie that far off on top of its sampling error. 0 if r < M and N.
      weights: ``[K]``, derivative of ``value`` in each of the given eigenvalues, equation (3); 0 for negligible ones.
    """

    value: float
    unknown: float
    weights: np.ndarray


def root_trace(eigenvalues: np.ndarray, *, rows: int, other_rows: float = np.inf, rank: int) -> RootTrace:
    """Estimates tr Sigma^{1/2}, equations (1)-(3).

    Args:
      eigenvalues: ``[K]`` of a product of two sample covariances (divided by their degrees of freedom), ascending.
      rows: M, degrees of freedom of the one.
      other_rows: N >= those of the other; infinite if that covariance is known.
      rank: the largest rank that the population can have; used where rows are too few to show it.
    """
    kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1]
    lam = eigenvalues[kept]
    if not lam.size:
        return RootTrace(0.0, 0.0, np.zeros(len(eigenvalues)))
    ends = np.log(lam[-1]) + BEYOND, np.log(lam[0]) - BEYOND
    x = np.exp(np.linspace(*ends, int(STEPS * (ends[0] - ends[1]))))
    resolvent = 1.0 / (lam + x[:, None])
    v = (resolvent.sum(axis=1) + (rows - lam.size) / x) / rows
    if np.isinf(other_rows):
        u, t = v, rows * (1.0 / v - x)
    else:
        u = v * (1.0 - rows / other_rows * (1.0 - x * v))
        t = other_rows * (1.0 / u - 1.0 / v)
    root = np.sqrt(u)
    value = np.trapezoid(t * root, np.log(u)) + 2.0 * t[0] * root[0]
    least = 2.0 * t[-1] * root[-1]
    unknown = 0.0
    if lam.size < min(rows, other_rows):
        value += least
    else:
        beyond = _power_law_tail(t, u, rank)
        most = max(4.0 * np.sqrt(rank * t[-1]) - least, least)
        value += np.clip(beyond, least, most)
        unknown = max(most - beyond, beyond - least)
    weights = np.zeros(len(eigenvalues))
    within = -np.trapezoid((resolvent**2) * (x / root)[:, None], np.log(x), axis=0)
    weights[kept] = (within + 2.0 / np.sqrt(x[0])) / np.pi
    return RootTrace(float(value / np.pi), float(unknown / np.pi), weights)


def _power_law_tail(t, u, rank):
    """The integral of (1) beyond the last u, with t going on as the power that it ends with until it meets rank / u."""
    slope = np.clip(np.log(t[-1] / t[-1 - STEPS]) / np.log(u[-1] / u[-1 - STEPS]), -1.0 + 1e-6, 0.0)
    meeting = u[-1] * max(rank / (t[-1] * u[-1]), 1.0) ** (1.0 / (1.0 + slope))
    power = slope + 0.5
    reach = np.log(meeting / u[-1])
    until = reach if abs(power) < 1e-9 else np.expm1(power * reach) / power
    return t[-1] * np.sqrt(u[-1]) * until + 2.0 * rank / np.sqrt(meeting)
