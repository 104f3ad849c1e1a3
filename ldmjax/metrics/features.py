"""Distances between two sets of images in a feature space: two finite samples, both with an error.

Generated features come in two halves A and B of N rows each, the reference in M. Every metric theta gives pseudo-values

    (1)  p_k = theta + g_k + r_k,    k = 1..K,    mean(p) = theta,    var(p) / K = its squared error

with g_k and r_k block sums of the first-order influence of single rows (infinitesimal jackknife), of generated and of
reference rows. The halves serve two ends. Bias: what a statistic of a finite sample has too much falls as 1 / rows, so

    (2)  theta = 2 theta(A + B, R) - (theta(A, R_1) + theta(B, R_2)) / 2,         R_1, R_2 halves of the reference

is free of it (a jackknife with two groups); the MMD needs no correction, its kernel runs over pairs (A, B). Noise of a
noisy autoencoder: its halves hold the *same* images with independent noise, the law to be measured is that of these
images, and only the noise is an error: then g_k is the difference of the halves' sums instead of their sum.

    w2         squared Wasserstein-2 between Gaussians with the same means and covariances (squared Fréchet distance)
    mmd        squared maximum mean discrepancy, RBF kernel, width = median distance between two reference rows
    sliced_w2  squared W2 of one-dimensional projections, mean over fixed random directions

Influence of w2, with A = L L^T the reference's covariance, S the samples', L^T S L = V s^2 V^T:

    (3)  samples  |x|^2 - |s^{-1/2} V^T L^T x|^2,        reference  |y|^2 - |s^{1/2} V^T L^+ y|^2      (x, y centred)

Sources: Efron & Tibshirani, An Introduction to the Bootstrap, ch. 11 and 21; Heusel et al., arXiv 1706.08500 (Fréchet);
Gretton et al., JMLR 2012; Bonneel et al., JMIV 2015; Santambrogio, Optimal Transport for Applied Mathematicians, prop. 7.17.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from ldmjax.gaussians import covariance_factor

FEATURE_METRICS = ("w2", "mmd", "sliced_w2")
# Squared singular values below this share of the largest are rounding: their directions have no influence.
NEGLIGIBLE = 1e-12
KERNEL_REFERENCE = 2048  # reference rows that mmd uses
KERNEL_ROWS = 256  # rows of a kernel matrix made at once: they stay in the processor's cache


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
    def moments(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(mean ``[F]``, covariance factor ``[F, r]``) of the whole sample and of its halves."""
        middle = len(self.features) // 2
        parts = self.features, self.features[:middle], self.features[middle:]
        return [(part.mean(axis=0), covariance_factor(_covariance(part))) for part in parts]

    @functools.cached_property
    def whitened(self) -> np.ndarray:
        """L^+ y of equation (3) for every centred row, ``[M, r]``, float32."""
        mean, factor = self.moments[0]
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
    images: np.ndarray, measures: Mapping[str, Measure], *, common_images: bool
) -> dict[tuple[str, str], np.ndarray]:
    """Pseudo-values of every metric in every feature space.

    Args:
      images: generated images in two halves, ``[2, N, ...]``.
      measures: feature spaces by name.
      common_images: as in `feature_pseudo_values`.

    Returns:
      ``{(feature space, metric): [K]}``.
    """
    flat = images.reshape(-1, *images.shape[2:])
    found = {}
    for name, (features, reference) in measures.items():
        rows = np.asarray(features(flat)).reshape(2, images.shape[1], -1)
        values = feature_pseudo_values(rows, reference, common_images=common_images)
        found |= {(name, metric): p for metric, p in values.items()}
    return found


def measure_curves(
    levels: Iterable[np.ndarray], measures: Mapping[str, Measure], *, common_images: bool
) -> dict[tuple[str, str], np.ndarray]:
    """`measure` of images at S stops, one per core at a time, while ``levels`` makes the next ones.

    Args:
      levels: gives images in two halves ``[2, N, ...]``, S times; called in this thread, one level at a time.
      measures: feature spaces by name.
      common_images: as in `feature_pseudo_values`.

    Returns:
      ``{(feature space, metric): [K, S]}`` for `stopping.read_stopping_curve`.
    """
    threads, pending = len(os.sched_getaffinity(0)), []
    # One level per core is faster than one level's matrix products on all of them.
    with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
        for images in levels:
            pending.append(pool.submit(measure, images, measures, common_images=common_images))
            pending[max(0, len(pending) - 1 - threads)].result()  # those that wait hold memory
        values = [future.result() for future in pending]
    return {key: np.stack([v[key] for v in values], axis=1) for key in values[0]}


