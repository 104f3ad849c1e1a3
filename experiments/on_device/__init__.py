r"""What does all this cost on a GPU, and does it give there what it gives on a CPU? For who has one for fifteen minutes.

One call measures in the order of worth, and stops in time:

- machine: versions; rates of a copy and of products in each precision; a step of a loop, a call of a program.
- agreement: random bits (equal), normals (1e-5), losses of 50 steps of every kind of training (1e-4, each twice: are the
  parameters equal bit for bit?) against a CPU's, and a sampler's squared W2 against the exact law.
- benchmark: training rates against their bound at 64, 1024 and 4096 runs, with and without command buffers; sampling.
- pytorch: the contests against PyTorch, if it is there; U-Nets in bfloat16 too.
- main_job: `experiments.optimal_stopping` in full, its verdicts and curves against a CPU's.
- science: `experiments.noisy_autoencoder` on 15,000 images of CIFAR-10.

What they are compared with is made before, on a CPU, in a folder to carry along; then the GPU's call reads it:

    python -m experiments.on_device.prepare --cifar=cifar10.npz --workdir=results/carried
    python -m experiments.on_device --carried=results/carried --seconds=560

Every step is a process of its own (a GPU's memory is free again after each) with a time limit of its own, and is left out when
less than it needs is left of --seconds, part of which is kept for each later stage. What it measured is kept at once, and is a
line of records.jsonl at the end. The same command goes on, with other --only and --seconds too: finished steps are not done
again, stopped ones go on from what they kept in --scratch. Another state of the code, another device or another
--deterministic is refused there. The status is 1 if a step failed.

Takes --seconds; the numbers obtained stand in docs/results.md#on_device. **Not yet run on a GPU**; all of it runs on a CPU with
--quick, and does so in tests/test_on_device.py.
"""

import sys
import time

from experiments.on_device import wheels

BEGIN = time.monotonic()
wheels.offer(sys.argv)

import dataclasses  # noqa: E402 - after the wheels
import hashlib  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments import launch  # noqa: E402
from experiments.launch import Results, SettingError, Stage, setting  # noqa: E402
from experiments.on_device import reading, stages, steps  # noqa: E402
from ldmjax import records  # noqa: E402
from ldmjax.job import Job  # noqa: E402

SIZES = "Of what is measured; small sees that all of it runs, its numbers say nothing."
QUICK = {"size": "small"}


def _check_folder(path: str) -> None:
    if not Path(path).is_dir():
        raise ValueError(f"no folder {path!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carried:
    """What was prepared: its folder and a CPU's training rates, None without one; ``digest`` is of the code."""

    folder: Path | None
    cpu: dict[str, Any] | None
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.Settings):
    """What is measured."""

    only: tuple[str, ...] = setting(stages.STAGES, "Stages, done in this order.", choices=stages.STAGES, how=True)
    seconds: float = setting(560.0, "For all of it.", low=1.0, high=1e6, how=True)
    carried: str | None = setting(
        None,
        "The folder that experiments.on_device.prepare made.",
        allowed="a folder that experiments.on_device.prepare made",
        check=_check_folder,
    )
    scratch: str | None = setting(
        None,
        "Where steps work until they are done; in --workdir if not given.",
        allowed="a directory that can be written, or made",
        check=launch.data.check_writable,
        how=True,
    )
    wheels: str | None = setting(
        None, "Wheels (*.whl) of what this machine lacks.", allowed="a folder", check=_check_folder, how=True
    )
    size: str = setting("full", SIZES, choices=("full", "small"))

    def __post_init__(self):
        super().__post_init__()
        if self.carried is None and (compared := set(self.only) & set(stages.COMPARED)):
            raise self.refuse("only", f"needs --carried=FOLDER for {', '.join(sorted(compared))}")

    def load(self) -> Carried:
        """The carried folder, which is whole and of this code and size."""
        if jax.process_count() > 1:
            raise SettingError("num_processes", jax.process_count(), "must be 1: the steps are processes of this one")
        code = stages.code_of_steps()
        if self.carried is None:
            return Carried(folder=None, cpu=None, digest=code)
        folder = Path(self.carried).absolute()
        try:
            found = reading.read_json(folder, "metadata.json")
            cpu = {**found["rates"], "cores": found["cores"]}
            missing = {"images", "labels"} - set(records.load_curves(folder))  # reads all: damage is seen here
            if missing or not records.load_records(folder):
                raise ValueError("something is missing in it")
        except (OSError, ValueError, KeyError) as error:
            made = "must be a folder that experiments.on_device.prepare made"
            raise self.refuse("carried", f"{made} ({error!r})") from error
        if found.get("code") != code:
            raise self.refuse("carried", "was prepared with another state of the code: prepare it anew")
        if found.get("size") != self.size:
            raise self.refuse("carried", f"was prepared with --size={found.get('size')}: start it so, too")
        return Carried(folder=folder, cpu=cpu, digest=code)


