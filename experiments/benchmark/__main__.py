"""The command line: flags, files and what is printed."""

import importlib.metadata
import json
import os
import time

import jax
import numpy as np
from absl import flags
from threadpoolctl import threadpool_info

from experiments import benchmark, plans
from experiments import flags as shared
from experiments.benchmark import contests, machine, report
from ldmjax import data, devices, plotting, records

FLAGS = flags.FLAGS
PARTS = (*contests.CONTESTS, "bound", "growth")
QUICK = {"rounds": 1, "runs": 8, "steps": 10, "samples": 512, "sampling_steps": 50, "bound_runs": [8], "data_dim": 256}
TABLE_DIM = 3072  # CIFAR-10's


def define_flags() -> None:
    shared.define_common_flags("benchmark")
    shared.define_choices("only", ",".join(PARTS), f"Out of {', '.join(PARTS)}.", PARTS)
    shared.define_integer("rounds", 5, "Rounds of each pair.", low=1, high=1000)
    shared.define_integer("runs", 64, "Training runs.", low=1, high=100_000)
    shared.define_integer(
        "steps", 100, "Optimiser steps a round (linear scores: 20 times as many).", low=1, high=10_000_000
    )
    shared.define_integer("samples", 4096, "Samples of each chain.", low=8, high=10_000_000)
    shared.define_integer("sampling_steps", 1000, "Steps of each chain.", low=40, high=1_000_000)
    shared.define_precision_flag()
    shared.define_list("bound_runs", "64", "Numbers of runs of the part 'bound'.", int, 1, 1_000_000)
    shared.define_list("widths", "128,512", "Widths of its MLPs.", int, 1, 100_000)
    shared.define_word(
        "spectrum", "power:1.5", "Of the table of discretisation errors.", allowed=data.SPECTRA,
        check=lambda description: data.spectrum_variances(description, TABLE_DIM),
    )  # fmt: skip
    shared.define_integer("data_dim", TABLE_DIM, "Dimension of --spectrum (a file gives its own).", low=1, high=100_000)


def plan(config: benchmark.Config) -> list[plans.Stage]:
    """The stages of the job, from seconds measured at the default sizes on the machine of plans.py's constants."""
    share, training = config.rounds / 5.0, config.runs / 64 * config.steps / 100
    parts = []
    for name in config.only:
        if not contests.CONTESTS[name].needs_torch:
            parts.append((name, 20.0 * share))
        elif name.startswith("unet") and not benchmark.missing_torch():
            parts.append((name, 30.0 + 30.0 * share))
        elif not benchmark.missing_torch():
            parts.append((name, 30.0 + 15.0 * share * training))
    if "bound" in FLAGS.only:
        parts.append(("bound", 6.0 * share * sum(FLAGS.bound_runs) / 64 * config.steps / 100 * len(FLAGS.widths)))
    if "growth" in FLAGS.only:
        parts.append(("growth", 60.0 + 90.0 * share * config.steps / 100))
    return [plans.host(name, runs=1, seconds=seconds) for name, seconds in parts]


def machine_line() -> str:
    """The machine and versions, for tables and figures."""
    device = jax.devices()[0]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy")]
    if torch := _torch_version():
        versions.append(f"torch {torch}")
    kind = device.device_kind if device.platform != "cpu" else _processor()
    return f"{jax.device_count()} x {kind}, {', '.join(versions)}"


def _torch_version() -> str | None:
    return None if benchmark.missing_torch() else importlib.metadata.version("torch")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip() + " core"
    except (OSError, StopIteration):
        return "CPU core"


def main() -> None:
    begin = time.perf_counter()
    shared.apply_quick(QUICK)
    if jax.process_count() > 1:
        raise shared.bad("num_processes", jax.process_count(), "must be 1: the clock of one process times the contests")
    try:
        spectrum = data.spectrum_variances(FLAGS.spectrum, FLAGS.data_dim)
    except ValueError as error:
        raise shared.bad("spectrum", FLAGS.spectrum, f"must be {data.SPECTRA} ({error})") from error
    if not np.all(spectrum > 0):
        raise shared.bad(
            "spectrum", FLAGS.spectrum, "must have variances above 0: Heun's law at t = 0 is infinite otherwise"
        )
    if FLAGS.precision != "float32" and not any(name.startswith("unet") for name in FLAGS.only):
        raise shared.bad("precision", FLAGS.precision, "must be float32 without a contest of U-Nets in --only")
    config = benchmark.Config(
        only=tuple(name for name in FLAGS.only if name in contests.CONTESTS), rounds=FLAGS.rounds, runs=FLAGS.runs,
        steps=FLAGS.steps, samples=FLAGS.samples, sampling_steps=FLAGS.sampling_steps, precision=FLAGS.precision,
        spectrum=spectrum,
    )  # fmt: skip
    job = shared.open_job(lambda: plan(config))
    outcomes, skipped = benchmark.run(contests.CONTESTS, config, job.report, job.store)
    bounds, growths = [], []
    if "bound" in FLAGS.only:
        options = {"steps": config.steps, "rounds": config.rounds, "report": job.report}
        bounds = job.store.piece("bound", lambda: machine.measure_bounds(FLAGS.bound_runs, FLAGS.widths, **options))
    if "growth" in FLAGS.only:
        options = {"steps": config.steps, "samples": config.samples, "rounds": min(config.rounds, 3)}
        growths = job.store.piece("growth", lambda: machine.measure_growth(**options, report=job.report))
    described = machine_line()
    if config.only:
        print(report.table(outcomes, contests.CONTESTS, skipped))
    if bounds:
        print(report.bound_table(bounds))
    print(f"median [smallest, largest] of {config.rounds} rounds; {described}")
    _write_table(job.workdir, config, outcomes, skipped, bounds)
    records.write_records(job.workdir, benchmark.make_records(outcomes, contests.CONTESTS, config))
    if growths:
        plotting.save(report.draw_growth(growths, described), job.workdir / "growth.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(
        job.workdir, seconds=seconds, data_sha256=None, machine=described, skipped=skipped,
        environment={name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS")},
        thread_pools=threadpool_info(), measured=report.measured(outcomes, bounds, growths),
    )  # fmt: skip
    print(f"{seconds:.1f} s; results in {job.workdir}")


def _write_table(workdir, config, outcomes, skipped, bounds):
    about = {
        "machine": machine_line(), "device": jax.devices()[0].device_kind, "devices": jax.device_count(),
        "platform": jax.default_backend(), "precision": config.precision, "products": devices.product_precision(),
        "rounds": config.rounds, "runs": config.runs, "versions": records.versions() | {"torch": _torch_version()},
    }  # fmt: skip
    found = report.results(outcomes, contests.CONTESTS, skipped, bounds, **about)
    records.write_text(workdir / "table.json", json.dumps(records.plain(found), indent=2) + "\n")


if __name__ == "__main__":
    # Both sides share a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    define_flags()
    shared.run(main)
