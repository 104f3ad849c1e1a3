"""Images from scikit-learn and from .npz files.

Unsigned 8-bit images are scaled from 0..255 to [-1, 1], whatever file they came from; other numbers are taken as they are.
Channels go last: ``[N, C, H, W]`` is recognised (`channels.are_first`), or said to be so.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from ldmjax.data import channels
from ldmjax.data.dataset import Dataset, from_samples

IMAGE_KEYS = ("images", "x", "train_images", "x_train")
LARGEST = 1e100
LABEL_KEYS = ("labels", "y", "train_labels", "y_train")


def digits() -> Dataset:
    """Returns scikit-learn's 1797 handwritten digits, 8 x 8 pixels scaled from 0..16 to [-1, 1], centred, with labels."""
    source = load_digits()
    return from_samples("digits", source.data / 8.0 - 1.0, (8, 8), labels=source.target)


def from_images(
    name: str, images: np.ndarray, *, labels: np.ndarray | None, source: str, layout: str = "auto"
) -> Dataset:
    """Returns a data set from images ``[N, *image_shape]``, scaled as the module says.

    Args:
      name: of the data set.
      images: any number type.
      labels: ``[N]`` or ``[N, 1]`` whole numbers, or None.
      source: what an error calls the images, such as the file's name.
      layout: one of `channels.LAYOUTS`: where the channels of ``images`` are.

    Raises:
      ValueError: if there are fewer than 4 images, one of them is not finite, they have no channels that could be first, or the
        labels do not fit.
    """
    if images.ndim < 2 or len(images) < 4 or not np.issubdtype(images.dtype, np.number):
        raise ValueError(f"{source} must hold numbers [N >= 4, ...], got {images.dtype} {list(images.shape)}")
    if layout == "first" and images.ndim != 4:
        raise ValueError(f"{source} must hold images [N, C, H, W] to have channels first, got {list(images.shape)}")
    first = layout == "first" or (layout == "auto" and channels.are_first(images.shape[1:]))
    if first:
        images = channels.move_last(images)
    samples = images.reshape(len(images), -1).astype(np.float64)
    if not np.all(np.isfinite(samples)):
        raise ValueError(f"{source} holds NaN or infinity")
    if (largest := np.abs(samples).max(initial=0.0)) > LARGEST:
        raise ValueError(f"{source} holds values up to {largest:.3g}, whose squares no number can hold: rescale them")
    if images.dtype == np.uint8:
        samples /= 127.5
        samples -= 1.0
    if labels is not None:
        if labels.size != len(images) or len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"labels of {source} must be whole numbers [{len(images)}], one per image, got {got}")
        labels = labels.ravel().astype(np.int64)
    dataset = from_samples(name, samples, images.shape[1:], labels=labels)
    return dataclasses.replace(dataset, channels_first=first)


def load_npz(path: str, *, layout: str = "auto") -> Dataset:
    """Reads images, samples first, and labels if there are any, under the first of `IMAGE_KEYS` and `LABEL_KEYS` found.

    ``layout`` is that of `from_images`.

    Raises:
      ValueError: with a line that says what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = archive.files
            image_key, label_key = (next((k for k in w if k in keys), None) for w in (IMAGE_KEYS, LABEL_KEYS))
            images, labels = (None if k is None else archive[k] for k in (image_key, label_key))
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path!r} is not a readable .npz file of numbers: {error}") from error
    if images is None:
        raise ValueError(f"{path!r} has keys {', '.join(keys)}; needs 'images' or 'x' ('train_images', 'x_train')")
    return from_images(Path(path).stem, images, labels=labels, source=repr(path), layout=layout)
