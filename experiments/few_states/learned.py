"""Learned scores: one network for many levels, sampled on few of them or on all; and one trained on the few only.

The many levels are those of one ladder at T = many; the few are nested subsets of them, so that a single network serves every T
(time input: the level's logsnr). Each seed has its own initialisation, batches, noise and x_T; within a seed every chain starts
from the same x_T, so chains are compared in pairs. Over S seeds a difference has the interval

    mean +- max(t_{S-1} sd / sqrt(S),  2 standard errors of the samples)        t_{S-1}: 97.5 % quantile of Student's t

With a single seed the interval knows the samples only, not the training.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from scipy import stats

from experiments import flags as shared
from experiments import pieces, plans, tasks
from experiments.few_states import chains
from ldmjax import experts, schedules, threefry
from ldmjax.checkpoints import NOTHING_KEPT, Store

SAMPLERS = ("ddim", "dpmpp_2m")
METRICS = ("rel_fd", "sliced_w2_squared")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """How scores are learned; the flags of the same names say more."""

    levels: tuple[int, ...] = (8, 16, 32, 64, 128, 1000)
    few: int = 32
    ladder: str = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 4096
    steps: int = 6000
    batch_size: int = 256
    hidden: int = 64
    blocks: int = 1
    learning_rate: float = 5e-3
    tolerance: float = 1.2

    def __post_init__(self):
        if self.samples % tasks.BLOCKS:
            raise ValueError(f"samples must be a multiple of {tasks.BLOCKS}, got {self.samples}")
        if not self.few < self.many:
            raise ValueError(f"few must be < {self.many}, the largest of levels, got {self.few}")

    @property
    def many(self) -> int:
        """Levels that the network is trained on."""
        return max(self.levels)

    def training(self, ladder: schedules.Ladder) -> experts.ExpertsConfig:
        """One joint model on a ladder."""
        return experts.ExpertsConfig(
            ladder=ladder, experts=1, batch_size=self.batch_size, steps=self.steps, hidden=self.hidden,
            blocks=self.blocks,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedChain:
    """One trained network sampled with one chain.

    Attributes:
      task: its name.
      trained_levels: levels that the network was trained on.
      sampler: one of `SAMPLERS`.
      levels: T of the chain.
      seed: of network and x_T.
      values: pseudo-values ``[K]`` of each of `METRICS`; infinite if training or sampling diverged.
      floors: of each metric: what as many samples of the law itself, or the training data, keep from the reference.
      diverged_at_step: None, or the step at which training was not finite.
    """

    task: str
    trained_levels: int
    sampler: str
    levels: int
    seed: int
    values: Mapping[str, np.ndarray]
    floors: Mapping[str, float]
    diverged_at_step: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one kind of chain minus that of another, over seeds.

    Attributes:
      task, sampler, metric: what is compared.
      question: "few against many levels" or "trained on few against many levels".
      base: mean of the second kind, floor included.
      mean: of the differences.
      half_width: of the interval.
      verdict: `difference_verdict`.
    """

    task: str
    sampler: str
    metric: str
    question: str
    base: float
    mean: float
    half_width: float
    verdict: str


def difference_verdict(mean: float, half_width: float, base: float, tolerance: float) -> str:
    """What an interval of a difference of squared distances says.

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
    """Mean and half width over seeds, from each seed's pseudo-value differences ``[K]``."""
    means, errors = zip(*map(chains.estimate, differences), strict=True)
    seeds = len(means)
    of_samples = 2.0 * np.sqrt(np.sum(np.square(errors))) / seeds
    if seeds == 1:
        return means[0], float(of_samples)
    of_seeds = stats.t.ppf(0.975, seeds - 1) * np.std(means, ddof=1) / np.sqrt(seeds)
    return float(np.mean(means)), float(max(of_seeds, of_samples))


