"""Many chains in one compiled program, and what is kept of their samples so that any two can be compared in pairs.

A chain is a row of level numbers of one `Ladder`, noisiest first, 0 (clean data) last, padded with zeros, and its number of
updates. Chains of different length, on different levels, then differ in data only: one program runs them all, where a
program per chain would take longer to compile than to run. `merge` puts the levels of several ladders into one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax import metrics, samplers, schedules
from ldmjax.process import Denoiser
from ldmjax.tasks import BLOCKS, Task


class Rows(NamedTuple):
    """C chains: level numbers ``[C, longest + 1]`` and numbers of updates ``[C]``."""

    times: np.ndarray
    updates: np.ndarray


class Statistics(NamedTuple):
    """What is kept of samples ``[N, D]``; K = `ldmjax.tasks.BLOCKS` blocks of consecutive samples.

    Attributes:
      mean: ``[K, D]``, block means.
      second: ``[K, D, D]``, block second moments.
      sliced: squared sliced W2 from the task's reference.
      potential: ``[K]``, its derivative in the blocks' weights.
    """

    mean: jax.Array
    second: jax.Array
    sliced: jax.Array
    potential: jax.Array


def make_rows(numbers: Sequence[np.ndarray]) -> Rows:
    """Rows from the level numbers of each chain, noisiest first, without the 0 of clean data."""
    longest = max(len(row) for row in numbers)
    times = np.stack([np.pad(np.asarray(row, np.float32), (0, longest + 1 - len(row))) for row in numbers])
    return Rows(times, np.array([len(row) for row in numbers]))


def nested_rows(counts: Sequence[int], levels: int) -> Rows:
    """Chains on nested subsets of one ladder of ``levels`` levels (`schedules.nested_subsets`), one per count."""
    subsets = schedules.nested_subsets(levels, tuple(counts))
    return make_rows([levels - subsets[count] for count in counts])


def merge(ladders: Sequence[schedules.Ladder]) -> tuple[schedules.Ladder, list[np.ndarray]]:
    """Joins ladders: one variance-preserving ladder with the levels of all, and the level numbers of each on it.

    Deterministic and ancestral chains, scaled by sqrt(alpha^2 + sigma^2) on every level, depend on sigma/alpha only, and
    so does their start at pure noise; levels without alpha^2 + sigma^2 = 1 are scaled so.
    """
    with np.errstate(divide="ignore"):
        # Rounded, so that what two ladders have in common up to their own rounding is one level.
        logs = [np.log(np.divide(ladder.sigma_levels, ladder.alpha_levels)).round(11) for ladder in ladders]
    union = np.unique(np.concatenate(logs))
    ratio = np.exp(union[::-1])
    merged = schedules.Ladder(1.0 / np.hypot(1.0, ratio), 1.0 / np.hypot(1.0, 1.0 / ratio))
    return merged, [1 + np.searchsorted(union, log) for log in logs]


def run_row(
    denoiser: Denoiser,
    ladder: schedules.Ladder,
    start: jax.Array,
    times: jax.Array,
    updates: jax.Array,
    *,
    sampler: str,
    key: jax.Array,
) -> jax.Array:
    """Returns samples ``[N, D]`` of one chain from ``start`` to clean data; the row may be traced."""
    options = {"times": times, "stops": jnp.reshape(updates, 1), "sampler": sampler, "noise": samplers.BY_ROW}
    return samplers.sample(denoiser, ladder, start, key, statistic=lambda z, t: z, **options)[0]


def statistics(samples: jax.Array, task: Task) -> Statistics:
    """Reduces samples ``[N, D]``, N a multiple of `ldmjax.tasks.BLOCKS`; traceable."""
    quantiles = jnp.asarray(task.quantiles(samples.shape[0]), jnp.float32)
    projected = samples @ jnp.asarray(task.directions, jnp.float32)
    return Statistics(
        *metrics.block_moments(samples, blocks=BLOCKS),
        *metrics.sliced_statistics(projected, quantiles, BLOCKS, debiased=False),
    )


def pseudo_values(stacked: Statistics, task: Task) -> dict[str, np.ndarray]:
    """Returns jackknife pseudo-values ``[C, K]`` of rel_fd and squared sliced W2, for C chains stacked on the first axis.

    Their mean is the estimate, their standard deviation over sqrt(K) its standard error; differences of two chains'
    pseudo-values give those of a paired comparison. Chains whose samples overflowed have infinite ones.
    """
    reference = metrics.Reference(
        mean=task.reference.mean(axis=0), covariance=task.covariance, samples=task.reference[:2]
    )
    frechet = metrics.moment_pseudo_values(
        stacked.mean, stacked.second, reference, np.eye(task.dim), with_kl=False
    )["w2"].T  # fmt: skip
    sliced = np.asarray(stacked.sliced, np.float64)[:, None] + np.asarray(stacked.potential, np.float64)
    finite = np.all(np.isfinite(stacked.second), axis=(1, 2, 3))[:, None] & np.isfinite(sliced)
    return {
        "rel_fd": np.where(finite, frechet / np.trace(task.covariance), np.inf),
        "sliced_w2_squared": np.where(finite, sliced, np.inf),
    }


def estimate(values: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard error of pseudo-values ``[K]``."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(values.size))
