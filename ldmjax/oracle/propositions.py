"""Every proposition of arXiv 2510.08409 checked on a given pair of spectra, by brute force against the closed form.

A check answers "holds", "fails" (with a counter-example) or "does not apply" (its assumptions are not met by these
spectra), and gives the slack: how far the tightest case is from failing, in the units that the check names.
docs/theory.md, section 9, lists where the printed statements needed correction; the corrected ones are checked.
"""

import dataclasses
import math

import numpy as np

from ldmjax.oracle.capped import capped_score_weights, capped_variances, corollary_dimensions, dimension_bounds
from ldmjax.oracle.stopped import (
    best_noise_var,
    best_stop,
    check_spectra,
    component_is_useful,
    slope_terms,
    stopped_variances,
    w2_squared_curve,
    w2_squared_from_variances,
)
from ldmjax.typing import ArrayLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropositionCheck:
    """One proposition on one spectrum.

    Attributes:
      name: "proposition_1" ... "corollary_1".
      holds: True, False, or None when the assumptions are not met.
      slack: distance from failing (>= 0 when it holds), NaN when it does not apply.
      detail: what the slack measures, which assumption is not met, or the counter-example.
    """

    name: str
    holds: bool | None
    slack: float
    detail: str


def check_propositions(
    variances: ArrayLike,
    estimated_variances: ArrayLike,
    *,
    cap: float = 20.0,
    noise_var_max: float = 0.99,
    grid_size: int = 2001,
) -> dict[str, PropositionCheck]:
    """Checks Propositions 1, 2, 3/8, 4, 5 and Corollary 1 on the given spectra.

    Args:
      variances: ``[D]``, largest first.
      estimated_variances: ``[D]``, same order.
      cap: C > 1, finite, for Propositions 4 and 5 and the corollary.
      noise_var_max: noise variance nu_T at which sampling starts, in (0, 1).
      grid_size: noise levels of the brute-force search.

    Returns:
      ``{name: PropositionCheck}`` in the paper's order.
    """
    variances, estimated = check_spectra(variances, estimated_variances)
    if not (math.isfinite(cap) and cap > 1):
        raise ValueError(f"cap must be finite and > 1, got {cap}")
    if not 0 < noise_var_max < 1:
        raise ValueError(f"noise_var_max must lie in (0, 1), got {noise_var_max}")
    # Half the grid is geometric: on real spectra the best stops crowd towards nu = 0.
    half = grid_size // 2
    grid = np.union1d(np.linspace(0, noise_var_max, half), np.geomspace(1e-10, 1, half) * noise_var_max)
    checks = [
        _proposition_1(variances, estimated, noise_var_max, grid),
        _proposition_2(variances, estimated, grid),
        _proposition_3(variances, estimated, noise_var_max),
        _proposition_4(estimated, cap, grid[grid > 0]),
        _proposition_5(variances, estimated, cap, noise_var_max),
        _corollary_1(variances, estimated, cap, noise_var_max),
    ]
    return {check.name: check for check in checks}


def _not_applicable(name, why):
    return PropositionCheck(name=name, holds=None, slack=math.nan, detail=why)


def _proposition_1(variances, estimated, noise_var_max, grid):
    """Returns the closed-form best stop is never beaten by the grid, and is 0 exactly where the slope at 0 is >= 0."""
    best = best_noise_var(variances, estimated, noise_var_max=noise_var_max)
    scale = np.sum(variances) + np.sum(estimated)
    worst, where = math.inf, ""
    slope_at_zero = np.cumsum(slope_terms(variances, estimated, np.zeros(1), 1.0)[:, 0])
    curve = w2_squared_curve(variances, estimated, grid)
    at_best = w2_squared_curve(variances, estimated, best)
    for d in range(variances.size):
        slack = (np.min(curve[d]) - at_best[d, d]) / scale + 1e-12
        if (slope_at_zero[d] >= 0) != (best[d] == 0):
            slack = -abs(slope_at_zero[d])
        if slack < worst:
            worst, where = slack, f"latent_dim {d + 1}, nu* = {best[d]:.6g}"
    detail = "brute-force minimum minus closed form, over tr variances + tr estimate (1e-12 allowed): " + where
    return PropositionCheck(name="proposition_1", holds=bool(worst >= 0), slack=float(worst), detail=detail)


def _proposition_2(variances, estimated, grid):
    """Adding component i lowers the distance iff g_i < 4 lam_i."""
    curve = w2_squared_curve(variances, estimated, grid)
    change = np.diff(np.concatenate([np.full((1, grid.size), np.sum(variances)), curve]), axis=0)
    margin = 4.0 * variances[:, None] - stopped_variances(estimated, grid)
    # Within rounding of equality the sign of the change means nothing; a component with g = 0 changes nothing at all.
    scale = np.sum(variances) + np.sum(estimated)
    decided = (np.abs(margin) > 1e-9 * scale) & (np.abs(change) > 1e-13 * scale)
    useful = component_is_useful(variances, estimated, grid)
    wrong = decided & (useful != (change <= 0))
    slack = float(np.min(np.abs(margin), initial=math.inf, where=decided))
    if np.any(wrong):
        i, k = np.argwhere(wrong)[0]
        detail = f"component {i + 1} at nu = {grid[k]:.6g} changes W2^2 by {change[i, k]:.6g}"
        return PropositionCheck(name="proposition_2", holds=False, slack=-float(np.abs(margin[i, k])), detail=detail)
    detail = "smallest |4 lam - g| over components and noise levels; each sign agrees with the change of W2^2"
    return PropositionCheck(name="proposition_2", holds=True, slack=slack, detail=detail)


