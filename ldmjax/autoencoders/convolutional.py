"""The network of the trained autoencoders: convolutions down to a small grid, a dense layer to the latent, and back.

Every level halves the sides. Images whose sides are not multiples of 2^levels are extended by their last row and column,
and what was added is cut off again after decoding. Vector latents ``[D]`` read the whole coarsest grid, map latents
``[h, w, D]`` one position each. D is the widest latent of a program; a run's own d enters through its mask and fan-in alone,
so a run does not depend on how wide its neighbours are. Activations and their products are in the configuration's precision,
parameters, latents and images in float32.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ldmjax.autoencoders.config import AutoencoderConfig
from ldmjax.convolutions import double, halve, product


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shapes that one compiled program is made for.

    Attributes:
      image_shape: (H, W, C).
      levels: number of halvings.
      width: D, the latents' padded last axis.
      mapped: map latents (h, w, D) rather than vectors (D,).
    """

    image_shape: tuple[int, int, int]
    levels: int
    width: int
    mapped: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Sides of the coarsest maps."""
        height, width, _ = self.image_shape
        return -(-height >> self.levels), -(-width >> self.levels)

    def channels(self, coarsest: int) -> list[int]:
        """Returns the channels of the image and of the maps after every halving, ``coarsest`` at last."""
        halved = [max(1, coarsest >> (self.levels - i)) for i in range(1, self.levels + 1)]
        return [self.image_shape[2], *halved]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Padded latent shape."""
        return (*self.grid, self.width) if self.mapped else (self.width,)


def geometry_of(image_shape: tuple[int, ...], latent_shape: tuple[int, ...], *, downsampling: int) -> Geometry:
    """Returns the geometry of one latent shape; ``downsampling`` is for vectors, maps must match some number of halvings.

    Raises:
      ValueError: if the images are not [H, W] or [H, W, C], or no number of halvings gives the latent shape.
    """
    if len(image_shape) not in (2, 3):
        raise ValueError(f"images must be [N, H, W] or [N, H, W, C], got [N, {', '.join(map(str, image_shape))}]")
    shape = (*image_shape, 1)[:3]
    if len(latent_shape) not in (1, 3) or min(latent_shape) < 1:
        raise ValueError(f"latent shapes must be (d,) or (h, w, c), all >= 1, got {latent_shape}")
    mapped = len(latent_shape) == 3
    allowed = [
        Geometry(image_shape=shape, levels=levels, width=latent_shape[-1], mapped=mapped)
        for levels in range(1, (max(shape[:2]) - 1).bit_length() + 1)
    ]
    if not mapped:
        levels = downsampling.bit_length() - 1
        return Geometry(image_shape=shape, levels=levels, width=latent_shape[0], mapped=False)
    if found := [geometry for geometry in allowed if geometry.grid == latent_shape[:2]]:
        return found[0]
    grids = ", ".join(str(geometry.grid) for geometry in allowed)
    raise ValueError(f"latent maps of images {shape[:2]} must have sides {grids}, got {latent_shape[:2]}")


def fan_in_normal(rng: np.random.Generator, *shape: int, fan_in: int) -> jax.Array:
    """Returns normal weights of variance 1 / ``fan_in`` from a stream of their own; the first rows do not depend on later ones.

    Drawn on the host: compiling jax's generator costs more than all of these draws.
    """
    return jnp.asarray(rng.spawn(1)[0].standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in)))


class Halving(nnx.Module):
    """Half the sides (`convolutions.halve`), then a bias."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator):
        """Args: inputs, outputs: channels. rng: for the kernel."""
        self.kernel = nnx.Param(fan_in_normal(rng, 16 * inputs, outputs, fan_in=16 * inputs))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns ``[B, H, W, inputs]`` with even sides to ``[B, H / 2, W / 2, outputs]``."""
        return halve(x, self.kernel[...]) + self.bias[...].astype(x.dtype)


