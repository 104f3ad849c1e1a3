"""The command line of the main job."""

import time

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import optimal_stopping
from experiments.optimal_stopping import report
from experiments.optimal_stopping.setup import BLOCKS
from ldmjax import data, records

FLAGS = flags.FLAGS
QUICK = {"seeds": [0], "latent_dims": [1, 4, 16], "linear_steps": 800, "mlp_steps": 300, "samples": 1024}


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_common_flags("optimal_stopping")
    shared.define_list("n", "500", "Samples that PCA and the scores see.", int, 2, 1_000_000)
    shared.define_list(
        "latent_dims",
        "1,2,4,8,16,32,64",
        "Latent dimensions; by default only those that the data have.",
        int,
        1,
        100_000,
    )
    shared.define_seeds("0,1,2", "Each seed has its own subset, initialisation and noise.")
    shared.define_list("caps", "inf,20", "Bounds of the linear scores.", float, 1, low_open=True, infinite=True)
    shared.define_list(
        "learning_rates", None, "Peak rates; default 0.05 (linear), 0.005 (MLP).", float, 0, low_open=True
    )
    shared.define_integer("linear_steps", 2000, "Optimiser steps of the linear scores.", low=1, high=10_000_000)
    shared.define_integer("mlp_steps", 1000, "Optimiser steps of the MLPs.", low=1, high=10_000_000)
    shared.define_integer("batch_size", 256, "Latents per step of the MLPs.", low=2, high=65_536)
    shared.define_integer("hidden", 64, "Width of the MLPs.", low=1, high=16_384)
    shared.define_integer("samples", 4096, "Generated samples per run; a multiple of 64.", low=128, high=1_048_576)
    shared.define_integer(
        "sampling_steps", 250, "Euler-Maruyama steps, uniform in logsnr from -10 to 9.", low=2, high=100_000
    )
    shared.define_integer(
        "stops", 25, "Recorded stopping times, evenly spaced steps; the last is the end.", low=2, high=10_000
    )
    shared.define_runs_per_batch()


def check_flags() -> None:
    """What can be refused before data are read; --quick replaces the flags that were not given."""
    shared.apply_quick(QUICK)
    if FLAGS.samples % BLOCKS:
        raise shared.bad("samples", FLAGS.samples, f"must be a multiple of {BLOCKS}, the number of jackknife blocks")
    if FLAGS.stops > FLAGS.sampling_steps:
        raise shared.bad("stops", FLAGS.stops, f"must be 2..{FLAGS.sampling_steps}, the number of sampling steps")


def read_config(dataset: data.Dataset) -> optimal_stopping.Config:
    """Flags to configuration; latent dimensions that were not given are those that the data have."""
    if not FLAGS["latent_dims"].present:
        # Between the rank of the n samples and D the PCA basis is arbitrary.
        rank = min(*FLAGS.n, int(np.linalg.matrix_rank(dataset.covariance, hermitian=True)))
        FLAGS["latent_dims"].value = [d for d in FLAGS.latent_dims if d <= rank or d == dataset.dim]
    lists = {name: tuple(FLAGS[name].value) for name in ("n", "latent_dims", "seeds", "caps")}
    rates = FLAGS.learning_rates and tuple(FLAGS.learning_rates)
    names = "linear_steps mlp_steps batch_size hidden samples sampling_steps stops runs_per_batch".split()
    return optimal_stopping.Config(learning_rates=rates, **lists, **{name: FLAGS[name].value for name in names})


def main() -> None:
    start = time.perf_counter()
    check_flags()
    dataset = shared.load_dataset()
    shared.check_n(dataset, held_out=BLOCKS)
    config = read_config(dataset)
    shared.check_latent_dims(dataset)
    try:
        problems = optimal_stopping.make_problems(dataset, config)
    except ValueError as error:
        raise shared.bad("latent_dims", FLAGS.latent_dims, str(error)) from error
    job = shared.open_job(lambda: optimal_stopping.plan(problems, config))
    outcome = optimal_stopping.run(problems, config, job.report, job.store)
    records.write_records(job.workdir, outcome.records)
    records.write_curves(job.workdir, report.curve_arrays(outcome))
    print(report.table(outcome.records))
    seconds = time.perf_counter() - start
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=dataset.digest, compilations=outcome.compilations)
    report.save_figures(job.workdir, outcome, config)
    print(f"{len(outcome.records)} runs in {seconds:.0f} s; records, curves and figures are in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
