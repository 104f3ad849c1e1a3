"""Training of the convolutional, KL and VQ autoencoders: runs stacked on a leading axis, one program per latent grid.

Pixels x are standardised (one `LatentScale` of the training images); D pixels, latent mean mu and log variance v, nearest
codes q. Per image, averaged over a batch:

    (1)  conv   |x - x'|^2 / D
    (2)  kl     (|x - x'|^2 + kl_weight KL) / D,    KL = sum (mu^2 + e^v - 1 - v) / 2,    x' decodes a draw of N(mu, e^v)
    (3)  vq     |x - x'|^2 / D + commitment |z - q|^2 / (latent entries),    x' decodes q with straight-through gradient

The power EMA of parameters and codes is kept (optimiser.py). A run's random numbers come from its seed and name; latents are
padded to the widest of the program and masked, so run i of a batch equals run i alone up to float tolerance.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from ldmjax import chunks, loops, random
from ldmjax.autoencoders.config import AutoencoderConfig
from ldmjax.autoencoders.convolutional import ConvolutionalNetwork, Geometry, network_flops
from ldmjax.autoencoders.quantiser import Codebook, empty_codebook, nearest, reseed, straight_through, updated
from ldmjax.checkpoints import fingerprint
from ldmjax.devices import MappedRuns, default_runs_per_batch, map_runs
from ldmjax.job import Job
from ldmjax.optimiser import TrainState, fresh_state, train_chunk

CHUNK = 100  # steps per dispatch and per progress line
ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """One run: its random numbers depend on ``seed`` and ``name`` alone; ``latent_dim`` is its latents' last axis."""

    name: str
    seed: int
    latent_dim: int

    @property
    def entropy(self) -> list[int]:
        """Seeds the run's generators."""
        return [self.seed, zlib.crc32(self.name.encode())]


class AutoencoderRun(NamedTuple):
    """What one run needs besides its state, traced."""

    key: jax.Array
    latent_dim: jax.Array


def averaged(params: jax.Array, codebook: Codebook | None) -> tuple[jax.Array, jax.Array | None]:
    """Returns what the power EMA averages: parameters and codes."""
    return params, codebook and codebook.codes


def init_state(config: AutoencoderConfig, geometry: Geometry, spec: AutoencoderSpec) -> TrainState:
    """Returns the state before the first step; its memory is the codebook, None unless "vq".

    Parameters are one flat vector: Adam and the average are then a few operations to compile and run, not some per layer.
    """
    rng = np.random.default_rng(spec.entropy)
    network = ConvolutionalNetwork(geometry, config, latent_dim=spec.latent_dim, rng=rng)
    params = ravel_pytree(nnx.split(network)[1])[0]
    width = geometry.width if geometry.mapped else config.code_dim
    codebook = empty_codebook(config.codes, width) if config.kind == "vq" else None
    return fresh_state(params, memory=codebook, averaged=averaged, adam=ADAM)


