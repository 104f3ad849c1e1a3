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
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch
from experiments.disentangled import contest
from experiments.disentangled.contest import PARAMETERISATIONS, SAMPLERS, Run, Setting
from experiments.launch import Results, Stage, setting
from ldmjax import data, experts, oracle, schedules
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
    samples: int = setting(1024, "Generated samples per measurement; a multiple of 64.", low=64, high=65_536)
    experts_per_batch: int | None = launch.per_batch_setting("experts")

    def __post_init__(self):
        super().__post_init__()
        if self.samples % tasks_lib.BLOCKS:
            raise self.refuse("samples", f"must be a multiple of {tasks_lib.BLOCKS}")
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


class Chain:
    """The levels a model trains on, the chain that samples it, and the traceable measurements of a model on it."""

    def __init__(self, task: tasks_lib.Task, config: Config, name: str, levels: int):
        """Makes the ladder ``name`` of so many levels and the chain of ``config.levels`` of them."""
        variances = np.linalg.eigvalsh(_second_moment(task)).clip(0.0)
        self.task = task
        self.trained = schedules.make_ladder(name, levels, variances, **config.limits)
        rows = schedules.nested_subsets(levels, (config.levels,))[config.levels]
        kept = (np.asarray(x)[rows] for x in (self.trained.alpha_levels, self.trained.sigma_levels))
        self.sampled = schedules.Ladder(*kept)
        #: Level of ``trained`` for each level 0..T of ``sampled``.
        self.numbers = np.append(levels - rows, 0)[::-1]

    def targets(self, start: np.ndarray) -> dict[str, np.ndarray]:
        """The start ``[N, D]`` and, where the exact score is known, the ends of the exact flow and of the exact chains."""
        target = {"start": start}
        if self.task.exact is not None:
            target["flow"] = np.asarray(self.task.flow(jnp.asarray(start)))
            target |= {s: np.asarray(self._exact_chain(s)(start)) for s in SAMPLERS}
        return target

    @functools.cache  # noqa: B019 - a handful of chains live as long as the program
    def _exact_chain(self, sampler: str):
        exact = self.task.exact(self.sampled)
        return jax.jit(lambda start: tasks_lib.run_chain(exact, self.sampled, start, sampler))

    def measure(self, denoiser, target: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """Summaries of the sampled chain's ends, by sampler."""
        numbers = jnp.asarray(self.numbers)

        def on_chain(z, t):
            return denoiser(z, numbers[t.astype(int)].astype(z.dtype))

        ends = {s: tasks_lib.run_chain(on_chain, self.sampled, target["start"], s) for s in SAMPLERS}
        return {s: _summary(end, self.task, target, s) for s, end in ends.items()}

    def measure_all(self, denoiser, target: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """The summary of DDIM on all levels trained on."""
        end = tasks_lib.run_chain(denoiser, self.trained, target["start"], "ddim")
        return {"ddim_all": _summary(end, self.task, target, None)}


def _second_moment(task: tasks_lib.Task) -> np.ndarray:
    return task.training.T @ task.training / len(task.training)


def _summary(samples: jax.Array, task: tasks_lib.Task, target: dict[str, jax.Array], sampler: str | None) -> dict:
    """`tasks.sample_summary` and, where the exact score is known, RMS distances per component from the same x_T."""
    summary = tasks_lib.sample_summary(samples, task)
    if "flow" in target:
        summary["flow_error"] = jnp.sqrt(jnp.mean((samples - target["flow"]) ** 2))
        if sampler is not None:
            summary["trajectory_error"] = jnp.sqrt(jnp.mean((samples - target[sampler]) ** 2))
    return summary


def errors_of(summary: dict[str, np.ndarray], task: tasks_lib.Task) -> dict[str, float]:
    """The distances that one summary holds by metric, infinite where samples were not finite."""
    measured = tasks_lib.distances(summary, task)
    measured |= {k: float(summary[k]) for k in ("flow_error", "trajectory_error") if k in summary}
    return {k: v if np.isfinite(v) else np.inf for k, v in measured.items()}


class Trainer:
    """Trains and measures settings of one task; programs are compiled once per shape."""

    def __init__(self, task: tasks_lib.Task, config: Config, job: Job = NO_JOB):
        """Begins with no chain; ``job`` keeps the runs of every program that was trained."""
        self.task, self.config, self.job = task, config, job

    @functools.cache  # noqa: B019 - a handful of trainers live as long as the program
    def chain(self, name: str, levels: int) -> Chain:
        """The chain of a model on ``levels`` levels of a ladder."""
        return Chain(self.task, self.config, name, levels)

    def starts(self, seed: int) -> np.ndarray:
        """x_T of one seed's evaluation ``[N, D]``, the same for every setting."""
        return np.random.default_rng([seed, 7]).standard_normal((self.config.samples, self.task.dim)).astype(np.float32)

    def training(self, setting: Setting) -> experts.ExpertsConfig:
        """How a setting is trained."""
        config, steps = self.config, self.config.steps(setting.samples_per_state)
        return experts.ExpertsConfig(
            ladder=self.chain(setting.ladder, setting.levels).trained,
            experts=setting.experts,
            batch_size=-(-setting.samples_per_state * config.levels // setting.experts),
            steps=steps,
            hidden=config.hidden,
            blocks=config.blocks,
            checkpoints=tuple(steps >> i for i in range(config.checkpoints - 1, -1, -1)),
        )

    def train(self, settings: list[Setting]) -> list[Run]:
        """Trains settings that differ in parameterisation, learning rate and seed only, as one program."""
        first, seeds = settings[0], ",".join(map(str, dict.fromkeys(s.seed for s in settings)))
        on = f"{self.task.name}/{first.ladder}/T{first.levels}"
        name = f"{on}/K{first.experts}/{first.samples_per_state} per state/seeds {seeds}"
        return self.job.keep_result(name, lambda job: self._train(settings, job))

    def _train(self, settings: list[Setting], job: Job) -> list[Run]:
        first, training = settings[0], self.training(settings[0])
        chain = self.chain(first.ladder, first.levels)
        trained = experts.train(
            [
                experts.ModelSpec(seed=s.seed, parameterisation=s.parameterisation, learning_rate=s.learning_rate)
                for s in settings
            ],
            self.task.training,
            training,
            experts_per_batch=self.config.experts_per_batch,
            job=job.within(f"{self.task.name}, {first.ladder} T = {first.levels}, {first.samples_per_state} per state"),
        )
        rows = [chain.targets(self.starts(s.seed)) for s in settings]
        targets = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        errors = self._errors(trained, chain.measure, targets)
        if first.levels == self.config.many_levels:
            last = dataclasses.replace(trained, checkpoints=trained.checkpoints[-1:], params=trained.params[-1:])
            more = self._errors(last, chain.measure_all, targets)
            errors = [{**a, **b} for a, b in zip(errors, more, strict=True)]
        return [
            Run(
                setting=setting,
                steps=trained.checkpoints,
                sample_gradients=trained.checkpoints * training.batch_size * first.experts,
                seconds=trained.seconds / len(settings),
                errors=errors[m],
                parameters=trained.parameter_count,
                training_bytes=trained.training_bytes,
                diverged=bool(np.any(trained.failed_at[m] >= 0)),
            )
            for m, setting in enumerate(settings)
        ]

    def _errors(self, trained: experts.TrainedExperts, measure, targets) -> list[dict[str, dict[str, np.ndarray]]]:
        """Errors ``{chain: {metric: [C]}}`` of every model."""
        summaries, found = trained.map_models(measure, targets), []
        count, models = trained.params.shape[:2]
        for m in range(models):
            rows = {
                chain: [errors_of(jax.tree.map(lambda x, c=c, m=m: x[c, m], own), self.task) for c in range(count)]
                for chain, own in summaries.items()
            }
            found.append({chain: {k: np.array([r[k] for r in own]) for k in own[0]} for chain, own in rows.items()})
        return found


def choose_ladder(trainer: Trainer) -> tuple[str, dict[str, dict[str, float]]]:
    """The ladder with the least exact relative W2 on the Gaussian twin of the training data, by its best sampler.

    Returns:
      (its name, ``{ladder: {sampler: relative W2}}``).
    """
    variances = np.linalg.eigvalsh(_second_moment(trainer.task))[::-1].clip(0.0)
    scores = {name: {} for name in trainer.config.ladders}
    for name, own in scores.items():
        ladder = trainer.chain(name, trainer.config.levels).sampled
        for sampler in SAMPLERS:
            law = oracle.chain_variances(variances, ladder.alpha_levels, ladder.sigma_levels, sampler=sampler)[-1]
            error = np.sum((np.sqrt(law) - np.sqrt(variances)) ** 2)
            own[sampler] = float(np.sqrt(error / variances.sum()))
    return min(scores, key=lambda name: min(scores[name].values())), scores


def primary_metric(task: tasks_lib.Task) -> str:
    """What decides: distance to the exact flow where it is known, else squared sliced W2 from the held-out samples."""
    return "sliced_w2_squared" if task.exact is None else "flow_error"


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
