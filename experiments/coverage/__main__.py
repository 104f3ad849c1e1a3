"""The command line."""

import time

from absl import flags

from experiments import coverage
from experiments import flags as shared
from experiments.coverage import few_rows, noisy
from ldmjax import records

FLAGS = flags.FLAGS
ANALYSES = {"sampler": coverage, "noisy_autoencoder": noisy, "few_rows": few_rows}
PLANTED = ("sampler", "noisy_autoencoder")


def define_flags() -> None:
    shared.define_common_flags("coverage")
    shared.define_choices("analyses", "sampler,noisy_autoencoder", f"Out of {', '.join(ANALYSES)}.", tuple(ANALYSES))
    shared.define_integer("draws", 100, "Draws per case; of some that are slow, a fifth.", low=2, high=1_000_000)
    shared.define_seed("first_seed", 1000, "Seed of the first draw; 0..159 set the interval's percentiles.")
    shared.define_integer("n", 100, "Samples that each estimate sees.", low=32, high=1_000_000)
    shared.define_word(
        "planted", None, "Images: adds the planted effect (n = 500, a tenth of the draws).",
        allowed="an .npz file of images", check=shared.check_npz,
    )  # fmt: skip


def draws_of(case: coverage.Case | noisy.Case | few_rows.Choice) -> int:
    """The case's share of --draws."""
    return max(2, round(FLAGS.draws * case.share))


def main() -> None:
    begin = time.perf_counter()
    shared.apply_quick({"draws": 10})
    cases = [(name, case) for name in FLAGS.analyses for case in ANALYSES[name].default_cases(FLAGS.n)]
    if FLAGS.planted is not None:
        try:
            cases += [
                (name, ANALYSES[name].planted_case(FLAGS.planted, 500)) for name in FLAGS.analyses if name in PLANTED
            ]
        except ValueError as error:
            raise shared.bad("planted", FLAGS.planted, str(error)) from error
    job = shared.open_job(lambda: [s for name, case in cases for s in ANALYSES[name].plan(case, draws=draws_of(case))])
    how, rows = {"first_seed": FLAGS.first_seed, "store": job.store, "report": job.report}, []
    for name, case in cases:
        own = ANALYSES[name].run_case(case, draws=draws_of(case), **how)
        rows += [{"analysis": name, **row} for row in own]
    records.write_records(job.workdir, rows)
    for name in FLAGS.analyses:
        own = [row for row in rows if row["analysis"] == name]
        print(f"\n{name}:{coverage.table(own)}", few_rows.choices(own), sep="\n")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds)
    print(f"{len(rows)} draws in {seconds:.0f} s; records are in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
