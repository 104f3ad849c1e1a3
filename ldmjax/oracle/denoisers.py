"""The exact Gaussian score as a `Denoiser`, the type that samplers and metrics also get from trained networks.

With m = min(C, 1 / (sigma^2 + alpha^2 lam)) the score is -m z, so by Tweedie's formula

    (1)  E[z_0 | z] = (1 - sigma^2 m) / alpha  z      ( = alpha lam / (alpha^2 lam + sigma^2) z  where the cap is idle)

What it leaves open of the noise eps = (z - alpha z_0) / sigma is the conditional variance of eps, summed over components,

    (2)  E |eps - E[eps | z]|^2 = sum_k alpha^2 lam_k / (alpha^2 lam_k + sigma^2)
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldmjax.oracle.capped import check_cap
from ldmjax.oracle.stopped import check_spectra
from ldmjax.process import Denoiser
from ldmjax.schedules import Schedule, check_schedule, on_host
from ldmjax.typing import ArrayLike


def gaussian_denoiser(variances: ArrayLike, schedule: Schedule, *, cap: float = np.inf) -> Denoiser:
    """Returns the exact denoiser of N(0, diag(variances)), or with a cap the one of Prop. 4's score; equation (1).

    Args:
      variances: ``[D]``, any order.
      schedule: any schedule; a cap bounds the weight of the score of *that* schedule's state.
      cap: C > 1, inf for none.

    Returns:
      A `Denoiser`: (z ``[B, D]``, t ``[B]``) -> E[z_0 | z_t] ``[B, D]``, in the dtype of z.
    """
    (variances,) = check_spectra(variances)
    cap = check_cap(cap)
    check_schedule(schedule, ("alpha", "sigma"), what="gaussian_denoiser")

    def denoise(z, t):
        lam = jnp.asarray(variances, z.dtype)
        alpha, sigma = (jnp.asarray(function(t), z.dtype)[:, None] for function in (schedule.alpha, schedule.sigma))
        marginal = alpha**2 * lam + sigma**2
        # A variance of 0 has denoiser 0 at every t, also at t = 0 where the marginal vanishes.
        gain = jnp.where(lam > 0, alpha * lam / jnp.where(marginal > 0, marginal, 1.0), 0.0)
        if np.isfinite(cap):
            gain = jnp.where(cap * marginal < 1.0, (1.0 - sigma**2 * cap) / alpha, gain)
        return gain * z

    return denoise


def bayes_noise_error(variances: ArrayLike, schedule: Schedule, t: ArrayLike) -> Float[np.ndarray, " L"]:
    """Returns the noise-prediction error that no network gets below on N(0, diag(variances)), equation (2).

    The prediction that attains it is `process.epsilon_from_x0` of `gaussian_denoiser`.

    Args:
      variances: ``[D]``, any order.
      schedule: any schedule, also a `Ladder`.
      t: ``[L]``; where sigma(t) = 0 the result is the limit, the number of positive variances.

    Returns:
      ``[L]``, summed over components, float64.

    Raises:
      ValueError: if ``variances`` is not a spectrum or ``t`` not ``[L]``.
    """
    (variances,) = check_spectra(variances)
    t = np.asarray(t, np.float64)
    if t.ndim != 1:
        raise ValueError(f"t must be [L], got shape {list(t.shape)}")
    check_schedule(schedule, ("alpha", "sigma"), what="bayes_noise_error")
    schedule = on_host(schedule)
    signal = schedule.alpha(t)[:, None] ** 2 * variances[variances > 0]
    return np.sum(signal / (signal + schedule.sigma(t)[:, None] ** 2), axis=1)


def rotated_denoiser(denoiser: Denoiser, basis: ArrayLike) -> Denoiser:
    """Returns the denoiser of ``basis`` x where ``denoiser`` is that of x; ``basis`` ``[D, D]`` is orthogonal."""

    def denoise(z, t):
        rotation = jnp.asarray(basis, z.dtype)
        return denoiser(z @ rotation, t) @ rotation.T

    return denoise