def _proposition_3(variances, estimated, noise_var_max):
    """Isotropic on d0 dimensions, zero elsewhere: the joint optimum keeps d0 dimensions and stops at nu*(d0)."""
    name = "proposition_3"
    support = int(np.count_nonzero(variances))
    if support == 0 or np.ptp(variances[:support]) > 1e-12 * variances[0]:
        return _not_applicable(name, "variances are not isotropic on a subspace")
    if np.any(estimated[:support] > 4 * variances[0]) or np.any(estimated[support:] > 0):
        return _not_applicable(name, "estimate is off the event lamh <= 4 lam")
    best = best_noise_var(variances, estimated, noise_var_max=noise_var_max)
    if np.any(stopped_variances(estimated, best[support - 1])[:support] > 4 * variances[0]):
        return _not_applicable(name, "a component is not useful at nu*(d0): not the likely event")
    dim, noise_var, distance = best_stop(variances, estimated, noise_var_max=noise_var_max)
    expected = float(w2_squared_curve(variances, estimated, best[support - 1])[support - 1, 0])
    slack = distance - expected + 1e-12 * float(np.sum(variances))
    detail = f"joint optimum d = {dim}, nu = {noise_var:.6g}; stated d = {support}, nu = {best[support - 1]:.6g}"
    return PropositionCheck(name=name, holds=bool(slack >= 0), slack=slack, detail=detail)


def _proposition_4(estimated, cap, grid):
    """Returns the capped weight minimises the score-matching loss m^2 g - 2 m over [-C, C], against a dense search."""
    weights = capped_score_weights(estimated, grid, cap)
    g = stopped_variances(estimated, grid)
    loss = weights**2 * g - 2.0 * weights
    candidates = cap * np.linspace(-1, 1, 401)
    best_found = np.min([m**2 * g - 2.0 * m for m in candidates], axis=0)
    slack = float(np.min((best_found - loss) / np.abs(loss))) + 1e-12
    detail = "best loss of 401 weights in [-C, C] minus the closed form's, relative (1e-12 allowed)"
    return PropositionCheck(name="proposition_4", holds=bool(slack >= 0), slack=slack, detail=detail)


def _best_dimension_at_end(variances, estimated, cap, noise_var_max):
    end = capped_variances(estimated, 0.0, noise_var_max=noise_var_max, cap=cap, start="standard", dynamics="sde")
    return int(np.argmin(w2_squared_from_variances(variances, end)[:, 0])) + 1


def _proposition_5(variances, estimated, cap, noise_var_max):
    """d1 <= d_min <= d2, and d_min <= max(1, d2 - 1) when d2's set is not empty; SDE from N(0, I), at the end."""
    name = "proposition_5"
    if np.any(estimated > 2 * variances):
        i = int(np.argmax(estimated - 2 * variances))
        detail = f"off the event lamh <= 2 lam: component {i + 1} has {estimated[i]:.6g} > 2 * {variances[i]:.6g}"
        return _not_applicable(name, detail)
    if noise_var_max < 0.5:
        return _not_applicable(name, "needs noise_var_max >= 1/2 (B_T >= ln(2)/2)")
    d_min = _best_dimension_at_end(variances, estimated, cap, noise_var_max)
    d1, d2 = dimension_bounds(variances, estimated, cap)
    if np.any(4 * variances <= 1.0 / (2.0 * cap - 1.0)):
        d2 = max(1, d2 - 1)
    slack = float(min(d_min - d1, d2 - d_min))
    detail = f"components between bound and best: {d1} <= {d_min} <= {d2}"
    return PropositionCheck(name=name, holds=bool(slack >= 0), slack=slack, detail=detail)


def _corollary_1(variances, estimated, cap, noise_var_max):
    """For lam_i = q^-i, q > 16, q <= C <= q^D: the best dimension is d or d + 1 with lamh_{d+1} <= 1/C <= lamh_d.

    Its proof needs d2 <= d + 2, that is 4 lam_{d+2} <= 1/(2C-1): q > 16 gives it if also lamh_{d+1} >= lam_{d+1} / 2.
    """
    name = "corollary_1"
    index = 1 + np.arange(variances.size)
    q = 1.0 / variances[0] if variances[0] > 0 else 0.0
    applies = (
        q > 16
        and np.allclose(variances, q ** -index.astype(float), rtol=1e-9, atol=0)
        and q <= cap <= q**variances.size
        and np.all((variances <= 2 * estimated) & (estimated <= 2 * variances))
        and noise_var_max >= 0.5
    )
    if not applies:
        detail = "needs lam_i = q^-i with q > 16, q <= C <= q^D, lam/2 <= lamh <= 2 lam, noise_var_max >= 1/2"
        return _not_applicable(name, detail)
    d_min = _best_dimension_at_end(variances, estimated, cap, noise_var_max)
    low, high = corollary_dimensions(estimated, cap)
    slack = float(min(d_min - low, high - d_min))
    return PropositionCheck(name=name, holds=bool(slack >= 0), slack=slack, detail=f"{low} <= {d_min} <= {high}")
