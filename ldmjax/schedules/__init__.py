"""Noise schedules: how much of the data is left at each time.

Forward time: t = 0 is data, t = ``t_max`` is noise, and the noised variable is

    (1)  z_t = alpha(t) z_0 + sigma(t) eps,            eps ~ N(0, I)
    (2)  logsnr(t) = log(alpha(t)^2 / sigma(t)^2),     decreasing in t.

- `continuous`: schedules in continuous time and grids of sampling times
- `ladders`: finitely many noise levels, T-space; a `Ladder` is a schedule whose time is the level's number
- `own`: schedules of the user's own

A schedule of your own is any object with ``t_max`` and the methods of `Schedule`, elementwise in t. Training and the samplers
that follow the flow in time need those of `ContinuousSchedule`, the samplers of a variance-preserving process B and w_squared
(`VariancePreserving` makes the others from these and inverse_B). Written with jax.numpy it serves everything, written with
numpy closed forms and what is not compiled; ``xp = t.__array_namespace__()`` serves both in full precision.
"""

from ldmjax.schedules.continuous import (
    ContinuousSchedule,
    LinearVP,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    Schedule,
    VariancePreserving,
    logsnr_from_noise_var,
    noise_var_from_logsnr,
    uniform_logsnr_times,
    uniform_times,
)
from ldmjax.schedules.ladders import (
    LADDERS,
    Ladder,
    cosine_levels,
    karras_levels,
    linear_beta_levels,
    make_ladder,
    nested_subsets,
    rectified_flow_levels,
    scaled_linear_levels,
    spectral_levels,
    uniform_logsnr_levels,
)
from ldmjax.schedules.own import (
    CONTINUOUS_METHODS,
    VARIANCE_PRESERVING_METHODS,
    check_schedule,
    check_traceable,
    on_host,
)

__all__ = [
    "CONTINUOUS_METHODS",
    "LADDERS",
    "ContinuousSchedule",
    "Ladder",
    "LinearVP",
    "OrnsteinUhlenbeck",
    "RectifiedFlow",
    "Schedule",
    "VARIANCE_PRESERVING_METHODS",
    "VariancePreserving",
    "check_schedule",
    "check_traceable",
    "cosine_levels",
    "karras_levels",
    "linear_beta_levels",
    "logsnr_from_noise_var",
    "make_ladder",
    "nested_subsets",
    "noise_var_from_logsnr",
    "on_host",
    "rectified_flow_levels",
    "scaled_linear_levels",
    "spectral_levels",
    "uniform_logsnr_levels",
    "uniform_logsnr_times",
    "uniform_times",
]
