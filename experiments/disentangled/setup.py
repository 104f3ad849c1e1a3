"""Configuration of the contest, the settings that compete, and what a trained setting is measured by."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flags as shared
from experiments import pieces
from experiments import tasks as tasks_lib
from ldmjax import experts, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

SAMPLERS = ("ddim", "dpmpp_2m")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the experiment does; the flags of the same names say more."""

    tasks: tuple[str, ...] = ("mixture", "gaussian", "data")
    latent_dim: int = 32
    ladders: tuple[str, ...] = ("karras", "uniform_logsnr", "linear_beta", "cosine", "spectral")
    levels: int = 32
    many_levels: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    experts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    samples_per_state: tuple[int, ...] = (4, 32)
    sample_budget: int = 2**18
    large_batch_budgets: int = 2
    checkpoints: int = 7
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    selection_seed: int = 100
    hidden: int = 64
    blocks: int = 1
    samples: int = 1024
    experts_per_batch: int | None = None

    def __post_init__(self):
        if self.samples % tasks_lib.BLOCKS:
            raise ValueError(f"samples must be a multiple of {tasks_lib.BLOCKS}, got {self.samples}")
        if self.many_levels <= self.levels:
            raise ValueError(f"many_levels must be > {self.levels}, the levels, got {self.many_levels}")
        bad = [k for k in self.experts if not 1 <= k <= self.levels]
        if bad or 1 not in self.experts:
            raise ValueError(f"experts must be 1..{self.levels}, the levels, and include 1, got {list(self.experts)}")
        if self.selection_seed in self.seeds:
            raise ValueError(f"selection_seed must not be among the seeds reported, got {self.selection_seed}")
        least = 2 ** (self.checkpoints - 1)
        if min(map(self.steps, self.samples_per_state)) < least:
            needed = max(-(-least * m * self.levels // self._budgets(m)) for m in self.samples_per_state)
            raise ValueError(
                f"sample_budget must be >= {needed}: {self.checkpoints} checkpoints, each at twice the steps of the one "
                f"before, are {least} steps, got {self.sample_budget}"
            )
        if "rectified_flow" in self.ladders:
            raise ValueError(
                "ladders must not hold rectified_flow: noise-prediction says nothing where it starts, pure noise"
            )

    def steps(self, samples_per_state: int) -> int:
        """Optimiser steps of models that see this many samples of each level in a step."""
        return self._budgets(samples_per_state) * self.sample_budget // (samples_per_state * self.levels)

    def _budgets(self, samples_per_state: int) -> int:
        return 1 if samples_per_state == min(self.samples_per_state) else self.large_batch_budgets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train: ladder, T levels, K experts, samples per state and step, parameterisation, rate, seed."""

    ladder: str
    levels: int
    experts: int
    samples_per_state: int
    parameterisation: str
    learning_rate: float
    seed: int

    @property
    def kind(self) -> tuple:
        """All but the learning rate and the seed."""
        return self.ladder, self.levels, self.experts, self.samples_per_state, self.parameterisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained setting.

    Attributes:
      setting: what was trained.
      steps: optimiser steps at each checkpoint ``[C]``.
      sample_gradients: samples whose gradient was taken, all experts together ``[C]``.
      seconds: training time on this machine ``[C]``, its share of the program that trained it.
      errors: ``{sampler: {metric: [C]}}``; "ddim_all" is DDIM on all levels of the long ladder, at the last checkpoint.
      parameters: number of parameters, all experts together.
      training_bytes: memory of parameters, Adam and EMA.
      diverged: some expert stopped at a value that was not finite.
    """

    setting: Setting
    steps: np.ndarray
    sample_gradients: np.ndarray
    seconds: np.ndarray
    errors: dict[str, dict[str, np.ndarray]]
    parameters: int
    training_bytes: int
    diverged: bool


class Chain:
    """The levels a model trains on, the chain that samples it, and the traceable measurements of a model on it."""

    def __init__(self, task: tasks_lib.Task, trained: schedules.Ladder, sampled: schedules.Ladder, numbers: np.ndarray):
        """Args: task. trained, sampled: ladders. numbers: level of ``trained`` for each level 0..T of ``sampled``."""
        self.task, self.trained, self.sampled, self.numbers = task, trained, sampled, numbers

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

    def measure_all(self, denoiser, target: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The summary of DDIM on all levels trained on."""
        end = tasks_lib.run_chain(denoiser, self.trained, target["start"], "ddim")
        return _summary(end, self.task, target, None)


class Trainer:
    """Trains and measures settings of one task; programs are compiled once per shape."""

    def __init__(
        self, task: tasks_lib.Task, config: Config, report: Callable[[str], None], store: Store = NOTHING_KEPT
    ):
        """Args: task. config. report: gets lines. store: where the runs of every trained program are kept."""
        self.task, self.config, self.report, self.store = task, config, report, store
        self._chains: dict[tuple[str, int], Chain] = {}

    def chain(self, name: str, levels: int) -> "Chain":
        """The levels that a model of (ladder, T) trains on and the chain of ``config.levels`` that samples it."""
        if (name, levels) not in self._chains:
            config = self.config
            variances = np.linalg.eigvalsh(self.task.training.T @ self.task.training / len(self.task.training)).clip(
                0.0
            )
            limits = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
            trained = shared.make_ladder(name, levels, variances, **limits)
            rows = schedules.nested_subsets(levels, (config.levels,))[config.levels]
            sampled = schedules.Ladder(*(np.asarray(x)[rows] for x in (trained.alpha_levels, trained.sigma_levels)))
            self._chains[name, levels] = Chain(self.task, trained, sampled, np.append(levels - rows, 0)[::-1])
        return self._chains[name, levels]

    def starts(self, seed: int) -> np.ndarray:
        """x_T of one seed's evaluation ``[N, D]``, the same for every setting."""
        return np.random.default_rng([seed, 7]).standard_normal((self.config.samples, self.task.dim)).astype(np.float32)

    def targets(self, chain: "Chain", seeds: list[int]) -> dict[str, np.ndarray]:
        """Start, the exact flow's end and the exact-score chains' ends for each seed, leading axis = seeds."""
        rows = [chain.targets(self.starts(seed)) for seed in seeds]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def training(self, setting: Setting) -> experts.ExpertsConfig:
        """How a setting is trained."""
        config, steps = self.config, self.config.steps(setting.samples_per_state)
        return experts.ExpertsConfig(
            ladder=self.chain(setting.ladder, setting.levels).trained, experts=setting.experts,
            batch_size=-(-setting.samples_per_state * config.levels // setting.experts), steps=steps,
            hidden=config.hidden, blocks=config.blocks,
            checkpoints=tuple(steps >> i for i in range(config.checkpoints - 1, -1, -1)),
        )  # fmt: skip

    def train(self, settings: list[Setting]) -> list[Run]:
        """Trains settings that differ in parameterisation, learning rate and seed only, as one program."""
        first, seeds = settings[0], ",".join(map(str, dict.fromkeys(s.seed for s in settings)))
        name = (
            f"{self.task.name}/{first.ladder}/T{first.levels}/K{first.experts}/{first.samples_per_state} per state/"
            f"seeds {seeds}"
        )
        return pieces.after_training(name, lambda store: self._train(settings, store), store=self.store)

    def _train(self, settings: list[Setting], store: Store) -> list[Run]:
        first, training = settings[0], self.training(settings[0])
        chain, batch = self.chain(first.ladder, first.levels), training.batch_size
        trained = experts.train(
            [
                experts.ModelSpec(seed=s.seed, parameterisation=s.parameterisation, learning_rate=s.learning_rate)
                for s in settings
            ],
            self.task.training,
            training,
            experts_per_batch=self.config.experts_per_batch,
            store=store,
            report=_now_and_then(lambda line: self.report(f"{self.task.name}: {line}")),
        )
        targets = self.targets(chain, [s.seed for s in settings])
        summaries = trained.map_models(chain.measure, targets)
        errors = [
            [self._errors(summaries, c, m) for c in range(len(training.checkpoints))] for m in range(len(settings))
        ]
        errors = [
            {s: {k: np.array([row[s][k] for row in rows]) for k in rows[0][s]} for s in SAMPLERS} for rows in errors
        ]
        if first.levels == self.config.many_levels:
            self._add_long_chain(chain, trained, targets, errors)
        self.report(
            f"{self.task.name}: {first.ladder} T = {first.levels}, K = {first.experts}, {first.samples_per_state} samples per "
            f"state: {len(settings)} models, {training.steps} steps, {trained.seconds[-1]:.1f} s"
        )
        return [
            Run(
                setting=setting,
                steps=trained.checkpoints,
                sample_gradients=trained.checkpoints * batch * first.experts,
                seconds=trained.seconds / len(settings),
                errors=errors[m],
                parameters=trained.parameter_count,
                training_bytes=trained.training_bytes,
                diverged=bool(np.any(trained.failed_at[m] >= 0)),
            )
            for m, setting in enumerate(settings)
        ]

    def _errors(self, summaries, checkpoint: int, model: int) -> dict[str, dict[str, float]]:
        row = jax.tree.map(lambda x: x[checkpoint, model], summaries)
        return {sampler: self._error(row[sampler]) for sampler in SAMPLERS}

    def _error(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        measured = tasks_lib.distances(summary, self.task)
        measured |= {k: float(summary[k]) for k in ("flow_error", "trajectory_error") if k in summary}
        return {k: v if np.isfinite(v) else np.inf for k, v in measured.items()}

    def _add_long_chain(self, chain, trained, targets, errors) -> None:
        last = dataclasses.replace(
            trained, checkpoints=trained.checkpoints[-1:], params=jax.tree.map(lambda x: x[-1:], trained.params)
        )
        summary = last.map_models(chain.measure_all, targets)
        for m, error in enumerate(errors):
            error["ddim_all"] = {
                k: np.array([v]) for k, v in self._error(jax.tree.map(lambda x, m=m: x[0, m], summary)).items()
            }


def _now_and_then(report: Callable[[str], None], seconds: float = 10.0) -> Callable[[str], None]:
    """Passes on the first line after every so many seconds: most trainings are shorter than that, and many."""
    last = time.perf_counter()

    def passed(line):
        nonlocal last
        if time.perf_counter() - last >= seconds:
            last = time.perf_counter()
            report(line)

    return passed


def _summary(samples: jax.Array, task: tasks_lib.Task, target: dict[str, jax.Array], sampler: str | None) -> dict:
    """`tasks.sample_summary` and, where the exact score is known, RMS distances per component from the same x_T."""
    summary = tasks_lib.sample_summary(samples, task)
    if "flow" in target:
        summary["flow_error"] = jnp.sqrt(jnp.mean((samples - target["flow"]) ** 2))
        if sampler is not None:
            summary["trajectory_error"] = jnp.sqrt(jnp.mean((samples - target[sampler]) ** 2))
    return summary
