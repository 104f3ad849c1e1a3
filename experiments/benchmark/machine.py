"""What the machine can do at most, how near training comes to it, and how costs grow.

A training step of one run is counted as 3 x the network's forward operations on its batch, and as one read and one write of
each parameter, both moments and the average (float32). The bound is the larger of the two times that the measured rates of a
matrix product, in the precision that the program uses, and of a copy allow, all devices at work; added to it is a measured
launch for each kernel that the compiled program launches in a step (launches.py; none on a CPU).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.contest import others_go_on, reason_of, timed
from experiments.benchmark.launches import launch_seconds, loop_kernels
from experiments.benchmark.sampling import gaussian_chain, uniform_grid
from experiments.benchmark.sweeping import BATCH, DIM, HIDDEN, LINEAR_STEPS, runs_on_points, sweep_config, sweep_rate
from ldmjax import devices, loops, random, sweeps, training
from ldmjax.job import Job

COPIES, COPIED = 10, 2**26  # COPIED: numbers per device, far beyond any cache
# Operations of one timed call: so many that the call itself costs little.
MULTIPLIED = {"cpu": 1e10, "gpu": 4e11, "tpu": 4e11}
STATE_BYTES = 2 * 4 * 4  # per parameter


def measure_ceilings(hidden: int, runs: int, rounds: int) -> dict[str, Any]:
    """What all devices together reach, the best of ``rounds``; on an accelerator with the products of all ``runs`` at once.

    Returns:
      "products", operations per second of products [256, w] x [w, w] by their precision (as JAX names it for float32 numbers,
      or bfloat16); "bytes" per second, of copies; "launch", seconds of a kernel that does almost nothing, 0 on a CPU.
    """
    count = jax.device_count()
    rows = count if devices.default_runs_per_batch() == 1 else devices.padded_count(runs)
    rng = np.random.default_rng(0)
    # Orthogonal: the products neither grow nor vanish. The same for all: thousands of their own would take minutes to make.
    factor = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0].astype(np.float32)
    arrays = (
        np.repeat(rng.standard_normal((1, BATCH, hidden)).astype(np.float32), rows, 0),
        np.repeat(factor[None], rows, 0),
    )
    operations = 2.0 * rows * BATCH * hidden**2
    times = max(4, round(MULTIPLIED[devices.platform()] / operations))

    def best(function, *arrays):
        program, arrays = devices.map_runs(function), devices.place(arrays)
        program(0, *arrays)
        return min(timed(lambda: program(0, *arrays)) for _ in range(max(3, rounds)))

    def multiply(name):
        def products(_, x, w):
            x, w = (a.astype(jnp.bfloat16 if name == "bfloat16" else jnp.float32) for a in (x, w))
            with jax.default_matmul_precision("default" if name == "bfloat16" else name):
                return jax.lax.fori_loop(0, times, lambda i, x: x @ w, x)

        return times * operations / best(products, *arrays)

    names = dict.fromkeys(("highest", devices.product_precision(), "bfloat16"))
    copied = np.zeros((count, COPIED), np.float32)
    copying = best(lambda _, x: jax.lax.fori_loop(0, COPIES, lambda i, x: x + 1.0, x), copied)
    return {
        "products": {name: multiply(name) for name in names},
        "bytes": COPIES * 2.0 * copied.nbytes / copying,
        "launch": launch_seconds(),
    }


def step_kernels(runs: int, steps: int, hidden: int) -> int:
    """Kernels that a step of a sweep of MLPs launches, counted in the program that `sweeps.train_scores` runs; 0 on a CPU."""
    if devices.platform() == "cpu":
        return 0
    init, advance = sweeps.training_programs(sweep_config("mlp", steps, hidden), DIM, chunk=steps)
    stacked, sources = sweeps.stack_runs(*runs_on_points("mlp", runs), DIM)
    bounds = jnp.asarray(0), jnp.asarray(0)
    text = advance.lower((sources, *bounds), init(0, stacked), stacked).compile().as_text()
    return loop_kernels(text, loops.steps_per_call(steps))


def with_bound(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the least "bound_seconds" per run-step, and what they are "set_by"."""
    ceilings = row["ceilings"]
    work = {
        "operations": row["operations"] / ceilings["products"][row["precision"]],
        "memory": row["bytes"] / ceilings["bytes"],
    }
    launches = row["kernels"] * ceilings["launch"] / row["runs"]
    name = max(work, key=work.get)
    return {**row, "bound_seconds": work[name] + launches, "set_by": "launches" if launches > work[name] else name}


