"""Distances between generated samples and a reference, with a leave-one-block-out jackknife on every one of them.

Samples are decoded linearly, x = basis z, so all distances in data space are computed from latents z ``[N, d]``. Inside a
compiled sampler `sample_statistics` reduces a state to sums over K equal blocks of samples; on the host `pseudo_values`
turns those into K jackknife pseudo-values per metric:

    (1)  p_k = K theta - (K - 1) theta_{-k},    mean(p) = theta without its O(1/N) bias,    var(p) / K = its squared error

The same blocks at every stopping time keep curves paired, so resampling the p_k is a paired bootstrap (stopping.py).

    w2       squared Wasserstein-2 between the Gaussians with the samples' mean and covariance (squared Fréchet distance)
    mmd      squared maximum mean discrepancy, RBF kernel exp(-|x-y|^2 / (2 h^2)), U-statistic; h = median reference distance
    sliced_w2  squared W2 of one-dimensional projections, averaged over fixed random directions; p_k from the Kantorovich
             potential, its bias removed with two halves of the blocks (statistics.py, (1), e = 1; the reference stays whole)
    kl       KL(reference || samples) between Gaussian fits *inside the latent space*, nats; inf if supports differ

Samples are centred by the reference's encoded mean before anything is summed or squared, so that means far from 0 cost no
digits.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap, ch. 11 (1); Gretton et al., JMLR 2012 (mmd); Bonneel et al.,
JMIV 2015 (sliced_w2); Santambrogio, Optimal Transport for Applied Mathematicians, prop. 7.17 (its derivative).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax.devices import platform
from ldmjax.gaussians import covariance_factor, rank_tolerance
from ldmjax.typing import ArrayLike

# A covariance whose smallest eigenvalue is below this share of its largest counts as singular in "kl".
SINGULAR = 1e-10
METRICS = ("w2", "mmd", "sliced_w2", "kl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What generated samples are compared with.

    Attributes:
      mean: ``[D]``.
      covariance: ``[D, D]``.
      samples: ``[M, D]``, for mmd and sliced_w2.
    """

    mean: np.ndarray
    covariance: np.ndarray
    samples: np.ndarray
    _own_kernels: dict[int, float] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def bandwidth(self) -> float:
        """Median distance between two reference samples (of the first 1000), the kernel's h."""
        first = self.samples[:1000] - self.mean
        squares = np.sum(first**2, axis=1)
        distances = squares[:, None] + squares - 2.0 * first @ first.T
        return float(np.sqrt(np.median(distances[np.triu_indices(len(first), 1)])))

    def own_kernel(self, count: int) -> float:
        """Returns mean kernel over pairs of distinct samples among the first ``count``; computed once."""
        if count not in self._own_kernels:
            samples = self.samples[:count] - self.mean
            squares = np.sum(samples**2, axis=1)
            gram = np.exp(-0.5 * (squares[:, None] + squares - 2.0 * samples @ samples.T) / self.bandwidth**2)
            self._own_kernels[count] = (gram.sum() - np.trace(gram)) / (len(samples) * (len(samples) - 1))
        return self._own_kernels[count]


class LatentReference(NamedTuple):
    """A `Reference` seen from one autoencoder's latent space, as arrays for the device, centred by its encoded mean.

    Attributes:
      centre: ``[d]``, the encoded mean.
      samples: ``[M, d]``, encoded reference samples.
      outside: ``[M]``, their squared distance to the decoder's range.
      bandwidth: kernel width h.
      directions: ``[P, d]``, encoded random unit directions of data space.
      quantiles: ``[P, N]``, reference quantiles along each direction, at the ranks of N samples.
    """

    centre: jax.Array
    samples: jax.Array
    outside: jax.Array
    bandwidth: jax.Array
    directions: jax.Array
    quantiles: jax.Array


