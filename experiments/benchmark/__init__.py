r"""How fast is this, side by side with what a user would run instead?

Every row is a ratio of times measured in turn (A B A B ...) in one process, after both sides have run once: the median over
rounds of theirs / ours, with the smallest and largest round. Both sides do the same mathematics in the same precision, with
noise of its own for every run and sample; what each pair was checked to agree in is a column. The opponents are a PyTorch user
(opponents.py: fused Adam, no host synchronisation, the best of eager and compiled; on a CPU of 1 thread and all, on a GPU of
CUDA graphs too), a NumPy loop (numpy_loop.py), the straightforward `lax.scan`, and the expensive way to the same answer. The
part 'bound' says how near training comes to what the machine can do, 'growth' how costs grow with sizes.

    python -m experiments.benchmark                            # all; needs PyTorch: pip install -e '.[bench]'
    python -m experiments.benchmark --only=table,law           # no PyTorch needed
    python -m experiments.benchmark --spectrum=cifar10.npy     # another spectrum for the table
    python -m experiments.benchmark --runs=1024 --bound_runs=64,1024,4096 --precision=bfloat16     # on a GPU

Takes 20 minutes on two cores; the numbers obtained stand in docs/results.md#benchmark.

"Run after run" is one process, with the better of 1 thread and all; two processes of one thread would use two cores as well.
What favours PyTorch: unpadded latents in its loop, no decay of the rate, no freezing of a run that diverges. Float32 is float32
on its side: no TF32, in convolutions neither. A variant of it that fails is reported, and the others compete; a contest that
fails for want of memory is reported, and the others are held.

Timings are what this experiment is about, and they vary: they are in metadata.json ("measured"). records.jsonl holds what
does not: what was compared, at which sizes, with which options, and how well the sides agree. table.json holds what a page
about speed shows: the table's rows, the device, the precision and the versions. A second start prints what was measured before;
--overwrite measures again.
"""

import dataclasses
import importlib.metadata
import os
from typing import Any

import jax
from threadpoolctl import threadpool_info

from experiments import launch
from experiments.benchmark import machine
from experiments.benchmark.contest import Sizes, hold, others_go_on, reason_of
from experiments.benchmark.contests import CONTESTS
from experiments.launch import Results, Stage, setting
from ldmjax import devices, records
from ldmjax.job import Job

PARTS = (*CONTESTS, "bound", "growth")
QUICK = {
    "rounds": 1,
    "runs": 8,
    "steps": 10,
    "samples": 512,
    "sampling_steps": 50,
    "bound_runs": (8,),
    "data_dim": 256,
}
RECORDED = ("rounds", "runs", "steps", "samples", "sampling_steps")
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sizes):
    """What is measured."""

    only: tuple[str, ...] = setting(PARTS, "Which contests and parts.", choices=PARTS)
    bound_runs: tuple[int, ...] = setting((64,), "Numbers of runs of the part 'bound'.", low=1, high=1_000_000)
    widths: tuple[int, ...] = setting((128, 512), "Widths of its MLPs.", low=1, high=100_000)

    def __post_init__(self):
        super().__post_init__()
        if self.precision != "float32" and not any(name.startswith("unet") for name in self.only):
            raise self.refuse("precision", "must be float32 without a contest of U-Nets in --only")

    def load(self) -> None:
        """No data are read; the clock of one process times the contests."""
        if jax.process_count() > 1:
            raise launch.SettingError("num_processes", jax.process_count(), "must be 1: its clock times the contests")


def missing_torch() -> str:
    """Why there is no PyTorch to compare with on this device; empty if there is."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"needs PyTorch, pip install -e '.[bench]' ({error})"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "needs a PyTorch with CUDA: this one sees no GPU"
    return ""


def hold_all(config: Config, job: Job) -> tuple[dict[str, dict], dict[str, str]]:
    """Holds the contests asked for: what each measured, and why others could not be held, by name."""
    outcomes, skipped = {}, {}
    for name in config.only:
        if name not in CONTESTS:
            continue
        reason = missing_torch() if CONTESTS[name].against.startswith("PyTorch") else ""
        try:
            if not reason:
                outcomes[name] = job.keep(name, lambda name=name: hold(name, CONTESTS[name], config, job))
        except Exception as error:
            if not others_go_on(error):
                raise
            reason = reason_of(error)
        if reason:
            skipped[name] = reason
            job.log(f"{name}: skipped, {reason}")
    return outcomes, skipped


def compute(config: Config, data: None, job: Job) -> Results:
    """Holds contests, and measures the parts 'bound' and 'growth'; a row per contest that was held."""
    del data
    outcomes, skipped = hold_all(config, job)
    bounds, growths, how = [], [], {"steps": config.steps, "job": job}
    if "bound" in config.only:
        how_often = {"rounds": config.rounds}
        bounds = job.keep("bound", lambda: machine.measure_bounds(config.bound_runs, config.widths, **how, **how_often))
    if "growth" in config.only:
        how |= {"samples": config.samples, "rounds": min(config.rounds, 3)}
        growths = job.keep("growth", lambda: machine.measure_growth(**how))
    rows = [
        {
            "contest": name,
            **{key: getattr(CONTESTS[name], key) for key in ("what", "against", "goal")},
            **{key: outcome["sides"][key] for key in ("unit", "options", "agreement", "agreement_in")},
            **{key: getattr(config, key) for key in RECORDED},
            "precision": config.precision if name.startswith("unet") else "float32",
            "components": len(config.variances),
            "products": devices.product_precision(),
        }
        for name, outcome in outcomes.items()
    ]
    about = describe()
    metadata = {
        "machine": about["machine"],
        "about": about,
        "skipped": skipped,
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "thread_pools": threadpool_info(),
        "measured": {"contests": outcomes, "bounds": bounds, "growth": growths},
    }
    return Results(rows=rows, metadata=metadata)


def describe() -> dict[str, Any]:
    """The machine and versions."""
    device, torch = jax.devices()[0], None if missing_torch() else importlib.metadata.version("torch")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy")} | (
        {"torch": torch} if torch else {}
    )
    kind = device.device_kind if device.platform != "cpu" else _processor()
    return {
        "machine": f"{jax.device_count()} x {kind}, {', '.join(f'{name} {v}' for name, v in versions.items())}",
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform": jax.default_backend(),
        "products": devices.product_precision(),
        "versions": records.versions() | {"torch": torch},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip() + " core"
    except (OSError, StopIteration):
        return "CPU core"


def plan(config: Config, data: None) -> list[Stage]:
    """A stage per contest and part: its rounds, with the one that is not measured, and steps of those that train."""
    del data
    torch = not missing_torch()
    return [
        Stage(stage=name, runs=config.rounds + 1)
        for name in config.only
        if torch or name not in CONTESTS or not CONTESTS[name].against.startswith("PyTorch")
    ]
