"""Asks whether independent models of few noise levels converge faster than one joint model of many, and in which unit.

Claims ([TS], arXiv 2508.14413): one independent model per level of some 32, combined in one chain, gives good samples and
converges 4-6 times faster. Here K experts own blocks of the 32 levels (K = 1: joint, with a time input; K = 32: complete
disentanglement, without), predict noise or v, and see 4 or 32 samples per level and step. For each task: few levels
against many; every K against the joint model that predicts the same; and the contest against the joint noise-prediction
model on 1000 linear-beta levels. The ladder is the one with the least exact W2 on the data's Gaussian twin; learning
rates and the setting that competes are chosen on seed 100 and reported on seeds 0, 1, 2. Speed-up = cost of the baseline
/ cost of the setting at its first crossing of the baseline's final error, by the best of the baseline's chains (DDIM on
all 1000 levels, DDIM or DPM-Solver++(2M) on 32 of them), in sequential steps, sample gradients and seconds of this
machine (its share of the program that trains six models at once). The error: root mean square distance to where the exact
flow takes the same noise; squared sliced W2 from the held-out samples where no exact score is known.

    python -m experiments.disentangled              # a mixture, a Gaussian, digits
    python -m experiments.disentangled --quick      # the Gaussian, less of everything

Takes 521 s on two cores; the numbers obtained stand in docs/results.md#disentangled.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments import launch
from experiments.disentangled import contest
from experiments.disentangled.contest import PARAMETERISATIONS, SAMPLERS, Run, Setting
from experiments.disentangled.training import Trainer, choose_ladder, primary_metric
from experiments.launch import Results, Stage, setting
from ldmjax import data
from ldmjax import tasks as tasks_lib
from ldmjax.job import NO_JOB, Job

BASELINE_LADDER = "linear_beta"
SHARES = (0.25, 0.5, 1.0)  # of the baseline's training, after which it sets a target
QUICK = {
    "tasks": ("gaussian",),
    "experts": (1, 8, 32),
    "samples_per_state": (4,),
    "sample_budget": 2**14,
    "learning_rates": (1e-3, 3e-3),
    "seeds": (0, 1),
    "checkpoints": 5,
    "many_levels": 200,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings, launch.LadderSettings):
    """What is trained and how it is compared."""

    tasks: tuple[str, ...] = setting(
        (*tasks_lib.SYNTHETIC, "data"),
        "What to learn; data: latents of --data.",
        choices=(*tasks_lib.SYNTHETIC, "data"),
    )
    latent_dim: int = setting(32, "Principal components of --data.", low=1, high=100_000)
    ladders: tuple[str, ...] = launch.ladders_setting(("karras", "uniform_logsnr", "linear_beta", "cosine", "spectral"))
    many_levels: int = setting(1000, "Levels of the joint baseline, on the linear-beta ladder.", low=2, high=1000)
    experts: tuple[int, ...] = setting((1, 2, 4, 8, 16, 32), "Numbers of experts K.", low=1, high=10_000)
    samples_per_state: tuple[int, ...] = setting((4, 32), "Training samples per level and step.", low=1, high=65_536)
    sample_budget: int = setting(2**18, "Sample gradients that a model gets.", low=1, high=2**40)
    large_batch_budgets: int = setting(
        2, "Budgets of models that see more than the least of --samples_per_state.", low=1, high=1000
    )
    checkpoints: int = setting(7, "Points of a curve, each at twice the steps of the one before.", low=2, high=20)
    learning_rates: tuple[float, ...] = setting((1e-3, 3e-3, 1e-2), "Rates to choose from.", low=0, low_open=True)
    seeds: tuple[int, ...] = launch.seeds((0, 1, 2), "Seeds reported.")
    selection_seed: int = launch.seed(100, "Seed on which rates and settings are chosen.")
    hidden: int = setting(64, "Width of an expert.", low=1, high=16_384)
    blocks: int = setting(1, "Residual blocks of an expert.", low=0, high=64)
    samples: int = setting(1024, "Generated samples per measurement.", low=64, high=65_536, multiple=tasks_lib.BLOCKS)
    experts_per_batch: int | None = launch.per_batch_setting("experts")

    def __post_init__(self):
        super().__post_init__()
        if self.many_levels <= self.levels:
            raise self.refuse("many_levels", f"must be > {self.levels}, the levels")
        if max(self.experts) > self.levels or 1 not in self.experts:
            raise self.refuse("experts", f"must be 1..{self.levels}, the levels, and include 1")
        if self.selection_seed in self.seeds:
            raise self.refuse("selection_seed", "must not be among the seeds reported")
        least = 2 ** (self.checkpoints - 1)
        if min(map(self.steps, self.samples_per_state)) < least:
            needed = max(-(-least * m * self.levels // self._budgets(m)) for m in self.samples_per_state)
            points = f"{self.checkpoints} checkpoints, each at twice the steps of the one before, are {least} steps"
            raise self.refuse("sample_budget", f"must be >= {needed}: {points}")
        if "rectified_flow" in self.ladders:
            reason = "noise-prediction says nothing where it starts, pure noise"
            raise self.refuse("ladders", f"must not hold rectified_flow: {reason}")

    def load(self) -> data.Dataset:
        """The data set, which is of use if the tasks need it."""
        dataset = super().load()
        if "data" in self.tasks and dataset.samples is None:
            raise self.refuse("spectrum", "has no samples, which --tasks=data needs; allowed without it")
        try:
            if "data" in self.tasks:
                tasks_lib.data_task(dataset, latent_dim=self.latent_dim)
        except ValueError as error:
            raise self.refuse("latent_dim", str(error)) from error
        return dataset

    def steps(self, samples_per_state: int) -> int:
        """Optimiser steps of models that see this many samples of each level in a step."""
        return self._budgets(samples_per_state) * self.sample_budget // (samples_per_state * self.levels)

    def _budgets(self, samples_per_state: int) -> int:
        return 1 if samples_per_state == min(self.samples_per_state) else self.large_batch_budgets

    @property
    def baseline(self) -> tuple:
        """Kind of the joint noise-prediction model on all levels of DDPM's ladder."""
        return BASELINE_LADDER, self.many_levels, 1, min(self.samples_per_state), "noise"

    def programs(self, ladder: str) -> list[tuple]:
        """(ladder, T, K, samples per state) of every program: the joint models on the baseline's ladder, then the grid."""
        joint = [
            (BASELINE_LADDER, levels, 1, min(self.samples_per_state)) for levels in (self.many_levels, self.levels)
        ]
        grid = [(ladder, self.levels, k, m) for m in self.samples_per_state for k in self.experts]
        return list(dict.fromkeys(joint + grid))


