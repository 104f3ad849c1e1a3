"""The network of the trained autoencoders: convolutions down to a small grid, a dense layer to the latent, and back.

Every level halves the sides. Images whose sides are not multiples of 2^levels are extended by their last row and column,
and what was added is cut off again after decoding. Vector latents ``[D]`` read the whole coarsest grid, map latents
``[h, w, D]`` one position each. D is the widest latent of a program; a run's own d enters through its mask and fan-in alone,
so a run does not depend on how wide its neighbours are.

A convolution is a product of patches and a matrix, a transposed one a convolution and a pixel shuffle: inside a
`lax.scan` on a CPU, XLA's own convolutions and their gradients take five times as long.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ldmjax.autoencoders.config import AutoencoderConfig


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

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Padded latent shape."""
        return (*self.grid, self.width) if self.mapped else (self.width,)


def geometry_of(image_shape: tuple[int, ...], latent_shape: tuple[int, ...], *, downsampling: int) -> Geometry:
    """The geometry of one latent shape; ``downsampling`` is for vectors, maps must match some number of halvings.

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


class Convolution(nnx.Module):
    """Kernel K x K, stride S, output sides = input sides / S: patches ``[B, h, w, K K C]`` times a matrix."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, rngs: nnx.Rngs):
        """Args: inputs, outputs: channels. kernel: K, with K - S even. stride: S."""
        self.kernel, self.stride = kernel, stride
        self.dense = nnx.Linear(kernel**2 * inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C]`` to ``[B, H / S, W / S, outputs]``."""
        height, width, border = x.shape[1], x.shape[2], (self.kernel - self.stride) // 2
        x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
        offsets = [(i, j) for i in range(self.kernel) for j in range(self.kernel)]
        patches = [x[:, i : i + height : self.stride, j : j + width : self.stride] for i, j in offsets]
        return self.dense(jnp.concatenate(patches, axis=-1))


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """``[B, H, W, 4 C]`` to ``[B, 2 H, 2 W, C]``: each position becomes a 2 x 2 square."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


class ConvolutionalNetwork(nnx.Module):
    """Encoder and decoder; ``mask`` ``[D]`` marks the run's own latent entries."""

    def __init__(self, geometry: Geometry, config: AutoencoderConfig, *, latent_dim: jax.Array | int, rngs: nnx.Rngs):
        """Args: geometry: shapes. config: channels and kind. latent_dim: the run's own d, the decoder's fan-in."""
        levels, self.geometry = geometry.levels, geometry
        channels = [geometry.image_shape[2]] + [max(1, config.channels >> (levels - i)) for i in range(1, levels + 1)]
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.down = nnx.List([Convolution(a, b, kernel=4, stride=2, rngs=rngs) for a, b in pairs])
        self.up = nnx.List([Convolution(b, 4 * a, kernel=3, rngs=rngs) for a, b in reversed(pairs)])
        # A map latent reads its position's channels, a vector all of them.
        features = channels[-1] * (1 if geometry.mapped else geometry.grid[0] * geometry.grid[1])
        self.grid_shape = (*geometry.grid, channels[-1])
        normal = jax.nn.initializers.normal(1.0)
        # The padded axis is drawn first, so that padding does not change a run's numbers.
        self.mean = nnx.Param(normal(rngs.params(), (geometry.width, features)).T / jnp.sqrt(features))
        self.log_var = nnx.Param(jnp.zeros((features, geometry.width))) if config.kind == "kl" else None
        self.expand = nnx.Param(normal(rngs.params(), (geometry.width, features)) / jnp.sqrt(latent_dim))
        self.expand_bias = nnx.Param(jnp.zeros(features))

    def encode(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of the latent ``[B, *latent_shape]`` of ``[B, H, W, C]``; log variance 0 unless "kl"."""
        factor = 2**self.geometry.levels
        below, right = (side * factor - have for side, have in zip(self.geometry.grid, x.shape[1:3], strict=True))
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        for layer in self.down:
            x = jax.nn.silu(layer(x))
        if not self.geometry.mapped:
            x = x.reshape(len(x), -1)
        mean = x @ self.mean[...] * mask
        return mean, jnp.zeros_like(mean) if self.log_var is None else x @ self.log_var[...] * mask

    def decode(self, z: jax.Array, mask: jax.Array) -> jax.Array:
        """Images ``[B, H, W, C]`` of latents ``[B, *latent_shape]``."""
        x = jax.nn.silu((z * mask) @ self.expand[...] + self.expand_bias[...]).reshape(len(z), *self.grid_shape)
        for i, layer in enumerate(self.up):
            x = pixel_shuffle(jax.nn.silu(layer(x)) if i < len(self.up) - 1 else layer(x))
        height, width, _ = self.geometry.image_shape
        return x[:, :height, :width]
