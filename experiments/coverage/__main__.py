"""The command line."""

import time

from absl import flags

from experiments import coverage
from experiments import flags as shared
from experiments.coverage import noisy
from ldmjax import records

FLAGS = flags.FLAGS
ANALYSES = {"sampler": coverage, "noisy_autoencoder": noisy}


def define_flags() -> None:
    shared.define_common_flags("coverage")
    shared.define_choices("analyses", ",".join(ANALYSES), f"Out of {', '.join(ANALYSES)}.", tuple(ANALYSES))
    shared.define_integer("draws", 200, "Draws per case.", low=2, high=1_000_000)
    shared.define_seed("first_seed", 1000, "Seed of the first draw; 0..159 set the interval's percentiles.")
    shared.define_integer("n", 100, "Samples that each estimate sees.", low=32, high=1_000_000)
    shared.define_word(
        "planted", None, "Images: adds the planted effect (n = 500, a tenth of the draws).",
        allowed="an .npz file of images", check=shared.check_npz,
    )  # fmt: skip


def draws_of(case: coverage.Case | noisy.Case) -> int:
    """A tenth for planted effects: they are large, and slow to repeat."""
    return FLAGS.draws if case.latent_dim < 100 else max(2, FLAGS.draws // 10)


def main() -> None:
    begin = time.perf_counter()
    shared.apply_quick({"draws": 10})
    cases = [(name, case) for name in FLAGS.analyses for case in ANALYSES[name].default_cases(FLAGS.n)]
    if FLAGS.planted is not None:
        try:
            cases += [(name, ANALYSES[name].planted_case(FLAGS.planted, 500)) for name in FLAGS.analyses]
        except ValueError as error:
            raise shared.bad("planted", FLAGS.planted, str(error)) from error
    job = shared.open_job(lambda: [s for name, case in cases for s in ANALYSES[name].plan(case, draws=draws_of(case))])
    how, rows = {"first_seed": FLAGS.first_seed, "store": job.store, "report": job.report}, []
    for name, case in cases:
        own = ANALYSES[name].run_case(case, draws=draws_of(case), **how)
        rows += [{"analysis": name, **row} for row in own]
    records.write_records(job.workdir, rows)
    for name in FLAGS.analyses:
        print(f"\n{name}:{coverage.table([row for row in rows if row['analysis'] == name])}")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds)
    print(f"{len(rows)} draws in {seconds:.0f} s; records are in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