def run_task(task: tasks_lib.Task, config: Config, job: Job = NO_JOB) -> list[Run]:
    """The runs of the selection seed with every rate, then those of the reported seeds with the best rate of each kind."""
    trainer = Trainer(task, config, job)
    ladder, _ = choose_ladder(trainer)
    job.log(f"{task.name}: ladder {ladder}, the best of {', '.join(config.ladders)} on the data's Gaussian twin")

    def train(rates, seeds):
        return [
            run
            for program in config.programs(ladder)
            for run in trainer.train(
                [Setting(*program, p, rate, s) for p in PARAMETERISATIONS for rate in rates(*program, p) for s in seeds]
            )
        ]

    selection = train(lambda *kind: config.learning_rates, (config.selection_seed,))
    chosen = contest.best_rates(selection, primary_metric(task))
    reported = train(lambda *kind: (chosen[kind].setting.learning_rate,), config.seeds)
    order = list(chosen)
    return selection + sorted(reported, key=lambda run: order.index(run.setting.kind))


def compute(config: Config, dataset: data.Dataset, job: Job) -> Results:
    """The contest on every task.

    Arrays, with R runs in the order of the rows and C checkpoints: name ``[R]``; sequential_steps, sample_gradients ``[R, C]``;
    {sampler}_{metric} ``[R, C]``, NaN where a task lacks the metric.
    """
    rows, runs = [], []
    for task in tasks_lib.make_tasks(config.tasks, dataset, latent_dim=config.latent_dim):
        own = run_task(task, config, job)
        rows += make_rows(task, own, config)
        runs += own
    arrays = {
        "name": np.array([row["name"] for row in rows]),
        "sequential_steps": np.stack([run.steps for run in runs]),
        "sample_gradients": np.stack([run.sample_gradients for run in runs]),
    }
    missing = np.full(config.checkpoints, np.nan)
    for sampler in SAMPLERS:
        for metric in ("flow_error", "trajectory_error", "sliced_w2_squared", "rel_fd"):
            curves = [run.errors[sampler].get(metric, missing) for run in runs]
            arrays[f"{sampler}_{metric}"] = np.stack(curves)
    seconds = {row["name"]: np.round(run.seconds, 4).tolist() for row, run in zip(rows, runs, strict=True)}
    return Results(rows=rows, arrays=arrays, metadata={"training_seconds": seconds})


