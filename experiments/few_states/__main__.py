"""The command line: flags, files and what is printed."""

import time

import numpy as np
from absl import flags

from experiments import few_states
from experiments import flags as shared
from experiments import tasks as tasks_lib
from experiments.few_states import figures, report
from experiments.tasks import BLOCKS
from ldmjax import data, plotting, records

FLAGS = flags.FLAGS
QUICK = {
    "levels": [8, 32, 128], "ladders": ["karras", "linear_beta", "rectified_flow"], "samples": 512, "seeds": [0, 1],
    "tasks": ["mixture"], "steps": 200, "hidden": 32
}  # fmt: skip


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_common_flags("few_states")
    shared.define_ladder_flags(default=",".join(shared.LADDERS), levels="8,16,32,64,128,1000")
    shared.define_choices("parts", ",".join(few_states.PARTS), "What is computed.", few_states.PARTS)
    shared.define_integer("few", 32, "Compared with the largest of --levels; one of them.", low=1, high=10_000)
    shared.define_float("tolerance", 1.2, "Ratio of W2 distances that counts as equal.", low=1.0)
    shared.define_integer("samples", 4096, f"Samples per chain; a multiple of {BLOCKS}.", low=2 * BLOCKS, high=65_536)
    shared.define_choices(
        "tasks", "data,mixture,gaussian", "What scores are learned on.", ("data", "mixture", "gaussian")
    )
    shared.define_integer("latent_dim", 32, "Principal components of --data.", low=1, high=100_000)
    shared.define_choice("learned_ladder", "karras", "Ladder that scores are learned on.", shared.LADDERS)
    shared.define_seeds("0,1,2", "Of learned scores: initialisation, batches, noise and x_T.")
    shared.define_integer("steps", 6000, "Optimiser steps of each network.", low=1, high=10_000_000)
    shared.define_integer("batch_size", 256, "Samples per step.", low=1, high=65_536)
    shared.define_integer("hidden", 64, "Width of the networks.", low=1, high=16_384)
    shared.define_integer(
        "mixture_samples", 0, "If > 0, also trains a larger network on the mixture and compares it with the exact score "
        "by so many samples, rounded up to a multiple of 64.", low=0, high=10_000_000,
    )  # fmt: skip
    shared.define_integer(
        "mixture_steps", few_states.Config.mixture_steps, "Its optimiser steps.", low=1, high=10_000_000
    )


def check_flags() -> None:
    """What can be refused before data are read; --quick replaces the flags that were not given."""
    shared.apply_quick(QUICK)
    shared.check_ladder_flags()
    if FLAGS.few not in FLAGS.levels or FLAGS.few == max(FLAGS.levels):
        raise shared.bad(
            "few", FLAGS.few, f"must be one of --levels={','.join(map(str, FLAGS.levels))}, not the largest"
        )
    if FLAGS.samples % BLOCKS:
        raise shared.bad("samples", FLAGS.samples, f"must be a multiple of {BLOCKS}")
    try:
        shared.make_ladder(FLAGS.learned_ladder, max(FLAGS.levels), np.ones(1))
    except ValueError as error:
        raise shared.bad("levels", FLAGS.levels, f"{FLAGS.learned_ladder}: {error}") from error


def read_config(dataset: data.Dataset) -> few_states.Config:
    """Flags to configuration; a bare spectrum has no data to learn unless --tasks asks for them."""
    if not np.trace(dataset.covariance) > 0:
        given = "data" if FLAGS.spectrum is None else "spectrum"
        raise shared.bad(given, FLAGS[given].value, "must have a variance > 0")
    if not FLAGS["tasks"].present and dataset.samples is None:
        FLAGS["tasks"].value = [task for task in FLAGS.tasks if task != "data"]
    lists = ("parts", "ladders", "levels", "tasks", "seeds")
    names = (
        "few sigma_min sigma_max tolerance samples latent_dim learned_ladder steps batch_size hidden mixture_samples "
        "mixture_steps"
    )
    values = {name: FLAGS[name].value for name in names.split()} | {name: tuple(FLAGS[name].value) for name in lists}
    return few_states.Config(**values)


def make_tasks(dataset: data.Dataset, config: few_states.Config) -> list[tasks_lib.Task]:
    """The tasks of the learned part; `UsageError` if the data do not allow them."""
    if "learned" not in config.parts:
        return []
    if "data" in config.tasks and dataset.samples is None:
        raise shared.bad("tasks", FLAGS.tasks, f"data needs samples, and {dataset.name} is a spectrum")
    try:
        return tasks_lib.make_tasks(config.tasks, dataset, latent_dim=config.latent_dim)
    except ValueError as error:
        raise shared.bad("latent_dim", FLAGS.latent_dim, str(error)) from error


def main() -> None:
    begin = time.perf_counter()
    check_flags()
    dataset = shared.load_dataset()
    config = read_config(dataset)
    tasks = make_tasks(dataset, config)
    job = shared.open_job(lambda: few_states.plan(dataset, config, tasks))
    outcome = few_states.run(dataset, config, job.report, tasks, job.store)
    print(report.table(outcome, config))
    records.write_records(job.workdir, report.make_records(outcome, config))
    records.write_curves(job.workdir, report.curve_arrays(outcome))
    for name, figure in figures.draw(outcome, config, dataset.name).items():
        plotting.save(figure, job.workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=dataset.digest)
    print(f"{seconds:.1f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
