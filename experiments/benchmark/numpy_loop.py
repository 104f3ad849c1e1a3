"""The table of discretisation errors as a plain NumPy loop, entry after entry: the opponent of `oracle.discretisation_table`.

Lean, as a competent user would write it: only the newest law is kept, and only the sum over all components is taken.
"""

import numpy as np

from ldmjax.schedules import uniform_times


def discretisation_table(variances, estimated_variances, schedule, *, schemes, steps, t_ends, starts, cap=np.inf):
    """Squared W2 ``[schemes, steps, T, starts]``; arguments as there, unchecked."""
    table = np.empty((len(schemes), len(steps), len(t_ends), len(starts)))
    for entry in np.ndindex(table.shape):
        scheme, count, t_end, start = (axis[i] for axis, i in zip((schemes, steps, t_ends, starts), entry, strict=True))
        times = uniform_times(schedule, count, t_min=t_end)
        end = _end_law(estimated_variances, schedule, times, scheme, start, cap)
        table[entry] = np.sum((np.sqrt(end) - np.sqrt(variances)) ** 2)
    return table


def _end_law(estimated, schedule, times, scheme, start, cap):
    noise_var, rate, dt = schedule.sigma(times) ** 2, schedule.w_squared(times), -np.diff(times)
    drift, growth = dt * rate[:-1], np.expm1(-np.diff(schedule.B(times)))
    law = estimated * (1 - noise_var[0]) + noise_var[0] if start == "marginal" else np.ones_like(estimated)
    weights = np.minimum(cap, 1 / (estimated * (1 - noise_var[0]) + noise_var[0]))
    for k in range(len(dt)):
        weights_next = np.minimum(cap, 1 / (estimated * (1 - noise_var[k + 1]) + noise_var[k + 1]))
        if scheme == "euler_maruyama":
            law = ((1 + drift[k]) - 2 * drift[k] * weights) ** 2 * law + 2 * drift[k]
        elif scheme == "exponential":
            law = ((1 + growth[k]) - 2 * growth[k] * weights) ** 2 * law + growth[k] * (growth[k] + 2)
        elif scheme == "euler_ode":
            law = ((1 + drift[k]) - drift[k] * weights) ** 2 * law
        else:
            here, there = rate[k] * (1 - weights), rate[k + 1] * (1 - weights_next)
            law = (1 + 0.5 * dt[k] * (here + there * (1 + dt[k] * here))) ** 2 * law
        weights = weights_next
    return law
