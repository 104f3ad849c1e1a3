"""From what a user has to candidates: images each used once, split, tried on the user's functions before long work begins."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ldmjax.autoencoders import Autoencoder
from ldmjax.data import Dataset
from ldmjax.metrics import Measure
from ldmjax.recommendation import expected_images
from ldmjax.recommendation.candidates import BLOCKS, Candidate, of_autoencoders, of_latents, of_latents_alone
from ldmjax.recommendation.distinct import choose_distinct, choose_distinct_latents

LARGEST = 5000  # training images, and held-out images, that are used unless another number is asked for
FEWEST = 2 * BLOCKS  # held-out images
BATCH = 256  # images per call of the user's functions


class Split(NamedTuple):
    """Images that are used, each once, in random order.

    Attributes:
      count: images of the data, repeats among them.
      rows: ``[n]``, of the training images in the data.
      training, held_out: ``[n, *image_shape]`` and ``[m, *image_shape]``, float32, channels last.
      noticed: a line on each kind of repeat that was found.
    """

    count: int
    rows: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    noticed: list[str]


def split_images(
    dataset: Dataset, *, n: int | None = None, reference: int | None = None, most: int = LARGEST, seed: int = 0
) -> Split:
    """Shuffles the images by ``seed``, leaves out repeats, and takes training and held-out ones.

    Args:
      dataset: with samples.
      n: training images; None for half, at most ``most``.
      reference: held-out images; None for the rest, at most ``most``.
      most: see there.
      seed: of the order.

    Raises:
      ValueError: for too few images, or too many asked for; it begins with "images", "n" or "reference" and a colon.
    """
    order, noticed = choose_distinct(dataset.samples, most=(n or most) + (reference or most), seed=seed)
    n, reference = split_sizes(len(order), n=n, reference=reference, most=most, noun="images", noticed=noticed)
    training, held_out = (dataset.images(dataset.samples[rows]) for rows in (order[:n], order[n : n + reference]))
    return Split(len(dataset.samples), order[:n], training, held_out, noticed)


def split_sizes(
    count: int, *, n: int | None, reference: int | None, most: int, noun: str, noticed: Sequence[str]
) -> tuple[int, int]:
    """(training, held-out) images or latents out of ``count``, as `split_images`; ``noticed`` says why there are not more."""
    there = f"{count} {noun}" + (f" ({'; '.join(noticed)})" if noticed else "")
    if count < 2 * FEWEST:
        raise ValueError(f"{noun}: needs at least {2 * FEWEST} {noun}, got {there}")
    n = min(count // 2, most) if n is None else n
    if not BLOCKS <= n <= count - FEWEST:
        raise ValueError(f"n: must be {BLOCKS}..{count - FEWEST}: {there}, {FEWEST} held out at least")
    reference = min(count - n, most) if reference is None else reference
    if not FEWEST <= reference <= count - n:
        raise ValueError(f"reference: must be {FEWEST}..{count - n}: {there}, {n} of them for training")
    return n, reference


def latents_alone(
    arrays: Mapping[str, np.ndarray], *, n: int | None, reference: int | None, most: int = LARGEST, seed: int = 0
) -> tuple[list[Candidate], list[str]]:
    """Candidates from latents without a decoder, of which repeats are left out: (candidates, lines); as `split_images`."""
    used, noticed = choose_distinct_latents(arrays, most=(n or most) + (reference or most), seed=seed)
    count = len(next(iter(used.values())))
    n, reference = split_sizes(count, n=n, reference=reference, most=most, noun="latents", noticed=noticed)
    return of_latents_alone(used, n=n, reference=reference, seed=seed), noticed


def stored_latents(
    arrays: Mapping[str, np.ndarray],
    decoder: Callable[[np.ndarray], np.ndarray],
    split: Split,
    measures: Mapping[str, Measure],
    *,
    batch: int = BATCH,
    channels_first: bool = False,
) -> tuple[list[Candidate], list[str]]:
    """Candidates from latents with a decoder, and lines on those that may decode to another form of images.

    Raises:
      ValueError: with one line, if the decoder fails or gives images of another form; for another number of rows it begins
        with "latents" and a colon.
    """
    if wrong := [f"{name} {len(z)}" for name, z in arrays.items() if len(z) != split.count]:
        raise ValueError(f"latents: must have one row for each of {split.count} images, got {', '.join(wrong)}")
    layout = {"channels_first": channels_first}
    found = of_latents(arrays, split.rows, decoder, split.training, measures, batch=batch, **layout)
    lines = []
    for one in found:
        decoded = one.decode(one.latents[: expected_images.FEW])
        lines += expected_images.check_decoded(one.name, decoded, split.training[: len(decoded)], **layout)
    return found, lines


def check_forms(
    named: Mapping[str, Autoencoder],
    training: np.ndarray,
    measures: Mapping[str, Measure],
    *,
    batch: int = BATCH,
    channels_first: bool = False,
) -> list[str]:
    """Lines on autoencoders that may expect another form of images; `ValueError` if one is far better with it."""
    lines, layout = [], {"channels_first": channels_first}
    for name, made in named.items():

        def reconstruct(images, name=name, made=made):
            (one,) = of_autoencoders({name: made}, images, measures, batch=batch, **layout)
            return one.decode(one.latents)

        lines += expected_images.check_autoencoder(name, reconstruct, training, **layout)
    return lines


def made_by(factory: Callable[..., Autoencoder], latent_dims: Sequence[int] | None) -> dict[str, Autoencoder]:
    """Calls the user's factory, once or for every latent dimension, and names what it makes.

    Raises:
      ValueError: with one line, if it fails or makes something else.
    """
    named = {}
    for d in latent_dims or [None]:
        try:
            made = factory() if d is None else factory(d)
        except Exception as error:  # the user's factory may raise anything
            raise ValueError(f"factory({'' if d is None else d}): {type(error).__name__}: {error}") from error
        if not isinstance(made, Autoencoder):
            raise ValueError(f"factory must return an object with encode and decode, got {type(made).__name__}")
        named["own" if d is None else f"own {d}"] = made
    return named
