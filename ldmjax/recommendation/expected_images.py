"""Do encode and decode expect images as they are? Other ranges of values and orders of colours are tried on a few.

An autoencoder made for values in [-1, 1] also reconstructs values in [0, 1], only worse, and every distance and stop then comes
out wrong. Here its reconstruction error, relative to the variance of the images, is compared with that on the same images
brought to another usual range, with colours in reverse order, or flattened in the other order of axes. Where one of these is
far better, the images are refused as they are; where one is better, if not by far, a line says so. An autoencoder that commutes
with scaling, as a linear one does, is right for every range, and so is one whose error falls however large the values: it adds
noise of its own, or rounds.

The error in the best other form, as a share of that in the right one: 1.003 and more (colours reversed) in 60 autoencoders of
the suite on digits, MNIST, Fashion-MNIST and CIFAR-10, 1.07 in convolutional ones of CIFAR-10 trained elsewhere. Of the error
on images in [0, 1] for [-1, 1] the right form leaves 0.01 to 0.11 where the ground is dark, and 0.7 to 0.9 on CIFAR-10.
"""

import itertools
from collections.abc import Callable

import numpy as np

from ldmjax import data

RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
OVERSHOOT = 0.05  # of a range's width: resizing leaves its ends
USED = 0.25  # of a range's width, at least
FEW, FEWEST = 64, 8  # images tried, and those on which most forms are seen not to fit
GOOD = 0.005  # errors below are right as they are
FAR = 0.9  # share of the error that is left by what fits, and then the images are refused
BETTER, OFTEN = 0.97, 0.75  # share of the error, and share of images with less error, that are no chance
ALIKE = 1e-3  # relative difference that products in float32 explain
Change = Callable[[np.ndarray], np.ndarray]


def check_autoencoder(name: str, reconstruct: Change, images: np.ndarray, *, channels_first: bool = False) -> list[str]:
    """Compares the forms that an autoencoder reconstructs, and returns a line if another one is better.

    Args:
      name: of the autoencoder.
      reconstruct: decode(encode(images)), with channels last; may raise `ValueError` on other forms than the images'.
      images: ``[N, *image_shape]`` as they are, channels last; the first `FEW` are used.
      channels_first: the autoencoder itself gets and gives channels first.

    Raises:
      ValueError: if another form is far better.
    """
    images = images[:FEW]
    as_is = relative_errors(reconstruct(images), images)
    if not GOOD < as_is.mean() < np.inf:
        return []
    forms = forms_of(images, channels_first=channels_first, scaled=not commutes_with_scaling(reconstruct, images))
    found, few = {}, relative_errors(reconstruct(images[:FEWEST]), images[:FEWEST]).mean()
    for words, change in forms.items():
        try:
            changed = change(images)
            if relative_errors(reconstruct(changed[:FEWEST]), changed[:FEWEST]).mean() < few:
                errors = relative_errors(reconstruct(changed), changed)
                if not _only_larger(reconstruct, images, changed, errors):
                    found[words] = errors
        except ValueError:  # the user's function refuses this form
            continue
    return _judge(f"{name} reconstructs", as_is, found, images)


def check_decoded(name: str, decoded: np.ndarray, images: np.ndarray, *, channels_first: bool = False) -> list[str]:
    """The same for decoded latents, which are compared with the images' forms.

    Args:
      name: of the latents.
      decoded: ``[N, *image_shape]``, row i from the latent of image i.
      images: ``[N, *image_shape]`` as they are.
      channels_first: the decoder itself gives channels first.

    Raises:
      ValueError: if another form is far nearer.
    """
    as_is = relative_errors(decoded, images)
    if not GOOD < as_is.mean() < np.inf:
        return []
    forms = forms_of(images, channels_first=channels_first, scaled=True)
    found = {words: relative_errors(decoded, change(images)) for words, change in forms.items()}
    return _judge(f"of {name} the decoder gives", as_is, found, images)


def _only_larger(reconstruct, images, changed, errors):
    """Tells whether larger values are better whatever their range, as where encode adds noise or rounds."""
    if changed.std() <= images.std():
        return False
    twice = 2.0 * changed
    try:
        return relative_errors(reconstruct(twice), twice).mean() < errors.mean()
    except ValueError:  # the user's function refuses values that large
        return False


