"""The command line: flags, files and what is printed."""

import time

from absl import flags

from experiments import flags as shared
from experiments import image_models, noisy_autoencoder, unchanged
from experiments.noisy_autoencoder import report
from ldmjax import data, plotting, records, stopping

FLAGS = flags.FLAGS
LEAST = 2 * image_models.BLOCKS  # images or samples that a distance and its error need
QUICK = {
    "latent_dims": [2, 4, 8], "seeds": [0], "training_steps": 500, "autoencoder_steps": 200, "samples": 512,
    "sampling_steps": 100, "stops": 10, "hidden": 64, "n": 500, "reference": 500,
}  # fmt: skip
DEFAULT_DIMS = (2, 4, 6, 8, 12, 16, 32, 64)


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags()
    shared.define_common_flags("noisy_autoencoder")
    shared.define_choice(
        "autoencoder", "conv", "Kind of autoencoder, with vector latents.", ("pca", "conv", "kl", "vq")
    )
    shared.define_list(
        "latent_dims", ",".join(map(str, DEFAULT_DIMS)), "Latent dimensions; by default those up to D.", int, 1, 100_000
    )
    shared.define_seeds("0,1,2", "Each seed has its own split, initialisations and noise.")
    shared.define_integer("n", None, "Training images; default half, at most 5000.", low=LEAST, high=1_000_000)
    shared.define_integer("reference", 5000, "Held-out images to compare with, at most.", low=LEAST, high=1_000_000)
    shared.define_choice("process", "rectified_flow", "Forward process, and how it is sampled.", image_models.PROCESSES)
    shared.define_choice(
        "readout", "rescaled", "Of stopped states, and of the noisy autoencoder.", stopping.NOISY_READOUTS
    )
    shared.define_integer("sampling_steps", 250, "Steps of every chain.", low=2, high=100_000)
    shared.define_integer("samples", 4096, "Generated images per model, even.", low=512, high=1_048_576)
    shared.define_integer(
        "stops", 20, "Stops in the second half of the chain, denser towards its end.", low=2, high=10_000
    )
    shared.define_integer("training_steps", 4000, "Optimiser steps of every diffusion model.", low=2, high=10_000_000)
    shared.define_integer("batch_size", 256, "Latents per step.", low=2, high=65_536)
    shared.define_float("learning_rate", 1e-3, "Peak rate of the diffusion models.", low=1e-8)
    shared.define_integer("hidden", 256, "Width of the diffusion models' MLP.", low=1, high=16_384)
    shared.define_integer("blocks", 2, "Residual blocks of the MLP.", low=0, high=64)
    shared.define_integer("autoencoder_steps", 2000, "Optimiser steps of trained autoencoders.", low=1, high=10_000_000)
    shared.define_precision_flag()
    shared.define_runs_per_batch()


def read_sampling() -> image_models.SamplingConfig:
    """How models are sampled, known before data are read; --quick replaces the flags that were not given."""
    shared.apply_quick(QUICK)
    shared.check_features()
    if FLAGS.process == "vp" and FLAGS.readout == "state":
        raise shared.bad("readout", "state", "must be rescaled with --process=vp, whose states are so already")
    try:
        return image_models.SamplingConfig(
            process=FLAGS.process, steps=FLAGS.sampling_steps, samples=FLAGS.samples, stops=FLAGS.stops, batch=512
        )
    except ValueError as error:
        raise shared.bad("samples", FLAGS.samples, str(error)) from error


def read_config(dataset: data.Dataset, sampling: image_models.SamplingConfig) -> noisy_autoencoder.Config:
    """Flags to configuration; `UsageError` if they do not fit together, or the data."""
    shared.check_images(dataset)
    count = len(dataset.samples)
    if FLAGS.n is None:
        FLAGS.n = min(count // 2, 5000)
    if FLAGS.n > count - LEAST:
        raise shared.bad("n", FLAGS.n, f"must be <= {count - LEAST}: {count} images, {LEAST} are held out at least")
    if not FLAGS["latent_dims"].present:
        FLAGS["latent_dims"].value = [d for d in FLAGS.latent_dims if d <= dataset.dim]
    shared.check_latent_dims(dataset)
    shared.check_precision([FLAGS.autoencoder])
    shapes = [(d,) for d in FLAGS.latent_dims]
    shared.check_latent_shapes("latent_dims", FLAGS.autoencoder, shapes, dataset, n=FLAGS.n)
    names = "autoencoder n reference hidden blocks training_steps batch_size learning_rate autoencoder_steps readout precision"
    return noisy_autoencoder.Config(
        latent_dims=tuple(FLAGS.latent_dims),
        seeds=tuple(FLAGS.seeds),
        sampling=sampling,
        runs_per_batch=FLAGS.runs_per_batch,
        **{name: FLAGS[name].value for name in names.split()},
    )


def main() -> None:
    begin = time.perf_counter()
    sampling = read_sampling()
    dataset = shared.load_dataset()
    config = read_config(dataset, sampling)
    spaces = shared.load_features(dataset)
    job = shared.open_job(lambda: noisy_autoencoder.plan(dataset, spaces, config))
    unchanged.check("features", " ".join(space.digest for space in spaces), store=job.store)
    try:
        outcome = noisy_autoencoder.run(dataset, spaces, config, job.report, job.store)
    except ValueError as error:
        # Which latents an autoencoder can have is only known to it.
        raise shared.bad("latent_dims", FLAGS.latent_dims, str(error)) from error
    records.write_records(job.workdir, report.make_records(outcome, dataset, config))
    records.write_curves(job.workdir, report.make_curves(outcome, config))
    print(report.table(outcome, config))
    plotting.save(report.draw_curves(outcome, config, dataset.name), job.workdir / "curves.png")
    plotting.save(report.draw_predictions(outcome, dataset.name), job.workdir / "predictions.png")
    seconds = time.perf_counter() - begin
    costs = vars(outcome.costs)
    records.write_metadata(job.workdir, seconds=seconds, costs=costs, data_sha256=dataset.digest)
    print(f"{seconds:.0f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
