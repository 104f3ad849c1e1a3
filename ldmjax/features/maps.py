"""`Features`, and maps that need no training: pixels, linear maps from a file, the user's own functions."""

import dataclasses
import importlib
import operator
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ldmjax.data import Dataset, channels

LARGEST = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """A map from images to features.

    Attributes:
      name: for tables and figures.
      function: images ``[B, *image_shape]`` float32 -> ``[B, F]``, B <= ``batch``.
      image_shape: of the images that it takes.
      dim: F.
      digest: sha256 of the features of the data set's first `PROBES` images; it tells maps apart in records.
      accuracy: share of held-out images that a classifier names rightly; None for other maps.
      batch: images per call of the function.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    image_shape: tuple[int, ...]
    dim: int
    digest: str
    accuracy: float | None = None
    batch: int = 1024

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features ``[N, F]`` float32 of images ``[N, *image_shape]``; NaN for an image that is not finite.

        Raises:
          ValueError: for images of another shape, or a function that fails or returns another shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"features {self.name}: images must be [N, {self.image_shape}], got {list(images.shape)}")
        parts = [self._batch(images[i : i + self.batch]) for i in range(0, len(images), self.batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _batch(self, images):
        # A diverged sampler's images are the distance's business (it is infinite), not the user's function's.
        fine = np.isfinite(images).reshape(len(images), -1).all(axis=1)
        if not fine.all():
            images = np.where(fine.reshape(-1, *[1] * (images.ndim - 1)), images, 0.0)
        features = evaluate(self.name, self.function, np.asarray(images, np.float32))
        if features.shape[1] != self.dim:
            raise ValueError(f"features {self.name}: got {features.shape[1]} per image here and {self.dim} before")
        return features if fine.all() else np.where(fine[:, None], features, np.float32(np.nan))


def import_object(description: str) -> Callable:
    """Returns the callable that "package.module:name" names; the current directory is searched as well.

    Raises:
      ValueError: with one line, if there is no such module or name, the module fails, or the object is not callable.
    """
    module_name, _, name = description.partition(":")
    if not module_name or not name:
        raise ValueError(f"{description!r} must have the form package.module:name")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"module {module_name!r} does not load: {type(error).__name__}: {error}") from error
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        raise ValueError(f"module {module_name!r} has no {name!r}") from None
    if not callable(found):
        raise ValueError(f"{description!r} must be callable, got {type(found).__name__}")
    return found


def as_stored(function: Callable, dataset: Dataset) -> Callable:
    """Returns a function of images as ``dataset`` was given, channels first or last, as one of images with channels last."""
    return (lambda images: function(channels.move_first(images))) if dataset.channels_first else function


def evaluate(name: str, function: Callable, images: np.ndarray) -> np.ndarray:
    """Returns float32 features ``[B, F]`` of images ``[B, ...]``.

    Raises:
      ValueError: with one line that says what came instead.
    """
    try:
        features = np.asarray(function(images), np.float32)
    except Exception as error:  # the user's function may raise anything
        raise ValueError(f"features {name}: {type(error).__name__}: {error}") from error
    if features.ndim != 2 or len(features) != len(images) or features.shape[1] < 1:
        raise ValueError(
            f"features {name} of {len(images)} images must be [{len(images)}, F], got {list(features.shape)}"
        )
    return features


def average_pool(images: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 squares of images ``[N, H, W]`` or ``[N, H, W, C]``; an odd last row or column stands for two."""
    n, h, w = images.shape[:3]
    odd = [(0, 0), (0, h % 2), (0, w % 2)] + [(0, 0)] * (images.ndim - 3)
    even = np.pad(images, odd, mode="edge")
    return even.reshape(n, (h + 1) // 2, 2, (w + 1) // 2, 2, *images.shape[3:]).mean(axis=(2, 4))


def pixels(
    image_shape: tuple[int, ...], *, channels_first: bool = False
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns (name, map): pictures are pooled to at most `LARGEST` values, channel by channel; other samples are left whole.

    Args:
      image_shape: ``[H, W]`` or ``[H, W, C]`` of pictures.
      channels_first: it is ``[C, H, W]``.
    """
    shape, poolings = (*image_shape[1:], image_shape[0]) if channels_first else image_shape, 0
    while len(shape) in (2, 3) and np.prod(shape) > LARGEST and shape[:2] != (1, 1):
        shape, poolings = ((shape[0] + 1) // 2, (shape[1] + 1) // 2, *shape[2:]), poolings + 1

    def function(images):
        if channels_first and poolings:
            images = channels.move_last(images)
        for _ in range(poolings):
            images = average_pool(images)
        return images.reshape(len(images), -1)

    return "pixels" + (f"/{2**poolings}" if poolings else ""), function


def linear_map(path: str, dim: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the linear map in an .npz file, keys ``weight`` ``[D = dim, F]`` and, if there is one, ``bias`` ``[F]``.

    Raises:
      ValueError: with a line that says what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = archive.files
            weight = archive["weight"].astype(np.float32)
            bias = archive["bias"].astype(np.float32) if "bias" in keys else np.zeros(weight.shape[1:], np.float32)
    except KeyError:
        raise ValueError(f"{path!r} has keys {', '.join(keys)}; needs 'weight' [D, F]") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path!r} is not a readable .npz file of numbers: {error}") from error
    if weight.ndim != 2 or len(weight) != dim or bias.shape != weight.shape[1:]:
        got = f"{list(weight.shape)} and {list(bias.shape)}"
        raise ValueError(f"{path!r} must hold weight [D = {dim}, F] and bias [F], got {got}")
    return lambda images: images.reshape(len(images), -1) @ weight + bias
