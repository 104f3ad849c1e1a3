"""Learned scores: one network for many levels, sampled on few of them or on all; and one trained on the few only.

The many levels are those of one ladder at T = many; the few are nested subsets of them, so that a single network serves every T
(time input: the level's logsnr). Each seed has its own initialisation, batches, noise and x_T; within a seed every chain starts
from the same x_T, so chains are compared in pairs. Over S seeds a difference has the interval

    (1)  mean +- max(t_{S-1} sd / sqrt(S),  2 standard errors of the samples)        t_{S-1}: 97.5 % quantile of Student's t

With a single seed the interval knows the samples only, not the training.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from scipy import stats

from ldmjax import chains, experts, random, schedules, tasks
from ldmjax.job import NO_JOB, Job

if TYPE_CHECKING:
    from experiments.few_states import Config

SAMPLERS = ("ddim", "dpmpp_2m")
METRICS = ("rel_fd", "sliced_w2_squared")
LEARNING_RATE = 5e-3


def difference_verdict(mean: float, half_width: float, base: float, tolerance: float) -> str:
    """Says what an interval of a difference of squared distances means.

    Args:
      mean: of the difference from ``base``.
      half_width: of its interval.
      base: the squared distance that counts as 1, > 0.
      tolerance: ratio of unsquared distances that counts as equal.

    Returns:
      "matches" if the whole interval lies within the tolerance, "differs" if it excludes 0 and does not, otherwise "cannot
      tell"; also where a value is not finite.
    """
    if not np.all(np.isfinite([mean, half_width, base])):
        return "cannot tell"
    low, high = mean - half_width, mean + half_width
    if base * (tolerance**-2 - 1.0) <= low and high <= base * (tolerance**2 - 1.0):
        return "matches"
    return "differs" if low > 0 or high < 0 else "cannot tell"


def interval(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns mean and half width (1) over seeds, from each seed's pseudo-value differences ``[K]``."""
    means, errors = zip(*map(chains.estimate, differences), strict=True)
    seeds = len(means)
    of_samples = 2.0 * np.sqrt(np.sum(np.square(errors))) / seeds
    if seeds == 1:
        return means[0], float(of_samples)
    of_seeds = stats.t.ppf(0.975, seeds - 1) * np.std(means, ddof=1) / np.sqrt(seeds)
    return float(np.mean(means)), float(max(of_seeds, of_samples))


def task_floors(task: tasks.Task, samples: int) -> dict[str, float]:
    """Returns what perfect samples score: for data the training set, for a known law ``samples`` fresh draws."""
    rel_fd = 0.0
    if task.exact is None:
        whole = task.training[: len(task.training) // tasks.BLOCKS * tasks.BLOCKS]
        rel_fd = float(chains.measure(whole, task)["rel_fd"].mean())
    return {"rel_fd": rel_fd, "sliced_w2_squared": task.sliced_floor(samples)}


def trainings(task: tasks.Task, config: "Config") -> list[tuple[experts.ExpertsConfig, tuple[int, ...]]]:
    """Returns the networks, trained on many levels and on few, each with the numbers of levels that it is sampled with."""
    variances = np.linalg.eigvalsh(task.training.T @ task.training / len(task.training))[::-1]
    whole = schedules.make_ladder(config.learned_ladder, config.many, variances, **config.limits)
    subset = schedules.nested_subsets(config.many, config.levels)[config.few]
    part = schedules.Ladder(np.take(whole.alpha_levels, subset), np.take(whole.sigma_levels, subset))
    size = {"batch_size": config.batch_size, "steps": config.steps, "hidden": config.hidden}
    return [
        (experts.ExpertsConfig(ladder=ladder, experts=1, **size), counts)
        for ladder, counts in [(whole, config.levels), (part, (config.few,))]
    ]


def sample_models(
    trained: experts.TrainedExperts,
    task: tasks.Task,
    counts: Sequence[int],
    *,
    samples: int,
    sampler: str,
    job: Job = NO_JOB,
) -> chains.Statistics:
    """Returns statistics ``[models, C, ...]`` of every model's chains of ``counts`` levels; equal seeds share x_T."""
    ladder, seeds = trained.config.ladder, np.array([spec.seed for spec in trained.specs])
    levels = int(ladder.t_max)
    rows = chains.nested_rows(counts, levels)

    def of_model(denoiser, given):
        seed, row = given
        start = jax.random.normal(random.stream(random.key(seed), "starts"), (samples, task.dim))
        made = chains.run_row(denoiser, ladder, start, *row, sampler=sampler, key=random.key(0))
        return chains.statistics(made, task)

    def compute(indices):
        (c,) = indices
        row = jax.tree.map(lambda x: np.repeat(x[c : c + 1], len(seeds), axis=0), rows)
        return [jax.tree.map(lambda x: x[0], trained.map_models(of_model, (seeds, row)))]

    names = [f"learned/{task.name}/trained on {levels}/{sampler}/T{count}" for count in counts]
    label = (
        f"{task.name}: sampled networks trained on {levels} levels, {sampler}, T out of {', '.join(map(str, counts))}"
    )
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *job.map(compute, names, label=label))


