"""Training of settings, and what a trained model is measured by on the chain of few levels."""

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.disentangled.contest import SAMPLERS, Run, Setting
from ldmjax import experts, oracle, schedules
from ldmjax import tasks as tasks_lib
from ldmjax.job import NO_JOB, Job

if TYPE_CHECKING:
    from experiments.disentangled import Config


class Chain:
    """The levels a model trains on, the chain that samples it, and the traceable measurements of a model on it."""

    def __init__(self, task: tasks_lib.Task, config: "Config", name: str, levels: int):
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

    def __init__(self, task: tasks_lib.Task, config: "Config", job: Job = NO_JOB):
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
        trained = experts.train_experts(
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
