"""Where an array of images has its colours: last, ``[N, H, W, C]``, as everything here does, or first, as PyTorch does."""

import numpy as np

LAYOUTS = ("auto", "first", "last")
COLOURS = (1, 3, 4)  # channels of grey, coloured and transparent pictures
SMALLEST = 5  # shortest side of a picture whose channels are found without being told


def are_first(image_shape: tuple[int, ...]) -> bool:
    """Tells whether images have the shape ``[C, H, W]``.

    The first of three axes is C if it is 1, 3 or 4 and both others are longer than 4. All else is ``[H, W, C]``, also what
    might be either, as ``[3, 32, 3]``.
    """
    return len(image_shape) == 3 and image_shape[0] in COLOURS and min(image_shape[1:]) >= SMALLEST


def of_latents_are_first(latent_shape: tuple[int, ...]) -> bool:
    """Tells whether latents, whose channels may be any number, have the shape ``[c, h, w]``.

    Of three axes the first or the last is c: the one that is unlike the other two, else the shorter, else the last.
    """
    if len(latent_shape) != 3:
        return False
    a, b, c = latent_shape
    return b == c if (a == b) != (b == c) else a < c


def move_last(images: np.ndarray) -> np.ndarray:
    """Returns ``[N, C, H, W]`` to ``[N, H, W, C]``."""
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))


def move_first(images: np.ndarray) -> np.ndarray:
    """Returns ``[N, H, W, C]`` to ``[N, C, H, W]``."""
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))
