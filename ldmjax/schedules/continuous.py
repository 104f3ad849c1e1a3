"""Schedules in continuous time and grids of sampling times; notation and equations (1), (2) in the package's docstring.

Variance-preserving (VP) schedules come from dz = -w(t)^2 z dt + sqrt(2) w(t) dW and depend on t only through

    (3)  B(t) = int_0^t w^2:   alpha = exp(-B),   sigma^2 = 1 - exp(-2B),   logsnr = -log(expm1(2B)).

The natural axis of the theory is the VP noise variance nu = 1 / (1 + exp(logsnr)), called ``noise_var``.
Every function takes numpy or jax arrays and returns the same kind. Source: Song et al., arXiv 2011.13456; docs/theory.md (1.2).
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldmjax.typing import ArrayLike


def _namespace(x):
    return jnp if isinstance(x, jax.Array) else np


def noise_var_from_logsnr(logsnr: ArrayLike):
    """Returns the VP noise variance nu = 1 / (1 + exp(logsnr)), same shape as ``logsnr``."""
    xp = _namespace(logsnr)
    return xp.exp(-xp.logaddexp(0.0, logsnr))


def logsnr_from_noise_var(noise_var: ArrayLike):
    """Inverts `noise_var_from_logsnr`; nu = 0 gives +inf."""
    xp = _namespace(noise_var)
    with np.errstate(divide="ignore"):
        return xp.log1p(-xp.asarray(noise_var)) - xp.log(noise_var)


@runtime_checkable
class Schedule(Protocol):
    """What perturbing, denoising and stepping need of a schedule; all methods are elementwise."""

    t_max: float

    def alpha(self, t): ...  # noqa: D102
    def sigma(self, t): ...  # noqa: D102
    def logsnr(self, t): ...  # noqa: D102


@runtime_checkable
class ContinuousSchedule(Schedule, Protocol):
    """A schedule of real times: what the flow's velocity and times at a given logsnr need as well."""

    def inverse_logsnr(self, logsnr): ...  # noqa: D102
    def alpha_dot(self, t): ...  # noqa: D102
    def sigma_dot(self, t): ...  # noqa: D102


class VariancePreserving:
    """Equation (3) for any B; subclasses give ``B``, its derivative ``w_squared`` and its inverse ``inverse_B``."""

    def alpha(self, t: ArrayLike):
        """Returns signal scale exp(-B(t))."""
        return _namespace(t).exp(-self.B(t))

    def sigma(self, t: ArrayLike):
        """Returns noise scale sqrt(1 - exp(-2 B(t)))."""
        xp = _namespace(t)
        return xp.sqrt(-xp.expm1(-2.0 * self.B(t)))

    def logsnr(self, t: ArrayLike):
        """-log(expm1(2 B(t))), written so that neither a small nor a large B overflows; +inf at t = 0."""
        xp = _namespace(t)
        two_b = 2.0 * self.B(t)
        with np.errstate(divide="ignore"):
            return -(two_b + xp.log(-xp.expm1(-two_b)))

    def inverse_logsnr(self, logsnr: ArrayLike):
        """Returns the time at which `logsnr` takes the given value."""
        xp = _namespace(logsnr)
        return self.inverse_B(0.5 * xp.logaddexp(0.0, -xp.asarray(logsnr)))

    def alpha_dot(self, t: ArrayLike):
        """Returns time derivative of alpha."""
        return -self.w_squared(t) * self.alpha(t)

    def sigma_dot(self, t: ArrayLike):
        """Returns time derivative of sigma; +inf at t = 0."""
        with np.errstate(divide="ignore"):
            return self.w_squared(t) * self.alpha(t) ** 2 / self.sigma(t)