class SampleStatistics(NamedTuple):
    """Sums over blocks of samples: all that the metrics need of a state. K blocks.

    Attributes:
      mean: ``[K, d]``, block means of centred samples.
      second: ``[K, d, d]``, block means of their z z^T.
      kernel: ``[K, K]``, sums of the kernel over pairs of distinct samples of two blocks.
      cross: ``[K]``, sums of the kernel over (sample of the block, reference sample).
      sliced: scalar, squared sliced W2, bias-corrected.
      potential: ``[K]``, block means of the derivative of ``sliced`` with respect to a sample's weight.
    """

    mean: jax.Array
    second: jax.Array
    kernel: jax.Array
    cross: jax.Array
    sliced: jax.Array
    potential: jax.Array


def latent_reference(
    reference: Reference, basis: np.ndarray, *, count: int, kernel_count: int, directions: int, seed: int = 0
) -> LatentReference:
    """Prepares a reference for samples that are decoded by ``basis`` ``[D, d]`` (orthonormal columns).

    Args:
      reference: the reference in data space.
      basis: decoder.
      count: N, number of generated samples.
      kernel_count: reference samples used by the kernel metric.
      directions: P, number of random directions.
      seed: chooses the directions.
    """
    centre = reference.mean @ basis
    centred = reference.samples - basis @ centre
    kernel_samples = centred[:kernel_count]
    encoded = kernel_samples @ basis
    # A stream of its own: samples drawn by the same seed must not coincide with the directions.
    unit = np.random.default_rng([seed, 1]).standard_normal((directions, basis.shape[0]))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    ranks = (np.arange(count) + 0.5) / count
    outside = np.clip(np.sum(kernel_samples**2, axis=1) - np.sum(encoded**2, axis=1), 0.0, None)
    arrays = [
        centre,
        encoded,
        outside,
        reference.bandwidth,
        unit @ basis,
        np.quantile(centred @ unit.T, ranks, axis=0).T,
    ]
    return LatentReference(*(np.asarray(a, np.float32) for a in arrays))


def sample_statistics(
    z: jax.Array, reference: LatentReference, mask: jax.Array | float = 1.0, *, blocks: int = 64
) -> SampleStatistics:
    """Reduces samples to block sums (traceable).

    Args:
      z: latents ``[N, d]``, 0 in padded components; N a multiple of ``blocks``.
      reference: what to compare with, of latent width >= d; the decoder's further components count as lost. The kernel
        metric uses the first min(N, M) samples, rounded down to whole blocks.
      mask: ``[d]``, 0 in padded components.
      blocks: K, even.
    """
    count, width = z.shape
    kept = jnp.zeros_like(reference.centre).at[:width].set(mask)
    z = (z - reference.centre[:width]) * kept[:width]
    block_mean, second = block_moments(z, blocks=blocks)
    per_block = min(count, reference.samples.shape[0]) // blocks
    if per_block < 1:
        raise ValueError(f"need at least {blocks} samples and reference samples, got {count}, {len(reference.samples)}")
    chosen = z[: per_block * blocks]
    encoded = reference.samples[:, :width] * kept[:width]
    # Samples are 0 in the other components, which is not the centre.
    lost = jnp.sum(((reference.samples + reference.centre) * (1.0 - kept)) ** 2, axis=1) + reference.outside
    offset = reference.directions @ ((1.0 - kept) * reference.centre)
    kernel = _kernel(chosen, chosen, reference.bandwidth, 0.0) * (1.0 - jnp.eye(chosen.shape[0]))
    kernel = kernel.reshape(blocks, per_block, blocks, per_block).sum(axis=(1, 3))
    cross = _kernel(chosen, encoded, reference.bandwidth, lost).reshape(blocks, -1).sum(axis=1)
    projected = z @ (reference.directions[:, :width] * kept[:width]).T - offset
    sliced, potential = sliced_statistics(projected, reference.quantiles, blocks)
    return SampleStatistics(block_mean, second, kernel, cross, sliced, potential)


