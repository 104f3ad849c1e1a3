"""Score networks. Each is a flax.nnx module that maps (z, t, run) to E[z_0 | z_t]; a `RunInputs` makes it a `Denoiser`.

`DiagonalLinearScore` is one; `Preconditioned` makes one of a raw network, `ResidualMLP` (vectors) or `UNet` (maps).

All runs of a sweep share one padded width D. A run's own latent dimension enters only through ``mask`` (first d entries
1) and its fan-in, so a run does not depend on how wide its neighbours are.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from ldmjax.convolutions import convolve, product
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
        """Returns score weights m, shape ``t.shape + (D,)``."""
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
        """Returns E[z_0 | z_t] for z ``[..., D]`` and t broadcastable to z's leading axes; padded components are 0."""
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        return (1.0 - sigma**2 * self.weights(t)) / alpha * z * run.mask


def bump_features(logsnr: jax.Array, logsnr_min: float, logsnr_max: float) -> jax.Array:
    """Returns time features: Gaussian bumps in logsnr, evenly spaced over the range; shape ``logsnr.shape + (BUMPS,)``."""
    with jax.ensure_compile_time_eval():  # numbers, not work for every step of a loop
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
        # Held as [D, hidden]: on a CPU the gradient of a low and wide matrix takes half the time of that of its transpose.
        self.decode = nnx.Param(jnp.zeros((width, hidden)))
        self.up = nnx.Param(init(rngs.params(), (blocks, hidden, hidden)) / np.sqrt(hidden))
        self.down = nnx.Param(jnp.zeros((blocks, hidden, hidden)))
        self.timed = features > 0
        if self.timed:
            self.gain = nnx.Param(jnp.zeros((features, hidden)))
            self.scale = nnx.Param(jnp.zeros((blocks, features, hidden)))
            self.shift = nnx.Param(jnp.zeros((blocks, features, hidden)))

    def narrow(self, width: int) -> None:
        """Drops the components after the first ``width``."""
        self.encode, self.decode = nnx.Param(self.encode[:width]), nnx.Param(self.decode[:width])

    def __call__(self, u: Float[Array, "b d"], features: Float[Array, "#b f"] | None = None) -> Float[Array, "b d"]:
        """Returns F, ``[B, D]``; ``features`` is ``[B, F]``, ``[1, F]`` for one time, and not read without a time input."""
        h = u @ self.encode[...]
        for i, (up, down) in enumerate(zip(self.up[...], self.down[...], strict=True)):
            inner = h @ up
            if self.timed:
                inner = inner * (1.0 + features @ self.scale[i]) + features @ self.shift[i]
            h = h + jax.nn.silu(inner) @ down
        if self.timed:
            h = h * (1.0 + features @ self.gain[...])
        return h @ self.decode[...].T