class Doubling(nnx.Module):
    """Twice the sides (`convolutions.double`), then a bias."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator):
        """Args: inputs, outputs: channels. rng: for the kernel."""
        # Each output pixel lies in 4 squares: its fan-in is 4 x inputs.
        self.kernel = nnx.Param(fan_in_normal(rng, inputs, 16 * outputs, fan_in=4 * inputs))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns ``[B, H, W, inputs]`` to ``[B, 2 H, 2 W, outputs]``."""
        return double(x, self.kernel[...]) + self.bias[...].astype(x.dtype)


class ConvolutionalNetwork(nnx.Module):
    """Encoder and decoder; ``mask`` ``[D]`` marks the run's own latent entries."""

    def __init__(self, geometry: Geometry, config: AutoencoderConfig, *, latent_dim: int, rng: np.random.Generator):
        """Args: geometry: shapes. config: channels, kind. latent_dim: the run's own d. rng: of the initial weights."""
        self.geometry, self.dtype = geometry, jnp.dtype(config.precision)
        channels = geometry.channels(config.channels)
        pairs = list(itertools.pairwise(channels))
        self.down = nnx.List([Halving(a, b, rng=rng) for a, b in pairs])
        self.up = nnx.List([Doubling(b, a, rng=rng) for a, b in reversed(pairs)])
        # A map latent reads its position's channels, a vector all of them.
        features = channels[-1] * (1 if geometry.mapped else geometry.grid[0] * geometry.grid[1])
        self.grid_shape = (*geometry.grid, channels[-1])
        # The padded axis is drawn first, so that padding does not change a run's numbers.
        self.mean = nnx.Param(fan_in_normal(rng, geometry.width, features, fan_in=features).T)
        self.log_var = nnx.Param(jnp.zeros((features, geometry.width))) if config.kind == "kl" else None
        self.expand = nnx.Param(fan_in_normal(rng, geometry.width, features, fan_in=latent_dim))
        self.expand_bias = nnx.Param(jnp.zeros(features))

    def encode(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log variance, 0 unless "kl", of the latents ``[B, *latent_shape]`` of ``[B, H, W, C]``."""
        factor = 2**self.geometry.levels
        below, right = (side * factor - have for side, have in zip(self.geometry.grid, x.shape[1:3], strict=True))
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge").astype(self.dtype)
        for layer in self.down:
            x = jax.nn.silu(layer(x))
        if not self.geometry.mapped:
            x = x.reshape(len(x), -1)
        mean = product(x, self.mean[...]).astype(mask.dtype) * mask
        if self.log_var is None:
            return mean, jnp.zeros_like(mean)
        return mean, product(x, self.log_var[...]).astype(mask.dtype) * mask

    def decode(self, z: jax.Array, mask: jax.Array) -> jax.Array:
        """Images ``[B, H, W, C]`` of latents ``[B, *latent_shape]``."""
        x = product((z * mask).astype(self.dtype), self.expand[...]) + self.expand_bias[...].astype(self.dtype)
        x = jax.nn.silu(x).reshape(len(z), *self.grid_shape)
        for i, layer in enumerate(self.up):
            x = jax.nn.silu(layer(x)) if i < len(self.up) - 1 else layer(x)
        height, width, _ = self.geometry.image_shape
        return x[:, :height, :width].astype(z.dtype)


def parameter_count(config: AutoencoderConfig, image_shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> int:
    """Returns the number of parameters of a trained autoencoder, its codebook left out."""
    geometry, rng = geometry_of(image_shape, latent_shape, downsampling=config.downsampling), np.random.default_rng(0)
    network = ConvolutionalNetwork(geometry, config, latent_dim=latent_shape[-1], rng=rng)
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))


def network_flops(geometry: Geometry, config: AutoencoderConfig) -> int:
    """Returns floating-point operations of encoding and decoding one image: 2 per multiply-add of the matrix products."""
    positions, channels = math.prod(geometry.grid), geometry.channels(config.channels)
    dense = (3 if config.kind == "kl" else 2) * positions * channels[-1] * geometry.width
    # The last halving, and the first doubling, has every position of the grid; the ones before it four times as many.
    kernels = [16 * a * b for a, b in itertools.pairwise(channels)]
    maps = sum(positions * 4**finer * kernel for finer, kernel in enumerate(reversed(kernels)))
    return 2 * (2 * maps + dense)
