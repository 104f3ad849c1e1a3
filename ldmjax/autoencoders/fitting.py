"""Training of the convolutional, KL and VQ autoencoders: runs stacked on a leading axis, one program per latent grid.

Pixels x are standardised (one `LatentScale` of the training images); D pixels, latent mean mu and log variance v, nearest
codes q. Per image, averaged over a batch:

    (1)  conv   |x - x'|^2 / D
    (2)  kl     (|x - x'|^2 + kl_weight KL) / D,    KL = sum (mu^2 + e^v - 1 - v) / 2,    x' decodes a draw of N(mu, e^v)
    (3)  vq     |x - x'|^2 / D + commitment |z - q|^2 / (latent entries),    x' decodes q with straight-through gradient

The power EMA of parameters and codes is kept: after step k it moves by 1 - (1 - 1/k)^(gamma + 1) (Karras et al., arXiv
2312.02696). A run's random numbers come from its seed and name; latents are padded to the widest of the program and masked,
so run i of a batch equals run i alone up to float tolerance.
"""

import functools
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from ldmjax.autoencoders.config import AutoencoderConfig
from ldmjax.autoencoders.convolutional import ConvolutionalNetwork, Geometry
from ldmjax.autoencoders.quantiser import Codebook, empty_codebook, nearest, reseed, straight_through, updated
from ldmjax.devices import map_runs, padded_count

CHUNK = 100  # steps per dispatch and per progress line
ADAM = optax.scale_by_adam()


class Run(NamedTuple):
    """What one run needs besides its state: its random key and latent dimension d, the last axis of its latents."""

    key: jax.Array
    latent_dim: jax.Array


class State(NamedTuple):
    """Arrays of one run; ``ema`` averages (params, codes); ``codebook`` is None unless "vq"; ``failed_at`` -1 for none."""

    params: PyTree
    codebook: Codebook | None
    optimiser: optax.OptState
    ema: tuple[PyTree, jax.Array | None]
    failed_at: jax.Array


def kl_to_standard_normal(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mean, e^log_var) || N(0, 1)) of each entry, in nats."""
    return 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var)


def own_entries(geometry: Geometry, latent_dim: jax.Array | int) -> jax.Array:
    """Mask ``[width]``: 1 for the run's own d latent entries."""
    return (jnp.arange(geometry.width) < latent_dim).astype(jnp.float32)


def pieces_of(config: AutoencoderConfig, geometry: Geometry, z: jax.Array) -> jax.Array:
    """Cuts latents ``[B, *latent_shape]`` into what one code replaces, ``[B, P, w]``."""
    return z.reshape(len(z), -1, geometry.width if geometry.mapped else config.code_dim)


def own_pieces(config: AutoencoderConfig, geometry: Geometry, latent_dim: jax.Array | int) -> jax.Array | int:
    """How many of the P pieces are the run's own: padded entries of a vector make padded pieces, of a map none."""
    return geometry.grid[0] * geometry.grid[1] if geometry.mapped else latent_dim // config.code_dim


def batch_loss(
    config: AutoencoderConfig,
    geometry: Geometry,
    network: ConvolutionalNetwork,
    codebook: Codebook | None,
    latent_dim: jax.Array,
    *,
    x: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, Codebook | None]:
    """Equations (1)-(3) on standardised pixels ``[B, H, W, C]``, and the codebook after this batch."""
    mask = own_entries(geometry, latent_dim)
    z, log_var = network.encode(x, mask)
    penalty = 0.0
    if config.kind == "kl":
        # The padded axis is drawn first, so that padding does not change a run's numbers.
        noise = jnp.moveaxis(jax.random.normal(key, (geometry.width, *z.shape[:-1])), 0, -1)
        penalty = config.kl_weight * jnp.sum(kl_to_standard_normal(z, log_var)) / x.size
        z = z + jnp.exp(0.5 * log_var) * noise * mask
    if config.kind == "vq":
        valid = own_pieces(config, geometry, latent_dim)
        pieces = jax.lax.stop_gradient(pieces_of(config, geometry, z))
        codebook = reseed(codebook, pieces, valid, key)
        index = nearest(codebook.codes, pieces)
        quantised = codebook.codes[index].reshape(z.shape)
        penalty = config.commitment * jnp.mean((z - quantised) ** 2 @ mask) / jnp.sum(mask)
        codebook = updated(codebook, pieces, index, valid, decay=config.code_decay)
        z = straight_through(z, quantised)
    return jnp.mean((network.decode(z, mask) - x) ** 2) + penalty, codebook


def apply_step(
    config: AutoencoderConfig,
    state: State,
    *,
    loss: jax.Array,
    gradient: PyTree,
    codebook: Codebook | None,
    step: jax.Array,
) -> State:
    """Adam, then the power EMA; a run whose loss or parameters are not finite keeps its last state for good."""
    rate = config.learning_rate * jnp.minimum(1.0, (step + 1.0) / max(1, config.warm_up))
    update, optimiser = ADAM.update(gradient, state.optimiser)
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: -rate * u, update))
    average = 1.0 - (1.0 - 1.0 / (step + 1.0)) ** (config.ema_gamma + 1.0)
    if config.steps > 50_000:
        average = jnp.maximum(average, 1.0 - 0.9999)
    ema = optax.incremental_update((params, codebook and codebook.codes), state.ema, average)
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
    fine = finite & (state.failed_at < 0)
    failed_at = jnp.where(finite | (state.failed_at >= 0), state.failed_at, step)
    new = State(params, codebook, optimiser, ema, failed_at)
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)._replace(failed_at=failed_at)