def _check_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{owner}: {name} must be a finite number > 0, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrnsteinUhlenbeck(VariancePreserving):
    """w = 1, so B(t) = t: the schedule of [OS]."""

    t_max: float = 2.0

    def __post_init__(self):
        _check_positive("OrnsteinUhlenbeck", t_max=self.t_max)

    def B(self, t: ArrayLike):
        """Returns integrated drift, t itself."""
        return _namespace(t).asarray(t) * 1.0

    def inverse_B(self, b: ArrayLike):
        """Returns the time at which B takes the value ``b``."""
        return b

    def w_squared(self, t: ArrayLike):
        """Returns dB/dt = 1."""
        return _namespace(t).ones_like(t, dtype=float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearVP(VariancePreserving):
    """Song's VP-linear: beta(t) = beta_min + (beta_max - beta_min) t / t_max and B(t) = int_0^t beta / 2."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_max: float = 1.0

    def __post_init__(self):
        _check_positive("LinearVP", beta_min=self.beta_min, beta_max=self.beta_max, t_max=self.t_max)
        if self.beta_max < self.beta_min:
            raise ValueError(f"LinearVP: beta_max must be >= beta_min = {self.beta_min}, got {self.beta_max}")

    def beta(self, t: ArrayLike):
        """Returns Song's noise rate; the drift rate w^2 is half of it."""
        return self.beta_min + (self.beta_max - self.beta_min) * _namespace(t).asarray(t) / self.t_max

    def w_squared(self, t: ArrayLike):
        """Returns dB/dt = beta(t) / 2."""
        return 0.5 * self.beta(t)

    def B(self, t: ArrayLike):
        """Returns integrated drift beta_min t / 2 + (beta_max - beta_min) t^2 / (4 t_max)."""
        t = _namespace(t).asarray(t)
        return 0.5 * self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / (4.0 * self.t_max)

    def inverse_B(self, b: ArrayLike):
        """Returns the time at which B takes the value ``b`` (the positive root, in the form that does not cancel)."""
        slope = (self.beta_max - self.beta_min) / self.t_max
        return 4.0 * b / (self.beta_min + _namespace(b).sqrt(self.beta_min**2 + 4.0 * slope * b))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """z_s = (1 - s) z_0 + s eps on [0, 1]: not VP; z_s / `radius` is."""

    t_max: float = dataclasses.field(default=1.0, init=False)

    def alpha(self, t: ArrayLike):
        """Returns signal scale 1 - s."""
        return 1.0 - _namespace(t).asarray(t)

    def sigma(self, t: ArrayLike):
        """Returns noise scale s."""
        return _namespace(t).asarray(t) * 1.0

    def radius(self, t: ArrayLike):
        """Returns r(s) = sqrt((1-s)^2 + s^2): dividing a state by it gives the VP variable of the same logsnr."""
        return _namespace(t).hypot(self.alpha(t), self.sigma(t))

    def logsnr(self, t: ArrayLike):
        """Returns 2 log((1 - s) / s); +inf at s = 0, -inf at s = 1."""
        xp = _namespace(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log1p(-xp.asarray(t)) - xp.log(t))

    def inverse_logsnr(self, logsnr: ArrayLike):
        """Returns the s at which `logsnr` takes the given value."""
        xp = _namespace(logsnr)
        return xp.exp(-xp.logaddexp(0.0, 0.5 * xp.asarray(logsnr)))

    def alpha_dot(self, t: ArrayLike):
        """Returns derivative of alpha: -1."""
        return -_namespace(t).ones_like(t, dtype=float)

    def sigma_dot(self, t: ArrayLike):
        """Returns derivative of sigma: 1."""
        return _namespace(t).ones_like(t, dtype=float)


def uniform_logsnr_times(
    schedule: ContinuousSchedule, steps: int, *, logsnr_min: float, logsnr_max: float
) -> Float[np.ndarray, " points"]:
    """Returns sampling times, uniform in logsnr, from noise to data.

    Args:
      schedule: any schedule.
      steps: number of steps N >= 1.
      logsnr_min: logsnr of the first (noisiest) time.
      logsnr_max: logsnr of the last time; +inf is not allowed.

    Returns:
      Strictly decreasing times ``[steps + 1]``, float64.

    Raises:
      ValueError: if the range is empty or not finite, or ``steps`` < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if not (np.isfinite(logsnr_min) and np.isfinite(logsnr_max) and logsnr_min < logsnr_max):
        raise ValueError(f"need finite logsnr_min < logsnr_max, got {logsnr_min} and {logsnr_max}")
    return schedule.inverse_logsnr(np.linspace(logsnr_min, logsnr_max, steps + 1))


def uniform_times(schedule: ContinuousSchedule, steps: int, *, t_min: float = 0.0) -> Float[np.ndarray, " points"]:
    """Returns sampling times ``[steps + 1]``, uniform in t from ``schedule.t_max`` down to ``t_min``, float64."""
    if steps < 1 or not 0.0 <= t_min < schedule.t_max:
        raise ValueError(f"need steps >= 1 and 0 <= t_min < {schedule.t_max}, got {steps} and {t_min}")
    return np.linspace(schedule.t_max, t_min, steps + 1)
