"""Autoencoders: PCA, the identity, convolutional, KL-VAE and VQ-VAE, behind one encode/decode interface."""

from collections.abc import Sequence

import numpy as np

from ldmjax.autoencoders.config import KINDS, AutoencoderConfig
from ldmjax.autoencoders.interface import Autoencoder, FittedAutoencoder, LatentScale, reconstruction_error
from ldmjax.autoencoders.linear import PCA, Identity, fit_identity, fit_pca
from ldmjax.autoencoders.neural import NeuralAutoencoder, fit_neural
from ldmjax.job import NO_JOB, Job

__all__ = [
    "KINDS",
    "PCA",
    "Autoencoder",
    "AutoencoderConfig",
    "FittedAutoencoder",
    "Identity",
    "LatentScale",
    "NeuralAutoencoder",
    "fit",
    "reconstruction_error",
]


def fit(
    images: np.ndarray,
    latent_shapes: Sequence[tuple[int, ...]],
    config: AutoencoderConfig,
    *,
    seeds: Sequence[int],
    runs_per_batch: int | None = None,
    job: Job = NO_JOB,
) -> list[FittedAutoencoder]:
    """Fits one autoencoder per pair (latent_shapes[i], seeds[i]).

    Args:
      images: ``[N, *image_shape]``; ``[N, H, W]`` or ``[N, H, W, C]`` for the trained kinds.
      latent_shapes: ``(d,)`` for vectors, ``(h, w, c)`` for maps (trained kinds), the image shape for the identity.
      config: shared by all.
      seeds: as many as latent shapes; they choose initialisation and batches ("pca" and "identity" have neither).
      runs_per_batch: runs trained at once on each device; the others wait, which bounds memory. By default
        `devices.default_runs_per_batch`.
      job: keeps checkpoints of the trained kinds and shows progress.

    Returns:
      The autoencoders, in order; one that diverged holds its last finite parameters and says when (``failed_at``).

    Raises:
      ValueError: if the lengths differ, an image is not finite or a latent shape does not suit images and kind.
    """
    if len(seeds) != len(latent_shapes):
        raise ValueError(f"need one seed per latent shape, got {len(seeds)} seeds and {len(latent_shapes)} shapes")
    if len(images) < 2 or not np.all(np.isfinite(images)):
        raise ValueError(f"need at least 2 images, all finite, got {list(images.shape)}")
    sizes = ["x".join(map(str, shape)) for shape in latent_shapes]
    names = [f"{config.kind}/{size}/seed{seed}" for size, seed in zip(sizes, seeds, strict=True)]
    if config.kind == "pca":
        return fit_pca(images, latent_shapes, names=names)
    if config.kind == "identity":
        return fit_identity(images, latent_shapes, names=names)
    return fit_neural(
        images,
        latent_shapes,
        config,
        names=names,
        seeds=seeds,
        runs_per_batch=runs_per_batch,
        job=job,
    )
