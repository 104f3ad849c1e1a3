r"""Asks whether 32 well-chosen noise levels match 1000: which ladder, which sampler, which floor.

Claim ([TS], arXiv 2508.14413): some 32 well-chosen latent states do what 1000 do. Made precise here: a chain with T = 32
*matches* one with T = 1000 if its W2 distance to the data is at most 1.2 times as large (--tolerance). A match can come from
a *floor* that no number of levels removes: the start from N(0, I) in place of the law of the noisiest level, the last update,
the finite number of samples, the network's error.

- exact: exact score and closed forms on the spectrum of --data or --spectrum, every sampler on every ladder; relW2 = W2 over
  the data's standard deviation
- mixture: exact score on an 8-D mixture, all chains from the same noise, compared with the exact flow from that noise
- learned: one network of 1000 levels sampled with T of them, and one trained on the 32 levels only, three seeds
- with --mixture_samples: a larger network (v-prediction, K = 2, width 128) against the exact score by many samples

    python -m experiments.few_states                                             # digits
    python -m experiments.few_states --quick
    python -m experiments.few_states --parts=exact --spectrum=cifar10_spectrum.npy
    python -m experiments.few_states --parts=mixture --samples=32768 \
        --ladders=karras,uniform_logsnr,spectral --levels=8,16,32,64,128,256
    python -m experiments.few_states --parts=exact --mixture_samples=100000

Takes 190 s of processor time on two cores, and --quick 26 s; the other lines 29 s (CIFAR-10), 114 s and 275 s. The numbers
obtained stand in docs/results.md#few_states.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import launch
from experiments.few_states import acceptance, exact, learned, mixture
from experiments.launch import Results, setting
from ldmjax import chains, experts, gaussians, schedules
from ldmjax.job import Job
from ldmjax.tasks import BLOCKS, Task, make_tasks, mixture_task

PARTS = ("exact", "mixture", "learned")
TASKS = ("data", "mixture", "gaussian")
QUICK = {
    "levels": (8, 32, 128),
    "ladders": ("karras", "linear_beta", "rectified_flow"),
    "samples": 512,
    "seeds": (0, 1),
    "tasks": ("mixture",),
    "steps": 200,
    "hidden": 32,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings, launch.LadderSettings):
    """What is computed."""

    parts: tuple[str, ...] = setting(PARTS, "What is computed.", choices=PARTS)
    ladders: tuple[str, ...] = launch.ladders_setting(tuple(schedules.LADDERS))
    levels: tuple[int, ...] = launch.levels_setting((8, 16, 32, 64, 128, 1000))
    few: int = setting(32, "Compared with the largest of --levels; one of them.", low=1, high=10_000)
    tolerance: float = setting(1.2, "Ratio of W2 distances that counts as equal.", low=1.0)
    samples: int = setting(4096, "Samples per chain.", low=2 * BLOCKS, high=65_536, multiple=BLOCKS)
    tasks: tuple[str, ...] | None = setting(
        None, "What scores are learned on; all, but no data for a --spectrum, if not given.", choices=TASKS
    )
    latent_dim: int = setting(32, "Principal components of --data.", low=1, high=100_000)
    learned_ladder: str = setting("karras", "Ladder that scores are learned on.", choices=tuple(schedules.LADDERS))
    seeds: tuple[int, ...] = launch.seeds((0, 1, 2), "Of learned scores: initialisation, batches, noise and x_T.")
    steps: int = setting(6000, "Optimiser steps of each network.", low=1, high=10_000_000)
    batch_size: int = setting(256, "Samples per step.", low=1, high=65_536)
    hidden: int = setting(64, "Width of the networks.", low=1, high=16_384)
    mixture_samples: int = setting(
        0,
        "If > 0, also trains a larger network on the mixture and compares it with the exact score by so many samples, rounded "
        f"up to a multiple of {BLOCKS}.",
        low=0,
        high=10_000_000,
    )
    mixture_steps: int = setting(20_000, "Its optimiser steps.", low=1, high=10_000_000)

    def __post_init__(self):
        super().__post_init__()
        if self.few not in self.levels or self.few == self.many:
            raise self.refuse("few", f"must be one of --levels={','.join(map(str, self.levels))}, not the largest")
        try:
            schedules.make_ladder(self.learned_ladder, self.many, np.ones(1))
        except ValueError as error:
            raise self.refuse("levels", f"{self.learned_ladder}: {error}") from error

    @property
    def many(self) -> int:
        """The largest number of levels."""
        return max(self.levels)

    def load(self) -> "Inputs":
        """Loads the data and makes the tasks that scores are learned on."""
        dataset, made = super().load(), []
        if not np.trace(dataset.covariance) > 0:
            raise self.refuse("data" if self.spectrum is None else "spectrum", "must have a variance > 0")
        if "learned" in self.parts:
            names = self.tasks or TASKS[dataset.samples is None :]
            if "data" in names and dataset.samples is None:
                raise self.refuse("tasks", f"data needs samples, and {dataset.name} is a spectrum")
            try:
                made = make_tasks(names, dataset, latent_dim=self.latent_dim)
            except ValueError as error:
                raise self.refuse("latent_dim", str(error)) from error
        return Inputs(dataset.name, dataset.digest, dataset.covariance, made)


class Inputs(NamedTuple):
    """The data set's covariance, the spectrum of the exact part, and what scores are learned on."""

    name: str
    digest: str
    covariance: np.ndarray
    tasks: list[Task]


