"""The distances of metrics/features.py, each with the influence of every row and what is left of its bias.

**Bias.** What a statistic of finite samples has too much falls about as 1 / rows, so that

    (1)  theta = theta(A + B, R) + e (theta(A + B, R) - (theta(A, R_1) + theta(B, R_2)) / 2),     R_1, R_2 halves of R,

with e = 1 is nearly free of it (a jackknife with two groups).

*w2.* With F features and M rows 1 / rows is an expansion in F / M, no use where F / M is not small. So each theta has its
covariances' sampling error removed by random matrix theory (random_matrices.py) first; (1) removes what is left for small F
and for features that are not Gaussian. Halves need `ROWS_TO_HALVE` times as many rows as dimensions: where those of the
reference have fewer, all of it is compared with A and with B; where A and B have fewer, theta(A + B, R) stands. Directions
that no reference row shows leave a bias that is unknown between bounds.

*sliced_w2.* Errors of quantiles at the samples' own ranks sum up to 1 / rows: e = 1. Copies of an image make a staircase, whose
error goes as loglog(images) / images for Gaussian tails, slower for heavier ones: e = 1 + `STAIRS` (1 - 1 / copies), fitted to
Gaussians with 100 to 2000 images. Either is uncertain by `UNCERTAIN`, of one sign at all stops.

*mmd* needs no correction, its kernel runs over pairs of one row of A and one of B.

**Influence.** w2, with R = L L^T the reference's covariance, S the samples', w_k the weights of random_matrices (3) and
L^T S L = V lam V^T,

    (2)  samples  |x|^2 - 2 |w^{1/2} V^T L^T x|^2,       reference  |y|^2 - 2 |(w lam)^{1/2} V^T L^+ y|^2      (x, y centred).

sliced_w2 has the Kantorovich potential phi along each direction (its slope is twice the displacement). What it owes to mean
mu and variance s^2 along that direction is

    (3)  E[phi'] (x - mu) + E[phi' (x - mu)] ((x - mu)^2 - s^2) / 2 s^2,

the rest belongs to the shape.

**Noisy images** (metrics/features.py). Which rows are one image matters to all but w2, a function of mean and covariance.
sliced_w2: A and B hold different images, moved and scaled along every direction to the mean and variance of all rows. mmd: A
and B hold different images, moved to the mean of all rows, and recoloured to their covariance in the largest principal
components of the reference, few enough for the number of images. What is orthogonal to these is scaled to their variance, and
what the kernel of two such rows still lacks is added to second order in x.y / h^2, which is small where components are many.
Its error is taken to be that of images whose mean and covariance are drawn too: too large, two to three times at 100 images.

Sources: Santambrogio, Optimal Transport for Applied Mathematicians, prop. 7.17 (potentials).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from ldmjax.random_matrices import root_trace
from ldmjax.typing import ArrayLike

ROWS_TO_HALVE = 1.5
STAIRS, UNCERTAIN = 0.15, 0.1
MATCHED_COMPONENTS = 128  # at most, and at most a quarter of the images


class Estimate(NamedTuple):
    """One distance of samples in two halves of N rows to a reference of M.

    Attributes:
      theta: the estimate.
      of_moments: ``[2, N]``, influence of the samples' rows through mean and covariance.
      of_shape: ``[2, N]``, their influence through all else.
      of_reference: ``[M]``.
      unknown: what is not known of the bias, plus or minus; its own sign pairs the stops of a curve.
    """

    theta: float
    of_moments: np.ndarray
    of_shape: np.ndarray
    of_reference: np.ndarray
    unknown: float


def frechet(samples, reference, copies) -> Estimate:
    """Returns squared Fréchet distance; all arguments as in `features.feature_pseudo_values`."""
    rows = samples.shape[1]
    means = samples.mean(axis=1)
    mean, shift = means.mean(axis=0), 0.5 * (means[0] - means[1])
    # Of noisy images the covariance is known, that of these rows, but for the noise, which (1) takes care of.
    known = copies is not None
    free = (lambda count: np.inf) if known else (lambda count: count - 1)
    covariances = [np.atleast_2d(np.cov(half, rowvar=False, bias=True)) for half in samples]
    both = 0.5 * (covariances[0] + covariances[1]) + np.outer(shift, shift)
    if not known:
        both *= 2 * rows / (2 * rows - 1.0)
        covariances = [own * (rows / (rows - 1.0)) for own in covariances]
    whole, *halves = reference.moments
    eigenvalues, vectors = np.linalg.eigh(whole.factor.T @ both @ whole.factor)
    theta, root = _squared_frechet(mean, both, free(2 * rows), whole, eigenvalues)
    kept = root.weights > 0
    if ROWS_TO_HALVE * np.count_nonzero(kept) <= free(rows):
        if halves[0].factor.shape[1] * ROWS_TO_HALVE > halves[0].rows - 1:
            halves = [whole, whole]
        by_half = []
        for half, own, part in zip(means, covariances, halves, strict=True):
            own_eigenvalues = np.linalg.eigvalsh(part.factor.T @ own @ part.factor)
            by_half.append(_squared_frechet(half, own, free(rows), part, own_eigenvalues)[0])
        theta = 2.0 * theta - np.mean(by_half)
    # Influences need no more than float32; the eigenvalues do, as roots of small ones are taken.
    x, y = (samples - mean).astype(np.float32), reference.features - whole.mean
    away = mean - whole.mean
    vectors, weights = vectors[:, kept], 2.0 * root.weights[kept]
    mapped = norms(x @ (whole.factor @ vectors * np.sqrt(weights)).astype(np.float32))
    overlap = norms(reference.whitened @ (vectors * np.sqrt(weights * eigenvalues[kept])).astype(np.float32))
    of_samples = 0.5 * (norms(x) - mapped + 2.0 * x @ away)
    return Estimate(
        theta, of_samples, np.zeros_like(of_samples), norms(y) - overlap - 2.0 * y @ away,
        2.0 * root.unknown,
    )  # fmt: skip


def _squared_frechet(mean, own, rows, part, eigenvalues):
    """Returns (squared distance of a mean and a covariance to a part of the reference, root)."""
    # Where the rows of the reference are too few to show its rank, that of a known covariance bounds the product's.
    if len(eigenvalues) < part.rows - 1:
        rank = len(eigenvalues)
    else:
        rank = int(np.linalg.matrix_rank(own, hermitian=True)) if np.isinf(rows) else len(own)
    root = root_trace(eigenvalues, rows=part.rows - 1, other_rows=rows, rank=rank)
    squares, trace, part_trace = np.sum((mean - part.mean) ** 2), np.trace(own), np.sum(part.factor**2)
    squares -= part_trace / part.rows + trace / (rows + 1.0)
    return squares + trace + part_trace - 2.0 * root.value, root


def covariance(x: np.ndarray) -> Float[np.ndarray, "F F"]:
    """Returns covariance ``[F, F]`` of rows ``[N, F]``, divided by N - 1."""
    return np.atleast_2d(np.cov(x, rowvar=False))


def norms(x: np.ndarray) -> np.ndarray:
    """Returns squared norms along the last axis."""
    return np.einsum("...i,...i->...", x, x)


def image_halves(rows: int, copies: int) -> tuple[slice, slice]:
    """Rows of the first and of the second half of the images."""
    middle = rows // copies // 2 * copies
    return slice(0, middle), slice(middle, rows)


def mmd(samples, reference, copies) -> Estimate:
    """Returns squared MMD; arguments as in `frechet`."""
    own, rows = reference.own_kernel, reference.kernel_rows
    halves = samples if copies is None else _matched_halves(samples, reference, copies)
    to_other = reference.kernel_means(*halves)
    crossed = [reference.kernel_means(half, reference.features[rows]) for half in halves]
    theta = to_other[0].mean() - np.sum([of_half.mean() for of_half, _ in crossed]) + own.mean()
    of_samples = [other - of_half for other, (of_half, _) in zip(to_other, crossed, strict=True)]
    if copies is None:
        of_samples = np.stack(of_samples)
    else:
        theta += to_other[0].mean() * _shortfall(halves) / (2.0 * reference.bandwidth**4)
        of_samples = np.concatenate([x.reshape(2, -1) for x in of_samples], axis=1)
    of_reference = np.zeros(len(reference.features))
    influence = 2.0 * own - crossed[0][1] - crossed[1][1]
    of_reference[rows] = (influence - influence.mean()) * (len(of_reference) / len(rows))
    return Estimate(theta, np.zeros_like(of_samples), of_samples, of_reference, 0.0)


def _matched_halves(samples, reference, copies):
    """Returns two halves of the images ``[n, F]``, both draws of the noise, with all rows' mean and main covariance."""
    count, dim = samples.shape[1:]
    axes = reference.axes[:, : max(min(MATCHED_COMPONENTS, count // copies // 4), 1)]
    mean = samples.reshape(-1, dim).mean(axis=0)
    main = (samples - mean) @ axes
    target, spread = _root(covariance(main.reshape(-1, axes.shape[1])), 0.5), _rest(samples - mean, main)
    halves = []
    for part in image_halves(count, copies):
        x, own = samples[:, part].reshape(-1, dim), main[:, part].reshape(-1, axes.shape[1])
        x, own = x - x.mean(axis=0), own - own.mean(axis=0)
        recoloured = own @ (_root(covariance(own), -0.5) @ target)
        scale = ratio(spread, _rest(x, own))
        halves.append(mean + scale * x + (recoloured - scale * own) @ axes.T)
    return halves


def _rest(centred, main):
    """Returns deviation of centred rows orthogonal to the axes along which they have components ``main``."""
    return np.sqrt(max(np.mean(norms(centred)) - np.mean(norms(main)), 0.0))


def _shortfall(halves):
    """Returns tr S^2 - tr S_A S_B of the halves, S = (S_A + S_B) / 2: what x.y squared lacks between them."""
    first, second = (np.cov(half, rowvar=False, dtype=np.float32) for half in halves)
    return 0.25 * np.sum((first - second) ** 2, dtype=np.float64)


def _root(symmetric, power):
    """Returns a power of a positive semi-definite matrix; directions without variance stay without."""
    values, vectors = np.linalg.eigh(symmetric)
    kept = values > 1e-9 * values[-1]
    return (vectors[:, kept] * values[kept] ** power) @ vectors[:, kept].T


def sliced_w2(samples, reference, copies) -> Estimate:
    """Returns squared sliced W2; arguments as in `frechet`."""
    projected = samples @ reference.directions.T
    count, directions = projected.shape[1:]
    both = projected.reshape(-1, directions)
    mean, deviation = both.mean(axis=0), both.std(axis=0)
    if copies is None:
        halves = projected
    else:
        parts = (projected[:, part].reshape(-1, directions) for part in image_halves(count, copies))
        halves = [(x - x.mean(axis=0)) * ratio(deviation, x.std(axis=0)) + mean for x in parts]
    own = [np.mean((np.sort(x, axis=0) - reference.quantiles(i, len(x))) ** 2) for i, x in enumerate(halves, 1)]
    order = np.argsort(both, axis=0)
    ordered, quantiles = np.take_along_axis(both, order, axis=0), reference.quantiles(0, len(both))
    gap = ordered - quantiles
    # Potentials by the trapezoidal rule along the sorted values.
    moments, total, of_reference = np.zeros(len(both)), np.zeros(len(both)), np.zeros(len(reference.features))
    for p in range(directions):
        twice = gap[1:, p] + gap[:-1, p]
        along = np.concatenate([[0.0], np.cumsum(twice * np.diff(ordered[:, p]))])
        total[order[:, p]] += along - along.mean()
        centred, variance = both[:, p] - mean[p], deviation[p] ** 2
        tilt = np.mean(gap[:, p] * (ordered[:, p] - mean[p]))
        moments += 2.0 * gap[:, p].mean() * centred + tilt * ratio(centred**2 - variance, variance)
        along = np.concatenate([[0.0], np.cumsum(-twice * np.diff(quantiles[:, p]))])
        of_reference += np.interp(reference.projected[:, p], quantiles[:, p], along - along.mean())
    theta = np.mean(gap**2)
    excess = theta - np.mean(own)
    moments, total = (0.5 * x.reshape(2, -1) / directions for x in (moments, total))
    extrapolated = excess * (1.0 if copies is None else 1.0 + STAIRS * (1.0 - 1.0 / copies))
    return Estimate(theta + extrapolated, moments, total - moments, of_reference / directions, UNCERTAIN * excess)


def ratio(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns a / b, broadcast; 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) > 0)


STATISTICS = {"w2": frechet, "mmd": mmd, "sliced_w2": sliced_w2}


def wilson_interval(count: ArrayLike, total: int, *, confidence: float = 0.9) -> tuple[ArrayLike, ArrayLike]:
    """Wilson score interval of a share, from ``count`` successes in ``total`` trials."""
    z = ndtri(0.5 + 0.5 * confidence)
    share = np.asarray(count) / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
