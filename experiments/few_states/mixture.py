"""Exact scores on the 8-D mixture: how many levels until a chain cannot be told from the exact flow.

All chains start from the same x_T ~ N(0, I), and so does the exact probability flow. Two distances: the root mean square
distance to where the flow takes the same x_T (deterministic samplers), and squared sliced W2 from draws of the mixture. N
draws of the law itself keep a sliced distance from other draws, the *floor*; the flow's samples are such draws. What a chain
has more than the flow has almost no sampling error, since both share x_T: that difference decides.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flags as shared
from experiments import pieces, plans, tasks
from experiments.few_states import chains
from experiments.few_states.exact import SAMPLERS
from experiments.unused_states.laws import evaluations, is_defined
from ldmjax import devices, schedules, threefry
from ldmjax.checkpoints import NOTHING_KEPT, Store

STOCHASTIC = ("ddpm",)
SLOW_UP_TO = 128  # levels of the samplers other than ddim
MIXTURE_SECONDS = 6e-7  # of one update of one sample, see `experiments.plans.host`


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureChain:
    """One chain with the exact score; distances of N samples, errors are standard errors.

    Attributes:
      ladder: its name.
      sampler: one of `experiments.few_states.exact.SAMPLERS`.
      levels: T.
      rms_to_flow, rms_error: root mean square distance per component to the exact flow from the same x_T; NaN with noise.
      sliced_above_floor, sliced_error: squared sliced W2 minus the floor.
      sliced_above_flow, paired_error: squared sliced W2 minus that of the exact flow from the same x_T.
      at_floor: whether the chain cannot be told from the flow (`is_at_floor`).
    """

    ladder: str
    sampler: str
    levels: int
    rms_to_flow: float
    rms_error: float
    sliced_above_floor: float
    sliced_error: float
    sliced_above_flow: float
    paired_error: float
    at_floor: bool


def is_at_floor(above_flow: float, error: float, floor: float, tolerance: float) -> bool:
    """Whether ``floor + above_flow`` is at most ``tolerance^2`` times ``floor``, up to two standard errors; all squared."""
    return bool(above_flow <= (tolerance**2 - 1.0) * floor + 2.0 * error)


def run_chains(
    task: tasks.Task,
    named: Sequence[tuple[str, int, schedules.Ladder]],
    start: jax.Array,
    flow: np.ndarray,
    *,
    sampler: str,
    store: Store,
    report: Callable[[str], None],
) -> tuple[chains.Statistics, np.ndarray]:
    """Statistics of the samples of every (name, T, ladder), and block means ``[C, K]`` of the squared distance to the flow."""
    ladder, numbers = chains.merge([ladder for _, _, ladder in named])
    rows = chains.make_rows(numbers)

    def one_row(common, row):
        start, flow = common
        samples = chains.run_row(task.exact(ladder), ladder, start, *row, sampler=sampler, key=threefry.key(1))
        squared = jnp.mean((samples - flow) ** 2, axis=1).reshape(tasks.BLOCKS, -1).mean(axis=1)
        return chains.statistics(samples, task), squared

    mapped = devices.map_runs(one_row)
    # Longest first: chains that run at the same time are about equally long.
    order = np.argsort(-rows.updates, kind="stable")
    at_once = devices.items_at_once(len(order), 4.0 * start.size * 32)

    def compute(indices):
        own = order[indices]
        done = devices.collect(mapped((start, flow), (rows.times[own], rows.updates[own])), len(own))
        return [jax.tree.map(lambda x, k=k: x[k], done) for k in range(len(own))]

    names = [f"mixture/{sampler}/{name}/T{count}" for name, count, _ in named]
    label = f"mixture: {sampler}, chains of {len(start)} samples"
    found = pieces.finish([names[i] for i in order], compute, store=store, label=label, report=report, at_once=at_once)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(found[i] for i in np.argsort(order)))


def exact_flow(task: tasks.Task, start: jax.Array) -> tuple[np.ndarray, np.ndarray, float]:
    """The flow's samples ``[N, D]``, pseudo-values ``[K]`` of their squared sliced W2, and its floor for N draws."""
    flow = np.asarray(task.flow(start))
    law = jax.tree.map(lambda x: np.asarray(x)[None], jax.jit(lambda z: chains.statistics(z, task))(flow))
    return flow, chains.pseudo_values(law, task)["sliced_w2_squared"][0], task.sliced_floor(len(flow))


