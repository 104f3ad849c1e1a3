"""Data sets, spectra and their Gaussian twins; everything centred, float64, on the host.

A `Dataset` holds samples, or is a bare spectrum. Its *Gaussian twin* is N(0, covariance). Subsets and twin draws depend on
a seed only. The mean is taken over the whole data set and removed first: the theory is about covariances, and a sampler
that has to learn the mean as well would blur it. `Dataset.images` adds it back.

- `dataset`: `Dataset`, PCA
- `channels`: where an array has its colours
- `images`: digits, .npz files
- `latents`: stored latents
- `precision`: what float32 cannot hold
- `pictures`: folders of pictures
- `hugging_face`: Hugging Face data sets, from the hub or from disk
- `spectra`: spectra by formula or file
"""

from pathlib import Path

from ldmjax.data import channels
from ldmjax.data.dataset import Dataset, from_samples, principal_components
from ldmjax.data.hugging_face import load_hugging_face
from ldmjax.data.images import digits, from_images, load_npz
from ldmjax.data.latents import load_latents
from ldmjax.data.pictures import load_folder
from ldmjax.data.precision import float32_problem
from ldmjax.data.spectra import SPECTRA, spectrum, spectrum_variances

NAMES = "digits | FILE.npz | FOLDER of pictures | hf:NAME[:SPLIT] | hf:PATH[:SPLIT]"

__all__ = [
    "NAMES",
    "SPECTRA",
    "Dataset",
    "channels",
    "digits",
    "float32_problem",
    "from_images",
    "from_samples",
    "load",
    "load_folder",
    "load_hugging_face",
    "load_latents",
    "load_npz",
    "principal_components",
    "spectrum",
    "spectrum_variances",
]


def load(name: str, *, layout: str = "auto") -> Dataset:
    """Loads a data set by name, one of `NAMES`.

    Args:
      name: of the data.
      layout: one of `channels.LAYOUTS`: where arrays of images have their channels; those of digits and pictures are last.

    Raises:
      ValueError: with one line that says what is wrong with the name or what it stands for.
    """
    if name.startswith("hf:"):
        return load_hugging_face(name.removeprefix("hf:"), layout=layout)
    if name.endswith(".npz"):
        return load_npz(name, layout=layout)
    if layout == "first" and (name == "digits" or Path(name).is_dir()):
        raise ValueError(f"{name!r} has no channels first: allowed are arrays of images [N, C, H, W]")
    if name == "digits":
        return digits()
    if Path(name).is_dir():
        return load_folder(name)
    raise ValueError(f"unknown data {name!r}: allowed are {NAMES}")
