"""The command line: flags, files and what is printed."""

import dataclasses
import time

from absl import flags

from experiments import flags as shared
from experiments import paper_figures, plans
from experiments.paper_figures import learned, report
from ldmjax import plotting, records

FLAGS = flags.FLAGS
QUICK = {"steps": 300, "samples": 1024, "sampling_steps": 100}


def define_flags() -> None:
    shared.define_common_flags("paper_figures")
    shared.define_integer("draws", 1000, "Draws of the estimated variances behind each share.", low=1, high=1_000_000)
    shared.define_seed("seed", 0, "Seed of the first draw of the estimated variances, and of training.")
    shared.define_switch("learned", True, "Train a score for every curve and draw its samples' distances over it.")


def plan(config: paper_figures.Config, settings: learned.LearnedConfig | None) -> list[plans.Stage]:
    """The stages of the job."""
    # The settings of the panels, which any number of draws has, say what is trained.
    panels = paper_figures.run(dataclasses.replace(config, draws=1))
    of_training = [] if settings is None else learned.plan(panels, settings)
    return [*paper_figures.plan(config), *of_training, plans.host("tables, figures", runs=1, seconds=4.0)]


def main() -> None:
    begin = time.perf_counter()
    config = paper_figures.Config(draws=min(FLAGS.draws, 50) if FLAGS.quick else FLAGS.draws, seed=FLAGS.seed)
    settings = learned.LearnedConfig(seed=FLAGS.seed, **(QUICK if FLAGS.quick else {})) if FLAGS.learned else None
    job = shared.open_job(lambda: plan(config, settings))
    panels, curves = paper_figures.run(config, store=job.store), []
    if settings is not None:
        curves = learned.measure(panels, settings, job.report, job.store)
        panels = paper_figures.with_points(panels, learned.points(curves))
    print(report.table(panels, curves))
    records.write_records(job.workdir, paper_figures.make_records(panels) + learned.make_records(curves))
    fields = ("variances", "estimated_variances", "times", "noise_var", "w2_squared", "best_times", "thresholds")
    records.write_curves(job.workdir, {f"{p.name}_{f}": getattr(p, f) for p in panels.values() for f in fields})
    for name, caption in report.captions(panels).items():
        of_figure = [p for p in panels.values() if p.name.startswith(name.replace("ure_", ""))]
        plotting.save(report.draw(of_figure, caption), job.workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=None)
    print(f"{seconds:.1f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
