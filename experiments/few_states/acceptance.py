"""A well-trained chain on the mixture against the exact-score chain: do learned scores lose more than the tolerance?

Both chains run on the same T levels from the same x_T. After subtracting the floor, what as many draws of the law itself keep
from the reference (two halves of the data), the learned chain passes if

    (1)  |learned - exact| <= 0.1 |exact| + 2 standard errors of the difference           squared sliced W2

The error is of the paired difference: common x_T removes most of what N samples leave open.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from experiments import flags as shared
from experiments import plans, tasks
from experiments.few_states import chains
from experiments.few_states.learned import SAMPLERS
from experiments.few_states.mixture import MIXTURE_SECONDS
from ldmjax import devices, experts, mixtures, threefry
from ldmjax.checkpoints import NOTHING_KEPT, Store

SHARE = 0.1
REFERENCE_SETS = 4  # of N draws: two measure the floor against the other two


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceptanceConfig:
    """What is trained; the defaults are those of the documented command."""

    samples: int = 100_000
    levels: int = 32
    ladder: str = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    experts: int = 2
    hidden: int = 128
    blocks: int = 3
    batch_size: int = 512
    learning_rate: float = 7e-4
    steps: int = 20_000
    draws: int = 1_048_576
    seed: int = 0

    @property
    def count(self) -> int:
        """``samples`` rounded up to whole blocks."""
        return -(-self.samples // tasks.BLOCKS) * tasks.BLOCKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceptance:
    """One sampler; squared sliced W2 minus ``floor``.

    Attributes:
      sampler: its name.
      samples: N.
      floor: what N draws of the law keep.
      exact, exact_error: of the exact-score chain.
      learned, learned_error: of the learned one.
      difference, paired_error: learned minus exact.
      allowed: right-hand side of equation (1).
      passed: equation (1).
    """

    sampler: str
    samples: int
    floor: float
    exact: float
    exact_error: float
    learned: float
    learned_error: float
    difference: float
    paired_error: float
    allowed: float
    passed: bool


def judge(sampler: str, exact: np.ndarray, learned: np.ndarray, *, floor: float, samples: int) -> Acceptance:
    """Equation (1) from pseudo-values ``[K]`` of the two chains from the same x_T."""
    exact_value, exact_error = chains.estimate(exact)
    learned_value, learned_error = chains.estimate(learned)
    difference, paired = chains.estimate(learned - exact)
    allowed = SHARE * abs(exact_value - floor) + 2.0 * paired
    return Acceptance(
        sampler=sampler,
        samples=samples,
        floor=floor,
        exact=exact_value - floor,
        exact_error=exact_error,
        learned=learned_value - floor,
        learned_error=learned_error,
        difference=difference,
        paired_error=paired,
        allowed=allowed,
        passed=bool(abs(difference) <= allowed),
    )


def _settings(config: AcceptanceConfig, task: tasks.Task) -> experts.ExpertsConfig:
    variances = np.linalg.eigvalsh(task.covariance)[::-1]
    limits = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
    return experts.ExpertsConfig(
        ladder=shared.make_ladder(config.ladder, config.levels, variances, **limits),
        experts=min(config.experts, config.levels), batch_size=config.batch_size, steps=config.steps,
        hidden=config.hidden, blocks=config.blocks,
    )  # fmt: skip


def plan(config: AcceptanceConfig) -> list[plans.Stage]:
    """The stages of `run`."""
    task = tasks.mixture_task()
    settings, size = _settings(config, task), {"width": task.dim, "models": 1}
    evaluations = len(SAMPLERS) * config.levels
    return [
        tasks.training_stage("acceptance: train", settings, **size),
        tasks.sampling_stage("acceptance: sample", settings, evaluations=evaluations, samples=config.count, **size),
        plans.host("acceptance: exact score", runs=1, seconds=evaluations * config.count * MIXTURE_SECONDS, programs=2),
    ]


def run(
    config: AcceptanceConfig, report: Callable[[str], None] = lambda line: None, store: Store = NOTHING_KEPT
) -> list[Acceptance]:
    """Trains one model on fresh draws of the mixture and compares it with the exact score, sampler by sampler."""
    law = mixtures.random_mixture(seed=0)
    task = dataclasses.replace(
        tasks.mixture_task(),
        training=law.draws(config.draws, seed=config.seed, stream=2),
        reference=law.draws(REFERENCE_SETS * config.count, seed=config.seed, stream=1),
    )
    settings = _settings(config, task)
    spec = experts.ModelSpec(seed=config.seed, parameterisation="v", learning_rate=config.learning_rate)
    trained = experts.train(
        [spec], task.training, settings, store=store, report=lambda line: report(f"acceptance: {line}")
    )
    start = np.asarray(jax.random.normal(threefry.key(config.seed), (1, config.count, task.dim)))
    floor, found = task.sliced_floor(config.count), []
    for sampler in SAMPLERS:
        exact, learned = store.piece(
            f"acceptance/{sampler}", lambda sampler=sampler: _sliced_values(trained, task, start, sampler)
        )
        found.append(judge(sampler, exact, learned, floor=floor, samples=config.count))
        report(f"acceptance: {sampler}, {config.count} samples")
    return found


def _sliced_values(trained, task, start, sampler):
    """Pseudo-values ``[K]`` of squared sliced W2 of the chain with the exact score, and with the learned one."""
    ladder = trained.config.ladder

    def measure(denoiser, start):
        return chains.statistics(tasks.run_chain(denoiser, ladder, start, sampler), task)

    mapped = devices.map_runs(lambda _, start: measure(task.exact(ladder), start), samples=True)
    exact, learned = devices.collect(mapped(0, start), 1), trained.map_models(measure, start)
    both = exact, jax.tree.map(lambda x: x[0], learned)
    return [chains.pseudo_values(stacked, task)["sliced_w2_squared"][0] for stacked in both]
