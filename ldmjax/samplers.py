"""Samplers on any `Denoiser`: one scan over the times, statistics recorded at stopping times on the way.

A step maps (z_t, t, t') to the (mean, std) of z_{t'}; the loop adds std times noise. With eps and the score read off the
denoiser (process.py), dt = t - t' > 0, w2 = dB/dt at t and DB = B(t) - B(t'):

    (1) euler_maruyama  z + dt w2 (z + 2 s),           std^2 = 2 dt w2                   VP only
    (2) exponential     e^{DB} z + 2 expm1(DB) s,      std^2 = expm1(2 DB)               VP only
    (3) euler_ode       z - dt u(z, t)                                                   u: the flow ODE's velocity
    (4) heun_ode        z - dt (u(z, t) + u(z - dt u, t')) / 2, Euler where sigma(t') = 0
    (5) ddim(eta)       alpha' E[z_0|z] + c eps,       std^2 = eta^2 tau^2,  c^2 = sigma'^2 - eta^2 tau^2,
                        tau^2 = sigma'^2 (1 - (sigma' alpha / (alpha' sigma))^2);        ddpm: eta = 1
    (6) ddpm_exact      ddpm with std^2 = tau^2 + (alpha' - c alpha / sigma)^2 V,  V_i = sigma^2/alpha  d E[z_0|z]_i / d z_i
    (7) dpmpp_2m        (sigma'/sigma) z + (alpha' - alpha sigma'/sigma) D,  D = (1 + q) E[z_0|z] - q (the one before),
                        q = h / (2 h_before), h the step of log(alpha/sigma); q = 0 in the first update and the one to data

The names are the oracle's. On a `Ladder` (whole levels instead of a continuous time) heun is Heun's method in r = sigma/alpha,
d(z/alpha)/dr = eps, and its last update is Euler's: the network is evaluated on every level but the one that sampling stops on.
V in (6) is the posterior variance of each component by Tweedie's second formula; on a diagonal Gaussian the chain is then exact
at any number of steps. A sampler of your own is a function (denoiser, schedule) -> `Step`, given where a name is.

*Truncate* drops the last steps of a fixed grid (the stops of `sample`); *re-space* spends the same number of steps on each
shorter interval (`sample_respaced`). Readouts of a stopped state: "state" z_t, "rescaled" z_t / sqrt(alpha^2 + sigma^2),
"denoised" E[z_0 | z_t]. Sources: Song et al., arXiv 2011.13456; Song, Meng & Ermon, arXiv 2010.02502; Lu et al., arXiv
2211.01095 (7); Karras et al., arXiv 2206.00364 (heun in r); docs/theory.md, sections 5 and 7; docs/t_space.md, section 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldmjax import random
from ldmjax.devices import batch_size, platform, spread_samples
from ldmjax.process import Denoiser, epsilon_from_x0, score_from_x0, velocity_from_x0
from ldmjax.schedules import (
    CONTINUOUS_METHODS,
    VARIANCE_PRESERVING_METHODS,
    Ladder,
    Schedule,
    check_schedule,
    check_traceable,
)
from ldmjax.typing import ArrayLike

SAMPLERS = ("euler_maruyama", "exponential", "euler_ode", "heun_ode", "ddpm", "ddim", "ddpm_exact", "dpmpp_2m")
LADDER_SAMPLERS = ("ddim", "ddpm", "ddpm_exact", "heun", "dpmpp_2m")
NEEDED = {  # methods of the schedule that some samplers need
    "euler_maruyama": VARIANCE_PRESERVING_METHODS,
    "exponential": VARIANCE_PRESERVING_METHODS,
    "euler_ode": CONTINUOUS_METHODS,
    "heun_ode": CONTINUOUS_METHODS,
}
READOUTS = ("state", "rescaled", "denoised")
STOPS_AT_ONCE = 8  # states that an accelerator reduces to statistics together


class Step(NamedTuple):
    """One update of a sampler.

    Attributes:
      init: z ``[B, D]`` -> memory, what the sampler remembers between updates (empty for one-step samplers).
      update: (z, t, t', memory) -> (mean ``[B, D]``, std, memory); std is a scalar, ``[B, D]``, or None for no noise.
    """

    init: Callable[[jax.Array], Any]
    update: Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array | None, Any]]

    @classmethod
    def without_memory(cls, move: Callable[[jax.Array, jax.Array, jax.Array], tuple]) -> "Step":
        """Makes the step of a sampler that remembers nothing from ``move``, (z, t, t') -> (mean, std)."""
        return cls(lambda z: (), lambda z, t, t_next, memory: (*move(z, t, t_next), memory))


OwnSampler = Callable[[Denoiser, Schedule], Step]


class Noise(NamedTuple):
    """How the noise of a step is drawn.

    Attributes:
      prepare: key of the step to what ``draw`` needs; mapped over all steps before the loop.
      draw: (what was prepared, z) to standard normal noise of z's shape and type.
    """

    prepare: Callable[[jax.Array], Any]
    draw: Callable[[Any, jax.Array], jax.Array]


# A component's noise is the same whatever the padding; drawn in float32.
BY_COLUMN = Noise(random.words, lambda words, z: random.normal(words, *z.shape).astype(z.dtype))
# As jax.random draws an array.
BY_ROW = Noise(lambda key: key, lambda key, z: jax.random.normal(key, z.shape, z.dtype))


def make_step(
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    sampler: str | OwnSampler,
    eta: float = 0.0,
    final: jax.Array | float = 0.0,
) -> Step:
    """Returns the update of a sampler, equations (1)-(7).

    Args:
      denoiser: E[z_0 | z_t].
      schedule: the forward process.
      sampler: one of `SAMPLERS`, on a `Ladder` one of `LADDER_SAMPLERS`; or your own (denoiser, schedule) -> `Step`.
      eta: for "ddim", in [0, 1].
      final: where sampling stops, for "heun" on a `Ladder`.

    Raises:
      ValueError: for an unknown sampler, one that the schedule does not allow, or eta outside [0, 1].
    """
    if not isinstance(sampler, str):
        how = "a name or a function (denoiser, schedule) -> Step (Step.without_memory makes one)"
        if isinstance(sampler, Step):
            raise ValueError(f"sampler must be {how}, got a Step")
        step = sampler(denoiser, schedule)
        if not isinstance(step, Step):
            raise ValueError(f"sampler must be {how}, got a function that gives {type(step).__name__}")
        return step
    on_ladder = isinstance(schedule, Ladder)
    _check_sampler(schedule, sampler, eta)
    if sampler == "dpmpp_2m":
        return _dpmpp_2m_step(denoiser, schedule)
    if sampler in ("euler_maruyama", "exponential"):
        return Step.without_memory(_sde_step(denoiser, schedule, sampler))
    if sampler in ("ddim", "ddpm", "ddpm_exact"):
        eta = eta if sampler == "ddim" else 1.0
        return Step.without_memory(_ddim_step(denoiser, schedule, eta, exact=sampler == "ddpm_exact"))
    if on_ladder:
        return Step.without_memory(_ladder_heun_step(denoiser, schedule, final))
    return Step.without_memory(_flow_step(denoiser, schedule, sampler))


def _check_sampler(schedule, sampler, eta):
    allowed = LADDER_SAMPLERS if isinstance(schedule, Ladder) else SAMPLERS
    if sampler not in allowed:
        where = " on a ladder" if isinstance(schedule, Ladder) else ""
        raise ValueError(f"sampler{where} must be one of {', '.join(allowed)}, or a function, got {sampler!r}")
    if not isinstance(schedule, Ladder):
        methods = NEEDED.get(sampler, ("alpha", "sigma", "logsnr"))
        check_schedule(schedule, methods, what=sampler)
        check_traceable(schedule, methods)
    if sampler in ("heun", "ddpm_exact") and isinstance(schedule, Ladder) and schedule.alpha_levels[0] == 0:
        raise ValueError(f"{sampler} needs alpha > 0 at every level, got a ladder that starts at pure noise")
    if not 0.0 <= eta <= 1.0 or (eta and sampler != "ddim"):
        raise ValueError(f"eta must lie in [0, 1] and needs sampler 'ddim', got {eta} with {sampler!r}")


def _predict(denoiser, z, t):
    """Returns E[z_0 | z] and the times ``[B]`` that it was asked at."""
    times = jnp.broadcast_to(t, z.shape[:1])
    return denoiser(z, times), times


def _sde_step(denoiser, schedule, sampler):
    def euler_maruyama(z, t, t_next):
        x0, times = _predict(denoiser, z, t)
        noise_squared = 2.0 * (t - t_next) * schedule.w_squared(t)
        return z + 0.5 * noise_squared * (z + 2.0 * score_from_x0(x0, z, schedule, times)), jnp.sqrt(noise_squared)

    def exponential(z, t, t_next):
        x0, times = _predict(denoiser, z, t)
        elapsed = schedule.B(t) - schedule.B(t_next)
        mean = jnp.exp(elapsed) * z + 2.0 * jnp.expm1(elapsed) * score_from_x0(x0, z, schedule, times)
        return mean, jnp.sqrt(jnp.expm1(2.0 * elapsed))

    return euler_maruyama if sampler == "euler_maruyama" else exponential


def _flow_step(denoiser, schedule, sampler):
    def velocity(z, t):
        x0, times = _predict(denoiser, z, t)
        return velocity_from_x0(x0, z, schedule, times)

    def euler(z, t, t_next):
        return z - (t - t_next) * velocity(z, t), None

    def heun(z, t, t_next):
        here = velocity(z, t)
        guess = z - (t - t_next) * here
        clean = schedule.sigma(t_next) == 0
        there = velocity(guess, jnp.where(clean, t, t_next))
        return z - (t - t_next) * jnp.where(clean, here, 0.5 * (here + there)), None

    return euler if sampler == "euler_ode" else heun


def _coefficients(schedule, t, t_next):
    """Returns alpha, sigma, alpha', sigma'."""
    return schedule.alpha(t), schedule.sigma(t), schedule.alpha(t_next), schedule.sigma(t_next)


def _ddim_step(denoiser, schedule, eta, *, exact=False):
    def ddim(z, t, t_next):
        alpha, sigma, alpha_next, sigma_next = _coefficients(schedule, t, t_next)
        x0, times = _predict(denoiser, z, t)
        ratio = jnp.minimum(sigma_next * alpha / (alpha_next * sigma), 1.0)
        tau = sigma_next * jnp.sqrt(1.0 - ratio**2)
        direction = jnp.sqrt(jnp.maximum(sigma_next**2 - (eta * tau) ** 2, 0.0))
        mean = alpha_next * x0 + direction * epsilon_from_x0(x0, z, schedule, times)
        if not exact:
            return mean, (eta * tau if eta else None)
        posterior = sigma**2 / alpha * _jacobian_diagonal(lambda state: denoiser(state, times), z)
        return mean, jnp.sqrt(tau**2 + (alpha_next - direction * alpha / sigma) ** 2 * jnp.maximum(posterior, 0.0))

    return ddim


def _jacobian_diagonal(function, z):
    """Returns the derivatives d function(z)_i / d z_i ``[B, D]``, one forward-mode derivative per component."""

    def component(i):
        return jax.jvp(function, (z,), (jnp.zeros_like(z).at[:, i].set(1.0),))[1][:, i]

    return jax.lax.map(component, jnp.arange(z.shape[1])).T


def _ladder_heun_step(denoiser, ladder, final):
    ddim = _ddim_step(denoiser, ladder, 0.0)

    def heun(z, t, t_next):
        alpha, sigma, alpha_next, sigma_next = _coefficients(ladder, t, t_next)
        guess, _ = ddim(z, t, t_next)
        last = t_next <= final

        def corrected():
            x0, times = _predict(denoiser, guess, t_next)
            # The slope at the start is (guess / alpha' - z / alpha) / (r' - r).
            step = sigma_next / alpha_next - sigma / alpha
            return 0.5 * (guess + alpha_next * (z / alpha + step * epsilon_from_x0(x0, guess, ladder, times)))

        return jax.lax.cond(last, lambda: guess, corrected), None

    return heun


def _dpmpp_2m_step(denoiser, schedule):
    def init(z):
        return jnp.zeros_like(z), jnp.full((), -jnp.inf, z.dtype)

    def update(z, t, t_next, memory):
        alpha, sigma, alpha_next, sigma_next = _coefficients(schedule, t, t_next)
        x0_before, half_logsnr_before = memory
        x0, _ = _predict(denoiser, z, t)
        half_logsnr = 0.5 * schedule.logsnr(t)
        step, step_before = 0.5 * schedule.logsnr(t_next) - half_logsnr, half_logsnr - half_logsnr_before
        # Both are infinite where there is nothing to extrapolate from (first update, pure noise) or to (clean data).
        usable = jnp.isfinite(step) & jnp.isfinite(step_before)
        q = jnp.where(usable, step / (2.0 * jnp.where(usable, step_before, 1.0)), 0.0)
        mean = sigma_next / sigma * z + (alpha_next - alpha * sigma_next / sigma) * ((1.0 + q) * x0 - q * x0_before)
        return mean, None, (x0, half_logsnr.astype(z.dtype))

    return Step(init, update)


def read_out(denoiser: Denoiser, schedule: Schedule, readout: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the function (z ``[B, D]``, t) -> ``[B, D]`` that turns a stopped state into a sample."""
    if readout not in READOUTS:
        raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {readout!r}")
    if readout == "denoised":
        return lambda z, t: denoiser(z, jnp.broadcast_to(t, z.shape[:1]))
    if readout == "rescaled":
        return lambda z, t: z / jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
    return lambda z, t: z


def _make_advance(step: Step, key: jax.Array, mask, updates: int, noise: Noise):
    """Returns the loop's body (times, k, (z at times[k], memory)) -> the pair at times[k + 1], for k < ``updates``."""
    prepared = jax.vmap(lambda k: noise.prepare(random.step(key, k)))(jnp.arange(updates))

    def advance(times, k, state):
        z, memory = state
        mean, std, memory = step.update(z, times[k], times[k + 1], memory)
        if std is None:
            return mean, memory
        return mean + std * noise.draw(jax.tree.map(lambda x: x[k], prepared), z) * mask, memory

    return advance


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    start: Float[Array, "B D"],
    key: jax.Array,
    *,
    times: ArrayLike,
    stops: ArrayLike,
    statistic: Callable[[jax.Array, jax.Array], Any],
    sampler: str | OwnSampler,
    eta: float = 0.0,
    readout: str = "state",
    mask: jax.Array | float = 1.0,
    noise: Noise = BY_COLUMN,
) -> Any:
    """Runs one chain of samples and records ``statistic`` at every stop (mode "truncate").

    ``times`` and ``stops`` may be traced, so that one program runs chains on different levels and of different length: rows of
    times, the short ones padded with their last one, and their numbers of steps as stops. Then their values are not checked.

    On a CPU in memory of one state. On an accelerator the states at all stops wait in memory until the chain is done: its loop
    is then one of known length, and few stops at a time share the kernels of ``statistic``.

    Args:
      denoiser: E[z_0 | z_t].
      schedule: the forward process.
      start: states at times[0], ``[B, D]``.
      key: a Threefry key (`random.key`, or JAX's own) for the sampler's noise. The noise of step k is the same whatever the
        stops: common random numbers.
      times: ``[N + 1]``, strictly decreasing as far as the last stop.
      stops: increasing step counts in 0..N; stop k reads the state at times[k].
      statistic: maps (readout ``[B, D]``, t) to a pytree; called once per stop inside the compiled loop.
      sampler: as in `make_step`, a name or a function of your own.
      eta: for "ddim".
      readout: one of `READOUTS`.
      mask: ``[D]``, 0 in padded components.
      noise: how it is drawn.

    Returns:
      The statistic's pytree with a leading axis of stops.

    Raises:
      ValueError: for times that do not fall, or are not levels of a ladder, stops that do not rise within 0..N, or pure noise
        at times[0] with ddpm_exact, whose posterior variance is 0 / 0 there.
    """
    times, stops = _on_host(times, np.float64), _on_host(stops, int)
    _check_chain(schedule, times, stops, sampler, start.dtype)
    grid = jnp.asarray(times, start.dtype)
    step = make_step(denoiser, schedule, sampler=sampler, eta=eta, final=grid[-1])
    updates = len(times) - 1 if isinstance(stops, jax.Array) else int(stops[-1])
    advance = partial(_make_advance(step, key, mask, updates, noise), grid)
    read = read_out(denoiser, schedule, readout)
    start = spread_samples(start)
    state = start, step.init(start)
    if platform() != "cpu":
        states = _states_at(stops, advance, state, updates)
        at_once = batch_size(len(stops), STOPS_AT_ONCE)
        return jax.lax.map(lambda at: statistic(read(*at), at[1]), (states, grid[stops]), batch_size=at_once)

    def to_stop(state, bounds):
        state = jax.lax.fori_loop(bounds[0], bounds[1], advance, state)
        t = grid[bounds[1]]
        return state, statistic(read(state[0], t), t)

    stops = jnp.asarray(stops)
    bounds = jnp.stack([jnp.concatenate([jnp.zeros_like(stops[:1]), stops[:-1]]), stops], axis=1)
    return jax.lax.scan(to_stop, state, bounds)[1]


def _on_host(values: ArrayLike, dtype: type) -> np.ndarray | jax.Array:
    """Returns a numpy array, unless the values are traced."""
    return values if isinstance(values, jax.core.Tracer) else np.asarray(values, dtype)


def _check_chain(schedule, times, stops, sampler, dtype):
    """Checks the values that are known before the program runs."""
    if times.ndim != 1 or stops.ndim != 1 or stops.size == 0:
        raise ValueError(f"times and stops must be [N + 1] and [S], got {list(times.shape)} and {list(stops.shape)}")
    if isinstance(times, np.ndarray):
        used = int(stops[-1]) if isinstance(stops, np.ndarray) else times.size - 1
        if not (np.all(np.diff(times[: used + 1]) < 0) and np.all(np.diff(times[used:]) <= 0)):
            raise ValueError("times must be [N + 1], strictly decreasing as far as the last stop")
        if isinstance(schedule, Ladder) and not np.isin(times, schedule.times).all():
            raise ValueError(f"times on a ladder must be level numbers, 0..{int(schedule.t_max)}, got {times.tolist()}")
        if sampler == "ddpm_exact" and float(schedule.alpha(np.asarray(times[0], dtype))) == 0.0:
            raise ValueError("ddpm_exact needs alpha > 0 at times[0], got pure noise: start a little later")
    if isinstance(stops, np.ndarray) and (np.any(np.diff(stops) <= 0) or stops[0] < 0 or stops[-1] >= times.size):
        raise ValueError(f"stops must rise strictly within 0..{times.size - 1}, got {stops.tolist()}")


def _states_at(stops, advance, state, updates):
    """States ``[S, B, D]`` at the stops, by a loop of ``updates`` steps."""
    known = isinstance(stops, np.ndarray)
    gaps = np.diff(stops, prepend=0) if known else None
    if known and np.all(gaps == gaps[0]):

        def to_stop(state, first):
            state = jax.lax.fori_loop(0, int(gaps[0]), lambda i, state: advance(first + i, state), state)
            return state, state[0]

        return jax.lax.scan(to_stop, state, jnp.asarray(stops - gaps))[1]
    # Every step writes to the place of the next stop, and the last one stays. Beyond the last stop there is no place.
    place = jnp.searchsorted(jnp.asarray(stops), jnp.arange(1, updates + 1))
    states = jnp.zeros((len(stops), *state[0].shape), state[0].dtype).at[0].set(state[0])

    def step(k, carry):
        state, states = carry
        state = advance(k, state)
        return state, states.at[place[k]].set(state[0], mode="drop")

    return jax.lax.fori_loop(0, updates, step, (state, states))[1]


def sample_respaced(
    denoiser: Denoiser,
    schedule: Schedule,
    start: Float[Array, "B D"],
    key: jax.Array,
    *,
    time_grids: np.ndarray,
    statistic: Callable[[jax.Array, jax.Array], Any],
    sampler: str | OwnSampler,
    eta: float = 0.0,
    readout: str = "state",
    mask: jax.Array | float = 1.0,
    noise: Noise = BY_COLUMN,
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
      noise: as in `sample`.

    Returns:
      The statistic's pytree with a leading axis of stopping times ``[S]``.
    """
    time_grids = np.asarray(time_grids, np.float64)
    if time_grids.ndim != 2 or not np.all(np.diff(time_grids, axis=1) < 0):
        raise ValueError("time_grids must be [S, N + 1], every row strictly decreasing")
    read, updates = read_out(denoiser, schedule, readout), time_grids.shape[1] - 1

    def one_grid(grid):
        step = make_step(denoiser, schedule, sampler=sampler, eta=eta, final=grid[-1])
        advance = partial(_make_advance(step, key, mask, updates, noise), grid)
        z, _ = jax.lax.fori_loop(0, updates, advance, (start, step.init(start)))
        return statistic(read(z, grid[-1]), grid[-1])

    return jax.lax.map(one_grid, jnp.asarray(time_grids, start.dtype))
