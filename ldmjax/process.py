"""The forward process and the five ways to name what a network predicts.

With z = alpha x0 + sigma eps (schedules.py, equation 1) and times broadcast against the last axis:

    (1)  epsilon   eps = (z - alpha x0) / sigma
    (2)  score     s = -eps / sigma
    (3)  velocity  u = alpha_dot x0 + sigma_dot eps          the probability-flow ODE is dz/dt = u
    (4)  v         v = (alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2)

Each is linear in (x0, z), so each has an inverse. A `Denoiser` is a function (z [B, D], t [B]) -> E[x0 | z] [B, D];
the exact Gaussian law and a trained network are both of this type. Sources: Salimans & Ho, arXiv 2202.00512 (v);
Lipman et al., arXiv 2210.02747 (velocity).
"""

from collections.abc import Callable

import jax
from jaxtyping import Float, Real

from ldmjax.schedules import ContinuousSchedule, Schedule
from ldmjax.typing import AnyArray

State = Float[AnyArray, "*#b D"]
Times = Real[AnyArray, "*#b"]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


def perturb(
    x0: Float[AnyArray, "*#b D"], noise: Float[AnyArray, "*#b D"], schedule: Schedule, t: Real[AnyArray, "*#b"]
) -> Float[AnyArray, "*_ D"]:
    """Returns z = alpha(t) x0 + sigma(t) noise; t broadcasts against the leading axes of x0 and noise."""
    return schedule.alpha(t)[..., None] * x0 + schedule.sigma(t)[..., None] * noise


def epsilon_from_x0(x0: State, z: State, schedule: Schedule, t: Times) -> State:
    """Computes equation (1); infinite or NaN where sigma(t) = 0."""
    return (z - schedule.alpha(t)[..., None] * x0) / schedule.sigma(t)[..., None]


def x0_from_epsilon(epsilon: State, z: State, schedule: Schedule, t: Times) -> State:
    """Inverts equation (1); infinite or NaN where alpha(t) = 0."""
    return (z - schedule.sigma(t)[..., None] * epsilon) / schedule.alpha(t)[..., None]


def score_from_x0(x0: State, z: State, schedule: Schedule, t: Times) -> State:
    """Computes equation (2): the gradient of the log density of z."""
    return -epsilon_from_x0(x0, z, schedule, t) / schedule.sigma(t)[..., None]


def x0_from_score(score: State, z: State, schedule: Schedule, t: Times) -> State:
    """Inverts equation (2), Tweedie's formula; infinite or NaN where alpha(t) = 0."""
    return (z + schedule.sigma(t)[..., None] ** 2 * score) / schedule.alpha(t)[..., None]


def velocity_from_x0(x0: State, z: State, schedule: ContinuousSchedule, t: Times) -> State:
    """Computes equation (3)."""
    epsilon = epsilon_from_x0(x0, z, schedule, t)
    return schedule.alpha_dot(t)[..., None] * x0 + schedule.sigma_dot(t)[..., None] * epsilon


def x0_from_velocity(velocity: State, z: State, schedule: ContinuousSchedule, t: Times) -> State:
    """Inverts equation (3)."""
    alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
    alpha_dot, sigma_dot = schedule.alpha_dot(t)[..., None], schedule.sigma_dot(t)[..., None]
    return (sigma * velocity - sigma_dot * z) / (sigma * alpha_dot - sigma_dot * alpha)


def v_from_x0(x0: State, z: State, schedule: Schedule, t: Times) -> State:
    """Computes equation (4), written without dividing by alpha."""
    alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
    radius_squared = alpha**2 + sigma**2
    return (alpha * z - radius_squared * x0) / (sigma * radius_squared**0.5)


def x0_from_v(v: State, z: State, schedule: Schedule, t: Times) -> State:
    """Inverts equation (4); finite for every t."""
    alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
    radius_squared = alpha**2 + sigma**2
    return alpha / radius_squared * z - sigma / radius_squared**0.5 * v
