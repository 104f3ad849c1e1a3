"""What the machine can do at most, how near training comes to it, and how costs grow.

A training step of one run is counted as 3 x the network's forward operations on its batch, and as one read and one write of
each parameter, both moments and the average (float32). With the measured rates of a matrix product and of a copy, all devices
at work, the larger of the two times is the bound.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments.benchmark import timed
from experiments.benchmark.sampling import gaussian_chain, uniform_grid
from experiments.benchmark.training import BATCH, DIM, HIDDEN, LINEAR_STEPS, sweep_rate
from ldmjax import devices, threefry, training

PRODUCTS, COPIES, COPIED = 400, 10, 2**26  # COPIED: numbers per device, far beyond any cache
STATE_BYTES = 2 * 4 * 4  # per parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Operations per second of products [256, w] x [w, w] and bytes per second of copies, all devices together."""

    operations: float
    bytes: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """How near a sweep of MLPs comes to the bound: seconds per run-step measured, and those that the counts allow."""

    runs: int
    hidden: int
    seconds: float
    operations: float
    bytes: float
    ceilings: Ceilings

    @property
    def bound(self) -> tuple[float, str]:
        """Seconds per run-step, and what sets them."""
        times = {
            "operations": self.operations / self.ceilings.operations,
            "memory": self.bytes / self.ceilings.bytes,
        }
        name = max(times, key=times.get)
        return times[name], name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """Seconds ``[K, rounds]`` of one kind of work at K sizes."""

    work: str
    axis: str
    sizes: np.ndarray
    seconds: np.ndarray


def measure_ceilings(hidden: int, runs: int, rounds: int) -> Ceilings:
    """The best of ``rounds`` for both; on an accelerator the products of all ``runs`` at once, as in training."""
    count = jax.device_count()
    rows = count if devices.default_runs_per_batch() == 1 else devices.padded_count(runs)
    rng = np.random.default_rng(0)
    # Orthogonal: the products neither grow nor vanish.
    factor = np.linalg.qr(rng.standard_normal((rows, hidden, hidden)))[0].astype(np.float32)

    def products(_, x, w):
        return jax.lax.fori_loop(0, PRODUCTS, lambda i, x: x @ w, x)

    def copies(_, x):
        return jax.lax.fori_loop(0, COPIES, lambda i, x: x + 1.0, x)

    def best(program, *arrays):
        arrays = devices.place(arrays)
        program(0, *arrays)
        return min(timed(lambda: program(0, *arrays)) for _ in range(max(3, rounds)))

    multiplied = rng.standard_normal((rows, BATCH, hidden)).astype(np.float32)
    copied = np.zeros((count, COPIED), np.float32)
    return Ceilings(
        operations=PRODUCTS * 2.0 * multiplied.size * hidden / best(devices.map_runs(products), multiplied, factor),
        bytes=COPIES * 2.0 * copied.nbytes / best(devices.map_runs(copies), copied),
    )


def measure_bounds(
    runs: Sequence[int], widths: Sequence[int], *, steps: int, rounds: int, report: Callable[[str], None]
) -> list[Bound]:
    """A row per number of runs and width of the MLP; the median of ``rounds``."""
    found = []
    for hidden in widths:
        few = max(1, int(steps * min(1.0, (HIDDEN / hidden) ** 2)))
        config = training.TrainingConfig(model="mlp", steps=1, batch_size=BATCH, hidden=hidden, blocks=1)
        for count in runs:
            ceilings = measure_ceilings(hidden, count, rounds)
            seconds = float(np.median([sweep_rate("mlp", count, few, hidden=hidden) for _ in range(rounds)]))
            found.append(
                Bound(
                    runs=count, hidden=hidden, seconds=seconds, operations=3.0 * BATCH * training.flops(config, DIM),
                    bytes=float(STATE_BYTES * training.parameter_count(config, DIM)), ceilings=ceilings,
                )
            )  # fmt: skip
            report(f"bound: {count} runs of width {hidden}, {1 / seconds:.0f} run-steps/s")
    return found


def measure_growth(*, steps: int, samples: int, rounds: int, report: Callable[[str], None]) -> list[Growth]:
    """Cost over the number of runs, the latent dimension, the samples and the sampling steps."""
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
        found.append(Growth(work=work, axis=axis, sizes=np.array(sizes), seconds=seconds))
        report(f"growth: {work} over {axis}, {seconds[:, 0].min():.2g} to {seconds[:, 0].max():.2g} s")
    return found


def _step_of_runs(model, steps, runs):
    return runs * sweep_rate(model, runs, max(1, steps * 16 // runs))


def _step_of_dimension(model, steps, dim):
    return sweep_rate(model, jax.device_count(), steps, latent_dims=(dim,))


def _chain(samples, steps):
    program = devices.map_runs(gaussian_chain(uniform_grid(steps), np.array([steps]), samples), samples=True)
    keys = jax.random.split(threefry.key(0), 1)
    program(0, keys)
    return timed(lambda: program(0, keys))
