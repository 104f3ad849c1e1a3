"""Maps from images to what distances are measured in: pixels, a classifier's features, or the user's own map.

A distance between pixels is not one between contents; which features are used decides the best stopping time as much as the
metric does. `load` reads a description:

- "pixels": the values of an image, averaged over 2 x 2 squares until there are at most 1024 of them ("pixels/2" after one).
- "classifier": what the last hidden layer of a small classifier sees, 64 numbers. It is a perceptron on pixels, so that the
  features of a hundred thousand images cost seconds; trained on nine tenths of *all* labelled images of the data set, those
  that a diffusion model trains on and those it is compared with alike, as both sides of a distance must be seen alike; the
  last tenth gives its accuracy. Trained once: the weights are kept in ``$LDMJAX_CACHE``, by default ~/.cache/ldmjax, under
  the hash of the data, the labels, and the configuration.
- "package.module:function": a callable on numpy images that returns ``[N, F]``; torch inside is fine. The images are
  ``[N, *image_shape]``, or ``[N, C, H, W]`` if the data set was given so.
- "FILE.npz": linear, images flattened in the same order, keys ``weight`` ``[D, F]`` and, if there is one, ``bias`` ``[F]``.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ldmjax.data import Dataset
from ldmjax.features.classifier import ClassifierConfig, classifier
from ldmjax.features.maps import LARGEST, Features, as_stored, average_pool, evaluate, import_object, linear_map, pixels
from ldmjax.job import NO_JOB, Job

__all__ = [
    "DESCRIPTIONS",
    "LARGEST",
    "ClassifierConfig",
    "Features",
    "as_stored",
    "average_pool",
    "from_function",
    "import_object",
    "load",
    "pixels",
]

DESCRIPTIONS = "pixels | classifier | package.module:function | FILE.npz"
PROBES = 16


def load(description: str, dataset: Dataset, *, job: Job = NO_JOB) -> Features:
    """Returns the features that a description stands for, as the module says; tried on a few images of ``dataset``.

    Args:
      description: one of `DESCRIPTIONS`.
      dataset: with samples.
      job: shows how the training of the classifier goes.

    Raises:
      ValueError: with one line, for an unknown description, data without samples or labels, a file, module or function that
        does not load, or features that are not finite numbers ``[N, F]``.
    """
    if dataset.samples is None:
        raise ValueError(f"{dataset.name} is a spectrum: features need images")
    name, accuracy = description, None
    if description == "pixels":
        name, function = pixels(dataset.image_shape)
    elif description == "classifier":
        function, accuracy = classifier(dataset, ClassifierConfig(), job=job)
    elif description.endswith(".npz"):
        name, function = Path(description).stem, as_stored(linear_map(description, dataset.dim), dataset)
    elif ":" in description:
        function = as_stored(import_object(description), dataset)
    else:
        raise ValueError(f"unknown features {description!r}: allowed are {DESCRIPTIONS}")
    return from_function(name, function, dataset, accuracy=accuracy)


def from_function(
    name: str, function: Callable[[np.ndarray], np.ndarray], dataset: Dataset, *, accuracy: float | None = None
) -> Features:
    """The features that a function of images with channels last gives; it is tried on a few images of ``dataset``.

    Raises:
      ValueError: with one line, if they are not finite numbers ``[N, F]``.
    """
    probe = evaluate(name, function, dataset.images(dataset.samples[:PROBES]))
    if not np.all(np.isfinite(probe)):
        raise ValueError(f"features {name} of the first {len(probe)} images hold NaN or infinity")
    return Features(
        name=name,
        function=function,
        image_shape=dataset.image_shape,
        dim=probe.shape[1],
        digest=hashlib.sha256(np.ascontiguousarray(probe)).hexdigest(),
        accuracy=accuracy,
    )