def _chains(ladders, levels, sampler, variances, limits) -> list[tuple[str, int, schedules.Ladder]]:
    """(name, T, ladder) of the chains that the sampler runs."""
    named = [
        (name, count, shared.make_ladder(name, count, variances, **limits))
        for name in ladders
        for count in levels
        if sampler == "ddim" or count <= SLOW_UP_TO
    ]
    return [entry for entry in named if is_defined(sampler, entry[2])]


def plan(
    ladders: Sequence[str], levels: Sequence[int], *, samples: int, limits: Mapping[str, float]
) -> list[plans.Stage]:
    """The stages of `run`."""
    variances, stages = np.linalg.eigvalsh(tasks.mixture_task().covariance)[::-1], []
    for sampler in SAMPLERS:
        updates = [
            evaluations(sampler, count, 0) for _, count, _ in _chains(ladders, levels, sampler, variances, limits)
        ]
        seconds = np.mean(updates or [0]) * samples * MIXTURE_SECONDS
        stages.append(plans.host(f"mixture, exact score: {sampler}", runs=len(updates), seconds=seconds, programs=1))
    return stages


def run(
    ladders: Sequence[str],
    levels: Sequence[int],
    *,
    samples: int,
    seed: int,
    tolerance: float,
    limits: Mapping[str, float],
    store: Store = NOTHING_KEPT,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[MixtureChain], dict[str, float]]:
    """Every sampler on every ladder at every T.

    Args:
      ladders: names out of `experiments.flags.LADDERS`.
      levels: T; samplers other than ddim leave those above `SLOW_UP_TO` out.
      samples: N, a multiple of `experiments.tasks.BLOCKS`.
      seed: of x_T.
      tolerance: ratio of W2 that counts as equal.
      limits: sigma_min and sigma_max of `experiments.flags.make_ladder`.
      store: where chains are kept.
      report: receives progress lines.

    Returns:
      The chains, and squared sliced W2 of "flow", the exact flow's samples, and the "floor".
    """
    task = tasks.mixture_task()
    start = jax.random.normal(threefry.key(seed), (samples, task.dim))
    flow, of_flow, floor = store.piece("mixture/exact flow", lambda: exact_flow(task, start))
    variances = np.linalg.eigvalsh(task.covariance)[::-1]
    found = []
    for sampler in SAMPLERS:
        named = _chains(ladders, levels, sampler, variances, limits)
        if not named:
            continue
        stacked, squared = run_chains(task, named, start, flow, sampler=sampler, store=store, report=report)
        sliced = chains.pseudo_values(stacked, task)["sliced_w2_squared"]
        for (name, count, _), values, distances in zip(named, sliced, squared, strict=True):
            found.append(_read(name, sampler, count, values, distances, of_flow, floor, tolerance))
    return found, {"flow": float(of_flow.mean()), "floor": floor}


def _read(ladder, sampler, levels, sliced, squared, of_flow, floor, tolerance):
    """One `MixtureChain` from pseudo-values ``[K]`` of the chain and of the flow, and block mean squared distances."""
    value, error = chains.estimate(sliced)
    above, paired = chains.estimate(sliced - of_flow)
    mean, mean_error = chains.estimate(np.asarray(squared, np.float64))
    rms = np.nan if sampler in STOCHASTIC else np.sqrt(mean)
    return MixtureChain(
        ladder=ladder,
        sampler=sampler,
        levels=levels,
        rms_to_flow=rms,
        rms_error=mean_error / (2.0 * rms),
        sliced_above_floor=value - floor,
        sliced_error=error,
        sliced_above_flow=above,
        paired_error=paired,
        at_floor=is_at_floor(above, paired, floor, tolerance),
    )


def levels_to_floor(found: Sequence[MixtureChain], ladder: str, sampler: str) -> int | None:
    """The smallest T from which on every chain is at the floor; None if not even the longest is."""
    own = sorted((c.levels, c.at_floor) for c in found if (c.ladder, c.sampler) == (ladder, sampler))
    above = max((T for T, fine in own if not fine), default=0)
    return min((T for T, _ in own if T > above), default=None)
