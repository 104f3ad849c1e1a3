"""The command line: flags, files and what is printed."""

import re
import time

from absl import flags

from experiments import flags as shared
from experiments import image_models, latent_vs_pixel
from experiments.latent_vs_pixel import report
from ldmjax import autoencoders, data, devices, plotting, records

FLAGS = flags.FLAGS
QUICK = {
    "autoencoders": ["pca:16"], "seeds": [0], "training_steps": 200, "autoencoder_steps": 200,
    "samples": 256, "sampling_steps": 100, "stops": 10,
}  # fmt: skip
SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*x[1-9]\d*)?")


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags()
    shared.define_common_flags("latent_vs_pixel")
    kinds = [kind for kind in autoencoders.KINDS if kind != "identity"]
    flags.DEFINE_list(
        "autoencoders",
        "pca:16,kl:4x4x2",
        f"Latent models as KIND:SHAPE, KIND out of {', '.join(kinds)}; a SHAPE is a length, 16, or a map, 4x4x2. Vectors are "
        "learned by an MLP, maps by a U-Net; the pixel model of each comes by itself.",
    )
    shared.define_list("seeds", "0,1,2", "Each seed has its own split, initialisations and noise.", int, 0)
    shared.define_integer("n", 1000, "Training images, of autoencoders and diffusion models alike.", low=2)
    shared.define_integer("reference", 5000, "Held-out images to compare with, at most.", low=2 * image_models.BLOCKS)
    flags.DEFINE_enum("process", "rectified_flow", image_models.PROCESSES, "Forward process, and how it is sampled.")
    shared.define_integer("sampling_steps", 250, "Steps of every chain.", low=2)
    shared.define_integer("samples", 2048, "Generated images per model, even.", low=2 * image_models.BLOCKS)
    shared.define_integer("sampling_batch", 128, "Samples that a chain holds at once, at most.", low=1)
    shared.define_integer("stops", 20, "Stops in the second half of the chain, denser towards its end.", low=2)
    shared.define_integer("training_steps", 2000, "Optimiser steps of every diffusion model.", low=1)
    shared.define_integer("batch_size", 64, "Latents per step.", low=2)
    shared.define_integer("autoencoder_steps", 1500, "Optimiser steps of the trained autoencoders.", low=1)
    shared.define_integer("hidden", 256, "Width of the pixel MLP; latent MLPs have as many operations.", low=1)
    shared.define_integer("mlp_blocks", 2, "Residual blocks of the MLPs.", low=0)
    shared.define_list("channels", "8,16", "Channels of the pixel U-Net, one per resolution, rising.", int, 1)
    shared.define_integer("unet_blocks", 1, "Residual blocks of each resolution of the U-Nets, each way.", low=0)
    shared.define_integer("runs_per_batch", 1, "Runs vmapped at once on each device; bounds memory.", low=1)


def read_config(dataset: data.Dataset) -> latent_vs_pixel.Config:
    """Flags to configuration; --quick replaces the flags that were not given; `UsageError` if they do not fit together."""
    shared.apply_quick(QUICK)
    shared.check_images(dataset)
    held_out = 2 * image_models.BLOCKS
    if FLAGS.n > len(dataset.samples) - held_out:
        allowed = f"must be 2..{len(dataset.samples) - held_out}: {dataset.name} has {len(dataset.samples)} images, "
        raise shared.bad("n", FLAGS.n, f"{allowed}{held_out} are held out at least")
    try:
        sampling = image_models.SamplingConfig(
            process=FLAGS.process,
            steps=FLAGS.sampling_steps,
            samples=FLAGS.samples,
            stops=FLAGS.stops,
            batch=FLAGS.sampling_batch,
        )
    except ValueError as error:
        raise shared.bad("samples", FLAGS.samples, str(error)) from error
    names = (
        "n reference hidden mlp_blocks unet_blocks training_steps batch_size autoencoder_steps runs_per_batch".split()
    )
    config = latent_vs_pixel.Config(
        autoencoders=tuple(_autoencoder(word) for word in FLAGS.autoencoders),
        seeds=tuple(FLAGS.seeds),
        channels=tuple(FLAGS.channels),
        sampling=sampling,
        **{name: FLAGS[name].value for name in names},
    )
    try:
        latent_vs_pixel.make_plans(config, dataset.image_shape)
    except ValueError as error:
        raise shared.bad("autoencoders", FLAGS.autoencoders, str(error)) from error
    return config


def _autoencoder(word: str) -> tuple[str, tuple[int, ...]]:
    """KIND:SHAPE, read."""
    kind, _, shape = word.partition(":")
    if kind not in autoencoders.KINDS or kind == "identity" or not SHAPE.fullmatch(shape):
        allowed = "must be comma-separated KIND:SHAPE such as pca:16 or kl:4x4x2, KIND out of pca, conv, kl, vq"
        raise shared.bad("autoencoders", FLAGS.autoencoders, allowed)
    return kind, tuple(map(int, shape.split("x")))


def main() -> None:
    begin = time.perf_counter()
    dataset = shared.load_dataset()
    config = read_config(dataset)
    features = shared.load_features(dataset)
    workdir = shared.prepare_workdir()
    try:
        outcome = latent_vs_pixel.run(dataset, features, config, lambda line: print(line, flush=True))
    except ValueError as error:
        # Which latents an autoencoder can have, or images that all coincide, is only known to it.
        raise shared.bad("autoencoders", FLAGS.autoencoders, str(error)) from error
    records.write_records(workdir, latent_vs_pixel.make_records(outcome, dataset, features, config))
    records.write_curves(workdir, latent_vs_pixel.make_curves(outcome, config))
    print(report.table(outcome, config))
    for name, figure in report.draw(outcome, config, dataset.name).items():
        plotting.save(figure, workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(workdir, seconds=seconds, data_sha256=dataset.digest)
    print(f"{seconds:.0f} s; results in {workdir}")


if __name__ == "__main__":
    devices.use_all_cores()
    define_flags()
    shared.run(main)