def block_moments(z: jax.Array, *, blocks: int = 64) -> tuple[jax.Array, jax.Array]:
    """Returns block means ``[K, d]`` and block means of z z^T ``[K, d, d]`` of samples ``[N, d]``, N a multiple of K."""
    grouped = z.reshape(blocks, z.shape[0] // blocks, -1)
    return grouped.mean(axis=1), jnp.einsum("kni,knj->kij", grouped, grouped) * (blocks / z.shape[0])


def _kernel(a, b, bandwidth, offset):
    squared = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1) - 2.0 * a @ b.T + offset
    return jnp.exp(-0.5 * squared / bandwidth**2)


def sliced_statistics(
    projected: jax.Array, quantiles: ArrayLike, blocks: int = 64, *, debiased: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Returns squared sliced W2 and what its standard error needs (traceable).

    Args:
      projected: samples along each direction ``[N, P]``, N a multiple of ``blocks``.
      quantiles: reference quantiles ``[P, N]`` along the same directions.
      blocks: K, even, consecutive blocks of samples.
      debiased: False leaves the bias in, for those who subtract what as many draws of the law itself keep.

    Returns:
      (mean squared W2 over directions; block means ``[K]`` of its derivative in the samples' weights); their
      sum gives the pseudo-values of equation (1).
    """
    if debiased and blocks % 2:
        raise ValueError(f"blocks must be even, got {blocks}")
    # XLA sorts one array of integers seven times faster than floats with an index, so a sample's block number rides in the
    # last bits of its value (K = 64: six bits, a relative change of 4e-6).
    bits = (1 << (blocks - 1).bit_length()) - 1
    block = jnp.repeat(jnp.arange(blocks, dtype=jnp.int32), projected.shape[0] // blocks)
    code = jax.lax.bitcast_convert_type(projected.T, jnp.int32)
    code = code ^ ((code >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    code = jnp.sort((code & ~bits) | block, axis=1)
    block, code = code & bits, (code & ~bits) | (bits // 2)
    ordered = jax.lax.bitcast_convert_type(code ^ ((code >> 31) & 0x7FFFFFFF), jnp.float32)
    gap = ordered - quantiles
    # Kantorovich potential: its slope is twice the displacement; trapezoidal rule along the sorted samples.
    potential = jnp.cumsum((gap[:, 1:] + gap[:, :-1]) * jnp.diff(ordered, axis=1), axis=1)
    potential = jnp.concatenate([jnp.zeros((len(gap), 1)), potential], axis=1)
    sums = _block_sums(potential, block, blocks) / quantiles.size * blocks
    whole = jnp.mean(gap**2)
    if not debiased:
        return whole, sums - jnp.mean(sums)
    halves = _distance_of_halves(ordered, jnp.asarray(quantiles), block < blocks // 2)
    return 2.0 * whole - halves, sums - jnp.mean(sums)


def _distance_of_halves(ordered, quantiles, first):
    """Returns the mean squared W2 of both halves of sorted samples ``[P, N]``; ``first`` marks the first half."""
    pairs = 0.5 * (quantiles[:, ::2] + quantiles[:, 1::2])
    before = jnp.cumsum(first, axis=1)
    rank = jnp.where(first, before - 1, jnp.arange(first.shape[1]) - before)
    return jnp.mean((ordered - jnp.take_along_axis(pairs, rank, axis=1)) ** 2)


def _block_sums(values, block, blocks):
    """Sums ``[K]`` of the values whose block number is 0..K-1.

    An accelerator adds scattered numbers in an order that varies, so there every block's sum goes over all values.
    """
    if platform() == "cpu":
        return jax.ops.segment_sum(values.ravel(), block.ravel(), num_segments=blocks)
    return jnp.sum(jnp.where(block == jnp.arange(blocks)[:, None, None], values, 0.0), axis=(1, 2))


def pseudo_values(
    statistics: SampleStatistics, reference: Reference, basis: np.ndarray, *, count: int, kernel_count: int
) -> dict[str, np.ndarray]:
    """Returns jackknife pseudo-values of every metric, equation (1).

    Args:
      statistics: of S stops, every leaf with a leading axis ``[S]``; components beyond basis's columns are dropped.
      reference: in data space.
      basis: decoder ``[D, d]``.
      count: N, generated samples.
      kernel_count: as given to `latent_reference`.

    Returns:
      ``{metric: [K, S]}``, float64.
    """
    blocks = statistics.mean.shape[1]
    kernel_blocks = min(count, kernel_count, len(reference.samples)) // blocks
    potential = np.asarray(statistics.potential, np.float64)
    centre = (reference.mean @ basis).astype(np.float32)
    values = moment_pseudo_values(statistics.mean, statistics.second, reference, basis, centre=centre)
    values["mmd"] = _jackknife(_mmd(statistics, reference.own_kernel(kernel_count), kernel_blocks, kernel_count))
    values["sliced_w2"] = (np.asarray(statistics.sliced, np.float64)[:, None] + potential).T
    return {metric: values[metric] for metric in METRICS}


def moment_pseudo_values(
    mean: np.ndarray,
    second: np.ndarray,
    reference: Reference,
    basis: np.ndarray,
    *,
    centre: ArrayLike = 0.0,
    with_kl: bool = True,
) -> dict[str, np.ndarray]:
    """Returns pseudo-values of the metrics that need first and second moments only, "w2" and "kl".

    Args:
      mean: block means ``[S, K, d]`` of `block_moments`; components beyond basis's columns are dropped.
      second: block second moments ``[S, K, d, d]``.
      reference: in data space.
      basis: decoder ``[D, d]``.
      centre: what was subtracted from the samples, scalar or ``[d]``.
      with_kl: False leaves out "kl".

    Returns:
      ``{metric: [K, S]}``, float64.
    """
    dim = basis.shape[1]
    factor = covariance_factor(reference.covariance)
    target = basis.T @ reference.covariance @ basis
    encoded = reference.mean @ basis
    shift, outside = encoded - np.asarray(centre, np.float64), np.sum((reference.mean - basis @ encoded) ** 2)
    # Stop by stop: the covariances of one stop without each block stay in the processor's cache.
    w2, kl = [], []
    for mean_s, second_s in zip(np.asarray(mean), np.asarray(second), strict=True):
        if not (np.all(np.isfinite(mean_s)) and np.all(np.isfinite(second_s))):
            # Samples that left the range of float32: no distance, and no eigenvalues either.
            w2.append(np.full(len(mean_s) + 1, np.inf))
            kl.append(np.full(len(mean_s) + 1, np.inf))
            continue
        moments = _leave_one_out_moments(mean_s[:, :dim].astype(np.float64), second_s[:, :dim, :dim].astype(np.float64))
        w2.append(outside + _frechet(*moments, shift, basis, factor))
        if with_kl:
            kl.append(_gaussian_kl(*moments, shift, target))
    return {"w2": _jackknife(np.stack(w2))} | ({"kl": _jackknife(np.stack(kl))} if with_kl else {})


def _jackknife(theta):
    """Returns pseudo-values ``[K, S]`` from ``theta`` ``[S, K + 1]``: the full value first, then those without one block."""
    blocks = theta.shape[1] - 1
    with np.errstate(invalid="ignore"):
        return (blocks * theta[:, :1] - (blocks - 1) * theta[:, 1:]).T


def _leave_one_out_moments(mean, second):
    """Means ``[K + 1, d]`` and covariances of all samples (first) and of all but one block."""
    blocks = len(mean)

    def combine(x):
        total = x.sum(axis=0, keepdims=True)
        return np.concatenate([total / blocks, (total - x) / (blocks - 1)])

    mean, second = combine(mean), combine(second)
    return mean, second - mean[:, :, None] * mean[:, None, :]


def _frechet(means, covariances, centre, basis, factor):
    """Returns squared Fréchet distances ``[K + 1]`` but for the means' part outside the latent space.

    The reference covariance is factor factor^T.
    """
    # In latent coordinates: || A^{1/2} basis^T L ||_* = sum of square roots of the eigenvalues of R A R^T.
    reduced = np.linalg.qr((basis.T @ factor).T, mode="r")
    overlap = np.sqrt(np.linalg.eigvalsh(reduced @ covariances @ reduced.T).clip(0.0)).sum(axis=1)
    mean_term = np.sum((means - centre) ** 2, axis=1)
    return mean_term + np.trace(covariances, axis1=1, axis2=2) + np.sum(factor**2) - 2.0 * overlap


def _mmd(statistics, own, per_block, reference_count):
    """Returns squared MMD ``[S, K + 1]``, U-statistics."""
    kernel, cross = np.asarray(statistics.kernel, np.float64), np.asarray(statistics.cross, np.float64)
    blocks = cross.shape[1]
    within = kernel.sum(axis=(1, 2))[:, None]
    removed = 2.0 * kernel.sum(axis=2) - np.diagonal(kernel, axis1=1, axis2=2)
    pairs = np.concatenate([within, within - removed], axis=1)
    crossed = cross.sum(axis=1, keepdims=True) - np.concatenate([np.zeros((len(cross), 1)), cross], axis=1)
    count = per_block * np.append(blocks, np.full(blocks, blocks - 1))
    return pairs / (count * (count - 1)) - 2.0 * crossed / (count * reference_count) + own


def _gaussian_kl(means, covariances, centre, target):
    """KL(N(centre, target) || N(mean, covariance)) ``[K + 1]``; inf where a covariance is singular."""
    target_values = np.linalg.eigvalsh(target)
    if target_values[0] <= max(rank_tolerance(target_values), SINGULAR * target_values[-1]):
        return np.full(len(means), np.inf)
    values = np.linalg.eigvalsh(covariances)
    singular = values[:, 0] <= SINGULAR * values[:, -1]
    inverse = np.linalg.inv(np.where(singular[:, None, None], np.eye(len(target)), covariances))
    shift = means - centre
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.sum(np.log(values), axis=1) - np.sum(np.log(target_values))
    trace = np.einsum("kij,ji->k", inverse, target) + np.einsum("ki,kij,kj->k", shift, inverse, shift)
    return np.where(singular, np.inf, 0.5 * (trace - len(target) + log_ratio))


def distances(
    samples: np.ndarray,
    reference: Reference,
    *,
    basis: np.ndarray | None = None,
    blocks: int = 64,
    directions: int = 64,
) -> dict[str, tuple[float, float]]:
    """Returns all metrics of one set of samples: ``{metric: (estimate, standard error)}``.

    Args:
      samples: latents ``[N, d]``; the last N mod ``blocks`` are left out.
      reference: in data space.
      basis: decoder ``[D, d]``; default the identity (samples are data).
      blocks: K of the jackknife, even.
      directions: number of random directions of sliced_w2.
    """
    basis = np.eye(samples.shape[1]) if basis is None else basis
    count = len(samples) // blocks * blocks
    kernel_count = min(count, len(reference.samples), 2048)
    latent = latent_reference(reference, basis, count=count, kernel_count=kernel_count, directions=directions)
    statistics = sample_statistics(jnp.asarray(samples[:count], jnp.float32), latent, blocks=blocks)
    statistics = jax.tree.map(lambda x: np.asarray(x)[None], statistics)
    values = pseudo_values(statistics, reference, basis, count=count, kernel_count=kernel_count)
    with np.errstate(invalid="ignore"):
        return {m: (float(p.mean()), float(p.std(ddof=1) / np.sqrt(blocks))) for m, p in values.items()}