class UNet(nnx.Module):
    """F(u, features) on maps: residual 3x3 convolutions at halving resolutions, skips added; 0 at initialisation.

    ``channels[r]`` belongs to resolution r, whose sides are half (rounded up) of those before, so that odd sides work.
    A map's position enters as learned additions to the first layer: centred images are not stationary. Maps and their products
    are in ``precision``, parameters, what is computed of time, and the output in float32.
    """

    def __init__(
        self,
        map_shape: tuple[int, int, int],
        *,
        channels: tuple[int, ...],
        blocks: int = 1,
        features: int = BUMPS,
        precision: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Args: map_shape: (H, W, C). channels: per resolution. blocks: per resolution and way. features: of time."""
        height, width, depth = self.map_shape = map_shape
        self.dtype = jnp.dtype(precision)

        def kernel(c_in, c_out):
            return nnx.Param(_kernel_init(rngs.params(), (9 * c_in, c_out)))

        def residual_blocks(c):
            return nnx.List([_ConvolutionBlock(c, features=features, rngs=rngs) for _ in range(blocks)])

        self.encode = kernel(depth, channels[0])
        self.position = nnx.Param(jnp.zeros((height, width, channels[0])))
        self.down = nnx.List([residual_blocks(c) for c in channels])
        self.halve = nnx.List([kernel(a, b) for a, b in itertools.pairwise(channels)])
        self.double = nnx.List(
            [nnx.Param(_kernel_init(rngs.params(), (b, a))) for a, b in itertools.pairwise(channels)]
        )
        self.up = nnx.List([residual_blocks(c) for c in channels[:-1]])
        self.gain = nnx.Param(jnp.zeros((features, channels[0])))
        self.decode = nnx.Param(jnp.zeros((9 * channels[0], depth)))

    def narrow(self, width: int) -> None:
        """Refuses: a map has no padding to drop."""
        if width != math.prod(self.map_shape):
            raise ValueError(
                f"a U-Net on maps {self.map_shape} works at width {math.prod(self.map_shape)}, got {width}"
            )

    def __call__(self, u: Float[Array, "b d"], features: Float[Array, "#b f"]) -> Float[Array, "b d"]:
        """Returns F, ``[B, D]`` with D = H W C, row by row; ``features`` is ``[B, F]``, or ``[1, F]`` for one time."""
        h = convolve(u.reshape(-1, *self.map_shape).astype(self.dtype), self.encode[...])
        h = h + self.position[...].astype(h.dtype)
        skips = []
        for r, stage in enumerate(self.down):
            h = convolve(h, self.halve[r - 1][...], stride=2) if r else h
            for block in stage:
                h = block(h, features)
            skips.append(h)
        for stage, kernel, skip in reversed(list(zip(self.up, self.double, skips, strict=False))):
            larger = jnp.repeat(jnp.repeat(product(h, kernel[...]), 2, axis=1), 2, axis=2)
            h = skip + larger[:, : skip.shape[1], : skip.shape[2]]
            for block in stage:
                h = block(h, features)
        h = h * _of_time(1.0 + features @ self.gain[...], h)
        return convolve(h, self.decode[...]).reshape(u.shape).astype(u.dtype)


class _ConvolutionBlock(nnx.Module):
    """h + conv(silu(conv(h), scaled and shifted by time)); a norm made it no better."""

    def __init__(self, channels: int, *, features: int, rngs: nnx.Rngs):
        self.up = nnx.Param(_kernel_init(rngs.params(), (9 * channels, channels)))
        self.down = nnx.Param(jnp.zeros((9 * channels, channels)))
        self.scale, self.shift = (nnx.Param(jnp.zeros((features, channels))) for _ in range(2))

    def __call__(self, h: jax.Array, features: jax.Array) -> jax.Array:
        scale, shift = _of_time(1.0 + features @ self.scale[...], h), _of_time(features @ self.shift[...], h)
        return h + convolve(jax.nn.silu(convolve(h, self.up[...]) * scale + shift), self.down[...])


def _of_time(factors: jax.Array, maps: jax.Array) -> jax.Array:
    """Returns ``[B, C]`` for every position of ``maps``, in their precision."""
    return factors[:, None, None].astype(maps.dtype)


def _kernel_init(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.normal(key, shape) / np.sqrt(shape[0])


class Preconditioned(nnx.Module):
    """A raw network F(u, features) conditioned on logsnr, with isotropic EDM/v preconditioning.

    With s = data_std and R^2 = alpha^2 s^2 + sigma^2 (Karras et al., arXiv 2206.00364, in VP coordinates):

        E[z_0 | z] = (alpha s^2 / R^2) z + (sigma s / R) F(z / R, logsnr),      F = 0 at initialisation.

    Beyond the range of logsnr that is trained, F is told the end of that range.
    """

    def __init__(self, raw: ResidualMLP | UNet, *, schedule: Schedule, logsnr_min: float, logsnr_max: float):
        """Args: raw: F. schedule: maps t to logsnr. logsnr_min, logsnr_max: range that is trained."""
        self.raw, self.schedule, self.logsnr_min, self.logsnr_max = raw, schedule, logsnr_min, logsnr_max

    def narrow(self, width: int) -> None:
        """Drops the components after the first ``width``."""
        self.raw.narrow(width)

    def __call__(self, z: jax.Array, t: jax.Array, run: RunInputs) -> jax.Array:
        """Returns E[z_0 | z_t] for z ``[B, D]``, t ``[B]``; padded components are 0."""
        logsnr = jnp.clip(self.schedule.logsnr(t), self.logsnr_min, self.logsnr_max)
        features = bump_features(logsnr, self.logsnr_min, self.logsnr_max)

        def raw(u):
            return self.raw(u, features) * run.mask

        return precondition(raw, z * run.mask, t, schedule=self.schedule, data_std=run.data_std)


def precondition(
    raw: Callable[[jax.Array], jax.Array],
    z: jax.Array,
    t: jax.Array,
    *,
    schedule: Schedule,
    data_std: jax.Array | float = 1.0,
) -> jax.Array:
    """Makes E[z_0 | z_t] of a raw network, as in `Preconditioned`: its input and its output have unit scale.

    Args:
      raw: F, ``[B, D]`` to ``[B, D]``; conditioning it on ``t`` is the caller's.
      z: ``[B, D]``.
      t: ``[B]``.
      schedule: maps t to alpha, sigma.
      data_std: root mean square s of the clean latents' components.
    """
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    radius = jnp.sqrt(alpha**2 * data_std**2 + sigma**2)
    return alpha * data_std**2 / radius**2 * z + sigma * data_std / radius * raw(z / radius)


class OwnNetwork(nnx.Module):
    """A network of the user's in the suite's trainings: any object with ``init(key)`` and ``apply(params, z, t)``."""

    def __init__(self, network: Any, *, width: int, key: jax.Array):
        """Args: network: makes parameters, and E[z_0 | z_t] from them. width: D. key: for the parameters."""
        leaves, self.structure = jax.tree.flatten(network.init(key))
        self.network, self.width = network, width
        self.leaves = nnx.List([nnx.Param(jnp.asarray(leaf)) for leaf in leaves])

    def narrow(self, width: int) -> None:
        """Refuses: the network is made for one width."""
        if width != self.width:
            raise ValueError(f"{type(self.network).__name__} works at width {self.width}, got {width}")

    def __call__(self, z: jax.Array, t: jax.Array, run: RunInputs) -> jax.Array:
        """Returns E[z_0 | z_t] for z ``[B, D]``, t ``[B]``."""
        params = jax.tree.unflatten(self.structure, [leaf[...] for leaf in self.leaves])
        x0 = self.network.apply(params, z, jnp.broadcast_to(t, z.shape[:1]))
        if x0.shape != z.shape:
            name = type(self.network).__name__
            raise ValueError(f"{name}.apply must give E[z_0 | z_t] of z's shape {list(z.shape)}, got {list(x0.shape)}")
        return x0


def mlp_flops(latent_dim: int, *, hidden: int, blocks: int) -> int:
    """Returns floating-point operations of one `ResidualMLP` on one sample: 2 per multiply-add of its matrix products."""
    time = BUMPS * hidden * (1 + 2 * blocks)
    return 2 * (2 * latent_dim * hidden + 2 * blocks * hidden**2 + time)


def unet_flops(map_shape: tuple[int, int, int], *, channels: tuple[int, ...], blocks: int) -> int:
    """Returns floating-point operations of one `UNet` on one map: 2 per multiply-add of its matrix products."""
    height, width, depth = map_shape
    total = 9 * height * width * 2 * depth * channels[0] + BUMPS * channels[0]
    for r, c in enumerate(channels):
        if r:
            height, width = -(-height // 2), -(-width // 2)
            total += height * width * channels[r - 1] * c * (9 + 1)
        stages = 1 if r == len(channels) - 1 else 2
        total += stages * blocks * (height * width * 18 * c**2 + 2 * BUMPS * c)
    return 2 * total


def as_denoiser(network: nnx.Module, run: RunInputs) -> Denoiser:
    """Returns the network of one run as a `Denoiser`, the same type as the oracle's."""
    return lambda z, t: network(z, t, run)