def places_of(config: Config, carried: Carried, base: Path, *facts: object) -> stages.Places:
    """Where steps work: never where those of other facts left something."""
    name = hashlib.sha256(repr((carried.digest, config.size, *facts)).encode()).hexdigest()[:12]
    return stages.Places(scratch=base.absolute() / name, carried=carried.folder, size=config.size)


def compute(config: Config, carried: Carried, job: Job) -> Results:
    """Runs the steps; a row for each."""
    deterministic = "xla_gpu_deterministic_ops" in os.environ.get("XLA_FLAGS", "")
    base = Path(config.scratch) if config.scratch else job.directory / "stages"
    # The process that starts steps leaves the device alone.
    step = stages.ceilings_step(places_of(config, carried, base, os.getpid()), "device", "device", 0.0)
    found = steps.result_of(step)
    device = f"{found['devices']} x {found['device']} ({found['platform']})"
    shutil.rmtree(step.folder.parent.parent)
    held, places = job.get("steps"), places_of(config, carried, base, device, deterministic)
    if held is None:
        held = {"device": device, "rows": {}}
        shutil.rmtree(places.scratch, ignore_errors=True)
    if held["device"] != device:
        here = (
            f"holds results of another device, {held['device']}: --overwrite starts anew, another --workdir keeps both"
        )
        raise SettingError("workdir", job.directory.parent, here)
    chosen, left_out = stages.make_steps(config.only, places), stages.left_out(config.only)
    for stage, reason in left_out.items():
        job.log(f"{stage}: left out, {reason}")
    if any(step.stage == "science" for step in chosen) and not places.images.exists():
        arrays = records.load_curves(carried.folder)
        places.scratch.mkdir(parents=True, exist_ok=True)
        np.savez(places.images, images=arrays["images"], labels=arrays["labels"])
    left = config.seconds - (time.monotonic() - BEGIN)
    how = {"save": lambda: job.put("steps", held), "seconds": left, "kept": stages.KEPT, "job": job}
    steps.run_all(chosen, held["rows"], **how)
    if all(held["rows"].get(step.label, {}).get("status") == "done" for step in chosen):
        shutil.rmtree(places.scratch, ignore_errors=True)
    rows = sorted(held["rows"].values(), key=lambda row: stages.STAGES.index(row["stage"]))
    facts = {"device": device, "deterministic": deterministic, "cpu": carried.cpu, "left_out": left_out}
    return Results(rows=rows, metadata=facts)


def plan(config: Config, carried: Carried) -> list[Stage]:
    """The steps, with the seconds without which they are not started and after which they are ended."""
    places = places_of(config, carried, Path())
    return [
        Stage(stage=f"{step.label} (needs {step.needs:.0f} s, ends after {step.limit:.0f})", runs=1)
        for step in stages.make_steps(config.only, places)
    ]
