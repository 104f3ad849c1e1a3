"""What every autoencoder offers: encode and decode on numpy arrays, and the scale of its latents.

The *latent scale* is the mean and standard deviation over all entries of the latents of the images it was fitted on.
Latent diffusion works on standardised latents,

    (1)  z = (latent - mean) / std,

as latent diffusion models do in practice (Rombach et al., arXiv 2112.10752, §4.3.2 "rescaling"); a noise level, hence a
stopping time, means nothing before the scale is known.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Autoencoder(Protocol):
    """Anything with these two methods: ours, or a user's object with torch, flax or anything else behind it."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents ``[N, *latent_shape]`` of images ``[N, *image_shape]``."""

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images ``[N, *image_shape]`` of latents ``[N, *latent_shape]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentScale:
    """Mean and standard deviation of latents: over all entries, or arrays that broadcast against one latent."""

    mean: float | np.ndarray
    std: float | np.ndarray

    @classmethod
    def measure(cls, latents: np.ndarray) -> "LatentScale":
        """Returns the scale of ``latents`` ``[N, *latent_shape]``, summed in float64.

        Raises:
          ValueError: if an entry is NaN or infinite, or if all are equal.
        """
        mean, std = float(np.mean(latents, dtype=np.float64)), float(np.std(latents, dtype=np.float64))
        if not np.isfinite(std):
            raise ValueError("latents must be finite, got NaN or infinity")
        if std == 0.0:
            raise ValueError(f"latents must vary, got {mean:g} in every entry")
        return cls(mean=mean, std=std)

    def standardise(self, latents: np.ndarray) -> np.ndarray:
        """Computes equation (1), float32."""
        return ((latents - self.mean) / self.std).astype(np.float32)

    def unstandardise(self, z: np.ndarray) -> np.ndarray:
        """Returns the inverse of `standardise`, float32."""
        return (z * self.std + self.mean).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedAutoencoder:
    """An `Autoencoder` made here.

    Attributes:
      name: kind, latent shape and seed.
      image_shape: of one image.
      latent_shape: of one latent.
      scale: of the latents of the images it was fitted on.
      failed_at: the training step that first was not finite, -1 for none; parameters are those before it.
    """

    name: str
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    scale: LatentScale
    failed_at: int = -1

    @property
    def precision(self) -> str:
        """Of the activations and products in it."""
        return "float32"

    @property
    def latent_mean(self) -> float:
        """Mean of all latent entries."""
        return self.scale.mean

    @property
    def latent_std(self) -> float:
        """Standard deviation of all latent entries."""
        return self.scale.std

    def standardise(self, latents: np.ndarray) -> np.ndarray:
        """Latents to mean 0 and standard deviation 1, float32."""
        return self.scale.standardise(latents)

    def unstandardise(self, z: np.ndarray) -> np.ndarray:
        """Returns the inverse of `standardise`."""
        return self.scale.unstandardise(z)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents ``[N, *latent_shape]`` of images ``[N, *image_shape]``, float32; ValueError for another shape."""
        return self._encode(_checked("images", images, self.image_shape))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images ``[N, *image_shape]`` of latents ``[N, *latent_shape]``, float32; ValueError for another shape."""
        return self._decode(_checked("latents", latents, self.latent_shape))

    def _encode(self, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def reconstruction_error(autoencoder: Autoencoder, images: np.ndarray) -> float:
    """Returns mean squared error per pixel of decode(encode(images)), summed in float64."""
    error = autoencoder.decode(autoencoder.encode(images)) - images
    return float(np.mean(error**2, dtype=np.float64))


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape[1:] != shape:
        raise ValueError(f"{name} must have shape [N, {', '.join(map(str, shape))}], got {list(array.shape)}")
    return np.asarray(array, np.float32)
