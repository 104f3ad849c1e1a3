"""Data sets of Hugging Face's `datasets` package, from its hub or from this machine."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ldmjax.data.dataset import Dataset
from ldmjax.data.images import from_images
from ldmjax.data.pictures import stack_pictures

FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
DEFAULT_SPLIT = "train"


def load_hugging_face(description: str, *, layout: str = "auto") -> Dataset:
    """Reads "NAME", "NAME:SPLIT", "PATH" or "PATH:SPLIT"; SPLIT is "train" unless given and may be "train[:1000]".

    Args:
      description: NAME on the hub; PATH a directory that `save_to_disk` wrote, a folder that `load_dataset` reads, or a
        file (.parquet, .arrow, .json, .jsonl). Only NAME needs the network. Images are the one column of type Image,
        Array2D or Array3D, labels the first of type ClassLabel, if there is one; images without a class (-1) make the
        whole data set unlabelled.
      layout: that of `images.from_images`; pictures have their channels last.

    Raises:
      ValueError: with one line that says what is missing or wrong.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("needs the package datasets: pip install -e '.[data]'") from error
    path, _, split = description.partition(":")
    try:
        table = _open_table(datasets, path, split or None)
    # Network, cache, format and version errors of datasets and of what it stands on share no base class.
    except Exception as error:
        raise ValueError(f"datasets cannot load {path!r}: {type(error).__name__}: {error}") from error
    images = [
        name
        for name, feature in table.features.items()
        if isinstance(feature, datasets.Image | datasets.Array2D | datasets.Array3D)
    ]
    if len(images) != 1:
        got = f"{len(images)} of them among {', '.join(table.features)}"
        raise ValueError(f"{path!r} must have one column of type Image, Array2D or Array3D, got {got}")
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = np.asarray(table.with_format("numpy")[classes[0]][:]) if classes else None
    if labels is not None and np.any(labels < 0):
        labels = None
    pixels = _pixels(datasets, table, images[0])
    if isinstance(table.features[images[0]], datasets.Image):
        if layout == "first":
            raise ValueError(f"{path!r} has no channels first: column {images[0]} holds pictures")
        layout = "last"
    name = Path(path).stem if Path(path).is_file() else Path(path).name
    return from_images(name, pixels, labels=labels, source=repr(path), layout=layout)


def _open_table(datasets, path, split):
    """Returns the `datasets.Dataset` of one split."""
    local = Path(path)
    if path.startswith(("/", ".")) and not local.exists():
        raise ValueError("no such file or directory")  # a name of the hub would be looked for, for half a minute
    if (local / "dataset_dict.json").is_file():
        tables = datasets.load_from_disk(path)
        if (split or DEFAULT_SPLIT) not in tables:
            raise ValueError(f"no split {split or DEFAULT_SPLIT!r}; it has {', '.join(tables)}")
        return tables[split or DEFAULT_SPLIT]
    if (local / "state.json").is_file():
        if split is not None:
            raise ValueError(f"no split {split!r}; it was saved as one table without splits")
        return datasets.load_from_disk(path)
    if local.is_file():
        if local.suffix not in FILE_FORMATS:
            raise ValueError(f"allowed files are {', '.join(FILE_FORMATS)}")
        return datasets.load_dataset(FILE_FORMATS[local.suffix], data_files=path, split=split or DEFAULT_SPLIT)
    return datasets.load_dataset(path, split=split or DEFAULT_SPLIT)


def _pixels(datasets, table, column):
    """Returns ``[N, H, W]`` or ``[N, H, W, C]``."""
    if not isinstance(table.features[column], datasets.Image):
        return np.asarray(table.with_format("numpy")[column][:])
    undecoded = table.cast_column(column, datasets.Image(decode=False))

    def open_picture(i):
        cell = undecoded[i][column]
        return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))

    return stack_pictures([f"image {i} of column {column}" for i in range(len(table))], open_picture)
