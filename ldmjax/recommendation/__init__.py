"""Which latent dimension, and stop where, before a diffusion model is trained: `recommend`.

The training images are encoded, the noise of every level is put on the latents, they are decoded, and the distance of the
outputs to held-out images is measured: the noisy autoencoder of [OS] (arXiv 2510.08409 v2; ldmjax.stopping). The curves are
those of a model that has learned the law of the latents, with the mean and covariance of the training images. Per feature
space and metric they give the latent dimension and the stopping time with the smallest distance, their intervals, and a
verdict: "stop early", "no gain from stopping", or "cannot tell", then with about how many images would let it tell.

- `config`: `RecommendationConfig`
- `distinct`, `inputs`, `expected_images`: what is used of the images, and whether the autoencoder expects them so
- `candidates`: latent spaces, encoded
- `scales`: the scale of latents, and what is noticed in them
- `levels`: noise levels that a first pass lacks
- `measuring`: `compare`, which measures and chooses
- `choice`: the best, and what may be as good
- `report`, `figures`: `Recommendation`, in words and drawn
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ldmjax import data, features
from ldmjax.autoencoders import Autoencoder
from ldmjax.job import NO_JOB, Job
from ldmjax.recommendation.candidates import Candidate, measures_of, of_autoencoders
from ldmjax.recommendation.config import RecommendationConfig
from ldmjax.recommendation.distinct import choose_distinct
from ldmjax.recommendation.inputs import (
    BATCH,
    FEWEST,
    LARGEST,
    Split,
    check_forms,
    latents_alone,
    split_images,
    stored_latents,
)
from ldmjax.recommendation.measuring import compare
from ldmjax.recommendation.report import Recommendation

__all__ = ["Candidate", "Recommendation", "RecommendationConfig", "compare", "recommend"]


def recommend(
    images: Num[np.ndarray, "n ..."] | None = None,
    autoencoders: Mapping[str, Autoencoder] | None = None,
    *,
    latents: Mapping[str, Float[np.ndarray, "_ ..."]] | None = None,
    decoder: Callable[[np.ndarray], np.ndarray] | None = None,
    n: int | None = None,
    reference: Num[np.ndarray, "m ..."] | int | None = None,
    features: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    channels: str = "auto",
    batch: int = BATCH,
    job: Job = NO_JOB,
    sampler: str = "rectified_flow",
    sampling_steps: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Recommendation:
    """Says which of some latent spaces is best for a diffusion model, and where its sampling should stop.

    Give images and autoencoders, or images with ``latents`` and a ``decoder``, or latents alone (which says what it cannot
    know). An image that is there several times is used once.

    Args:
      images: ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``; unsigned 8-bit numbers are scaled to [-1, 1].
      autoencoders: by name, objects with ``encode`` (images to ``[N, ...]``) and ``decode``, on float32 numpy arrays of images
        as they were given.
      latents: by name, row i from image i.
      decoder: from latents to images.
      n: training images that are used; None for half, at most `LARGEST`; with reference images for all, at most so many.
      reference: held-out images ``[M, ...]`` to compare with, or how many of ``images`` to hold out; None for the rest of
        them, at most `LARGEST`.
      features: spaces in which distances are measured, functions from images as they were given to ``[N, F]``; None for pixels.
      channels: where ``images`` have their channels, one of `data.channels.LAYOUTS`.
      batch: images per call of ``encode``, ``decode`` and ``decoder``.
      job: keeps what is finished, shows lines.
      sampler: of the diffusion model, one of `pipelines.NAMES`: stops are given in its words.
      sampling_steps: that it takes; None for many.
      seed: of the split and the noise.
      **options: further attributes of `RecommendationConfig`.

    Raises:
      ValueError: with one line, for arguments that do not go together, too few images, images in another form than an
        autoencoder expects, or a user's function that fails.
    """
    config = RecommendationConfig(
        **{"data": "latents" if images is None else "images"} | options,
        sampler=sampler,
        sampling_steps=sampling_steps,
        seed=seed,
    )
    _check_given(images=images, autoencoders=autoencoders, latents=latents, decoder=decoder, features=features)
    if images is None:
        if isinstance(reference, np.ndarray):
            raise ValueError("reference: must be a number of latents, which have no images to compare with")
        found, noticed = latents_alone(_numbers(latents), n=n, reference=reference, seed=seed)
        return compare(found, config, compared="latents", noticed=noticed, job=job)
    dataset, split = _split(images, reference, n=n, channels=channels, seed=seed)
    measures = measures_of(_maps(features, dataset), split.held_out, seed)
    how = {"batch": batch, "channels_first": dataset.channels_first}
    if latents is not None:
        found, noticed = stored_latents(_numbers(latents), decoder, split, measures, **how)
    else:
        of_autoencoders(autoencoders, split.training[:2], measures, **how)  # what fails does so at once
        noticed = check_forms(autoencoders, split.training, measures, **how)
        found = of_autoencoders(autoencoders, split.training, measures, job=job, **how)
    return compare(found, config, noticed=split.noticed + noticed, job=job)


def _check_given(**given):
    there = {name for name, value in given.items() if value is not None}
    for ways in ({"images", "autoencoders", "features"}, {"images", "latents", "decoder", "features"}, {"latents"}):
        if ways - {"features"} <= there <= ways:
            break
    else:
        got = ", ".join(sorted(there)) or "nothing"
        raise ValueError(f"give images and autoencoders, or images, latents and decoder, or latents alone; got {got}")
    for name in there & {"autoencoders", "latents", "features"}:
        if not given[name]:
            raise ValueError(f"{name}: must hold at least one, by name")


def _numbers(latents):
    arrays = {name: np.asarray(z, np.float32) for name, z in latents.items()}
    for name, z in latents.items():
        if z.ndim < 2 or not np.all(np.isfinite(arrays[name])):
            raise ValueError(f"latents: {name!r} must hold finite numbers [N, ...], got {z.dtype} {list(z.shape)}")
        if problem := data.float32_problem(np.asarray(z)):
            raise ValueError(f"latents: {name!r} {problem}")
    if len({len(z) for z in arrays.values()}) > 1:
        raise ValueError(
            f"latents: must have one number of rows, got {', '.join(str(len(z)) for z in arrays.values())}"
        )
    return arrays


def _split(images, reference, *, n, channels, seed) -> tuple[data.Dataset, Split]:
    """The images, and the reference among them, as a data set; which of them train and which are held out."""
    given = isinstance(reference, np.ndarray)
    if given and reference.shape[1:] != images.shape[1:]:
        raise ValueError(f"reference: must hold images {list(images.shape[1:])}, got {list(reference.shape[1:])}")
    if given and (reference.dtype == np.uint8) != (images.dtype == np.uint8):
        raise ValueError(f"reference: must hold images of type {images.dtype}, got {reference.dtype}")
    every = np.concatenate([images, reference]) if given else images
    dataset = data.from_images("images", every, labels=None, source="images", layout=channels)
    if problem := data.float32_problem(dataset.samples, mean=dataset.mean):
        raise ValueError(f"images: must hold images that float32 can hold, which {problem}")
    if not np.any(dataset.samples):
        raise ValueError("images: must differ")
    if not given:
        return dataset, split_images(dataset, n=n, reference=reference, seed=seed)
    order, noticed = choose_distinct(dataset.samples, most=2 * LARGEST, seed=seed)
    rows, others = order[order < len(images)][: n or LARGEST], order[order >= len(images)]
    if len(rows) < FEWEST // 2 or len(others) < FEWEST:
        raise ValueError(
            f"reference: needs at least {FEWEST // 2} images and {FEWEST} for reference, each there once, got {len(rows)} "
            f"and {len(others)}"
        )
    training, held_out = (dataset.images(dataset.samples[part]) for part in (rows, others))
    return dataset, Split(len(images), rows, training, held_out, noticed)


def _maps(given, dataset):
    if given is None:
        pixels = features.load("pixels", dataset)
        return {pixels.name: pixels}
    return {
        name: features.from_function(name, features.as_stored(function, dataset), dataset)
        for name, function in given.items()
    }