def feature_pseudo_values(
    samples: np.ndarray, reference: FeatureReference, *, common_images: bool
) -> dict[str, np.ndarray]:
    """Pseudo-values of the reference's metrics, equation (1).

    Args:
      samples: features in two halves, ``[2, N, F]``, N >= K.
      reference: what to compare with.
      common_images: False if all 2 N rows are independent draws; True if row i of both halves is the same image with
        independent noise, and the law of these very images under noise is what is measured.

    Returns:
      ``{metric: [K]}``, float64; infinite if a feature is not finite.

    Raises:
      ValueError: for another shape, or fewer rows than blocks.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 3 or samples.shape[0] != 2 or samples.shape[2] != reference.features.shape[1]:
        raise ValueError(f"samples must be [2, N, F = {reference.features.shape[1]}], got {list(samples.shape)}")
    blocks = reference.blocks
    if samples.shape[1] < blocks:
        raise ValueError(f"need at least {blocks} rows in each half, one per block, got {samples.shape[1]}")
    if not np.all(np.isfinite(samples)):
        return {metric: np.full(blocks, np.inf) for metric in reference.metrics}
    found = {}
    for metric in reference.metrics:
        theta, of_samples, of_reference = _INFLUENCES[metric](samples, reference)
        first, second = (_block_sums(half, blocks) for half in of_samples)
        generated = first - second if common_images else first + second
        found[metric] = theta + generated - generated.mean() + _block_sums(of_reference, blocks)
    return found


def _block_sums(influence, blocks):
    """K / N times the sums over K consecutive blocks of N centred influences: their mean is 0."""
    edges = np.linspace(0, len(influence), blocks + 1).astype(int)[:-1]
    return np.add.reduceat(influence - influence.mean(), edges) * (blocks / len(influence))


def _frechet(samples, reference):
    """(squared distance (2), influence of the samples' halves ``[2, N]``, influence of the reference ``[M]``)."""
    means = samples.mean(axis=1)
    covariances = [_covariance(half) for half in samples]
    mean, shift = means.mean(axis=0), 0.5 * (means[0] - means[1])
    both = 0.5 * (covariances[0] + covariances[1]) + np.outer(shift, shift)
    centre, factor = reference.moments[0]
    squares, vectors = np.linalg.eigh(factor.T @ both @ factor)
    theta = 2.0 * _squared_frechet(mean - centre, both, factor, squares)
    for half, covariance, (own_centre, own_factor) in zip(means, covariances, reference.moments[1:], strict=True):
        own_squares = np.linalg.eigvalsh(own_factor.T @ covariance @ own_factor)
        theta -= 0.5 * _squared_frechet(half - own_centre, covariance, own_factor, own_squares)
    kept = squares > NEGLIGIBLE * squares[-1]
    roots, vectors = squares[kept] ** 0.25, vectors[:, kept]
    # Influences need no more than float32; the squares above do, as roots of small ones are taken.
    x, y = (samples - mean).astype(np.float32), reference.features - centre
    mapped = x @ (factor @ vectors / roots).astype(np.float32)
    of_samples = _norms(x) - _norms(mapped) + 2.0 * x @ (mean - centre)
    overlap = _norms(reference.whitened @ (vectors * roots).astype(np.float32))
    return theta, 0.5 * of_samples, _norms(y) - overlap - 2.0 * y @ (mean - centre)


def _covariance(x):
    return np.atleast_2d(np.cov(x, rowvar=False, bias=True))


def _norms(x):
    """Squared norms along the last axis."""
    return np.einsum("...i,...i->...", x, x)


def _squared_frechet(shift, covariance, factor, squares):
    return shift @ shift + np.trace(covariance) + np.sum(factor**2) - 2.0 * np.sqrt(squares.clip(0.0)).sum()


def _mmd(samples, reference):
    """As `_frechet`, for the squared MMD: U-statistic over pairs of one row of each half."""
    own, rows = reference.own_kernel, reference.kernel_rows
    to_other = np.stack(reference.kernel_means(samples[0], samples[1]))
    crossed = [reference.kernel_means(half, reference.features[rows]) for half in samples]
    to_reference = np.stack([of_half for of_half, _ in crossed])
    theta = to_other.mean() - 2.0 * to_reference.mean() + own.mean()
    of_reference = np.zeros(len(reference.features))
    influence = 2.0 * own - crossed[0][1] - crossed[1][1]
    of_reference[rows] = (influence - influence.mean()) * (len(of_reference) / len(rows))
    return theta, to_other - to_reference, of_reference


def _sliced(samples, reference):
    """As `_frechet`, for squared sliced W2."""
    projected = samples @ reference.directions.T
    count, directions = projected.shape[1:]
    halves = np.mean([(np.sort(x, axis=0) - reference.quantiles(i, count)) ** 2 for i, x in enumerate(projected, 1)])
    both = projected.reshape(-1, directions)
    order = np.argsort(both, axis=0)
    ordered, quantiles = np.take_along_axis(both, order, axis=0), reference.quantiles(0, len(both))
    gap = ordered - quantiles
    # Kantorovich potentials: their slope is twice the displacement; trapezoidal rule along the sorted values.
    of_samples, of_reference = np.zeros(len(both)), np.zeros(len(reference.features))
    for p in range(directions):
        twice = gap[1:, p] + gap[:-1, p]
        along = np.concatenate([[0.0], np.cumsum(twice * np.diff(ordered[:, p]))])
        of_samples[order[:, p]] += along - along.mean()
        along = np.concatenate([[0.0], np.cumsum(-twice * np.diff(quantiles[:, p]))])
        of_reference += np.interp(reference.projected[:, p], quantiles[:, p], along - along.mean())
    theta = 2.0 * np.mean(gap**2) - halves
    return theta, 0.5 * of_samples.reshape(2, -1) / directions, of_reference / directions


_INFLUENCES = {"w2": _frechet, "mmd": _mmd, "sliced_w2": _sliced}


def _squared_distances(a, b):
    """``[len(a), len(b)]``, float32, from values that are centred or small."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2.0 * (a @ b.T)
    return np.maximum(squares, 0.0)


def nearest_distances(samples: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance ``[N]`` of each sample ``[N, ...]`` to its nearest one among ``others`` ``[M, ...]``: a memorisation check."""
    a, b = (np.reshape(x, (len(x), -1)) for x in (samples, others))
    centre = b.mean(axis=0)
    return np.sqrt(_squared_distances(a - centre, b - centre).min(axis=1))
