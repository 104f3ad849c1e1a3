"""Random keys whose numbers are those of JAX's default generator, bit for bit, made faster on a CPU.

The generator is Threefry-2x32 with 20 rounds (Salmon et al., SC 2011; jax_threefry_partitionable). On a CPU JAX writes its
rounds as a loop, to compile quickly; a loop is a barrier to fusion, and costs more than the arithmetic. Here the rounds are
straight-line code. `jax.random`'s functions take these keys as any others.
"""

import functools
import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = np.uint32(0x1BD11BDA)
# Numerator and denominator, highest power first: least largest relative error (3.6e-7 before rounding to float32).
QUANTILE = (
    (1.07671485e-05, 1.22932007e-03, 1.43801160e-02, 1.06048688e-01, 5.09218454e-01, 1.25331461e00),
    (1.28485714e-04, 3.44947609e-03, 3.37154567e-02, 1.44507125e-01, 1.0),
)


def key(seed: int | jax.Array) -> jax.Array:
    """Returns the key of a seed; draws what ``jax.random.key(seed)`` draws."""
    return jax.random.key(seed, impl=THREEFRY)


def named_keys(seeds: Sequence[int], names: Sequence[str]) -> jax.Array:
    """Keys ``[R]``, each from its own seed and name alone; all in one operation, for thousands of runs."""
    hashes = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    return jax.vmap(lambda seed, name: jax.random.fold_in(key(seed), name))(np.array(seeds, np.int64), hashes)


def normal(key: jax.Array, count: int, width: int) -> jax.Array:
    """Draws float32 normals ``[count, width]`` column by column: those of ``jax.random.normal(key, (width, count)).T``.

    They agree to 1e-5 of themselves. Column i is the same whatever ``width`` is, so a padded latent draws what an unpadded
    one draws.

    Args:
      key: of this generator, or of JAX's own Threefry; or its `words`, made before a loop.
      count: rows.
      width: columns.

    Raises:
      ValueError: for a key of another generator, or 2^32 numbers or more.
    """
    made = key.dtype == jnp.uint32 and key.shape == (3,)
    _check_size(count, width)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, (count, width), axis) for axis in (0, 1))
    high, low = _threefry(key if made else words(key), jnp.uint32(0), column * np.uint32(count) + row)
    # Uniform on [1, 2) by its bits, then on (-1, 1).
    uniform = jax.lax.bitcast_convert_type((high ^ low) >> np.uint32(9) | np.uint32(0x3F800000), jnp.float32) - 1.0
    above = np.nextafter(np.float32(-1.0), np.float32(0.0))
    return _normal_quantile(jnp.maximum(above, uniform * (1.0 - above) + above))


def words(key: jax.Array) -> jax.Array:
    """Returns the words ``[3]`` that the rounds of a key add: the key's two, and their parity.

    Raises:
      ValueError: for a key of another generator.
    """
    found = jax.random.key_data(key)
    if found.shape != (2,):
        raise ValueError(f"key must be one Threefry key of two words, got words of shape {found.shape}")
    return _with_parity(found)


def _with_parity(key):
    return jnp.stack([key[0], key[1], key[0] ^ key[1] ^ PARITY])


def _normal_quantile(x):
    """Returns sqrt(2) erf_inv(x) for float32 x in (-1, 1), to 7e-7 of itself; XLA's erf_inv takes half as long again, to 6e-6.

    It is x times a rational function of w = -log(1 - x^2), fitted to the exact one on 0 < w < 16.7.
    """
    w = -jnp.log((1.0 - x) * (1.0 + x))
    above, below = (functools.reduce(lambda total, c: total * w + np.float32(c), terms) for terms in QUANTILE)
    return x * above / below


def _check_size(*shape):
    if math.prod(shape) >= 2**32:
        raise ValueError(f"one call draws fewer than 2^32 numbers, got shape {shape}")


def _threefry(words, high, low):
    """Returns both words of the block with counter (high, low), from a key's three `words`."""
    a, b = high + words[0], low + words[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = a ^ (b << np.uint32(rotation) | b >> np.uint32(32 - rotation))
        a = a + words[(group + 1) % 3]
        b = b + words[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


def _blocks(key, shape):
    """Returns both words of one block per element of ``shape``."""
    _check_size(*shape)
    return _threefry(_with_parity(key), jnp.uint32(0), jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape))


@functools.partial(jax.jit, inline=True)
def _seed(seed):
    high = jax.lax.shift_right_logical(seed, jnp.asarray(32, seed.dtype))
    return jnp.stack([high.astype(jnp.uint32), seed.astype(jnp.uint32)])


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _split(key, shape):
    return jnp.stack(_blocks(key, shape), axis=-1)


def _random_bits(key, bit_width, shape):
    high, low = _blocks(key, shape)
    if bit_width == 64:
        return high.astype(jnp.uint64) << np.uint64(32) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


@functools.partial(jax.jit, inline=True)
def _fold_in(key, data):
    return jnp.stack(_threefry(_with_parity(key), jnp.uint32(0), data.astype(jnp.uint32)))


THREEFRY = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="ldmjax_threefry",
    tag="ldmjax-fry",
)
