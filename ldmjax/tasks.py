"""What chains on noise levels are tried on: three laws of unit scale, their exact scores, and distances of samples to them.

- mixture: 8 Gaussian clusters in 8 dimensions, exact score known
- gaussian: 16 dimensions, spectrum exp(-k/4), exact score known
- data: the first principal components of a data set, no exact score, compared with held-out samples

Every task is centred and scaled to mean square 1 per component, the scale of the noise. Synthetic tasks train on 65,536 draws.
Two distances: squared Fréchet distance over the total variance, and squared sliced W2 along 64 fixed directions, whose floor
(what draws of the law itself keep) is known. `sample_summary` and `distances` give them with the error of the second;
chains.py keeps what comparing chains in pairs needs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ldmjax import data, gaussians, metrics, mixtures, oracle, random, samplers, schedules
from ldmjax.process import Denoiser

DRAWS = 65_536
DIRECTIONS = 64
BLOCKS = 64  # of samples, for the standard error of sliced W2
SYNTHETIC = ("mixture", "gaussian")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One training problem.

    Attributes:
      name: shown in tables.
      training: ``[n, D]``, mean square 1.
      reference: ``[M, D]``, what samples are compared with; for real data the held-out samples.
      covariance: ``[D, D]``, of the exact law, or of the held-out samples about 0.
      exact: the exact denoiser on a schedule, None if the law is not known.
    """

    name: str
    training: Float[np.ndarray, "n D"]
    reference: Float[np.ndarray, "M D"]
    covariance: Float[np.ndarray, "D D"]
    exact: Callable[[schedules.Schedule], Denoiser] | None

    @property
    def dim(self) -> int:
        """Number of components D."""
        return self.training.shape[1]

    @functools.cached_property
    def directions(self) -> Float[np.ndarray, "D P"]:
        """Random unit directions of sliced W2, the same for all tasks of one dimension."""
        unit = np.random.default_rng(0).standard_normal((self.dim, DIRECTIONS))
        return unit / np.linalg.norm(unit, axis=0)

    @functools.cached_property
    def flow(self) -> Callable[[Array], Array]:
        """The exact probability flow, from starts ``[N, D]`` to samples: DPM-Solver++(2M), exact score, 500 levels."""
        ladder = schedules.Ladder(*schedules.uniform_logsnr_levels(500, sigma_min=0.002, sigma_max=80.0))
        return jax.jit(lambda start: run_chain(self.exact(ladder), ladder, start, "dpmpp_2m"))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a handful of tasks live as long as the program
    def quantiles(self, count: int) -> Float[np.ndarray, "P {count}"]:
        """Returns the reference's quantiles along the directions, at the ranks of ``count`` samples."""
        return _quantiles(self.reference @ self.directions, count).T

    def sliced_floor(self, count: int) -> float:
        """Returns the squared sliced W2 that ``count`` samples of the true law keep from the reference, or halves of the data.

        Synthetic: the mean over ten sets of fresh draws. Real data: the training samples against the held-out ones.
        """
        if self.exact is None:
            quantiles = self.quantiles(len(self.training))
            return float(np.mean((np.sort(self.training @ self.directions, axis=0).T - quantiles) ** 2))
        sets = self.reference[: len(self.reference) // 2 // count * count].reshape(-1, count, self.dim)[:10]
        other = _quantiles(self.reference[len(self.reference) // 2 :] @ self.directions, count)
        return float(np.mean([(np.sort(x @ self.directions, axis=0) - other) ** 2 for x in sets]))


def _quantiles(values: np.ndarray, count: int) -> np.ndarray:
    """Returns ``[count, P]``: each column's quantiles at the ranks of ``count`` samples. `np.quantile` is slow for many."""
    ordered = np.sort(values, axis=0)
    place = (np.arange(count) + 0.5) / count * (len(ordered) - 1)
    low = np.minimum(place.astype(int), len(ordered) - 2)
    share = (place - low)[:, None]
    return (1.0 - share) * ordered[low] + share * ordered[low + 1]


def mixture_task(*, seed: int = 0) -> Task:
    """Returns the task of the 8-D mixture."""
    law = mixtures.random_mixture(seed=seed)
    return Task(
        name="mixture",
        training=law.draws(DRAWS, seed=seed),
        reference=law.draws(2 * DRAWS, seed=seed, stream=1),
        covariance=law.covariance,
        exact=lambda schedule: mixtures.mixture_denoiser(law, schedule),
    )


def gaussian_task(*, seed: int = 0, dim: int = 16) -> Task:
    """Returns the task of N(0, diag) with variances proportional to exp(-k/4), mean variance 1."""
    variances = data.spectrum_variances("exponential:0.25", dim)
    variances *= dim / variances.sum()

    def draws(count, stream):
        return np.random.default_rng([seed, stream]).standard_normal((count, dim)) * np.sqrt(variances)

    return Task(
        name="gaussian",
        training=draws(DRAWS, 0),
        reference=draws(2 * DRAWS, 1),
        covariance=np.diag(variances),
        exact=lambda schedule: oracle.gaussian_denoiser(variances, schedule),
    )


def data_task(dataset: data.Dataset, *, latent_dim: int, seed: int = 0, held_out: float = 0.3) -> Task:
    """Returns the task of a data set's PCA latents, fitted to the training part.

    Args:
      dataset: has samples.
      latent_dim: D, principal components.
      seed: of the split.
      held_out: share of the samples that generated ones are compared with.

    Raises:
      ValueError: if the data have no samples, or fewer than ``latent_dim`` useful directions.
    """
    if dataset.samples is None:
        raise ValueError(f"{dataset.name} is a spectrum: this task needs samples")
    training, reference = dataset.split(n=int(len(dataset.samples) * (1.0 - held_out)), seed=seed)
    variances, basis = data.principal_components(training)
    if not 1 <= latent_dim <= np.count_nonzero(variances):
        raise ValueError(f"latent_dim must be 1..{np.count_nonzero(variances)} for {dataset.name}, got {latent_dim}")
    basis = basis[:, :latent_dim] / np.sqrt(np.mean(variances[:latent_dim]))
    reference = reference @ basis
    return Task(
        name=f"{dataset.name}-{latent_dim}",
        training=training @ basis,
        reference=reference,
        covariance=reference.T @ reference / len(reference),
        exact=None,
    )


def make_tasks(names: Sequence[str], dataset: data.Dataset, *, latent_dim: int, seed: int = 0) -> list[Task]:
    """Returns tasks by name: "mixture", "gaussian", and "data" for the data set's latents.

    Raises:
      ValueError: for an unknown name, and what `data_task` refuses.
    """
    makers = {
        "mixture": lambda: mixture_task(seed=seed),
        "gaussian": lambda: gaussian_task(seed=seed),
        "data": lambda: data_task(dataset, latent_dim=latent_dim, seed=seed),
    }
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise ValueError(f"tasks must be among {', '.join(makers)}, got {unknown[0]!r}")
    return [makers[name]() for name in names]


def run_chain(
    denoiser: Denoiser,
    ladder: schedules.Ladder,
    start: Float[Array, "N D"],
    sampler: str,
    *,
    stop: int = 0,
    seed: int | Int[Array, ""] = 0,
) -> Float[Array, "N D"]:
    """Samples the chain from ``start`` down to level ``stop`` (0: clean data); traceable."""
    times = ladder.times[: len(ladder.times) - stop]
    states = samplers.sample(
        denoiser,
        ladder,
        start,
        random.key(seed),
        times=times,
        stops=[len(times) - 1],
        statistic=lambda z, t: z,
        sampler=sampler,
    )
    return states[0]


def sample_summary(samples: Float[Array, "N D"], task: Task) -> dict[str, jax.Array]:
    """Reduces samples, N a multiple of 64, to what `distances` needs; traceable."""
    quantiles = jnp.asarray(task.quantiles(samples.shape[0]), jnp.float32)
    # Bias and all: the floor is what as many draws of the law itself keep.
    projected = samples @ jnp.asarray(task.directions, jnp.float32)
    sliced, potential = metrics.sliced_statistics(projected, quantiles, BLOCKS, debiased=False)
    centred = samples - jnp.mean(samples, axis=0)
    return {
        "mean": jnp.mean(samples, axis=0),
        "covariance": centred.T @ centred / samples.shape[0],
        "sliced_w2_squared": sliced,
        "sliced_standard_error": jnp.std(potential, ddof=1) / np.sqrt(BLOCKS),
    }


def distances(summary: dict[str, np.ndarray], task: Task) -> dict[str, float]:
    """Returns the distances of samples from one `sample_summary` on the host.

    Returns:
      "rel_fd", squared Fréchet distance over the data's total variance, "sliced_w2_squared" and "sliced_standard_error"; all
      infinite if a sample is not finite.
    """
    if not np.all(np.isfinite(summary["covariance"])):
        return {"rel_fd": np.inf, "sliced_w2_squared": np.inf, "sliced_standard_error": np.inf}
    mean, covariance = (np.asarray(summary[key], np.float64) for key in ("mean", "covariance"))
    frechet = gaussians.w2_squared(mean, covariance, task.reference.mean(axis=0), task.covariance)
    return {
        "rel_fd": frechet / float(np.trace(task.covariance)),
        "sliced_w2_squared": float(summary["sliced_w2_squared"]),
        "sliced_standard_error": float(summary["sliced_standard_error"]),
    }
