"""Autoencoders that need no training: PCA and the identity.

With mean mu and the d leading principal axes V ``[D, d]`` of the images about mu:

    (1)  encode(x) = V^T (x - mu),    decode(z) = mu + V z

Its squared error per image, over the images it was fitted on, is the sum of the dropped variances (Eckart & Young). The
identity's latent is the image: latent diffusion with it is pixel diffusion.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ldmjax.autoencoders.interface import FittedAutoencoder, LatentScale
from ldmjax.data import principal_components
from ldmjax.gaussians import eigh_descending


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PCA(FittedAutoencoder):
    """Equation (1); ``mean`` is ``[D]``, ``axes`` ``[D, d]``, both float32."""

    mean: np.ndarray
    axes: np.ndarray

    def _encode(self, images: np.ndarray) -> np.ndarray:
        return (images.reshape(len(images), -1) - self.mean) @ self.axes

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        return (latents @ self.axes.T + self.mean).reshape(len(latents), *self.image_shape)


class Identity(FittedAutoencoder):
    """Latent = image."""

    def _encode(self, images: np.ndarray) -> np.ndarray:
        return images

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        return latents


def principal_axes(centred: np.ndarray) -> np.ndarray:
    """Returns principal axes of ``centred`` samples ``[N, D]`` as columns, largest variance first, float64 ``[D, min(N, D)]``.

    With fewer samples than dimensions they come from the small Gram matrix; axes beyond the rank are 0 there.
    """
    count, dim = centred.shape
    if count >= dim:
        return principal_components(centred)[1]
    variances, vectors = eigh_descending(centred @ centred.T / count)
    return centred.T @ vectors / np.sqrt(np.where(variances > 0, count * variances, np.inf))


def fit_pca(
    images: np.ndarray, latent_shapes: Sequence[tuple[int, ...]], *, names: Sequence[str]
) -> list[FittedAutoencoder]:
    """Fits one PCA per latent shape ``(d,)``; all share one eigendecomposition in float64."""
    samples = images.reshape(len(images), -1).astype(np.float64)
    most = min(samples.shape)
    if bad := [s for s in latent_shapes if len(s) != 1 or not 1 <= s[0] <= most]:
        raise ValueError(f"latent shapes of pca must be (d,) with 1 <= d <= {most}, the images or pixels, got {bad[0]}")
    mean = samples.mean(axis=0)
    centred = samples - mean
    axes = principal_axes(centred)
    return [
        PCA(
            name=name,
            image_shape=images.shape[1:],
            latent_shape=shape,
            scale=LatentScale.measure(centred @ axes[:, : shape[0]]),
            mean=mean.astype(np.float32),
            axes=axes[:, : shape[0]].astype(np.float32),
        )
        for shape, name in zip(latent_shapes, names, strict=True)
    ]


def fit_identity(
    images: np.ndarray, latent_shapes: Sequence[tuple[int, ...]], *, names: Sequence[str]
) -> list[FittedAutoencoder]:
    """Returns the pixel run's autoencoder; every latent shape must be the images' own."""
    shape = images.shape[1:]
    if bad := [s for s in latent_shapes if s != shape]:
        raise ValueError(f"latent shapes of identity must be the image shape {shape}, got {bad[0]}")
    scale = LatentScale.measure(images)
    return [Identity(name=name, image_shape=shape, latent_shape=shape, scale=scale) for name in names]