def measure_bounds(runs: Sequence[int], widths: Sequence[int], *, steps: int, rounds: int, job: Job) -> list[dict]:
    """How near sweeps of MLPs come to the bound.

    Returns:
      A row per number of runs and width ("hidden"): the median "seconds" of ``rounds``, "operations" and "bytes", all per
      run-step; "kernels" that a step of all runs launches; "precision" of the products; "ceilings"; and what `with_bound`
      adds. What the device refuses gives a line and no row.
    """
    found = []
    for hidden in widths:
        few = max(1, int(steps * min(1.0, (HIDDEN / hidden) ** 2)))
        config = sweep_config("mlp", 1, hidden)
        for count in runs:
            try:
                ceilings = measure_ceilings(hidden, count, rounds)
                seconds = float(np.median([sweep_rate("mlp", count, few, hidden=hidden) for _ in range(rounds)]))
                kernels = step_kernels(count, few, hidden)
            except Exception as error:
                if not others_go_on(error):
                    raise
                job.log(f"bound: {count} runs of width {hidden}: left out, {reason_of(error)}")
                continue
            row = {
                "runs": count,
                "hidden": hidden,
                "precision": devices.product_precision(),
                "seconds": seconds,
                "operations": 3.0 * BATCH * training.flops(config, DIM),
                "bytes": float(STATE_BYTES * training.parameter_count(config, DIM)),
                "kernels": kernels,
                "ceilings": ceilings,
            }
            found.append(with_bound(row))
            job.log(f"bound: {count} runs of width {hidden}, {1 / seconds:.0f} run-steps/s")
    return found


def measure_growth(*, steps: int, samples: int, rounds: int, job: Job) -> list[dict]:
    """Cost over the number of runs, the latent dimension, the samples and the sampling steps.

    Returns:
      A row per kind of "work" and "axis": its "sizes" and the "seconds" ``[sizes, rounds]``.
    """
    kinds = [
        (f"training step, {name}", axis, sizes, lambda size, model=model, k=k, of=of: of(model, k * steps, size))
        for name, model, k in (("MLP", "mlp", 1), ("linear scores", "linear", LINEAR_STEPS))
        for axis, sizes, of in (
            ("runs", (8, 16, 32, 64, 128, 256), _step_of_runs),
            ("latent dimension", (2, 4, 8, 16, 32, 64), _step_of_dimension),
        )
    ]
    kinds += [
        ("one chain", "samples", samples * np.array([1, 2, 4, 8, 16, 32]) // 4, lambda size: _chain(int(size), 250)),
        ("one chain", "sampling steps", (62, 125, 250, 500, 1000, 2000), lambda size: _chain(samples, size)),
    ]
    found = []
    for work, axis, sizes, cost in kinds:
        seconds = np.array([[cost(size) for _ in range(rounds)] for size in sizes])
        found.append({"work": work, "axis": axis, "sizes": np.array(sizes), "seconds": seconds})
        job.log(f"growth: {work} over {axis}, {seconds[:, 0].min():.2g} to {seconds[:, 0].max():.2g} s")
    return found


def _step_of_runs(model, steps, runs):
    return runs * sweep_rate(model, runs, max(1, steps * 16 // runs))


def _step_of_dimension(model, steps, dim):
    return sweep_rate(model, jax.device_count(), steps, latent_dims=(dim,))


def _chain(samples, steps):
    program = devices.map_runs(gaussian_chain(uniform_grid(steps), np.array([steps]), samples), samples=True)
    keys = jax.random.split(random.key(0), 1)
    program(0, keys)
    return timed(lambda: program(0, keys))