def measure_all(task: tasks.Task, config: "Config", job: Job = NO_JOB) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Trains on many and on few levels, a network per seed, and measures every chain.

    Returns:
      A row per network and chain, with its pseudo-values ``[K]`` of each of `METRICS`: infinite where training or sampling
      diverged. Row fields: each metric with its error and floor, what as many samples of the law itself, or the training
      data, keep from the reference.
    """
    specs = [experts.ModelSpec(seed=s, parameterisation="v", learning_rate=LEARNING_RATE) for s in config.seeds]
    floors, found = task_floors(task, config.samples), []
    for training, counts in trainings(task, config):
        trained = experts.train_experts(specs, task.training, training, job=job.within(task.name))
        for sampler in SAMPLERS:
            stacked = sample_models(trained, task, counts, samples=config.samples, sampler=sampler, job=job)
            for (m, spec), (c, count) in itertools.product(enumerate(specs), enumerate(counts)):
                values = chains.pseudo_values(jax.tree.map(lambda x, m=m, c=c: x[m, c : c + 1], stacked), task)
                values = {metric: values[metric][0] for metric in METRICS}
                failed = int(trained.failed_at[m, 0])
                row = {
                    "kind": "learned",
                    "ladder": config.learned_ladder,
                    "samples": config.samples,
                    "task": task.name,
                    "trained_levels": int(training.ladder.t_max),
                    "sampler": sampler,
                    "levels": count,
                    "seed": spec.seed,
                    "diverged_at_step": None if failed < 0 else failed,
                }
                for metric in METRICS:
                    value, error = chains.estimate(values[metric])
                    row |= {metric: value, f"{metric}_error": error, f"{metric}_floor": floors[metric]}
                found.append((row, values))
    return found


def compare(
    found: Sequence[tuple[Mapping, Mapping[str, np.ndarray]]], *, few: int, many: int, tolerance: float
) -> list[dict]:
    """Compares few levels with many in sampling, then in training, for every task, sampler and metric.

    Fields: base, mean of the second kind of chain, floor included; mean and half_width of the differences (1); verdict.
    """
    questions = {  # (trained on, T) of the first kind of chain and of the second
        "few against many levels": ((many, few), (many, many)),
        "trained on few against many levels": ((few, few), (many, few)),
    }
    by_chain: dict[tuple, list] = {}  # values of each seed
    for row, values in found:
        key = row["task"], row["sampler"], row["trained_levels"], row["levels"]
        by_chain.setdefault(key, []).append(values)
    rows = []
    names = dict.fromkeys(row["task"] for row, _ in found)
    for task, (question, kinds), sampler, metric in itertools.product(names, questions.items(), SAMPLERS, METRICS):
        first, second = ([values[metric] for values in by_chain[task, sampler, *kind]] for kind in kinds)
        with np.errstate(invalid="ignore"):
            mean, half = interval([a - b for a, b in zip(first, second, strict=True)])
        base = float(np.mean(second))
        rows.append(
            {
                "kind": "difference",
                "task": task,
                "sampler": sampler,
                "metric": metric,
                "question": question,
                "base": base,
                "mean": mean,
                "half_width": half,
                "verdict": difference_verdict(mean, half, base, tolerance),
            }
        )
    return rows
