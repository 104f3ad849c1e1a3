"""The command line of the contest."""

import time

from absl import flags

from experiments import flags as shared
from experiments import tasks as tasks_lib
from experiments.disentangled import contest, report
from experiments.disentangled.setup import Config
from ldmjax import data, records

FLAGS = flags.FLAGS
TASKS = (*tasks_lib.SYNTHETIC, "data")
QUICK = {
    "tasks": ["gaussian"], "experts": [1, 8, 32], "samples_per_state": [4], "sample_budget": 2**14,
    "learning_rates": [1e-3, 3e-3], "seeds": [0, 1], "checkpoints": 5, "many_levels": 200,
}  # fmt: skip


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_common_flags("disentangled")
    shared.define_choices("tasks", ",".join(TASKS), f"What to learn: {', '.join(TASKS)} (latents of --data).", TASKS)
    shared.define_integer("latent_dim", 32, "Principal components of --data.", low=1, high=100_000)
    shared.define_ladder_flags(default="karras,uniform_logsnr,linear_beta,cosine,spectral")
    shared.define_integer(
        "many_levels", 1000, "Levels of the joint baseline, on the linear-beta ladder.", low=2, high=1000
    )
    shared.define_list("experts", "1,2,4,8,16,32", "Numbers of experts K.", int, 1, 10_000)
    shared.define_list("samples_per_state", "4,32", "Training samples per level and step.", int, 1, 65_536)
    shared.define_integer("sample_budget", 2**18, "Sample gradients that a model gets.", low=1, high=2**40)
    shared.define_integer(
        "large_batch_budgets",
        2,
        "Budgets of models that see more than the least of --samples_per_state.",
        low=1,
        high=1000,
    )
    shared.define_integer(
        "checkpoints", 7, "Points of a curve, each at twice the steps of the one before.", low=2, high=20
    )
    shared.define_list("learning_rates", "0.001,0.003,0.01", "Rates to choose from.", float, 0, low_open=True)
    shared.define_seeds("0,1,2", "Seeds reported.")
    shared.define_seed("selection_seed", 100, "Seed on which rates and settings are chosen.")
    shared.define_integer("hidden", 64, "Width of an expert.", low=1, high=16_384)
    shared.define_integer("blocks", 1, "Residual blocks of an expert.", low=0, high=64)
    shared.define_integer("samples", 1024, "Generated samples per measurement; a multiple of 64.", low=64, high=65_536)
    shared.define_runs_per_batch("experts")


def read_config() -> Config:
    """Flags to configuration; --quick replaces the flags that were not given."""
    shared.apply_quick(QUICK)
    lists = "tasks ladders experts samples_per_state learning_rates seeds".split()
    names = """latent_dim levels many_levels sigma_min sigma_max sample_budget large_batch_budgets checkpoints selection_seed
        hidden blocks samples experts_per_batch""".split()
    shared.check_ladder_flags()
    try:
        return Config(
            **{name: tuple(FLAGS[name].value) for name in lists}, **{name: FLAGS[name].value for name in names}
        )
    except ValueError as error:
        name = str(error).split()[0]
        raise shared.bad(name, FLAGS[name].value, str(error)) from error


def make_tasks(dataset: data.Dataset, config: Config) -> list[tasks_lib.Task]:
    """The tasks of the contest, the same data for every seed."""
    if "data" in config.tasks and dataset.samples is None:
        raise shared.bad("spectrum", FLAGS.spectrum, "has no samples, which --tasks=data needs; allowed without it")
    try:
        return tasks_lib.make_tasks(config.tasks, dataset, latent_dim=config.latent_dim)
    except ValueError as error:
        raise shared.bad("latent_dim", config.latent_dim, str(error)) from error


def main() -> None:
    start = time.perf_counter()
    config = read_config()
    dataset = shared.load_dataset()
    tasks = make_tasks(dataset, config)
    job = shared.open_job(lambda: [stage for task in tasks for stage in contest.plan(task, config)])
    outcomes, rows = [], []
    for task in tasks:
        outcomes.append(contest.run_task(task, config, lambda line: job.report(_stamp(start, line)), job.store))
        rows += report.make_records(outcomes[-1], config)
        report.save_figure(job.workdir, outcomes[-1], config)
        job.report(f"\n{report.tables(outcomes[-1], config)}\n")
    records.write_records(job.workdir, rows)
    records.write_curves(job.workdir, report.curve_arrays(outcomes))
    seconds = time.perf_counter() - start
    records.write_metadata(
        job.workdir, seconds=seconds, data_sha256=dataset.digest, training_seconds=report.seconds_of(outcomes)
    )
    print(f"{len(rows)} models in {seconds:.0f} s; records, curves and figures are in {job.workdir}")


def _stamp(start: float, line: str) -> str:
    return f"[{time.perf_counter() - start:5.0f} s] {line}"


if __name__ == "__main__":
    define_flags()
    shared.run(main)
