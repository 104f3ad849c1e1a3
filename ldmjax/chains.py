"""Chains of updates over noise levels: which samplers there are, many chains in one compiled program, comparing in pairs.

A chain is a row of level numbers of one `Ladder`, noisiest first, 0 (clean data) last, padded with zeros, and its number of
updates. Chains of different length, on different levels, then differ in data only: one program runs them all, where a
program per chain would take longer to compile than to run. `merge` puts the levels of several ladders into one.

On Gaussian data the law of a chain is known (`variances`). With g_i = alpha_i^2 lam + sigma_i^2 the variance of a component on
level i (1 = cleanest, T = noisiest, 0 = clean data), chains start from N(0, I) and their last update is the denoiser of level
1, whatever T. Infinitely many levels between level T and level 1 leave

    (1)  flow (ddim, heun, dpmpp_2m)   v_1 = g_1 / g_T
    (2)  reverse SDE (ddpm)            v_1 = g_1 + (alpha_T g_1 / (alpha_1 g_T))^2 (1 - g_T)
    (3)  last update                   v_0 = (alpha_1 lam / g_1)^2 v_1

with alpha^2 + sigma^2 = 1 or without. Samples of any law are reduced to block `Statistics`, so that any two chains from the
same noise can be compared in pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ldmjax import metrics, oracle, samplers, schedules
from ldmjax.process import Denoiser
from ldmjax.tasks import BLOCKS, Task

# Names of samplers on levels, and the keywords with which `oracle.chain_variances` knows their laws.
SAMPLERS = {
    "ddim": {"sampler": "ddim"},
    "ddpm": {"sampler": "ddim", "eta": 1.0},
    "ddpm_exact": {"sampler": "ddpm_exact"},
    "heun": {"sampler": "heun"},
    "dpmpp_2m": {"sampler": "dpmpp_2m"},
}
STOCHASTIC = ("ddpm", "ddpm_exact")


def is_defined(sampler: str, ladder: schedules.Ladder) -> bool:
    """Returns whether the sampler runs on the ladder: two of them need some signal on the noisiest level."""
    return sampler not in ("heun", "ddpm_exact") or ladder.alpha_levels[0] > 0


def evaluations(sampler: str, levels: int) -> int:
    """Returns the network evaluations per sample of a chain that uses so many levels."""
    # Heun's second evaluation is on the level it steps to, but its last update is Euler's.
    return 2 * levels - 1 if sampler == "heun" and levels else levels


def variances(
    data_variances: Float[np.ndarray, " D"], ladder: schedules.Ladder, sampler: str, **options: Any
) -> Float[np.ndarray, "K D"]:
    """Returns the variances after every update on all levels of the ladder; ``options`` as `oracle.chain_variances`."""
    return oracle.chain_variances(
        data_variances, ladder.alpha_levels, ladder.sigma_levels, **SAMPLERS[sampler], **options
    )


def limit_variances(
    data_variances: Float[np.ndarray, " D"], ladder: schedules.Ladder, sampler: str, *, truncated: bool = True
) -> Float[np.ndarray, " D"]:
    """Returns the variances (3) that no number of levels between the ladder's ends improves.

    Args:
      data_variances: lam.
      ladder: only its two ends matter.
      sampler: one of `SAMPLERS`, but not "ddpm_exact", which is exact at any number of levels.
      truncated: False moves level 1 to clean data.
    """
    alpha_t, sigma_t = ladder.alpha_levels[0], ladder.sigma_levels[0]
    alpha_1, sigma_1 = (ladder.alpha_levels[-1], ladder.sigma_levels[-1]) if truncated else (1.0, 0.0)
    noisy, clean = alpha_t**2 * data_variances + sigma_t**2, alpha_1**2 * data_variances + sigma_1**2
    if sampler == "ddpm":
        reached = clean + (alpha_t * clean / (alpha_1 * noisy)) ** 2 * (1.0 - noisy)
    else:
        reached = clean / noisy
    # Where nothing is left to denoise (lam = 0 at sigma = 0) the last update changes nothing.
    return np.divide(alpha_1 * data_variances, clean, out=np.ones_like(clean), where=clean > 0) ** 2 * reached


class Rows(NamedTuple):
    """Level numbers of C chains, and their numbers of updates."""

    times: Float[np.ndarray, "C L"]
    updates: Int[np.ndarray, " C"]


class Statistics(NamedTuple):
    """What is kept of samples ``[N, D]``; K = `tasks.BLOCKS` blocks of consecutive samples.

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
    """Returns rows from the level numbers of each chain, noisiest first, without the 0 of clean data."""
    longest = max(len(row) for row in numbers)
    times = np.stack([np.pad(np.asarray(row, np.float32), (0, longest + 1 - len(row))) for row in numbers])
    return Rows(times, np.array([len(row) for row in numbers]))


