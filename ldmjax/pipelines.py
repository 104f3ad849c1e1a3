r"""What the samplers of image pipelines are told so that sampling stops at a given noise level.

A stopping time is a logsnr; a pipeline wants a number of steps, a timestep, a sigma or a `denoising_end`. Each sampler here has

    (1)  levels(N): the noise levels at which its N steps begin, noisiest first; the last step goes to clean data
    (2)  a state x = a (alpha z_0 + sigma eps), alpha^2 + sigma^2 = 1: what is decoded after an early stop is x / a

    vp     a = 1                                            DDPM, DDIM
    ve     a = sqrt(1 + exp(-logsnr)): x = z_0 + sigma eps        Euler of Stable Diffusion, EDM
    flow   a = sqrt((1-s)^2 + s^2): x = (1-s) z_0 + s eps         rectified flow, flow matching

z_0 has deviation 1, but for EDM, whose data have `EDM_DATA` = 0.5: its sigma is 0.5 exp(-logsnr / 2).

    scaled_linear_*   1000 training timesteps, (4) of schedules.ladders: Stable Diffusion 1, 2 and SDXL. "Leading" timesteps
                      with offset 1, as in their configurations; SDXL's pipelines take ``denoising_end``
    linear_beta_*     1000 training timesteps, (3) of schedules.ladders: DDPM, LDM. "Leading" timesteps without offset
    flow_matching     s -> shift s / (1 + (shift - 1) s), timestep 1000 s. Stable Diffusion 3 and 3.5: shift 3. Flux has a
                      *dynamic* shift exp(mu), mu = 0.5 at 256 tokens to 1.15 at 4096, and steps from s = 1 to 1 / N
    edm               Karras's levels with rho = 7 from sigma = 80 to 0.002, timestep log(sigma) / 4
    rectified_flow, linear_vp     the suite's own schedules, evenly spaced in their time

Sources: Ho et al., arXiv 2006.11239; Rombach et al., 2112.10752; Podell et al., 2307.01952; Esser et al., 2403.03206; Karras et
al., 2206.00364. Checked against the schedulers of diffusers (tests/test_pipelines.py).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ldmjax.schedules import (
    ContinuousSchedule,
    Ladder,
    LinearVP,
    RectifiedFlow,
    Schedule,
    karras_levels,
    linear_beta_levels,
    noise_var_from_logsnr,
    scaled_linear_levels,
)
from ldmjax.typing import ArrayLike

TIMESTEPS = 1000
EDM_DATA = 0.5
KARRAS_RHO = 7.0
MOST_SHIFT = 100.0
SHORTEST, LONGEST = (256, 0.5), (4096, 1.15)  # tokens of Flux and its mu
NAMES = (
    "rectified_flow",
    "linear_vp",
    "scaled_linear_ddpm",
    "scaled_linear_ddim",
    "scaled_linear_euler",
    "scaled_linear_karras",
    "linear_beta_ddpm",
    "linear_beta_ddim",
    "linear_beta_euler",
    "flow_matching",
    "edm",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler, as far as stopping it is concerned.

    Attributes:
      name: one of `NAMES`.
      state: "vp", "ve" or "flow", see the module.
      solver: what its steps are, out of `oracle.KEPT_BY`.
      logsnrs: function N -> logsnr ``[N]`` at which its N steps begin, rising; -inf is pure noise.
      largest: logsnr above which it has no level: a stop there is the end of sampling.
      timestep: function logsnr -> what its network is told; None if that is only the schedule's own time.
      data_std: deviation of its data.
      has_denoising_end: whether pipelines that use it take ``denoising_end``.
      continuous: the suite's own schedule, if it is one.
    """

    name: str
    state: str
    solver: str
    logsnrs: Callable[[int], np.ndarray]
    largest: float
    timestep: Callable[[float], float] | None = None
    data_std: float = 1.0
    has_denoising_end: bool = False
    continuous: ContinuousSchedule | None = None

    def schedule(self, steps: int) -> Schedule:
        """Returns the schedule whose time N steps divide evenly: the suite's own, or a ladder; errors as `levels`."""
        noise_var = noise_var_from_logsnr(levels(self, steps))
        if self.continuous is not None:
            return self.continuous
        return Ladder(np.sqrt(1.0 - noise_var), np.sqrt(noise_var))

    def share(self, logsnr: ArrayLike) -> np.ndarray:
        """Returns share of its steps, of very many, that lead to ``logsnr``."""
        levels = self.logsnrs(TIMESTEPS)
        finite = np.isfinite(levels)
        return np.asarray(np.interp(logsnr, levels[finite], (np.arange(TIMESTEPS) / TIMESTEPS)[finite], right=1.0))

    def sigma(self, logsnr: float) -> float:
        """Returns deviation of the noise in its state."""
        if self.state == "vp":
            return float(np.sqrt(noise_var_from_logsnr(logsnr)))
        if self.state == "ve":
            return float(self.data_std * np.exp(-0.5 * logsnr))
        return float(RectifiedFlow().inverse_logsnr(logsnr))

    def divisor(self, logsnr: float) -> float:
        """Returns what its state is divided by to have the variance of clean data: a of equation (2)."""
        if self.state == "vp":
            return 1.0
        if self.state == "ve":
            return float(np.sqrt(1.0 + np.exp(-logsnr)))
        flow = RectifiedFlow()
        return float(flow.radius(flow.inverse_logsnr(logsnr)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """A stopping time in a sampler's words; ``logsnr`` None is the end of sampling.

    Attributes:
      logsnr: of the state when it stops.
      step, steps: it stops after ``step`` of ``steps`` steps; None if their number is not known.
      timestep: what the network would be told next; None at the end, and where it is told no timestep.
      denoising_end: argument of SDXL's pipelines, None for other samplers and where no value gives that step; 1 is the end.
      sigma: deviation of the noise in the state.
      rf_time: s of the rectified flow with this logsnr.
      vp_alpha: scale of the signal in variance-preserving coordinates.
      divide_by: what the state is divided by before it is decoded.
    """

    logsnr: float | None
    step: int | None
    steps: int | None
    timestep: float | None
    denoising_end: float | None
    sigma: float
    rf_time: float
    vp_alpha: float
    divide_by: float


def stop_at(sampler: Sampler, logsnr: float | None, steps: int | None = None) -> Stop:
    """Returns what to type so that ``sampler`` stops at a noise level.

    Args:
      sampler: made by `make_sampler`.
      logsnr: wanted; None, or its ``largest`` and more, is the end of sampling.
      steps: N; the level nearest to ``logsnr`` after a whole number of them is taken. None if it is not known yet: then
        the exact level, and a ``denoising_end`` that is right to one step whatever N is.

    Raises:
      ValueError: for a level noisier than the sampler's first, and for N as in `levels`.
    """
    reached = None if steps is None else levels(sampler, steps)
    begin = sampler.logsnrs(TIMESTEPS)[0] if reached is None else reached[0]
    if logsnr is not None and logsnr < begin:
        raise ValueError(f"{sampler.name} begins at logsnr {begin:.3g}, got {logsnr:.3g}")
    if logsnr is not None and reached is not None:
        gap = reached[-1] - reached[-2]
        step = int(np.argmin(np.abs(reached[1:] - logsnr))) + 1
        logsnr = None if logsnr > reached[-1] + 0.5 * gap else float(reached[step])
    if logsnr is None or (reached is None and logsnr >= sampler.largest):
        return Stop(
            logsnr=None,
            step=steps,
            steps=steps,
            timestep=None,
            denoising_end=1.0 if sampler.has_denoising_end else None,
            sigma=0.0,
            rf_time=0.0,
            vp_alpha=1.0,
            divide_by=1.0,
        )
    timestep = None if sampler.timestep is None else sampler.timestep(logsnr)
    denoising_end = None
    if sampler.has_denoising_end:
        denoising_end = 1.0 - timestep / TIMESTEPS
    if sampler.has_denoising_end and reached is not None:
        # Steps with a timestep of at least a whole number are run: here that of the last one that is to run. Karras's cleanest
        # timesteps may have no whole number between them.
        last = np.floor(sampler.timestep(reached[step - 1]) + 1e-6)
        denoising_end = 1.0 - float(last) / TIMESTEPS if last > timestep + 1e-6 else None
    return Stop(
        logsnr=logsnr,
        step=None if reached is None else step,
        steps=steps,
        timestep=timestep,
        denoising_end=denoising_end,
        sigma=sampler.sigma(logsnr),
        rf_time=float(RectifiedFlow().inverse_logsnr(logsnr)),
        vp_alpha=float(np.sqrt(1.0 - noise_var_from_logsnr(logsnr))),
        divide_by=sampler.divisor(logsnr),
    )


def levels(sampler: Sampler, steps: int) -> np.ndarray:
    """Returns logsnr ``[N]`` at which N steps begin, rising; ValueError unless 2 <= N (<= 1000 with training timesteps)."""
    most = TIMESTEPS if sampler.name.startswith(("scaled_linear", "linear_beta")) else np.inf
    if not 2 <= steps <= most:
        allowed = "at least 2" if most == np.inf else f"2..{most}"
        raise ValueError(f"{sampler.name} takes {allowed} steps, got {steps}")
    return sampler.logsnrs(steps)


def make_sampler(name: str, *, shift: float | None = None, tokens: int | None = None) -> Sampler:
    """Returns one of `NAMES`.

    Args:
      name: of the sampler.
      shift: of flow matching, from 1 / `MOST_SHIFT` to that; default 1.
      tokens: of flow matching, instead of ``shift``: Flux's dynamic shift for so many (pixels / 256).

    Raises:
      ValueError: for an unknown name, a shift or tokens of a sampler that has none, both at once, or not > 0.
    """
    if name not in NAMES:
        raise ValueError(f"sampler must be one of {', '.join(NAMES)}, got {name!r}")
    if name != "flow_matching" and (shift is not None or tokens is not None):
        raise ValueError(f"only flow_matching has a shift, {name} has none")
    if name == "rectified_flow":
        return _continuous(name, "flow", RectifiedFlow())
    if name == "linear_vp":
        return _continuous(name, "vp", LinearVP())
    if name == "edm":
        return _edm()
    if name == "flow_matching":
        return _flow_matching(shift, tokens)
    betas, kind = name.rsplit("_", 1)
    return _of_training_timesteps(name, betas, kind)


def dynamic_shift(tokens: int) -> float:
    """Returns Flux's shift exp(mu) for a number of tokens; infinite beyond float64, ValueError unless tokens > 0."""
    if not tokens > 0:
        raise ValueError(f"tokens must be > 0, got {tokens}")
    (least, low), (most, high) = SHORTEST, LONGEST
    with np.errstate(over="ignore"):
        return float(np.exp(low + (high - low) * (tokens - least) / (most - least)))


def _continuous(name, state, schedule):
    return Sampler(
        name=name,
        state=state,
        solver="euler_ode",
        continuous=schedule,
        largest=np.inf,
        logsnrs=lambda steps: schedule.logsnr(np.linspace(schedule.t_max, 0.0, steps + 1)[:-1]),
    )


def _of_training_timesteps(name, betas, kind):
    alpha, sigma = {"scaled_linear": scaled_linear_levels, "linear_beta": linear_beta_levels}[betas](TIMESTEPS)
    table = 2.0 * np.log(alpha / sigma)[::-1]  # falls with the timesteps 0, 1, ...

    def logsnrs(steps):
        timesteps = TIMESTEPS // steps * np.arange(steps)[::-1]
        if betas == "scaled_linear" and (kind == "karras" or timesteps[0] + 1 < TIMESTEPS):
            timesteps += 1  # of 1000 steps the first would leave the table
        chosen = table[timesteps.clip(max=TIMESTEPS - 1)]
        if kind != "karras":
            return chosen
        noisiest, cleanest = np.exp(-0.5 * chosen[[0, -1]])
        karras_alpha, karras_sigma = karras_levels(steps, sigma_min=cleanest, sigma_max=noisiest, rho=KARRAS_RHO)
        return 2.0 * np.log(karras_alpha / karras_sigma)

    return Sampler(
        name=name,
        state="ve" if kind in ("euler", "karras") else "vp",
        solver="ddpm" if kind == "ddpm" else "ddim",
        logsnrs=logsnrs,
        largest=float(table[0]),
        timestep=lambda logsnr: float(np.interp(-logsnr, -table, np.arange(TIMESTEPS))),
        has_denoising_end=betas == "scaled_linear",
    )


def _flow_matching(shift, tokens):
    if shift is not None and tokens is not None:
        raise ValueError(f"give a shift or tokens, got {shift:g} and {tokens}")
    dynamic, shift = (
        tokens is not None,
        dynamic_shift(tokens) if tokens is not None else 1.0 if shift is None else shift,
    )
    if not 1 / MOST_SHIFT <= shift <= MOST_SHIFT:
        raise ValueError(f"shift must be {1 / MOST_SHIFT:g}..{MOST_SHIFT:g}, got {shift:.4g}")
    flow = RectifiedFlow()

    def shifted(s):
        return shift * s / (1.0 + (shift - 1.0) * s)

    def logsnrs(steps):
        # With a fixed shift steps end at the smallest of 1000 shifted levels, and are shifted again.
        return flow.logsnr(shifted(np.linspace(1.0, 1.0 / steps if dynamic else shifted(1.0 / TIMESTEPS), steps)))

    return Sampler(
        name="flow_matching",
        state="flow",
        solver="euler_ode",
        logsnrs=logsnrs,
        largest=np.inf if dynamic else float(flow.logsnr(shifted(shifted(1.0 / TIMESTEPS)))),
        timestep=lambda logsnr: TIMESTEPS * float(flow.inverse_logsnr(logsnr)),
    )


def _edm():
    def logsnrs(steps):
        alpha, sigma = karras_levels(steps, rho=KARRAS_RHO)
        return 2.0 * np.log(EDM_DATA * alpha / sigma)

    return Sampler(
        name="edm",
        state="ve",
        solver="euler_ode",
        logsnrs=logsnrs,
        largest=float(logsnrs(2)[-1]),
        data_std=EDM_DATA,
        timestep=lambda logsnr: 0.25 * float(np.log(EDM_DATA) - 0.5 * logsnr),
    )
