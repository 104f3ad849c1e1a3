"""Spectra by formula or file: variances of a Gaussian whose covariance is diagonal."""

from pathlib import Path

import numpy as np

from ldmjax.data.dataset import Dataset, from_variances

SPECTRA = "power:EXPONENT | exponential:RATE | lowrank:RANK | FILE.npy"


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
    """Returns the bare Gaussian N(0, diag(`spectrum_variances`))."""
    name = Path(description).stem if description.endswith(".npy") else description
    return from_variances(name, spectrum_variances(description, dim))
