"""Tables of discretisation errors: the recursions of `discretised` for many samplers at once, one compiled float64 program.

On a grid of N equal steps from t_max to t_end, with m, w2, dt and DB as there and Euler's factor e = 1 + dt w2 (1 - m):

    (1) V_N = gain^2 V_0 + noise is affine in the start law: all starts share gain' = f gain, noise' = f^2 noise + n
    (2) euler_maruyama  f = 1 + dt w2 (1 - 2m)        n = 2 dt w2
        exponential     f = 1 + expm1(DB) (1 - 2m)    n = expm1(2 DB)
        euler_ode       f = e                         n = 0
        heun_ode        f = (1 + e e') / 2            n = 0        e' is Euler's factor of the next, equally long step

A row of the program is one (N, t_end). All schemes share its weights m, and N is a traced number: one program serves all rows.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldmjax.devices import MappedRuns, collect, map_runs, padded_count
from ldmjax.loops import repeat
from ldmjax.oracle.capped import STARTS, check_cap, check_choice
from ldmjax.oracle.discretised import SCHEMES
from ldmjax.oracle.stopped import check_spectra, stopped_variances
from ldmjax.schedules import VARIANCE_PRESERVING_METHODS, Schedule, check_schedule, on_host, uniform_times
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
) -> Float[np.ndarray, "schemes steps T starts"]:
    """Returns squared W2 between the data and the end of each discretised sampler, all D components kept.

    The same numbers as `sampler_variances` on `uniform_times` and `w2_squared_from_variances`, one call for all. The first
    call with new schemes or new sizes compiles. With several processes all of them have to call: they share the work. A TPU
    has no float64, XLA emulates it with fewer digits (not tried): set JAX_PLATFORMS=cpu there.

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
      float64 ``[schemes, steps, T, starts]``. An end law that is infinite or undefined is infinitely far: heun_ode at
      t_end = 0 where lamh = 0, without a cap.

    Raises:
      ValueError: if the schedule is not variance preserving, or an argument is empty or out of range.
    """
    check_schedule(schedule, VARIANCE_PRESERVING_METHODS, what="discretisation_table")
    schedule = on_host(schedule)
    variances, estimated = check_spectra(variances, estimated_variances)
    cap, t_ends = check_cap(cap), np.atleast_1d(np.asarray(t_ends, np.float64))
    if not (len(schemes) and len(steps) and t_ends.size and len(starts)):
        raise ValueError("schemes, steps, t_ends and starts must not be empty")
    for scheme in schemes:
        check_choice("scheme", scheme, SCHEMES)
    for start in starts:
        check_choice("start", start, STARTS)
    marginal = stopped_variances(estimated, schedule.sigma(schedule.t_max) ** 2)[:, 0]
    start_laws = np.stack([marginal if start == "marginal" else np.ones_like(marginal) for start in starts])
    grids = [uniform_times(schedule, count, t_min=float(t_end)) for count in steps for t_end in t_ends]
    counts, coefficients = _rows(schedule, grids)
    order = _dealt(counts)
    distinct = tuple(scheme for scheme in SCHEMES if scheme in schemes)  # in one order: one program for a set
    # In float32 the sums would lose half of their digits. No random numbers are drawn, and nothing outside sees the float64.
    with jax.enable_x64(True):
        spectra = variances, estimated, start_laws, np.float64(cap)
        dealt = collect(_program(distinct)(spectra, counts[order], coefficients[order]), len(order))
    found = np.empty_like(dealt)
    found[order] = dealt
    table = found[: len(grids)].reshape(len(steps), t_ends.size, len(distinct), len(starts))
    return np.moveaxis(table, 2, 0)[[distinct.index(scheme) for scheme in schemes]]


def _rows(schedule, grids):
    """Returns each grid's N ``[R]`` and (noise_var, dt w2, expm1(DB)) ``[R, N_max + 1, 3]``, R padded with rows of no steps."""
    counts = np.zeros(padded_count(len(grids)), int)
    coefficients = np.zeros((counts.size, max(map(len, grids)), 3))
    for row, times in enumerate(grids):
        counts[row] = times.size - 1
        # The step after the last is not taken; heun_ode asks what Euler's factor would be there.
        dt = -np.diff(times, append=2.0 * times[-1] - times[-2])
        growth = np.expm1(-np.diff(schedule.B(times), append=0.0))
        coefficients[row, : times.size] = np.stack(
            [schedule.sigma(times) ** 2, dt * schedule.w_squared(times), growth], axis=1
        )
    return counts, coefficients


def _dealt(counts):
    """Returns the order in which devices, a block of rows each, get equal work: dealt like cards, the longest first."""
    return np.argsort(-counts, kind="stable").reshape(-1, jax.device_count()).T.ravel()


@functools.lru_cache
def _program(schemes: tuple[str, ...]) -> MappedRuns:
    return map_runs(functools.partial(_distances, schemes))


def _distances(schemes, spectra, count, coefficients):
    """Returns one row: squared W2 ``[schemes, starts]``, inf where the end law is infinite or undefined."""
    variances, estimated, start_laws, cap = spectra

    def weights_and_euler(k):
        noise_var, drift, _ = coefficients[k]
        weights = jnp.minimum(cap, 1.0 / (estimated * (1.0 - noise_var) + noise_var))  # Prop. 4
        return weights, (1.0 + drift) - drift * weights

    def advance(k, _, carry, counts):
        weights, euler, gains, noises = carry
        weights_next, euler_next = weights_and_euler(k + 1)
        _, drift, growth = coefficients[k]
        steps = {scheme: _step(scheme, weights, euler, euler_next, drift, growth) for scheme in schemes}
        gains = {scheme: steps[scheme][0] * gain for scheme, gain in gains.items()}
        noises = {scheme: steps[scheme][0] ** 2 * noise + steps[scheme][1] for scheme, noise in noises.items()}
        new = weights_next, euler_next, gains, noises
        return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, carry)

    gains = {scheme: jnp.ones_like(estimated) for scheme in schemes}
    noises = {scheme: jnp.zeros_like(estimated) for scheme in schemes if not scheme.endswith("ode")}
    carry, most = (*weights_and_euler(0), gains, noises), len(coefficients) - 1
    *_, gains, noises = repeat(advance, carry, first=0, last=count, length=most)
    ends = jnp.stack([gains[scheme] ** 2 * start_laws + noises.get(scheme, 0.0) for scheme in schemes])
    distances = jnp.sum((jnp.sqrt(ends) - jnp.sqrt(variances)) ** 2, axis=-1)
    return jnp.where(jnp.isnan(distances), jnp.inf, distances)


def _step(scheme, weights, euler, euler_next, drift, growth):
    """Returns one step's factor f and noise n, equation (2); ``drift`` is dt w2 and ``growth`` expm1(DB)."""
    if scheme == "euler_maruyama":
        return (1.0 + drift) - 2.0 * drift * weights, 2.0 * drift
    if scheme == "exponential":
        return (1.0 + growth) - 2.0 * growth * weights, growth * (growth + 2.0)
    return (euler if scheme == "euler_ode" else 0.5 + 0.5 * (euler * euler_next)), 0.0
