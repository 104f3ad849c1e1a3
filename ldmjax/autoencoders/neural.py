"""Trained autoencoders: convolutional, KL and VQ, grouped into as few programs as their latent shapes allow."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ldmjax.autoencoders.config import AutoencoderConfig
from ldmjax.autoencoders.convolutional import Geometry, geometry_of
from ldmjax.autoencoders.fitting import AutoencoderSpec, coding_programs, train_autoencoders
from ldmjax.autoencoders.interface import FittedAutoencoder, LatentScale
from ldmjax.devices import items_per_device
from ldmjax.job import Job

MOST_CODED = 4096  # images per call


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NeuralAutoencoder(FittedAutoencoder):
    """A trained autoencoder. "kl" encodes to the mean; "vq" to the latent before quantisation, and decode quantises first.

    Attributes:
      config: what it was trained with.
      geometry: shapes of its program, with padded latents.
      params: network parameters, one flat vector.
      codes: ``[K, w]`` codebook of "vq", None otherwise.
      pixel_scale: of the images it was fitted on.
      losses: mean training loss of each chunk of steps.
      perplexity: exp(entropy) of the codes that the images it was fitted on use, 1..K; nan unless "vq".
    """

    config: AutoencoderConfig
    geometry: Geometry
    params: jax.Array
    codes: jax.Array | None
    pixel_scale: LatentScale
    losses: np.ndarray
    perplexity: float = np.nan

    @property
    def precision(self) -> str:
        """Of the activations and products in it."""
        return self.config.precision

    def _encode(self, images: np.ndarray) -> np.ndarray:
        pixels = self.pixel_scale.standardise(images).reshape(-1, *self.geometry.image_shape)
        encode = coding_programs(self.config, self.geometry).encode
        latents = self._batched(lambda x: encode(self.params, self.latent_shape[-1], x), pixels)
        return latents[..., : self.latent_shape[-1]]

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        decode = coding_programs(self.config, self.geometry).decode
        padded = self._padded(latents)
        pixels = self._batched(lambda z: decode(self.params, self.codes, self.latent_shape[-1], z), padded)
        return self.pixel_scale.unstandardise(pixels).reshape(-1, *self.image_shape)

    def code_numbers(self, latents: np.ndarray) -> np.ndarray:
        """Returns nearest codes ``[N, P]`` of the P pieces of latents ``[N, *latent_shape]``; "vq" only."""
        index = coding_programs(self.config, self.geometry).index
        numbers = self._batched(lambda z: index(self.codes, z), self._padded(latents))
        return numbers[:, : latents[0].size // self.codes.shape[1]] if not self.geometry.mapped else numbers

    def _padded(self, latents: np.ndarray) -> np.ndarray:
        width = self.geometry.width - latents.shape[-1]
        return np.pad(latents, [(0, 0)] * (latents.ndim - 1) + [(0, width)])

    def _batched(self, program: Callable[[np.ndarray], jax.Array], inputs: np.ndarray) -> np.ndarray:
        """Runs ``program`` on batches of one size: a shorter one would be compiled anew, so the last is padded."""
        # Some hundred times an image's own size are its activations and patches.
        size = min(
            MOST_CODED, items_per_device(400.0 * math.prod(self.geometry.image_shape), on_cpu=self.config.eval_batch)
        )
        short = -len(inputs) % size if len(inputs) else size
        padded = np.concatenate([inputs, np.zeros((short, *inputs.shape[1:]), np.float32)])
        batches = [np.asarray(program(padded[i : i + size])) for i in range(0, len(padded), size)]
        return np.concatenate(batches)[: len(inputs)]


def fit_neural(
    images: np.ndarray,
    latent_shapes: Sequence[tuple[int, ...]],
    config: AutoencoderConfig,
    *,
    names: Sequence[str],
    seeds: Sequence[int],
    runs_per_batch: int | None,
    job: Job,
) -> list[FittedAutoencoder]:
    """Fits one autoencoder per latent shape and seed; vectors of all lengths, maps of equal sides, share a program."""
    options = {"runs_per_batch": runs_per_batch, "job": job}
    geometries = [geometry_of(images.shape[1:], s, downsampling=config.downsampling) for s in latent_shapes]
    if config.kind == "vq" and (bad := [s for s in latent_shapes if len(s) == 1 and s[0] % config.code_dim]):
        raise ValueError(f"vq: vector latents must be multiples of code_dim = {config.code_dim}, got {bad[0]}")
    scale = LatentScale.measure(images)
    pixels = scale.standardise(images).reshape(len(images), *geometries[0].image_shape)
    made = [None] * len(names)
    for shape in dict.fromkeys((g.levels, g.mapped) for g in geometries):
        group = [i for i, g in enumerate(geometries) if (g.levels, g.mapped) == shape]
        geometry = max((geometries[i] for i in group), key=lambda g: g.width)
        specs = [AutoencoderSpec(name=names[i], seed=seeds[i], latent_dim=latent_shapes[i][-1]) for i in group]
        state, losses = train_autoencoders(specs, pixels, config, geometry, **options)
        for row, i in enumerate(group):
            params, codes = jax.tree.map(lambda x, row=row: x[row], state.ema)
            autoencoder = NeuralAutoencoder(
                name=names[i],
                image_shape=images.shape[1:],
                latent_shape=latent_shapes[i],
                scale=LatentScale(mean=np.nan, std=np.nan),
                failed_at=int(state.failed_at[row]),
                config=config,
                geometry=geometry,
                params=params,
                codes=codes,
                pixel_scale=scale,
                losses=losses[row],
            )
            made[i] = _measured(autoencoder, images)
    return made


def _measured(autoencoder: NeuralAutoencoder, images: np.ndarray) -> NeuralAutoencoder:
    """Measures latent scale and perplexity; one that diverged keeps nan, so that nobody uses it unaware."""
    if autoencoder.failed_at >= 0:
        return autoencoder
    latents = autoencoder.encode(images)
    measured = {"scale": LatentScale.measure(latents)}
    if autoencoder.codes is not None:
        used = np.bincount(autoencoder.code_numbers(latents).ravel(), minlength=len(autoencoder.codes))
        share = used[used > 0] / used.sum()
        measured["perplexity"] = float(np.exp(-np.sum(share * np.log(share))))
    return dataclasses.replace(autoencoder, **measured)