def make_rows(task: tasks_lib.Task, runs: Sequence[Run], config: Config) -> list[dict]:
    """One row per run, without what varies from machine to machine."""
    metric, floor = primary_metric(task), task.sliced_floor(config.samples)
    chosen = contest.best_rates([run for run in runs if run.setting.seed == config.selection_seed], metric)
    best, _ = contest.choose_setting(chosen, config.baseline, metric, levels=config.levels)
    baseline = {run.setting.seed: run for run in runs if run.setting.kind == config.baseline}
    rows = []
    for run in runs:
        s = run.setting
        reported = s.seed != config.selection_seed
        row = {
            "name": f"{task.name}/{s.ladder}/T{s.levels}/K{s.experts}/m{s.samples_per_state}/{s.parameterisation}"
            f"/lr{s.learning_rate:g}/seed{s.seed}",
            "task": task.name,
            "role": "reported" if reported else "selection",
            **s._asdict(),
            "steps": int(run.steps[-1]),
            "sample_gradients": int(run.sample_gradients[-1]),
            "parameters": run.parameters,
            "training_bytes": run.training_bytes,
            "diverged": run.diverged,
            "primary_metric": metric,
            "final": {chain: {k: float(v[-1]) for k, v in errors.items()} for chain, errors in run.errors.items()},
            "chosen": reported and s.kind == best,
            "sliced_floor": floor,
        }
        if reported:
            targets = {f"{x:g}": contest.final_target(baseline[s.seed], metric, share=x) for x in SHARES}
            row["speed_up"] = {
                sampler: {
                    x: _fields(contest.speed_up(run, sampler, metric, target), target) for x, target in targets.items()
                }
                for sampler in SAMPLERS
            }
        rows.append(row)
    return rows


def _fields(found: contest.SpeedUp, target: contest.Target) -> dict:
    """Fields of one speed-up; seconds are no part of a row."""
    units = [unit for unit in contest.UNITS if unit != "wall_clock"]
    return {
        "target": target.error,
        "target_chain": target.chain,
        "reached": found.reached,
        **{unit: found.ratio[unit] for unit in units},
        **{f"{unit}_bound": None if found.reached == "yes" else found.bound[unit] for unit in units},
    }


def plan(config: Config, dataset: data.Dataset) -> list[Stage]:
    """What `run_task` does, by task, seeds and samples per state."""
    stages = []
    for task in tasks_lib.make_tasks(config.tasks, dataset, latent_dim=config.latent_dim):
        for role, count in {"choose": len(config.learning_rates), "report": len(config.seeds)}.items():
            # Programs that train as many models are the same; any ladder costs the same.
            new = int(role == "choose" or count != len(config.learning_rates))
            for m in config.samples_per_state:
                own = [p for p in config.programs(config.ladders[0]) if p[3] == m]
                models, name = len(PARAMETERISATIONS) * count, f"{task.name}, {m} samples per state: {role}"
                size = {"programs": new * len(own), "steps": config.steps(m)}
                stages.append(Stage(stage=f"{name}, train", runs=models * sum(p[2] for p in own), **size))
                evaluations = len(own) * len(SAMPLERS) * config.levels * config.checkpoints
                evaluations += config.many_levels * sum(p[1] == config.many_levels for p in own)
                stages.append(
                    Stage(
                        stage=f"{name}, sample",
                        runs=models * len(own),
                        programs=new * len(own),
                        evaluations=models * evaluations * config.samples,
                    )
                )
    return stages
