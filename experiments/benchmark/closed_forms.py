"""Contests of the oracle: exact laws of discretised samplers against sampling them, and against a loop in NumPy."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from experiments.benchmark import Config, Sides, numpy_loop, timed
from experiments.benchmark.sampling import SCHEDULE, VARIANCES, gaussian_chain, uniform_grid
from ldmjax import devices, oracle, threefry

SAMPLES, STEPS = 4096, 1000
TABLE = {
    "schemes": ("euler_maruyama", "exponential", "euler_ode", "heun_ode"),
    "steps": (50, 250, 500, 1000),
    "t_ends": (1e-2, 1e-3, 1e-5, 0.0),
    "starts": ("marginal", "standard"),
}


def law_sides(opponent: str, config: Config, report: Callable[[str], None]) -> Sides:
    """Variances at all 1000 stops, and squared W2 from them: by recursion, or from 4096 samples ("numpy", "sampler")."""
    del report
    times = uniform_grid(STEPS)
    exact = functools.partial(
        oracle.sampler_variances, VARIANCES, SCHEDULE, times, scheme="euler_maruyama", start="standard"
    )
    if opponent == "numpy":
        sampled = functools.partial(
            numpy_loop.sampled_variances, VARIANCES, SCHEDULE, times, samples=SAMPLES, seed=config.seed
        )
    else:
        program = devices.map_runs(gaussian_chain(times, np.arange(STEPS + 1), SAMPLES), samples=True)
        keys = jax.random.split(threefry.key(config.seed), 1)

        def sampled():
            return devices.collect(program(0, keys), 1)[0]

    exact_law = exact()
    error = exact_law * np.sqrt(2.0 / SAMPLES)
    return Sides(
        ours=lambda: timed(lambda: oracle.w2_squared_from_variances(VARIANCES, exact().T)),
        theirs=lambda: timed(lambda: oracle.w2_squared_from_variances(VARIANCES, np.asarray(sampled(), np.float64).T)),
        unit=f"law at {STEPS} stops, d = 1..{len(VARIANCES)}",
        options={
            "ours": "float64 NumPy, doubling",
            "theirs": "NumPy" if opponent == "numpy" else "our sampler, float32",
        },
        agreement=float(np.max(np.abs(sampled() - exact_law) / error)),
        agreement_in=f"largest difference of {exact_law.size} variances, in standard errors",
    )


def table_sides(config: Config, report: Callable[[str], None]) -> Sides:
    """Squared W2 at the end of 128 samplers on ``config.spectrum``; the first call of ours, with compilation, is reported."""
    variances = config.spectrum
    ours, theirs = (
        functools.partial(make, variances, variances, SCHEDULE, **TABLE)
        for make in (oracle.discretisation_table, numpy_loop.discretisation_table)
    )
    begin = time.perf_counter()
    ours()
    cold = time.perf_counter() - begin
    report(f"table: the first call took {cold:.2f} s")
    first, second = ours(), theirs()
    return Sides(
        ours=lambda: timed(ours),
        theirs=lambda: timed(theirs),
        unit=f"{first.size} entries, D = {len(variances)}",
        options={"ours": f"one float64 program on {jax.device_count()} device(s), warm", "theirs": "one thread"},
        agreement=float(np.max(np.abs(first / second - 1.0))),
        agreement_in="largest relative difference",
        cold_seconds=cold,
    )
