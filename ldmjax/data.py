"""Data sets, spectra and their Gaussian twins; everything centred, float64, on the host.

A `Dataset` is a covariance, and samples if there are any. Its *Gaussian twin* is N(0, covariance). Subsets and twin draws
depend on a seed only. The mean is taken over the whole data set and removed first: the theory is about covariances, and a
sampler that has to learn the mean as well would blur it.
"""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from ldmjax.gaussians import covariance_factor, eigh_descending

SPECTRA = "power:EXPONENT | exponential:RATE | lowrank:RANK | FILE.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A centred data set or a bare covariance.

    Attributes:
      name: "digits", a file's stem, or the spectrum's description.
      covariance: ``[D, D]``, of all samples.
      samples: ``[N, D]`` with mean 0, or None for a bare spectrum.
      image_shape: shape of one sample before flattening.
      digest: sha256 of the samples' (or covariance's) float64 bytes.
    """

    name: str
    covariance: np.ndarray
    samples: np.ndarray | None
    image_shape: tuple[int, ...]
    digest: str

    @property
    def dim(self) -> int:
        """Data dimension D."""
        return self.covariance.shape[0]

    def split(self, *, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (``[n, D]`` training samples, ``[N - n, D]`` held-out ones), shuffled by ``seed``."""
        if self.samples is None:
            raise ValueError(f"{self.name} is a spectrum: it has no samples, only its Gaussian twin")
        if not 2 <= n <= len(self.samples) - 2:
            raise ValueError(f"n must be 2..{len(self.samples) - 2} (two samples are held out at least), got {n}")
        order = np.random.default_rng(seed).permutation(len(self.samples))
        return self.samples[order[:n]], self.samples[order[n:]]

    def twin_draws(self, count: int, *, seed: int, stream: int = 0) -> np.ndarray:
        """``[count, D]`` draws of N(0, covariance); ``stream`` separates uses of one seed."""
        if count < 2:
            raise ValueError(f"n must be >= 2, got {count}")
        factor = covariance_factor(self.covariance)
        return np.random.default_rng([seed, stream]).standard_normal((count, factor.shape[1])) @ factor.T


def from_samples(name: str, samples: np.ndarray, image_shape: tuple[int, ...]) -> Dataset:
    """Centres ``samples`` ``[N, D]`` and takes their covariance (division by N)."""
    samples = samples - samples.mean(axis=0)
    digest = hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()
    covariance = samples.T @ samples / len(samples)
    return Dataset(name=name, covariance=covariance, samples=samples, image_shape=image_shape, digest=digest)


def digits() -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels scaled from 0..16 to [-1, 1], centred."""
    return from_samples("digits", load_digits().data / 8.0 - 1.0, (8, 8))


def load_npz(path: str) -> Dataset:
    """Reads key ``images`` or ``x``, samples first, from an .npz file.

    Unsigned 8-bit integers are scaled from 0..255 to [-1, 1]; other numbers are taken as they are. Then centred.

    Raises:
      ValueError: with a line that says what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = archive.files
            key = next((k for k in ("images", "x") if k in keys), None)
            array = None if key is None else archive[key]
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path!r} is not a readable .npz file of numbers: {error}") from error
    if array is None:
        raise ValueError(f"{path!r} has keys {', '.join(keys)}; needs 'images' or 'x'")
    if array.ndim < 2 or array.shape[0] < 4 or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{path!r} must hold numbers [N >= 4, ...], got {array.dtype} {list(array.shape)}")
    samples = array.reshape(len(array), -1).astype(np.float64)
    if not np.all(np.isfinite(samples)):
        raise ValueError(f"{path!r} holds NaN or infinity")
    if array.dtype == np.uint8:
        samples = samples / 127.5 - 1.0
    return from_samples(Path(path).stem, samples, array.shape[1:])


def load(name: str) -> Dataset:
    """A data set by name: "digits", or the path of an .npz file."""
    if name == "digits":
        return digits()
    if name.endswith(".npz"):
        return load_npz(name)
    raise ValueError(f"unknown data {name!r}: allowed are digits or a path that ends in .npz")


def spectrum_variances(description: str, dim: int) -> np.ndarray:
    """Variances ``[D]``, largest first.

    Args:
      description: "power:a" (i^-a), "exponential:r" (exp(-r (i-1))), "lowrank:k" (k ones, then zeros), i = 1..D, or the
        path of an .npy file with one variance per entry in any order.
      dim: D for the first three; a file gives its own.

    Raises:
      ValueError: if the description, a parameter or the file is not valid.
    """
    if description.endswith(".npy"):
        return _read_spectrum(description)
    kind, _, text = description.partition(":")
    if kind not in ("power", "exponential", "lowrank") or not text:
        raise ValueError(f"unknown spectrum {description!r}: allowed are {SPECTRA}")
    try:
        parameter = float(text)
    except ValueError:
        raise ValueError(f"spectrum {description!r}: {text!r} is not a number") from None
    if dim < 1:
        raise ValueError(f"data_dim must be >= 1, got {dim}")
    index = np.arange(1, dim + 1)
    if kind == "lowrank":
        if parameter != int(parameter) or not 1 <= parameter <= dim:
            raise ValueError(f"spectrum {description!r}: the rank must be a whole number 1..{dim}")
        return (index <= parameter).astype(np.float64)
    if not (np.isfinite(parameter) and parameter >= 0):
        raise ValueError(f"spectrum {description!r}: the parameter must be finite and >= 0")
    return index**-parameter if kind == "power" else np.exp(-parameter * (index - 1.0))


def _read_spectrum(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    try:
        variances = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path!r} is not a readable .npy file: {error}") from error
    if variances.ndim != 1 or variances.size == 0 or not np.issubdtype(variances.dtype, np.number):
        raise ValueError(f"{path!r} must hold numbers [D], got {variances.dtype} {list(variances.shape)}")
    variances = np.sort(variances.astype(np.float64))[::-1]
    if not np.all(np.isfinite(variances)):
        raise ValueError(f"{path!r} holds NaN or infinity")
    # Eigenvalues computed in float32 scatter about zero; anything below that is a negative variance.
    if variances[-1] < -1e-6 * variances[0]:
        raise ValueError(f"{path!r} holds a negative variance: {variances[-1]:g}")
    return np.clip(variances, 0.0, None)


def spectrum(description: str, dim: int) -> Dataset:
    """The bare Gaussian N(0, diag(`spectrum_variances`))."""
    variances = spectrum_variances(description, dim)
    digest = hashlib.sha256(variances.tobytes()).hexdigest()
    name = Path(description).stem if description.endswith(".npy") else description
    return Dataset(name=name, covariance=np.diag(variances), samples=None, image_shape=(variances.size,), digest=digest)


def principal_components(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PCA about 0: variances ``[D]``, largest first, and the orthogonal basis ``[D, D]`` with components as columns.

    The latents ``samples @ basis`` have second moment exactly diag(variances); entries at the rank tolerance are 0.
    """
    return eigh_descending(samples.T @ samples / len(samples))
