"""Exact scores on the 8-D mixture: how many levels until a chain cannot be told from the exact flow.

All chains start from the same x_T ~ N(0, I), and so does the exact probability flow. Two distances: the root mean square
distance to where the flow takes the same x_T (deterministic samplers), and squared sliced W2 from draws of the mixture. N
draws of the law itself keep a sliced distance from other draws, the *floor*; the flow's samples are such draws. What a chain
has more than the flow has almost no sampling error, since both share x_T: that difference decides.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.few_states.exact import SAMPLERS
from ldmjax import chains, devices, random, schedules, tasks
from ldmjax.job import NO_JOB, Job

SLOW_UP_TO = 128  # levels of the samplers other than ddim


def is_at_floor(above_flow: float, error: float, floor: float, tolerance: float) -> bool:
    """Returns whether ``floor + above_flow`` is at most ``tolerance^2 floor``, up to two standard errors; all squared."""
    return bool(above_flow <= (tolerance**2 - 1.0) * floor + 2.0 * error)


def run_chains(
    task: tasks.Task,
    named: Sequence[tuple[str, int, schedules.Ladder]],
    start: jax.Array,
    flow: np.ndarray,
    *,
    sampler: str,
    job: Job = NO_JOB,
) -> tuple[chains.Statistics, np.ndarray]:
    """Runs every (name, T, ladder) from ``start`` with the exact score.

    Returns:
      Statistics of the samples, and block means ``[C, K]`` of their squared distance to ``flow``, the exact flow's samples.
    """
    ladder, numbers = chains.merge([ladder for _, _, ladder in named])
    rows = chains.make_rows(numbers)

    def one_row(common, row):
        start, flow = common
        samples = chains.run_row(task.exact(ladder), ladder, start, *row, sampler=sampler, key=random.key(1))
        squared = jnp.mean((samples - flow) ** 2, axis=1).reshape(tasks.BLOCKS, -1).mean(axis=1)
        return chains.statistics(samples, task), squared

    mapped = devices.map_runs(one_row)
    # Longest first: chains that run at the same time are about equally long.
    order = np.argsort(-rows.updates, kind="stable")

    def compute(indices):
        own = order[indices]
        done = devices.collect(mapped((start, flow), (rows.times[own], rows.updates[own])), len(own))
        return [jax.tree.map(lambda x, k=k: x[k], done) for k in range(len(own))]

    names = [f"mixture/{sampler}/{named[i][0]}/T{named[i][1]}" for i in order]
    at_once = devices.items_at_once(len(order), 4.0 * start.size * 32)
    found = job.map(compute, names, label=f"mixture: {sampler}, chains of {len(start)} samples", at_once=at_once)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(found[i] for i in np.argsort(order)))


def named_ladders(ladders, levels, sampler, variances, limits) -> list[tuple[str, int, schedules.Ladder]]:
    """Returns (name, T, ladder) of the chains that the sampler runs."""
    named = [
        (name, count, schedules.make_ladder(name, count, variances, **limits))
        for name in ladders
        for count in levels
        if sampler == "ddim" or count <= SLOW_UP_TO
    ]
    return [entry for entry in named if chains.is_defined(sampler, entry[2])]


def measure_all(
    task: tasks.Task,
    ladders: Sequence[str],
    levels: Sequence[int],
    *,
    samples: int,
    tolerance: float,
    limits: Mapping[str, float],
    job: Job = NO_JOB,
) -> list[dict]:
    """Measures every sampler on every ladder at every T, distances by N samples with standard errors.

    Fields of kind "mixture": rms_to_flow, root mean square distance per component to the exact flow, NaN with noise; squared
    sliced W2 minus the floor, and minus that of the exact flow (paired); at_floor, `is_at_floor`. Of kind "mixture_floor":
    squared sliced W2 of draws of the law and of the exact flow's samples; levels_to_floor.

    Args:
      task: has an exact score.
      ladders: names out of `schedules.LADDERS`.
      levels: T; samplers other than ddim leave those above `SLOW_UP_TO` out.
      samples: N, a multiple of `tasks.BLOCKS`.
      tolerance: ratio of W2 that counts as equal.
      limits: sigma_min and sigma_max of `schedules.make_ladder`.
      job: keeps the chains.
    """
    start = jax.random.normal(random.key(0), (samples, task.dim))
    floor = task.sliced_floor(samples)
    flow = job.keep("mixture/exact flow", lambda: np.asarray(task.flow(start)))
    of_flow = chains.measure(flow, task)["sliced_w2_squared"]
    variances, rows = np.linalg.eigvalsh(task.covariance)[::-1], []
    for sampler in SAMPLERS:
        if not (named := named_ladders(ladders, levels, sampler, variances, limits)):
            continue
        stacked, squared = run_chains(task, named, start, flow, sampler=sampler, job=job)
        sliced = chains.pseudo_values(stacked, task)["sliced_w2_squared"]
        for (name, count, _), values, distances in zip(named, sliced, squared, strict=True):
            measured = _measured(sampler, values, distances, of_flow, floor, tolerance)
            rows.append(
                {"kind": "mixture", "samples": samples, "ladder": name, "sampler": sampler, "levels": count, **measured}
            )
    return rows + [
        {
            "kind": "mixture_floor",
            "ladder": ladder,
            "sampler": sampler,
            "samples": samples,
            "sliced_w2_squared_floor": floor,
            "sliced_w2_squared_flow": float(of_flow.mean()),
            "levels_to_floor": levels_to_floor(rows, ladder, sampler),
        }
        for ladder, sampler in dict.fromkeys((row["ladder"], row["sampler"]) for row in rows)
    ]


def _measured(sampler, sliced, squared, of_flow, floor, tolerance):
    """Returns the distances of one chain from pseudo-values ``[K]`` of it and of the flow, and squared distances ``[K]``."""
    value, error = chains.estimate(sliced)
    above, paired = chains.estimate(sliced - of_flow)
    mean, mean_error = chains.estimate(np.asarray(squared, np.float64))
    rms = np.nan if sampler in chains.STOCHASTIC else np.sqrt(mean)
    return {
        "rms_to_flow": rms,
        "rms_error": mean_error / (2.0 * rms),
        "sliced_above_floor": value - floor,
        "sliced_error": error,
        "sliced_above_flow": above,
        "paired_error": paired,
        "at_floor": is_at_floor(above, paired, floor, tolerance),
    }


def levels_to_floor(rows: Sequence[Mapping], ladder: str, sampler: str) -> int | None:
    """Returns the smallest T from which on every chain is at the floor; None if not even the longest is."""
    own = [(row["levels"], row["at_floor"]) for row in rows if (row["ladder"], row["sampler"]) == (ladder, sampler)]
    above = max((T for T, fine in own if not fine), default=0)
    return min((T for T, _ in own if T > above), default=None)
