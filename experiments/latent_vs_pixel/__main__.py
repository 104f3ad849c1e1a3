"""The command line: flags, files and what is printed."""

import re
import time

from absl import flags

from experiments import flags as shared
from experiments import image_models, latent_vs_pixel, unchanged
from experiments.latent_vs_pixel import report
from ldmjax import autoencoders, data, plotting, records

FLAGS = flags.FLAGS
LEAST = 2 * image_models.BLOCKS  # images or samples that a distance and its error need
QUICK = {
    "autoencoders": ["pca:16"], "seeds": [0], "training_steps": 200, "autoencoder_steps": 200,
    "samples": 256, "sampling_steps": 100, "stops": 10,
}  # fmt: skip
KINDS = tuple(kind for kind in autoencoders.KINDS if kind != "identity")
SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*x[1-9]\d*)?")


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags()
    shared.define_common_flags("latent_vs_pixel")
    shared.define_words(
        "autoencoders",
        "pca:16,kl:4x4x2",
        "Latent models. Vectors are learned by an MLP, maps by a U-Net; the pixel model of each comes by itself.",
        allowed=f"KIND:SHAPE, KIND out of {', '.join(KINDS)}, SHAPE a length such as 16 or a map such as 4x4x2",
        check=read_autoencoder,
    )
    shared.define_seeds("0,1,2", "Each seed has its own split, initialisations and noise.")
    shared.define_integer(
        "n", 1000, "Training images, of autoencoders and diffusion models alike.", low=2, high=1_000_000
    )
    shared.define_integer("reference", 5000, "Held-out images to compare with, at most.", low=LEAST, high=1_000_000)
    shared.define_choice("process", "rectified_flow", "Forward process, and how it is sampled.", image_models.PROCESSES)
    shared.define_integer("sampling_steps", 250, "Steps of every chain.", low=2, high=100_000)
    shared.define_integer("samples", 2048, "Generated images per model, even.", low=LEAST, high=1_048_576)
    shared.define_integer("sampling_batch", 128, "Samples that a chain holds at once, at most.", low=1, high=65_536)
    shared.define_integer(
        "stops", 20, "Stops in the second half of the chain, denser towards its end.", low=2, high=10_000
    )
    shared.define_integer("training_steps", 2000, "Optimiser steps of every diffusion model.", low=1, high=10_000_000)
    shared.define_integer("batch_size", 64, "Latents per step.", low=2, high=65_536)
    shared.define_integer(
        "autoencoder_steps", 1500, "Optimiser steps of the trained autoencoders.", low=1, high=10_000_000
    )
    shared.define_integer(
        "hidden", 256, "Width of the pixel MLP; latent MLPs have as many operations.", low=1, high=16_384
    )
    shared.define_integer("mlp_blocks", 2, "Residual blocks of the MLPs.", low=0, high=64)
    shared.define_list("channels", "8,16", "Channels of the pixel U-Net, one per resolution, rising.", int, 1, 4096)
    shared.define_integer(
        "unet_blocks", 1, "Residual blocks of each resolution of the U-Nets, each way.", low=0, high=64
    )
    shared.define_precision_flag()
    shared.define_runs_per_batch()


def read_sampling() -> image_models.SamplingConfig:
    """How models are sampled, known before data are read; --quick replaces the flags that were not given."""
    shared.apply_quick(QUICK)
    shared.check_features()
    try:
        return image_models.SamplingConfig(
            process=FLAGS.process,
            steps=FLAGS.sampling_steps,
            samples=FLAGS.samples,
            stops=FLAGS.stops,
            batch=FLAGS.sampling_batch,
        )
    except ValueError as error:
        raise shared.bad("samples", FLAGS.samples, str(error)) from error


def read_config(dataset: data.Dataset, sampling: image_models.SamplingConfig) -> latent_vs_pixel.Config:
    """Flags to configuration; `UsageError` if they do not fit together, or the data."""
    shared.check_images(dataset)
    shared.check_n(dataset, held_out=LEAST)
    latents = [read_autoencoder(word) for word in FLAGS.autoencoders]
    for kind, shape in latents:
        shared.check_latent_shapes("autoencoders", kind, [shape], dataset, n=FLAGS.n)
    names = (
        "n reference hidden mlp_blocks unet_blocks training_steps batch_size autoencoder_steps runs_per_batch precision"
    )
    config = latent_vs_pixel.Config(
        autoencoders=tuple(latents),
        seeds=tuple(FLAGS.seeds),
        channels=tuple(FLAGS.channels),
        sampling=sampling,
        **{name: FLAGS[name].value for name in names.split()},
    )
    try:
        latent_vs_pixel.make_plans(config, dataset.image_shape)
    except ValueError as error:
        raise shared.bad("autoencoders", FLAGS.autoencoders, str(error)) from error
    return config


def read_autoencoder(word: str) -> tuple[str, tuple[int, ...]]:
    """KIND:SHAPE, read; ValueError if it is not that."""
    kind, _, shape = word.partition(":")
    if kind not in KINDS or not SHAPE.fullmatch(shape):
        raise ValueError(f"got {word!r}")
    return kind, tuple(map(int, shape.split("x")))


def main() -> None:
    begin = time.perf_counter()
    sampling = read_sampling()
    dataset = shared.load_dataset()
    config = read_config(dataset, sampling)
    features = shared.load_features(dataset)
    job = shared.open_job(lambda: latent_vs_pixel.plan(dataset, features, config))
    unchanged.check("features", " ".join(space.digest for space in features), store=job.store)
    try:
        outcome = latent_vs_pixel.run(dataset, features, config, job.report, job.store)
    except ValueError as error:
        # Which latents an autoencoder can have, or images that all coincide, is only known to it.
        raise shared.bad("autoencoders", FLAGS.autoencoders, str(error)) from error
    records.write_records(job.workdir, report.make_records(outcome, dataset, features, config))
    records.write_curves(job.workdir, report.make_curves(outcome, config))
    print(report.table(outcome, config))
    for name, figure in report.draw(outcome, config, dataset.name).items():
        plotting.save(figure, job.workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=dataset.digest)
    print(f"{seconds:.0f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
