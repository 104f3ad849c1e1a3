"""Stored latents: the arrays of a file, read as numbers or refused by their name."""

from pathlib import Path

import numpy as np

from ldmjax.data.precision import float32_problem

LABELS = {"labels", "y"}  # keys, as in files of images


def load_latents(path: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads every array of an .npz file, by its key, or that of an .npy file, by the file's name.

    Returns:
      The arrays ``[N, ...]``, float32, and a line on each that is not taken as it is: labels, bfloat16, integers.

    Raises:
      ValueError: with one line that says what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    arrays, lines = _without_labels(_read_arrays(path), path)
    for key, array in arrays.items():
        array, notes = _read_as_numbers(array, f"{path!r}: {key!r}")
        lines += notes
        if array.ndim < 2 or not array.size or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise ValueError(f"{path!r}: {key!r} must hold numbers [N, ...], got {array.dtype} {list(array.shape)}")
        with np.errstate(over="ignore"):
            arrays[key] = array.astype(np.float32)
        if not np.all(np.isfinite(arrays[key])):
            raise ValueError(f"{path!r}: {key!r} holds NaN, infinity or numbers too large for float32")
        if problem := float32_problem(array):
            raise ValueError(f"{path!r}: {key!r} {problem}")
    if len({len(array) for array in arrays.values()}) != 1:
        raise ValueError(f"{path!r} must hold arrays [N, ...] of one N, got {_shapes(arrays)}")
    return arrays, lines


def _read_arrays(path):
    """All arrays of a file by name, whatever they hold, but for Python objects."""
    key = Path(path).stem
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {key: loaded}
        arrays = {}
        with loaded as archive:
            for key in archive.files:
                arrays[key] = archive[key]
        return arrays
    except Exception as error:  # whatever a damaged file raises
        if "Object arrays" in str(error):
            raise ValueError(f"{path!r}: {key!r} must hold numbers [N, ...], got Python objects (a pickle)") from error
        if "valid dtype descriptor" in str(error):  # as of float8 with five exponent bits
            raise ValueError(
                f"{path!r}: {key!r} has a type that numpy does not store: save it as float32 or float16"
            ) from error
        line = "it does not begin as one" if "pickle" in str(error) else " ".join(str(error).split())
        raise ValueError(f"{path!r} is not a readable .npz or .npy file of numbers: {line}") from error


def _without_labels(arrays, path):
    """The arrays but for labels, one for each row of the others, which some tools store beside latents; lines on them."""
    found, lines = dict(arrays), []
    for key in LABELS & set(arrays) if len(arrays) > 1 else ():
        labels = found.pop(key)
        if labels.ndim != 1 or labels.dtype.kind not in "biuUS":
            raise ValueError(
                f"{path!r}: {key!r} must hold a label for each latent, integers [N], got {labels.dtype} {list(labels.shape)}: "
                "give latents another key"
            )
        if len({len(labels), *(len(array) for array in found.values() if array.ndim)}) > 1:
            raise ValueError(f"{path!r} must hold one of {key!r} for each latent, got {_shapes(arrays)}")
        lines.append(f"{path}: {key!r} are taken for labels and not used")
    return found, lines


def _read_as_numbers(array, what):
    """The array, or what its bytes mean if numpy has no name for them; lines on what may not be meant."""
    dtype = array.dtype
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2:
        # numpy writes bfloat16 as two bytes without a type; no other type of ml_dtypes has two.
        numbers = (np.ascontiguousarray(array).view("<u2").astype(np.uint32) << 16).view(np.float32)
        return numbers, [
            f"{what} has two bytes and no type for each number, as numpy writes bfloat16: read as bfloat16"
        ]
    if dtype.kind == "V" and dtype.names is None:
        raise ValueError(f"{what} has a type that numpy does not store, got {dtype}: save it as float32 or float16")
    if dtype.kind in "iu":
        return array, [f"{what} holds integers, read as numbers; of indices into a codebook give the vectors instead"]
    return array, []


def _shapes(arrays):
    return ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "none"
