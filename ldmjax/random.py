"""Random keys and their streams by name; the generator is Threefry (threefry.py).

What is drawn for different purposes from one key comes from streams with names of their own, all listed here. A name stands for
a number that never changes, so that results don't.
"""

import zlib

import jax

from ldmjax.threefry import key, named_keys, normal, words

__all__ = ["STREAMS", "key", "named_key", "named_keys", "normal", "step", "stream", "words"]

STREAMS = {
    # Of the key of a run.
    "initialisation": 0,
    "training": 1,
    "score errors": 2,
    "sampling": 3,
    # Of the key of a seed.
    "starts": 7,
    "chains": 11,
}


def stream(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of the stream ``name``, one of `STREAMS`.

    Raises:
      ValueError: for a name that is not listed.
    """
    if name not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, got {name!r}")
    return jax.random.fold_in(key, STREAMS[name])


def step(key: jax.Array, number: jax.Array | int) -> jax.Array:
    """Returns the key of a step of a loop."""
    return jax.random.fold_in(key, number)


def named_key(seed: int, name: str) -> jax.Array:
    """Returns the key of a seed and a name that the user chose, a run's say."""
    return jax.random.fold_in(key(seed), zlib.crc32(name.encode()))
