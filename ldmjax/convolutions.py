"""Convolutions of maps and their products with matrices, as the device at hand wants them, in float32 or bfloat16.

All work in the precision of the maps they are given, whatever that of their kernels; products of bfloat16 numbers are summed
in float32. Kernels are matrices, so that shifted copies of the maps, side by side, times the kernel are the convolution. A CPU
computes it that way: inside a loop, XLA's own convolutions and their gradients take 4 to 20 times as long there.

An accelerator has convolutions that need no copies, which of a large network would take most of its memory and of its time. Of
several networks at once (vmapped) they are grouped, though, and the gradient of a group's kernel is a convolution whose kernel
is as large as the map. So they serve `LARGE` convolutions: their networks are trained one after another
(`devices.default_runs_per_batch`). Small ones, all runs at once, are one batched product of shifted copies there as well.
"""

import jax
import jax.numpy as jnp

from ldmjax.devices import LARGE_STEP, platform

PRECISIONS = ("float32", "bfloat16")
LARGE = LARGE_STEP / 10  # operations of one convolution: few networks with a step that is not large have one


def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns ``x @ matrix`` in the precision of x; float32 products are as exact as the process says."""
    if x.dtype == jnp.bfloat16:
        return jnp.matmul(x, matrix.astype(x.dtype), precision=jax.lax.Precision.DEFAULT)
    return x @ matrix


def convolve(maps: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Returns the 3x3 convolution, zero-padded.

    Args:
      maps: ``[B, H, W, C]``.
      kernel: ``[9 C, C_out]``, shifts row by row, then channels.
      stride: keeps every stride-th row and column, beginning with the first.

    Returns:
      ``[B, ceil(H / stride), ceil(W / stride), C_out]``.
    """
    return _convolve(maps, kernel, size=3, stride=stride)


def halve(maps: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the convolution of kernel 4, stride 2, zero border 1.

    Args:
      maps: ``[B, H, W, C]``, sides even.
      kernel: ``[16 C, C_out]``, shifts row by row, then channels.

    Returns:
      ``[B, H / 2, W / 2, C_out]``.
    """
    return _convolve(maps, kernel, size=4, stride=2)


def double(maps: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the transposed convolution: each position paints a 4 x 4 square, overlaps add up.

    Args:
      maps: ``[B, H, W, C]``.
      kernel: ``[C, 16 C_out]``; columns are block row, block column, row and column in the block, channel, for a square of
        2 x 2 blocks of 2 x 2 pixels.

    Returns:
      ``[B, 2 H, 2 W, C_out]``.
    """
    batch, height, width, channels = maps.shape
    if _natively(batch * height * width * kernel.size):
        squares = kernel.reshape(channels, 2, 2, 2, 2, -1).transpose(1, 3, 2, 4, 0, 5).reshape(4, 4, channels, -1)
        return _native(maps, squares[::-1, ::-1], padding=2, lhs_dilation=(2, 2))
    # Block (p, q) of position (i, j) lands on block (i + p, j + q).
    blocks = jnp.split(product(maps, kernel), 4, axis=-1)
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    full = sum(
        jnp.pad(block, ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0))) for block, (p, q) in zip(blocks, places, strict=True)
    )
    full = full.reshape(batch, height + 1, width + 1, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    full = full.reshape(batch, 2 * height + 2, 2 * width + 2, -1)
    return full[:, 1:-1, 1:-1]


def _convolve(maps, kernel, *, size, stride):
    """Returns a convolution of a square kernel, with a zero border of 1."""
    batch, height, width, channels = maps.shape
    if _natively(batch * -(-height // stride) * -(-width // stride) * kernel.size):
        return _native(maps, kernel.reshape(size, size, channels, -1), padding=1, window_strides=(stride, stride))
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]
    return product(jnp.concatenate(shifts, axis=-1), kernel)


def _natively(multiply_adds: int) -> bool:
    return platform() != "cpu" and 2 * multiply_adds >= LARGE


def _native(maps, kernel, *, padding, window_strides=(1, 1), **options):
    """Returns XLA's convolution, as precise as the process's products unless that is an algorithm which only products have."""
    precision = None
    if maps.dtype == jnp.bfloat16:
        precision = jax.lax.Precision.DEFAULT
    elif jax.config.jax_default_matmul_precision in jax.lax.DotAlgorithmPreset.__members__:
        precision = jax.lax.Precision.HIGHEST
    return jax.lax.conv_general_dilated(
        maps, kernel.astype(maps.dtype), window_strides, [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision, **options,
    )  # fmt: skip
