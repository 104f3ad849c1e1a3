"""Score networks. Each is a flax.nnx module that maps (z, t, run) to E[z_0 | z_t]; a `RunInputs` makes it a `Denoiser`.

All runs of a sweep share one padded width D. A run's own latent dimension enters only through ``mask`` (first d entries
1) and its fan-in, so a run does not depend on how wide its neighbours are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from ldmjax.process import Denoiser
from ldmjax.schedules import Schedule, noise_var_from_logsnr

BUMPS = 16  # features of logsnr that condition an MLP


class RunInputs(NamedTuple):
    """What one run needs besides its parameters: traced, so that one compiled program serves every run.

    Attributes:
      mask: ``[D]``, 1 for the first d components, 0 for padding.
      cap: bound on the score's weights (inf for none).
      data_std: root mean square of the training latents' components, the sigma_data of EDM preconditioning.
    """

    mask: jax.Array
    cap: jax.Array
    data_std: jax.Array


class DiagonalLinearScore(nnx.Module):
    """The capped diagonal linear class of [OS] Prop. 4: score -m_i(t) z_i with a free table of weights.

    The table holds nu * m on ``levels`` noise levels uniform in logsnr (nu * m lies in [0, 1] at the optimum, which keeps
    every entry on one scale); between levels m is interpolated linearly, so |m| <= C holds everywhere once it holds on
    the table. It starts at m = 1, the score of N(0, I), whatever the data.
    """

    def __init__(self, width: int, *, schedule: Schedule, logsnr_min: float, logsnr_max: float, levels: int = 128):
        """Args: width: D. schedule: maps t to logsnr. logsnr_min, logsnr_max: range of the table. levels: its length."""
        self.schedule, self.logsnr_min, self.logsnr_max, self.levels = schedule, logsnr_min, logsnr_max, levels
        self.table = nnx.Param(jnp.broadcast_to(self.table_scale, (levels, width)))

    @property
    def level_logsnrs(self) -> np.ndarray:
        """Logsnr of the table's rows ``[levels]``."""
        return np.linspace(self.logsnr_min, self.logsnr_max, self.levels)

    @property
    def table_scale(self) -> jax.Array:
        """The factor nu between the table and the weights m, ``[levels, 1]``."""
        return jnp.asarray(noise_var_from_logsnr(self.level_logsnrs), jnp.float32)[:, None]

    def weights(self, t: jax.Array) -> jax.Array:
        """Score weights m, shape ``t.shape + (D,)``."""
        position = (self.schedule.logsnr(t) - self.logsnr_min) / (self.logsnr_max - self.logsnr_min) * (self.levels - 1)
        row = jnp.clip(jnp.floor(position).astype(int), 0, self.levels - 2)
        share = jnp.clip(position - row, 0.0, 1.0)[..., None]
        table = self.table[...] / self.table_scale
        return (1.0 - share) * table[row] + share * table[row + 1]

    def narrow(self, width: int) -> None:
        """Drops the components after the first ``width``."""
        self.table = nnx.Param(self.table[:, :width])

    def project(self, run: RunInputs) -> None:
        """Moves the weights to the nearest ones with |m| <= cap."""
        weights = self.table[...] / self.table_scale
        self.table[...] = self.table_scale * optax.projections.projection_linf_ball(weights, run.cap)

    def __call__(self, z: jax.Array, t: jax.Array, run: RunInputs) -> jax.Array:
        """E[z_0 | z_t] for z ``[..., D]`` and t broadcastable to z's leading axes; padded components are 0."""
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        return (1.0 - sigma**2 * self.weights(t)) / alpha * z * run.mask


def bump_features(logsnr: jax.Array, logsnr_min: float, logsnr_max: float) -> jax.Array:
    """Time features: Gaussian bumps in logsnr, evenly spaced over the range; shape ``logsnr.shape + (BUMPS,)``."""
    centres = jnp.linspace(logsnr_min, logsnr_max, BUMPS)
    return jnp.exp(-0.5 * ((logsnr[..., None] - centres) / (centres[1] - centres[0])) ** 2)


