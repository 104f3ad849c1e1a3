"""What a competent NumPy user writes: a table of discretisation errors entry after entry, and a sampler.

Lean: only the newest law, or state, is kept, and only the sum over all components is taken.
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


def sampled_variances(variances, schedule, times, *, samples, seed):
    """Variances ``[N + 1, D]`` of Euler-Maruyama from N(0, I) with the exact score, from samples."""
    rng = np.random.default_rng(seed)
    noise_var, rate, dt = schedule.sigma(times) ** 2, schedule.w_squared(times), -np.diff(times)
    z = rng.standard_normal((samples, len(variances)))
    found = [np.mean(z**2, axis=0)]
    for k in range(len(dt)):
        weights = 1 / (variances * (1 - noise_var[k]) + noise_var[k])
        z *= 1 + dt[k] * rate[k] * (1 - 2 * weights)
        z += np.sqrt(2 * dt[k] * rate[k]) * rng.standard_normal(z.shape)
        found.append(np.mean(z**2, axis=0))
    return np.stack(found)
