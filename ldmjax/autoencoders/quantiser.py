"""Vector quantisation with a codebook of moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1).

A latent is cut into pieces z_j, each replaced by its nearest code e_i. Over the pieces of a batch that chose code i, n_i of
them with sum s_i, and with decay g:

    (1)  N_i <- g N_i + (1 - g) n_i,    m_i <- g m_i + (1 - g) s_i,    e_i = m_i / N_i
    (2)  straight-through: the decoder sees q = z + stop_gradient(e - z), so dL/dz = dL/dq

A code whose N_i falls below `DEAD` of an even share is *re-seeded*: it moves to a random piece of the batch and counts as
having an even share (as Jukebox does, arXiv 2005.00341, §3.1). The first batch seeds all codes this way.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DEAD = 0.03


class Codebook(NamedTuple):
    """Moving averages of equation (1): ``count`` N ``[K]``, ``total`` m ``[K, w]``."""

    count: jax.Array
    total: jax.Array

    @property
    def codes(self) -> jax.Array:
        """The code vectors e ``[K, w]``."""
        return self.total / jnp.maximum(self.count, jnp.finfo(jnp.float32).tiny)[:, None]


def empty_codebook(codes: int, width: int) -> Codebook:
    """Returns a codebook that the first batch seeds."""
    return Codebook(jnp.zeros(codes), jnp.zeros((codes, width)))


def nearest(codes: jax.Array, pieces: jax.Array) -> jax.Array:
    """Returns index of the nearest of ``codes`` ``[K, w]`` to each of ``pieces`` ``[..., w]``; the first of equals."""
    return jnp.argmin(jnp.sum(codes**2, axis=1) - 2.0 * pieces @ codes.T, axis=-1)


def reseed(codebook: Codebook, pieces: jax.Array, valid: jax.Array | int, key: jax.Array) -> Codebook:
    """Moves dead codes to random pieces.

    Args:
      codebook: before this batch.
      pieces: ``[B, P, w]``.
      valid: how many of the P pieces are real; the rest is padding.
      key: chooses them.
    """
    image_key, piece_key = jax.random.split(key)
    count = codebook.count.shape
    image = jax.random.randint(image_key, count, 0, len(pieces))
    chosen = pieces[image, jax.random.randint(piece_key, count, 0, valid)]
    share = len(pieces) * valid / count[0]
    dead = codebook.count < DEAD * share
    return Codebook(jnp.where(dead, share, codebook.count), jnp.where(dead[:, None], share * chosen, codebook.total))


def updated(
    codebook: Codebook, pieces: jax.Array, index: jax.Array, valid: jax.Array | int, *, decay: float
) -> Codebook:
    """Moves codes by (1) for ``pieces`` ``[B, P, w]`` that chose ``index`` ``[B, P]``; the first ``valid`` count."""
    real = (jnp.arange(pieces.shape[1]) < valid)[None, :]
    chose = jax.nn.one_hot(index, len(codebook.count)) * real[..., None]
    count, total = chose.sum((0, 1)), jnp.einsum("bpk,bpw->kw", chose, pieces)
    return Codebook(decay * codebook.count + (1.0 - decay) * count, decay * codebook.total + (1.0 - decay) * total)


def straight_through(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """Computes equation (2): the value of ``quantised``, the gradient of ``z``."""
    return z + jax.lax.stop_gradient(quantised - z)
