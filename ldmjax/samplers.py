"""Samplers on any `Denoiser`: one scan over the times, statistics recorded at stopping times on the way.

A step maps (z_t, t, t') to the (mean, std) of z_{t'}; the loop adds std times noise. With eps and the score read off the
denoiser (process.py), dt = t - t' > 0, w2 = dB/dt at t and DB = B(t) - B(t'):

    (1) euler_maruyama  z + dt w2 (z + 2 s),           std^2 = 2 dt w2                   VP only
    (2) exponential     e^{DB} z + 2 expm1(DB) s,      std^2 = expm1(2 DB)               VP only
    (3) euler           z - dt u(z, t)                                                   u: the flow ODE's velocity
    (4) heun            z - dt (u(z, t) + u(z - dt u, t')) / 2, Euler where sigma(t') = 0
    (5) ddim(eta)       alpha' E[z_0|z] + c eps,       std^2 = eta^2 tau^2,  c^2 = sigma'^2 - eta^2 tau^2,
                        tau^2 = sigma'^2 (1 - (sigma' alpha / (alpha' sigma))^2);        ddpm: eta = 1

*Truncate* drops the last steps of a fixed grid (the stops of `sample`); *re-space* spends the same number of steps on each
shorter interval (`sample_respaced`). Readouts of a stopped state: "state" z_t, "rescaled" z_t / sqrt(alpha^2 + sigma^2),
"denoised" E[z_0 | z_t]. Sources: Song et al., arXiv 2011.13456; Song, Meng & Ermon, arXiv 2010.02502; THEORY.md §5, §7.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax.process import Denoiser, epsilon_from_x0, score_from_x0, velocity_from_x0
from ldmjax.schedules import Schedule, VariancePreserving
from ldmjax.typing import ArrayLike

Step = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
SAMPLERS = ("euler_maruyama", "exponential", "euler", "heun", "ddpm", "ddim")
READOUTS = ("state", "rescaled", "denoised")


def make_step(denoiser: Denoiser, schedule: Schedule, *, sampler: str, eta: float = 0.0) -> Step:
    """The step function (z ``[B, D]``, t, t') -> (mean ``[B, D]``, std scalar) of a sampler, equations (1)-(5).

    Raises:
      ValueError: for an unknown sampler, an SDE sampler without a variance-preserving schedule, or eta outside [0, 1].
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if sampler in ("euler_maruyama", "exponential") and not isinstance(schedule, VariancePreserving):
        raise ValueError(f"{sampler} needs a variance-preserving schedule, got {type(schedule).__name__}")
    if not 0.0 <= eta <= 1.0 or (eta and sampler != "ddim"):
        raise ValueError(f"eta must lie in [0, 1] and needs sampler 'ddim', got {eta} with {sampler!r}")

    def predict(z, t):
        times = jnp.broadcast_to(t, z.shape[:1])
        return denoiser(z, times), times

    def euler_maruyama(z, t, t_next):
        x0, times = predict(z, t)
        noise_squared = 2.0 * (t - t_next) * schedule.w_squared(t)
        return z + 0.5 * noise_squared * (z + 2.0 * score_from_x0(x0, z, schedule, times)), jnp.sqrt(noise_squared)

    def exponential(z, t, t_next):
        x0, times = predict(z, t)
        elapsed = schedule.B(t) - schedule.B(t_next)
        mean = jnp.exp(elapsed) * z + 2.0 * jnp.expm1(elapsed) * score_from_x0(x0, z, schedule, times)
        return mean, jnp.sqrt(jnp.expm1(2.0 * elapsed))

    def velocity(z, t):
        x0, times = predict(z, t)
        return velocity_from_x0(x0, z, schedule, times)

    def euler(z, t, t_next):
        return z - (t - t_next) * velocity(z, t), jnp.zeros(())

    def heun(z, t, t_next):
        here = velocity(z, t)
        guess = z - (t - t_next) * here
        clean = schedule.sigma(t_next) == 0
        there = velocity(guess, jnp.where(clean, t, t_next))
        return z - (t - t_next) * jnp.where(clean, here, 0.5 * (here + there)), jnp.zeros(())

    def ddim(z, t, t_next):
        x0, times = predict(z, t)
        alpha, sigma, alpha_next, sigma_next = (f(s) for s in (t, t_next) for f in (schedule.alpha, schedule.sigma))
        ratio = jnp.minimum(sigma_next * alpha / (alpha_next * sigma), 1.0)
        tau = sigma_next * jnp.sqrt(1.0 - ratio**2)
        scale = 1.0 if sampler == "ddpm" else eta
        direction = jnp.sqrt(jnp.maximum(sigma_next**2 - (scale * tau) ** 2, 0.0))
        return alpha_next * x0 + direction * epsilon_from_x0(x0, z, schedule, times), scale * tau

    steps = {"euler_maruyama": euler_maruyama, "exponential": exponential, "euler": euler, "heun": heun}
    return steps.get(sampler, ddim)


def read_out(denoiser: Denoiser, schedule: Schedule, readout: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function (z ``[B, D]``, t) -> ``[B, D]`` that turns a stopped state into a sample."""
    if readout not in READOUTS:
        raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {readout!r}")
    if readout == "denoised":
        return lambda z, t: denoiser(z, jnp.broadcast_to(t, z.shape[:1]))
    if readout == "rescaled":
        return lambda z, t: z / jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
    return lambda z, t: z


def _make_advance(step: Step, key: jax.Array, mask):
    """The loop's body (times, k, z at times[k]) -> z at times[k + 1]."""

    def advance(times, k, z):
        mean, std = step(z, times[k], times[k + 1])
        # The padded axis is drawn first, so that padding does not change a run's numbers.
        noise = jax.random.normal(jax.random.fold_in(key, k), z.shape[::-1], z.dtype).T
        return mean + std * noise * mask

    return advance


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    start: jax.Array,
    key: jax.Array,
    *,
    times: np.ndarray,
    stops: ArrayLike,
    statistic: Callable[[jax.Array, jax.Array], Any],
    sampler: str,
    eta: float = 0.0,
    readout: str = "state",
    mask: jax.Array | float = 1.0,
) -> Any:
    """Runs one chain of samples and records ``statistic`` at every stop (mode "truncate"), in memory of one state.

    Args:
      denoiser: E[z_0 | z_t].
      schedule: the forward process.
      start: states at times[0], ``[B, D]``.
      key: for the sampler's noise. The noise of step k is the same whatever the stops: common random numbers.
      times: ``[N + 1]``, strictly decreasing.
      stops: increasing step counts in 0..N; stop k reads the state at times[k].
      statistic: maps (readout ``[B, D]``, t) to a pytree; called once per stop inside the compiled loop.
      sampler: one of `SAMPLERS`.
      eta: for "ddim".
      readout: one of `READOUTS`.
      mask: ``[D]``, 0 in padded components.

    Returns:
      The statistic's pytree with a leading axis of stops.

    Raises:
      ValueError: for times that do not fall or stops that do not rise within 0..N.
    """
    times, stops = np.asarray(times, np.float64), np.asarray(stops, int)
    if times.ndim != 1 or not np.all(np.diff(times) < 0):
        raise ValueError("times must be [N + 1], strictly decreasing")
    if stops.size == 0 or np.any(np.diff(stops) <= 0) or stops[0] < 0 or stops[-1] >= times.size:
        raise ValueError(f"stops must rise strictly within 0..{times.size - 1}, got {stops.tolist()}")
    advance = _make_advance(make_step(denoiser, schedule, sampler=sampler, eta=eta), key, mask)
    read = read_out(denoiser, schedule, readout)
    grid = jnp.asarray(times, start.dtype)

    def to_stop(z, bounds):
        z = jax.lax.fori_loop(bounds[0], bounds[1], partial(advance, grid), z)
        t = grid[bounds[1]]
        return z, statistic(read(z, t), t)

    bounds = jnp.stack([jnp.asarray([0, *stops[:-1]]), jnp.asarray(stops)], axis=1)
    return jax.lax.scan(to_stop, start, bounds)[1]


def sample_respaced(
    denoiser: Denoiser,
    schedule: Schedule,
    start: jax.Array,
    key: jax.Array,
    *,
    time_grids: np.ndarray,
    statistic: Callable[[jax.Array, jax.Array], Any],
    sampler: str,
    eta: float = 0.0,
    readout: str = "state",
    mask: jax.Array | float = 1.0,
) -> Any:
    """Runs a full chain of N steps for every stopping time (mode "re-space"), all from the same start and noise.

    Args:
      denoiser: as in `sample`.
      schedule: as in `sample`.
      start: ``[B, D]``, states at the common first time.
      key: as in `sample`.
      time_grids: ``[S, N + 1]``, each row strictly decreasing to its own stopping time.
      statistic: as in `sample`.
      sampler: as in `sample`.
      eta: as in `sample`.
      readout: as in `sample`.
      mask: as in `sample`.

    Returns:
      The statistic's pytree with a leading axis of stopping times ``[S]``.
    """
    time_grids = np.asarray(time_grids, np.float64)
    if time_grids.ndim != 2 or not np.all(np.diff(time_grids, axis=1) < 0):
        raise ValueError("time_grids must be [S, N + 1], every row strictly decreasing")
    advance = _make_advance(make_step(denoiser, schedule, sampler=sampler, eta=eta), key, mask)
    read = read_out(denoiser, schedule, readout)

    def one_grid(grid):
        z = jax.lax.fori_loop(0, time_grids.shape[1] - 1, partial(advance, grid), start)
        return statistic(read(z, grid[-1]), grid[-1])

    return jax.lax.map(one_grid, jnp.asarray(time_grids, start.dtype))