def nested_rows(counts: Sequence[int], levels: int) -> Rows:
    """Returns the chains on nested subsets of one ladder of ``levels`` levels (`schedules.nested_subsets`), one per count."""
    subsets = schedules.nested_subsets(levels, tuple(counts))
    return make_rows([levels - subsets[count] for count in counts])


def merge(ladders: Sequence[schedules.Ladder]) -> tuple[schedules.Ladder, list[np.ndarray]]:
    """Returns one variance-preserving ladder with the levels of all, and the level numbers of each on it.

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
    start: Float[Array, "N D"],
    times: Float[Array, " L"],
    updates: Int[Array, ""],
    *,
    sampler: str,
    key: jax.Array,
) -> Float[Array, "N D"]:
    """Samples one chain from ``start`` to clean data; the row may be traced."""
    options = {"times": times, "stops": jnp.reshape(updates, 1), "sampler": sampler, "noise": samplers.BY_ROW}
    return samplers.sample(denoiser, ladder, start, key, statistic=lambda z, t: z, **options)[0]


def statistics(samples: Float[Array, "N D"], task: Task) -> Statistics:
    """Reduces samples, N a multiple of `tasks.BLOCKS`; traceable."""
    quantiles = jnp.asarray(task.quantiles(samples.shape[0]), jnp.float32)
    projected = samples @ jnp.asarray(task.directions, jnp.float32)
    return Statistics(
        *metrics.block_moments(samples, blocks=BLOCKS),
        *metrics.sliced_statistics(projected, quantiles, BLOCKS, debiased=False),
    )


def pseudo_values(stacked: Statistics, task: Task) -> dict[str, Float[np.ndarray, "C K"]]:
    """Returns jackknife pseudo-values of "rel_fd" and "sliced_w2_squared", for C chains stacked on the first axis.

    Their mean is the estimate, their standard deviation over sqrt(K) its standard error; differences of two chains'
    pseudo-values give those of a paired comparison. Chains whose samples overflowed have infinite ones.
    """
    reference = metrics.Reference(
        mean=task.reference.mean(axis=0), covariance=task.covariance, samples=task.reference[:2]
    )
    frechet = metrics.moment_pseudo_values(stacked.mean, stacked.second, reference, np.eye(task.dim), with_kl=False)[
        "w2"
    ].T
    sliced = np.asarray(stacked.sliced, np.float64)[:, None] + np.asarray(stacked.potential, np.float64)
    finite = np.all(np.isfinite(stacked.second), axis=(1, 2, 3))[:, None] & np.isfinite(sliced)
    return {
        "rel_fd": np.where(finite, frechet / np.trace(task.covariance), np.inf),
        "sliced_w2_squared": np.where(finite, sliced, np.inf),
    }


def measure(samples: Float[np.ndarray, "N D"], task: Task) -> dict[str, Float[np.ndarray, " K"]]:
    """Returns the `pseudo_values` of one set of samples, N a multiple of `tasks.BLOCKS`."""
    reduced = jax.jit(lambda z: statistics(z, task))(np.asarray(samples, np.float32))
    stacked = jax.tree.map(lambda x: np.asarray(x)[None], reduced)
    return {name: values[0] for name, values in pseudo_values(stacked, task).items()}


def estimate(values: Float[np.ndarray, " K"]) -> tuple[float, float]:
    """Returns mean and standard error of pseudo-values."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(values.size))
