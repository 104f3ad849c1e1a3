"""What can be recommended: autoencoders of the suite, the user's own, or latents with or without a decoder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ldmjax import autoencoders, data, features
from ldmjax.autoencoders import Autoencoder, FittedAutoencoder
from ldmjax.checkpoints import NOTHING_KEPT, Store
from ldmjax.metrics import FeatureReference, Measure

BLOCKS = 64
LABELS = {"labels", "y"}  # keys, as in files of images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One latent space.

    Attributes:
      name: kind and latent dimension.
      latents: encoded training images ``[n, *latent_shape]``, on the autoencoder's own scale.
      decode: from that scale to what ``measures`` compare.
      measures: feature spaces by name.
      training: the training images as ``measures`` see them, for the floor; None if there are none.
      precision: of the autoencoder's products; None if it is not the suite's, and not known.
    """

    name: str
    latents: np.ndarray
    decode: Callable[[np.ndarray], np.ndarray]
    measures: Mapping[str, Measure]
    training: np.ndarray | None
    precision: str | None = None

    @property
    def latent_dim(self) -> int:
        """Entries of one latent."""
        return int(np.prod(self.latents.shape[1:]))


def measures_of(maps: Mapping[str, Callable], reference: np.ndarray, seed: int) -> dict[str, Measure]:
    """One `Measure` per feature map, all on the same reference images ``[m, ...]``."""
    return {
        name: Measure(function, FeatureReference(function(reference), blocks=BLOCKS, seed=seed))
        for name, function in maps.items()
    }


def of_autoencoders(
    named: Mapping[str, Autoencoder],
    training: np.ndarray,
    measures: Mapping[str, Measure],
    *,
    batch: int,
    channels_first: bool = False,
    store: Store = NOTHING_KEPT,
) -> list[Candidate]:
    """Candidates that encode ``training`` ``[n, *image_shape]``; their latents are kept.

    The autoencoders take and return channels last, or first if told so.

    Raises:
      ValueError: with one line, if encode or decode fails or returns something else than arrays of one length.
    """
    found = []
    for name, autoencoder in named.items():
        decode = decoding(f"{name}: decode", autoencoder.decode, batch, training.shape[1:], channels_first)
        encode = batched(f"{name}: encode", taking(autoencoder.encode, channels_first), batch)
        latents = store.piece(f"latents/{name}", lambda e=encode: e(training))
        decode(latents[:2])
        precision = autoencoder.precision if isinstance(autoencoder, FittedAutoencoder) else None
        shared = {"measures": measures, "training": training, "precision": precision}
        found.append(Candidate(name=name, latents=latents, decode=decode, **shared))
    return found


def of_latents(
    arrays: Mapping[str, np.ndarray],
    rows: np.ndarray,
    decoder: Callable[[np.ndarray], np.ndarray],
    training: np.ndarray,
    measures: Mapping[str, Measure],
    *,
    batch: int,
    channels_first: bool = False,
) -> list[Candidate]:
    """Candidates from stored latents, row i of each array being image i of the data; ``rows`` are the training images."""
    found = []
    for name, latents in arrays.items():
        decode = decoding(f"decoder of {name}", decoder, batch, training.shape[1:], channels_first)
        decode(latents[:2])
        found.append(Candidate(name=name, latents=latents[rows], decode=decode, measures=measures, training=training))
    return found


def of_latents_alone(arrays: Mapping[str, np.ndarray], *, n: int, reference: int, seed: int) -> list[Candidate]:
    """Candidates whose noisy latents are compared with held-out latents, on the scale of the training latents."""
    found = []
    for name, latents in arrays.items():
        order = np.random.default_rng(seed).permutation(len(latents))
        training, held_out = latents[order[:n]], latents[order[n : n + reference]]
        scale = autoencoders.LatentScale.measure(training)
        shape = latents.shape[1:]
        space, function = features.pixels(shape, channels_first=data.channels.of_latents_are_first(shape))
        measures = measures_of({space.replace("pixels", "latents"): function}, scale.standardise(held_out), seed)
        found.append(
            Candidate(
                name=name, latents=training, decode=scale.standardise, measures=measures, training=scale.standardise(training)
            )
        )  # fmt: skip
    return found


def taking(encode: Callable, channels_first: bool) -> Callable:
    """The user's ``encode`` as a function of images with channels last."""
    return (lambda images: encode(data.channels.move_first(images))) if channels_first else encode


