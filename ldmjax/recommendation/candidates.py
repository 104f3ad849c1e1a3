"""What can be recommended: autoencoders, or latents with or without a decoder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ldmjax import autoencoders, data, features
from ldmjax.autoencoders import Autoencoder, FittedAutoencoder
from ldmjax.checkpoints import fingerprint
from ldmjax.job import NO_JOB, Job
from ldmjax.metrics import FeatureReference, Measure

BLOCKS = 64


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
    job: Job = NO_JOB,
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
        latents = job.keep(f"latents/{name}", lambda e=encode: e(training))
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
                name=name,
                latents=training,
                decode=scale.standardise,
                measures=measures,
                training=scale.standardise(training),
            )
        )
    return found


def digest_of(tried: Sequence[Candidate]) -> str:
    """Returns the digest of the latents and decoded images of the first two images."""
    return fingerprint("", [(c.latents[:2], c.decode(c.latents[:2])) for c in tried])


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