class Programs(NamedTuple):
    """Compiled functions of one configuration and geometry; the first two map over stacked runs.

    Attributes:
      init: (0, runs) to states.
      advance: ((images, first, last), states, runs) to states after steps first..last - 1 and their mean losses.
      encode: (params, latent_dim, pixels ``[B, H, W, C]``) to latents.
      decode: (params, codes, latent_dim, latents) to pixels.
      index: (codes, latents) to code numbers ``[B, P]``.
    """

    init: Callable
    advance: Callable
    encode: Callable
    decode: Callable
    index: Callable


@functools.lru_cache(maxsize=16)
def programs(config: AutoencoderConfig, geometry: Geometry, runs_per_batch: int = 1) -> Programs:
    """The programs of ``config`` and ``geometry``, compiled at their first call; same arguments give the same ones."""

    def fresh(key, latent_dim):
        return ConvolutionalNetwork(geometry, config, latent_dim=latent_dim, rngs=nnx.Rngs(params=key))

    graphdef = nnx.split(nnx.eval_shape(lambda: fresh(jax.random.key(0), 1)))[0]

    def init(_, run: Run):
        params = nnx.split(fresh(jax.random.fold_in(run.key, 0), run.latent_dim))[1]
        width = geometry.width if geometry.mapped else config.code_dim
        codebook = empty_codebook(config.codes, width) if config.kind == "vq" else None
        ema = (params, codebook and codebook.codes)
        return State(params, codebook, ADAM.init(params), ema, jnp.full((), -1, jnp.int32))

    def advance(shared, packed):
        (images, first, last), (state, run) = shared, packed

        def step_of(step, carry):
            state, total = carry
            draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(run.key, 1), step))
            x = images[jax.random.randint(draw_key, (config.batch_size,), 0, len(images))]

            def objective(params):
                network = nnx.merge(graphdef, params)
                return batch_loss(config, geometry, network, state.codebook, run.latent_dim, x=x, key=loss_key)

            (loss, codebook), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
            state = apply_step(config, state, loss=loss, gradient=gradient, codebook=codebook, step=step)
            return state, total + loss

        state, total = jax.lax.fori_loop(first, last, step_of, (state, jnp.zeros(())))
        return state, total / (last - first)

    @jax.default_matmul_precision("highest")
    def encode(params, latent_dim, pixels):
        return nnx.merge(graphdef, params).encode(pixels, own_entries(geometry, latent_dim))[0]

    @jax.default_matmul_precision("highest")
    def decode(params, codes, latent_dim, z):
        if codes is not None:
            z = codes[index(codes, z)].reshape(z.shape)
        return nnx.merge(graphdef, params).decode(z, own_entries(geometry, latent_dim))

    def index(codes, z):
        return nearest(codes, pieces_of(config, geometry, z))

    mapped = map_runs(advance, runs_per_batch=runs_per_batch)
    return Programs(
        init=jax.jit(map_runs(init, runs_per_batch=runs_per_batch)),
        advance=jax.jit(lambda shared, state, runs: mapped(shared, (state, runs)), donate_argnums=(1,)),
        encode=jax.jit(encode),
        decode=jax.jit(decode),
        index=jax.jit(index),
    )


def run_of(name: str, *, seed: int, latent_dim: int) -> Run:
    """A run's inputs; its random numbers depend on its seed and name alone."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return Run(key, jnp.asarray(latent_dim))


def train(
    runs: Sequence[Run],
    pixels: np.ndarray,
    config: AutoencoderConfig,
    geometry: Geometry,
    *,
    runs_per_batch: int,
    report: Callable[[str], None],
) -> tuple[State, np.ndarray]:
    """Trains ``runs`` on standardised ``pixels`` ``[N, H, W, C]``; returns stacked states and losses ``[runs, chunks]``."""
    program, count = programs(config, geometry, runs_per_batch), len(runs)
    order = np.minimum(np.arange(padded_count(count)), count - 1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves)[order], *runs)
    images, losses, start = jnp.asarray(pixels), [], time.perf_counter()
    state = program.init(0, stacked)
    for first in range(0, config.steps, CHUNK):
        done = min(first + CHUNK, config.steps)
        state, loss = program.advance((images, jnp.asarray(first), jnp.asarray(done)), state, stacked)
        losses.append(np.asarray(loss)[:count])
        seconds = time.perf_counter() - start
        report(
            f"{config.kind} autoencoder: step {done}/{config.steps} of {count} runs, loss {np.nanmean(losses[-1]):.4f}, "
            f"{done * count / seconds:.0f} run-steps/s, {seconds * (config.steps - done) / done:.0f} s left"
        )
    return jax.tree.map(lambda x: x[:count], state), np.stack(losses, axis=1)
