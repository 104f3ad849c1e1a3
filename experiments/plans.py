"""What --dry_run prints: the stages of a job, how much of everything they are, and a rough estimate of time.

Seconds come from counts (floating-point operations, random normals, parameters) and from this machine's speed, measured by a
probe of a second. They are an estimate, good to a factor of two or three; compilation is counted as if nothing were cached.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tables import align
from ldmjax import devices, threefry

COMPILE_SECONDS = 4.0  # of one program on the machine of REFERENCE_NORMALS
REFERENCE_NORMALS = 1e-8  # seconds per normal of one core there; other constants were measured there too
STEP_OVERHEAD = (
    6e-5  # seconds of one run's step besides operations and normals: what a loop's many small operations cost
)
WIDE, BATCH = 128, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a job.

    Attributes:
      what: is done.
      runs: how many of them.
      programs: compiled for it.
      seconds: of all runs, on one device, without compilation.
    """

    what: str
    runs: int
    programs: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Seconds of one floating-point operation in a small product of matrices, and of one random normal, on one device."""

    operation: float
    normal: float

    @property
    def slowness(self) -> float:
        """Relative to the machine whose constants stand above."""
        return self.normal / REFERENCE_NORMALS


@functools.cache
def probe() -> Machine:
    """Measures this machine's devices, all of them at work."""

    def products(_, x):
        return jax.lax.fori_loop(0, 20, lambda i, x: jnp.tanh(x @ x[:WIDE]), x)

    def normals(_, x):
        return jax.lax.fori_loop(0, 4, lambda i, x: x + threefry.normal(threefry.key(i), *x.shape), x)

    seconds = []
    for function in (products, normals):
        mapped, rows = devices.map_runs(function), np.zeros((jax.device_count(), BATCH, WIDE), np.float32)
        mapped(0, rows)
        took = []
        for _ in range(5):
            begin = time.perf_counter()
            mapped(0, rows)
            took.append(time.perf_counter() - begin)
        seconds.append(min(took))
    return Machine(operation=seconds[0] / (20 * 2 * BATCH * WIDE * WIDE), normal=seconds[1] / (4 * BATCH * WIDE))


def training(
    what: str, *, runs: int, steps: int, batch: int, flops: float, entries: int, parameters: float, programs: int = 1
) -> Stage:
    """Training of networks.

    Args:
      what: is trained.
      runs: networks.
      steps: of each.
      batch: latents per step.
      flops: floating-point operations of the network on one latent, forwards.
      entries: random numbers per latent and step.
      parameters: of one network.
      programs: compiled.
    """
    machine = probe()
    step = STEP_OVERHEAD * machine.slowness + batch * (3.0 * flops * machine.operation + entries * machine.normal)
    # Adam and the averages touch some ten numbers per parameter, each about as fast as a tenth of a normal.
    step += parameters * machine.normal
    return Stage(what=what, runs=runs, programs=programs, seconds=runs * steps * step)


def sampling(
    what: str, *, runs: int, steps: int, samples: int, flops: float, entries: int, noise: bool, programs: int = 1
) -> Stage:
    """Sampling from networks: as `training`, with ``steps`` evaluations for each of ``samples``, and ``noise`` or none."""
    machine = probe()
    step = STEP_OVERHEAD * machine.slowness + samples * (
        flops * machine.operation + entries * machine.normal * (1.0 if noise else 0.2)
    )
    return Stage(what=what, runs=runs, programs=programs, seconds=runs * steps * step)


def host(what: str, *, runs: int, seconds: float, programs: int = 0) -> Stage:
    """Work whose ``seconds`` per run on one core were measured on the machine of the constants above."""
    return Stage(what=what, runs=runs, programs=programs, seconds=runs * seconds * probe().slowness)


def table(stages: Sequence[Stage], *, workdir: str) -> str:
    """The plan as text; on an accelerator without times, which nobody measured there."""
    stages = [stage for stage in stages if stage.runs]
    count, compiling, known = jax.device_count(), COMPILE_SECONDS * probe().slowness, devices.platform() == "cpu"
    seconds = [s.seconds / min(count, s.runs) + s.programs * compiling for s in stages]
    shown = duration if known else lambda seconds: "?"
    rows = [("stage", "runs", "programs", "time")]
    rows += [(s.what, f"{s.runs}", f"{s.programs}", shown(t)) for s, t in zip(stages, seconds, strict=True)]
    rows.append(("all", "", f"{sum(s.programs for s in stages)}", shown(sum(seconds))))
    times = (
        "Times are estimates, good to a factor of two or three; programs that were compiled before come from the cache."
    )
    return "\n".join(
        [
            *align(rows, left=1),
            f"On {count} {devices.platform()} device{'s' * (count > 1)}. "
            + (times if known else "Times are known on CPUs alone."),
            f"Results would go to {workdir}; nothing was written there.",
        ]
    )


def duration(seconds: float) -> str:
    """Rounded to what an estimate is worth."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
