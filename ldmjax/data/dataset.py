"""A data set: centred samples with their mean and labels, or a bare spectrum; and its Gaussian twin."""

import dataclasses
import functools
import hashlib

import numpy as np

from ldmjax.gaussians import covariance_factor, eigh_descending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Centred samples, or the variances of a bare Gaussian: one of the two.

    Attributes:
      name: "digits", a file's stem, or the spectrum's description.
      samples: ``[N, D]`` float64 with mean 0, or None for a bare spectrum.
      variances: ``[D]`` of a bare spectrum, whose covariance is diagonal; None with samples.
      mean: ``[D]``, what centring removed; 0 for a bare spectrum.
      labels: ``[N]`` whole numbers, the samples' classes, or None.
      image_shape: shape of one sample before flattening, channels last.
      channels_first: the images were given as ``[N, C, H, W]``, and so a user's own functions take and return them.
      digest: sha256 of the centred samples' (or variances') float64 bytes.
    """

    name: str
    samples: np.ndarray | None = None
    variances: np.ndarray | None = None
    mean: np.ndarray
    labels: np.ndarray | None = None
    image_shape: tuple[int, ...]
    channels_first: bool = False
    digest: str

    @property
    def dim(self) -> int:
        """Data dimension D."""
        return len(self.mean)

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """``[D, D]``, of all samples (division by N); computed when first asked for, as large images do without."""
        if self.samples is None:
            return np.diag(self.variances)
        return self.samples.T @ self.samples / len(self.samples)

    def images(self, samples: np.ndarray) -> np.ndarray:
        """Returns centred samples ``[N, D]`` as images ``[N, *image_shape]``, float32, the mean added back."""
        if samples.ndim != 2 or samples.shape[1] != self.dim:
            raise ValueError(f"samples of {self.name} must have shape [N, {self.dim}], got {list(samples.shape)}")
        # Added in float64 and rounded once, without a float64 copy of all images.
        images = np.add(samples, self.mean, out=np.empty(samples.shape, np.float32), casting="same_kind")
        return images.reshape(-1, *self.image_shape)

    def split_indices(self, *, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of n training samples and of the N - n held-out ones, shuffled by ``seed``.

        Raises:
          ValueError: for a bare spectrum, or an n that leaves fewer than two samples on a side.
        """
        if self.samples is None:
            raise ValueError(f"{self.name} is a spectrum: it has no samples, only its Gaussian twin")
        if not 2 <= n <= len(self.samples) - 2:
            raise ValueError(f"n must be 2..{len(self.samples) - 2} (two samples are held out at least), got {n}")
        order = np.random.default_rng(seed).permutation(len(self.samples))
        return order[:n], order[n:]

    def split(self, *, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (``[n, D]`` training samples, ``[N - n, D]`` held-out ones): those of `split_indices`."""
        train, held_out = self.split_indices(n=n, seed=seed)
        return self.samples[train], self.samples[held_out]

    def twin_draws(self, count: int, *, seed: int, stream: int = 0) -> np.ndarray:
        """Returns ``[count, D]`` draws of N(0, covariance); ``stream`` separates uses of one seed."""
        if count < 2:
            raise ValueError(f"n must be >= 2, got {count}")
        factor = covariance_factor(self.covariance)
        return np.random.default_rng([seed, stream]).standard_normal((count, factor.shape[1])) @ factor.T


def from_samples(
    name: str, samples: np.ndarray, image_shape: tuple[int, ...], *, labels: np.ndarray | None = None
) -> Dataset:
    """Centres ``samples`` ``[N, D]``, which are left as they are; ``labels`` ``[N]`` are their classes."""
    mean = samples.mean(axis=0)
    samples = np.ascontiguousarray(samples - mean)
    digest = hashlib.sha256(samples).hexdigest()
    return Dataset(name=name, samples=samples, mean=mean, labels=labels, image_shape=image_shape, digest=digest)


def from_variances(name: str, variances: np.ndarray) -> Dataset:
    """Returns the bare Gaussian N(0, diag(variances)), ``[D]``."""
    digest = hashlib.sha256(np.ascontiguousarray(variances)).hexdigest()
    shape = variances.shape
    return Dataset(name=name, variances=variances, mean=np.zeros(shape), image_shape=shape, digest=digest)


def principal_components(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns PCA about 0: variances ``[D]``, largest first, and the orthogonal basis ``[D, D]`` with components as columns.

    The latents ``samples @ basis`` have second moment exactly diag(variances); entries at the rank tolerance are 0.
    """
    return eigh_descending(samples.T @ samples / len(samples))
