"""The command line: flags, files and what is printed."""

import time

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import plans, unused_states
from experiments.unused_states import laws, learned, report
from ldmjax import data, gaussians, plotting, records

FLAGS = flags.FLAGS
LADDERS = "karras,linear_beta,rectified_flow,spectral"
LEARNED_DIM = 16  # the largest latent dimension that is trained unless --learned_dims asks for others


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_common_flags("unused_states")
    shared.define_ladder_flags(default=LADDERS)
    shared.define_choices("samplers", "ddim,dpmpp_2m,exact_flow", f"Out of {', '.join(laws.SAMPLERS)}.", laws.SAMPLERS)
    shared.define_list("latent_dims", None, "Latent dimensions; powers of two up to D if not given.", int, 1, 100_000)
    help_text = "Samples that the score is estimated from; inf is the exact score."
    shared.define_list("n", "inf,500", help_text, int, 2, 1_000_000, infinite=True)
    shared.define_integer("draws", 100, "Draws of the estimate for each finite n.", low=2, high=1_000_000)
    shared.define_seed("seed", 0, "Seed of the first draw, and of training.")
    shared.define_float(
        "tolerance", 0.01, "Share of the distance, or of the variance kept, that dropping may cost.", low=0.0
    )
    shared.define_switch("rescale", True, "Divide the kept variances by their mean, for each latent dimension.")
    shared.define_switch("learned", True, "Train one network per level, for the first of --ladders and --samplers.")
    shared.define_list(
        "learned_dims", None, f"Trained dimensions; the largest up to {LEARNED_DIM} if not given.", int, 1, 256
    )
    shared.define_range(
        "states",
        "Levels to train in the learned part, both included, 1 = cleanest: 8:32 leaves out 1..7. Must end at --levels, where "
        "sampling starts. If not given, all but the number that the closed form drops.",
    )
    shared.define_integer("steps", 1000, "Optimiser steps of each network.", low=1, high=10_000_000)


def check_flags() -> None:
    """What can be refused before data are read."""
    shared.check_ladder_flags()
    shared.check_states()
    if FLAGS.states is not None and FLAGS.states[1] != FLAGS.levels:
        low, high = FLAGS.states
        raise shared.bad(
            "states", f"{low}:{high}", f"must end at {FLAGS.levels}: sampling starts at the noisiest level"
        )


def read_config(dataset: data.Dataset) -> unused_states.Config:
    """The configuration that the flags ask for; `UsageError` if they do not fit together."""
    if FLAGS.latent_dims is not None:
        shared.check_latent_dims(dataset)
    dims = [2**k for k in range(17) if 2**k <= dataset.dim] if FLAGS.latent_dims is None else sorted(FLAGS.latent_dims)
    config = unused_states.Config(
        latent_dims=tuple(dims),
        n=tuple(FLAGS.n),
        ladders=tuple(FLAGS.ladders),
        samplers=tuple(FLAGS.samplers),
        levels=FLAGS.levels,
        sigma_min=FLAGS.sigma_min,
        sigma_max=FLAGS.sigma_max,
        draws=min(FLAGS.draws, 20) if FLAGS.quick else FLAGS.draws,
        seed=FLAGS.seed,
        tolerance=FLAGS.tolerance,
        rescale=FLAGS.rescale,
    )
    try:
        unused_states.pairs(config)
    except ValueError as error:
        raise shared.bad("samplers", FLAGS.samplers, str(error)) from error
    return config


def read_learned(config: unused_states.Config, dataset: data.Dataset) -> learned.LearnedConfig | None:
    """What to train, or None; `UsageError` for dimensions that cannot be."""
    if FLAGS.learned_dims is not None and max(FLAGS.learned_dims) > dataset.dim:
        raise shared.bad(
            "learned_dims", FLAGS.learned_dims, f"must be 1..{dataset.dim}, the dimension of {dataset.name}"
        )
    dims = FLAGS.learned_dims or [max((d for d in config.latent_dims if d <= LEARNED_DIM), default=0)]
    noisiest = config.ladder(config.ladders[0], np.ones(1))
    chains = [s for s in config.samplers if s in laws.CHAINS and laws.is_defined(s, noisiest)]
    if not (FLAGS.learned and dims[0] and chains):
        return None  # main says so
    quick = {"steps": min(FLAGS.steps, 200), "samples": 2048} if FLAGS.quick else {"steps": FLAGS.steps}
    return learned.LearnedConfig(
        latent_dims=tuple(dims),
        ladder=config.ladders[0],
        sampler=chains[0],
        states=FLAGS.states,
        seed=FLAGS.seed,
        **quick,
    )


def plan(
    variances: np.ndarray, config: unused_states.Config, training: learned.LearnedConfig | None
) -> list[plans.Stage]:
    """The stages of the job."""
    of_training = [] if training is None else learned.plan(variances, config, training)
    return [*unused_states.plan(config), *of_training, plans.host("tables, figures", runs=1, seconds=3.0)]


def main() -> None:
    begin = time.perf_counter()
    check_flags()
    dataset = shared.load_dataset()
    # A bare spectrum is diagonal and sorted: no eigenvalues to compute, which takes a while at 3072.
    variances = (
        np.diag(dataset.covariance) if dataset.samples is None else gaussians.eigh_descending(dataset.covariance)[0]
    )
    if not variances[0] > 0:
        given = "data" if FLAGS.spectrum is None else "spectrum"
        raise shared.bad(given, getattr(FLAGS, given), "every variance is 0")
    config = read_config(dataset)
    training = read_learned(config, dataset)
    job = shared.open_job(lambda: plan(variances, config, training))
    cases, rows, comparisons = unused_states.run(variances, config, job.report, job.store), [], []
    if training is not None:
        comparisons = learned.compare(variances, config, training, job.report, job.store)
        rows = learned.make_records(comparisons, training)
    elif FLAGS.learned:
        print(
            f"nothing is trained: no latent dimension up to {LEARNED_DIM} (--learned_dims chooses others), or no sampler"
        )
    print(report.table(cases, config, comparisons, training))
    records.write_records(job.workdir, unused_states.make_records(cases, config) + rows)
    records.write_curves(job.workdir, unused_states.make_curves(cases, config) | learned.make_curves(comparisons))
    plotting.save(report.draw_levels(cases, variances, config, dataset.name), job.workdir / "levels.png")
    if np.any(np.isfinite(config.n)):
        plotting.save(report.draw_estimates(cases, config, dataset.name), job.workdir / "estimates.png")
    if comparisons:
        plotting.save(report.draw_learned(comparisons, config, training, dataset.name), job.workdir / "learned.png")
    seconds = time.perf_counter() - begin
    training_seconds = learned.seconds(comparisons)
    records.write_metadata(job.workdir, seconds=seconds, training_seconds=training_seconds, data_sha256=dataset.digest)
    print(f"{seconds:.1f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