class ResidualMLP(nnx.Module):
    """F(u, features): residual MLP of unit-scale input and output, conditioned by scale and shift; 0 at initialisation.

    With ``features = 0`` it has no time input at all: a model of one noise level.
    """

    def __init__(
        self,
        width: int,
        *,
        latent_dim: jax.Array | int,
        features: int = BUMPS,
        hidden: int = 64,
        blocks: int = 1,
        rngs: nnx.Rngs,
    ):
        """Args: width: D. latent_dim: the run's own d, its fan-in. features: of time. hidden, blocks: size."""
        init = jax.nn.initializers.normal(1.0)
        self.encode = nnx.Param(init(rngs.params(), (width, hidden)) / jnp.sqrt(1.0 * latent_dim))
        self.decode = nnx.Param(jnp.zeros((hidden, width)))
        self.up = nnx.Param(init(rngs.params(), (blocks, hidden, hidden)) / np.sqrt(hidden))
        self.down = nnx.Param(jnp.zeros((blocks, hidden, hidden)))
        self.timed = features > 0
        if self.timed:
            self.gain = nnx.Param(jnp.zeros((features, hidden)))
            self.scale = nnx.Param(jnp.zeros((blocks, features, hidden)))
            self.shift = nnx.Param(jnp.zeros((blocks, features, hidden)))

    def narrow(self, width: int) -> None:
        """Drops the components after the first ``width``."""
        self.encode, self.decode = nnx.Param(self.encode[:width]), nnx.Param(self.decode[:, :width])

    def __call__(self, u: Float[Array, "b d"], features: Float[Array, "#b f"] | None = None) -> Float[Array, "b d"]:
        """F, ``[B, D]``; ``features`` is ``[B, F]``, ``[1, F]`` for one time, and not read without a time input."""
        h = u @ self.encode[...]
        for i, (up, down) in enumerate(zip(self.up[...], self.down[...], strict=True)):
            inner = h @ up
            if self.timed:
                inner = inner * (1.0 + features @ self.scale[i]) + features @ self.shift[i]
            h = h + jax.nn.silu(inner) @ down
        if self.timed:
            h = h * (1.0 + features @ self.gain[...])
        return h @ self.decode[...]


class MLP(nnx.Module):
    """`ResidualMLP` conditioned on logsnr, with isotropic EDM/v preconditioning.

    With s = data_std and R^2 = alpha^2 s^2 + sigma^2 (Karras et al., arXiv 2206.00364, in VP coordinates):

        E[z_0 | z] = (alpha s^2 / R^2) z + (sigma s / R) F(z / R, logsnr),      F = 0 at initialisation.
    """

    def __init__(
        self,
        width: int,
        *,
        schedule: Schedule,
        logsnr_min: float,
        logsnr_max: float,
        latent_dim: jax.Array | int,
        hidden: int = 64,
        blocks: int = 1,
        rngs: nnx.Rngs,
    ):
        """Args: width: D. latent_dim: the run's own d, its fan-in. hidden, blocks: size."""
        self.schedule, self.logsnr_min, self.logsnr_max = schedule, logsnr_min, logsnr_max
        self.raw = ResidualMLP(width, latent_dim=latent_dim, hidden=hidden, blocks=blocks, rngs=rngs)

    def narrow(self, width: int) -> None:
        """Drops the components after the first ``width``."""
        self.raw.narrow(width)

    def __call__(self, z: jax.Array, t: jax.Array, run: RunInputs) -> jax.Array:
        """E[z_0 | z_t] for z ``[B, D]``, t ``[B]``; padded components are 0."""
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        radius = jnp.sqrt(alpha**2 * run.data_std**2 + sigma**2)
        features = bump_features(self.schedule.logsnr(t), self.logsnr_min, self.logsnr_max)
        raw = self.raw(z * run.mask / radius, features) * run.mask
        return alpha * run.data_std**2 / radius**2 * z * run.mask + sigma * run.data_std / radius * raw


def as_denoiser(network: nnx.Module, run: RunInputs) -> Denoiser:
    """The network of one run as a `Denoiser`, the same type as the oracle's."""
    return lambda z, t: network(z, t, run)
