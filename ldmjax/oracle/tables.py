"""Tables of discretisation errors: the recursions of `discretised` for many samplers at once, nothing computed twice.

On a grid of N equal steps from t_max to t_end, with m, w2, dt and DB as there and Euler's factor e = 1 + dt w2 (1 - m):

    (1) V_N = gain^2 V_0 + noise is affine in the start law: all starts share gain' = f gain, noise' = f^2 noise + n
    (2) euler_maruyama  f = 1 + dt w2 (1 - 2m)        n = 2 dt w2
        exponential     f = 1 + expm1(DB) (1 - 2m)    n = expm1(2 DB)
        euler_ode       f = e                         n = 0
        heun_ode        f = (1 + e e') / 2            n = 0        e' is Euler's factor of the next, equally long step

All schemes share the weights m of a time, and all t_end one loop over N steps, on ``[T, D]`` arrays that stay in the cache.
"""

from collections.abc import Sequence

import numpy as np

from ldmjax.oracle.capped import STARTS, check_cap, check_choice
from ldmjax.oracle.discretised import SCHEMES
from ldmjax.oracle.stopped import check_spectra, stopped_variances
from ldmjax.schedules import Schedule, VariancePreserving, uniform_times
from ldmjax.typing import ArrayLike


def discretisation_table(
    variances: ArrayLike,
    estimated_variances: ArrayLike,
    schedule: Schedule,
    *,
    schemes: Sequence[str],
    steps: Sequence[int],
    t_ends: ArrayLike,
    starts: Sequence[str],
    cap: float = np.inf,
) -> np.ndarray:
    """Squared W2 between the data and the end of each discretised sampler, all D components kept.

    The same numbers as `sampler_variances` on `uniform_times` and `w2_squared_from_variances`, one call for all.

    Args:
      variances: ``[D]``, largest first.
      estimated_variances: lamh ``[D]``, what the score assumes.
      schedule: a variance-preserving schedule; sampling starts at its t_max.
      schemes: of "euler_maruyama", "exponential", "euler_ode", "heun_ode".
      steps: numbers of steps N >= 1. (arXiv 2405.14250 counts grid points, one more.)
      t_ends: ``[T]`` (a scalar gives T = 1), forward times >= 0 at which sampling ends.
      starts: of "marginal" and "standard", as in `sampler_variances`.
      cap: bound C > 1 on the score's weights, inf for none.

    Returns:
      ``[schemes, steps, T, starts]``. An end law that is infinite or undefined is infinitely far: heun_ode at
      t_end = 0 where lamh = 0, without a cap.

    Raises:
      ValueError: if the schedule is not variance preserving, or an argument is out of range.
    """
    if not isinstance(schedule, VariancePreserving):
        raise ValueError(f"discretisation_table needs a variance-preserving schedule, got {type(schedule).__name__}")
    variances, estimated = check_spectra(variances, estimated_variances)
    cap, t_ends = check_cap(cap), np.atleast_1d(np.asarray(t_ends, np.float64))
    for scheme in schemes:
        check_choice("scheme", scheme, SCHEMES)
    for start in starts:
        check_choice("start", start, STARTS)
    start_laws = {"marginal": stopped_variances(estimated, schedule.sigma(schedule.t_max) ** 2)[:, 0], "standard": 1.0}
    result = np.empty((len(schemes), len(steps), t_ends.size, len(starts)))
    # An infinite weight (lamh = 0 at t = 0 without a cap) makes heun_ode's end law infinite or NaN.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for j, count in enumerate(steps):
            times = np.stack([uniform_times(schedule, count, t_min=float(t_end)) for t_end in t_ends])
            gains, noises = _all_steps(estimated, schedule, times, schemes=schemes, cap=cap)
            for i, scheme in enumerate(schemes):
                for s, start in enumerate(starts):
                    end = gains[scheme] ** 2 * start_laws[start] + noises[scheme]
                    result[i, j, :, s] = _distance(variances, end)
    return result


def _all_steps(estimated, schedule, times, *, schemes, cap):
    """Gain and noise of equation (1), ``[T, D]`` for each scheme, on the grids ``times`` ``[T, N + 1]``."""
    # The step after the last is not taken; heun_ode asks what Euler's factor would be there.
    dt = -np.diff(times, append=2.0 * times[:, -1:] - times[:, -2:-1])
    # One [T, 1] per time, against the components.
    noise_var, drift, growth = (
        x.T[:, :, None]
        for x in (schedule.sigma(times) ** 2, dt * schedule.w_squared(times), np.expm1(-np.diff(schedule.B(times))))
    )
    gains, noises = {scheme: np.ones((len(times), estimated.size)) for scheme in schemes}, dict.fromkeys(schemes, 0.0)

    def weights_and_euler(k):
        weights = np.minimum(cap, 1.0 / (estimated * (1.0 - noise_var[k]) + noise_var[k]))  # Prop. 4
        return weights, (1.0 + drift[k]) - drift[k] * weights

    weights, euler = weights_and_euler(0)
    for k in range(times.shape[1] - 1):
        weights_next, euler_next = weights_and_euler(k + 1)
        for scheme, gain in gains.items():
            factor, added = _step(scheme, weights, euler, euler_next, drift[k], growth[k])
            gain *= factor
            if not scheme.endswith("ode"):
                noises[scheme] = noises[scheme] * factor**2 + added
        weights, euler = weights_next, euler_next
    return gains, noises


def _step(scheme, weights, euler, euler_next, drift, growth):
    """One step's factor f and noise n, equation (2); ``drift`` is dt w2 and ``growth`` expm1(DB)."""
    if scheme == "euler_maruyama":
        return (1.0 + drift) - 2.0 * drift * weights, 2.0 * drift
    if scheme == "exponential":
        return (1.0 + growth) - 2.0 * growth * weights, growth * (growth + 2.0)
    return (euler if scheme == "euler_ode" else 0.5 + 0.5 * (euler * euler_next)), 0.0


def _distance(variances, end):
    """Squared W2 ``[T]`` between the data and end laws ``[T, D]``; inf where one is infinite or undefined."""
    end = np.where(np.isnan(end), np.inf, end)
    return np.sum((np.sqrt(end) - np.sqrt(variances)) ** 2, axis=1)
