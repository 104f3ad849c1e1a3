"""The generator draws what JAX's own draws, bit for bit, in every function, compiled or not, alone or in batches."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ldmjax import threefry

DRAWS = {
    "normal": lambda key: jax.random.normal(key, (33, 7)),
    "integers": lambda key: jax.random.randint(key, (50,), 0, 77),
    "permutation": lambda key: jax.random.permutation(key, 20),
    "8 bits": lambda key: jax.random.bits(key, (9,), "uint8"),
    "16 bits": lambda key: jax.random.bits(key, (9,), "uint16"),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "folded": lambda key: jax.random.uniform(jax.random.fold_in(key, jnp.int32(-1))),
    "batch": lambda key: jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(jnp.arange(3)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1, -3])
def test_draws_are_those_of_jax(draw, seed):
    expected = draw(jax.random.key(seed))
    np.testing.assert_array_equal(draw(threefry.key(seed)), expected)
    np.testing.assert_array_equal(jax.jit(draw)(threefry.key(seed)), expected)


@pytest.mark.parametrize("seed", [2**40 + 7, -5])
def test_draws_in_float64(seed):
    with jax.enable_x64(True):
        expected = jax.random.normal(jax.random.key(seed), (3, 5))
        assert expected.dtype == np.float64
        np.testing.assert_array_equal(jax.random.normal(threefry.key(seed), (3, 5)), expected)


@pytest.mark.parametrize("make", [threefry.key, jax.random.key])
def test_normal_is_the_transpose_of_jax_normal(make):
    key = make(3)
    expected = jax.random.normal(key, (7, 1000)).T
    np.testing.assert_allclose(threefry.normal(key, 1000, 7), expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jax.jit(lambda key: threefry.normal(key, 1000, 7))(key), expected, rtol=1e-5, atol=1e-9)


def test_quantile_of_every_uniform():
    """All 2^23 values that a normal can have, against scipy's quantile in float64."""
    bits = np.arange(2**23, dtype=np.uint32) | np.uint32(0x3F800000)
    above = np.nextafter(np.float32(-1), np.float32(0))
    x = np.maximum(above, (bits.view(np.float32) - np.float32(1)) * (np.float32(1) - above) + above)
    tail = stats.norm.isf(0.5 * (1.0 - np.abs(x.astype(np.float64))))
    np.testing.assert_allclose(threefry._normal_quantile(jnp.asarray(x)), np.sign(x) * tail, rtol=7e-7, atol=1e-12)


def test_first_columns_do_not_depend_on_the_width():
    key = threefry.key(0)
    np.testing.assert_array_equal(threefry.normal(key, 100, 9)[:, :4], threefry.normal(key, 100, 4))


def test_known_answers():
    """Random123's known answers of threefry2x32 with 20 rounds (kat_vectors), as (counter, key, result)."""
    cases = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ]
    for counter, key, result in cases:
        words = threefry._with_parity(jnp.asarray(key, jnp.uint32))
        found = threefry._threefry(words, *(jnp.uint32(c) for c in counter))
        assert tuple(int(word) for word in found) == result


def test_refused():
    with pytest.raises(ValueError, match="Threefry key of two words"):
        threefry.normal(jax.random.key(0, impl="rbg"), 2, 2)
    with pytest.raises(ValueError, match=r"fewer than 2\^32"):
        jax.eval_shape(lambda: threefry.normal(threefry.key(0), 2**20, 2**12))
    with pytest.raises(ValueError, match=r"fewer than 2\^32"):
        jax.jit(lambda key: jax.random.bits(key, (2**32,))).lower(threefry.key(0))


def test_keys_made_at_once_come_from_seed_and_name_alone():
    seeds, names = [0, 5, 2**31 - 1, 2**40 + 3], ["a", "b", "a", "mlp/digits/d3"]
    alone = [
        jax.random.fold_in(threefry.key(seed), zlib.crc32(name.encode()))
        for seed, name in zip(seeds, names, strict=True)
    ]
    made = threefry.named_keys(seeds, names)
    np.testing.assert_array_equal(jax.random.key_data(made), [jax.random.key_data(key) for key in alone])