def _judge(what, as_is, found, images):
    """No line, or one, from errors of the images as they are and in other forms; `ValueError` if one is far better."""
    found = {form: errors for form, errors in found.items() if errors.mean() < 1.0}  # nearer than the mean image
    if not found:
        return []
    form, errors = min(found.items(), key=lambda item: item[1].mean())
    share = errors.mean() / as_is.mean()
    text = (
        f"{what} images as they are, values {images.min():.3g} to {images.max():.3g}, with an error of "
        f"{100 * as_is.mean():.3g} % of their variance, but images {form} with {100 * errors.mean():.3g} %"
    )
    if share < FAR:
        raise ValueError(f"{text}: give images in that form, or let the function change it, and back")
    return [f"{text}: is it made for that form?"] if share < BETTER and np.mean(errors < as_is) > OFTEN else []


def relative_errors(reconstructed: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean squared error of each image ``[N]`` over the variance of all about their mean; infinite if that is not finite."""
    images, reconstructed = (x.reshape(len(x), -1).astype(np.float64) for x in (images, reconstructed))
    with np.errstate(all="ignore"):
        errors = np.mean((reconstructed - images) ** 2, axis=1) / np.mean((images - images.mean(axis=0)) ** 2)
    return np.where(np.isfinite(errors), errors, np.inf)


def commutes_with_scaling(reconstruct: Change, images: np.ndarray) -> bool:
    """Tells whether images that are halved give half of what the images give."""
    images = images[:FEWEST]
    try:
        whole, halved = reconstruct(images), reconstruct(images / np.float32(2.0))
    except ValueError:
        return False
    return bool(np.abs(2.0 * halved - whole).max() <= ALIKE * np.abs(whole).max())


def forms_of(images: np.ndarray, *, channels_first: bool, scaled: bool) -> dict[str, Change]:
    """Other forms of images ``[N, *image_shape]``: what was done to them in words, and the function that does it.

    Args:
      images: as they are.
      channels_first: their owner has the channels first.
      scaled: other ranges of values are among the forms.
    """
    ranges, orders, places = {"": None}, {"": None}, {"": None}
    low, high = range_of(images)
    for a, b in RANGES if scaled else ():
        if (a, b) != (low, high):
            ranges[f"brought from [{low:.4g}, {high:.4g}] to [{a:g}, {b:g}]"] = _between((low, high), (a, b))
    if images.ndim == 4 and images.shape[-1] in (3, 4):
        orders["with colours in reverse order (BGR for RGB)"] = reverse_colours
    if images.ndim == 4 and images.shape[-1] > 1:
        words = "[H, W, C] for [C, H, W]" if channels_first else "[C, H, W] for [H, W, C]"
        places[f"flattened in the other order ({words})"] = flatten_last if channels_first else flatten_first
    forms = {}
    for parts in itertools.product(ranges.items(), orders.items(), places.items()):
        changes = [change for _, change in parts if change is not None]
        if changes:
            forms[", ".join(words for words, _ in parts if words)] = _in_turn(changes)
    return forms


def _between(source, target):
    (low, high), (a, b) = source, target
    return lambda images: (a + (images - low) * ((b - a) / (high - low))).astype(np.float32)


def _in_turn(changes):
    def change(images):
        for each in changes:
            images = each(images)
        return images

    return change


def range_of(images: np.ndarray) -> tuple[float, float]:
    """The narrowest of `RANGES` that holds all values, but for `OVERSHOOT`, and is used; else their own."""
    low, high = float(images.min()), float(images.max())
    for a, b in RANGES:
        margin = OVERSHOOT * (b - a)
        if a - margin <= low and high <= b + margin and high - low >= USED * (b - a):
            return a, b
    return low, high


def reverse_colours(images: np.ndarray) -> np.ndarray:
    """``[N, H, W, 3 or 4]`` with the first three channels in reverse order."""
    return images[..., [2, 1, 0, 3][: images.shape[-1]]]


def flatten_first(images: np.ndarray) -> np.ndarray:
    """``[N, H, W, C]`` whose values are, read one after the other, those of ``[N, C, H, W]``."""
    return data.channels.move_first(images).reshape(images.shape)


def flatten_last(images: np.ndarray) -> np.ndarray:
    """``[N, H, W, C]`` that, with channels first, is read as ``[N, H, W, C]`` was: the inverse of `flatten_first`."""
    n, h, w, c = images.shape
    return data.channels.move_last(images.reshape(n, c, h, w))
