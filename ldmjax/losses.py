"""Denoising score matching: Vincent, Neural Computation 2011; weights as in Karras et al., arXiv 2206.00364.

    (1)  L = E_{x0, eps, t} w(t) |D(alpha x0 + sigma eps, t) - x0|^2 / d

Whatever w > 0, its minimiser over all functions is E[x0 | z]; over a class of linear scores -M(t) z it is Prop. 4's. With
w = alpha^2 / sigma^2 it is the error of the predicted noise, with w = (alpha^2 s^2 + sigma^2) / (sigma s)^2 that of an
EDM-preconditioned network's raw output.

For a diagonal linear score -m z the error of one batch is a quadratic in a = sigma^2 m, with r = sigma / alpha and <> the
batch mean, so one batch of (x0, eps) gives the loss on every noise level at the cost of three moments:

    (2)  alpha^2/sigma^2 <(D(z) - x0)^2> = a^2 <x0^2> / r^2 - 2 a (1 - a) <x0 eps> / r + (1 - a)^2 <eps^2>
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldmjax import random
from ldmjax.process import Denoiser, perturb
from ldmjax.schedules import ContinuousSchedule, Schedule
from ldmjax.typing import Scalar


def denoising_score_matching(
    denoiser: Denoiser,
    x0: Float[Array, "*#b D"],
    noise: Float[Array, "*b D"],
    t: Float[Array, "*#b"],
    weight: Float[Array, "*#b"],
    *,
    schedule: Schedule,
    dim: Scalar,
) -> Float[Array, ""]:
    """Computes equation (1) on one batch.

    Args:
      denoiser: the model.
      x0: clean latents, broadcastable to ``noise``.
      noise: standard normal ``[..., D]``, 0 in padded components.
      t: times, broadcastable to the leading axes of ``noise``.
      weight: w(t), same shape as t.
      schedule: maps t to alpha, sigma.
      dim: number d of components that count.

    Returns:
      A scalar.
    """
    error = denoiser(perturb(x0, noise, schedule, t), t) - x0
    return jnp.mean(jnp.sum(weight[..., None] * error**2, axis=-1)) / dim


def linear_score_matching(
    weights: Float[Array, "L D"],
    x0: Float[Array, "B D"],
    noise: Float[Array, "B D"],
    t: Float[Array, " L"],
    *,
    schedule: Schedule,
    dim: Scalar,
) -> Float[Array, ""]:
    """Computes equation (1), noise-weighted, for a diagonal linear score, through equation (2).

    Args:
      weights: m(t) ``[L, D]``.
      x0: clean latents ``[B, D]``.
      noise: standard normal ``[B, D]``, shared by all levels; 0 in padded components.
      t: times ``[L]``.
      schedule: maps t to alpha, sigma.
      dim: number d of components that count.

    Returns:
      A scalar, the same as `denoising_score_matching` averaged over levels with w = alpha^2 / sigma^2.
    """
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    a, ratio = sigma**2 * weights, sigma / alpha
    # Behind the barrier the sum of a plain array: on a CPU, XLA's sum of a product of two is twenty times slower.
    products = x0**2, jax.lax.optimization_barrier(x0 * noise), noise**2
    square, cross, noise_square = (jnp.mean(x, axis=0) for x in products)
    error = a**2 * square / ratio**2 - 2.0 * a * (1.0 - a) * cross / ratio + (1.0 - a) ** 2 * noise_square
    return jnp.mean(jnp.sum(error, axis=-1)) / dim


def edm_weight(schedule: Schedule, t: Float[Array, "*b"], data_std: Scalar) -> Float[Array, "*b"]:
    """Returns W = (alpha^2 s^2 + sigma^2) / (sigma s)^2: unit weight on the raw output of an EDM-preconditioned network."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return (alpha**2 * data_std**2 + sigma**2) / (sigma * data_std) ** 2


def noise_prediction_errors(
    denoiser: Denoiser,
    exact_variances: Float[Array, " D"],
    rotation: Float[Array, "D D"],
    cap: Scalar,
    key: jax.Array,
    *,
    schedule: ContinuousSchedule,
    logsnrs: Float[Array, " L"],
    count: int,
) -> tuple[Float[Array, " L"], Float[Array, " L"]]:
    """Returns squared error of the predicted noise -sigma * score against the exact (capped) Gaussian one, level by level.

    The exact law is N(0, rotation diag(exact_variances) rotation^T); z is drawn from its noise marginals.

    Args:
      denoiser: the model.
      exact_variances: ``[D]``, 0 in padded components.
      rotation: ``[D, D]``, zero rows and columns in padded components.
      cap: bound on the exact score's weights, inf for none.
      key: for the draws.
      schedule: a variance-preserving schedule.
      logsnrs: ``[L]`` levels.
      count: draws per level.

    Returns:
      (mean squared error ``[L]``, mean squared norm of the exact prediction ``[L]``), summed over components.
    """
    levels, dim = len(logsnrs), rotation.shape[0]
    t = jnp.repeat(schedule.inverse_logsnr(logsnrs), count)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    marginal = alpha**2 * exact_variances + sigma**2
    own = jnp.sqrt(marginal) * random.normal(key, levels * count, dim)
    exact = sigma * jnp.minimum(cap, 1.0 / marginal) * own @ rotation.T
    z = own @ rotation.T
    error = (z - alpha * denoiser(z, t)) / sigma - exact
    return tuple(jnp.sum(x**2, axis=1).reshape(levels, count).mean(axis=1) for x in (error, exact))
