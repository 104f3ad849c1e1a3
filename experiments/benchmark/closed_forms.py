"""Contests of the oracle: exact laws of discretised samplers against sampling them, and against a loop in NumPy."""

import functools
import time

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments.benchmark import numpy_loop
from experiments.benchmark.contest import Sides, Sizes, timed
from experiments.benchmark.sampling import SCHEDULE, VARIANCES, gaussian_chain, uniform_grid
from ldmjax import devices, oracle, random
from ldmjax.job import Job

SAMPLES, STEPS = 4096, 1000
TABLE = {
    "schemes": ("euler_maruyama", "exponential", "euler_ode", "heun_ode"),
    "steps": (50, 250, 500, 1000),
    "t_ends": (1e-2, 1e-3, 1e-5, 0.0),
    "starts": ("marginal", "standard"),
}


def law_sides(opponent: str, sizes: Sizes, job: Job) -> Sides:
    """Variances at all 1000 stops, and squared W2 from them: by recursion, or from 4096 samples ("numpy", "sampler")."""
    del sizes, job
    times = uniform_grid(STEPS)
    exact = functools.partial(
        oracle.sampler_variances, VARIANCES, SCHEDULE, times, scheme="euler_maruyama", start="standard"
    )
    if opponent == "numpy":
        sampled = functools.partial(numpy_loop.sampled_variances, VARIANCES, SCHEDULE, times, samples=SAMPLES, seed=0)
    else:
        program = devices.map_runs(gaussian_chain(times, np.arange(STEPS + 1), SAMPLES), samples=True)
        keys = jax.random.split(random.key(0), 1)

        def sampled():
            return devices.collect(program(0, keys), 1)[0]

    def distances(law):
        return oracle.w2_squared_from_variances(VARIANCES, np.asarray(law(), np.float64).T)

    exact_law = exact()
    error = exact_law * np.sqrt(2.0 / SAMPLES)
    return Sides(
        ours=lambda: timed(lambda: distances(exact)),
        theirs=lambda: timed(lambda: distances(sampled)),
        unit=f"law at {STEPS} stops, d = 1..{len(VARIANCES)}",
        options="float64 NumPy, doubling",
        opponent="float64 NumPy" if opponent == "numpy" else "our sampler, float32",
        agreement=float(np.max(np.abs(sampled() - exact_law) / error)),
        agreement_in=f"largest difference of {exact_law.size} variances, in standard errors",
    )


def table_sides(sizes: Sizes, job: Job) -> Sides:
    """Squared W2 at the end of 128 samplers on ``sizes.variances``; our first call, with compilation, is reported too."""
    variances = sizes.variances
    ours, theirs = (
        functools.partial(make, variances, variances, SCHEDULE, **TABLE)
        for make in (oracle.discretisation_table, numpy_loop.discretisation_table)
    )
    cold = _cold_seconds(ours)
    job.log(f"table: the first call took {cold:.2f} s")
    first, second = ours(), theirs()
    return Sides(
        ours=lambda: timed(ours),
        theirs=lambda: timed(theirs),
        unit=f"{first.size} entries, D = {len(variances)}",
        options="one float64 program over all devices, warm",
        opponent="NumPy, one thread",
        agreement=float(np.max(np.abs(first / second - 1.0))),
        agreement_in="largest relative difference",
        cold_seconds=cold,
    )


def _cold_seconds(work):
    """Seconds of ``work`` when nothing is compiled, in this process: a device may not be shared with a second one."""
    jax.clear_caches()
    _use_compiled_programs_on_disk(False)
    try:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    finally:
        _use_compiled_programs_on_disk(True)


def _use_compiled_programs_on_disk(value):
    jax.config.update("jax_enable_compilation_cache", value)
    compilation_cache.reset_cache()  # JAX asks its configuration once