def task_floors(task: tasks.Task, samples: int) -> dict[str, float]:
    """What perfect samples score: for data the training set, for a known law ``samples`` fresh draws."""
    rel_fd = 0.0
    if task.exact is None:
        whole = task.training[: len(task.training) // tasks.BLOCKS * tasks.BLOCKS]
        law = jax.jit(lambda x: chains.statistics(x, task))(np.asarray(whole, np.float32))
        values = chains.pseudo_values(jax.tree.map(lambda x: np.asarray(x)[None], law), task)
        rel_fd = float(values["rel_fd"].mean())
    return {"rel_fd": rel_fd, "sliced_w2_squared": task.sliced_floor(samples)}


def _ladders(task: tasks.Task, config: LearnedConfig) -> list[tuple[schedules.Ladder, tuple[int, ...]]]:
    """What networks are trained on, many levels and few, each with the numbers of levels that it is sampled with."""
    variances = np.linalg.eigvalsh(task.training.T @ task.training / len(task.training))[::-1]
    limits = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
    whole = shared.make_ladder(config.ladder, config.many, variances, **limits)
    subset = schedules.nested_subsets(config.many, config.levels)[config.few]
    part = schedules.Ladder(np.take(whole.alpha_levels, subset), np.take(whole.sigma_levels, subset))
    return [(whole, config.levels), (part, (config.few,))]


def plan(task: tasks.Task, config: LearnedConfig) -> list[plans.Stage]:
    """The stages of `run_task`."""
    stages = []
    for ladder, counts in _ladders(task, config):
        settings, size = config.training(ladder), {"width": task.dim, "models": len(config.seeds)}
        name = f"{task.name}, {int(ladder.t_max)} levels"
        stages += [tasks.training_stage(f"train {name}", settings, **size)] + [
            tasks.sampling_stage(
                f"sample {name}, {sampler}", settings, evaluations=sum(counts), samples=config.samples, **size
            )
            for sampler in SAMPLERS
        ]
    return stages


def sample_models(
    trained: experts.TrainedExperts,
    task: tasks.Task,
    counts: Sequence[int],
    *,
    samples: int,
    sampler: str,
    store: Store,
    report: Callable[[str], None],
) -> chains.Statistics:
    """Statistics ``[models, C, ...]`` of every model's chains of ``counts`` levels; models with equal seeds share x_T."""
    ladder, seeds = trained.config.ladder, np.array([spec.seed for spec in trained.specs])
    levels = int(ladder.t_max)
    rows = chains.nested_rows(counts, levels)

    def of_model(denoiser, given):
        seed, row = given
        start = jax.random.normal(jax.random.fold_in(threefry.key(seed), 7), (samples, task.dim))
        made = chains.run_row(denoiser, ladder, start, *row, sampler=sampler, key=threefry.key(0))
        return chains.statistics(made, task)

    def compute(indices):
        (c,) = indices
        row = jax.tree.map(lambda x: np.repeat(x[c : c + 1], len(seeds), axis=0), rows)
        return [jax.tree.map(lambda x: x[0], trained.map_models(of_model, (seeds, row)))]

    names = [f"learned/{task.name}/trained on {levels}/{sampler}/T{count}" for count in counts]
    label = (
        f"{task.name}: sampled networks trained on {levels} levels, {sampler}, T out of {', '.join(map(str, counts))}"
    )
    found = pieces.finish(names, compute, store=store, label=label, report=report, at_once=1)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *found)


def run_task(
    task: tasks.Task,
    config: LearnedConfig,
    report: Callable[[str], None] = lambda line: None,
    store: Store = NOTHING_KEPT,
) -> list[LearnedChain]:
    """Trains on many and on few levels, a network per seed, and samples every chain.

    Args:
      task: what is learned.
      config: how.
      report: receives progress lines.
      store: where trainings and sampled chains are kept.
    """
    specs = [
        experts.ModelSpec(seed=seed, parameterisation="v", learning_rate=config.learning_rate)
        for seed in config.seeds
    ]  # fmt: skip
    floors, found = task_floors(task, config.samples), []
    for ladder, counts in _ladders(task, config):
        trained = experts.train(
            specs,
            task.training,
            config.training(ladder),
            store=store,
            report=lambda line: report(f"{task.name}: {line}"),
        )
        for sampler in SAMPLERS:
            how = {"samples": config.samples, "sampler": sampler, "store": store, "report": report}
            found += _read(trained, task, counts, sampler, sample_models(trained, task, counts, **how), floors)
    return found


def _read(trained, task, counts, sampler, stacked, floors):
    """A `LearnedChain` for every model and count."""
    found = []
    for model, spec in enumerate(trained.specs):
        values = chains.pseudo_values(jax.tree.map(lambda x, m=model: x[m], stacked), task)
        failed = int(trained.failed_at[model, 0])
        found += [
            LearnedChain(
                task=task.name, trained_levels=int(trained.config.ladder.t_max), sampler=sampler, levels=count,
                seed=spec.seed, values={metric: values[metric][c] for metric in METRICS}, floors=floors,
                diverged_at_step=None if failed < 0 else failed,
            )
            for c, count in enumerate(counts)
        ]  # fmt: skip
    return found


def compare(found: Sequence[LearnedChain], config: LearnedConfig) -> list[Difference]:
    """Few against many levels in sampling, then in training, for every task, sampler and metric."""
    pairs = {
        "few against many levels": ((config.many, config.few), (config.many, config.many)),
        "trained on few against many levels": ((config.few, config.few), (config.many, config.few)),
    }
    table = {(c.task, c.sampler, c.trained_levels, c.levels, c.seed): c.values for c in found}
    results = []
    for task in dict.fromkeys(c.task for c in found):
        for question, (first, second) in pairs.items():
            for sampler in SAMPLERS:
                for metric in METRICS:
                    values = [
                        [table[(task, sampler, *chain, seed)][metric] for seed in config.seeds]
                        for chain in (first, second)
                    ]
                    with np.errstate(invalid="ignore"):
                        mean, half = interval([a - b for a, b in zip(*values, strict=True)])
                    base = float(np.mean(values[1]))
                    results.append(
                        Difference(
                            task=task, sampler=sampler, metric=metric, question=question, base=base, mean=mean,
                            half_width=half, verdict=difference_verdict(mean, half, base, config.tolerance),
                        )
                    )  # fmt: skip
    return results