def kl_to_standard_normal(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Returns KL(N(mean, e^log_var) || N(0, 1)) of each entry, in nats."""
    return 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var)


def own_entries(geometry: Geometry, latent_dim: jax.Array | int) -> jax.Array:
    """Returns mask ``[width]``: 1 for the run's own d latent entries."""
    return (jnp.arange(geometry.width) < latent_dim).astype(jnp.float32)


def pieces_of(config: AutoencoderConfig, geometry: Geometry, z: jax.Array) -> jax.Array:
    """Cuts latents ``[B, *latent_shape]`` into what one code replaces, ``[B, P, w]``."""
    return z.reshape(len(z), -1, geometry.width if geometry.mapped else config.code_dim)


def own_pieces(config: AutoencoderConfig, geometry: Geometry, latent_dim: jax.Array | int) -> jax.Array | int:
    """Returns how many of the P pieces are the run's own: padded entries of a vector make padded pieces, of a map none."""
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
    """Computes equations (1)-(3) on standardised pixels ``[B, H, W, C]``, and the codebook after this batch."""
    mask = own_entries(geometry, latent_dim)
    z, log_var = network.encode(x, mask)
    penalty = 0.0
    if config.kind == "kl":
        noise = random.normal(key, math.prod(z.shape[:-1]), geometry.width).reshape(z.shape)
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


class CodingPrograms(NamedTuple):
    """Compiled functions of one trained run.

    Attributes:
      encode: (params, latent_dim, pixels ``[B, H, W, C]``) to latents.
      decode: (params, codes, latent_dim, latents) to pixels.
      index: (codes, latents) to code numbers ``[B, P]``.
    """

    encode: Callable
    decode: Callable
    index: Callable


@functools.lru_cache(maxsize=16)
def coding_programs(config: AutoencoderConfig, geometry: Geometry) -> CodingPrograms:
    """Says how to encode and decode; compiled at the first call, once for all runs of a configuration and geometry."""
    network_of = _network_of(config, geometry)

    def encode(params, latent_dim, pixels):
        return network_of(params).encode(pixels, own_entries(geometry, latent_dim))[0]

    def index(codes, z):
        return nearest(codes, pieces_of(config, geometry, z))

    def decode(params, codes, latent_dim, z):
        if codes is not None:
            z = codes[index(codes, z)].reshape(z.shape)
        return network_of(params).decode(z, own_entries(geometry, latent_dim))

    return CodingPrograms(jax.jit(encode), jax.jit(decode), jax.jit(index))


@functools.lru_cache(maxsize=16)
def training_program(config: AutoencoderConfig, geometry: Geometry, runs_per_batch: int | None) -> MappedRuns:
    """Says how to train: ((images, first, last), state, run) to the state after steps first..last - 1 and the sum of losses.

    Compiled at the first call, so that a second `fit` of the same kind and sizes compiles nothing.
    """
    network_of = _network_of(config, geometry)

    def advance(shared, state, run):
        images, first, last = shared

        def draws_of(step):
            draw_key, loss_key = jax.random.split(random.step(run.key, step))
            return jax.random.randint(draw_key, (config.batch_size,), 0, len(images)), loss_key

        def loss_of(params, codebook, draws):
            index, loss_key = draws
            network, x = network_of(params), images[index]
            return batch_loss(config, geometry, network, codebook, run.latent_dim, x=x, key=loss_key)

        return train_chunk(
            state,
            first=first,
            last=last,
            length=loops.steps_per_call(CHUNK),
            draws_of=draws_of,
            loss_of=loss_of,
            rate_of=lambda step: config.learning_rate * jnp.minimum(1.0, (step + 1.0) / max(1, config.warm_up)),
            ema_gamma=config.ema_gamma,
            averaged=averaged,
            adam=ADAM,
        )

    step_flops = 3 * config.batch_size * network_flops(geometry, config)
    return map_runs(advance, runs_per_batch=runs_per_batch or default_runs_per_batch(step_flops), donate=1)


def _network_of(config, geometry):
    """Maps flat parameters to the network."""
    network = ConvolutionalNetwork(geometry, config, latent_dim=1, rng=np.random.default_rng(0))
    graphdef, params = nnx.split(network)
    unravel = ravel_pytree(params)[1]
    return lambda flat: nnx.merge(graphdef, unravel(flat))


def train_autoencoders(
    specs: Sequence[AutoencoderSpec],
    pixels: np.ndarray,
    config: AutoencoderConfig,
    geometry: Geometry,
    *,
    runs_per_batch: int | None,
    job: Job,
) -> tuple[TrainState, np.ndarray]:
    """Trains ``specs`` on standardised ``pixels`` ``[N, H, W, C]``; returns stacked states and losses ``[runs, chunks]``."""
    runs = _stacked(
        [AutoencoderRun(random.named_key(spec.seed, spec.name), jnp.asarray(spec.latent_dim)) for spec in specs]
    )
    finished = chunks.run_training(
        training_program(config, geometry, runs_per_batch),
        lambda: _stacked([init_state(config, geometry, spec) for spec in specs]),
        jnp.asarray(pixels),
        runs,
        name=f"{config.kind}-autoencoder-{fingerprint(f'{specs} {config} {geometry}', pixels)}",
        count=len(specs),
        steps=config.steps,
        chunk=CHUNK,
        job=job,
        label=f"{config.kind} autoencoder",
    )
    return jax.tree.map(jnp.asarray, finished.state), finished.losses


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
