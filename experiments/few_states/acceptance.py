"""A well-trained chain on the mixture against the exact-score chain: do learned scores lose more than the tolerance?

Both chains run on the same T levels from the same x_T. After subtracting the floor, what as many draws of the law itself keep
from the reference (two halves of the data), the learned chain passes if

    (1)  |learned - exact| <= 0.1 |exact| + 2 standard errors of the difference           squared sliced W2

The error is of the paired difference: common x_T removes most of what N samples leave open.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments.few_states.learned import SAMPLERS
from ldmjax import chains, devices, experts, mixtures, random, schedules, tasks
from ldmjax.job import NO_JOB, Job

if TYPE_CHECKING:
    from experiments.few_states import Config

SHARE = 0.1
REFERENCE_SETS = 4  # of N draws: two measure the floor against the other two
DRAWS = 1_048_576  # that the network is trained on
EXPERTS, NETWORK = 2, {"hidden": 128, "blocks": 3, "batch_size": 512}
LEARNING_RATE = 7e-4


def judge(exact: np.ndarray, learned: np.ndarray, *, floor: float) -> dict:
    """Returns the two sides of equation (1) from pseudo-values ``[K]`` of the two chains from the same x_T.

    ``exact`` and ``learned`` are without the floor; difference is learned minus exact, paired_error its standard error.
    """
    exact_value, exact_error = chains.estimate(exact)
    learned_value, learned_error = chains.estimate(learned)
    difference, paired = chains.estimate(learned - exact)
    allowed = SHARE * abs(exact_value - floor) + 2.0 * paired
    return {
        "floor": floor,
        "exact": exact_value - floor,
        "exact_error": exact_error,
        "learned": learned_value - floor,
        "learned_error": learned_error,
        "difference": difference,
        "paired_error": paired,
        "allowed": allowed,
        "passed": bool(abs(difference) <= allowed),
    }


def sample_count(config: "Config") -> int:
    """Returns N: --mixture_samples rounded up to whole blocks."""
    return -(-config.mixture_samples // tasks.BLOCKS) * tasks.BLOCKS


def training(task: tasks.Task, config: "Config") -> experts.ExpertsConfig:
    """Returns how the network is trained."""
    variances = np.linalg.eigvalsh(task.covariance)[::-1]
    ladder = schedules.make_ladder(config.learned_ladder, config.few, variances, **config.limits)
    return experts.ExpertsConfig(ladder=ladder, experts=min(EXPERTS, config.few), steps=config.mixture_steps, **NETWORK)


def measure_all(task: tasks.Task, config: "Config", job: Job = NO_JOB) -> list[dict]:
    """Trains one model on fresh draws of the mixture and compares it with the exact score, a row per sampler."""
    law, count, seed = mixtures.random_mixture(seed=0), sample_count(config), config.seeds[0]
    task = dataclasses.replace(
        task,
        training=law.draws(DRAWS, seed=seed, stream=2),
        reference=law.draws(REFERENCE_SETS * count, seed=seed, stream=1),
    )
    spec = experts.ModelSpec(seed=seed, parameterisation="v", learning_rate=LEARNING_RATE)
    trained = experts.train_experts([spec], task.training, training(task, config), job=job.within("acceptance"))
    start = np.asarray(jax.random.normal(random.key(seed), (1, count, task.dim)))
    floor, rows = task.sliced_floor(count), []
    for sampler in SAMPLERS:
        exact, learned = job.keep(
            f"acceptance/{sampler}", lambda sampler=sampler: _sliced_values(trained, task, start, sampler)
        )
        rows.append({"kind": "acceptance", "sampler": sampler, "samples": count, **judge(exact, learned, floor=floor)})
        job.log(f"acceptance: {sampler}, {count} samples")
    return rows


def _sliced_values(trained, task, start, sampler):
    """Returns pseudo-values ``[K]`` of squared sliced W2 of the chain with the exact score, and with the learned one."""
    ladder = trained.config.ladder

    def measure(denoiser, start):
        return chains.statistics(tasks.run_chain(denoiser, ladder, start, sampler), task)

    mapped = devices.map_runs(lambda _, start: measure(task.exact(ladder), start), samples=True)
    exact, learned = devices.collect(mapped(0, start), 1), trained.map_models(measure, start)
    both = exact, jax.tree.map(lambda x: x[0], learned)
    return [chains.pseudo_values(stacked, task)["sliced_w2_squared"][0] for stacked in both]
