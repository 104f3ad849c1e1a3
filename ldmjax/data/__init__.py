"""Data sets, spectra and their Gaussian twins; everything centred, float64, on the host.

A `Dataset` holds samples, or is a bare spectrum. Its *Gaussian twin* is N(0, covariance). Subsets and twin draws depend on
a seed only. The mean is taken over the whole data set and removed first: the theory is about covariances, and a sampler
that has to learn the mean as well would blur it. `Dataset.images` adds it back.

- `dataset`: `Dataset`, PCA
- `images`: digits, .npz files
- `spectra`: spectra by formula or file
"""

from ldmjax.data.dataset import Dataset, from_samples, principal_components
from ldmjax.data.images import digits, load, load_npz
from ldmjax.data.spectra import SPECTRA, spectrum, spectrum_variances

__all__ = [
    "SPECTRA",
    "Dataset",
    "digits",
    "from_samples",
    "load",
    "load_npz",
    "principal_components",
    "spectrum",
    "spectrum_variances",
]