def plan(config: Config, inputs: Inputs) -> list[launch.Stage]:
    """Counts what `compute` does."""
    stages = []
    if "exact" in config.parts:
        stages.append(launch.Stage(stage="exact distances, ladders", runs=len(config.ladders) + 1))
    if "mixture" in config.parts:
        for sampler in exact.SAMPLERS:
            named = mixture.named_ladders(config.ladders, config.levels, sampler, np.ones(1), config.limits)
            calls = config.samples * sum(chains.evaluations(sampler, count) for _, count, _ in named)
            stage = f"mixture, exact score: {sampler}"
            stages.append(launch.Stage(stage=stage, runs=len(named), programs=1, evaluations=calls))
    for task in inputs.tasks:
        for training, counts in learned.trainings(task, config):
            name = f"{task.name}, {int(training.ladder.t_max)} levels"
            calls = len(learned.SAMPLERS) * sum(counts) * config.samples
            stages += _stages(name, training, task.dim, len(config.seeds), calls)
    if config.mixture_samples:
        task = mixture_task()
        calls = len(learned.SAMPLERS) * config.few * acceptance.sample_count(config)
        stages += _stages("acceptance", acceptance.training(task, config), task.dim, 1, calls)
    return stages


def _stages(name, training, width, models, calls):
    """Counts training and sampling of so many models, ``calls`` evaluations of each."""
    networks, parameters = models * training.experts, experts.parameter_count(training, width)
    return [
        launch.Stage.of_steps(
            f"train {name}",
            runs=networks,
            programs=1,
            steps=training.steps,
            batch=training.batch_size,
            parameters=parameters,
        ),
        launch.Stage(
            stage=f"sample {name}",
            runs=models,
            programs=len(learned.SAMPLERS),
            evaluations=models * calls,
            parameters=parameters,
        ),
    ]


def compute(config: Config, inputs: Inputs, job: Job) -> Results:
    """Computes every part that is asked for.

    Rows have the kinds exact, verdict, mixture, mixture_floor, learned, difference, acceptance. Arrays: per part (exact and
    mixture) the names along the axes and values ``[ladder, sampler, T]``, NaN where there is none; learned_METRIC ``[row, K]``
    jackknife pseudo-values, in the order of the rows of kind learned.
    """
    rows, arrays, tolerance = [], {}, config.tolerance
    options = {"limits": config.limits, "job": job}
    if "exact" in config.parts:
        variances = gaussians.eigh_descending(inputs.covariance)[0]
        usual = exact.usual_distance(variances)
        found = exact.measure_all(variances, config.ladders, sorted(config.levels), **options)
        rows += found + exact.compare(found, few=config.few, many=config.many, usual=usual, tolerance=tolerance)
        arrays |= grids("exact", found, ("rel_w2", "rel_w2_exact_start", "mismatch", "floor"))
    if "mixture" in config.parts:
        levels, task = sorted(config.levels), mixture_task()
        size = {"samples": config.samples, "tolerance": tolerance}
        found = mixture.measure_all(task, config.ladders, levels, **size, **options)
        rows += found
        of_chains = [row for row in found if row["kind"] == "mixture"]
        fields = ("rms_to_flow", "sliced_above_floor", "sliced_above_flow", "paired_error")
        arrays |= grids("mixture", of_chains, fields)
    found = [pair for task in inputs.tasks for pair in learned.measure_all(task, config, job)]
    if found:
        rows += [row for row, _ in found]
        rows += learned.compare(found, few=config.few, many=config.many, tolerance=tolerance)
        arrays |= {f"learned_{m}": np.stack([values[m] for _, values in found]) for m in learned.METRICS}
    if config.mixture_samples:
        rows += acceptance.measure_all(mixture_task(), config, job)
    return Results(rows=rows, arrays=arrays)


def grids(part: str, rows: Sequence[Mapping], fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the axes of a part and its fields on them ``[ladder, sampler, T]``, NaN where there is no row."""
    by_place = {(row["ladder"], row["sampler"], row["levels"]): row for row in rows}
    ladders, samplers, levels = (list(dict.fromkeys(axis)) for axis in zip(*by_place, strict=True))
    levels = sorted(levels)
    arrays = {"ladders": np.array(ladders), "samplers": np.array(samplers), "levels": np.array(levels)}
    for field in fields:
        arrays[field] = np.array(
            [[[by_place.get((a, s, T), {}).get(field, np.nan) for T in levels] for s in samplers] for a in ladders]
        )
    return {f"{part}_{name}": values for name, values in arrays.items()}
