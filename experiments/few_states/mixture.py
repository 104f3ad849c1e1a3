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
from experiments import tasks
from experiments.few_states import chains
from experiments.few_states.exact import SAMPLERS
from experiments.unused_states.laws import is_defined
from ldmjax import devices

STOCHASTIC = ("ddpm",)
SLOW_UP_TO = 128  # levels of the samplers other than ddim


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


def spread(count: int, parts: int) -> np.ndarray:
    """An order of ``count`` jobs, given longest first, that deals them to ``parts`` devices in turn; -1 stands for none."""
    dealt = np.full((-(-count // parts), parts), -1)
    dealt.ravel()[:count] = np.arange(count)
    return dealt.T.ravel()


def run_chains(
    task: tasks.Task, rows: chains.Rows, ladder, sampler: str, start: jax.Array, flow: jax.Array
) -> tuple[chains.Statistics, np.ndarray]:
    """Statistics of every row's samples, and block means ``[C, K]`` of the squared distance to the flow per component."""
    longest_first = np.argsort(-rows.updates, kind="stable")
    order = spread(len(longest_first), jax.device_count())
    chosen = longest_first[order]
    # Padding makes no update, so it costs nothing.
    jobs = rows.times[chosen], np.where(order < 0, 0, rows.updates[chosen])

    def one_row(common, row):
        start, flow = common
        samples = chains.run_row(task.exact(ladder), ladder, start, *row, sampler=sampler, key=jax.random.key(1))
        squared = jnp.mean((samples - flow) ** 2, axis=1).reshape(tasks.BLOCKS, -1).mean(axis=1)
        return chains.statistics(samples, task), squared

    done = jax.jit(devices.map_runs(one_row, runs_per_batch=1))((start, flow), jobs)
    back = np.empty(len(longest_first), int)
    back[chosen[order >= 0]] = np.flatnonzero(order >= 0)
    return jax.tree.map(lambda x: np.asarray(x)[back], done)


def run(
    ladders: Sequence[str],
    levels: Sequence[int],
    *,
    samples: int,
    seed: int,
    tolerance: float,
    limits: Mapping[str, float],
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
      report: receives progress lines.

    Returns:
      The chains, and squared sliced W2 of "flow", the exact flow's samples, and the "floor".
    """
    task = tasks.mixture_task()
    start = jax.random.normal(jax.random.key(seed), (samples, task.dim))
    flow = task.flow(start)
    law = jax.tree.map(lambda x: np.asarray(x)[None], jax.jit(lambda z: chains.statistics(z, task))(flow))
    of_flow = chains.pseudo_values(law, task)["sliced_w2_squared"][0]
    known = {"flow": float(of_flow.mean()), "floor": task.sliced_floor(samples)}
    variances = np.linalg.eigvalsh(task.covariance)[::-1]
    found = []
    for sampler in SAMPLERS:
        named = [
            (name, count, shared.make_ladder(name, count, variances, **limits))
            for name in ladders
            for count in levels
            if sampler == "ddim" or count <= SLOW_UP_TO
        ]
        named = [entry for entry in named if is_defined(sampler, entry[2])]
        if not named:
            continue
        merged, numbers = chains.merge([ladder for _, _, ladder in named])
        stacked, squared = run_chains(task, chains.make_rows(numbers), merged, sampler, start, flow)
        sliced = chains.pseudo_values(stacked, task)["sliced_w2_squared"]
        for (name, count, _), values, distances in zip(named, sliced, squared, strict=True):
            found.append(_read(name, sampler, count, values, distances, of_flow, known["floor"], tolerance))
        report(f"mixture: {sampler}, {len(named)} chains of {samples} samples")
    return found, known


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
