"""Folders of picture files, and decoding pictures of one size into one array."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldmjax.data.dataset import Dataset
from ldmjax.data.images import from_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")  # more than 8 bits; also the first letter of I;16 and its kin


def load_folder(path: str) -> Dataset:
    """Reads all pictures (`SUFFIXES`) in a folder and its subfolders, in sorted order.

    If every picture lies in a subfolder, the subfolders, in sorted order, are classes 0, 1, ... Transparency is dropped.

    Raises:
      ValueError: if there is no picture, one of them is not readable, or two have different sizes.
    """
    root = Path(path)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())
    if not files:
        raise ValueError(f"no pictures in {path!r}: needs files that end in {', '.join(SUFFIXES)}")
    pictures = stack_pictures([str(f) for f in files], lambda i: Image.open(files[i]))
    parts = [f.relative_to(root).parts for f in files]
    labels = None
    if all(len(p) > 1 for p in parts):
        labels = np.unique([p[0] for p in parts], return_inverse=True)[1]
    return from_images(root.resolve().name, pictures, labels=labels, source=repr(path), layout="last")


def stack_pictures(names: Sequence[str], open_picture: Callable[[int], Image.Image]) -> np.ndarray:
    """Decodes pictures of one size.

    Args:
      names: what errors call each of the N pictures.
      open_picture: opens picture i; called twice, for its size and colour and then for its pixels.

    Returns:
      uint8 ``[N, H, W]`` if all are grey, else ``[N, H, W, 3]``.
    """

    def read(i, of_picture):
        try:
            with open_picture(i) as picture:
                return of_picture(picture)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{names[i]!r} is not a readable picture: {error}") from error

    # Sizes first, from the files' headers: then all pixels go into one array of the right size at once.
    headers = [read(i, lambda picture: (picture.size, picture.mode)) for i in range(len(names))]
    for name, (size, mode) in zip(names, headers, strict=True):
        if mode.startswith(DEEP_MODES):
            raise ValueError(f"{name!r} has pixels of mode {mode}; allowed are 8 bits per channel")
        if size != headers[0][0]:
            (w0, h0), (w, h) = headers[0][0], size
            raise ValueError(f"pictures must have one size, but {names[0]!r} is {w0} x {h0} and {name!r} is {w} x {h}")
    width, height = headers[0][0]
    grey = all(mode in GREY_MODES for _, mode in headers)
    stack = np.empty((len(names), height, width) if grey else (len(names), height, width, 3), np.uint8)
    for i in range(len(names)):
        stack[i] = read(i, lambda picture: np.asarray(picture.convert("L" if grey else "RGB")))
    return stack