def decoding(what: str, decode: Callable, batch: int, image_shape: Sequence[int], channels_first: bool) -> Callable:
    """The user's ``decode``, `batched`, as a function that returns images ``[B, *image_shape]`` with channels last.

    A decoder whose images have the one shape that moving the channels gives is taken at its word, whatever ``channels_first``.
    """
    last, first = tuple(image_shape), (*image_shape[-1:], *image_shape[:-1])
    if len(last) != 3:
        return batched(what, decode, batch, shape=last)
    other = last if channels_first else first

    def in_one_order(latents):
        images = np.asarray(decode(latents), np.float32)
        if first != last and images.shape[1:] == other:
            images = data.channels.move_first(images) if channels_first else data.channels.move_last(images)
        return images

    call = batched(what, in_one_order, batch, shape=first if channels_first else last)
    return (lambda latents: data.channels.move_last(call(latents))) if channels_first else call


def batched(what: str, function: Callable, batch: int, *, shape: Sequence[int] | None = None) -> Callable:
    """Calls the user's ``function`` on ``batch`` rows at a time, and checks what comes back.

    Args:
      what: names the function in errors.
      function: numpy ``[B, ...]`` -> ``[B, ...]``.
      batch: B.
      shape: if given, every row is brought to this shape, which must have as many entries.
    """

    def call(inputs):
        parts = []
        for first in range(0, len(inputs), batch):
            rows = inputs[first : first + batch]
            try:
                part = np.asarray(function(rows), np.float32)
            except Exception as error:  # the user's function may raise anything
                raise ValueError(f"{what}: {type(error).__name__}: {error}") from error
            if part.ndim < 2 or len(part) != len(rows):
                raise ValueError(f"{what}: of {len(rows)} rows must come [{len(rows)}, ...], got {list(part.shape)}")
            if shape is not None and part[0].size != np.prod(shape):
                raise ValueError(f"{what}: images must have shape {list(shape)}, got {list(part.shape[1:])}")
            parts.append(part if shape is None else part.reshape(-1, *shape))
        outputs = np.concatenate(parts)
        if shape is None and not np.all(np.isfinite(outputs)):
            raise ValueError(f"{what}: returned NaN or infinity")
        return outputs

    return call


def load_latents(path: str, *, report: Callable[[str], None] = print) -> dict[str, np.ndarray]:
    """Every array of an .npz file by its key, or that of an .npy file by the file's name, float32.

    Args:
      path: of the file.
      report: receives a line for each array that is not taken as it is: labels, bfloat16, integers.

    Raises:
      ValueError: with one line that says what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    arrays = _without_labels(_read_arrays(path), path, report)
    for key, array in arrays.items():
        array = _read_as_numbers(array, f"{path!r}: {key!r}", report)
        if array.ndim < 2 or not array.size or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise ValueError(f"{path!r}: {key!r} must hold numbers [N, ...], got {array.dtype} {list(array.shape)}")
        with np.errstate(over="ignore"):
            arrays[key] = array.astype(np.float32)
        if not np.all(np.isfinite(arrays[key])):
            raise ValueError(f"{path!r}: {key!r} holds NaN, infinity or numbers too large for float32")
        if problem := data.float32_problem(array):
            raise ValueError(f"{path!r}: {key!r} {problem}")
    if len({len(array) for array in arrays.values()}) != 1:
        raise ValueError(f"{path!r} must hold arrays [N, ...] of one N, got {_shapes(arrays)}")
    return arrays


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


def _without_labels(arrays, path, report):
    """The arrays but for labels, one for each row of the others, which some tools store beside latents."""
    found = dict(arrays)
    for key in LABELS & set(arrays) if len(arrays) > 1 else ():
        labels = found.pop(key)
        if labels.ndim != 1 or labels.dtype.kind not in "biuUS":
            raise ValueError(
                f"{path!r}: {key!r} must hold a label for each latent, integers [N], got {labels.dtype} {list(labels.shape)}: "
                "give latents another key"
            )
        if len({len(labels), *(len(array) for array in found.values() if array.ndim)}) > 1:
            raise ValueError(f"{path!r} must hold one of {key!r} for each latent, got {_shapes(arrays)}")
        report(f"{path}: {key!r} are taken for labels and not used")
    return found


def _read_as_numbers(array, what, report):
    """The array, or what its bytes mean if numpy has no name for them; a line on what may not be meant."""
    dtype = array.dtype
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2:
        # numpy writes bfloat16 as two bytes without a type; no other type of ml_dtypes has two.
        report(f"{what} has two bytes and no type for each number, as numpy writes bfloat16: read as bfloat16")
        return (np.ascontiguousarray(array).view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype.kind == "V" and dtype.names is None:
        raise ValueError(f"{what} has a type that numpy does not store, got {dtype}: save it as float32 or float16")
    if dtype.kind in "iu":
        report(f"{what} holds integers, read as numbers; of indices into a codebook give the vectors instead")
    return array


def _shapes(arrays):
    return ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "none"
