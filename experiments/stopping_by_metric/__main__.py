"""The command line: flags, files and what is printed."""

import time

from absl import flags

from experiments import flags as shared
from experiments import image_models, unchanged
from experiments.stopping_by_metric import AUTOENCODERS, Config, compare, plan, report, run
from ldmjax import data, plotting, records

FLAGS = flags.FLAGS


LEAST = 2 * image_models.BLOCKS  # images or samples that a distance and its error need
QUICK = {
    "latent_dims": [4, 16], "seeds": [0], "autoencoder_steps": 200, "training_steps": 300, "samples": 256,
    "sampling_steps": 100, "stops": 8,
}  # fmt: skip


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags(default="pixels,classifier")
    shared.define_common_flags("stopping_by_metric")
    shared.define_choices("autoencoders", "pca,conv", f"Out of {', '.join(AUTOENCODERS)}.", AUTOENCODERS)
    shared.define_list("latent_dims", "4,8,16,32", "Latent dimensions.", int, 1, 100_000)
    shared.define_seeds("0,1,2", "Each seed has its own split, initialisations and noise.")
    shared.define_integer(
        "n", 1200, "Training images, of autoencoders and diffusion models alike.", low=2, high=1_000_000
    )
    shared.define_integer("reference", 2000, "Held-out images to compare with, at most.", low=LEAST, high=1_000_000)
    shared.define_choice("process", "rectified_flow", "Forward process, and how it is sampled.", image_models.PROCESSES)
    shared.define_choice("readout", "rescaled", "What is decoded of a stopped state.", ["state", "rescaled"])
    shared.define_integer("sampling_steps", 250, "Steps of every chain.", low=2, high=100_000)
    shared.define_integer("samples", 2048, "Generated images per model, even.", low=LEAST, high=1_048_576)
    shared.define_integer(
        "stops", 20, "Stops in the second half of the chain, denser towards its end.", low=2, high=10_000
    )
    shared.define_integer("autoencoder_steps", 1000, "Optimiser steps of an autoencoder.", low=1, high=10_000_000)
    shared.define_integer("training_steps", 2000, "Optimiser steps of every diffusion model.", low=1, high=10_000_000)
    shared.define_integer("hidden", 128, "Width of its network.", low=1, high=16_384)
    shared.define_precision_flag()


def read_sampling() -> image_models.SamplingConfig:
    """How models are sampled, known before data are read; --quick replaces the flags that were not given."""
    shared.apply_quick(QUICK)
    shared.check_features()
    if FLAGS.process == "vp" and FLAGS.readout == "state":
        raise shared.bad("readout", "state", "must be rescaled with --process=vp, whose states are so already")
    try:
        return image_models.SamplingConfig(
            process=FLAGS.process,
            steps=FLAGS.sampling_steps,
            samples=FLAGS.samples,
            stops=FLAGS.stops,
            batch=min(FLAGS.samples, 1024),
        )
    except ValueError as error:
        raise shared.bad("samples", FLAGS.samples, str(error)) from error


def read_config(dataset: data.Dataset, sampling: image_models.SamplingConfig) -> Config:
    """Flags to configuration; `UsageError` if they do not fit together, or the data."""
    shared.check_images(dataset)
    shared.check_n(dataset, held_out=LEAST)
    shared.check_latent_dims(dataset)
    shared.check_precision(FLAGS.autoencoders)
    for kind in FLAGS.autoencoders:
        shared.check_latent_shapes("latent_dims", kind, [(d,) for d in FLAGS.latent_dims], dataset, n=FLAGS.n)
    names = "n reference readout autoencoder_steps training_steps hidden precision".split()
    lists = "autoencoders latent_dims seeds".split()
    return Config(
        **{name: FLAGS[name].value for name in names},
        **{name: tuple(FLAGS[name].value) for name in lists},
        sampling=sampling,
    )


def main() -> None:
    begin = time.perf_counter()
    sampling = read_sampling()
    dataset = shared.load_dataset()
    config = read_config(dataset, sampling)
    spaces = shared.load_features(dataset)
    job = shared.open_job(lambda: plan(dataset, spaces, config))
    unchanged.check("features", " ".join(space.digest for space in spaces), store=job.store)
    try:
        runs = run(dataset, spaces, config, job.report, job.store)
        agreement = compare(runs, config.logsnrs)
    except ValueError as error:
        # Which latents an autoencoder can have is only known to it, and which models train once they have.
        raise shared.bad("latent_dims", FLAGS.latent_dims, str(error)) from error
    print(report.table(runs, agreement, config))
    records.write_records(job.workdir, report.make_records(runs, agreement, config, spaces, dataset))
    records.write_curves(job.workdir, report.make_curves(runs, config))
    plotting.save(report.draw_agreement(agreement, dataset.name), job.workdir / "agreement.png")
    plotting.save(report.draw_stops(runs, config, dataset.name), job.workdir / "stops.png")
    seconds = time.perf_counter() - begin
    accuracy = {space.name: space.accuracy for space in spaces if space.accuracy is not None}
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=dataset.digest, classifier_accuracy=accuracy)
    print(f"{seconds:.0f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
