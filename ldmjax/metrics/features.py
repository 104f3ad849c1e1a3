"""Distances between two sets of images in a feature space: two finite samples, both with an error.

Generated features come in two halves A and B of N rows each, the reference in M. Every metric theta (metrics/statistics.py)
gives pseudo-values

    (1)  p_k = theta + g_k + r_k + b e_k,    k = 1..K,    mean(p) = theta,    var(p) / K = its squared error

with g_k and r_k block sums of the first-order influence of single rows (infinitesimal jackknife), of generated and of
reference rows; b is what the rows cannot tell about the bias of theta, and e_k a fixed pattern of mean 0 that makes [-b, b] a
90 % interval, the same at all stops, because what is unknown of the reference is the same at all of them.

**Noisy images** (``copies``): both halves hold the *same* n images with independent noise, ``copies`` rows of each. The law
that is measured is not that of these n noisy atoms but that of a model which has learned the *law* of the images, with their
mean and covariance. In what follows from mean and covariance (all of w2) only the noise is an error: half A minus half B. All
else, the shape, is learned from single images: two halves of the *images* are compared that are moved and scaled to the mean
and covariance of all, and the images are a sample.

    w2         squared Wasserstein-2 between Gaussians with the same means and covariances (squared Fréchet distance)
    mmd        squared maximum mean discrepancy, RBF kernel, width = median distance between two reference rows
    sliced_w2  squared W2 of one-dimensional projections, mean over fixed random directions

Sources: Efron & Tibshirani, An Introduction to the Bootstrap, ch. 11 and 21; Heusel et al., arXiv 1706.08500 (Fréchet);
Gretton et al., JMLR 2012; Bonneel et al., JMIV 2015.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats
from threadpoolctl import threadpool_limits

from ldmjax.gaussians import covariance_factor
from ldmjax.metrics.statistics import STATISTICS, covariance

FEATURE_METRICS = ("w2", "mmd", "sliced_w2")
LARGEST = 1e18
KERNEL_REFERENCE = 2048  # reference rows that mmd uses
KERNEL_ROWS = 256  # rows of a kernel matrix made at once: they stay in the processor's cache


class Moments(NamedTuple):
    """Mean ``[F]``, covariance factor ``[F, r]`` (columns by falling eigenvalue) and number of rows of a sample."""

    mean: np.ndarray
    factor: np.ndarray
    rows: int


class FeatureReference:
    """A reference sample in a feature space, and what every comparison with it needs.

    Attributes:
      features: ``[M, F]`` float64, rows in random order.
      blocks: K of equation (1).
      directions: ``[P, F]``, unit vectors of sliced_w2.
      bandwidth: kernel width h of mmd.
      metrics: those to compute.
    """

    def __init__(
        self,
        features: np.ndarray,
        *,
        blocks: int = 64,
        directions: int = 64,
        metrics: Sequence[str] = FEATURE_METRICS,
        seed: int = 0,
    ):
        """Args: features: ``[M, F]`` in random order, M >= 2 blocks. blocks: K. directions: P, drawn by ``seed``."""
        if unknown := set(metrics) - set(FEATURE_METRICS):
            raise ValueError(f"metrics must be out of {', '.join(FEATURE_METRICS)}, got {', '.join(sorted(unknown))}")
        self.metrics = tuple(metrics)
        self.features = np.asarray(features, np.float64)
        if blocks < 2:
            raise ValueError(f"need at least 2 blocks, got {blocks}")
        if self.features.ndim != 2 or len(self.features) < 2 * blocks or not np.all(np.isfinite(self.features)):
            raise ValueError(f"need at least {2 * blocks} finite rows [M, F], got {list(np.shape(features))}")
        self.blocks = blocks
        # A stream of its own: synthetic features drawn by the same seed must not coincide with the directions.
        unit = np.random.default_rng([seed, 1]).standard_normal((directions, self.features.shape[1]))
        self.directions = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        self.projected = self.features @ self.directions.T
        self._quantiles: dict[tuple[int, int], np.ndarray] = {}
        first = self.features[:1000] - self.features.mean(axis=0)
        squared = _squared_distances(first, first)[np.triu_indices(len(first), 1)]
        self.bandwidth = float(np.sqrt(np.median(squared)))
        if not self.bandwidth > 0:
            raise ValueError("more than half of the reference features coincide")

    @functools.cached_property
    def moments(self) -> list[Moments]:
        """Of the whole sample and of its halves."""
        middle = len(self.features) // 2
        parts = self.features, self.features[:middle], self.features[middle:]
        return [Moments(part.mean(axis=0), covariance_factor(covariance(part)), len(part)) for part in parts]

    @functools.cached_property
    def axes(self) -> np.ndarray:
        """Principal axes ``[F, r]``, unit columns by falling variance."""
        factor = self.moments[0].factor
        return factor / np.linalg.norm(factor, axis=0)

    @functools.cached_property
    def whitened(self) -> np.ndarray:
        """L^+ y of statistics' equation (2) for every centred row, ``[M, r]``, float32."""
        mean, factor, _ = self.moments[0]
        return ((self.features - mean) @ (factor / np.sum(factor**2, axis=0))).astype(np.float32)

    @functools.cached_property
    def kernel_rows(self) -> np.ndarray:
        """Numbers of the rows that mmd uses, spread evenly over all blocks: at most `KERNEL_REFERENCE`."""
        count = min(len(self.features), KERNEL_REFERENCE)
        return np.linspace(0, len(self.features), count, endpoint=False).astype(int)

    @functools.cached_property
    def own_kernel(self) -> np.ndarray:
        """Mean kernel of each of ``kernel_rows`` with the others."""
        rows = self.features[self.kernel_rows]
        return (self.kernel_means(rows, rows)[0] * len(rows) - 1.0) / (len(rows) - 1)

    def quantiles(self, part: int, count: int) -> np.ndarray:
        """Quantiles ``[count, P]`` of the projections at the ranks of ``count`` samples; part 0: all rows, 1, 2: halves."""
        if (part, count) not in self._quantiles:
            middle = len(self.features) // 2
            rows = (self.projected, self.projected[:middle], self.projected[middle:])[part]
            self._quantiles[part, count] = np.quantile(rows, (np.arange(count) + 0.5) / count, axis=0)
        return self._quantiles[part, count]

    def kernel_means(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means of the kernel matrix of rows ``a`` and ``b`` over b ``[len(a)]`` and over a ``[len(b)]``; float32 inside."""
        centre, half = self.features.mean(axis=0), np.float32(0.5)
        a, b = (((x - centre) / self.bandwidth).astype(np.float32) for x in (a, b))
        b_squares = half * np.sum(b**2, axis=1)
        over_b, over_a = np.empty(len(a)), np.zeros(len(b))
        for first in range(0, len(a), KERNEL_ROWS):
            rows = a[first : first + KERNEL_ROWS]
            kernel = rows @ b.T
            kernel -= half * np.sum(rows**2, axis=1, keepdims=True)
            kernel -= b_squares
            np.exp(kernel, out=kernel)
            over_b[first : first + KERNEL_ROWS] = kernel.mean(axis=1, dtype=np.float64)
            over_a += kernel.sum(axis=0)
        return over_b, over_a / len(a)


class Measure(NamedTuple):
    """A feature space: the map from images ``[N, ...]`` to features ``[N, F]``, and the reference seen through it."""

    features: Callable[[np.ndarray], np.ndarray]
    reference: FeatureReference


def measure(
    images: np.ndarray, measures: Mapping[str, Measure], *, copies: int | None = None
) -> dict[tuple[str, str], np.ndarray]:
    """Returns pseudo-values of every metric in every feature space.

    Args:
      images: generated images in two halves, ``[2, N, ...]``.
      measures: feature spaces by name.
      copies: as in `feature_pseudo_values`.

    Returns:
      ``{(feature space, metric): [K]}``.
    """
    flat = images.reshape(-1, *images.shape[2:])
    found = {}
    for name, (features, reference) in measures.items():
        rows = np.asarray(features(flat)).reshape(2, images.shape[1], -1)
        values = feature_pseudo_values(rows, reference, copies=copies)
        found |= {(name, metric): p for metric, p in values.items()}
    return found


def measure_curves(
    levels: Iterable[np.ndarray], measures: Mapping[str, Measure], *, copies: int | None = None
) -> dict[tuple[str, str], np.ndarray]:
    """`measure` of images at S stops, one per core at a time, while ``levels`` makes the next ones.

    Args:
      levels: gives images in two halves ``[2, N, ...]``, S times; called in this thread, one level at a time.
      measures: feature spaces by name.
      copies: as in `feature_pseudo_values`.

    Returns:
      ``{(feature space, metric): [K, S]}`` for `stopping.read_stopping_curve`.
    """
    threads, pending = len(os.sched_getaffinity(0)), []
    # One level per core is faster than one level's matrix products on all of them.
    with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
        for images in levels:
            pending.append(pool.submit(measure, images, measures, copies=copies))
            pending[max(0, len(pending) - 1 - threads)].result()  # those that wait hold memory
        values = [future.result() for future in pending]
    return {key: np.stack([v[key] for v in values], axis=1) for key in values[0]}


def feature_pseudo_values(
    samples: np.ndarray, reference: FeatureReference, *, copies: int | None = None
) -> dict[str, np.ndarray]:
    """Returns pseudo-values of the reference's metrics, equation (1).

    Args:
      samples: features in two halves, ``[2, N, F]``, N >= K.
      reference: what to compare with.
      copies: None if all 2 N rows are independent draws. Otherwise row i of both halves is the same image with independent
        noise, each image has so many consecutive rows of either half, the images are in random order, and what is measured is
        the law of a model that has learned them (module docstring).

    Returns:
      ``{metric: [K]}``, float64; infinite if a feature is not finite, or so large that its square is not in float32.

    Raises:
      ValueError: for another shape, fewer rows than blocks, or rows that are not a multiple of ``copies``.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 3 or samples.shape[0] != 2 or samples.shape[2] != reference.features.shape[1]:
        raise ValueError(f"samples must be [2, N, F = {reference.features.shape[1]}], got {list(samples.shape)}")
    blocks, rows = reference.blocks, samples.shape[1]
    if rows < blocks:
        raise ValueError(f"need at least {blocks} rows in each half, one per block, got {rows}")
    if copies is not None and (copies < 1 or rows % copies or rows < 2 * copies):
        raise ValueError(f"{rows} rows in each half are not two or more images with {copies} rows of each")
    if not np.all(np.abs(samples) < LARGEST):
        return {metric: np.full(blocks, np.inf) for metric in reference.metrics}
    pattern = np.where(np.arange(blocks) % 2, 1.0, -1.0)
    pattern = (pattern - pattern.mean()) / pattern.std(ddof=1) * np.sqrt(blocks) / stats.norm.isf(0.05)
    found = {}
    for metric in reference.metrics:
        theta, of_moments, of_shape, of_reference, unknown = STATISTICS[metric](samples, reference, copies)
        if copies is None:
            generated = _block_sums((of_moments + of_shape).sum(axis=0), blocks)
        else:
            generated = _block_sums(of_moments[0] - of_moments[1], blocks) + _block_sums(
                of_shape.sum(axis=0), blocks, copies
            )
        found[metric] = theta + generated + _block_sums(of_reference, blocks) + unknown * pattern
    return found


def _block_sums(influence, blocks, copies=1):
    """Returns K / N times the sums ``[K]`` over K consecutive blocks of N centred influences, no image in two of them."""
    images = len(influence) // copies
    block = np.arange(len(influence)) // copies * blocks // images
    sums = np.bincount(block, influence - influence.mean(), minlength=blocks) * (blocks / len(influence))
    return sums - sums.mean()


def nearest_distances(samples: np.ndarray, others: np.ndarray) -> Float[np.ndarray, " N"]:
    """Returns the distance ``[N]`` of each sample ``[N, ...]`` to its nearest one among ``others`` ``[M, ...]``."""
    a, b = (np.reshape(x, (len(x), -1)) for x in (samples, others))
    centre = b.mean(axis=0)
    return np.sqrt(_squared_distances(a - centre, b - centre).min(axis=1))


def _squared_distances(a, b):
    """Returns ``[len(a), len(b)]``, float32, from values that are centred or small."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2.0 * (a @ b.T)
    return np.maximum(squares, 0.0)
